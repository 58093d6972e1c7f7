"""From text to speech: the audio, the files and the report, against a script of frames and against a real voice."""

import base64
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import numpy
import pytest
import soxr
from conftest import PYTHON, ROOT, SCRIPT, SERVER, clean_environment, environment_for, finish, read_wav, start
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pocketsphinx import Decoder
from scripted_server import ScriptedServer
from websockets.frames import Opcode

PCM = bytes(range(256)) * 200
SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "The slow white cat sleeps under the old tree.",
    "The quick white cat jumps over the lazy fox.",
    "We will meet you at the station in the morning.",
    "We will leave you at the office in the evening.",
    "Your order number is one two three four five.",
    "One two three four five six seven eight nine ten.",
    "Good morning how are you today.",
]


def say(*chunks, then=lambda peer: peer.complete()):
    """Return a play that sends these chunks."""

    def play(peer):
        peer.hear()
        for chunk in chunks:
            peer.chunk(chunk)
        then(peer)

    return play


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


# --- Audio and file ---------------------------------------------------------------


@settings(deadline=None, max_examples=25, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(0, 70_000), min_size=1, max_size=8))
def test_chunks_of_any_size(run, tmp_path, sizes):
    sizes.append(2 - sum(sizes) % 2)  # an even sum, and at least one sample
    chunks = [os.urandom(size) for size in sizes]
    with ScriptedServer(say(*chunks)) as server:
        assert run(server=server).code == 0
    assert read_wav(tmp_path / "output.wav") == (b"".join(chunks), 24000)
    assert not (tmp_path / "output.partial.wav").exists()


def test_audio_on_complete_counts(run, tmp_path):
    audio = base64.b64encode(b"\5\6").decode()
    with ScriptedServer(say(PCM, then=lambda peer: peer.complete(data={"audio": audio}))) as server:
        assert run(server=server).code == 0
    assert read_wav(tmp_path / "output.wav")[0] == PCM + b"\5\6"


@pytest.mark.parametrize("data", [None, {}, {"audio": None}, {"audio": ""}, ""])
def test_complete_without_audio_of_its_own(run, tmp_path, data):
    with ScriptedServer(say(PCM, then=lambda peer: peer.complete(data=data))) as server:
        assert run(server=server).code == 0
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
        peer.complete()

    with ScriptedServer(play) as server:
        result = run(server=server)
    assert result.code == 0, result.err
    assert read_wav(tmp_path / "output.wav")[0] == PCM[:100] + bytes([1, 2, 3, 4, 5, 6])


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


def test_output_is_opened_before_the_connection(tmp_path):
    with ScriptedServer(lambda peer: peer.wait(), raw=True) as server:
        process = start(env=environment_for(server), cwd=tmp_path)
        while not server.peers:
            time.sleep(0.01)
        assert (tmp_path / "output.partial.wav").exists()
        process.terminate()
        assert finish(process).code == 143


def test_partial_file_of_an_earlier_run_is_replaced(run, tmp_path):
    partial = tmp_path / "output.partial.wav"
    partial.write_bytes(b"x" * 100_000)
    partial.chmod(0o444)
    with ScriptedServer(say(PCM)) as server:
        assert run(server=server).code == 0
    assert read_wav(tmp_path / "output.wav")[0] == PCM


def test_link_to_the_output_stays_a_link(run, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "output.wav").symlink_to(tmp_path / "real" / "speech.wav")
    with ScriptedServer(say(PCM)) as server:
        assert run(server=server).code == 0
    assert (tmp_path / "output.wav").is_symlink()
    assert read_wav(tmp_path / "real" / "speech.wav")[0] == PCM


@pytest.mark.parametrize("output", ["speech", ".hidden", "a.b.wav", "-dash.wav", "with space.WAV"])
def test_names_of_outputs(run, tmp_path, output):
    with ScriptedServer(say(PCM)) as server:
        assert run("--output=" + output, server=server).code == 0
    assert [path.name for path in tmp_path.iterdir()] == [output]
    assert read_wav(tmp_path / output)[0] == PCM


def test_silence_while_a_consumer_is_slow_is_none(tmp_path):
    """Half a second without reading, while the timeout is 0.3 s: the clock runs only while the script waits."""
    code = (
        "import time, ws_streaming_api as api\n"
        "settings = api.read_settings(['--timeout', '0.3'])\n"
        "for pcm in api.stream_speech(api.open_connection(settings), settings):\n"
        "    time.sleep(0.5)\n"
    )
    with ScriptedServer(say(PCM, PCM)) as server:
        assert run_program(code, server, tmp_path).code == 0


