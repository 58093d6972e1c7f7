#!/usr/bin/env bash
# Sanic 25.12.1, and Quart 0.22.0 on Hypercorn 0.18.0: a handler that crashes in mid-speech ends in close code 1000.
# Expected: 1011 (internal error), as Hypercorn itself sends when a plain ASGI application raises.
# Seen: the exception reaches the server's log alone; the client gets half the audio and then a normal close.
# Why it matters: a client that takes close code 1000 as the end of the speech saves a truncated file as a whole one.
set -euo pipefail
tmp=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$tmp"' EXIT
cd "$tmp"
free_port() { python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
python3 -m venv venv
venv/bin/pip install -qq sanic==25.12.1 quart==0.22.0 hypercorn==0.18.0 websockets==17.4 websocket-client==1.9.2

cat >sanic_app.py <<'PY'
from sanic import Sanic

app = Sanic("speech")


@app.websocket("/")
async def speech(request, ws):
    await ws.send("half of the audio")
    raise RuntimeError("the model failed")
PY

cat >quart_app.py <<'PY'
from quart import Quart, websocket

app = Quart("speech")


@app.websocket("/")
async def speech():
    await websocket.send("half of the audio")
    raise RuntimeError("the model failed")
PY

cat >asgi_app.py <<'PY'
async def app(scope, receive, send):
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": "half of the audio"})
    raise RuntimeError("the model failed")
PY

cat >client.py <<'PY'
import sys
import time

import websocket

name, port = sys.argv[1:]
for attempt in range(150):
    try:
        ws = websocket.create_connection(f"ws://127.0.0.1:{port}/", timeout=20)
        break
    except ConnectionRefusedError:
        time.sleep(0.1)
print(f"{name}: {ws.recv()}", end=", ")
opcode, payload = ws.recv_data(control_frame=True)
assert opcode == websocket.ABNF.OPCODE_CLOSE
print("close code", int.from_bytes(payload[:2], "big"))
PY

sanic_port=$(free_port) quart_port=$(free_port) asgi_port=$(free_port)
venv/bin/sanic sanic_app:app --host 127.0.0.1 --port "$sanic_port" --single-process >sanic.log 2>&1 &
venv/bin/hypercorn quart_app:app --bind "127.0.0.1:$quart_port" >quart.log 2>&1 &
venv/bin/hypercorn asgi_app:app --bind "127.0.0.1:$asgi_port" >asgi.log 2>&1 &
{
  venv/bin/python client.py "plain ASGI on Hypercorn" "$asgi_port"
  venv/bin/python client.py Sanic "$sanic_port"
  venv/bin/python client.py "Quart on Hypercorn" "$quart_port"
} | tee seen
diff - seen <<'END' || { echo "This has changed." >&2; exit 1; }
plain ASGI on Hypercorn: half of the audio, close code 1011
Sanic: half of the audio, close code 1000
Quart on Hypercorn: half of the audio, close code 1000
END
