#!/usr/bin/env bash
# Flask-Sock 0.7.0 (Flask 3.1.3) on Werkzeug 3.1.9 and on Gunicorn 27.0.1: a handler that crashes after it has sent audio.
# Expected: a close frame with 1011, or at least a lost connection.
# Seen: the server writes a whole HTTP 500 answer into the open WebSocket. "H" (0x48) reads as a frame with a reserved bit,
# so websocket-client says "rsv is not implemented, yet".
# Why it matters: the message blames the protocol or a proxy, while the true fault is an exception in the service.
set -euo pipefail
tmp=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$tmp"' EXIT
cd "$tmp"
free_port() { python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
python3 -m venv venv
venv/bin/pip install -qq flask-sock==0.7.0 flask==3.1.3 werkzeug==3.1.9 simple-websocket==1.1.0 gunicorn==27.0.1 \
  websocket-client==1.9.2

cat >app.py <<'PY'
from flask import Flask
from flask_sock import Sock

app = Flask("speech")
sock = Sock(app)


@sock.route("/")
def speech(ws):
    ws.send("half of the audio")
    raise RuntimeError("the model failed")
PY

cat >client.py <<'PY'
import sys
import time

import websocket

name, port = sys.argv[1:]
url = f"ws://127.0.0.1:{port}/"
for attempt in range(150):
    try:
        ws = websocket.create_connection(url, timeout=20)
        break
    except ConnectionRefusedError:
        time.sleep(0.1)
ws.recv()
try:
    ws.recv()
except websocket.WebSocketException as error:
    print(f"{name}: websocket-client says: {error}")

ws = websocket.create_connection(url, timeout=20)
ws.recv()
print(f"{name}: on the wire: {ws.sock.recv(12).decode()}")
PY

werkzeug_port=$(free_port) gunicorn_port=$(free_port)
venv/bin/flask run --host 127.0.0.1 --port "$werkzeug_port" >werkzeug.log 2>&1 &
venv/bin/gunicorn app:app --bind "127.0.0.1:$gunicorn_port" --threads 4 --graceful-timeout 1 >gunicorn.log 2>&1 &
{
  venv/bin/python client.py Werkzeug "$werkzeug_port"
  venv/bin/python client.py Gunicorn "$gunicorn_port"
} | tee seen
diff - seen <<'END' || { echo "This has changed." >&2; exit 1; }
Werkzeug: websocket-client says: rsv is not implemented, yet
Werkzeug: on the wire: HTTP/1.1 500
Gunicorn: websocket-client says: rsv is not implemented, yet
Gunicorn: on the wire: HTTP/1.1 500
END
