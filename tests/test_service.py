"""What people copy: connect() and stream_speech(), alone, with plain arguments, from a program of their own."""

import json
import os
import re
import shutil
import time

import pytest
from websockets.frames import Opcode

from conftest import KEY, LIVE_PATH, ROOT, SCRIPT, V2_PATH, clean_environment, finish, run_program, start
from scripted_server import PCM, ScriptedServer, refusal, say

BEGIN = """
import json, time
from {module} import SpeechError, connect, stream_speech
ws = connect({url!r}, {key!r}, timeout={timeout})
heard = []
def speak(text):
    return stream_speech(ws, {{"text": text, "voice_id": "ryan"}})
def fault_of(call):
    try:
        return "no fault, but " + str(call())
    except SpeechError as error:
        return str(error)
"""


def speak(server, folder, code, module="ws_streaming_api", key=KEY, timeout=5):
    """Run a program that has an open connection; return what it printed, as JSON."""
    begin = BEGIN.format(module=module, url=server.url, key=key, timeout=timeout)
    result = run_program(begin + code, folder)
    assert result.code == 0, result.err
    return json.loads(result.out) if result.out else None


def lift(folder):
    """Write the lines between the two comments, with the imports of the file, as a module of their own."""
    source = SCRIPT.read_text(encoding="utf-8")
    imports = source[source.index('"""\n\nimport') + 4 : source.index("API_KEY =")]
    lines = source[source.index("# --- Copy from here") : source.index("# --- Copy to here")]
    (folder / "lifted.py").write_text(imports + lines, encoding="utf-8")


@pytest.mark.parametrize("module", ["ws_streaming_api", "lifted"])
def test_two_texts_over_one_connection(tmp_path, module):
    first, second = [os.urandom(1001), os.urandom(3)], [os.urandom(48000), os.urandom(2)]
    payloads = []

    def play(peer):
        peer.accept()
        for chunks in first, second:
            payloads.append(json.loads(peer.next_frame(Opcode.TEXT).data))
            for chunk in chunks:
                peer.chunk(chunk)
            peer.complete()

    lift(tmp_path)
    code = """
for name in "first", "second":
    with open(name, "wb") as file:
        for pcm in speak(name):
            assert len(pcm) % 2 == 0
            file.write(pcm)
print(json.dumps([ws.gettimeout(), ws.connected]))
ws.close(timeout=0)
"""
    with ScriptedServer(play) as server:
        assert speak(server, tmp_path, code, module) == [5, True]
        assert server.connections == 1
    assert (tmp_path / "first").read_bytes() == b"".join(first)
    assert (tmp_path / "second").read_bytes() == b"".join(second)
    assert payloads == [{"text": name, "voice_id": "ryan"} for name in ("first", "second")]


@pytest.mark.parametrize(
    "stop",
    [
        "for pcm in speak('first'): break",
        "half = speak('first'); next(half)",  # still there, in the middle
        "half = speak('first'); next(half); half.close()",
    ],
)
def test_caller_who_stops_in_the_middle_never_hears_the_rest(tmp_path, stop):
    def play(peer):
        peer.accept()
        for chunk in (b"\1\0", b"\2\0", b"\3\0"):
            peer.chunk(chunk)
        peer.complete()
        peer.wait()

    code = f"{stop}\nprint(json.dumps([fault_of(lambda: list(speak('second'))), ws.connected]))"
    with ScriptedServer(play) as server:
        fault, connected = speak(server, tmp_path, code)
    assert "connection was lost" in fault and not connected


@pytest.mark.parametrize("end", [lambda peer: peer.close(1000), lambda peer: peer.json({"status": "error"})])
def test_connection_is_shut_after_a_fault(tmp_path, end):
    code = (
        "print(json.dumps([fault_of(lambda: list(speak('x'))), ws.sock is None, fault_of(lambda: list(speak('x')))]))"
    )
    with ScriptedServer(say(PCM, then=end)) as server:
        fault, shut, again = speak(server, tmp_path, code)
    assert ("close code 1000" in fault or "reports an error" in fault) and shut and "connection was lost" in again


