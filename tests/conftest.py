"""What the tests share: they run the script as a person does, as a process in a folder of its own."""

import os
import signal
import subprocess
import sys
import wave
from pathlib import Path
from time import perf_counter

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "ws_streaming_api.py"
SERVER = ROOT / "tests" / "lightning_server.py"
PYTHON = os.environ.get("SCRIPT_PYTHON", sys.executable)
KEY = "sk_test_4f1d8a90b2c3e7"
V2_PATH = "/waves/v1/lightning-v2/get_speech/stream"
LIVE_PATH = "/waves/v1/tts/live"


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, default=100, help="how many hostile answers each fuzz test tries")


def clean_environment(**variables):
    """Return the environment without the settings of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SMALLEST_")}
    return {**kept, **{name: value for name, value in variables.items() if value is not None}}


def environment_for(server, **variables):
    """Return an environment with the three required settings, for a server with a `url`."""
    required = {"SMALLEST_API_KEY": KEY, "SMALLEST_VOICE_ID": "ryan", "SMALLEST_TEXT": "Hello."}
    return clean_environment(**{**required, "SMALLEST_WS_URL": server.url if server else None, **variables})


class Run:
    """What one run of the script left behind."""

    def __init__(self, process, out, err, seconds):
        self.code, self.out, self.seconds = process.returncode, out, seconds
        self.err = err.decode("utf-8", "backslashreplace")
        self.lines = self.err.splitlines()
        for shown in self.err, self.out.decode("latin-1"):
            assert "Traceback" not in shown and "Exception ignored" not in shown, shown
            assert KEY not in shown, "the key was printed"

    def figure(self, name):
        """Return the number of a line of the report."""
        (line,) = [line for line in self.lines if line.startswith(name + ": ")]
        return float(line.split()[len(name.split())])


def obey_interrupts():
    """Undo what the shell does to commands in the background, whose children would ignore Ctrl-C too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*arguments, env, cwd, script=SCRIPT, **options):
    options.setdefault("preexec_fn", obey_interrupts)
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([PYTHON, str(script), *arguments], env=env, cwd=cwd, **options)


def finish(process, started=None, **options):
    out, err = process.communicate(timeout=60, **options)
    return Run(process, out or b"", err or b"", perf_counter() - (started or perf_counter()))


@pytest.fixture
def run(tmp_path):
    """Run the script in a folder of its own and return its Run."""

    def run_script(*arguments, server=None, env=None, stdin=None, **options):
        variables = env or {}
        options = {"stdin": subprocess.PIPE if stdin is not None else subprocess.DEVNULL, **options}
        options.setdefault("cwd", tmp_path)
        started = perf_counter()
        process = start(*arguments, env=environment_for(server, **variables), **options)
        return finish(process, started, input=stdin)

    return run_script


def read_wav(path):
    """Return the PCM and the sample rate of a 16-bit mono WAV file."""
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getcomptype()) == (1, 2, "NONE")
        return file.readframes(file.getnframes()), file.getframerate()


class LocalServer:
    """tests/lightning_server.py, running."""

    def __init__(self):
        command = [sys.executable, "-u", str(SERVER), "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=clean_environment(), text=True)
        lines = [self.process.stdout.readline() for _ in range(3)]
        self.url = lines[1].strip().rpartition("=")[2]
        self.live_url = self.url.replace(V2_PATH, LIVE_PATH)
        self.key = lines[2].strip().rpartition("=")[2]

    def stop(self):
        self.process.terminate()
        self.process.communicate()


@pytest.fixture(scope="session")
def lightning():
    server = LocalServer()
    yield server
    server.stop()
