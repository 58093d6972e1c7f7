#!/usr/bin/env bash
# Hypercorn 0.18.0 and Granian 2.8.9 (with Uvicorn 0.54.0 beside them): an ASGI handler that streams 60 chunks, 50 ms apart,
# to a client that hangs up after the third.
# Expected: a send after that raises, as the ASGI specification (2.4) asks for: a subclass of OSError.
# Seen: so does Uvicorn. On Hypercorn and Granian every further send returns as though all were well, whether the client
# has closed properly or has cut the connection.
# Why it matters: a service that learns of a hang-up by a failing send goes on synthesising whole texts for nobody.
set -euo pipefail
tmp=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$tmp"' EXIT
cd "$tmp"
free_port() { python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
python3 -m venv venv
venv/bin/pip install -qq hypercorn==0.18.0 granian==2.8.9 uvicorn==0.54.0 websockets==17.4 websocket-client==1.9.2

cat >app.py <<'PY'
import asyncio


async def app(scope, receive, send):
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    outcome = "all 60 chunks sent"
    try:
        for chunk in range(60):
            await send({"type": "websocket.send", "text": "audio" * 1000})
            await asyncio.sleep(0.05)
    except OSError:
        outcome = "OSError"
    print(f"{scope['path']}: {outcome}", flush=True)
PY

cat >client.py <<'PY'
import sys
import time

import websocket

port, log = sys.argv[1:]
for path in ("/closed", "/lost"):
    for attempt in range(150):
        try:
            ws = websocket.create_connection(f"ws://127.0.0.1:{port}{path}", timeout=20)
            break
        except ConnectionRefusedError:
            time.sleep(0.1)
    for chunk in range(3):
        ws.recv()
    ws.close() if path == "/closed" else ws.shutdown()
    for attempt in range(150):
        if f"{path}: " in open(log).read():
            break
        time.sleep(0.1)
PY

try() {
  local name=$1 port
  port=$(free_port)
  shift
  "${@//PORT/$port}" >"$name.log" 2>&1 &
  venv/bin/python client.py "$port" "$name.log"
  grep -E '^/(closed|lost): ' "$name.log" | sed "s|^|$name |"
}
{
  try Uvicorn venv/bin/uvicorn app:app --port PORT
  try Hypercorn venv/bin/hypercorn app:app --bind 127.0.0.1:PORT
  try Granian venv/bin/granian app:app --interface asgi --host 127.0.0.1 --port PORT
} >seen
cat seen
diff - seen <<'END' || { echo "This has changed." >&2; exit 1; }
Uvicorn /closed: OSError
Uvicorn /lost: OSError
Hypercorn /closed: all 60 chunks sent
Hypercorn /lost: all 60 chunks sent
Granian /closed: all 60 chunks sent
Granian /lost: all 60 chunks sent
END
