#!/usr/bin/env bash
# websocket-client 1.8.0 and 1.9.2: WebSocketApp.run_forever(reconnect=1) when the service ends the speech with code 1000.
# Expected: a connection after a loss, and none after a close by the server: the README of both versions says so, and
# 1.8.0 calls on_close and ends.
# Seen: 1.9.2 connects again after every close 1000, and neither on_close nor on_error is called in between.
# Why it matters: a client that sends its text in on_open has the same text spoken, and paid for, once a second for ever.
# The probe stops the client at the third request.
set -euo pipefail
tmp=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq websockets==17.4
for version in 1.8.0 1.9.2; do
  venv/bin/pip install -qq --target "$version" websocket-client==$version
done

cat >probe.py <<'PY'
import threading

import websocket
from websockets.sync.server import serve


def speak(connection):
    connection.recv()
    connection.send("all of the audio")
    connection.close(1000, "complete")


events = []


def on_open(app):
    events.append("text sent")
    app.send("text")
    if events.count("text sent") == 3:
        app.on_close = None
        app.keep_running = False


with serve(speak, "127.0.0.1", 0) as server:
    threading.Thread(target=server.serve_forever).start()
    url = "ws://127.0.0.1:%d/" % server.socket.getsockname()[1]
    app = websocket.WebSocketApp(
        url,
        on_open=on_open,
        on_message=lambda app, message: events.append("audio"),
        on_error=lambda app, error: events.append("on_error"),
        on_close=lambda app, code, reason: events.append(f"on_close({code})"),
    )
    app.run_forever(reconnect=1)
    server.shutdown()
print(f"{websocket.__version__}:", ", ".join(events))
PY

{
  PYTHONPATH=1.8.0 venv/bin/python probe.py
  PYTHONPATH=1.9.2 venv/bin/python probe.py
} 2>log | tee seen
diff - seen <<'END' || { echo "This has changed." >&2; exit 1; }
1.8.0: text sent, audio, on_close(1000)
1.9.2: text sent, audio, text sent, audio, text sent
END
