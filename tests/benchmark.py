"""What the script costs, beside a client written the usual way and beside the least that is possible.

    python tests/benchmark.py                  a table in Markdown, after about five minutes
    python tests/benchmark.py --runs 9         the same with more runs behind each median
    python tests/benchmark.py --also OTHER.py  the same with another version of the script beside it

The peers take turns, run by run, against one server that sends 24 kHz audio as fast as it is read,
1 s in a chunk where nothing else is said. "usual" keeps WebSocketApp's callbacks and defaults,
collects the chunks in a list and joins them at the end; "websockets" loops over that library's
synchronous client, as one would write it today, and writes each chunk into the file; "floor" reads
the same bytes from a plain socket and decodes JSON and base64, nothing else. Peak memory and CPU
seconds are the operating system's, of the whole process with its start; TTFB is from the server's
send to the client's report.
A further connection over wss:// is any but the first of a process; all peers trust the certificates
of the system and that of the server.
"""

import argparse
import base64
import datetime
import hashlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time

TESTS = os.path.dirname(os.path.abspath(__file__))
SCRIPT = os.path.join(os.path.dirname(TESTS), "ws_streaming_api.py")
PYTHON = os.environ.get("SCRIPT_PYTHON", sys.executable)
MINUTE, HOUR = 60, 3600

USUAL = """
import base64, json, sys, time, wave
import websocket

chunks = []
start = time.time()

def on_open(ws):
    ws.send(json.dumps({"text": "Hello.", "voice_id": "ryan", "sample_rate": 24000}))

def on_message(ws, message):
    data = json.loads(message)
    if data["status"] == "chunk":
        if not chunks:
            print("TTFB:", time.time() - start, file=sys.stderr, flush=True)
        chunks.append(base64.b64decode(data["data"]["audio"]))
    elif data["status"] == "complete":
        ws.close()

def on_error(ws, error):
    print("Error:", error, file=sys.stderr)

def on_close(ws, code, reason):
    with wave.open("output.wav", "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24000)
        file.writeframes(b"".join(chunks))

websocket.WebSocketApp(
    sys.argv[1], header=["Authorization: Bearer sk_local"],
    on_open=on_open, on_message=on_message, on_error=on_error, on_close=on_close,
).run_forever()
"""

FLOOR = """
import base64, json, socket, sys

host, port, path = sys.argv[1][5:].replace("/", ":").split(":")
sock = socket.create_connection((host, int(port)))
sock.sendall(b"GET /%s HTTP/1.1\\r\\nSec-WebSocket-Key: AAAA\\r\\n\\r\\n" % path.encode())
stream = sock.makefile("rb")
while stream.readline().strip():
    pass
sock.sendall(b"payload")
first = True
while True:
    length = stream.read(2)[1] & 127
    if length > 125:
        length = int.from_bytes(stream.read(2 if length == 126 else 8), "big")
    message = json.loads(stream.read(length))
    if message["status"] == "complete":
        break
    base64.b64decode(message["data"]["audio"])
    if first:
        print("TTFB:", file=sys.stderr, flush=True)
        first = False
"""

WEBSOCKETS = """
import base64, json, sys, wave
from websockets.sync.client import connect

with connect(sys.argv[1], additional_headers={"Authorization": "Bearer sk_local"}, max_size=None) as ws:
    ws.send(json.dumps({"text": "Hello.", "voice_id": "ryan", "sample_rate": 24000}))
    with wave.open("output.wav", "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24000)
        first = True
        for frame in ws:
            message = json.loads(frame)
            if message["status"] == "complete":
                break
            if first:
                print("TTFB:", file=sys.stderr, flush=True)
                first = False
            file.writeframes(base64.b64decode(message["data"]["audio"]))
"""

PEERS = {
    "usual": [PYTHON, "-c", USUAL],
    "websockets": [sys.executable, "-c", WEBSOCKETS],
    "script": [PYTHON, SCRIPT, "--ws-url"],
    "floor": [PYTHON, "-c", FLOOR],
}

FURTHER = """
import time
{before}
for number in range(21):
    if number == 1:
        started = time.process_time()
    {connect}
print((time.process_time() - started) / 20)
"""

