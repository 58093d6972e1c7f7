#!/usr/bin/env bash
# samplerate 0.2.4 (python-samplerate): end_of_input=True does not give out the end of the speech.
#
# Expected: the streaming Resampler gets end_of_input=True with its last chunk, so one second of
#   24 kHz speech comes out as 8000 samples, as samplerate.resample() gives them.
# What happens: process() never returns more than len(chunk) * ratio samples, and the filter is still full
#   then. With sinc_best 143 samples (18 ms) are lost, and more calls with an empty chunk return nothing.
#   Only a last chunk that was padded with zeros makes room for the rest.
# Why it matters: each utterance loses its end, and the better the filter, the more of it.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check samplerate==0.2.4 numpy==2.2.6

cat > "$folder/measure.py" <<'PYTHON'
import numpy
import samplerate

RATIO = 8000 / 24000
SPEECH = numpy.sin(2 * numpy.pi * 440 * numpy.arange(24000) / 24000).astype("float32")
CHUNKS = numpy.split(SPEECH, 50)
NOTHING = numpy.zeros(0, "float32")
ZEROS = numpy.zeros(480, "float32")


def count(converter, chunks):
    resampler = samplerate.Resampler(converter)
    samples = sum(len(resampler.process(chunk, RATIO)) for chunk in chunks[:-1])
    samples += len(resampler.process(chunks[-1], RATIO, end_of_input=True))
    return samples, sum(len(resampler.process(NOTHING, RATIO, end_of_input=True)) for _ in range(3))


for converter in ("sinc_best", "sinc_medium", "sinc_fastest"):
    whole = len(samplerate.resample(SPEECH, RATIO, converter))
    streamed, after = count(converter, CHUNKS)
    padded, _ = count(converter, CHUNKS[:-1] + [numpy.concatenate([CHUNKS[-1], ZEROS])])
    print(f"{converter}: whole {whole}, in chunks {streamed}, with more calls {streamed + after}, padded {padded}")
PYTHON

seen=$("$folder/env/bin/python" "$folder/measure.py")
echo "$seen"
expected="sinc_best: whole 8000, in chunks 7857, with more calls 7857, padded 8017
sinc_medium: whole 8000, in chunks 7954, with more calls 7954, padded 8114
sinc_fastest: whole 8000, in chunks 7981, with more calls 7981, padded 8141"
[ "$seen" = "$expected" ] || { echo "The end of the input is treated differently now." >&2; exit 1; }
