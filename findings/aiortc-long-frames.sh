#!/usr/bin/env bash
# aiortc 1.16.0: of a track that hands over 40 ms at a time half is heard, of one with 100 ms nothing.
#
# Expected: recv() of an audio track may return a frame of any length, as the AudioFrame says how many
#   samples it holds, and the sender cuts it into RTP packets of 20 ms.
# What happens: it does cut, but gives all packets of one frame the same RTP timestamp, as if they were
#   parts of one picture. An aiortc peer takes them for one packet of Opus and decodes its first 20 ms;
#   with five packets to a timestamp its jitter buffer never fills.
# Why it matters: TTS chunks are often 100 ms or longer, and the obvious track returns each as it came.
#   All packets arrive and nothing is logged. The track has to cut the speech into 20 ms itself.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check aiortc==1.16.0 av==18.1.0 numpy==2.2.6

cat > "$folder/measure.py" <<'PYTHON'
import asyncio
import fractions
import time

import aioice.ice
import av
import numpy
from aiortc import MediaStreamTrack, RTCConfiguration, RTCPeerConnection

RATE = 24000
aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]  # Keeps the call on this machine.


class Tone(MediaStreamTrack):
    kind = "audio"

    def __init__(self, milliseconds):
        super().__init__()
        self.samples = RATE * milliseconds // 1000
        self.position = 0
        self.start = time.monotonic()

    async def recv(self):
        await asyncio.sleep(max(0, self.start + self.position / RATE - time.monotonic()))
        tone = 8000 * numpy.sin(2 * numpy.pi * 440 * (numpy.arange(self.samples) + self.position) / RATE)
        frame = av.AudioFrame.from_ndarray(tone.astype("<i2").reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = RATE
        frame.pts = self.position
        frame.time_base = fractions.Fraction(1, RATE)
        self.position += self.samples
        return frame


async def listen(track, heard):
    while True:
        frame = await track.recv()
        heard.append(frame.samples / frame.sample_rate)


async def call(milliseconds):
    speaker, listener = (RTCPeerConnection(RTCConfiguration(iceServers=[])) for _ in range(2))
    heard, tasks = [], []
    listener.on("track", lambda track: tasks.append(asyncio.ensure_future(listen(track, heard))))
    tone = Tone(milliseconds)
    speaker.addTrack(tone)
    await speaker.setLocalDescription(await speaker.createOffer())
    await listener.setRemoteDescription(speaker.localDescription)
    await listener.setLocalDescription(await listener.createAnswer())
    await speaker.setRemoteDescription(listener.localDescription)
    await asyncio.sleep(3)
    share = sum(heard) / (tone.position / RATE)
    received = [report for report in (await listener.getStats()).values() if report.type == "inbound-rtp"]
    await speaker.close()
    await listener.close()
    await asyncio.gather(*tasks, return_exceptions=True)
    arrived = "arrive" if received[0].packetsReceived > 50 else "are missing"
    part = "nothing" if share < 0.1 else "about half" if 0.3 < share < 0.6 else "all" if share > 0.8 else "some"
    print(f"frames of {milliseconds} ms: the packets {arrived}, {part} is heard")


for milliseconds in (20, 40, 100):
    asyncio.run(call(milliseconds))
PYTHON

seen=$("$folder/env/bin/python" "$folder/measure.py")
echo "$seen"
expected="frames of 20 ms: the packets arrive, all is heard
frames of 40 ms: the packets arrive, about half is heard
frames of 100 ms: the packets arrive, nothing is heard"
[ "$seen" = "$expected" ] || { echo "Long frames are sent differently now." >&2; exit 1; }
