#!/usr/bin/env bash
# aiohttp 3.14.5 and Tornado 6.6.1 as servers (with websockets 17.4 beside them): the client sends a close frame in
# mid-speech, as a caller does who talks over the machine, while the handler only sends: 40 chunks, 50 ms apart.
# Expected: the server answers the close at once, and the next send raises.
# Seen: so does websockets. aiohttp and Tornado take notice of the close frame when the handler has sent its last chunk, so
# the client gets the whole speech after its own close.
# Why it matters: closing is no way to stop the speech; the client's close() waits or cuts, and the text is spoken in full.
set -euo pipefail
tmp=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install -qq aiohttp==3.14.5 tornado==6.6.1 websockets==17.4 websocket-client==1.9.2

cat >probe.py <<'PY'
import asyncio

import websocket
from aiohttp import web
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornado.websocket import WebSocketHandler
from websockets.asyncio.server import serve

async def speak(send):
    for chunk in range(40):
        await send("audio" * 1000)
        await asyncio.sleep(0.05)


async def aiohttp_speech(request):
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    await speak(ws.send_str)
    return ws


class TornadoSpeech(WebSocketHandler):
    async def open(self):
        await speak(self.write_message)


def hang_up(port):
    ws = websocket.create_connection(f"ws://127.0.0.1:{port}/", timeout=20, suppress_origin=True)
    for chunk in range(3):
        ws.recv()
    ws.send_close(1000)
    chunks = 0
    while True:
        opcode, payload = ws.recv_data(control_frame=True)
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            ws.shutdown()
            return chunks
        chunks += 1


async def try_server(name, port):
    chunks = await asyncio.to_thread(hang_up, port)
    heard = "all 37 chunks that were left" if chunks == 37 else "not the whole speech"
    print(f"{name}: {heard} after the client's close frame")


async def main():
    async with serve(lambda ws: speak(ws.send), "127.0.0.1", 0) as server:
        await try_server("websockets", server.sockets[0].getsockname()[1])

    app = web.Application()
    app.add_routes([web.get("/", aiohttp_speech)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    await try_server("aiohttp", runner.addresses[0][1])
    await runner.cleanup()

    sockets = bind_sockets(0, "127.0.0.1")
    HTTPServer(Application([("/", TornadoSpeech)])).add_sockets(sockets)
    await try_server("Tornado", sockets[0].getsockname()[1])


asyncio.run(main())
PY

venv/bin/python probe.py 2>log | tee seen
diff - seen <<'END' || { echo "This has changed." >&2; exit 1; }
websockets: not the whole speech after the client's close frame
aiohttp: all 37 chunks that were left after the client's close frame
Tornado: all 37 chunks that were left after the client's close frame
END
