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

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "The quick white cat jumps over the lazy fox.",
    "We will meet you at the station in the morning.",
    "Good morning how are you today.",
]


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
    with ScriptedServer(say(*chunks)) as server:
        assert run(server=server).code == 0
    assert read_wav(tmp_path / "output.wav") == (b"".join(chunks), 24000)
    assert not (tmp_path / "output.partial.wav").exists()


@pytest.mark.parametrize("data", [None, {}, {"audio": None}, {"audio": ""}, ""])
def test_messages_without_audio_are_passed_over(run, tmp_path, data):
    def play(peer):
        peer.hear()
        peer.json({"status": "chunk"})
        peer.json({"status": "chunk", "data": data})
        peer.chunk(PCM)
        peer.json({"status": "chunk", "data": data})
        peer.complete(data=data)

    with ScriptedServer(play) as server:
        result = run(server=server)
    assert result.code == 0 and "in 1 chunk, gapless" in result.err
    assert read_wav(tmp_path / "output.wav")[0] == PCM


def test_unknown_messages_pings_and_fragments_are_no_trouble(run, tmp_path):
    def play(peer):
        peer.hear()
        peer.json({"status": "word_timestamp", "data": {"id": 1, "word": "Hello", "start": 0, "end": 0.3}})
        peer.json({"status": ["chunk"], "data": {"audio": "AAAA"}})
        peer.json({"session_id": "s", "error": None})
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

    with ScriptedServer(play) as server:
        result = run(server=server)
    assert result.code == 0, result.err
    assert read_wav(tmp_path / "output.wav")[0] == PCM[:100] + bytes(range(1, 11))


def test_output_is_not_touched_before_the_end(run, tmp_path):
    output, partial = tmp_path / "output.wav", tmp_path / "output.partial.wav"
    output.write_bytes(b"old")
    seen = []

    def look(peer):
        time.sleep(0.3)
        seen.append((output.read_bytes(), read_wav(partial)))
        peer.complete()

    with ScriptedServer(say(PCM, then=look)) as server:
        assert run(server=server).code == 0
    assert seen == [(b"old", (PCM, 24000))]
    assert read_wav(output)[0] == PCM and not partial.exists()


def test_link_to_the_output_stays_a_link(run, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "output.wav").symlink_to(tmp_path / "real" / "speech.wav")
    with ScriptedServer(say(PCM)) as server:
        assert run(server=server).code == 0
    assert (tmp_path / "output.wav").is_symlink()
    assert read_wav(tmp_path / "real" / "speech.wav")[0] == PCM


REPORT = """Connection: # ms
TTFB: # ms
Last chunk: # ms, real-time factor #
Complete: # ms
Audio: 0.40 s in 3 chunks, gapless
Saved: output.wav (19.2 kB)
"""


def test_report(run):
    with ScriptedServer(say(PCM[:4800], PCM[:4800], PCM[:9600])) as server:
        result = run(server=server)
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

    with ScriptedServer(play) as server:
        result = run(server=server)
    connection, ttfb, last, complete = map(result.figure, ["Connection", "TTFB", "Last chunk", "Complete"])
    assert 300 <= connection < 590 and 300 <= ttfb < 590 and 500 <= last < 890 and 900 <= complete < 1500
    assert float(result.lines[2].split()[-1]) == pytest.approx(last / 1000 / (len(PCM) / 24000), abs=0.002)


PLAYBACK = [([0, 0.1, 0.1], "gapless", 0), ([0.9, 0, 0], "gapless", 0)]  # ahead of the player; a late start
PLAYBACK += [([0, 0.8, 0], "1 gap", 0.3), ([0, 0.8, 0.7], "2 gaps", 0.5)]  # each chunk plays for 0.5 s


@pytest.mark.parametrize(("pauses", "gaps", "silence"), PLAYBACK)
def test_playback(run, pauses, gaps, silence):
    def play(peer):
        peer.hear()
        for pause in pauses:
            time.sleep(pause)
            peer.chunk(bytes(24000))
        peer.complete()

    with ScriptedServer(play) as server:
        result = run(server=server)
    pattern = rf"Audio: 1\.50 s in 3 chunks, {gaps}(, (.*) s in all)?"
    waited = float(re.fullmatch(pattern, result.lines[-2]).group(2) or 0)
    assert silence - 0.02 <= waited <= silence + 0.3 * bool(silence)


