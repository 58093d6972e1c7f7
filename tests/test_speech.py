"""From text to speech: the audio, the files and the report, against scripted frames and a real voice."""

import json
import os
import random
import re
import threading
import time

import numpy
import pytest
import soxr
from websockets.frames import Opcode

from conftest import environment_for, finish, read_wav, start
from scripted_server import PCM, ScriptedServer, say

SENTENCES = ["The quick brown fox jumps over the lazy dog.", "The quick white cat jumps over the lazy fox."]
SENTENCES += ["We will meet you at the station in the morning.", "Good morning how are you today."]


def recognise(path):
    """Return which of the sentences a speech recogniser hears in a WAV file, or None."""
    pocketsphinx = pytest.importorskip("pocketsphinx", reason="the recogniser has no wheel for this Python")
    pcm, rate = read_wav(path)
    samples = soxr.resample(numpy.frombuffer(pcm, "<i2"), rate, 16000)
    decoder, silence = pocketsphinx.Decoder(samprate=16000, loglevel="FATAL", lm=None), bytes(16000)
    words = [sentence.lower().strip(".") for sentence in SENTENCES]
    decoder.add_jsgf_string("sentences", f"#JSGF V1.0; grammar g; public <g> = {' | '.join(words)};")
    decoder.activate_search("sentences")
    decoder.start_utt()
    decoder.process_raw(silence + samples.tobytes() + silence, full_utt=True)
    decoder.end_utt()
    return decoder.hyp() and SENTENCES[words.index(decoder.hyp().hypstr)]


@pytest.mark.parametrize("seed", range(12))
def test_chunks_of_any_size(run, tmp_path, seed):
    sizes = random.Random(seed).choices([0, 1, 2, 3, 125, 126, 4096, 48_001, 65_535, 70_000], k=8)
    chunks = [os.urandom(size) for size in [*sizes, 2 - sum(sizes) % 2]]  # an even sum
    assert run(play=say(*chunks)).code == 0
    assert read_wav(tmp_path / "output.wav") == (b"".join(chunks), 24000)


def test_unknown_messages_pings_and_fragments_are_no_trouble(run, tmp_path):
    def play(peer):
        peer.hear()
        for nothing in None, {}, {"audio": None}, {"audio": ""}, "", "AAAA", ["AAAA"], 5:
            peer.json({"status": "chunk", "data": nothing})
        peer.json({"status": "word_timestamp", "data": {"id": 1, "word": "Hello", "start": 0, "end": 0.3}})
        peer.json({"status": "info", "data": [{"audio": "AAAA"}], "payload": {"status": "complete"}})
        peer.chunk(PCM[:100], external_session_id="e", error=None)
        message = json.dumps({"status": "chunk", "data": {"audio": "AQIDBAUG"}}).encode()
        peer.frame(Opcode.TEXT, message[:9], fin=False)
        peer.frame(Opcode.PING, b"within")
        assert peer.next_frame(Opcode.PONG).data == b"within"
        peer.frame(Opcode.CONT, message[9:])
        peer.complete(data={"audio": "BwgJCg=="})  # audio there counts too

    result = run(play=play)
    assert result.code == 0 and "in 3 chunks, " in result.err, result.err
    assert read_wav(tmp_path / "output.wav")[0] == PCM[:100] + bytes(range(1, 11))


LAST_MESSAGES = [{"payload": {"status": "complete"}}, {"status": "comp"}, {"done": True}, {"payload": {"done": True}}]
LAST_MESSAGES += [{"status": None, "data": {"status": "complete"}, "done": None}, {"status": "comp", "done": True}]


@pytest.mark.parametrize("last", LAST_MESSAGES)
@pytest.mark.parametrize("status", ["chunk", "ok", None])
def test_audio_and_the_end_as_clients_of_the_hosted_service_saw_them(run, tmp_path, last, status):
    def play(peer):
        peer.hear()
        peer.chunk(PCM, status=status, audio=None, done=False)
        peer.json({"data": {"audio": "AQI="}})
        peer.json({"audio": "AwQ=", "status": "done", "done": "true", "data": "of another kind"})
        peer.json({"audio": "", "data": {"audio": None}, "payload": {"audio": "BQY="}})
        peer.json(last)
        peer.wait()

    assert run("--timeout", "5", play=play).code == 0
    assert read_wav(tmp_path / "output.wav") == (PCM + b"\1\2\3\4\5\6", 24000)


def test_times_are_those_of_the_messages(run):
    def play(peer):
        time.sleep(1)
        peer.hear()
        for _ in range(2):
            time.sleep(1)
            peer.chunk(PCM)
        time.sleep(1)
        peer.complete()

    result = run(play=play)
    connection, ttfb, last, complete = map(result.figure, ["Connection", "TTFB", "Last chunk", "Complete"])
    assert 1000 <= connection < 1990 and 1000 <= ttfb < 1990 and 2000 <= last < 2990 and 3000 <= complete < 3990
    factor = re.search("real-time factor (.*)", result.err).group(1)
    assert float(factor) == pytest.approx(last / 1000 / (len(PCM) / 24000), abs=0.002)
    assert result.out == b""


PLAYBACK = [([0, 0, 1.6], 0), ([1.8, 0, 0], 0), ([0, 1.6, 0], 0.6), ([0, 1.6, 1.4], 1)]  # ahead; late; with gaps


