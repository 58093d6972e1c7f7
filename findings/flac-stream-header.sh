#!/usr/bin/env bash
# flac 1.4.2 (Debian 12): one second of speech becomes a file of 157 kB, because the header promised 12 hours.
#
# Expected: a WAV that comes through a pipe with the length of a stream (0x7FFFF000 bytes) and ends after
#   one second either fails with "unexpected EOF" or becomes a FLAC of about half the size of its audio.
# What happens: it warns, exits with 0, and the FLAC is three times as large as the WAV: it keeps 4474 seek
#   points and 64 KiB of padding, which were reserved for 12 hours.
# Why it matters: a program that keeps each spoken sentence as FLAC to save space needs more instead.
#   The option --ignore-chunk-sizes gives 19 kB.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
if ! command -v flac > /dev/null; then
    apt-get download -qq flac libflac12 libogg0
    for package in *.deb; do dpkg -x "$package" .; done
    libraries=$(dirname "$folder"/usr/lib/*/libFLAC.so.12)
    export PATH="$folder/usr/bin:$PATH" LD_LIBRARY_PATH="$libraries"
fi
flac --version

cat > speak.py <<'PYTHON'
import math
import struct
import sys

RATE = 24000
LENGTH = 0x7FFFF000
FORMAT = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
HEADER = struct.pack("<4sI4s", b"RIFF", LENGTH + 36, b"WAVE") + FORMAT + struct.pack("<4sI", b"data", LENGTH)
TONE = [round(8000 * math.sin(2 * math.pi * 440 * n / RATE)) for n in range(RATE)]
sys.stdout.buffer.write(HEADER + struct.pack(f"<{RATE}h", *TONE))
PYTHON

python3 speak.py | flac --silent -o as-promised.flac -
python3 speak.py | flac --silent --ignore-chunk-sizes -o as-it-came.flac - 2> /dev/null
wav=$(python3 speak.py | wc -c)
promised=$(wc -c < as-promised.flac)
came=$(wc -c < as-it-came.flac)
points=$(metaflac --list --block-type=SEEKTABLE as-promised.flac | grep --only-matching "seek points: .*")
echo "WAV $wav bytes, FLAC $promised bytes with $points, with --ignore-chunk-sizes $came bytes"
(( promised > 3 * wav && came < wav / 2 )) ||
    { echo "The space for the seek table is reserved differently now." >&2; exit 1; }
