"""What people copy: connect() and stream_speech(), alone, with plain arguments, from a program of their own."""

import json
import math
import os
import re
import struct
import subprocess
import sys
import threading
import time

import pytest
from websockets.frames import Opcode

from conftest import HOST_LINE, KEY, ROOT, SCRIPT, edit_script, library_version, read_wav, run_program
from scripted_server import PCM, ScriptedServer, refusal, say

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAM, ASYNC = re.findall("(?s)```python\n(.*?)```", README)
BEGIN = """
import contextlib, json, signal, threading, time
from lifted import SpeechError, connect, stream_speech
url, key, timeout = {url!r}, {key!r}, {timeout}
def say(text, ws=None):
    return stream_speech(ws or connect(url, key, timeout), {{"text": text, "voice_id": "ryan"}})
def fault_of(call):
    try:
        return "no fault, but " + str(call())
    except (SpeechError, ValueError) as error:
        return type(error).__name__ + ": " + str(error)
"""


def run_with(server, folder, code, timeout=5, **variables):
    """Run a program that can say() a text to the server, with the lines that are copied and no others."""
    lift(SCRIPT, folder / "lifted.py")
    result = run_program(BEGIN.format(url=server.url, key=KEY, timeout=timeout) + code, folder, **variables)
    assert result.code == 0, result.err
    return json.loads(result.out)


def lift(script, module):
    """Write the lines from the top to the comment that ends what is copied, as a module of their own."""
    source = script.read_text(encoding="utf-8")
    module.write_text(source[: source.index("# --- Down to here")], encoding="utf-8")


def test_each_speech_has_a_connection_of_its_own_that_ends_with_a_close_frame(tmp_path):
    chunks = [os.urandom(size) for size in (1, 1000, 48_000, 1)]
    goodbyes = []

    def play(peer):
        say(*chunks)(peer)
        goodbyes.append(peer.next_frame(Opcode.CLOSE).data)

    code = "print(json.dumps([[pcm.hex() for pcm in say(text)] for text in ('first', 'second')]))"
    with ScriptedServer(play) as server:
        heard = run_with(server, tmp_path, code)
        assert [peer.payload["text"] for peer in server.peers] == ["first", "second"]
        assert goodbyes == [struct.pack("!H", 1000)] * 2
    for pieces in heard:
        assert "".join(pieces) == b"".join(chunks).hex()
        assert all(piece and len(piece) % 4 == 0 for piece in pieces)


@pytest.mark.parametrize("leave", ["for pcm in speech: break", "next(speech)", "list(speech)"])
def test_rest_of_one_text_is_never_heard_as_the_next(tmp_path, leave):
    """However a caller leaves the first, and without harm to it."""
    code = f"""
ws = connect(url, key)
speech = say("first", ws)
{leave}
fault = fault_of(lambda: list(say("second", ws)))
print(json.dumps([fault, len(b"".join(speech))]))
"""
    with ScriptedServer(say(b"\1\0", b"\2\0", b"\3\0")) as server:
        fault, rest = run_with(server, tmp_path, code)
        assert server.peers[0].payload["text"] == "first" and not server.peers[0].messages
    assert "has been given a text" in fault and rest == (0 if "list" in leave else 4)


# The peer reads nothing, and the payload is too large for the buffers between them.
@pytest.mark.parametrize("leave", ["pass", "raise LookupError", "speech = say('x' * 20_000_000, ws)\n    next(speech)"])
def test_with_block_closes_the_connection(tmp_path, leave):
    """However it ends, also before the first next(), and although the program still holds the WebSocket."""
    code = f"""
with contextlib.suppress(LookupError), connect(url, key, timeout) as ws:
    sock = ws.sock
    {leave}
print(json.dumps([sock.fileno(), ws.sock]))
"""
    is_over = threading.Event()
    with ScriptedServer(lambda peer: (peer.accept(), peer.chunk(PCM), is_over.wait(60))) as server:
        assert run_with(server, tmp_path, code, timeout=3) == [-1, None]
        is_over.set()


@pytest.mark.parametrize("stop", ["next(speech)\nthreading.Timer(0.3, ws.abort).start()", "time.sleep(1)\nws.abort()"])
@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
def test_abort_ends_the_speech_at_once_and_never_raises(tmp_path, authority, tls, stop):
    """No chunk is heard that has arrived already, and no speech is sent that had not begun."""
    code = f"""
ws = connect(url, key, timeout)
speech = say("x", ws)
next(speech)
{stop}
fault = fault_of(lambda: next(speech))
ws.abort()
other = connect(url, key, timeout)
unsent = say("x", other)
other.abort()
unsent_fault = fault_of(lambda: next(unsent))
other.sock.close()
other.abort()
print(json.dumps([fault, unsent_fault, ws.sock]))
"""
    play = say(PCM, PCM, then=lambda peer: peer.wait())
    with ScriptedServer(play, tls=authority.context("127.0.0.1") if tls else None) as server:
        *faults, sock = run_with(server, tmp_path, code, 10, WEBSOCKET_CLIENT_CA_BUNDLE=authority.file)
        assert [hasattr(peer, "payload") for peer in server.peers] == [True, False]
    assert sock is None
    assert all(fault.startswith("SpeechError: ") and "abort" in fault for fault in faults), faults


