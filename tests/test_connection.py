"""The way to the service: what stands in it is named in one line, and the key goes nowhere else."""

import contextlib
import json
import re
import socket
import ssl
import subprocess
import threading

import pytest
import trustme

from conftest import KEY, LIVE_PATH, PYTHON, RETIRED, V2_PATH, check_fault, read_wav
from scripted_server import PCM, ScriptedServer, refusal, say

CHECK = "Check the URL, the network and, where one is set, the proxy .https_proxy.*"


NOBODY = [
    "wss://no-such-host.invalid/",
    "ws://no-such-host.invalid:7/",
    "wss://a..b/",
    "ws://127.0.0.1:1/",
    "wss://[::1]:1/",
]


@pytest.mark.parametrize("url", NOBODY)
def test_nobody_there(run, old_output, url):
    check_fault(run("--ws-url", url), old_output, f"No connection to {re.escape(url)}: .*{CHECK}")


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_no_answer_to_the_handshake(run, old_output, scheme):
    with ScriptedServer(lambda peer: peer.wait(), raw=True) as server:
        result = run("--ws-url", f"{scheme}://127.0.0.1:{server.port}/", "--timeout", "0.7")
    check_fault(result, old_output, "timed out")


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: AAAA\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"\xff\xfe\xfd\r\n\r\n",
        b"",
    ],
)
def test_something_that_is_no_websocket(run, old_output, answer):
    def play(peer):
        peer.sock.recv(65536)
        peer.send(answer)
        peer.sock.shutdown(socket.SHUT_RDWR)

    with ScriptedServer(play, raw=True) as server:
        result = run("--timeout", "0.7", server=server)
    check_fault(
        result,
        old_output,
        f"({server.url} refused the handshake with|No connection to {server.url}).*{CHECK}",
    )


@pytest.mark.parametrize(
    ("path", "status", "headers", "advice"),
    [
        (V2_PATH, 400, [], CHECK),
        (V2_PATH, 401, [], "Check the API key"),
        (V2_PATH, 404, [], RETIRED),
        (V2_PATH, 410, [], RETIRED),
        (LIVE_PATH, 404, [], CHECK),
        (LIVE_PATH, 410, [], RETIRED),
        (LIVE_PATH, 426, [], "Check the URL: a gateway on the way does not pass WebSockets on"),
        (LIVE_PATH, 505, [], "Check the URL: a gateway on the way does not pass WebSockets on"),
        (LIVE_PATH, 429, ["Retry-After: 17"], "Try again later.* retry-after: 17"),
        (LIVE_PATH, 500, ["x-request-id: req-9"], "Try again later.* x-request-id: req-9"),
        (LIVE_PATH, 200, [], CHECK),
    ],
)
def test_refused_handshake(run, old_output, path, status, headers, advice):
    with ScriptedServer(refusal(status, *headers)) as server:
        url = server.url.rstrip("/") + path
        check_fault(run("--ws-url", url), old_output, f"{url} refused the handshake with status {status}. {advice}")


def library_version():
    code = "import websocket; print(websocket.__version__)"
    out = subprocess.check_output([PYTHON, "-c", code], text=True)
    return tuple(map(int, out.strip().split(".")[:2]))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"message": "No such key", "error_code": "E1"}, 'No such key.*"E1"'),
        ({"message": f"No such key {KEY}"}, "No such key .API key."),
        ({"message": "\x1b[31mred" + "x" * 60_000}, r"u001b\[31mred"),
    ],
)
def test_words_of_a_refusal(run, old_output, body, words):
    words = words if library_version() >= (1, 6) else "Check the API key"  # older ones drop the body
    with ScriptedServer(refusal(401, f"X-Key: {KEY}", body=json.dumps(body).encode())) as server:
        check_fault(run(server=server), old_output, words)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("target", ["another host", "nowhere"])
def test_redirect_is_refused(run, old_output, status, target):
    with ScriptedServer(lambda peer: peer.hear()) as other:
        headers = [f"Location: {other.url}?{KEY}"] if target == "another host" else []
        with ScriptedServer(refusal(status, *headers)) as server:
            check_fault(run(server=server), old_output, f"[Rr]edirect|status {status}")
        assert (server.connections, other.connections) == (1, 0)


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


