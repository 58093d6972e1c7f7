"""The way to the service: what stands in it is named in one line, and the key goes nowhere else."""

import contextlib
import re
import socket
import threading

import pytest
import trustme

from conftest import HOST_LINE, KEY, LIVE_PATH, V2_PATH, check_fault, edit_script, library_version, read_wav
from scripted_server import PCM, ScriptedServer, refusal, say

CHECK = "Check the URL, the network, the proxy of https_proxy, your clock and WEBSOCKET_CLIENT_CA_BUNDLE."
CHECK_KEY = "Check the API key: missing, mistyped, of another product, or past its usage limit."
LATER = "Try again later: the service is busy or at fault."
CHECK_PATH = "Check the URL and its path; the API key follows no redirect."
RETIRED = "Lightning V2 is retired: use --model lightning_v3.1 --voice-id magnus."

LAX = {"PYTHONWARNINGS": None}  # the oldest library leaves the socket open where nobody listens
NOBODY = "wss://no-such-host.invalid/ ws://no-such-host.invalid:7/ wss://a..b/ ws://127.0.0.1:1/ wss://[::1]:1/".split()


@pytest.mark.parametrize("url", NOBODY)
def test_nobody_there(run, old_output, url):
    check_fault(run("--ws-url", url, env=LAX), old_output, f"No connection to {re.escape(url)}waves.*stream: .*{CHECK}")


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_no_answer_to_the_handshake(run, old_output, scheme):
    with ScriptedServer(lambda peer: peer.wait(), raw=True) as server:
        result = run("--ws-url", f"{scheme}://127.0.0.1:{server.port}/", "--timeout", "0.7")
    check_fault(result, old_output, "timed out")