# What a program does before its connections, and for each of them.
CONNECTS = {
    "usual": ("import websocket", "websocket.create_connection({url!r}).shutdown()"),
    "websockets": ("from websockets.sync.client import connect", "with connect({url!r}): pass"),
    "script": ("from {module} import connect", "connect({url!r}, 'sk_local').shutdown()"),
    "floor": (
        "import socket, ssl; context = ssl.create_default_context()",
        "context.wrap_socket(socket.create_connection(('127.0.0.1', {port})), server_hostname='127.0.0.1').close()",
    ),
}


# --- The server ---------------------------------------------------------------


def serve():
    """Send as many chunks of that size as the path says; print when the first byte came and the first chunk left."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    complete = frame(b'{"request_id": "r", "status": "complete"}')
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        first_byte, path = accept_handshake(sock)
        count, size = map(int, path.decode().strip("/").split("x"))
        audio = base64.b64encode(os.urandom(size)).decode()
        chunk = frame(json.dumps({"request_id": "r", "status": "chunk", "data": {"audio": audio}}).encode())
        at_once = max(1, 65536 // len(chunk))
        sock.recv(65536)
        first_send = time.monotonic()
        for sent in range(0, count, at_once):
            sock.sendall(chunk * min(at_once, count - sent))
        sock.sendall(complete)
        print(json.dumps([first_byte, first_send]), flush=True)
        say_goodbye(sock)


def serve_tls(listener, context):
    """Accept one connection after the other and say nothing."""
    while True:
        sock, _ = listener.accept()
        try:
            sock = context.wrap_socket(sock, server_side=True)
            accept_handshake(sock)
        except (OSError, IndexError):
            pass  # the floor leaves after the handshake of TLS
        say_goodbye(sock)


def accept_handshake(sock):
    """Answer a handshake; return when its first byte came, and its path."""
    request = sock.recv(1)
    first_byte = time.monotonic()
    while b"\r\n\r\n" not in request:
        data = sock.recv(4096)
        if not data:
            raise ConnectionError("the client has gone")
        request += data
    key = request.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    sock.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    return first_byte, request.split()[1]


def say_goodbye(sock):
    try:
        if sock.recv(4096):
            sock.sendall(b"\x88\x02\x03\xe8")  # a close frame for whatever is still said
    except OSError:
        pass
    sock.close()


def frame(data):
    """Return the bytes of one text message."""
    length = bytes([len(data)]) if len(data) < 126 else b"\x7e" + len(data).to_bytes(2, "big")
    return b"\x81" + length + data


# --- The measurement ----------------------------------------------------------


def measure(server, peer, seconds, size=48000):
    """Run one client once, with chunks of that size, and return its figures: s, and MiB."""
    environment = {"SMALLEST_API_KEY": "sk_local", "SMALLEST_VOICE_ID": "ryan", "SMALLEST_TEXT": "Hello."}
    with tempfile.TemporaryDirectory() as folder:
        command = [*PEERS[peer], f"ws://127.0.0.1:{server.port}/{seconds * 48000 // size}x{size}"]
        started = time.monotonic()
        client = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, env={**os.environ, **environment})
        reported = None
        for line in client.stderr:
            if reported is None and line.startswith(b"TTFB:"):
                reported = time.monotonic()
        _, status, usage = os.wait4(client.pid, 0)
        ended = time.monotonic()
        client.returncode = status
        if status or reported is None:
            raise SystemExit(f"{peer} failed")
        if peer != "floor" and os.path.getsize(os.path.join(folder, "output.wav")) != 44 + seconds * 48000:
            raise SystemExit(f"{peer} lost audio")
    first_byte, first_send = json.loads(server.stdout.readline())
    return {
        "cpu": usage.ru_utime + usage.ru_stime,
        "memory": usage.ru_maxrss / 1024,
        "wall": ended - started,
        "ttfb": reported - first_send,
        "start": first_byte - started,
        "wait": reported - started,
    }


def measure_further_connections(runs):
    """Return the CPU seconds of a further connection over wss:// for each peer, the median of its runs."""
    # Imported here and called last, because a larger parent shows in its children's peak memory.
    import ssl

    import trustme

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve_tls, args=(listener, context), daemon=True).start()
    port = listener.getsockname()[1]
    system = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    figures = {peer: [] for peer in PEERS}
    with tempfile.TemporaryDirectory() as folder:
        bundle = os.path.join(folder, "bundle.pem")
        with open(bundle, "wb") as file:
            file.write(authority.cert_pem.bytes())
            if system:
                with open(system, "rb") as certificates:
                    file.write(certificates.read())
        for _ in range(runs):
            for peer, (python, *arguments) in PEERS.items():
                before, connect = CONNECTS.get(peer, CONNECTS["script"])
                home, name = os.path.split(arguments[0])
                words = {"url": f"wss://127.0.0.1:{port}/", "port": port, "module": name.partition(".")[0]}
                program = FURTHER.format(before=before.format(**words), connect=connect.format(**words))
                environment = {**os.environ, "SSL_CERT_FILE": bundle, "PYTHONPATH": home}
                printed = subprocess.check_output([python, "-c", program], env=environment)
                figures[peer].append(float(printed))
    return {peer: {"cpu": median(values)} for peer, values in figures.items()}