def test_voice_agent_that_is_interrupted_loses_no_turn(tmp_path, authority):
    """100 turns over TLS: one thread connects, another reads, and a third of the turns are stopped in the middle."""
    code = """
from concurrent.futures import ThreadPoolExecutor
contexts, heard = set(), []
def listen(ws, number):
    size = 0
    try:
        for pcm in say(number, ws):
            size += len(pcm)
            if number % 3 == 0 and size == 102400:
                threading.Timer(0.002 * (number % 4), ws.abort).start()
    except SpeechError as error:
        return str(error) if number % 3 else "stopped"
    return size
with ThreadPoolExecutor(1) as reader:
    for number in range(100):
        with connect(url, key, 20) as ws:
            contexts.add(ws.sock.context)  # one for all: to read the certificates anew would take long
            heard.append(reader.submit(listen, ws, number).result())
print(json.dumps([heard, len(contexts)]))
"""
    play = say(PCM, PCM, then=lambda peer: peer.complete() if peer.payload["text"] % 3 else peer.wait())
    with ScriptedServer(play, tls=authority.context("127.0.0.1")) as server:
        heard, contexts = run_with(server, tmp_path, code, WEBSOCKET_CLIENT_CA_BUNDLE=authority.file)
    assert heard == ["stopped", 102400, 102400] * 33 + ["stopped"] and contexts == 1


@pytest.mark.parametrize("play", [lambda peer: peer.wait(), say(then=lambda peer: peer.wait())])
def test_time_limit_of_a_job_queue_is_no_fault_of_the_network(tmp_path, play):
    """It is raised by a signal handler, while the library waits for the handshake or for audio."""
    code = """
def stop(*_):
    raise RuntimeError("time limit")
signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, 0.5)
try:
    print(json.dumps(fault_of(lambda: list(say("x")))))
except RuntimeError as error:
    print(json.dumps(str(error)))
"""
    with ScriptedServer(play) as server:
        assert run_with(server, tmp_path, code) == "time limit"


def test_clock_runs_only_while_no_audio_comes(tmp_path):
    """Neither a caller who takes 1.7 s nor a speech of 2.4 s is silent for 1.5 s."""

    def speak_slowly(peer):
        for _ in range(4):
            time.sleep(0.6)
            peer.chunk(PCM)
        peer.complete()

    code = """
sizes = []
for pcm in say("x"):
    time.sleep(0 if sizes else 1.7)
    sizes.append(len(pcm))
print(sum(sizes))
"""
    with ScriptedServer(say(PCM, PCM, then=speak_slowly)) as server:
        assert run_with(server, tmp_path, code, timeout=1.5) == 6 * len(PCM)


FAULTS = [
    (refusal(429), 429, "status 429, "),
    (lambda peer: peer.wait(), 0, "No connection to ws://.*: .*timed out"),
    (say(then=lambda peer: peer.wait()), None, "No audio came for 0.5 s"),
    (say(then=lambda peer: peer.json({"status": "error"})), None, "reports an error"),
    (say(then=lambda peer: peer.close(1008, "key")), 1008, "close code 1008, key"),
    (say(then=lambda peer: peer.frame(Opcode.CLOSE, b"")), 1005, "close code 1005, no reason given"),
    (say(PCM, then=lambda peer: peer.sock.close()), None, "connection was lost"),
]


@pytest.mark.parametrize(("play", "status", "words"), FAULTS)
def test_fault_says_what_happened_and_has_a_status_for_programs(tmp_path, play, status, words):
    """What to do is for the program that copied the lines: there is no word of the script's flags and variables."""
    code = """
try:
    list(say("x"))
except SpeechError as error:
    print(json.dumps([str(error), error.status]))
"""
    with ScriptedServer(play) as server:
        fault, found = run_with(server, tmp_path, code, timeout=0.5)
    assert found == status and re.search(words, fault), fault
    assert re.fullmatch(r"[A-Z][^\n]*[^.]\.", fault) and not re.search("--|SMALLEST_|Check|Lightning", fault)


