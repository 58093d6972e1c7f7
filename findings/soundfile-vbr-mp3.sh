#!/usr/bin/env bash
# soundfile 0.14.0 (with libsndfile 1.2.2): reads a third of an MP3 that was streamed with a variable bit rate.
#
# Expected: without a Xing header, which an encoder that streams cannot write (it holds the number of
#   frames), soundfile may report a wrong length; but read() goes on to the end, as players do.
# What happens: the length is guessed from the bit rate of the first frame, and read() stops there without
#   an error. Of 10 s that begin with sound, 3.3 s are read; 10 s that begin with a pause count as 46 s.
# Why it matters: people check and transcribe TTS output with soundfile and never see that words are
#   missing. A constant bit rate or another reader avoids it: miniaudio reads both files to the end.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check \
    soundfile==0.14.0 lameenc==1.9.0 miniaudio==1.71 numpy==2.2.6

cat > "$folder/measure.py" <<'PYTHON'
import lameenc
import miniaudio
import numpy
import soundfile

RATE = 24000
TIME = numpy.arange(10 * RATE) / RATE
SOUND = numpy.random.default_rng(1).normal(0, 3000, len(TIME))


def encode(samples):
    encoder = lameenc.Encoder()
    encoder.silence()
    encoder.set_in_sample_rate(RATE)
    encoder.set_channels(1)
    encoder.set_vbr(lameenc.VBR_MTRH)
    encoder.set_vbr_quality(4)
    return encoder.encode(samples.astype("<i2").tobytes()) + encoder.flush()


sound_first = SOUND * (TIME % 1 < 0.5)
pause_first = SOUND * (TIME % 1 > 0.5)
for name, samples in (("sound first", sound_first), ("pause first", pause_first)):
    with open("speech.mp3", "wb") as file:
        file.write(encode(samples))
    claimed = soundfile.info("speech.mp3").duration
    read = len(soundfile.read("speech.mp3")[0]) / RATE
    whole = len(miniaudio.decode_file("speech.mp3", nchannels=1, sample_rate=RATE).samples) / RATE
    print(f"10 s, {name}: soundfile says {claimed:.1f} s, reads {read:.1f} s; miniaudio reads {whole:.1f} s")
PYTHON

seen=$(cd "$folder" && env/bin/python measure.py 2> log) || { cat "$folder/log" >&2; exit 1; }
echo "$seen"
expected="10 s, sound first: soundfile says 3.3 s, reads 3.3 s; miniaudio reads 10.1 s
10 s, pause first: soundfile says 46.1 s, reads 10.1 s; miniaudio reads 10.1 s"
[ "$seen" = "$expected" ] || { echo "Such an MP3 is read differently now." >&2; exit 1; }
