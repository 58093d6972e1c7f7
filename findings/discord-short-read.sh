#!/usr/bin/env bash
# discord.py 2.7.1: PCMAudio takes the first short read for the end of the speech.
#
# Expected: PCMAudio plays a file-like object until read() returns no bytes. A pipe or socket that has less
#   than 20 ms ready is asked again, and a last frame that is not full is filled with silence.
# What happens: any read() that returns less than the 3840 bytes of a frame ends the playback. The bytes
#   that it did return are thrown away, and all that follows is never asked for.
# Why it matters: speech that is streamed into an unbuffered pipe ends in the middle at the first pause
#   of the network, with no error; from a whole file, up to 20 ms of the end are cut. io.BufferedReader
#   around the pipe waits for full frames, and padding to full frames saves the end.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check discord.py==2.7.1

cat > "$folder/measure.py" <<'PYTHON'
import io
import os
import threading
import time

import discord

FRAME = 3840  # 20 ms at 48 kHz, stereo, 16 bits
SPEECH = b"\x01" * (FRAME * 5)


def play(stream):
    """Read as the player thread does: until a frame is empty."""
    source = discord.PCMAudio(stream)
    return sum(len(frame) for frame in iter(source.read, b""))


def pipe_with_pause(buffering):
    """The speech in a pipe, with a pause of the network in the middle of the third frame."""
    reading, writing = os.pipe()

    def send():
        with open(writing, "wb", buffering=0) as pipe:
            pipe.write(SPEECH[: FRAME * 5 // 2])
            time.sleep(1)
            pipe.write(SPEECH[FRAME * 5 // 2 :])

    sender = threading.Thread(target=send)
    sender.start()
    time.sleep(0.3)
    with open(reading, "rb", buffering=buffering) as pipe:
        heard = play(pipe)
        sender.join()
    return heard


print(f"unbuffered pipe: {pipe_with_pause(0)} of {len(SPEECH)} bytes")
print(f"buffered pipe: {pipe_with_pause(-1)} of {len(SPEECH)} bytes")
print(f"file of two and a half frames: {play(io.BytesIO(SPEECH[: FRAME * 5 // 2]))} of {FRAME * 5 // 2} bytes")
PYTHON

seen=$("$folder/env/bin/python" -W ignore "$folder/measure.py")
echo "$seen"
expected="unbuffered pipe: 7680 of 19200 bytes
buffered pipe: 19200 of 19200 bytes
file of two and a half frames: 7680 of 9600 bytes"
[ "$seen" = "$expected" ] || { echo "Short reads are treated differently now." >&2; exit 1; }