GOOD_KEYS = {f"  {KEY}\r\n": f"Bearer {KEY}", "Bearer lic/1": "Bearer lic/1", "Token a:b1": "Token a:b1"}
BAD_KEYS = ["", " \n", "sk one", "sk_\u00e4", "sk_\r\nX-Evil: 1", "Basic sk_1", '"sk_1"', None, ("sk_1",)]
BAD_URLS = ["ws://user:S3cret@127.0.0.1:1/", "wss://user:S3#cret@127.0.0.1:1/", "http://x/", "ws://x/\r\nX: 1", None]
WRONG = [
    ("api_key", BAD_KEYS, "API key"),
    ("url", BAD_URLS, "wss://host/path or ws://host/path, without user and password"),
    ("url", ["ws://waves-API.smallest.AI:80/x"], "in the clear"),
    ("timeout", [0, -1, math.nan, math.inf], "timeout"),
]


def test_wrong_arguments_are_named_before_anything_is_sent(tmp_path):
    """They are a ValueError, which repeats neither key nor password. A port too high is found by the network."""
    calls = [(name, value, words) for name, values, words in WRONG for value in values]
    code = f"""
from math import inf, nan
faults = []
for name, value, words in {calls!r}:
    arguments = {{"url": url, "api_key": key, "timeout": 5, name: value}}
    faults.append([fault_of(lambda: connect(**arguments)), words])
not_json = fault_of(lambda: next(stream_speech(connect(url, key), {{"speed": nan}})))
no_port = fault_of(lambda: connect("ws://127.0.0.1:99999/", key))
for good in {list(GOOD_KEYS)!r}:
    connect(url, good).shutdown()
print(json.dumps([faults, not_json, no_port]))
"""
    with ScriptedServer(lambda peer: peer.accept()) as server:
        faults, not_json, no_port = run_with(server, tmp_path, code)
        assert [request.headers["Authorization"] for request in server.requests[1:]] == list(GOOD_KEYS.values())
        assert not any(peer.messages for peer in server.peers)
    for fault, words in faults:
        assert fault.startswith("ValueError: ") and words in fault and "S3" not in fault and "sk_" not in fault, fault
    assert not_json.startswith("ValueError: ") and no_port.startswith("SpeechError: No connection to ")


@pytest.fixture
def run_readme(tmp_path, authority):
    """Run lines of the README, word for word, with the lines that are copied, but for the host in the URL."""

    def run_lines(server, lines):
        script = edit_script(tmp_path, (HOST_LINE, f"HOST = {server.url.rstrip('/')!r}"))
        lift(script, tmp_path / "ws_streaming_api.py")
        secrets = {"SMALLEST_API_KEY": getattr(server, "key", KEY), "WEBSOCKET_CLIENT_CA_BUNDLE": authority.file}
        result = run_program(lines, tmp_path, **secrets)
        assert result.code == 0, result.err
        return result.out.decode().strip()

    return run_lines


def test_readme_program(lightning, tmp_path, run_readme):
    run_readme(lightning, PROGRAM)
    pcm, rate = read_wav(tmp_path / "speech.wav")
    assert len(pcm) > 20_000 and rate == 24000


@pytest.mark.skipif(library_version() < (1, 8), reason="the program is for Python 3.8")
def test_readme_program_that_is_cancelled(run_readme, authority):
    """50 turns over TLS, interrupted while they connect, play or wait: none harms the next, and no thread stays."""
    code = """
import threading
async def turn(number):
    heard = asyncio.Queue()
    async def listen():
        async for pcm in speak({"text": "x"}):
            await heard.put(pcm)
            await asyncio.sleep(0.01 * (number % 2))
    task = asyncio.create_task(listen())
    if number % 5:
        await heard.get()
    await asyncio.sleep(0.002 * (number % 7))
    task.cancel()
    return type((await asyncio.gather(task, return_exceptions=True))[0]).__name__
async def main():
    print([await turn(number) for number in range(50)].count("CancelledError"))
asyncio.run(main())
for thread in set(threading.enumerate()) - {threading.current_thread()}:
    thread.join()
"""
    play = say(PCM, PCM, then=lambda peer: peer.wait())
    with ScriptedServer(play, tls=authority.context("127.0.0.1")) as server:
        assert run_readme(server, ASYNC + code) == "50"


@pytest.mark.parametrize("flags", [[], ["--strict", "--follow-imports=silent"]], ids=["plain", "strict"])
def test_types_of_the_readme_programs(tmp_path, flags):
    """A type checker sees the library through the script, and knows what a speech and a connection can do."""
    uses = ["ws.abort()", "speech = stream_speech(ws, payload)", "speech.close()", "reveal_type(ws.gettimeout())"]
    (tmp_path / "program.py").write_text(PROGRAM + "".join(f"    {use}\n" for use in uses))
    command = [sys.executable, "-m", "mypy", *flags, "program.py"]
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    checked = subprocess.run(command, check=False, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    assert checked.returncode == 0 and re.search("is .*(float|int).*None", checked.stdout), checked.stdout
