"""What the script costs, beside a client written the usual way and beside the least that is possible.

    python tests/benchmark.py            a table in Markdown, after about four minutes
    python tests/benchmark.py --runs 9   the same with more runs behind each median

The peers take turns, run by run, against one server that sends 1 s of 24 kHz audio a chunk, as
fast as it is read. "usual" keeps WebSocketApp's callbacks and defaults, collects the chunks in a
list and joins them at the end; "websockets" loops over that library's synchronous client, as one
would write it today, and writes each chunk into the file; "floor" reads the same bytes from a plain
socket and decodes JSON and base64, nothing else. Peak memory and CPU seconds are the operating
system's, of the whole process with its start; TTFB is from the server's send to the client's report.
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


# --- The server ---------------------------------------------------------------


def serve():
    """Send as many seconds of audio as the path says; print when the first byte came and the first chunk left."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    audio = base64.b64encode(os.urandom(48000)).decode()
    chunk = frame(json.dumps({"request_id": "r", "status": "chunk", "data": {"audio": audio}}).encode())
    complete = frame(b'{"request_id": "r", "status": "complete"}')
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = sock.recv(1)
        first_byte = time.monotonic()
        while b"\r\n\r\n" not in request:
            request += sock.recv(4096)
        key = request.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        sock.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        sock.recv(65536)
        first_send = time.monotonic()
        for _ in range(int(request.split()[1][1:])):
            sock.sendall(chunk)
        sock.sendall(complete)
        print(json.dumps([first_byte, first_send]), flush=True)
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


def measure(server, peer, seconds):
    """Run one client once and return its figures: s, and MiB."""
    environment = {"SMALLEST_API_KEY": "sk_local", "SMALLEST_VOICE_ID": "ryan", "SMALLEST_TEXT": "Hello."}
    with tempfile.TemporaryDirectory() as folder:
        command = [*PEERS[peer], f"ws://127.0.0.1:{server.port}/{seconds}"]
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


def median_of_turns(server, peers, seconds, runs):
    """Let the peers take turns; return the median of each figure of each peer."""
    figures = {peer: [] for peer in peers}
    for _ in range(runs):
        for peer in peers:
            figures[peer].append(measure(server, peer, seconds))
    return {peer: {name: median(run[name] for run in runs) for name in runs[0]} for peer, runs in figures.items()}


def median(values):
    """Return the median; a larger parent, with the module statistics, would show in its children's peak memory."""
    values = sorted(values)
    return (values[len(values) // 2] + values[(len(values) - 1) // 2]) / 2


def row(name, figures, key, shown):
    """Return a line of the table: the figure of every peer, and what that of the script is of two others."""
    cells = [shown(figures[peer][key]) if peer in figures else "not run" for peer in PEERS]
    script = figures["script"][key]
    for peer in "usual", "floor":
        if peer in figures:
            base = figures[peer][key]
            cells.append(f"1/{base / script:.1f}" if base > 2 * script else f"{script / base:.2f}")
        else:
            cells.append("")
    return "| " + " | ".join([name, *cells]) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="runs behind each median")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve()

    server = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
    server.port = int(server.stdout.readline())
    try:
        report(server, arguments.runs)
    finally:
        server.kill()
    return 0


def report(server, runs):
    ten = median_of_turns(server, PEERS, 10 * MINUTE, runs)
    first = median_of_turns(server, PEERS, 1, 3 * runs)

    def seconds(figure):
        return f"{figure:.2f} s"

    def milliseconds(figure):
        return f"{figure * 1000:.1f} ms"

    def mebibytes(figure):
        return f"{figure:.1f} MiB"

    print("| figure | usual client | `websockets` | this script | floor | of usual | of floor |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, figures, key, shown in (
        ("CPU for 10 min of audio", ten, "cpu", seconds),
        ("wall time for 10 min of audio", ten, "wall", seconds),
        ("added to TTFB", first, "ttfb", milliseconds),
        ("start to first byte sent", first, "start", milliseconds),
        ("start to first audio", first, "wait", milliseconds),
    ):
        print(row(name, figures, key, shown), flush=True)
    lean = [peer for peer in PEERS if peer != "usual"]
    for name, length, peers in (("1 min", MINUTE, PEERS), ("1 h", HOUR, PEERS), ("10 h", 10 * HOUR, lean)):
        figures = median_of_turns(server, peers, length, 1 if length == HOUR else runs)
        print(row("peak memory, " + name, figures, "memory", mebibytes), flush=True)
    today = datetime.date.today().isoformat()
    print(f"\nPython {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}, {today}; {runs} runs.")


if __name__ == "__main__":
    sys.exit(main())
