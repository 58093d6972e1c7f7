#!/usr/bin/env bash
# websocket-client 1.9.2 and a refused handshake from Hypercorn 0.18.0, or from Uvicorn 0.54.0 with wsproto 1.3.2.
# Expected: the exception's resp_body holds the JSON of the refusal, as it does where the answer has a Content-Length.
# Seen: both servers send the body of an ASGI denial response chunked, and for websocket-client resp_body is then None;
# websockets 17.4 reads the body of the same answer.
# Why it matters: "credits used up" or "voice not in your plan" stands in that body alone; what is left is "429" or "403".
set -euo pipefail
tmp=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$tmp"' EXIT
cd "$tmp"
free_port() { python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
python3 -m venv venv
venv/bin/pip install -qq hypercorn==0.18.0 uvicorn==0.54.0 wsproto==1.3.2 h11==0.16.0 websockets==17.4 \
  websocket-client==1.9.2

cat >app.py <<'PY'
async def app(scope, receive, send):
    if scope["type"] != "websocket":
        return
    body = b'{"message": "credits used up"}'
    headers = [(b"content-type", b"application/json")]
    if scope["path"] == "/length":
        headers.append((b"content-length", str(len(body)).encode()))
    await receive()
    await send({"type": "websocket.http.response.start", "status": 429, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
PY

cat >client.py <<'PY'
import sys
import time

import websocket
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

name, port = sys.argv[1:]
for path in ("/length", "/chunked"):
    url = f"ws://127.0.0.1:{port}{path}"
    for attempt in range(150):
        try:
            websocket.create_connection(url, timeout=20)
        except ConnectionRefusedError:
            time.sleep(0.1)
        except websocket.WebSocketBadStatusException as error:
            print(f"{name}{path}: websocket-client: {error.status_code} {error.resp_body}")
            break
    try:
        connect(url)
    except InvalidStatus as error:
        print(f"{name}{path}: websockets: {error.response.status_code} {bytes(error.response.body)}")
PY

hypercorn_port=$(free_port) uvicorn_port=$(free_port)
venv/bin/hypercorn app:app --bind "127.0.0.1:$hypercorn_port" >hypercorn.log 2>&1 &
venv/bin/uvicorn app:app --ws wsproto --port "$uvicorn_port" >uvicorn.log 2>&1 &
{
  venv/bin/python client.py Hypercorn "$hypercorn_port"
  venv/bin/python client.py Uvicorn "$uvicorn_port"
} | tee seen
diff - seen <<'END' || { echo "This has changed." >&2; exit 1; }
Hypercorn/length: websocket-client: 429 b'{"message": "credits used up"}'
Hypercorn/length: websockets: 429 b'{"message": "credits used up"}'
Hypercorn/chunked: websocket-client: 429 None
Hypercorn/chunked: websockets: 429 b'{"message": "credits used up"}'
Uvicorn/length: websocket-client: 429 b'{"message": "credits used up"}'
Uvicorn/length: websockets: 429 b'{"message": "credits used up"}'
Uvicorn/chunked: websocket-client: 429 None
Uvicorn/chunked: websockets: 429 b'{"message": "credits used up"}'
END
