#!/usr/bin/env bash
# livekit-plugins-cartesia 1.8.9 with livekit-agents 1.8.9 (PyPI).
#
# Expected: an error message in mid-speech raises APIError from the `async for`, as the plugin has a
# branch for messages of type "error" that does so.
# Seen: Cartesia's error message also holds `"done": true` (its page "API Errors" says that it always
# does), the plugin looks at `done` first, and so half a speech ends like a whole one: no exception,
# no "error" event, the last frame marked `is_final`. The branch runs only for `"done": false`.
# Why it matters: an agent that breaks off in mid-sentence is never retried and leaves no trace.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  livekit-plugins-cartesia==1.8.9 livekit-agents==1.8.9

cat >"$work/demo.py" <<'PY'
import asyncio
import base64

import aiohttp
from aiohttp import web
from livekit.agents import APIConnectOptions, APIError
from livekit.plugins import cartesia

HALF_A_SECOND = base64.b64encode(bytes(24000)).decode()
CHUNK = {"type": "chunk", "status_code": 206, "done": False, "data": HALF_A_SECOND}
ERROR = {"type": "error", "status_code": 500, "title": "Internal", "message": "synthesis failed"}
LAST_MESSAGES = {
    "whole speech": {"type": "done", "status_code": 200, "done": True},
    "error, done true": {**ERROR, "done": True},
    "error, done false": {**ERROR, "done": False},
}


async def speak(last_message):
    async def serve(request):
        peer = web.WebSocketResponse()
        await peer.prepare(request)
        async for message in peer:
            piece = message.json()
            if piece["continue"]:
                continue
            for answer in (CHUNK, last_message):
                await peer.send_json({**answer, "context_id": piece["context_id"]})
        return peer

    app = web.Application()
    app.router.add_get("/tts/websocket", serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession() as session:
        speaker = cartesia.TTS(api_key="any", base_url=url, http_session=session)
        error_events = []
        speaker.on("error", error_events.append)
        stream = speaker.stream(conn_options=APIConnectOptions(max_retry=0))
        stream.push_text("Hello there, this is a sentence.")
        stream.end_input()
        try:
            async for audio in stream:
                last = audio
            outcome = f"ended normally, is_final {last.is_final}"
        except APIError as error:
            outcome = f"raised {type(error).__name__}"
        await stream.aclose()
        await speaker.aclose()
    await runner.cleanup()
    return f"{outcome}, {len(error_events)} error events"


for name, last_message in LAST_MESSAGES.items():
    print(f"{name}: {asyncio.run(speak(last_message))}")
PY

expected="whole speech: ended normally, is_final True, 0 error events
error, done true: ended normally, is_final True, 0 error events
error, done false: raised APIError, 1 error events"
seen=$(timeout 60 "$work/venv/bin/python" "$work/demo.py" 2>/dev/null) || true
echo "$seen"
[ "$seen" = "$expected" ] || { echo "The behaviour has changed." >&2; exit 1; }