ANSWERS = [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1\r\n\r\n", b"\xff\xfe\xfd\r\n\r\n", b"", b"\r\n", b"\r\n\r\n"]
ACCEPTED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
ANSWERS += [ACCEPTED + b"Sec-WebSocket-Accept: AAAA\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n"]
ANSWERS += [b"HTTP/1.1 302 Found\r\nSet-Cookie: S3cret/b=1\r\n\r\n", b"HTTP/1.1 401 No\r\nContent-Length: x\r\n\r\n"]


@pytest.mark.parametrize("answer", ANSWERS)
def test_something_that_is_no_websocket(run, old_output, answer):
    def play(peer):
        peer.sock.recv(65536)
        peer.send(answer)
        peer.sock.shutdown(socket.SHUT_RDWR)

    with ScriptedServer(play, raw=True) as server:
        result = run("--timeout", "0.7", server=server)
    advice = CHECK_KEY if b" 401 " in answer and library_version() < (1, 6) else CHECK  # older ones read no body
    check_fault(result, old_output, f"No connection to {server.url}.*{advice}")
    assert "S3cret" not in result.err


REFUSALS = [(200, CHECK_PATH), (400, CHECK_PATH), (404, CHECK_PATH), (410, CHECK_PATH), (426, CHECK_PATH)]
REFUSALS += [(401, CHECK_KEY), (403, CHECK_KEY), (429, LATER), (500, LATER), (503, LATER)]


@pytest.mark.parametrize("path", [V2_PATH, LIVE_PATH])
@pytest.mark.parametrize(("status", "advice"), REFUSALS)
def test_refused_handshake(run, old_output, path, status, advice):
    """The words of the service stand behind the status; libraries before 1.6 drop them."""
    reason = '{"message": "Sorry."}' if library_version() >= (1, 6) else "no reason given"
    with ScriptedServer(refusal(status, f"X-Key: {KEY}", body=b'{"message": "Sorry."}')) as server:
        url = server.url.rstrip("/") + path
        words = f"No connection to {url}: the handshake was refused with status {status}, {reason}. {advice}"
        check_fault(run("--ws-url", url + "?timeout=20", server=server), old_output, words)


@pytest.mark.parametrize(("model", "advice"), [("lightning-v2", RETIRED), ("lightning_v3.1", CHECK_PATH)])
@pytest.mark.parametrize("status", [404, 410])
def test_lightning_v2_is_retired_where_it_was_hosted(run, old_output, status, model, advice):
    """Elsewhere a 404 means the path."""
    with ScriptedServer(refusal(status)) as server:
        script = edit_script(old_output, (HOST_LINE, f'HOST = "{server.url[:-1]}"'))
        check_fault(run("--model", model, script=script), old_output, f"status {status}, no reason given. {advice}")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("target", ["another host", "nowhere"])
def test_redirect_is_refused(run, old_output, status, target):
    with ScriptedServer(lambda peer: peer.hear()) as other:
        headers = [f"Location: {other.url}?{KEY}"] if target == "another host" else []
        with ScriptedServer(refusal(status, *headers)) as server:
            result = run(server=server)
    words = f"No connection to {server.url}.*: the handshake was refused with status {status}, .*{CHECK_PATH}"
    check_fault(result, old_output, words)
    assert (server.connections, other.connections) == (1, 0)


@pytest.mark.parametrize("case", ["unknown authority", "no such bundle", "no certificate", "wrong host", "expired"])
def test_certificate_not_trusted(run, old_output, authority, case):
    host = "localhost" if case == "wrong host" else "127.0.0.1"
    options = {"not_after": trustme.datetime.datetime(2020, 1, 1)} if case == "expired" else {}
    bundles = {"unknown authority": None, "no such bundle": "/no/such.pem", "no certificate": __file__}
    with ScriptedServer(say(PCM), tls=authority.context(host, **options)) as server:
        result = run(server=server, env={"WEBSOCKET_CLIENT_CA_BUNDLE": bundles.get(case, authority.file)})
        assert not server.requests
    words = {"wrong host": "doesn't match|not valid for", "expired": "expired", "no certificate": "X509"}
    words = f"({words.get(case, 'issuer')}).*{CHECK}"
    if library_version() < (1, 6):  # Python 3.6 does not say what is wrong with a certificate
        words = "cannot be read" if case == "wrong host" else "WEBSOCKET_CLIENT_CA_BUNDLE"
    check_fault(result, old_output, f"No connection to {server.url}.*{words}")


def run_behind(run, proxy, url="wss://api.example:443/", **env):
    """Run the script behind a proxy, in every version of the library, which differ in what they exempt."""
    return run("--ws-url", url, "--timeout", "2", env={"https_proxy": proxy, "no_proxy": "none.example", **LAX, **env})


def test_private_authority_behind_a_proxy_that_sees_no_key(run, tmp_path, authority):
    seen = []

    def tunnel(peer):
        seen.append(peer.sock.recv(65536))
        peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        with socket.create_connection(("127.0.0.1", server.port)) as onward:
            threading.Thread(target=forward, args=(onward, peer.sock, []), daemon=True).start()
            forward(peer.sock, onward, seen)

    tls = authority.context("127.0.0.1")
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


PROXIES = ["S3cret@127.0.0.1:1", "S3cret@no-such-proxy.invalid:3128", "S3cret@127.0.0.1:{port}"]
PROXIES += [f"S3cret{mark}9@x.invalid:1" for mark in "#/?[]"]


@pytest.mark.parametrize("proxy", PROXIES)
def test_proxy_that_refuses_is_not_there_or_has_a_password_that_is_not_quoted(run, old_output, proxy):
    with ScriptedServer(lambda peer: (peer.sock.recv(65536), refusal(407)(peer)), raw=True) as refusing:
        result = run_behind(run, "http://user:" + proxy.format(port=refusing.port))
    words = f"No connection to wss://api.example:443/.*{'407.*' * ('port' in proxy)}{CHECK}"
    check_fault(result, old_output, words)
    assert "S3cret" not in result.err and "user:" not in result.err


@pytest.mark.parametrize("exempt", [None, "127.0.0.1"])
def test_proxy_variables_hold_for_ws_as_in_other_tools(run, tmp_path, exempt):
    env = {"http_proxy": "http://127.0.0.1:1", "no_proxy": exempt or "none.example", **LAX}
    with ScriptedServer(say(PCM)) as server:
        assert run(server=server, env=env).code == (0 if exempt else 1)
        assert server.connections == (1 if exempt else 0)
