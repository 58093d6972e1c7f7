"""Whatever happens: one line, the right exit code, the audio kept, the old output untouched, no key shown."""

import base64
import contextlib
import json
import os
import re
import resource
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time

import pytest
import trustme
from conftest import KEY, PYTHON, SCRIPT, environment_for, finish, read_wav, start
from scripted_server import ScriptedServer
from websockets.frames import Opcode

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs a folder where not even root can write")
PCM = bytes(range(256)) * 200  # 51,200 bytes: 1.07 s at 24 kHz
KEPT = r"Kept: output.partial.wav holds 1\.07 s of audio\."
V2_ADVICE = "--model lightning_v3.1"


def spoken(then):
    """Return a play that speaks before it does something else."""

    def play(peer):
        peer.hear()
        peer.chunk(PCM)
        then(peer)

    return play


def unspoken(then):
    """Return a play that hears the payload and does something else than speak."""

    def play(peer):
        peer.hear()
        then(peer)

    return play


def sends(*messages):
    return lambda peer: [peer.json(message) for message in messages]


def sends_text(data):
    return lambda peer: peer.frame(Opcode.TEXT, data)


def sends_bytes(data):
    return lambda peer: peer.send(data)


def closes(code, reason=""):
    return lambda peer: peer.close(code, reason)


def resets(peer):
    time.sleep(0.2)  # a reset throws away what is still on its way
    peer.reset()


def closes_and_resets(peer):
    time.sleep(0.2)
    peer.close(1011, "out of memory")
    peer.reset()


def leaves(peer):
    peer.sock.shutdown(socket.SHUT_RDWR)


def pings_only(peer):
    while True:
        peer.frame(Opcode.PING, b"still here")
        time.sleep(0.1)


def floods(data):
    def play(peer):
        while True:
            peer.send(data * 1000)

    return play


def trickles(data):
    def play(peer):
        for byte in data:
            peer.send(bytes([byte]))
            time.sleep(0.1)

    return play


def keeps_alive(peer):
    while True:
        peer.json({"status": "keepalive"})
        time.sleep(0.1)


def fragments(peer):
    peer.frame(Opcode.TEXT, b'{"status"', fin=False)
    while True:
        peer.frame(Opcode.CONT, b" ", fin=False)
        time.sleep(0.1)


def unending_fragments(peer):
    peer.frame(Opcode.TEXT, b"{", fin=False)
    floods(b"\x00\x00")(peer)


def audio(value):
    return {"status": "chunk", "data": {"audio": value}}


HOSTILE = "\x1b[31mred\x1b[0m\r\nnew line\u202eright to left\x9b31m\x07" + "x" * 3_000_000

