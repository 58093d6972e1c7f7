"""From text to speech: the audio, the files and the report, against scripted frames and a real voice."""

import json
import os
import random
import re
import shutil
import subprocess
import threading
import time

import numpy
import pytest
import soxr
from pocketsphinx import Decoder
from websockets.frames import Opcode

from conftest import PYTHON, SCRIPT, environment_for, finish, make_device, read_wav, start
from scripted_server import PCM, ScriptedServer, say

SENTENCES = ["The quick brown fox jumps over the lazy dog.", "The quick white cat jumps over the lazy fox."]
SENTENCES += ["We will meet you at the station in the morning.", "Good morning how are you today."]


def recognise(path):
    """Return which of the sentences a speech recogniser hears in a WAV file, or None."""
    pcm, rate = read_wav(path)
    samples = soxr.resample(numpy.frombuffer(pcm, "<i2"), rate, 16000)
    decoder, silence = Decoder(samprate=16000, loglevel="FATAL", lm=None), bytes(16000)
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
    assert len(list(tmp_path.iterdir())) == 1


def test_unknown_messages_pings_and_fragments_are_no_trouble(run, tmp_path):
    def play(peer):
        peer.hear()
        peer.json({"status": "chunk"})
        for nothing in None, {}, {"audio": None}, {"audio": ""}, "", "AAAA", ["AAAA"]:
            peer.json({"status": "chunk", "data": nothing})
        peer.json({"status": "word_timestamp", "data": {"id": 1, "word": "Hello", "start": 0, "end": 0.3}})
        peer.json({"status": "info", "data": [{"audio": "AAAA"}], "payload": {"status": "complete"}})
        peer.json({"session_id": "s", "error": None, "done": False, "payload": "of another kind"})
        peer.frame(Opcode.PING, b"p")
        assert peer.next_frame(Opcode.PONG).data == b"p"
        peer.frame(Opcode.PONG, b"unasked for")
        peer.chunk(PCM[:100], external_session_id="e", error=None)
        message = json.dumps({"status": "chunk", "data": {"audio": "AQIDBAUG"}}).encode()
        peer.frame(Opcode.TEXT, message[:9], fin=False)
        peer.frame(Opcode.PING, b"within")
        peer.frame(Opcode.CONT, message[9:20], fin=False)
        peer.frame(Opcode.CONT, message[20:])
        peer.complete(data={"audio": "BwgJCg=="})  # audio there counts too

    result = run(play=play)
    assert result.code == 0 and "in 3 chunks, " in result.err, result.err
    assert read_wav(tmp_path / "output.wav")[0] == PCM[:100] + bytes(range(1, 11))


LAST_MESSAGES = [{"payload": {"status": "complete"}}, {"status": "comp", "done": True}, {"done": True}]
LAST_MESSAGES += [{"request_id": "r-1", "status": "complete", "message": "All chunks sent", "done": True}]


@pytest.mark.parametrize("last", LAST_MESSAGES)
@pytest.mark.parametrize("status", ["chunk", "ok", None])
def test_audio_and_the_end_as_clients_of_the_hosted_service_saw_them(run, tmp_path, last, status):
    def play(peer):
        peer.hear()
        peer.chunk(PCM, status=status)
        peer.json({"data": {"audio": "AQI="}})
        peer.json(last)
        peer.wait()

    assert run("--timeout", "5", play=play).code == 0
    assert read_wav(tmp_path / "output.wav") == (PCM + b"\1\2", 24000)


def test_output_is_not_touched_before_the_end(run, tmp_path):
    output, seen = tmp_path / "output.wav", []
    output.write_bytes(b"old")

    def look(peer):
        time.sleep(0.3)
        (partial,) = tmp_path.glob("*partial*")
        seen.append((output.read_bytes(), read_wav(partial)))
        peer.complete()

    assert run(play=say(PCM, then=look)).code == 0
    assert seen == [(b"old", (PCM, 24000))]
    assert read_wav(output)[0] == PCM and len(list(tmp_path.iterdir())) == 1


REPORT = """Connection: # ms
TTFB: # ms
Last chunk: # ms, real-time factor #
Complete: # ms
Audio: 0.40 s in 3 chunks, gapless
Saved: output.wav
"""