def test_caller_that_stops_early_hangs_up(tmp_path):
    closes = []

    def play(peer):
        say(PCM, then=lambda peer: None)(peer)
        closes.append(peer.next_frame(Opcode.CLOSE))

    code = (
        "import ws_streaming_api as api\n"
        "settings = api.read_settings([])\n"
        "for pcm in api.stream_speech(api.open_connection(settings), settings):\n"
        "    break\n"
    )
    with ScriptedServer(play) as server:
        assert run_program(code, server, tmp_path).code == 0
        time.sleep(0.2)
    assert len(closes) == 1


def run_program(code, server, folder):
    """Run a program that imports the script."""
    env = {**environment_for(server), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return finish(start(env=env, cwd=folder, script="-c" + code))


# --- Report -----------------------------------------------------------------------


def test_report(run):
    with ScriptedServer(say(PCM[:4800], PCM[:4800], PCM[:9600])) as server:
        result = run(server=server)
    names = [line.partition(":")[0] for line in result.lines]
    assert names == [
        *("Connection", "TTFB", "Chunks", "Audio", "Last chunk"),
        *("Complete", "Real-time factor", "Playback", "Saved"),
    ]
    assert result.figure("Chunks") == 3
    assert result.figure("Audio") == 0.4
    assert result.figure("TTFB") <= result.figure("Last chunk") <= result.figure("Complete") < 1000
    assert result.lines[-1] == "Saved: output.wav (19.2 kB)"
    assert result.out == b""


def test_times_are_those_of_the_messages(run):
    def play(peer):
        peer.hear()
        time.sleep(0.3)
        peer.chunk(PCM)
        time.sleep(0.2)
        peer.chunk(PCM)
        time.sleep(0.4)
        peer.complete()

    with ScriptedServer(play) as server:
        result = run(server=server)
    ttfb, last, complete = (result.figure(name) for name in ("TTFB", "Last chunk", "Complete"))
    assert 300 <= ttfb < 500 and 500 <= last < 900 and 900 <= complete < 1500
    audio = len(PCM) / 24000
    assert result.figure("Real-time factor") == pytest.approx(last / 1000 / audio, abs=0.002)


def test_connection_time_is_that_of_the_handshake(run):
    def play(peer):
        time.sleep(0.3)
        say(PCM)(peer)

    with ScriptedServer(play) as server:
        result = run(server=server)
    assert 300 <= result.figure("Connection") < 1000 and result.figure("TTFB") < 300


@pytest.mark.parametrize(
    ("pauses", "gaps", "silence"),
    [
        ([0, 0, 0], 0, 0),  # all at once
        ([0, 0.1, 0.1], 0, 0),  # always ahead of the player
        ([0.9, 0, 0], 0, 0),  # a late start is no gap
        ([0, 0.8, 0], 1, 0.3),  # 0.5 s of audio, then 0.8 s without
        ([0, 0.8, 0.7], 2, 0.5),
        ([0, 0, 1.3], 1, 0.3),
    ],
)
def test_playback(run, pauses, gaps, silence):
    def play(peer):
        peer.hear()
        for pause in pauses:
            time.sleep(pause)
            peer.chunk(bytes(24000))  # 0.5 s
        peer.complete()

    with ScriptedServer(play) as server:
        result = run(server=server)
    line = result.lines[-2]
    if not gaps:
        assert line == "Playback: gapless"
    else:
        assert line.startswith(f"Playback: {gaps} gap{'s' if gaps > 1 else ''}, ")
        assert silence - 0.02 <= float(line.split()[3]) < silence + 0.3


def test_first_figure_is_printed_when_it_happens(tmp_path):
    with ScriptedServer(say(PCM, then=lambda peer: peer.wait())) as server:
        process = start(env=environment_for(server), cwd=tmp_path)
        assert process.stderr.readline().startswith(b"Connection: ")
        assert process.stderr.readline().startswith(b"TTFB: ")
        assert process.poll() is None
        process.kill()
        process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
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
    assert b"\rReceived: 1.1 s of audio" in shown and b"\rReceived: 2.1 s of audio" in shown
    shown = [line.rpartition("\r")[2] for line in shown.decode().replace("\r\n", "\n").rstrip().split("\n")]
    last = (
        "Saved: output.wav (102.4 kB)" if process.returncode == 0 else "Kept: output.partial.wav holds 2.13 s of audio."
    )
    assert shown[-1] == last and not any(line.startswith("Received") for line in shown)


# --- Standard output, pipes and devices -------------------------------------------


def read_stream(data):
    """Return the PCM of a WAV whose sizes say that it goes on until the end."""
    assert data[:4] == b"RIFF" and data[8:16] == b"WAVEfmt " and data[36:44] == b"data\xff\xff\xff\xff"
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


def test_audio_on_a_terminal_is_refused(tmp_path):
    master, slave = os.openpty()
    with ScriptedServer(say(PCM)) as server:
        result = finish(start("-o", "-", env=environment_for(server), cwd=tmp_path, stdout=slave))
        assert server.connections == 0
    assert result.code == 2 and "| ffplay" in result.err
    os.close(master), os.close(slave)


def test_closed_standard_output_is_a_wrong_setting(tmp_path):
    with ScriptedServer(say(PCM)) as server:
        process = start("-o", "-", env=environment_for(server), cwd=tmp_path, preexec_fn=lambda: os.close(1))
        assert finish(process).code == 2
        assert server.connections == 0


def test_player_that_quits(tmp_path):
    with ScriptedServer(say(*[PCM] * 200)) as server:
        process = start("-o", "-", env=environment_for(server), cwd=tmp_path)
        process.stdout.read(1000)
        process.stdout.close()
        err = process.stderr.read().decode()
        assert process.wait() == 1
    assert err.splitlines()[2:] == ["Standard output cannot be written: Broken pipe."]


def test_named_pipe_is_written_directly(run, tmp_path):
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


def test_named_pipe_that_nobody_reads(run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ScriptedServer(say(PCM)) as server:
        result = run("-o", "pipe", "--timeout", "0.5", server=server)
        assert server.connections == 0
    assert result.code == 2 and result.lines == ["Nobody reads from pipe; start its reader first."]


def test_device_is_written_directly(run):
    with ScriptedServer(say(PCM)) as server:
        assert run("-o", os.devnull, server=server).code == 0


DECODERS = [
    ("ffmpeg", "ffmpeg -loglevel error -i - -f s16le -"),
    ("sox", "sox -t wav - -t raw -"),
    ("mpv", "mpv --really-quiet --ao=pcm --ao-pcm-waveheader=no --ao-pcm-file=/dev/stdout -"),
    ("tee", "tee copy.wav | ffmpeg -loglevel error -i - -f s16le -"),
]


@pytest.mark.parametrize(("program", "command"), DECODERS, ids=[row[0] for row in DECODERS])
def test_players_decode_exactly_what_was_sent(tmp_path, program, command):
    if not shutil.which(program) or (program == "tee" and not shutil.which("ffmpeg")):
        pytest.skip(f"{program} is not installed")
    chunks = [os.urandom(4800) for _ in range(20)]
    with ScriptedServer(say(*chunks)) as server:
        shell = f'"{PYTHON}" "{SCRIPT}" -o - 2> log | {command}'
        result = pipe(shell, environment_for(server), tmp_path)
    assert "Saved: Standard output" in (tmp_path / "log").read_text()
    assert result.stdout == b"".join(chunks)


def pipe(shell, env, folder):
    return subprocess.run(shell, shell=True, check=False, capture_output=True, env=env, cwd=folder, timeout=30)


def test_aplay(tmp_path):
    if not shutil.which("aplay"):
        pytest.skip("aplay is not installed")
    with ScriptedServer(say(PCM)) as server:
        shell = f'"{PYTHON}" "{SCRIPT}" -o - | aplay -D "file:heard.raw,raw"'
        result = pipe(shell, environment_for(server), tmp_path)
    assert result.returncode == 0 and b"Signed 16 bit Little Endian, Rate 24000 Hz, Mono" in result.stderr
    heard = (tmp_path / "heard.raw").read_bytes()
    assert heard.rstrip(b"\0") == PCM  # aplay fills up its last period with silence


# --- The local server and its voice -----------------------------------------------


def speak(run, lightning, *arguments, **variables):
    return run(*arguments, server=lightning, env={"SMALLEST_API_KEY": lightning.key, **variables})


@pytest.mark.parametrize("sentence", SENTENCES)
def test_speech_is_recognised(run, lightning, tmp_path, sentence):
    result = speak(run, lightning, SMALLEST_TEXT=sentence, SMALLEST_VOICE_ID="emily")
    assert result.code == 0, result.err
    assert recognise(tmp_path / "output.wav") == sentence


def test_server_runs_a_command(tmp_path):
    command = [sys.executable, str(SERVER), "--", PYTHON, str(SCRIPT)]
    assert subprocess.call(command, cwd=tmp_path, env=clean_environment(), timeout=30) == 0
    assert recognise(tmp_path / "output.wav") == SENTENCES[0]
    assert subprocess.call([*command, "--speed", "9"], cwd=tmp_path, env=clean_environment(), timeout=30) == 2


def test_three_edited_placeholders_speak(run, lightning, tmp_path):
    source = SCRIPT.read_text(encoding="utf-8")
    for placeholder, value in ("<TEXT>", SENTENCES[0]), ("<VOICE>", "emily"), ("<AUTH TOKEN>", lightning.key):
        source = source.replace(placeholder, value)
    script = tmp_path / "mine.py"
    script.write_text(source, encoding="utf-8")
    env = dict.fromkeys(["SMALLEST_TEXT", "SMALLEST_VOICE_ID", "SMALLEST_API_KEY"])
    assert run(server=lightning, env=env, script=script).code == 0
    assert recognise(tmp_path / "output.wav") == SENTENCES[0]


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000])
def test_sample_rate_is_that_of_the_speech(run, lightning, tmp_path, rate):
    lengths = []
    for sample_rate in 24000, rate:
        speak(run, lightning, "--sample-rate", str(sample_rate))
        pcm, found = read_wav(tmp_path / "output.wav")
        assert found == sample_rate
        lengths.append(len(pcm) / 2 / sample_rate)
    assert lengths[0] == pytest.approx(lengths[1], abs=0.01)