# name, what the service does once it has the payload, words that the user reads
AFTER_PAYLOAD = [
    ("error message", sends({"status": "error", "message": "Voice not found"}), "Voice not found"),
    ("error string", sends({"status": "error", "error": "Voice not found"}), "Voice not found"),
    (
        "error object",
        sends({"status": "error", "request_id": "r-7", "error": {"message": "No credits", "code": "E42"}}),
        "No credits; code: E42; request_id: r-7",
    ),
    (
        "error with a code",
        sends({"status": "error", "error_code": "MODEL_DEPRECATED", "message": "This model is retired."}),
        f"{V2_ADVICE}.*This model is retired.; code: MODEL_DEPRECATED",
    ),
    ("error without words", sends({"status": "error", "reason": 7}), '"reason": 7'),
    ("error without status", sends({"error": "Concurrency limit"}), "Concurrency limit"),
    ("error that is a list", sends({"status": "error", "message": ["a", {"b": None}]}), "['a', {'b': None}]"),
    ("close code and reason", closes(1011, "out of memory"), "close code 1011, out of memory"),
    ("close and reset", closes_and_resets, "close code 1011, out of memory"),
    ("close 1000", closes(1000), "close code 1000, no reason given"),
    ("close without code", sends_bytes(b"\x88\x00"), "close code missing"),
    ("reset", resets, "connection was lost"),
    ("end", leaves, "closed the connection"),
    ("end within a frame", lambda peer: (peer.send(b"\x81\x7e\x10\x00{"), leaves(peer)), "closed the connection"),
    ("silence", lambda peer: peer.wait(), "no audio for 0.7 s"),
    ("pings only", pings_only, "no audio for 0.7 s"),
    ("pings without a pause", floods(b"\x89\x00"), "no audio for 0.7 s"),
    ("fragments without a pause", unending_fragments, "no audio for 0.7 s"),
    ("trickled frame", trickles(b"\x81\x7e\x10\x00" + b"{" * 100), "no audio for 0.7 s"),
    ("endless fragments", fragments, "no audio for 0.7 s"),
    ("endless keep-alive", keeps_alive, "no audio for 0.7 s"),
    ("huge frame that never comes", sends_bytes(b"\x81\x7f\x7f" + b"\xff" * 7 + b"{"), "no audio for 0.7 s"),
    ("not JSON", sends_text(b"<html>Bad gateway</html>"), "cannot be read.*<html>Bad gateway</html>"),
    ("not an object", sends_text(b'["chunk"]'), r'not an object.*\["chunk"\]'),
    ("JSON null", sends_text(b"null"), "not an object"),
    ("empty message", sends_text(b""), "cannot be read"),
    ("not UTF-8", sends_text(b'{"status": "\xff"}'), "cannot be read"),
    ("UTF-16", sends_text('{"status": "complete"}'.encode("utf-16")), "cannot be read"),
    ("deep JSON", sends_text(b"[" * 100_000), "cannot be read"),
    ("long number", sends_text(b'{"status": ' + b"7" * 2_000_000 + b"}"), "no audio for 0.7 s"),
    ("binary message", lambda peer: peer.frame(Opcode.BINARY, PCM), "opcode 2"),
    ("data null", sends({"status": "chunk", "data": None}), 'data is not an object.*"data": null'),
    ("data absent", sends({"status": "chunk"}), "data is not an object"),
    ("data a string", sends({"status": "chunk", "data": "AAAA"}), "data is not an object"),
    ("audio a number", sends(audio(5)), "audio is not a string"),
    ("audio null", sends(audio(None)), "audio is not a string"),
    ("audio absent", sends({"status": "chunk", "data": {}}), "audio is not a string"),
    ("not base64", sends(audio("????")), "cannot be read"),
    ("base64 outside ASCII", sends(audio("äöüä")), "cannot be read"),
    ("base64 with a hole", sends(audio("AA AAAAA")), "cannot be read"),
    ("base64 cut short", sends(audio("AAAAA")), "audio is cut short"),
    ("base64 padded within", sends(audio("AA==AAAA")), "cannot be read"),
    ("audio of complete a number", sends({"status": "complete", "data": {"audio": 5}}), "audio is not a string"),
    ("data of complete a string", sends({"status": "complete", "data": "AAAA"}), "data is not an object"),
    ("reserved bit", sends_bytes(b"\xc1\x02{}"), "broke the WebSocket protocol"),
    ("unknown opcode", sends_bytes(b"\x83\x02{}"), "broke the WebSocket protocol"),
    ("ping too long", sends_bytes(b"\x89\x7e\x00\x80" + b"x" * 128), "broke the WebSocket protocol"),
    ("pong too long", sends_bytes(b"\x8a\x7e\x00\x80" + b"x" * 128), "broke the WebSocket protocol"),
    ("close too long", sends_bytes(b"\x88\x7e\x00\x80" + b"\x03\xe8" + b"x" * 126), "broke the WebSocket protocol"),
    ("close of one byte", sends_bytes(b"\x88\x01\x03"), "broke the WebSocket protocol"),
    ("close with a forbidden code", sends_bytes(b"\x88\x02\x03\xed"), "broke the WebSocket protocol"),
    ("ping in parts", sends_bytes(b"\x09\x00"), "broke the WebSocket protocol"),
    ("continuation of nothing", sends_bytes(b"\x80\x02{}"), "broke the WebSocket protocol"),
    ("message within a message", sends_bytes(b"\x01\x01{\x81\x02{}"), "broke the WebSocket protocol"),
    ("escapes and megabytes", sends({"status": "error", "message": HOSTILE}), "31mred"),
    ("escapes in a close reason", closes(1008, "\x1b[2Jbye\x07"), r"\[2Jbye"),
    ("escapes in bad JSON", sends_text(HOSTILE.encode()), "31mred"),
    ("the key in an error", sends({"status": "error", "message": f"Key {KEY} has no credits"}), "Key .API key. has"),
    ("the key in a close reason", closes(1008, f"bad {KEY}"), "bad .API key."),
    ("the key at the cut", sends_text(b"x" * 325 + KEY.encode() * 3), "xxx"),
]