def test_report(run):
    result = run(play=say(PCM[:4800], PCM[:4800], PCM[:9600]))
    assert re.sub(r"[\d.]+( ms|$)", r"#\1", result.err, flags=re.MULTILINE) == REPORT
    assert result.figure("TTFB") <= result.figure("Last chunk") <= result.figure("Complete") < 1000
    assert result.out == b""


def test_times_are_those_of_the_messages(run):
    def play(peer):
        time.sleep(0.3)
        peer.hear()
        for pause in 0.3, 0.2:
            time.sleep(pause)
            peer.chunk(PCM)
        time.sleep(0.4)
        peer.complete()

    result = run(play=play)
    connection, ttfb, last, complete = map(result.figure, ["Connection", "TTFB", "Last chunk", "Complete"])
    assert 300 <= connection < 590 and 300 <= ttfb < 590 and 500 <= last < 890 and 900 <= complete < 1500
    assert float(result.lines[2].split()[-1]) == pytest.approx(last / 1000 / (len(PCM) / 24000), abs=0.002)


PLAYBACK = [([0, 0, 0.8], "gapless", 0), ([0.9, 0, 0], "gapless", 0)]  # ahead of the player; a late start
PLAYBACK += [([0, 0.8, 0], "1 gaps", 0.3), ([0, 0.8, 0.7], "2 gaps", 0.5)]  # each chunk plays for 0.5 s


@pytest.mark.parametrize(("pauses", "gaps", "silence"), PLAYBACK)
def test_playback(run, pauses, gaps, silence):
    def play(peer):
        peer.hear()
        for pause in pauses:
            time.sleep(pause)
            peer.chunk(bytes(24000))
        peer.complete()

    result = run(play=play)
    pattern = rf"Audio: 1\.50 s in 3 chunks, {gaps}(, (.*) s in all)?"
    waited = float(re.fullmatch(pattern, result.lines[-2]).group(2) or 0)
    assert silence - 0.02 <= waited <= silence + 0.3 * bool(silence)


def read_stream(data):
    """Return the PCM of a WAV whose sizes say that it goes on until the end."""
    assert data[:16] == b"RIFF\xff\xff\xff\xffWAVEfmt " and data[36:44] == b"data\xdb\xff\xff\xff"
    return data[44:]


def test_standard_output_leaves_while_it_arrives(tmp_path):
    go = threading.Event()
    with ScriptedServer(say(PCM, then=lambda peer: (go.wait(10), peer.chunk(b"12"), peer.complete()))) as server:
        process = start("-o", "-", env=environment_for(server), cwd=tmp_path)
        assert read_stream(process.stdout.read(44 + len(PCM))) == PCM
        assert process.poll() is None
        go.set()
        result = finish(process)
    assert result.code == 0 and result.out == b"12" and result.lines[-1] == "Saved: Standard output"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stdout", ["terminal", "closed"])
def test_standard_output_that_cannot_take_audio(tmp_path, stdout):
    master, slave = os.openpty()
    options = {"stdout": slave} if stdout == "terminal" else {"preexec_fn": lambda: os.close(1)}
    with ScriptedServer(say(PCM)) as server:
        result = finish(start("-o", "-", env=environment_for(server), cwd=tmp_path, **options))
        assert server.connections == 0
    words = "standard output is a terminal" if stdout == "terminal" else r"\[Errno 9\]"
    assert result.code == 2 and re.match(f"The output cannot be written: {words}", result.err)
    os.close(master), os.close(slave)


def test_player_that_quits(tmp_path):
    with ScriptedServer(say(*[PCM] * 200)) as server:
        process = start("-o", "-", env=environment_for(server), cwd=tmp_path)
        process.stdout.read(1000)
        process.stdout.close()
        err = process.stderr.read().decode()
        assert process.wait() == 1
    assert err.splitlines()[2:] == ["The output cannot be written: [Errno 32] Broken pipe."]


