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

CHECK = "Check the URL, the network and, where https_proxy is set, the proxy, its user and its password."

NOBODY = [
    "wss://no-such-host.invalid/",
    "ws://no-such-host.invalid:7/",
    "wss://a..b/",
    "ws://127.0.0.1:1/",
    "wss://[::1]:1/",
]


@pytest.mark.parametrize("url", NOBODY)
def test_nobody_there(run, old_output, url):
    check_fault(run("--ws-url", url), old_output, f"No connection to {re.escape(url)}waves.*stream: .*{CHECK}")


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_no_answer_to_the_handshake(run, old_output, scheme):
    with ScriptedServer(lambda peer: peer.wait(), raw=True) as server:
        result = run("--ws-url", f"{scheme}://127.0.0.1:{server.port}/", "--timeout", "0.7")
    check_fault(result, old_output, "timed out")


ANSWERS = [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1\r\n\r\n", b"\xff\xfe\xfd\r\n\r\n", b""]
ANSWERS += [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: AAAA\r\n\r\n"]


@pytest.mark.parametrize("answer", ANSWERS)
def test_something_that_is_no_websocket(run, old_output, answer):
    def play(peer):
        peer.sock.recv(65536)
        peer.send(answer)
        peer.sock.shutdown(socket.SHUT_RDWR)

    with ScriptedServer(play, raw=True) as server:
        result = run("--timeout", "0.7", server=server)
    check_fault(result, old_output, f"No connection to {server.url}.*{CHECK}")


REFUSALS = [
    (V2_PATH, 400, CHECK),
    (V2_PATH, 404, RETIRED),
    (V2_PATH, 410, RETIRED),
    (V2_PATH, 401, "Check the API key"),
]
REFUSALS += [
    (LIVE_PATH, 200, CHECK),
    (LIVE_PATH, 404, CHECK),
    (LIVE_PATH, 410, CHECK),
    (LIVE_PATH, 403, "Check the API"),
]
REFUSALS += [(LIVE_PATH, 429, "Try again later"), (LIVE_PATH, 500, "Try again later")]


@pytest.mark.parametrize(("path", "status", "advice"), REFUSALS)
def test_refused_handshake(run, old_output, path, status, advice):
    with ScriptedServer(refusal(status)) as server:
        url = server.url.rstrip("/") + path
        words = f"No connection to {url}: the handshake was refused with status {status}, no reason given. {advice}"
        check_fault(run("--ws-url", url + "?timeout=20"), old_output, words)


def library_version():
    code = "import websocket; print(websocket.__version__)"
    out = subprocess.check_output([PYTHON, "-c", code], text=True)
    return tuple(map(int, out.strip().split(".")[:2]))


BODIES = [
    ({"message": "No such key", "error_code": "E1"}, 'No such key.*"E1"'),
    ({"message": f"No such key {KEY}"}, "No such key .API key."),
    ({"message": "\x1b[31mred " + "x" * 60_000}, r"u001b\[31mred\. Check the API key"),
]


@pytest.mark.parametrize(("body", "words"), BODIES)
def test_words_of_a_refusal(run, old_output, body, words):
    words = words if library_version() >= (1, 6) else "Check the API key"  # older ones drop the body
    check_fault(run(play=refusal(401, f"X-Key: {KEY}", body=json.dumps(body).encode())), old_output, words)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("target", ["another host", "nowhere"])
def test_redirect_is_refused(run, old_output, status, target):
    with ScriptedServer(lambda peer: peer.hear()) as other:
        headers = [f"Location: {other.url}?{KEY}"] if target == "another host" else []
        with ScriptedServer(refusal(status, *headers)) as server:
            result = run(server=server)
    words = "The API key does not follow a redirect"
    if status in (307, 308) and library_version() < (1, 8):
        words = f"status {status}"  # older ones do not know it
    check_fault(result, old_output, f"No connection to {server.url}.*{words}")
    assert (server.connections, other.connections) == (1, 0)


@pytest.fixture
def authority(tmp_path_factory):
    """Return a throw-away authority, with the `file` of its certificate."""
    ca = trustme.CA()
    ca.file = str(tmp_path_factory.mktemp("authority") / "ca.pem")
    ca.cert_pem.write_to_path(ca.file)
    return ca


def make_tls(authority, host, **options):
    """Return the server's side of TLS for a host."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host, **options).configure_cert(context)
    return context


@pytest.mark.parametrize("case", ["unknown authority", "no such bundle", "no certificate", "wrong host", "expired"])
def test_certificate_not_trusted(run, old_output, authority, case):
    host = "localhost" if case == "wrong host" else "127.0.0.1"
    options = {"not_after": trustme.datetime.datetime(2020, 1, 1)} if case == "expired" else {}
    bundles = {"unknown authority": None, "no such bundle": "/no/such.pem", "no certificate": __file__}
    with ScriptedServer(say(PCM), tls=make_tls(authority, host, **options)) as server:
        result = run(server=server, env={"WEBSOCKET_CLIENT_CA_BUNDLE": bundles.get(case, authority.file)})
        assert not server.requests
    words = {"wrong host": "doesn't match|not valid for", "expired": "expired", "no certificate": "X509"}
    words = f"({words.get(case, 'issuer')}).*the host's name, your clock, and the file that WEBSOCKET_CLIENT_CA_BUNDLE"
    if library_version() < (1, 6):  # Python 3.6 does not say what is wrong with a certificate
        words = "cannot be read" if case == "wrong host" else "WEBSOCKET_CLIENT_CA_BUNDLE"
    check_fault(result, old_output, f"No connection to {server.url}.*{words}")


def test_no_tls_where_tls_was_asked_for(run, old_output):
    with ScriptedServer(refusal(400), raw=True) as server:
        result = run("--ws-url", f"wss://127.0.0.1:{server.port}/")
    check_fault(result, old_output, f"No connection to wss://127.0.0.1:{server.port}/.*SSL.*{CHECK}")


def run_behind(run, proxy, url="wss://api.example:443/", **env):
    """Run the script behind a proxy, in every version of the library, which differ in what they exempt."""
    return run("--ws-url", url, "--timeout", "2", env={"https_proxy": proxy, "no_proxy": "none.example", **env})


def test_private_authority_behind_a_proxy_that_sees_no_key(run, tmp_path, authority):
    seen = []

    def tunnel(peer):
        seen.append(peer.sock.recv(65536))
        peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with socket.create_connection(("127.0.0.1", server.port)) as onward:
            threading.Thread(target=forward, args=(onward, peer.sock, []), daemon=True).start()
            forward(peer.sock, onward, seen)

    tls = make_tls(authority, "127.0.0.1")
    with ScriptedServer(say(PCM), tls=tls) as server, ScriptedServer(tunnel, raw=True) as proxy:
        address = f"http://127.0.0.1:{proxy.port}"
        result = run_behind(run, address, server.url, WEBSOCKET_CLIENT_CA_BUNDLE=authority.file)
    assert result.code == 0 and read_wav(tmp_path / "output.wav") == (PCM, 24000)
    assert seen[0].startswith(f"CONNECT 127.0.0.1:{server.port} ".encode())
    assert len(seen) > 1 and KEY.encode() not in b"".join(seen)


def forward(source, target, seen):
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            seen.append(data)
            target.sendall(data)


@pytest.mark.parametrize("status", [403, 407, 502])
def test_proxy_that_refuses(run, old_output, status):
    with ScriptedServer(lambda peer: (peer.sock.recv(65536), refusal(status)(peer)), raw=True) as proxy:
        result = run_behind(run, f"http://user:S3cret@127.0.0.1:{proxy.port}")
    words = f"{status}.*https_proxy.*the proxy, its user and its password"
    check_fault(result, old_output, f"No connection to wss://api.example:443/.*{words}")
    assert "S3cret" not in result.err


PROXIES = [
    "S3cret@127.0.0.1:1",
    "S3cret@no-such-proxy.invalid:3128",
    *[f"S3cret{mark}9@x.invalid:1" for mark in "#/?[]"],
]


@pytest.mark.parametrize("proxy", PROXIES)
def test_proxy_that_is_not_there_or_has_a_password_that_is_not_quoted(run, old_output, proxy):
    result = run_behind(run, "http://user:" + proxy)
    check_fault(result, old_output, "No connection to wss://api.example:443/.*https_proxy")
    assert "S3cret" not in result.err and "user:" not in result.err


@pytest.mark.parametrize("exempt", [None, "127.0.0.1"])
def test_proxy_variables_hold_for_ws_as_in_other_tools(run, tmp_path, exempt):
    env = {"http_proxy": "http://127.0.0.1:1", "no_proxy": exempt or "none.example"}
    with ScriptedServer(say(PCM)) as server:
        assert run(server=server, env=env).code == (0 if exempt else 1)
        assert server.connections == (1 if exempt else 0)