@pytest.mark.parametrize("then", [lambda peer: peer.complete(), lambda peer: peer.close(1011)])
def test_terminal_shows_the_progress(tmp_path, then):
    master, slave = os.openpty()
    with ScriptedServer(say(PCM, PCM, then=then)) as server:
        process = start(env=environment_for(server), cwd=tmp_path, stderr=slave)
        os.close(slave)
        shown = b""
        while True:
            try:
                shown += os.read(master, 4096)
            except OSError:
                break
        process.communicate()
    os.close(master)
    assert b"Received: 1.1 s of audio\rReceived: 2.1 s of audio\r" in shown
    following = shown.decode().replace("\r\n", "\n").rpartition("\r")[2].splitlines()
    assert len(following[0]) > len("Received: 1000.0 s of audio")  # nothing of the old line stays
    assert following[-1].startswith("Saved: " if process.returncode == 0 else "Kept: ")


def read_stream(data):
    """Return the PCM of a WAV whose sizes say that it goes on until the end."""
    assert data[:16] == b"RIFF\xff\xff\xff\xffWAVEfmt " and data[36:44] == b"data\xdb\xff\xff\xff"
    return data[44:]


def test_standard_output(run, tmp_path):
    with ScriptedServer(say(PCM, PCM[:2])) as server:
        result = run("-o", "-", server=server)
    assert result.code == 0 and read_stream(result.out) == PCM + PCM[:2]
    assert result.lines[-1] == "Saved: Standard output (51.2 kB)"
    assert not list(tmp_path.iterdir())


def test_standard_output_leaves_while_it_arrives(tmp_path):
    go = threading.Event()
    with ScriptedServer(say(PCM, then=lambda peer: (go.wait(10), peer.complete()))) as server:
        process = start("-o", "-", env=environment_for(server), cwd=tmp_path)
        assert read_stream(process.stdout.read(44 + len(PCM))) == PCM
        assert process.poll() is None
        go.set()
        assert finish(process).out == b"" and process.returncode == 0


@pytest.mark.parametrize("stdout", ["terminal", "closed"])
def test_standard_output_that_cannot_take_audio(tmp_path, stdout):
    master, slave = os.openpty()
    options = {"stdout": slave} if stdout == "terminal" else {"preexec_fn": lambda: os.close(1)}
    with ScriptedServer(say(PCM)) as server:
        result = finish(start("-o", "-", env=environment_for(server), cwd=tmp_path, **options))
        assert server.connections == 0
    assert result.code == 2 and "or - for a pipe" in result.err
    os.close(master), os.close(slave)


def test_player_that_quits(tmp_path):
    with ScriptedServer(say(*[PCM] * 200)) as server:
        process = start("-o", "-", env=environment_for(server), cwd=tmp_path)
        process.stdout.read(1000)
        process.stdout.close()
        err = process.stderr.read().decode()
        assert process.wait() == 1
    assert err.splitlines()[2:] == ["Standard output cannot be written: [Errno 32] Broken pipe."]


def test_pipe_and_device_are_written_directly(run, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    heard = []
    reader = threading.Thread(target=lambda: heard.append(pipe.read_bytes()))
    reader.start()
    with ScriptedServer(say(PCM)) as server:
        assert run("-o", "pipe", server=server).code == 0
    reader.join()
    assert read_stream(heard[0]) == PCM
    assert pipe.is_fifo() and [path.name for path in tmp_path.iterdir()] == ["pipe"]
    with ScriptedServer(say(PCM)) as server:
        assert run("-o", make_device(tmp_path, "null", 3), server=server).code == 0
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("stdout", ["pipe", "file"])
def test_link_to_standard_output_stays(tmp_path, stdout):
    """As /dev/stdout is one, which root could replace with a file. A pipe behind it is written directly."""
    (tmp_path / "link").symlink_to("/proc/self/fd/1")
    with ScriptedServer(say(PCM)) as server, open(tmp_path / "heard.wav", "wb") as file:
        options = {"stdout": subprocess.PIPE if stdout == "pipe" else file}
        result = finish(start("-o", "link", env=environment_for(server), cwd=tmp_path, **options))
    assert result.code == 0 and os.readlink(tmp_path / "link") == "/proc/self/fd/1"
    if stdout == "pipe":
        assert read_stream(result.out) == PCM
    else:
        assert read_wav(tmp_path / "heard.wav")[0] == PCM


@pytest.mark.parametrize(
    "command",
    [
        "ffmpeg -loglevel error -i - -f s16le -",
        "sox -t wav - -t raw -",
        "mpv --really-quiet --ao=pcm --ao-pcm-waveheader=no --ao-pcm-file=/dev/stdout -",
        "aplay -q -D file:/dev/stdout,raw",
        "tee copy.wav | ffmpeg -loglevel error -i - -f s16le -",
    ],
)
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
    pcm, _ = read_wav(tmp_path / "output.wav")
    assert numpy.abs(numpy.frombuffer(pcm, "<i2").astype(int)).max() > 3000


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ("--ws-url {live} --model lightning_v3.1 --voice-id sophia --language vi", 0, "Saved: output.wav"),
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
