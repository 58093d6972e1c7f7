#!/usr/bin/env bash
# pipecat-ai 1.14.0 (with soxr 1.0.0): the end of an utterance stays in the resampler of the Twilio serializer.
#
# Expected: 24 kHz speech that is serialized for Twilio in frames of 20 ms comes out as 8 kHz mu-law
#   of the same length, give or take the few milliseconds of a filter.
# What happens: the resampler gives out blocks of 137.5 ms and keeps what does not fill one. A word of
#   140 ms gives no message at all, and 1240 ms of speech lose 140. The resampler has flush(), which the
#   serializer never calls; the next frame that comes more than 0.2 s later discards what was kept.
# Why it matters: callers do not hear the last syllable of a sentence, or a short "yes". Audio that
#   reaches the serializer at 8 kHz already, from the service or from audio_out_sample_rate, is not cut.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check pipecat-ai==1.14.0 soxr==1.0.0

cat > "$folder/measure.py" <<'PYTHON'
import asyncio
import base64
import json

from pipecat.frames.frames import EndFrame, TTSAudioRawFrame
from pipecat.serializers.twilio import TwilioFrameSerializer

FRAME = b"\x00\x10" * 480  # 20 ms at 24 kHz


async def say(serializer, milliseconds):
    heard = 0
    for _ in range(milliseconds // 20):
        message = await serializer.serialize(TTSAudioRawFrame(audio=FRAME, sample_rate=24000, num_channels=1))
        if message:
            heard += len(base64.b64decode(json.loads(message)["media"]["payload"])) / 8
    return heard


def new_serializer():
    return TwilioFrameSerializer("stream", params=TwilioFrameSerializer.InputParams(auto_hang_up=False))


async def main():
    for milliseconds in (140, 280, 1240):
        serializer = new_serializer()
        heard = await say(serializer, milliseconds)
        assert not await serializer.serialize(EndFrame())
        print(f"spoken {milliseconds} ms, sent to the caller {heard:g} ms")
    serializer = new_serializer()
    heard = 0
    for _ in range(3):
        heard += await say(serializer, 280)
        await asyncio.sleep(0.5)
    print(f"spoken 3 x 280 ms with pauses, sent to the caller {heard:g} ms")


asyncio.run(main())
PYTHON

seen=$("$folder/env/bin/python" "$folder/measure.py" 2> "$folder/log") || { cat "$folder/log" >&2; exit 1; }
echo "$seen"
expected="spoken 140 ms, sent to the caller 0 ms
spoken 280 ms, sent to the caller 137.5 ms
spoken 1240 ms, sent to the caller 1100 ms
spoken 3 x 280 ms with pauses, sent to the caller 412.5 ms"
[ "$seen" = "$expected" ] || { echo "The resampler behaves differently now." >&2; exit 1; }
