"""What people copy: connect() and stream_speech(), alone, with plain arguments, from a program of their own."""

import json
import os
import re
import struct
import subprocess
import sys
import textwrap
import time

import pytest
from websockets.frames import Opcode

from conftest import HOST_LINE, KEY, ROOT, SCRIPT, edit_script, library_version, run_program
from scripted_server import PCM, ScriptedServer, refusal, say

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAM, PATIENT, CANCELLED = re.findall("(?s)```python\n(.*?)```", README)
BEGIN = """
import json, time
from {module} import SpeechError, connect, stream_speech
url, key, timeout = {url!r}, {key!r}, {timeout}
def say(text, ws=None):
    return stream_speech(ws or connect(url, key, timeout), {{"text": text, "voice_id": "ryan"}})
def fault_of(call):
    try:
        return "no fault, but " + str(call())
    except SpeechError as error:
        return str(error)
"""


def run_with(server, folder, code, module="ws_streaming_api", timeout=5):
    """Run a program that can say() a text to the server; return what it printed, as JSON."""
    begin = BEGIN.format(module=module, url=server.url, key=KEY, timeout=timeout)
    result = run_program(begin + code, folder)
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


@pytest.mark.parametrize("imported", [True, False])
def test_each_speech_has_a_connection_of_its_own(tmp_path, lifted, imported):
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
        heard = run_with(server, tmp_path, code, "ws_streaming_api" if imported else lifted)
        assert server.connections == 2 and goodbyes == [struct.pack("!H", 1000)] * 2 and max(waits) < 1.5
        payloads = [peer.payload for peer in server.peers]
    assert payloads == [{"text": name, "voice_id": "ryan"} for name in chunks]
    for (*pieces, is_shut), sent in zip(heard, chunks.values(), strict=True):
        assert "".join(pieces) == b"".join(sent).hex() and is_shut
        assert all(piece and len(piece) % 4 == 0 for piece in pieces)


LEFT = {
    "for pcm in speech: break": False,
    "next(speech)": True,  # still there, in the middle
    "next(speech); speech.close()": False,
    "list(speech)": False,
}


@pytest.mark.parametrize(("leave", "goes_on"), LEFT.items())
def test_rest_of_one_text_is_never_heard_as_the_next(tmp_path, leave, goes_on):
    """However a caller leaves the first, and without harm to it."""
    code = f"""
ws = connect(url, key)
speech = say("first", ws)
{leave}
fault = fault_of(lambda: list(say("second", ws)))
print(json.dumps([fault, len(b"".join(speech)) if {goes_on} else 0]))
speech.close()
"""
    with ScriptedServer(say(b"\1\0", b"\2\0", b"\3\0")) as server:
        fault, rest = run_with(server, tmp_path, code)
        assert server.peers[0].payload["text"] == "first" and not server.peers[0].messages
    assert fault == "This connection has been given a text. Connect again." and rest == 4 * goes_on


def test_speech_is_closed_at_once_against_a_peer_that_reads_nothing(tmp_path):
    """Its payload is too large for the buffers between them; what the peer says is heard all the same."""

    def play(peer):
        peer.accept()
        peer.chunk(PCM)
        time.sleep(10)

    code = """
speech = say("x" * 20_000_000)
size = len(next(speech))
started = time.time()
speech.close()
print(json.dumps([size, time.time() - started]))
"""
    with ScriptedServer(play) as server:
        size, seconds = run_with(server, tmp_path, code, timeout=1.5)
    assert size == len(PCM) and seconds < 0.5


def test_abort_from_another_thread_ends_the_speech_at_once(tmp_path):
    """And nothing is sent before the first audio is asked for."""
    code = """
import threading
ws = connect(url, key, timeout)
speech = say("x", ws)
time.sleep(0.3)
asked = time.time()
next(speech)
threading.Timer(0.2, ws.abort).start()
print(json.dumps([fault_of(lambda: next(speech)), asked, time.time()]))
"""
    sent = []
    play = say(PCM, then=lambda peer: sent.append(time.time()))
    with ScriptedServer(play) as server:
        fault, asked, ended = run_with(server, tmp_path, code)
    assert "connection was lost" in fault and asked <= sent[0] and ended - asked < 2


def test_clock_runs_only_while_no_audio_comes(tmp_path):
    """Neither a caller who takes 0.9 s nor a speech of 1.6 s is silent for 0.7 s."""

    def play(peer):
        say(PCM, PCM, then=lambda peer: None)(peer)
        for _ in range(4):
            time.sleep(0.4)
            peer.chunk(PCM)
        peer.complete()

    code = """
sizes = []
for pcm in say("x"):
    time.sleep(0 if sizes else 0.9)
    sizes.append(len(pcm))
print(sum(sizes))
"""
    with ScriptedServer(play) as server:
        assert run_with(server, tmp_path, code, timeout=0.7) == 6 * len(PCM)