@pytest.mark.parametrize("when", ["before audio", "after audio"])
@pytest.mark.parametrize(("then", "words"), [row[1:] for row in AFTER_PAYLOAD], ids=[row[0] for row in AFTER_PAYLOAD])
def test_fault_after_payload(run, tmp_path, when, then, words):
    (tmp_path / "output.wav").write_bytes(b"old")
    play = spoken(then) if when == "after audio" else unspoken(then)
    with ScriptedServer(play) as server:
        result = run("--timeout", "0.7", server=server)
    check_fault(result, tmp_path, words, kept=when == "after audio")


def check_fault(result, folder, words, kept=False, code=1):
    """Check one line that says what happened, what is kept and what is left, and that it took no time."""
    lines = [line for line in result.lines if not line.startswith(("Connection: ", "TTFB: "))]
    assert result.code == code, result.err
    assert re.search(words, lines[0]), result.err
    assert all(line.isprintable() and len(line) < 500 for line in result.err.split("\n"))
    assert result.seconds < 5
    assert (folder / "output.wav").read_bytes() == b"old"
    if kept:
        assert len(lines) == 2 and re.fullmatch(KEPT, lines[1])
        assert read_wav(folder / "output.partial.wav") == (PCM, 24000)
    else:
        assert len(lines) == 1
        assert not (folder / "output.partial.wav").exists()


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (lambda peer: peer.complete(), "sent no audio"),
        (lambda peer: (peer.chunk(b""), peer.complete()), "sent no audio"),
        (lambda peer: (peer.json({"status": "speech", "data": {"audio": "AAAA"}}), peer.complete()), "sent no audio"),
        (lambda peer: (peer.chunk(b"\0"), peer.complete()), "half a sample"),
    ],
)
def test_complete_without_audio(run, tmp_path, then, words):
    (tmp_path / "output.wav").write_bytes(b"old")
    with ScriptedServer(unspoken(then)) as server:
        check_fault(run(server=server), tmp_path, words)


def test_half_a_sample_at_the_end(run, tmp_path):
    (tmp_path / "output.wav").write_bytes(b"old")
    with ScriptedServer(spoken(lambda peer: (peer.chunk(b"\0"), peer.complete()))) as server:
        check_fault(run(server=server), tmp_path, "half a sample", kept=True)


def test_error_before_the_payload_is_read(run, tmp_path):
    """A service that refuses after the handshake may be gone before the payload is sent; its words are not lost."""
    (tmp_path / "output.wav").write_bytes(b"old")

    def play(peer):
        peer.accept()
        peer.json({"status": "error", "message": "Concurrency limit"})
        peer.reset()

    with ScriptedServer(play) as server:
        for _ in range(5):
            check_fault(run(server=server), tmp_path, "Concurrency limit")


def test_audio_behind_a_ping_of_a_peer_that_is_gone(run, tmp_path):
    def play(peer):
        peer.hear()
        time.sleep(0.3)
        peer.chunk(PCM[:-2])
        time.sleep(0.3)
        peer.frame(Opcode.PING, b"")
        peer.chunk(PCM[-2:])
        peer.complete()
        peer.reset()

    with ScriptedServer(play) as server:
        result = run(server=server)
    assert result.code == 0, result.err
    assert read_wav(tmp_path / "output.wav") == (PCM, 24000)