def test_clock_runs_only_while_no_audio_comes(tmp_path):
    """Neither a caller who takes 0.9 s nor a speech of 1.6 s is silent for 0.7 s."""

    def play(peer):
        say(PCM, PCM, then=lambda peer: None)(peer)
        for _ in range(4):
            time.sleep(0.4)
            peer.chunk(PCM)
        peer.complete()

    code = "for pcm in speak('x'):\n    time.sleep(0.9 * (not heard))\n    heard.append(len(pcm))\nprint(sum(heard))"
    with ScriptedServer(play) as server:
        assert speak(server, tmp_path, code, timeout=0.7) == 6 * len(PCM)


def test_websocket_of_the_callers_own(tmp_path):
    """Without a timeout, and with the library's own defaults."""
    code = """
import websocket
from ws_streaming_api import stream_speech
ws = websocket.create_connection({url!r})
assert ws.gettimeout() is None
print(len(b"".join(stream_speech(ws, {{"text": "x"}}))))
"""
    with ScriptedServer(say(PCM[:9001], PCM[9001:])) as server:
        assert run_program(code.format(url=server.url), tmp_path).out == b"%d\n" % len(PCM)


@pytest.mark.parametrize(
    ("play", "path", "words"),
    [
        (refusal(302), "/", "[Rr]edirect|status 302"),
        (refusal(401), "/", "API key"),
        (refusal(404), V2_PATH, "lightning_v3.1 at wss://.*" + LIVE_PATH),
        (refusal(410), LIVE_PATH, "lightning_v3.1"),
        (lambda peer: peer.wait(), "/", "timed out.*https_proxy"),
        (say(then=lambda peer: peer.wait()), "/", "allow more time"),
        (say(then=lambda peer: peer.json({"status": "error", "error": "DEPRECATED"})), "/", "lightning_v3.1"),
        (say(then=lambda peer: peer.close(1011)), "/", "Try again"),
    ],
)
def test_faults_are_of_use_without_the_script(tmp_path, play, path, words):
    """They speak of the key, the URL, the model and the proxy, never of flags and variables."""
    lift(tmp_path)
    code = """
from lifted import SpeechError, connect, stream_speech
try:
    list(stream_speech(connect({url!r}, {key!r}, 0.5), {{"text": "x"}}))
except SpeechError as error:
    print(error)
"""
    with ScriptedServer(play) as server:
        code = code.format(url=server.url.rstrip("/") + path, key=KEY)
        shown = run_program(code, tmp_path).out.decode()
    assert re.search(words, shown), shown
    assert "--" not in shown and "SMALLEST_" not in shown and shown.count("\n") == 1


def test_only_speech_error_is_raised_for_a_url_that_cannot_be(tmp_path):
    code = "from ws_streaming_api import SpeechError, connect\n" + "".join(
        f"try:\n    connect({url!r}, 'k')\nexcept SpeechError as error:\n    print(error)\n"
        for url in ("", "http://x/", "ws://", "wss://[/", "ws://127.0.0.1:99999/", "ws://127.0.0.1/\r\nX: 1")
    )
    assert len(run_program(code, tmp_path).out.splitlines()) == 6


def test_readme_program(lightning, tmp_path):
    """Runs exactly the lines of the README."""
    (program,) = re.findall("(?s)```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"))
    shutil.copy(SCRIPT, tmp_path)
    (tmp_path / "program.py").write_text(program)
    env = clean_environment(SMALLEST_API_KEY=lightning.key, SMALLEST_WS_URL=lightning.url)
    result = finish(start(env=env, cwd=tmp_path, script=tmp_path / "program.py"))
    assert result.code == 0, result.err
    pcm = (tmp_path / "speech.pcm").read_bytes()
    assert len(pcm) > 24000 and len(pcm) % 2 == 0
