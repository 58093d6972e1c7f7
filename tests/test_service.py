"""What people copy: connect() and stream_speech(), alone, with plain arguments, from a program of their own."""

import json
import os
import re
import subprocess
import sys
import time

import pytest
from websockets.frames import Opcode

from conftest import KEY, LIVE_PATH, ROOT, SCRIPT, V2_PATH, clean_environment, finish, run_program, start
from scripted_server import PCM, ScriptedServer, refusal, say

(PROGRAM,) = re.findall("(?s)```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"))
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
    """Write the lines from the top to the comment that ends what is copied, as a module of their own."""
    source = SCRIPT.read_text(encoding="utf-8")
    (folder / "lifted.py").write_text(source[: source.index("# --- Down to here")], encoding="utf-8")


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
    heard.append(list(map(bytes.hex, speak(name))))
print(json.dumps([ws.gettimeout(), ws.connected, heard]))
ws.close(timeout=0)
"""
    with ScriptedServer(play) as server:
        timeout, connected, heard = speak(server, tmp_path, code, module)
        assert (timeout, connected, server.connections) == (5, True, 1)
    assert ["".join(pieces) for pieces in heard] == [b"".join(chunks).hex() for chunks in (first, second)]
    assert all(len(piece) % 4 == 0 for piece in heard[0] + heard[1])
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


def test_abort_from_another_thread_ends_the_speech_at_once(tmp_path):
    """And nothing is sent before the first audio is asked for."""
    code = """
import threading
speech = speak("x")
time.sleep(0.3)
asked = time.time()
next(speech)
threading.Timer(0.2, ws.abort).start()
print(json.dumps([fault_of(lambda: next(speech)), asked, time.time()]))
"""
    sent = []
    play = say(PCM, then=lambda peer: sent.append(time.time()))
    with ScriptedServer(play) as server:
        fault, asked, ended = speak(server, tmp_path, code)
    assert "connection was lost" in fault and asked <= sent[0] and ended - asked < 2


@pytest.mark.parametrize("end", [lambda peer: peer.close(1000), lambda peer: peer.json({"status": "error"})])
def test_connection_is_shut_after_a_fault(tmp_path, end):
    code = "hear = lambda: list(speak('x'))\nprint(json.dumps([fault_of(hear), ws.sock is None, fault_of(hear)]))"
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
    code = "asked = time.time()\nfault_of(lambda: list(speak('x')))\nprint(time.time() - asked)"
    with ScriptedServer(say(then=lambda peer: (time.sleep(0.8), peer.json({"status": "wait"})))) as server:
        assert 0.9 < speak(server, tmp_path, code, timeout=1) < 1.6


def test_websocket_of_the_callers_own(tmp_path):
    """Without a timeout, and with the library's own defaults."""
    code = """
import websocket
from ws_streaming_api import stream_speech
ws = websocket.create_connection({url!r})
assert ws.gettimeout() is None
print(len(b"".join(stream_speech(ws, {{"text": "x"}}))))
assert ws.gettimeout() is None
"""
    with ScriptedServer(say(PCM[:9001], PCM[9001:])) as server:
        assert run_program(code.format(url=server.url), tmp_path).out == b"%d\n" % len(PCM)


@pytest.mark.parametrize(
    ("play", "path", "words"),
    [
        (refusal(302), "/", "API key does not follow a redirect"),
        (refusal(401), "/", "API key"),
        (refusal(404), V2_PATH, "lightning_v3.1, voice magnus, at wss://.*" + LIVE_PATH),
        (refusal(410), V2_PATH, "lightning_v3.1"),
        (lambda peer: peer.wait(), "/", "timed out.*https_proxy"),
        (say(then=lambda peer: peer.wait()), "/", "allow more time"),
        (say(then=lambda peer: peer.json({"status": "error", "error": "DEPRECATED"})), "/", "lightning_v3.1"),
        (say(then=lambda peer: peer.close(1011)), "/", "Connect again"),
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


def test_only_a_speech_error_is_raised_and_repeats_neither_key_nor_password(tmp_path):
    lift(tmp_path)
    keys = [KEY + "\n", f"  {KEY}\r\n", "", " \n", "sk one", "sk_\u00e4", "sk_\x00", "sk_\r\nX-Evil: 1", "<AUTH TOKEN>"]
    secrets = ["user:S3cret@", "user:S3#cret@", "S3cret@", "user:@"]
    urls = [f"{scheme}://{secret}127.0.0.1:1/" for scheme in ("ws", "wss") for secret in secrets]
    urls += ["", "http://x/", "ws://", "wss://[/", "ws://127.0.0.1/\r\nX: 1", "ws://127.0.0.1:99999/"]
    urls += [f"ws://{host}/waves/v1/tts/live" for host in ("api.smallest.ai", "waves-API.smallest.AI:80")]
    with ScriptedServer(lambda peer: peer.accept()) as server:
        calls = [(server.url, key) for key in keys] + [(url, KEY) for url in urls]
        code = f"""
from lifted import SpeechError, connect
for url, key in {calls!r}:
    try:
        connect(url, key, 5).close(timeout=0)
    except SpeechError as error:
        print(error)
"""
        lines = run_program(code, tmp_path).out.decode().splitlines()
        assert [request.headers["Authorization"] for request in server.requests] == [f"Bearer {KEY}"] * 2
    assert lines[:7] == ["The API key is empty, or is not printable ASCII without blanks."] * 7
    assert all(line.endswith("without user and password.") for line in lines[7:20]) and "S3" not in str(lines)
    assert "cannot be read" in lines[20]
    assert lines[21:] == ["The URL would send the API key in the clear: use wss://."] * 2


def test_readme_program(lightning, tmp_path):
    """Runs exactly the lines of the README with the lines that are copied, but for the host in the URL."""
    lift(tmp_path)
    lifted = (tmp_path / "lifted.py").read_text(encoding="utf-8")
    (tmp_path / "ws_streaming_api.py").write_text(lifted.replace("wss://api.smallest.ai", lightning.url))
    (tmp_path / "program.py").write_text(PROGRAM)
    env = clean_environment(SMALLEST_API_KEY=lightning.key)
    result = finish(start(env=env, cwd=tmp_path, script=tmp_path / "program.py"))
    assert result.code == 0, result.err
    pcm = (tmp_path / "speech.pcm").read_bytes()
    assert len(pcm) > 20_000 and len(pcm) % 2 == 0


def test_types_of_the_readme_program(tmp_path):
    """A type checker sees the library through the script, and knows that a speech can be closed."""
    (tmp_path / "program.py").write_text(PROGRAM + "speech.close()\nreveal_type(ws.gettimeout())\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "program.py"]
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    checked = subprocess.run(command, check=False, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    assert checked.returncode == 0 and re.search("is .*(float|int).*None", checked.stdout), checked.stdout