# --- The way to the service ---------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("wss://no-such-host.invalid/", "no-such-host.invalid:443 was not found"),
        ("ws://no-such-host.invalid:7/", "no-such-host.invalid:7 was not found"),
        ("wss://a..b/", "a..b:443"),
    ],
)
def test_name_not_found(run, tmp_path, url, words):
    (tmp_path / "output.wav").write_bytes(b"old")
    check_fault(run("--ws-url", url), tmp_path, words)


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_connection_refused(run, tmp_path, scheme):
    (tmp_path / "output.wav").write_bytes(b"old")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    check_fault(run("--ws-url", f"{scheme}://127.0.0.1:{port}/"), tmp_path, f"127.0.0.1:{port}.*refused")


def without_network():
    """Return a command prefix that takes the network away, or None if this machine does not allow that."""
    prefix = ["unshare", "--map-root-user", "--net"]
    with contextlib.suppress(OSError):
        return prefix if subprocess.call([*prefix, "true"], stderr=subprocess.DEVNULL) == 0 else None


WITHOUT_NETWORK = without_network()


@pytest.mark.skipif(not WITHOUT_NETWORK, reason="needs a network namespace")
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_network_unreachable(tmp_path, scheme):
    (tmp_path / "output.wav").write_bytes(b"old")
    command = [*WITHOUT_NETWORK, PYTHON, str(SCRIPT), "--ws-url", f"{scheme}://127.0.0.1:9/"]
    process = subprocess.Popen(command, env=environment_for(None), cwd=tmp_path, stderr=subprocess.PIPE)
    check_fault(finish(process), tmp_path, "127.0.0.1:9.*unreachable")


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_no_answer_to_tcp(run, tmp_path, scheme):
    (tmp_path / "output.wav").write_bytes(b"old")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(3):  # a full queue leaves the next one without an answer
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        result = run("--ws-url", f"{scheme}://127.0.0.1:{address[1]}/", "--timeout", "0.7")
    check_fault(result, tmp_path, f"127.0.0.1:{address[1]} did not answer within 0.7 s")


@pytest.mark.parametrize("scheme", ["ws", "wss"])
@pytest.mark.parametrize("then", [lambda peer: peer.wait(), trickles(b"HTTP/1.1 101 Switching Protocols\r\n" * 9)])
def test_no_answer_to_the_handshake(run, tmp_path, scheme, then):
    (tmp_path / "output.wav").write_bytes(b"old")
    with ScriptedServer(then, raw=True) as server:
        result = run("--ws-url", f"{scheme}://127.0.0.1:{server.port}/", "--timeout", "0.7")
    check_fault(result, tmp_path, "did not answer within 0.7 s|no TLS connection")


def test_no_answer_to_the_handshake_within_tls(run, tmp_path, authority, tls):
    (tmp_path / "output.wav").write_bytes(b"old")
    with ScriptedServer(lambda peer: peer.wait(), tls=tls("127.0.0.1"), raw=True) as server:
        env = {"WEBSOCKET_CLIENT_CA_BUNDLE": authority}
        check_fault(run("--timeout", "0.7", server=server, env=env), tmp_path, "did not answer within 0.7 s")


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"220 mail.example ESMTP ready\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 15\r\n\r\n<html>Hi</html>",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: AAAA\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 abc def\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 400 Bad\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 400 Bad\r\nContent-Length: -5\r\n\r\n",
        b"\xff\xfe\xfd\r\n\r\n",
        b"\r\n\r\n",
        b"",
        b"\x15\x03\x01\x00\x02\x02\x46",
    ],
)
@pytest.mark.parametrize("end", ["closes", "waits"])
def test_something_that_is_no_websocket(run, tmp_path, answer, end):
    (tmp_path / "output.wav").write_bytes(b"old")

    def play(peer):
        peer.sock.recv(65536)
        peer.send(answer)
        if end == "closes":
            leaves(peer)

    with ScriptedServer(play, raw=True) as server:
        result = run("--timeout", "0.7", server=server)
    check_fault(result, tmp_path, "not answer as a WebSocket|refused with status|did not answer within")
    assert end == "waits" or "did not answer within" not in result.err