FAULTS = [(refusal(status), status, f"refused with status {status}, ") for status in (302, 307, 401, 404, 429, 500)]
FAULTS += [
    (lambda peer: peer.wait(), 0, "No connection to ws://.*: .*timed out"),
    (lambda peer: peer.send(b"HTTP/1.1 302 Found\r\nSet-Cookie: a/b=1\r\n\r\n"), 0, "No connection to ws://"),
    (say(then=lambda peer: peer.wait()), None, "No audio came for 0.5 s"),
    (say(then=lambda peer: peer.json({"status": "error"})), None, "reports an error"),
    (say(PCM, then=lambda peer: peer.close(1011)), 1011, "hung up .*: close code 1011, no reason given"),
    (say(then=lambda peer: peer.close(1008, "key")), 1008, "hung up .*: close code 1008, key"),
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


def test_only_a_speech_error_is_raised_and_repeats_neither_key_nor_password(tmp_path, lifted):
    good = {f"{KEY}\n": f"Bearer {KEY}", f"  {KEY}\r\n": f"Bearer {KEY}", "Token a:b1": "Token a:b1"}
    good |= {f"Bearer {KEY}": f"Bearer {KEY}", "lic/123": "Bearer lic/123"}
    bad = ["", " \n", "sk one", "sk_\u00e4", "sk_\x00", "sk_\r\nX-Evil: 1", "<AUTH TOKEN>", "Basic sk_1"]
    bad += ['"sk_1"', "'sk_1'", '"Bearer sk_1"', "Token  x\ty"]
    secrets = ["user:S3cret@", "user:S3#cret@", "S3cret@", "user:@"]
    urls = [f"{scheme}://{secret}127.0.0.1:1/" for scheme in ("ws", "wss") for secret in secrets]
    urls += ["", "http://x/", "ws://", "wss://[/", "ws://127.0.0.1/\r\nX: 1", "ws://127.0.0.1:99999/"]
    urls += [f"ws://{host}/waves/v1/tts/live" for host in ("api.smallest.ai", "waves-API.smallest.AI:80")]
    with ScriptedServer(lambda peer: peer.accept()) as server:
        calls = [(server.url, key) for key in [*good, *bad]] + [(url, KEY) for url in urls]
        code = f"""
faults = []
for url, key in {calls!r}:
    try:
        connect(url, key, 5).shutdown()
    except SpeechError as error:
        faults.append(str(error))
        assert error.status == (0 if "99999" in url else None)
print(json.dumps(faults))
"""
        faults = run_with(server, tmp_path, code, lifted)
        assert [request.headers["Authorization"] for request in server.requests] == list(good.values())
    key_faults, url_faults = faults[: len(bad)], faults[len(bad) :]
    assert set(key_faults) == {"The API key is empty, in quotation marks, or not printable ASCII without blanks."}
    assert all(fault.endswith("without user and password.") for fault in url_faults[:13]) and "S3" not in str(faults)
    assert "cannot be read" in url_faults[13]
    assert url_faults[14:] == ["The URL would send the API key in the clear: use wss://."] * 2


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


IMPORTS = "import asyncio, os, time\nfrom ws_streaming_api import *\n"


def test_readme_program(lightning, tmp_path, run_readme):
    run_readme(lightning, PROGRAM)
    pcm = (tmp_path / "speech.pcm").read_bytes()
    assert len(pcm) > 20_000 and len(pcm) % 2 == 0


@pytest.mark.parametrize("status", [429, 403])
def test_readme_program_that_is_patient(run_readme, status):
    code = "try:\n{}\n    print(ws.connected)\n    ws.shutdown()\nexcept SpeechError as error:\n    print(error.status)"
    plays = [refusal(status), refusal(status), say(PCM)]
    with ScriptedServer(lambda peer: plays.pop(0)(peer)) as server:  # noqa: PLW0108 - each has its turn
        printed = run_readme(server, IMPORTS + code.format(textwrap.indent(PATIENT, "    ")))
        assert (printed, server.connections) == (("True", 3) if status == 429 else ("403", 1))


@pytest.mark.skipif(library_version() < (1, 9), reason="the program is for Python 3.9")
def test_readme_program_that_is_cancelled(run_readme, authority):
    """50 turns over TLS, half of them interrupted while they play, half while they wait: none harms the next."""

    def play(peer):
        for _ in range(2 + peer.hear()["turn"] % 2):
            peer.chunk(PCM)
        peer.wait()

    code = """
async def turn(number):
    heard = asyncio.Queue()
    async def play(pcm):
        await heard.put(pcm)
        await asyncio.sleep(0.01 * (number % 2))
    task = asyncio.create_task(speak({"turn": number}, play))
    await heard.get()
    await asyncio.sleep(0.002 * (number % 7))
    task.cancel()
    return type((await asyncio.gather(task, return_exceptions=True))[0]).__name__
async def main():
    print([await turn(number) for number in range(50)].count("CancelledError"))
asyncio.run(main())
"""
    with ScriptedServer(play, tls=authority.context("127.0.0.1")) as server:
        assert run_readme(server, IMPORTS + CANCELLED + code) == "50"
        assert server.connections == len(server.requests) == 50


def test_types_of_the_readme_program(tmp_path):
    """A type checker sees the library through the script, and knows that a speech can be closed."""
    (tmp_path / "program.py").write_text(PROGRAM + "speech.close()\nreveal_type(ws.gettimeout())\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "program.py"]
    env = {**os.environ, "MYPYPATH": str(ROOT)}
    checked = subprocess.run(command, check=False, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    assert checked.returncode == 0 and re.search("is .*(float|int).*None", checked.stdout), checked.stdout
