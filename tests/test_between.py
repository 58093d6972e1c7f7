"""What stands before the service and behind the script: real proxies, server stacks and players."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from conftest import check_fault, environment_for, finish, library_version, partial_files, read_wav, start
from scripted_server import PCM, ScriptedServer, say
from test_connection import LAX
from test_faults import arrived, wait_for
from test_speech import read_stream

COMMANDS = {"nginx": "nginx -p . -e error.log -c", "haproxy": "haproxy -db -f", "squid": f"squid -Nn s{os.getpid()} -f"}
CONFIGURATIONS = {
    "nginx": """daemon off; user root; pid nginx.pid; error_log error.log notice; events {}
http { access_log off;
    proxy_temp_path t; client_body_temp_path t; fastcgi_temp_path t; uwsgi_temp_path t; scgi_temp_path t;
    server {
        listen 127.0.0.1:%(port)d %(tls)s;
        location / { proxy_pass http://127.0.0.1:%(upstream)d; proxy_read_timeout %(idle)s; %(lines)s }
    }
}""",
    "haproxy": """listen speech
    bind 127.0.0.1:%(port)d
    server upstream 127.0.0.1:%(upstream)d
    mode http
    retries 0
    timeout tunnel %(idle)s""",
    "squid": """http_port 127.0.0.1:%(port)d
cache_effective_user nobody
pid_filename none
access_log none
shutdown_lifetime 0 seconds
auth_param basic program /bin/sed -u s,^user.S3cret%%23/?@:%%25$,OK,
acl known proxy_auth REQUIRED
acl SSL_ports port 443
http_access deny CONNECT !SSL_ports
http_access allow known""",
    "tornado": """import tornado.ioloop, tornado.web, tornado.websocket
class Speech(tornado.websocket.WebSocketHandler):
    def on_message(self, message):
        self.write_message({"data": {"audio": "AQIDBA=="}, "status": "complete"})
tornado.web.Application([("/.*", Speech)]).listen(%(port)d, "127.0.0.1")
tornado.ioloop.IOLoop.current().start()""",
    "starlette": """import asyncio, base64, starlette.applications, starlette.routing, uvicorn
async def speak(ws):
    await ws.accept()
    if (await ws.receive_json())["text"] == "No credit":
        return await ws.close(1008, "No credit")
    for number in range(300):
        await ws.send_json({"data": {"audio": base64.b64encode(number.to_bytes(2, "little") * 2400).decode()}})
        await asyncio.sleep(0.02)
    await ws.send_json({"status": "complete"})
    await ws.receive()
route = starlette.routing.WebSocketRoute("/waves/v1/lightning-v2/get_speech/stream", speak)
uvicorn.run(starlette.applications.Starlette(routes=[route]), port=%(port)d, ws_ping_interval=.5, ws_ping_timeout=4)""",
}
STARLETTES_PCM = b"".join(number.to_bytes(2, "little") * 2400 for number in range(300))  # 30 s, sent in 6 s
UPGRADE = "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;"
HOST = UPGRADE + "proxy_set_header Host $host;"
IDLE = say(PCM, then=lambda peer: peer.wait())
PROXIES = [  # the proxy, how it is set, what the service does, words that the user reads
    ("haproxy", {}, say(PCM), ""),
    ("nginx", {}, say(PCM), ""),
    ("nginx", {"lines": HOST}, say(PCM), ""),
    ("nginx", {"tls": "ssl; ssl_certificate tls.pem; ssl_certificate_key tls.pem"}, say(PCM), ""),
    ("haproxy", {"upstream": 1}, None, "status 503, 503 Service Unavailable No server is available"),
    ("nginx", {"upstream": 1}, None, "status 502, 502 Bad Gateway 502 Bad Gateway nginx"),
    ("nginx", {"lines": "proxy_http_version 1.1;"}, say(PCM), "status 426, Failed to open a WebSocket"),
    ("haproxy", {"idle": "2s"}, IDLE, "The connection was lost: "),
    ("nginx", {"idle": "2s"}, IDLE, "The connection was lost: "),
]
PLAYERS = {
    "aplay": "aplay -q -D file:heard,raw",
    "play": "AUDIODRIVER=alsa AUDIODEV=file:heard,raw play -q -t wav -",
    "ffplay": "SDL_AUDIODRIVER=disk SDL_DISKAUDIOFILE=heard ffplay -nodisp -autoexit -",
}
FFPROBE = "ffprobe -v error -show_entries stream=codec_name,sample_rate,channels,duration -of csv=p=0"
READERS = {"soxi -r": "24000", "soxi -D": "0.000000", FFPROBE: "pcm_s16le,24000,1,1.066667"}  # 0 s: unknown


def find(program):
    return shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin") or pytest.skip(f"{program} is not installed")


@contextlib.contextmanager
def serve(name, folder, port=0, tls="", **values):
    """Run a program on a free port, and yield its process with its `port` and `url`."""
    program, *flags = COMMANDS[name].split() if name in COMMANDS else [sys.executable]
    if name not in COMMANDS:
        pytest.importorskip(name)
    with socket.socket() as holder:  # keeps the port from all who want just any port
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(("127.0.0.1", port))
        except OSError as error:
            pytest.skip(f"port {port} is not to be had: {error.strerror}")
        port = holder.getsockname()[1]
        values = {"port": port, "tls": tls, "lines": UPGRADE, "idle": "60s", **values}
        (folder / name).write_text(CONFIGURATIONS[name] % values + "\n")
        with subprocess.Popen([find(program), *flags, name], cwd=folder) as process:
            try:
                with socket.socket() as probe:
                    wait_for(lambda: probe.connect_ex(("127.0.0.1", port)) == 0)
                process.port, process.url = port, f"{'wss' if tls else 'ws'}://127.0.0.1:{port}/"
                yield process
            finally:
                process.terminate()


@pytest.mark.parametrize(("proxy", "settings", "play", "words"), PROXIES)
def test_service_behind_a_proxy(run, old_output, authority, proxy, settings, play, words):
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(old_output / "tls.pem"))
    with ScriptedServer(play) as server, serve(proxy, old_output, **{"upstream": server.port, **settings}) as behind:
        result = run(server=behind, env={"WEBSOCKET_CLIENT_CA_BUNDLE": authority.file})
    if words:
        words = words if library_version() >= (1, 6) else words[:10]  # older ones do not read what follows a status
        check_fault(result, old_output, words, kept=PCM if play is IDLE else b"")
    else:
        assert result.code == 0 and read_wav(old_output / "output.wav") == (PCM, 24000)
    assert "<" not in result.err


def test_reload_of_a_proxy_in_mid_speech(run, tmp_path):
    def reload(peer):
        nginx.send_signal(signal.SIGHUP)
        wait_for(lambda: "gracefully shutting down" in (tmp_path / "error.log").read_text())
        peer.chunk(PCM)
        peer.complete()

    with ScriptedServer(say(PCM, then=reload)) as server, serve("nginx", tmp_path, upstream=server.port) as nginx:
        assert run(server=nginx).code == 0
    assert read_wav(tmp_path / "output.wav") == (PCM * 2, 24000)


def test_squid_lets_one_user_through_to_port_443(run, tmp_path):
    def run_behind_squid(user, port, exempt="none.example"):
        env = {"http_proxy": f"http://{user}127.0.0.1:{squid.port}", "no_proxy": exempt, **LAX}
        result = run("--ws-url", f"ws://127.0.0.1:{port}/", env=env)
        assert "S3cret" not in result.err
        return result.lines[-1]

    known = "user:S3cret%23%2F%3F%40%3A%25@"
    with ScriptedServer(say(PCM)) as server, serve("squid", tmp_path) as squid:
        assert "CONNECT via proxy status: 407" in run_behind_squid("", 443)
        assert "CONNECT via proxy status: 407" in run_behind_squid("user:S3cret@", 443)
        assert "CONNECT via proxy status: 403" in run_behind_squid(known, server.port)
        assert "Saved: " in run_behind_squid(known, server.port, exempt="127.0.0.1")
        with serve("nginx", tmp_path, port=443, upstream=server.port):
            assert "Saved: " in run_behind_squid(known, 443)


@pytest.mark.parametrize("lines", [UPGRADE, HOST], ids=["nginx's Host", "the client's Host"])
def test_tornado_behind_a_proxy_finds_no_foreign_origin(run, tmp_path, lines):
    with serve("tornado", tmp_path) as tornado, serve("nginx", tmp_path, upstream=tornado.port, lines=lines) as nginx:
        assert run(server=nginx).code == 0
    assert read_wav(tmp_path / "output.wav") == (b"\1\2\3\4", 24000)


def test_starlette_refuses_closes_and_is_ended(run, old_output):
    with serve("starlette", old_output) as starlette:
        check_fault(run("--ws-url", starlette.url + "nowhere"), old_output, "refused with status 403, no reason given")
        check_fault(run("--text", "No credit", server=starlette), old_output, "close code 1008, No credit")
        process = start(env=environment_for(starlette), cwd=old_output)
        wait_for(lambda: any(path.stat().st_size > 44 for path in partial_files(old_output)))
    result = finish(process)
    kept, _ = read_wav(*partial_files(old_output))
    assert STARLETTES_PCM.startswith(kept)
    check_fault(result, old_output, "hung up in mid-speech: close code 1012, ", kept)


def test_starlette_pings_while_the_reader_is_slow(tmp_path):
    """30 s of speech are read in 7 s; if its pings had no answer, the server would hang up after 4.5 s."""
    with serve("starlette", tmp_path) as starlette:
        process = start("-o", "-", env=environment_for(starlette), cwd=tmp_path)
        heard, began = b"", time.perf_counter()
        while piece := process.stdout.read(4800):
            heard += piece
            time.sleep(max(0, began + len(heard) / 200_000 - time.perf_counter()))
        assert finish(process).code == 0 and read_stream(heard) == STARLETTES_PCM


@pytest.mark.parametrize("player", PLAYERS)
def test_players_play_a_live_stream(tmp_path, player):
    """ffplay leaves out its last buffer, which is silence here. Players also put silence where they wait."""
    find(player)
    pcm = PCM.replace(b"\0", b"\1")
    then = lambda peer: (time.sleep(0.2), peer.chunk(pcm), peer.chunk(bytes(4096)), peer.complete())  # noqa: E731
    with ScriptedServer(say(pcm, then=then)) as server:
        process = start("-o", "-", env=environment_for(server), cwd=tmp_path)
        subprocess.run(PLAYERS[player], shell=True, check=True, stdin=process.stdout, cwd=tmp_path, timeout=30)
        assert finish(process).code == 0
    assert (tmp_path / "heard").read_bytes().replace(b"\0", b"") == pcm * 2


@pytest.mark.parametrize("command", READERS)
def test_readers_of_a_killed_run_and_of_a_copy(run, tmp_path, command):
    find(command.split()[0])
    with ScriptedServer(IDLE) as server, start(env=environment_for(server), cwd=tmp_path) as process:
        wait_for(lambda: arrived(tmp_path, PCM))
        process.kill()
    (killed,) = partial_files(tmp_path)
    assert run("-o", "-", play=say(PCM)).out == killed.read_bytes()  # which is what tee copies
    assert subprocess.check_output([*command.split(), killed], text=True).strip() == READERS[command]
    assert read_wav(killed) == (PCM, 24000)