def refusal(status, *headers, body=b""):
    """Return a play that refuses the handshake."""
    lines = [f"HTTP/1.1 {status} Refused", *headers, f"Content-Length: {len(body)}", "", ""]
    return lambda peer: peer.send("\r\n".join(lines).encode() + body)


@pytest.mark.parametrize(
    ("status", "headers", "advice"),
    [
        (400, [], "Check the settings"),
        (401, [], "SMALLEST_API_KEY"),
        (403, [], "workspace"),
        (404, [], V2_ADVICE),
        (410, [], V2_ADVICE),
        (429, ["Retry-After: 17"], "try again later. retry-after: 17"),
        (500, ["x-request-id: req-9"], "try again later. x-request-id: req-9"),
        (503, [], "try again later"),
        (418, [], "--ws-url"),
        (200, [], "--ws-url"),
    ],
)
def test_refused_handshake(run, tmp_path, status, headers, advice):
    (tmp_path / "output.wav").write_bytes(b"old")
    with ScriptedServer(refusal(status, *headers)) as server:
        check_fault(run(server=server), tmp_path, f"refused with status {status}.*{advice}")


def library_version():
    code = "import websocket; print(websocket.__version__)"
    out = subprocess.check_output([os.environ.get("SCRIPT_PYTHON", sys.executable), "-c", code], text=True)
    return tuple(map(int, out.strip().split(".")[:2]))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"message": "This model is retired.", "error_code": "GONE"}, "This model is retired.; code: GONE"),
        ({"error": "Invalid key"}, "Invalid key"),
        ({"error": {"message": "Invalid key", "code": 7}}, "Invalid key; code: 7"),
        ({"message": f"Invalid key {KEY}"}, "Invalid key .API key."),
        (["no object"], "SMALLEST_API_KEY"),
        ({"message": HOSTILE}, "red"),
    ],
)
def test_words_of_a_refusal(run, tmp_path, body, words):
    if library_version() < (1, 6) or (library_version() < (1, 9) and len(str(body)) > 65536):
        words = "SMALLEST_API_KEY"  # this websocket-client drops the body, or all but its beginning
    (tmp_path / "output.wav").write_bytes(b"old")
    with ScriptedServer(refusal(401, f"X-Key: {KEY}", body=json.dumps(body).encode())) as server:
        check_fault(run(server=server), tmp_path, words)


def test_refusal_of_a_later_model_does_not_speak_of_v2(run, tmp_path):
    (tmp_path / "output.wav").write_bytes(b"old")
    with ScriptedServer(refusal(404)) as server:
        result = run("--model", "lightning_v3.1", server=server)
    check_fault(result, tmp_path, "status 404. Check --ws-url")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_refused(run, tmp_path, status):
    (tmp_path / "output.wav").write_bytes(b"old")
    with ScriptedServer(lambda peer: peer.hear()) as other:
        with ScriptedServer(refusal(status, f"Location: {other.url}?{KEY}")) as server:
            check_fault(run(server=server), tmp_path, "redirect, which is refused")
        assert (server.connections, other.connections) == (1, 0)


def test_redirect_without_a_target(run, tmp_path):
    (tmp_path / "output.wav").write_bytes(b"old")
    with ScriptedServer(refusal(302)) as server:
        check_fault(run(server=server), tmp_path, "redirect, which is refused")


# --- TLS ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ca():
    return trustme.CA()