def test_pipe_and_device_are_written_directly(run, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    heard = []
    reader = threading.Thread(target=lambda: heard.append(pipe.read_bytes()))
    reader.start()
    assert run("-o", "pipe", play=say(PCM)).code == 0
    reader.join()
    assert read_stream(heard[0]) == PCM
    assert pipe.is_fifo() and [path.name for path in tmp_path.iterdir()] == ["pipe"]
    assert run("-o", make_device(tmp_path, "null", 3), play=say(PCM)).code == 0
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("target", ["pipe", "file", "other.wav"])
def test_link_stays_a_link(tmp_path, target):
    """So does one to standard output, as /dev/stdout is, which root could replace with a file."""
    behind = target if target == "other.wav" else "/proc/self/fd/1"
    (tmp_path / "link").symlink_to(behind)
    with ScriptedServer(say(PCM)) as server, open(tmp_path / "file", "wb") as file:
        options = {"stdout": file if target == "file" else subprocess.PIPE}
        result = finish(start("-o", "link", env=environment_for(server), cwd=tmp_path, **options))
    assert result.code == 0 and os.readlink(tmp_path / "link") == behind
    assert read_stream(result.out) == PCM if target == "pipe" else read_wav(tmp_path / target)[0] == PCM


PLAYERS = ["ffmpeg -loglevel error -i - -f s16le -", "sox -t wav - -t raw -", "aplay -q -D file:/dev/stdout,raw"]
PLAYERS += [
    "mpv --really-quiet --ao=pcm --ao-pcm-waveheader=no --ao-pcm-file=/dev/stdout -",
    "tee copy.wav | " + PLAYERS[0],
]


@pytest.mark.parametrize("command", PLAYERS)
def test_players_decode_exactly_what_was_sent(tmp_path, command):
    program = "ffmpeg" if "ffmpeg" in command else command.split()[0]
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed")
    with ScriptedServer(say(*[PCM[:4800]] * 20)) as server:
        shell = f'"{PYTHON}" "{SCRIPT}" -o - 2> log | {command}'
        heard = subprocess.check_output(shell, shell=True, env=environment_for(server), cwd=tmp_path, timeout=30)
    assert "Saved: Standard output" in (tmp_path / "log").read_text()
    # aplay fills its last period up with silence
    assert heard[: 20 * 4800] == PCM[:4800] * 20 and not heard[20 * 4800 :].strip(b"\0")


def speak(run, lightning, *arguments, **variables):
    return run(*arguments, server=lightning, env={"SMALLEST_API_KEY": lightning.key, **variables})


@pytest.mark.parametrize("sentence", SENTENCES)
def test_speech_is_recognised(run, lightning, tmp_path, sentence):
    result = speak(run, lightning, SMALLEST_TEXT=sentence, SMALLEST_VOICE_ID="emily")
    assert result.code == 0, result.err
    assert recognise(tmp_path / "output.wav") == sentence


@pytest.mark.parametrize("rate", [8000, 11025, 48000])
def test_sample_rate_is_that_of_the_speech(run, lightning, tmp_path, rate):
    length = speak(run, lightning).figure("Audio")
    assert speak(run, lightning, "--sample-rate", str(rate)).figure("Audio") == pytest.approx(length, abs=0.01)
    assert read_wav(tmp_path / "output.wav")[1] == rate


@pytest.mark.parametrize("language", "en hi mr kn ta bn gu de fr es it pl nl ru ar he".split())
def test_languages(run, lightning, tmp_path, language):
    words = {"hi": "नमस्ते", "ta": "வணக்கம்", "ru": "Здравствуйте", "ar": "مرحبا", "he": "שלום"}.get(
        language, "Hello Europa"
    )
    assert speak(run, lightning, "--language", language, "--text", words).code == 0
    assert numpy.abs(numpy.frombuffer(read_wav(tmp_path / "output.wav")[0], "<i2").astype(int)).max() > 3000


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ("--model lightning_v3.1 --voice-id sophia --language vi", 0, "Saved: output.wav"),
        ("--model lightning-v2 --voice-id mia", 0, "Saved: output.wav"),
        ("--ws-url {live} --model none --voice-id magnus", 1, "Model none not found"),
        ("--ws-url {live}", 1, "Voice ryan not found"),
        ("--voice-id nobody", 1, "Voice nobody not found"),
        ("--language xx", 1, "Language xx not supported"),
        ("--ws-url {url}/nowhere", 1, "status 404"),
    ],
)
def test_server_is_as_strict_as_the_service(run, lightning, flags, code, words):
    result = speak(run, lightning, *flags.format(url=lightning.url, live=lightning.live_url).split())
    assert result.code == code and words in result.err
    assert "status 401" in run(server=lightning).err  # the key of the other tests is not the server's
