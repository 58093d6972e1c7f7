#!/usr/bin/env bash
# lmnt 2.13.0 and edge-tts 7.3.1 (PyPI): the calls that stream a speech into a file.
#
# Expected: when the server closes in mid-speech with code 1011 and a reason, the call raises, as
# `async for` of the `websockets` package, on which LMNT's client is built, does for that close.
# Seen: both calls return as after a whole speech and leave a file that is cut short. LMNT's session
# ends its loop on any close; edge-tts asks only that there was some audio, and not for `turn.end`.
# Why it matters: "no exception" is no proof that a file made by these calls holds the whole speech.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check \
  lmnt==2.13.0 edge-tts==7.3.1 websockets==15.0.1

cat >"$work/demo.py" <<'PY'
import asyncio
import json
import os
import sys

import edge_tts
from lmnt import AsyncLmnt
from websockets.asyncio.server import serve

FILE = sys.argv[1]
SOUND = bytes(1000)
EDGE_HEADERS = b"X-RequestId:1\r\nContent-Type:audio/mpeg\r\nPath:audio\r\n"
EDGE_SOUND = len(EDGE_HEADERS).to_bytes(2, "big") + EDGE_HEADERS + SOUND
EDGE_END = "X-RequestId:1\r\nPath:turn.end\r\n\r\n{}"


async def send_speech(peer, whole, sound):
    await peer.send(sound)
    if whole:
        await peer.send(sound)
    else:
        await peer.close(1011, "speech engine failed")


async def lmnt_speech(peer, whole):
    async for message in peer:
        if json.loads(message).get("type") == "finish":
            return await send_speech(peer, whole, SOUND)


async def edge_speech(peer, whole):
    await peer.recv()
    await peer.recv()
    await send_speech(peer, whole, EDGE_SOUND)
    if whole:
        await peer.send(EDGE_END)


async def save_with_lmnt(port):
    client = AsyncLmnt(api_key="any", base_url=f"http://127.0.0.1:{port}")
    session = await client.speech.sessions.create(voice="leah", format="pcm_s16le")
    await session.send_text("Hello.")
    await session.send_finish()
    await session.stream_audio_to_file(FILE)


async def save_with_edge_tts(port):
    # The package has no parameter for the address of the service.
    edge_tts.communicate.WSS_URL = f"ws://127.0.0.1:{port}/?local=1"
    await edge_tts.Communicate("Hello.").save(FILE)


async def main():
    for save, speech in ((save_with_lmnt, lmnt_speech), (save_with_edge_tts, edge_speech)):
        for whole in (True, False):
            async with serve(lambda peer: speech(peer, whole), "127.0.0.1", 0) as server:
                await save(server.sockets[0].getsockname()[1])
            ending = "whole speech" if whole else "close 1011"
            print(f"{save.__name__}, {ending}: no exception, {os.path.getsize(FILE)} bytes")


asyncio.run(main())
PY

expected="save_with_lmnt, whole speech: no exception, 2000 bytes
save_with_lmnt, close 1011: no exception, 1000 bytes
save_with_edge_tts, whole speech: no exception, 2000 bytes
save_with_edge_tts, close 1011: no exception, 1000 bytes"
seen=$(timeout 30 "$work/venv/bin/python" "$work/demo.py" "$work/speech") || true
echo "$seen"
[ "$seen" = "$expected" ] || { echo "The behaviour has changed." >&2; exit 1; }
