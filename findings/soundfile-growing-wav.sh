#!/usr/bin/env bash
# soundfile 0.14.0 (with libsndfile 1.2.2) and miniaudio 1.71: a WAV that is being written ends where it was opened.
#
# Expected: a WAV whose header promises 12 hours (0x7FFFF000 bytes), as streaming writers begin it, is read
#   to the end that the file has at that time. What is appended before the reader gets there is read too.
# What happens: both fix the length when they open the file. Audio that is already in the file when they
#   come to it is not read, and no error says so. The wave module of Python reads all of it.
# Why it matters: a player or recogniser that starts on the first bytes of TTS output, to lose no time,
#   stops in the middle of the speech. It has to open the file again, or read from a pipe.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check soundfile==0.14.0 miniaudio==1.71 numpy==2.2.6

cat > "$folder/measure.py" <<'PYTHON'
import struct
import sys
import wave

import miniaudio
import soundfile

RATE = 24000
LENGTH = 0x7FFFF000
HALF_A_SECOND = b"\x00\x10" * (RATE // 2)
FORMAT = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
HEADER = struct.pack("<4sI4s", b"RIFF", LENGTH + 36, b"WAVE") + FORMAT + struct.pack("<4sI", b"data", LENGTH)


def with_wave(path):
    reader = wave.open(path)
    while data := reader.readframes(480):
        yield len(data) // 2


def with_soundfile(path):
    for block in soundfile.SoundFile(path).blocks(480):
        yield len(block)


def with_miniaudio(path):
    for block in miniaudio.stream_file(path, nchannels=1, sample_rate=RATE, frames_to_read=480):
        yield len(block)


for read in (with_wave, with_soundfile, with_miniaudio):
    path = f"{sys.argv[1]}/speech.wav"
    with open(path, "wb", buffering=0) as writer:
        writer.write(HEADER + HALF_A_SECOND)
        blocks = read(path)
        frames = next(blocks)
        writer.write(HALF_A_SECOND)
        frames += sum(blocks)
    print(f"{read.__name__}: {frames} of {RATE} frames")
PYTHON

seen=$("$folder/env/bin/python" "$folder/measure.py" "$folder")
echo "$seen"
expected="with_wave: 24000 of 24000 frames
with_soundfile: 12000 of 24000 frames
with_miniaudio: 12000 of 24000 frames"
[ "$seen" = "$expected" ] || { echo "A growing WAV is read differently now." >&2; exit 1; }