def test_tls_with_a_private_authority(run, tmp_path, authority, tls):
    with ScriptedServer(say(PCM), tls=tls("127.0.0.1")) as server:
        result = run(server=server, env={"WEBSOCKET_CLIENT_CA_BUNDLE": authority})
    assert result.code == 0, result.err
    assert read_wav(tmp_path / "output.wav") == (PCM, 24000)


@pytest.mark.parametrize("case", ["unknown authority", "no such bundle", "wrong host", "expired"])
def test_certificate_not_trusted(run, old_output, authority, tls, case):
    host = "localhost" if case == "wrong host" else "127.0.0.1"
    options = {"not_after": trustme.datetime.datetime(2020, 1, 1)} if case == "expired" else {}
    bundle = {"unknown authority": None, "no such bundle": "/no/such.pem"}.get(case, authority)
    with ScriptedServer(say(PCM), tls=tls(host, **options)) as server:
        result = run(server=server, env={"WEBSOCKET_CLIENT_CA_BUNDLE": bundle})
        assert not server.requests
    old = library_version() < (1, 6)  # Python 3.6 does not say what is wrong with a certificate
    words = {"wrong host": "doesn't match|not valid for", "expired": "certificate verify failed.*expired"}
    words = "certificate|cannot be read" if old else words.get(case, "issuer")
    check_fault(result, old_output, f"No connection to {server.url}: .*({words})")
    if case in ("unknown authority", "no such bundle") or not old:
        assert ("WEBSOCKET_CLIENT_CA_BUNDLE" in result.err) == (case not in ("wrong host", "expired"))
    assert ("It is /no/such.pem now" in result.err) == (case == "no such bundle")


def test_no_tls_where_tls_was_asked_for(run, old_output):
    with ScriptedServer(refusal(400), raw=True) as server:
        result = run("--ws-url", f"wss://127.0.0.1:{server.port}/")
    check_fault(result, old_output, f"No connection to wss://127.0.0.1:{server.port}/: .*SSL")


def run_behind(run, proxy, url="wss://api.example:443/", **env):
    """Run the script behind a proxy, in every version of the library, which differ in what they exempt."""
    return run("--ws-url", url, "--timeout", "2", env={"https_proxy": proxy, "no_proxy": "none.example", **env})


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

    with ScriptedServer(say(PCM), tls=tls("127.0.0.1")) as server, ScriptedServer(tunnel, raw=True) as proxy:
        address = f"http://127.0.0.1:{proxy.port}"
        result = run_behind(run, address, server.url, WEBSOCKET_CLIENT_CA_BUNDLE=authority)
    assert result.code == 0, result.err
    assert seen[0].startswith(f"CONNECT 127.0.0.1:{server.port} ".encode())
    assert len(seen) > 1 and KEY.encode() not in b"".join(seen)


def forward(source, target, seen):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            seen.append(data)
            target.sendall(data)


@pytest.mark.parametrize("case", ["403", "407", "502", "refused", "unknown"])
def test_proxy_that_fails(run, old_output, case):
    def play(peer):
        peer.sock.recv(65536)
        refusal(case)(peer)

    with ScriptedServer(play, raw=True) as proxy:
        host = {"refused": "127.0.0.1:1", "unknown": "no-such-proxy.invalid:3128"}.get(case, f"127.0.0.1:{proxy.port}")
        result = run_behind(run, f"http://user:S3cret@{host}")
    words = case if case.isdigit() else ""
    check_fault(result, old_output, f"No connection to wss://api.example:443/: .*{words}.*https_proxy")
    assert "S3cret" not in result.err


@pytest.mark.parametrize("mark", ["#", "/", "?", "[", "]"])
def test_password_of_a_proxy_that_is_not_quoted(run, old_output, mark):
    result = run_behind(run, f"http://user:S3cret{mark}9@host.invalid:3128")
    check_fault(result, old_output, "No connection to wss://api.example:443/: .*https_proxy")
    assert "S3cret" not in result.err and "user" not in result.err