@pytest.fixture
def authority(ca, tmp_path_factory):
    """Return the file of the certificate of a throw-away authority."""
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def tls(ca):
    """Return a function that makes the server's side of TLS for a host."""

    def make(host, **options):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert(host, **options).configure_cert(context)
        return context

    return make


def say_and_complete(peer):
    peer.hear()
    peer.chunk(PCM)
    peer.complete()


def test_tls_with_a_private_authority(run, tmp_path, authority, tls):
    with ScriptedServer(say_and_complete, tls=tls("127.0.0.1")) as server:
        result = run(server=server, env={"WEBSOCKET_CLIENT_CA_BUNDLE": authority})
    assert result.code == 0, result.err
    assert read_wav(tmp_path / "output.wav") == (PCM, 24000)


def test_proxy_sees_no_key(run, tmp_path, authority, tls):
    """A proxy is for wss:// alone, where it forwards what it cannot read."""
    seen = []

    def tunnel(peer):
        seen.append(peer.sock.recv(65536))
        peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with socket.create_connection(("127.0.0.1", server.port)) as onward:
            back = threading.Thread(target=forward, args=(onward, peer.sock, []), daemon=True)
            back.start()
            forward(peer.sock, onward, seen)

    with ScriptedServer(say_and_complete, tls=tls("127.0.0.1")) as server, ScriptedServer(tunnel, raw=True) as proxy:
        env = {"WEBSOCKET_CLIENT_CA_BUNDLE": authority, "https_proxy": f"http://127.0.0.1:{proxy.port}"}
        result = run(server=server, env={**env, "no_proxy": "other.example"})
    assert result.code == 0, result.err
    assert seen[0].startswith(f"CONNECT 127.0.0.1:{server.port} ".encode())
    assert len(seen) > 1 and KEY.encode() not in b"".join(seen)


def forward(source, target, seen):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            seen.append(data)
            target.sendall(data)


def test_redirect_from_wss_to_ws_is_refused(run, tmp_path, authority, tls):
    (tmp_path / "output.wav").write_bytes(b"old")
    with ScriptedServer(lambda peer: peer.hear()) as other:
        with ScriptedServer(refusal(302, f"Location: {other.url}"), tls=tls("127.0.0.1")) as server:
            result = run(server=server, env={"WEBSOCKET_CLIENT_CA_BUNDLE": authority})
        check_fault(result, tmp_path, "redirect, which is refused")
        assert other.connections == 0


@pytest.mark.parametrize("case", ["unknown authority", "wrong host", "expired"])
def test_certificate_not_trusted(run, tmp_path, authority, tls, case):
    (tmp_path / "output.wav").write_bytes(b"old")
    host = "localhost" if case == "wrong host" else "127.0.0.1"
    options = {"not_after": trustme.datetime.datetime(2020, 1, 1)} if case == "expired" else {}
    bundle = None if case == "unknown authority" else authority
    with ScriptedServer(say_and_complete, tls=tls(host, **options)) as server:
        result = run(server=server, env={"WEBSOCKET_CLIENT_CA_BUNDLE": bundle})
        assert not server.requests
    check_fault(result, tmp_path, f"127.0.0.1:{server.port} is not trusted.*WEBSOCKET_CLIENT_CA_BUNDLE")


