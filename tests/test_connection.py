"""The way to the service: what stands in it is named in one line, and the key goes nowhere else."""

import re
import runpy
import socket

import pytest
import trustme

from conftest import HOST_LINE, KEY, SCRIPT, V2_PATH, check_fault, edit_script, library_version
from scripted_server import PCM, ScriptedServer, refusal, say

HAS_BODIES = library_version() >= (1, 6)  # older libraries drop the body of a refusal
LAX = {"PYTHONWARNINGS": None}  # the oldest library leaves the socket open where nobody listens


@pytest.mark.parametrize("url", ["wss://no-such-host.invalid/", "ws://127.0.0.1:1/", "wss://[::1]:1/", "wss://a..b/"])
def test_nobody_there(run, old_output, url):
    """Where no TLS has begun, nothing is said of clocks and certificates."""
    result = run("--ws-url", url, env=LAX)
    check_fault(result, old_output, f"{re.escape(url)}waves.*stream: .*http_proxy.*https_proxy")
    assert not re.search("(?i)clock|certificate|CA_BUNDLE", result.err)


ANSWERS = [
    b"",
    b"SSH-2.0-OpenSSH_9.2",
    b"HTTP/1.1 abc\r\n\r\n",
    b"\xff\xfe\xfd\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: AAAA\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nSet-Cookie: S3cret/b=1\r\n\r\n",
    b"HTTP/1.1 401 No\r\nContent-Length: x\r\n\r\n",
]


@pytest.mark.parametrize("asked", ["ws", "wss", "proxy"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_something_that_is_no_websocket(run, old_output, answer, asked):
    def play(peer):
        peer.sock.recv(65536)
        peer.send(answer)
        peer.sock.shutdown(socket.SHUT_WR) if answer else peer.wait()

    with ScriptedServer(play, raw=True) as server:
        address = f"127.0.0.1:{server.port}"
        if asked == "proxy":
            result = run_behind(run, "http://user:S3cret@" + address)
        else:
            result = run("--ws-url", f"{asked}://{address}/", "--timeout", "0.7")
    check_fault(result, old_output, "No connection to .*: .*Check " if answer else "timed out")
    assert "S3cret" not in result.err


@pytest.mark.parametrize("status", [200, 401, 403, 404, 410, 429, 500])
def test_refused_handshake(run, old_output, status):
    """The service's words stand behind the status, and advice only where it is sure."""
    body = '{"request_id": "task_6ba7b810-9dad", "message": "<Sorry>, disk_full"}'
    with ScriptedServer(refusal(status, f"X-Key: {KEY}", body=body.encode())) as server:
        url = server.url.rstrip("/") + V2_PATH
        result = run("--ws-url", url + "?timeout=20", server=server)
    reason = re.escape(body) if HAS_BODIES else "no reason given"
    advice = " .*API key.*path.*" if status in (401, 403) else ""
    check_fault(result, old_output, f"{url}: .*status {status}, {reason}\\.{advice}$")
    assert "Origin" not in server.requests[0].headers  # which is refused where a proxy changes Host


BODIES = {
    "Apache": ('<!DOCTYPE HTML PUBLIC "-//IETF//DTD HTML 2.0//EN">\n<h1>Not Found</h1>\nApache', "Not Found Apache"),
    "lighttpd": ('<?xml version="1.0"?>\n<!DOCTYPE html>\n<html lang="en">\n <h1>403 Forbidden</h1>', "403 Forbidden"),
    "Varnish": ("<!DOCTYPE html>\n<html>\n <h3>Guru Meditation:</h3>\n <p>XID: 2</p>", "Guru Meditation: XID: 2"),
    "style": ("<html><STYLE>a>b\n{c}</STYLE><script>if(1>0){}</script>Busy", "Busy"),
    "megabytes": ("<html>Busy" + "<style>" * 500_000, "Busy"),
    "JSON": ('{"message":\n\t"a  <b>\u00a0c"}\r\n', '{"message": "a <b> c"}'),
}


@pytest.mark.skipif(not HAS_BODIES, reason="the library drops them")
@pytest.mark.parametrize(("body", "words"), BODIES.values(), ids=BODIES)
def test_body_of_a_refusal_is_quoted_as_text(run, old_output, body, words):
    """Megabytes, in which a search for markup could take minutes, are quoted before this test is given up."""
    check_fault(run(play=refusal(503, body=body.encode())), old_output, rf"status 503, {re.escape(words)}\.$")


@pytest.mark.parametrize("model", ["lightning-v2", "lightning_v3.1_pro"])
@pytest.mark.parametrize("status", [404, 410])
def test_lightning_v2_is_retired_where_it_was_hosted(run, old_output, status, model):
    names = runpy.run_path(str(SCRIPT))
    advice = f" .*{names['LIVE_MODEL']} .*{names['LIVE_VOICE']}.*" if model == "lightning-v2" else ""
    with ScriptedServer(refusal(status)) as server:
        script = edit_script(old_output, (HOST_LINE, f'HOST = "{server.url[:-1]}"'))
        check_fault(run("--model", model, script=script), old_output, f"status {status}, no reason given\\.{advice}$")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("header", ["Location", "X-Location"])
def test_redirect_is_named_and_not_followed(run, old_output, status, header):
    with ScriptedServer(lambda peer: peer.hear()) as other:
        with ScriptedServer(refusal(status, f"{header}: {other.url}?{KEY}")) as server:
            result = run(server=server)
    words = f".*{other.url}.*API key" if header == "Location" and (HAS_BODIES or status < 307) else ""
    check_fault(result, old_output, f"{server.url}.*status {status}, {words}")
    assert (server.connections, other.connections) == (1, 0)


@pytest.mark.parametrize("case", ["unknown authority", "no such bundle", "no certificate", "wrong host", "expired"])
def test_certificate_not_trusted(run, old_output, authority, case):
    host = "localhost" if case == "wrong host" else "127.0.0.1"
    options = {"not_after": trustme.datetime.datetime(2020, 1, 1)} if case == "expired" else {}
    bundles = {"unknown authority": None, "no such bundle": "/no/such.pem", "no certificate": __file__}
    with ScriptedServer(say(PCM), tls=authority.context(host, **options)) as server:
        result = run(server=server, env={"WEBSOCKET_CLIENT_CA_BUNDLE": bundles.get(case, authority.file)})
        assert not server.requests
    words = {"no certificate": "X509", "wrong host": "valid for|match|cannot be read"}  # a ValueError in Python 3.6
    check_fault(result, old_output, f"{server.url}.*({words.get(case, 'certificate verify failed')})")


def run_behind(run, proxy, url="wss://api.example:443/", **env):
    """Run the script behind a proxy, in every version of the library, which differ in what they exempt."""
    return run("--ws-url", url, "--timeout", "2", env={"https_proxy": proxy, "no_proxy": "none.example", **LAX, **env})


PROXIES = ["@127.0.0.1:1", "@127.0.0.1:{port}", "@no-such-proxy.invalid:3128", "#9@x.invalid:1", "[9@x.invalid:1"]


@pytest.mark.parametrize("proxy", PROXIES)
def test_proxy_that_refuses_is_not_there_or_has_a_password_that_is_not_quoted(run, old_output, proxy):
    with ScriptedServer(lambda peer: (peer.sock.recv(65536), refusal(407)(peer)), raw=True) as refusing:
        result = run_behind(run, "http://user:S3cret" + proxy.format(port=refusing.port))
    check_fault(
        result, old_output, f"No connection to wss://api.example:443/.*{'407' if 'port' in proxy else ''}.*https_proxy"
    )
    assert "S3cret" not in result.err and "user:" not in result.err
