"""What the tests share: they run the script as a person does, as a process in a folder of its own."""

import functools
import os
import re
import signal
import ssl
import subprocess
import sys
import wave
from pathlib import Path
from subprocess import DEVNULL, PIPE
from types import SimpleNamespace

import pytest
import trustme

from scripted_server import ScriptedServer

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "ws_streaming_api.py"
SERVER = ROOT / "tests" / "lightning_server.py"
PYTHON = os.environ.get("SCRIPT_PYTHON", sys.executable)
KEY = "sk_9zb.Cd~77/xyz+Q"
V2_PATH = "/waves/v1/lightning-v2/get_speech/stream"
LIVE_PATH = "/waves/v1/tts/live"
STRICT = {"PYTHONWARNINGS": "error"}  # a socket or a file that is left open is an error
HOST_LINE = 'HOST = "wss://api.smallest.ai"'


def clean_environment(**variables):
    """Return the environment without what its owner has set for Python, the script, the network and colours."""
    foreign = re.compile("SMALLEST_|PYTHON|WEBSOCKET_|.*_proxy$|(FORCE|NO|CLI)_?COLOR", re.IGNORECASE)
    kept = {name: value for name, value in os.environ.items() if not foreign.match(name)}
    return {**kept, **{name: value for name, value in variables.items() if value is not None}}


@functools.lru_cache
def library_version():
    printed = subprocess.check_output([PYTHON, "-c", "import websocket; print(websocket.__version__)"], text=True)
    return tuple(map(int, printed.split(".")[:2]))


def environment_for(server, **variables):
    """Return an environment with the three required settings, for a server with a `url`."""
    required = {"SMALLEST_API_KEY": getattr(server, "key", KEY), "SMALLEST_VOICE_ID": "ryan", "SMALLEST_TEXT": "Hello."}
    return clean_environment(**{**STRICT, **required, "SMALLEST_WS_URL": server.url if server else None, **variables})


class Run:
    """What one run of the script left behind."""

    def __init__(self, process, out, err):
        self.code, self.out = process.returncode, out
        self.err = err.decode("utf-8", "backslashreplace")
        self.lines = self.err.splitlines()
        for shown in self.err, self.out.decode("latin-1"):
            assert "Traceback" not in shown and "Exception ignored" not in shown, shown
            assert not re.search(r"9zb\.|Cd~77|xyz\+Q", shown), "the key was printed"

    def figure(self, name):
        """Return the first number behind a name in the report."""
        return float(re.search(rf"(?m)^{name}: ([0-9.]+)", self.err).group(1))


def start(*arguments, env, cwd, script=SCRIPT, **options):
    # A shell lets commands in the background ignore Ctrl-C, and their children would do so too.
    obey_interrupts = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    options = {"stdin": DEVNULL, "stdout": PIPE, "stderr": PIPE, "preexec_fn": obey_interrupts, **options}
    return subprocess.Popen([PYTHON, str(script), *arguments], env=env, cwd=cwd, **options)


def finish(process, **options):
    try:
        out, err = process.communicate(timeout=60, **options)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return Run(process, out or b"", err or b"")


@pytest.fixture
def run(tmp_path):
    """Run the script in a folder of its own, where asked to against a server that plays, and return its Run."""

    def run_script(*arguments, server=None, play=None, env=None, stdin=None, **options):
        if play:
            with ScriptedServer(play) as server:
                return run_script(*arguments, server=server, env=env, stdin=stdin, **options)
        env = environment_for(server, **(env or {}))
        return finish(start(*arguments, env=env, cwd=tmp_path, stdin=PIPE, **options), input=stdin)

    return run_script


def run_program(code, folder, **variables):
    """Run a program that imports the script, or a module in the folder, and return its Run."""
    env = clean_environment(PYTHONPATH=str(ROOT), PYTHONDONTWRITEBYTECODE="1", **STRICT, **variables)
    return finish(start(env=env, cwd=folder, script="-c" + code))


def edit_script(folder, *edits):
    """Return a copy of the script, edited as a person would: each edit is a line and what takes its place."""
    source = SCRIPT.read_text(encoding="utf-8")
    for line, edited in edits:
        assert source.count(line) == 1, line
        source = source.replace(line, edited)
    copy = folder / "edited.py"
    copy.write_text(source, encoding="utf-8")
    return copy


def read_wav(path):
    """Return the PCM and the sample rate of a 16-bit mono WAV file."""
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getcomptype()) == (1, 2, "NONE")
        return file.readframes(file.getnframes()), file.getframerate()


@pytest.fixture
def old_output(tmp_path):
    """Return the folder that the script runs in, with an output that no failure may touch."""
    (tmp_path / "output.wav").write_bytes(b"old")
    return tmp_path


def check_fault(result, folder, words, kept=b"", code=1):
    """Check one line that says what happened, what is kept and what is left."""
    lines = [line for line in result.lines if not line.startswith(("Writing: ", "Connection: ", "TTFB: "))]
    assert result.code == code, result.err
    assert re.search(words, lines[0]), result.err
    assert all(line.isprintable() and len(line) < 600 for line in result.err.split("\n"))
    assert not re.search(r"\.\.( |$)", lines[0])
    assert (folder / "output.wav").read_bytes() == b"old"
    partials = partial_files(folder)
    assert lines[1:] == [f"Kept: {path} holds {len(kept) / 48000:.2f} s of audio." for path in partials]
    assert [read_wav(path) for path in partials] == ([(kept, 24000)] if kept else [])
    assert len(list(folder.glob("output*"))) == 1 + len(partials)


def partial_files(folder):
    """Return the files of runs that are not whole; every run has digits of its own."""
    return [path for path in folder.iterdir() if re.fullmatch(r"output\.partial-[0-9a-f]{8}\.wav", path.name)]


@pytest.fixture(scope="session")
def lightning():
    """Return tests/lightning_server.py, running: its `url`, its `live_url` and its `key`."""
    command = [sys.executable, "-u", str(SERVER), "--port", "0"]
    with subprocess.Popen(command, stdout=PIPE, env=clean_environment(), text=True) as process:
        printed = [process.stdout.readline() for _ in range(5)]
        settings = dict(re.findall(r"(?m)^  (?:export|set) (\w+)='?(.*?)'?$", "".join(printed)))
        url, key = settings["SMALLEST_WS_URL"], settings["SMALLEST_API_KEY"]
        yield SimpleNamespace(url=url, live_url=url + LIVE_PATH, key=key, printed=printed)
        process.terminate()


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """Return a throw-away authority: the `file` of its certificate, and what makes a server's `context` of TLS."""
    ca = trustme.CA()
    file = str(tmp_path_factory.mktemp("authority") / "ca.pem")
    ca.cert_pem.write_to_path(file)

    def make_context(host, **options):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert(host, **options).configure_cert(context)
        return context

    return SimpleNamespace(file=file, context=make_context, issue_cert=ca.issue_cert)
