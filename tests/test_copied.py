"""What people copy: connect() and stream_speech(), alone, with plain arguments, from a program of their own."""

import json
import os
import re
import struct
import subprocess
import sys
import time

import pytest
from websockets.frames import Opcode

from conftest import HOST_LINE, KEY, ROOT, SCRIPT, edit_script, library_version, read_wav, run_program
from scripted_server import PCM, ScriptedServer, refusal, say

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAM, ASYNC = re.findall("(?s)```python\n(.*?)```", README)
BEGIN = """
import contextlib, json, time
from {module} import SpeechError, connect, stream_speech
url, key, timeout = {url!r}, {key!r}, {timeout}
def say(text, ws=None):
    return stream_speech(ws or connect(url, key, timeout), {{"text": text, "voice_id": "ryan"}})
def fault_of(call):
    try:
        return "no fault, but " + str(call())
    except (SpeechError, ValueError) as error:
        return type(error).__name__ + ": " + str(error)
"""


def run_with(server, folder, code, module="ws_streaming_api", timeout=5, **variables):
    """Run a program that can say() a text to the server; return what it printed, as JSON."""
    begin = BEGIN.format(module=module, url=server.url, key=KEY, timeout=timeout)
    result = run_program(begin + code, folder, **variables)
    assert result.code == 0, result.err
    return json.loads(result.out)


def lift(script, module):
    """Write the lines from the top to the comment that ends what is copied, as a module of their own."""
    source = script.read_text(encoding="utf-8")
    module.write_text(source[: source.index("# --- Down to here")], encoding="utf-8")


@pytest.fixture
def lifted(tmp_path):
    lift(SCRIPT, tmp_path / "lifted.py")
    return "lifted"


def test_each_speech_has_a_connection_of_its_own(tmp_path, lifted):
    """It ends with a close frame, and does not wait for a peer that never answers that."""
    chunks = {"first": [os.urandom(1), os.urandom(1000), b"\0"], "second": [os.urandom(48000), os.urandom(2)]}
    goodbyes, waits = [], []

    def play(peer):
        for chunk in chunks[peer.hear()["text"]]:
            peer.chunk(chunk)
        peer.complete()
        sent = time.perf_counter()
        goodbyes.append(peer.next_frame(Opcode.CLOSE).data)
        peer.wait()
        waits.append(time.perf_counter() - sent)

    code = """
heard = []
for name in "first", "second":
    ws = connect(url, key)
    heard.append(list(map(bytes.hex, say(name, ws))))
    heard[-1].append(ws.sock is None)
print(json.dumps(heard))
"""
    with ScriptedServer(play) as server:
        heard = run_with(server, tmp_path, code, lifted)
        assert server.connections == 2 and goodbyes == [struct.pack("!H", 1000)] * 2 and max(waits) < 1.5
        payloads = [peer.payload for peer in server.peers]
    assert payloads == [{"text": name, "voice_id": "ryan"} for name in chunks]
    for (*pieces, is_shut), sent in zip(heard, chunks.values(), strict=True):
        assert "".join(pieces) == b"".join(sent).hex() and is_shut
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


# The payload is too large for the buffers between them: the peer never reads all of it.
@pytest.mark.parametrize("leave", ["pass", "next(say('x' * 20_000_000, ws))", "raise LookupError"])
def test_with_block_closes_the_connection(tmp_path, leave):
    """However it ends, also before the first next(), and although the program still holds the WebSocket."""
    code = f"""
import gc
gc.disable()
with contextlib.suppress(LookupError), connect(url, key, 5) as ws:
    {leave}
time.sleep(2)
print(json.dumps([ws.sock is None, time.time()]))
"""
    closed = []

    def play(peer):
        peer.accept()
        peer.chunk(PCM)
        peer.wait()
        closed.append(time.time())

    with ScriptedServer(play) as server:
        is_shut, ended = run_with(server, tmp_path, code)
    assert is_shut and closed[0] < ended - 0.5