def median_of_turns(server, peers, seconds, runs, size=48000):
    """Let the peers take turns; return the median of each figure of each peer."""
    figures = {peer: [] for peer in peers}
    for _ in range(runs):
        for peer in peers:
            figures[peer].append(measure(server, peer, seconds, size))
    return {peer: {name: median(run[name] for run in runs) for name in runs[0]} for peer, runs in figures.items()}


def median(values):
    """Return the median; a larger parent, with the module statistics, would show in its children's peak memory."""
    values = sorted(values)
    return (values[len(values) // 2] + values[(len(values) - 1) // 2]) / 2


def others():
    """Return the peers that the script is compared with."""
    return [peer for peer in PEERS if peer != "script"]


def row(name, figures, key, shown):
    """Return a line of the table: the figure of every peer, and what that of the script is of the others."""
    cells = [shown(figures[peer][key]) if peer in figures else "not run" for peer in PEERS]
    script = figures["script"][key]
    for peer in others():
        if peer in figures:
            base = figures[peer][key]
            cells.append(f"1/{base / script:.1f}" if base > 2 * script else f"{script / base:.2f}")
        else:
            cells.append("")
    return "| " + " | ".join([name, *cells]) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="runs behind each median")
    parser.add_argument("--also", metavar="SCRIPT", help="another version of the script, measured beside this one")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve()
    if arguments.also:
        PEERS["other script"] = [PYTHON, os.path.abspath(arguments.also), "--ws-url"]

    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    server.port = int(server.stdout.readline())
    try:
        report(server, arguments.runs)
    finally:
        server.kill()
    return 0


def report(server, runs):
    ten = median_of_turns(server, PEERS, 10 * MINUTE, runs)
    lean = [peer for peer in PEERS if peer != "usual"]
    medium = median_of_turns(server, lean, 10 * MINUTE, runs, 7500)
    small = median_of_turns(server, lean, 10 * MINUTE, runs, 960)
    first = median_of_turns(server, PEERS, 1, 3 * runs)

    def seconds(figure):
        return f"{figure:.2f} s"

    def milliseconds(figure):
        return f"{figure * 1000:.1f} ms"

    def mebibytes(figure):
        return f"{figure:.1f} MiB"

    heads = ["figure", *PEERS, *[f"script of {peer}" for peer in others()]]
    print("| " + " | ".join(heads) + " |")
    print("| " + " | ".join(["---"] * len(heads)) + " |")
    for name, figures, key, shown in (
        ("CPU for 10 min of audio, chunks of 1 s", ten, "cpu", seconds),
        ("CPU for 10 min of audio, chunks of 7.5 kB", medium, "cpu", seconds),
        ("CPU for 10 min of audio, chunks of 20 ms", small, "cpu", seconds),
        ("wall time for 10 min of audio", ten, "wall", seconds),
        ("added to TTFB", first, "ttfb", milliseconds),
        ("start to first byte sent", first, "start", milliseconds),
        ("start to first audio", first, "wait", milliseconds),
    ):
        print(row(name, figures, key, shown), flush=True)
    for name, length, peers in (("1 min", MINUTE, PEERS), ("1 h", HOUR, PEERS), ("10 h", 10 * HOUR, lean)):
        figures = median_of_turns(server, peers, length, 1 if length == HOUR else runs)
        print(row("peak memory, " + name, figures, "memory", mebibytes), flush=True)
    further = measure_further_connections(runs)
    print(row("CPU of a further connection over wss://", further, "cpu", milliseconds), flush=True)
    today = datetime.date.today().isoformat()
    print(f"\nPython {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}, {today}; {runs} runs.")


if __name__ == "__main__":
    sys.exit(main())