def test_speed_is_that_of_the_speech(run, lightning):
    lengths = [speak(run, lightning, "--speed", speed).figure("Audio") for speed in ("0.6", "1", "2", "4")]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > 1.3 * lengths[1] > 2 * lengths[2]


@pytest.mark.parametrize("language", "en hi mr kn ta bn gu de fr es it pl nl ru ar he".split())
def test_languages(run, lightning, tmp_path, language):
    words = {"hi": "नमस्ते", "ta": "வணக்கம்", "ru": "Здравствуйте", "ar": "مرحبا", "he": "שלום"}
    result = speak(run, lightning, "--language", language, "--text", words.get(language, "Hello Europa"))
    assert result.code == 0, result.err
    pcm, _ = read_wav(tmp_path / "output.wav")
    assert numpy.abs(numpy.frombuffer(pcm, "<i2").astype(int)).max() > 3000


def test_later_model_at_the_live_endpoint(run, lightning, tmp_path):
    flags = ["--ws-url", lightning.live_url, "--model", "lightning_v3.1", "--voice-id", "magnus"]
    assert speak(run, lightning, *flags).code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--voice-id", "nobody"], "Voice nobody not found"),
        (["--language", "xx"], "Language xx not supported"),
        (["--ws-url", "{live}"], "Voice ryan not found"),
        (["--ws-url", "{url}/nowhere"], "status 404"),
        (["--ws-url", "{live}?timeout=0.2", "--text", "x", "--voice-id", "magnus", "--model", "none"], "Model none"),
    ],
)
def test_server_refuses(run, lightning, arguments, words):
    arguments = [word.format(url=lightning.url, live=lightning.live_url) for word in arguments]
    result = speak(run, lightning, *arguments)
    assert result.code == 1 and words in result.err