@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
def test_abort_from_another_thread_ends_the_speech_at_once(tmp_path, authority, tls):
    """Of what has arrived, nothing more is spoken; and nothing is sent before the first audio is asked for."""
    code = """
import threading
ws = connect(url, key, timeout)
ws.settimeout(30)
speech = say("x", ws)
time.sleep(0.3)
asked = time.time()
next(speech)
if {waits}:
    next(speech)
    threading.Timer(0.3, ws.abort).start()
else:
    time.sleep(0.5)  # until the next chunk is here
    ws.abort()
fault = fault_of(lambda: next(speech))
print(json.dumps([asked, time.time() - asked, fault, ws.sock is None]))
"""
    sent = []

    def play(peer):
        peer.hear()
        sent.append(time.time())
        peer.chunk(PCM)
        peer.chunk(PCM)
        peer.wait()

    with ScriptedServer(play, tls=authority.context("127.0.0.1") if tls else None) as server:
        for waits in True, False:
            program = code.replace("{waits}", str(waits))
            environment = {"WEBSOCKET_CLIENT_CA_BUNDLE": authority.file}
            asked, seconds, fault, is_shut = run_with(server, tmp_path, program, **environment)
            assert fault.startswith("SpeechError: ") and is_shut and seconds < 15
            assert asked <= sent[-1] and (waits or tls or "abort()" in fault)


def test_abort_never_raises_and_a_speech_that_it_has_stopped_is_not_sent(tmp_path):
    code = """
ws = connect(url, key)
ws.abort()
fault = fault_of(lambda: next(say("x", ws)))
ws.sock.close()
ws.abort()
ws.shutdown()
ws.abort()
print(json.dumps(fault))
"""
    with ScriptedServer(say(PCM)) as server:
        assert run_with(server, tmp_path, code).startswith("SpeechError: ")
        assert not hasattr(server.peers[0], "payload")


def test_voice_agent_that_is_interrupted_loses_no_turn(tmp_path, authority):
    """100 turns over TLS: one thread connects, another reads, and a third of the turns are stopped in the middle."""
    code = """
import threading
from concurrent.futures import ThreadPoolExecutor
contexts, heard, timers = set(), [], []
def listen(ws, number):
    total = 0
    try:
        for pcm in say(number, ws):
            assert not ws.is_aborted
            total += len(pcm)
            if number % 3 == 0 and total >= 102400:
                timers.append(threading.Timer(0.002 * (number % 4), ws.abort))
                timers[-1].start()
    except SpeechError as error:
        return number % 3 == 0 or str(error)
    return number % 3 != 0 and total == 102400
with ThreadPoolExecutor(1) as reader:
    for number in range(100):
        with connect(url, key, 20) as ws:
            contexts.add(ws.sock.context)  # one for all: to read the certificates anew would take long
            heard.append(reader.submit(listen, ws, number).result())
for timer in timers:
    timer.join()
lost = [each for each in heard if each is not True]
print(json.dumps([len(heard), lost, len(contexts), threading.active_count()]))
"""

    def play(peer):
        number = peer.hear()["text"]
        peer.chunk(PCM)
        peer.chunk(PCM)
        peer.wait() if number % 3 == 0 else peer.complete()

    with ScriptedServer(play, tls=authority.context("127.0.0.1")) as server:
        assert run_with(server, tmp_path, code, WEBSOCKET_CLIENT_CA_BUNDLE=authority.file) == [100, [], 1, 1]


@pytest.mark.parametrize("play", [lambda peer: peer.wait(), say(then=lambda peer: peer.wait())])
def test_time_limit_of_a_job_queue_is_no_fault_of_the_network(tmp_path, play):
    """It is raised by a signal handler, while the library waits for the handshake or for audio."""
    code = """
import signal
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

    def play(peer):
        say(PCM, PCM, then=lambda peer: None)(peer)
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
    with ScriptedServer(play) as server:
        assert run_with(server, tmp_path, code, timeout=1.5) == 6 * len(PCM)


FAULTS = [
    (refusal(302), 302, "status 302, it redirects to"),
    (refusal(429), 429, "status 429, "),
    (lambda peer: peer.wait(), 0, "No connection to ws://.*: .*timed out"),
    (say(then=lambda peer: peer.wait()), None, "No audio came for 0.5 s"),
    (say(then=lambda peer: peer.json({"status": "error"})), None, "reports an error"),
    (say(then=lambda peer: peer.close(1008, "key")), 1008, "close code 1008, key"),
    (say(then=lambda peer: peer.frame(Opcode.CLOSE, b"")), 1005, "close code 1005, no reason given"),
    (say(PCM, then=lambda peer: peer.sock.close()), None, "connection was lost"),
]


@pytest.mark.parametrize(("play", "status", "words"), FAULTS)
def test_fault_says_what_happened_and_has_a_status_for_programs(tmp_path, lifted, play, status, words):
    """What to do is for the program that copied the lines: there is no word of the script's flags and variables."""
    code = """
try:
    ws = connect(url, key, timeout)
    list(say("x", ws))
except SpeechError as error:
    print(json.dumps([str(error), error.status, "ws" not in vars() or ws.sock is None]))
"""
    with ScriptedServer(play) as server:
        fault, found, is_shut = run_with(server, tmp_path, code, lifted, timeout=0.5)
    assert found == status and is_shut and re.search(words, fault), fault
    assert re.fullmatch(r"[A-Z][^\n]*[^.]\.", fault) and not re.search("--|SMALLEST_|Check|Lightning", fault)


