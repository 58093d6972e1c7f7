#!/usr/bin/env bash
# pipecat-ai 1.14.0 (PyPI), SmallestTTSService.
#
# Expected: a server that gives up in mid-speech, with close code 1011 and a reason, makes an
# ErrorFrame that goes upstream.
# Seen: the service logs a warning and connects again, but no frame tells of it. Downstream go the very
# frames of a whole speech, TTSStoppedFrame included, and all of the text as spoken (TTSTextFrame).
# Why it matters: the listener hears half a sentence, while the conversation's record holds all of
# it, and nothing in the pipeline can tell.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check pipecat-ai==1.14.0 websockets==15.0.1

cat >"$work/demo.py" <<'PY'
import asyncio
import base64
import json

from pipecat.frames.frames import TTSAudioRawFrame, TTSSpeakFrame, TTSTextFrame
from pipecat.services.smallest.tts import SmallestTTSService
from pipecat.tests.utils import SleepFrame, run_test
from websockets.asyncio.server import serve

A_TENTH_OF_A_SECOND = base64.b64encode(bytes(4800)).decode()
CHUNK = json.dumps({"status": "chunk", "data": {"audio": A_TENTH_OF_A_SECOND}})
COMPLETE = json.dumps({"status": "complete"})


async def speak(whole):
    async def answer(peer):
        async for message in peer:
            if json.loads(message)["text"].strip():
                await peer.send(CHUNK)
                if whole:
                    await peer.send(CHUNK)
                    await peer.send(COMPLETE)
                else:
                    await peer.close(1011, "speech engine failed")

    async with serve(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        service = SmallestTTSService(api_key="any", base_url=f"ws://127.0.0.1:{port}", sample_rate=24000)
        down, up = await run_test(service, frames_to_send=[TTSSpeakFrame("Hello there."), SleepFrame(5)])
    audio = sum(len(frame.audio) for frame in down if isinstance(frame, TTSAudioRawFrame))
    kinds = [type(frame).__name__ for frame in down if not isinstance(frame, TTSAudioRawFrame)]
    spoken = "".join(frame.text for frame in down if isinstance(frame, TTSTextFrame))
    name = "whole speech" if whole else "closed with 1011"
    print(f"{name}: {audio} bytes of audio for {spoken!r}, {len(up)} frames upstream")
    return kinds


whole_speech = asyncio.run(speak(whole=True))
half_a_speech = asyncio.run(speak(whole=False))
print("the other frames downstream are the same:", whole_speech == half_a_speech)
print("the last of them:", half_a_speech[-1])
PY

expected="whole speech: 9600 bytes of audio for 'Hello there.', 0 frames upstream
closed with 1011: 4800 bytes of audio for 'Hello there.', 0 frames upstream
the other frames downstream are the same: True
the last of them: TTSStoppedFrame"
seen=$(timeout 60 "$work/venv/bin/python" "$work/demo.py" 2>/dev/null) || true
echo "$seen"
[ "$seen" = "$expected" ] || { echo "The behaviour has changed." >&2; exit 1; }