def test_no_tls_where_tls_was_asked_for(run, tmp_path):
    (tmp_path / "output.wav").write_bytes(b"old")
    with ScriptedServer(lambda peer: peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n"), raw=True) as server:
        result = run("--ws-url", f"wss://127.0.0.1:{server.port}/")
    check_fault(result, tmp_path, "no TLS connection")


# --- The end of a run -----------------------------------------------------------


def test_peer_that_never_answers_the_close(run, tmp_path):
    done = []

    def play(peer):
        say_and_complete(peer)
        done.append(time.perf_counter())
        with contextlib.suppress(OSError):
            while peer.sock.recv(65536):  # hears the close and does not answer
                pass
        done.append(time.perf_counter())

    with ScriptedServer(play) as server:
        assert run(server=server).code == 0
        time.sleep(0.2)
    assert done[1] - done[0] < 1.5
    assert read_wav(tmp_path / "output.wav") == (PCM, 24000)


def test_client_says_goodbye(run):
    codes = []

    def play(peer):
        say_and_complete(peer)
        codes.append(peer.next_frame(Opcode.CLOSE).data)

    with ScriptedServer(play) as server:
        assert run(server=server).code == 0
        time.sleep(0.2)
    assert codes == [struct.pack("!H", 1000)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("when", ["before audio", "after audio"])
def test_interrupted(tmp_path, number, code, when):
    (tmp_path / "output.wav").write_bytes(b"old")
    play = spoken(lambda peer: peer.wait()) if when == "after audio" else lambda peer: peer.hear()
    with ScriptedServer(play) as server:
        process = start(env=environment_for(server), cwd=tmp_path)
        wait_for(lambda: server.peers and hasattr(server.peers[0], "payload"))
        time.sleep(0.3)
        process.send_signal(number)
        process.send_signal(number)
        check_fault(finish(process), tmp_path, "Interrupted.", kept=when == "after audio", code=code)


def wait_for(condition):
    deadline = time.perf_counter() + 10
    while not condition():
        assert time.perf_counter() < deadline
        time.sleep(0.01)


def test_interrupted_while_connecting(tmp_path):
    (tmp_path / "output.wav").write_bytes(b"old")
    with ScriptedServer(lambda peer: peer.wait(), raw=True) as server:
        process = start(env=environment_for(server), cwd=tmp_path)
        wait_for(lambda: server.peers)
        process.send_signal(signal.SIGINT)
        check_fault(finish(process), tmp_path, "Interrupted.", code=130)


def test_ignored_interrupt_stays_ignored(tmp_path):
    def play(peer):
        peer.hear()
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        peer.chunk(PCM)
        peer.complete()

    with ScriptedServer(play) as server:
        ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)  # noqa: E731
        process = start(env=environment_for(server), cwd=tmp_path, preexec_fn=ignore)
        assert finish(process).code == 0


def test_killed_in_the_middle(tmp_path):
    """What is on the disk is a WAV with every chunk so far, at every moment."""
    chunks = [os.urandom(size) for size in (2, 1000, 1, 3333, 48000, 4)]
    partial = tmp_path / "output.partial.wav"
    for count in range(1, len(chunks) + 1):
        sent = b"".join(chunks[:count])
        sent = sent[: len(sent) // 2 * 2]  # half a sample waits for its other half
        with ScriptedServer(unspoken(sends(*[audio(encode(chunk)) for chunk in chunks[:count]]))) as server:
            process = start(env=environment_for(server), cwd=tmp_path)
            wait_for_size(partial, 44 + len(sent))
            process.kill()
            process.communicate()
        assert read_wav(partial) == (sent, 24000)
        assert not (tmp_path / "output.wav").exists()


def encode(pcm):
    return base64.b64encode(pcm).decode()


def wait_for_size(path, size):
    wait_for(lambda: path.exists() and path.stat().st_size == size)
    time.sleep(0.05)


# --- The output -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("no/folder.wav", "does not exist"),
        ("folder", "is a folder"),
        ("x" * 250, "too long"),
        pytest.param("/proc/output.wav", "cannot be written", marks=linux_only),
    ],
)
def test_output_that_cannot_be(run, tmp_path, output, words):
    (tmp_path / "folder").mkdir()
    with ScriptedServer(say_and_complete) as server:
        result = run("-o", output, server=server)
        assert server.connections == 0
    assert result.code == 2 and words in result.err and output[:80] in result.err and len(result.lines) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("limit", [20_000, 44 + 51_200 + 7])