GOOD_KEYS = {f"  {KEY}\r\n": f"Bearer {KEY}", "Bearer lic/1": "Bearer lic/1", "Token a:b1": "Token a:b1"}
BAD_KEYS = ["", " \n", "sk one", "sk_\u00e4", "sk_\r\nX-Evil: 1", "Basic sk_1", '"sk_1"', None, ("sk_1",)]
BAD_URLS = {
    "ws://user:S3cret@127.0.0.1:1/": "without user and password",
    "wss://user:S3#cret@127.0.0.1:1/": "without user and password",
    "http://x/": "wss://host/path",
    "ws://127.0.0.1/\r\nX: 1": "wss://host/path",
    None: "wss://host/path",
    "ws://waves-API.smallest.AI:80/x": "in the clear",
}


def test_wrong_arguments_are_named_before_anything_is_sent(tmp_path, lifted):
    """They are a ValueError, which repeats neither key nor password. A port too high is found by the network."""
    calls = [("key", key) for key in BAD_KEYS] + [("url", url) for url in BAD_URLS]
    code = f"""
faults = []
for name, value in {calls!r}:
    arguments = {{"url": url, "api_key": key, "timeout": 5}}
    arguments["api_key" if name == "key" else "url"] = value
    faults.append(fault_of(lambda: connect(**arguments)))
for wrong in 0, -1, float("nan"), float("inf"):
    faults.append(fault_of(lambda: connect(url, key, wrong)))
faults.append(fault_of(lambda: list(stream_speech(connect(url, key), {{"speed": float("nan")}}))))
faults.append(fault_of(lambda: connect("ws://127.0.0.1:99999/", key)))
for good in {list(GOOD_KEYS)!r}:
    connect(url, good).shutdown()
print(json.dumps(faults))
"""
    with ScriptedServer(lambda peer: peer.accept()) as server:
        *faults, not_json, no_port = run_with(server, tmp_path, code, lifted)
        assert [request.headers["Authorization"] for request in server.requests[1:]] == list(GOOD_KEYS.values())
        assert not any(peer.messages for peer in server.peers)
    words = ["API key"] * len(BAD_KEYS) + list(BAD_URLS.values()) + ["timeout"] * 4
    for fault, word in zip(faults, words, strict=True):
        assert fault.startswith("ValueError: ") and word in fault and "S3" not in fault and "sk_" not in fault, fault
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

    def play(peer):
        for _ in range(2 + peer.hear()["turn"] % 2):
            peer.chunk(PCM)
        peer.wait()

    code = """
import threading, time
async def turn(number):
    heard = asyncio.Queue()
    async def listen():
        async for pcm in speak({"turn": number}):
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
deadline = time.time() + 20
while threading.active_count() > 1 and time.time() < deadline:
    time.sleep(0.1)
print(threading.active_count())
"""
    with ScriptedServer(play, tls=authority.context("127.0.0.1")) as server:
        assert run_readme(server, ASYNC + code).split() == ["50", "1"]


@pytest.mark.parametrize("flags", [[], ["--strict", "--follow-imports=silent"]], ids=["plain", "strict"])
def test_types_of_the_readme_programs(tmp_path, flags):
    """A type checker sees the library through the script, and knows what a speech and a connection can do."""
    uses = ["ws.abort()", "speech = stream_speech(ws, payload)", "speech.close()", "reveal_type(ws.gettimeout())"]
    (tmp_path / "program.py").write_text(PROGRAM + "".join(f"    {use}\n" for use in uses))
    command = [sys.executable, "-m", "mypy", *flags, "program.py"]
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    checked = subprocess.run(command, check=False, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    assert checked.returncode == 0 and re.search("is .*(float|int).*None", checked.stdout), checked.stdout
