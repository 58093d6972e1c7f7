"""How soon a player is heard after the first audio has come, and whether it plays the whole speech.

    python tests/measure/first_sound.py                        a table in Markdown, after about two minutes
    python tests/measure/first_sound.py "aplay -q" "play -"    the same for other players

It needs Linux and Debian's pulseaudio, pulseaudio-utils, sox, libsox-fmt-pulse, alsa-utils, ffmpeg, mpv,
libasound2-plugins, gstreamer1.0-tools, gstreamer1.0-pulseaudio and gstreamer1.0-plugins-good. A private
PulseAudio takes the sound, which no device plays. The local server sends audio as fast as it is spoken.

The first sound counts from the script's line "TTFB:". What was heard is the share of the loud samples
of the speech that came out; pauses are how much longer than the speech this took, a cut is negative.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
import wave

import numpy

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SERVER = os.path.join(TESTS, "lightning_server.py")
SCRIPT = os.path.join(os.path.dirname(TESTS), "ws_streaming_api.py")
SPEAK = [os.environ.get("SCRIPT_PYTHON", sys.executable), SCRIPT, "--voice-id", "emily"]
SPEAK += ["--text", "The quick brown fox jumps over the lazy dog."]
RATE, BLOCK, LOUD = 24000, 240, 300  # Hz, samples, and the value that a loud sample is above
PLAYERS = [
    "play -q --buffer 1024 -",
    "gst-launch-1.0 -q fdsrc ! wavparse ! autoaudiosink",
    "aplay",
    "ffplay -nodisp -autoexit -f s16le -sample_rate 24000 -probesize 32 -skip_initial_bytes 44 -",
    "ffplay -nodisp -autoexit -probesize 32 -",
    "ffplay -nodisp -autoexit -",
    "mpv --cache=no --demuxer-lavf-probesize=32 -",
]


def find_loud(pcm):
    """Return the positions of the loud samples."""
    return numpy.flatnonzero(numpy.abs(numpy.frombuffer(pcm, "<i2").astype(int)) > LOUD)


def find_speech(path):
    """Return the positions of the loud samples in the speech, which the script writes to a file."""
    subprocess.run([sys.executable, SERVER, "--", *SPEAK, "-o", path], check=True, stderr=subprocess.DEVNULL)
    with wave.open(path) as file:
        return find_loud(file.readframes(file.getnframes()))


def record(environment):
    """Return a list that gets each block of what the private PulseAudio plays, and the moment it came."""
    parec = f"parec --device=null.monitor --format=s16le --rate={RATE} --channels=1 --latency-msec=10"
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    recorder = subprocess.Popen(parec.split(), env=environment, **output)
    recorder.stdout.read(BLOCK * 2)  # until then PulseAudio is up to 2 s late
    blocks = []

    def listen():
        while pcm := recorder.stdout.read(BLOCK * 2):
            blocks.append((time.monotonic(), pcm))

    threading.Thread(target=listen, daemon=True).start()
    return blocks


def play(player, blocks, speech, environment):
    """Return the seconds to the first sound, the percentage that was heard, and the seconds of pauses."""
    command = [sys.executable, SERVER, "--pace", "--", "sh", "-c", f'"$@" -o - | {player}', "sh", *SPEAK]
    blocks.clear()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    for line in process.stderr:
        if b"TTFB:" in line:
            reported = time.monotonic()
    process.wait()
    time.sleep(0.5)
    moments, heard = zip(*blocks, strict=True)
    loud = find_loud(b"".join(heard))
    if not len(loud):
        raise SystemExit(f"Nothing was heard from {player}.")
    longer = (loud[-1] - loud[0]) - (speech[-1] - speech[0])
    return moments[loud[0] // BLOCK] - reported, 100 * len(loud) / len(speech), longer / RATE


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("players", nargs="*", default=PLAYERS, metavar="PLAYER", help="a command for the shell")
    parser.add_argument("--runs", type=int, default=3, help="runs of each player")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        private = {"HOME": folder, "XDG_RUNTIME_DIR": folder, "PULSE_SERVER": f"unix:{folder}/socket"}
        environment = {**os.environ, **private, "SDL_AUDIODRIVER": "pulseaudio", "AUDIODRIVER": "pulseaudio"}
        protocol = f"--load=module-native-protocol-unix socket={folder}/socket auth-anonymous=1"
        sink = f"--load=module-null-sink sink_name=null rate={RATE} channels=1"
        options = ["-n", "--daemonize", "--realtime=no", "--log-target=null", protocol, sink]
        subprocess.run(["pulseaudio", *options], env=environment, check=True)
        try:
            blocks = record(environment)
            speech = find_speech(os.path.join(folder, "speech.wav"))
            print("| player | first sound, s | heard, % | pauses, s |\n| --- | --- | --- | --- |")
            for player in arguments.players:
                runs = [play(player, blocks, speech, environment) for _ in range(arguments.runs)]
                cells = [", ".join(f"{run:.2f}" for run in figure) for figure in zip(*runs, strict=True)]
                print(f"| `{player}` | {' | '.join(cells)} |", flush=True)
        finally:
            subprocess.run(["pactl", "exit"], env=environment, check=False)


if __name__ == "__main__":
    main()