def test_full_disk(tmp_path, limit):
    """A limit on the size of a file fails like a full disk: a write takes some of the bytes, the next one none."""
    (tmp_path / "output.wav").write_bytes(b"old")

    def play(peer):
        peer.hear()
        peer.chunk(PCM)
        peer.chunk(PCM)
        peer.complete()

    with ScriptedServer(play) as server:
        set_limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: E731
        result = finish(start(env=environment_for(server), cwd=tmp_path, preexec_fn=set_limit))
    assert result.code == 1
    assert "output.partial.wav cannot be written: File too large" in result.err
    assert result.lines[-1].startswith("Kept: output.partial.wav holds ")
    pcm, _ = read_wav(tmp_path / "output.partial.wav")
    assert pcm == (PCM + PCM)[: (limit - 44) // 2 * 2]
    assert (tmp_path / "output.wav").read_bytes() == b"old"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_device(run):
    with ScriptedServer(say_and_complete) as server:
        result = run("-o", "/dev/full", server=server)
    assert result.code == 1 and "/dev/full cannot be written: No space left on device" in result.err


def test_two_runs_at_once(run, tmp_path):
    """The one that lost its partial file says so; the other's is whole."""
    second = []

    def play(peer):
        peer.hear()
        peer.chunk(PCM)
        if len(server.peers) == 1:
            second.append(run(server=server))
        peer.complete()

    with ScriptedServer(play) as server:
        first = run("--timeout", "20", server=server)
    assert second[0].code == 0
    assert first.code == 1 and "Another run took" in first.err
    assert read_wav(tmp_path / "output.wav") == (PCM, 24000)


def test_output_that_cannot_be_replaced(run, tmp_path):
    def play(peer):
        peer.hear()
        peer.chunk(PCM)
        (tmp_path / "output.wav").mkdir()
        peer.complete()

    with ScriptedServer(play) as server:
        result = run(server=server)
    assert result.code == 1 and "cannot be written" in result.err and re.fullmatch(KEPT, result.lines[-1])
    assert read_wav(tmp_path / "output.partial.wav") == (PCM, 24000)


# --- The console ----------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_console_that_cannot_print(run, tmp_path, encoding):
    output = tmp_path / "größe 🎉.wav"
    with ScriptedServer(say_and_complete) as server:
        assert run("-o", str(output), server=server, env={"PYTHONIOENCODING": encoding}).code == 0
    assert read_wav(output) == (PCM, 24000)
    with ScriptedServer(unspoken(sends({"status": "error", "message": "आवाज़ 🎉"}))) as server:
        result = run(server=server, env={"PYTHONIOENCODING": encoding})
    assert result.code == 1 and "The service reports an error" in result.err


@pytest.mark.parametrize("closed", [1, 2])
def test_closed_stream(tmp_path, closed):
    with ScriptedServer(say_and_complete) as server:
        process = start(env=environment_for(server), cwd=tmp_path, preexec_fn=lambda: os.close(closed))
        result = finish(process)
    assert result.code == 0 and not result.out
    assert read_wav(tmp_path / "output.wav") == (PCM, 24000)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_standard_error(tmp_path):
    with ScriptedServer(say_and_complete) as server, open("/dev/full", "wb") as full:
        assert finish(start(env=environment_for(server), cwd=tmp_path, stderr=full)).code == 0
        for arguments in ["--help"], ["-o", "-"]:
            result = finish(start(*arguments, env=environment_for(server), cwd=tmp_path, stdout=full))
            assert result.code in (0, 1)


def test_standard_error_that_nobody_reads(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with ScriptedServer(say_and_complete) as server:
        process = start(env=environment_for(server), cwd=tmp_path, stderr=writer)
        os.close(writer)
        assert finish(process).code == 0


def test_key_is_not_in_the_process_list(tmp_path):
    with ScriptedServer(lambda peer: peer.hear()) as server:
        process = start("--text", "Hello.", env=environment_for(server), cwd=tmp_path)
        wait_for(lambda: server.peers and hasattr(server.peers[0], "payload"))
        listed = subprocess.check_output(["ps", "-ww", "-o", "args=", "-p", str(process.pid)], text=True)
        process.kill()
        process.communicate()
    assert "ws_streaming_api.py" in listed and KEY not in listed