@pytest.mark.parametrize(("pauses", "silence"), PLAYBACK)
def test_playback(run, pauses, silence):
    def play(peer):
        peer.hear()
        for pause in pauses:
            time.sleep(pause)
            peer.chunk(bytes(48000))  # for 1 s
        peer.complete()

    result = run(play=play)
    waited = re.fullmatch(r"Audio: 3\.00 s in 3 chunks, (gapless|gaps of (.*) s in all)", result.lines[-2]).group(2)
    assert (waited is None) == (not silence)
    assert silence - 0.02 <= float(waited or 0) <= silence + 0.9


def read_stream(data):
    """Return the PCM of a WAV whose sizes are those that readers take as unknown."""
    assert data[:16] == b"RIFF\x24\xf0\xff\x7fWAVEfmt " and data[36:44] == b"data\x00\xf0\xff\x7f"
    return data[44:]


def test_standard_output_leaves_while_it_arrives(tmp_path):
    go = threading.Event()
    with ScriptedServer(say(PCM, then=lambda peer: (go.wait(10), peer.chunk(b"12"), peer.complete()))) as server:
        process = start("-o", "-", env=environment_for(server), cwd=tmp_path)
        assert read_stream(process.stdout.read(44 + len(PCM))) == PCM
        go.set()
        result = finish(process)
    assert result.code == 0 and result.out == b"12" and result.lines[-1] == "Saved: standard output"
    assert not list(tmp_path.iterdir())


def test_terminal_is_given_no_audio(run, tmp_path):
    master, slave = os.openpty()
    with open(master, "rb"), open(slave, "wb") as terminal, ScriptedServer(say(PCM)) as server:
        result = run("-o", "-", server=server, stdout=terminal)
    assert result.code == 2 and len(result.lines) == 1 and server.connections == 0
    assert "cannot be written: standard output is a terminal" in result.err


def test_player_that_quits(tmp_path):
    with ScriptedServer(say(*[PCM] * 200)) as server:
        process = start("-o", "-", env=environment_for(server), cwd=tmp_path)
        process.stdout.read(1000)
        process.stdout.close()
        result = finish(process)
    assert result.code == 1 and len(result.lines) == 4 and "cannot be written: Broken pipe" in result.lines[3]


def test_pipe_is_written_directly(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ScriptedServer(say(PCM)) as server:
        process = start("-o", "pipe", env=environment_for(server), cwd=tmp_path)
        assert read_stream(pipe.read_bytes()) == PCM
        assert finish(process).code == 0
    assert pipe.is_fifo() and [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("fails", [False, True])
def test_standard_output_into_a_file_gets_its_length(run, tmp_path, fails):
    play = say(PCM, PCM, then=lambda peer: peer.close(1011) if fails else peer.complete())
    with open(tmp_path / "file", "wb") as file:
        result = run("-o", "-", play=play, stdout=file)
    assert result.code == fails and "Kept" not in result.err
    assert read_wav(tmp_path / "file") == (PCM * 2, 24000)


@pytest.mark.parametrize("target", [None, "old.wav", "missing.wav"])
def test_output_is_replaced_at_the_end(run, tmp_path, target):
    """Even a link is, as mv does. The extension of the output is that of the partial file."""
    output, old = tmp_path / "my.WAVE", tmp_path / "old.wav"
    old.write_bytes(b"old")
    output.symlink_to(target) if target else output.write_bytes(b"old")
    seen = []

    def look(peer):
        time.sleep(0.3)
        partials = [path for path in tmp_path.iterdir() if re.fullmatch(r"my\.partial-[0-9a-f]{8}\.WAVE", path.name)]
        seen.extend([output.exists() and output.read_bytes(), *map(read_wav, partials)])
        peer.complete()

    assert run("-o", "my.WAVE", play=say(PCM, then=look)).code == 0
    assert seen == [target != "missing.wav" and b"old", (PCM, 24000)]
    assert read_wav(output) == (PCM, 24000) and not output.is_symlink()
    assert old.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("sentence", SENTENCES)
def test_speech_is_recognised(run, lightning, tmp_path, sentence):
    result = run("--text", sentence, "--voice-id", "emily", server=lightning)
    assert result.code == 0, result.err
    assert recognise(tmp_path / "output.wav") == sentence


@pytest.mark.parametrize("rate", [8000, 11025, 48000])
def test_sample_rate_is_that_of_the_speech(run, lightning, tmp_path, rate):
    length = run(server=lightning).figure("Audio")
    assert run("--sample-rate", str(rate), server=lightning).figure("Audio") == pytest.approx(length, abs=0.01)
    assert read_wav(tmp_path / "output.wav")[1] == rate


ANSWERS = {"--model lightning_v3.1_pro": "Voice ryan not found", "--language xx": "Language xx not supported"}


def test_server_is_as_strict_as_the_service(run, lightning):
    for flags, words in ANSWERS.items():
        result = run(*flags.split(), server=lightning)
        assert result.code == 1 and words in result.err
    assert "status 404" in run("--ws-url", lightning.url + "/nowhere", server=lightning).err
    assert "status 401" in run(server=lightning, env={"SMALLEST_API_KEY": "sk_of_somebody_else"}).err
