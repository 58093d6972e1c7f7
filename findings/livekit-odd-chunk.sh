#!/usr/bin/env bash
# livekit 1.1.21: AudioResampler turns speech into noise after one chunk with an odd number of bytes.
#
# Expected: push() accepts any bytearray of 16-bit PCM, so it either keeps the half of a sample for the next
#   push or raises, as audioop.ratecv and numpy.frombuffer do.
# What happens: it drops the odd byte without a word. All later samples are put together from the halves
#   of two neighbours, so a quiet tone becomes loud noise.
# Why it matters: a TTS service may cut its chunks at any byte. Half of a sample has to be carried over to
#   the next chunk before the audio reaches this resampler.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check livekit==1.1.21 numpy==2.2.6

cat > "$folder/measure.py" <<'PYTHON'
import numpy
from livekit import rtc

TONE = numpy.sin(2 * numpy.pi * 440 * numpy.arange(24000) / 24000) * 1000
PCM = TONE.astype("<i2").tobytes()


def loudest_sample(first_chunk):
    resampler = rtc.AudioResampler(24000, 8000)
    frames = resampler.push(bytearray(PCM[:first_chunk]))
    frames += resampler.push(bytearray(PCM[first_chunk:]))
    frames += resampler.flush()
    samples = numpy.concatenate([numpy.frombuffer(frame.data, "<i2") for frame in frames])
    return numpy.abs(samples.astype(int)).max()


for first_chunk in (960, 961):
    peak = loudest_sample(first_chunk)
    verdict = "tone" if peak < 1100 else "noise" if peak > 10000 else "unclear"
    print(f"a tone of peak 1000 in chunks of {first_chunk} and {len(PCM) - first_chunk} bytes: {verdict}, peak {peak}")
PYTHON

seen=$("$folder/env/bin/python" "$folder/measure.py")
echo "$seen"
[[ $seen == *"960 and 47040 bytes: tone"*"961 and 47039 bytes: noise"* ]] ||
    { echo "A chunk with an odd number of bytes is treated differently now." >&2; exit 1; }
