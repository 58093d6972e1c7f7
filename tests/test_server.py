"""The local server speaks the protocol to other clients than the script too."""

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import espeakng_loader
import pytest
from websockets.exceptions import ConnectionClosedOK
from websockets.sync.client import connect

from conftest import PYTHON, SCRIPT, SERVER, V2_PATH, clean_environment, read_wav

MESSAGE = {"voice_id": "kaitlyn", "model": "lightning_v3.1_pro", "language": "en", "sample_rate": 24000, "speed": 1.0}
SAY = ["--voice-id", "emily", "--text", "The quick brown fox jumps over the lazy dog."]


@pytest.fixture
def client(lightning):
    def open_client(url=lightning.live_url):
        return connect(url, additional_headers={"Authorization": f"Token {lightning.key}"})

    return open_client


def send(client, text, **fields):
    client.send(json.dumps({**MESSAGE, "continue": False, "flush": False, "text": text, **fields}))


def receive(client, until="complete", **same):
    """Return the PCM up to a message of that status, and that message; all have these fields."""
    pcm = b""
    while True:
        message = json.loads(client.recv(timeout=10))
        assert {**message, **same} == message
        if message["status"] == until:
            return pcm, message
        assert message["status"] == "chunk"
        pcm += base64.b64decode(message["data"]["audio"])


@pytest.mark.parametrize("closing", [{"text": ""}, {"context_close": True}, {"flush": True}])
@pytest.mark.parametrize("context", ["", "c"])
def test_fragments_are_one_speech(client, context, closing):
    """As a client streams words of a language model; the server puts a blank between the fragments of a context."""
    blank = "" if context else " "
    with client() as fragments, client() as whole:
        for fragment in "One two three,", "four five six.":
            send(fragments, fragment + blank, context_id=context, **{"continue": True})
        fragments.send(json.dumps({"context_id": context, **closing}))  # the rest was said with the fragments
        send(whole, "One two three, four five six." + blank)
        assert receive(fragments)[0] == receive(whole)[0] != b""
        for nothing in {"flush": True}, {"context_close": True}:
            fragments.send(json.dumps({"context_id": context, **nothing}))  # nothing is buffered: no answer
        with pytest.raises(TimeoutError):
            fragments.recv(timeout=0.3)


def test_what_waits_too_long_is_spoken_and_what_is_cancelled_is_not(client):
    with client() as fragments, client() as alone:
        send(fragments, "One two three.", context_id="c", max_buffer_delay_ms=300, **{"continue": True})
        send(fragments, "A text of its own.")
        receive(fragments)
        first = receive(fragments)[1]
        assert first["session_id"].startswith("ws_") and first["request_id"].startswith("task_")
        time.sleep(0.5)  # the context is still open, so the connection is, too
        send(fragments, "Four five six.", context_id="c", max_buffer_delay_ms=5000, **{"continue": True})
        fragments.send('{"context_id": "c", "cancel_request": true}')
        send(fragments, "Seven.", context_id="c")
        send(alone, "Seven.")
        pcm, second = receive(fragments, session_id=first["session_id"])
        assert pcm == receive(alone)[0] and first["request_id"] != second["request_id"]


def test_live_endpoint_closes_after_a_plain_request_and_that_of_v2_does_not(client, lightning):
    """With `flush` the live one stays open, too, and as long as a second text is waiting."""
    with client() as plain, client() as flushed, client(lightning.url + V2_PATH) as v2:
        for text in "One.", "Two.":
            send(plain, text, complete_backoff_ms=500)
        assert receive(plain)[0] != receive(plain)[0] != b""
        with pytest.raises(ConnectionClosedOK):
            plain.recv(timeout=5)
        send(flushed, "One.", flush=True, session_id="mine", request_id="r 1")
        assert receive(flushed, external_session_id="mine", external_request_id="r 1")[0]
        send(v2, "One.", voice_id="aditi", request_id="r 1", speed="1.0")
        last = receive(v2, request_id="r 1")[1]
        assert last == {"status": "complete", "message": "All chunks sent", "done": True, "request_id": "r 1"}
        time.sleep(0.5)  # longer than the live endpoint waits before it closes
        for speaking in flushed, v2:
            speaking.send('{"type": "ping"}')
            assert json.loads(speaking.recv(timeout=5)) == {"type": "pong"}


def test_what_the_server_prints_is_enough_for_another_shell(lightning, tmp_path):
    *settings, last = [line for line in lightning.printed if line.startswith("  ")]
    say = last.replace("python ws_streaming_api.py", f'"{PYTHON}" "{SCRIPT}"')
    shell = ["bash", "-c", "".join(settings) + say]
    env = clean_environment(http_proxy="http://127.0.0.1:1")
    assert subprocess.call(shell, env=env, cwd=tmp_path, stderr=subprocess.DEVNULL) == 0
    assert len(read_wav(tmp_path / "output.wav")[0]) > 48000


@pytest.mark.parametrize("exempt", [{}, {"no_proxy": "none.example"}, {"NO_PROXY": "none.example"}])
def test_command_finds_the_server(tmp_path, exempt):
    """By a relative path, from its own folder, behind a proxy that is down, with a voice that is 150 letters deep."""
    deep = tmp_path / ("d" * 150)
    deep.mkdir()
    (deep / "espeakng_loader").symlink_to(Path(espeakng_loader.__file__).parent)
    command = [sys.executable, str(SERVER), "--", os.path.relpath(PYTHON, tmp_path), str(SCRIPT), *SAY]
    env = clean_environment(PYTHONPATH=deep, http_proxy="http://127.0.0.1:1", HTTP_PROXY="http://127.0.0.1:1", **exempt)
    assert subprocess.call(command, env=env, cwd=tmp_path) == 0
    assert len(read_wav(tmp_path / "output.wav")[0]) > 48000


def test_command_is_given_no_voice_and_no_text():
    """So who edits the placeholders of the script hears that text."""
    show = "import os; print(sorted(name for name in os.environ if name.startswith('SMALLEST_')))"
    shown = subprocess.check_output([sys.executable, SERVER, "--", sys.executable, "-c", show], env=clean_environment())
    assert shown == b"['SMALLEST_API_KEY', 'SMALLEST_WS_URL']\n"


WRONG = {
    "{": "Invalid JSON",
    '{"text": ""}': "text must not be empty",
    '{"text": "x"}': "Voice None not found",
    '{"text": "x", "speed": "fast"}': "speed must be a number from 0.5 to 2",
}


def test_error_message_leaves_the_connection_open(client):
    with client() as speaking:
        for data, words in WRONG.items():
            speaking.send(data)
            assert words in receive(speaking, until="error")[1]["message"]
        send(speaking, "One.")
        assert receive(speaking)[0]