def test_server_refuses_a_wrong_key(run, lightning):
    result = run(server=lightning)
    assert result.code == 1 and "status 401" in result.err


def test_readme_example_of_own_program(run, lightning, tmp_path):
    """Runs exactly the lines of the README."""
    (program,) = [block for block in readme_blocks("python") if "from ws_streaming_api import" in block]
    shutil.copy(SCRIPT, tmp_path)
    (tmp_path / "program.py").write_text(program)
    env = {"SMALLEST_API_KEY": lightning.key, "SMALLEST_VOICE_ID": "emily"}
    result = run(server=lightning, env=env, script=tmp_path / "program.py")
    assert result.code == 0, result.err
    pcm = (tmp_path / "speech.pcm").read_bytes()
    assert len(pcm) > 24000 and len(pcm) % 2 == 0


def readme_blocks(language):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [block.partition("\n")[2] for block in text.split("```")[1::2] if block.startswith(language + "\n")]


def test_readme_row_adds_a_field(run, tmp_path):
    """The row that the README shows is a flag, a variable and a field more."""
    (row,) = [block for block in readme_blocks("python") if block.strip().startswith("Setting(")]
    source = SCRIPT.read_text(encoding="utf-8")
    script = tmp_path / "more.py"
    script.write_text(source.replace("SETTINGS = [\n", f"SETTINGS = [\n{row}"), encoding="utf-8")
    with ScriptedServer(say(PCM)) as server:
        assert run("--complete-backoff-ms", "250", server=server, script=script).code == 0
        assert run(server=server, script=script, env={"SMALLEST_COMPLETE_BACKOFF_MS": "500"}).code == 0
        assert run("--complete-backoff-ms", "10001", server=server, script=script).code == 2
    assert [peer.payload["complete_backoff_ms"] for peer in server.peers] == [250, 500]
