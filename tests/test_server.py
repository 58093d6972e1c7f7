"""The local server speaks the protocol to other clients than the script too."""

import base64
import contextlib
import json
import subprocess
import sys
import time

import pytest
from websockets.exceptions import ConnectionClosedOK
from websockets.sync.client import connect

from conftest import PYTHON, SCRIPT, SERVER, V2_PATH, clean_environment, read_wav

MESSAGE = {"voice_id": "magnus", "model": "lightning_v3.1", "language": "en", "sample_rate": 24000, "speed": 1.0}


@pytest.fixture
def client(lightning):
    def open_client(url=lightning.live_url, query=""):
        return connect(url + query, additional_headers={"Authorization": f"Bearer {lightning.key}"})

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
        ids = {"request_id"} if client.request.path == V2_PATH else {"session_id", "request_id"}
        assert message["status"] == "chunk" and ids <= set(message)
        pcm += base64.b64decode(message["data"]["audio"])


def test_text_in_pieces_is_one_speech(client):
    """As a client streams words of a language model: pieces that go on, then an empty one that flushes."""
    with client() as pieces, client() as whole:
        for piece in "One two three, ", "four five six, ", "seven eight.":
            send(pieces, piece, **{"continue": True})
        with pytest.raises(TimeoutError):
            pieces.recv(timeout=0.3)
        pieces.send('{"flush": true}')  # the rest was said with the pieces
        send(whole, "One two three, four five six, seven eight.")
        spoken = receive(whole)[0]
        assert receive(pieces)[0] == spoken and len(spoken) > 48000
        pieces.send('{"flush": true}')
        assert receive(pieces)[0] == b""


def test_flush_and_the_longest_wait_speak_what_is_buffered(client):
    with client() as speaking:
        for fields in {"flush": True}, {"max_buffer_flush_ms": 200}:
            started = time.perf_counter()
            send(speaking, "One.", **{"continue": True, **fields})
            receive(speaking, until="chunk")
            assert time.perf_counter() - started > fields.get("max_buffer_flush_ms", 0) / 1000
            with contextlib.suppress(TimeoutError):
                while speaking.recv(timeout=0.3):
                    pass
        send(speaking, "")  # no more text: that is the end
        assert receive(speaking)[0] == b""


VOICES = [(name, "") for name in ("emily", "ryan", "arman", "mia")]
VOICES += [(name, "lightning_v3.1") for name in ("magnus", "olivia", "sophia", "meher")]


@pytest.mark.parametrize(("voice", "model"), VOICES)
def test_same_text_sounds_the_same_every_time(client, lightning, voice, model):
    """After another text too, and a second later: a voice with noise would sound different."""
    spoken = []
    with client(lightning.live_url if model else lightning.url + V2_PATH) as speaking:
        for text in "The quick brown fox.", "The quick brown fox jumps.", "The quick brown fox.":
            speaking.send(json.dumps({"text": text, "voice_id": voice}))
            pcm, last = receive(speaking)
            spoken.append(pcm)
            time.sleep(0.6)
    assert spoken[0] == spoken[2] and 48000 < len(spoken[0]) < len(spoken[1])
    v2 = {"status": "complete", "message": "All chunks sent", "done": True, "request_id": last["request_id"]}
    assert "session_id" in last if model else last == v2


@pytest.mark.parametrize("exempt", [{}, {"no_proxy": "none.example"}, {"NO_PROXY": "none.example"}])
def test_command_finds_the_server_behind_a_proxy_that_is_down(tmp_path, exempt):
    command = [sys.executable, str(SERVER), "--", PYTHON, str(SCRIPT)]
    env = clean_environment(http_proxy="http://127.0.0.1:1", HTTP_PROXY="http://127.0.0.1:1", **exempt)
    assert subprocess.call(command, env=env, cwd=tmp_path) == 0
    assert len(read_wav(tmp_path / "output.wav")[0]) > 48000


def test_ids_of_the_client_come_back(client):
    with client() as speaking:
        send(speaking, "One.", session_id="mine", request_id="r 1")
        receive(speaking, external_session_id="mine", external_request_id="r 1")
        send(speaking, "Two.", session_id="mine", request_id="r 2", speed=9)
        receive(speaking, until="error", external_session_id="mine", external_request_id="r 2")


@pytest.mark.parametrize("seconds", ["0.3", "abc", "", "-1", "nan", "inf"])
def test_idle_connection_is_closed_after_the_seconds_of_the_url(client, seconds):
    with client(query="?timeout=" + seconds) as idle:
        if seconds == "0.3":
            message = receive(idle, until="error")[1]
            assert message["message"] == "Connection timed out after 0.3 seconds of inactivity"
        ended, wait = (ConnectionClosedOK, 5) if seconds == "0.3" else (TimeoutError, 0.3)
        with pytest.raises(ended):
            idle.recv(timeout=wait)


WRONG = [
    ("{", "Invalid JSON"),
    (MESSAGE, "text must be a str"),
    ({**MESSAGE, "text": ""}, "must not be empty"),
    ({**MESSAGE, "text": "x", "sample_rate": 7000}, "sample_rate must be a number from 8000 to 48000"),
    ({**MESSAGE, "text": "x", "voice_id": "ryan"}, "Voice ryan not found"),
    ({"text": "x"}, "Voice None not found"),
]


@pytest.mark.parametrize(("data", "words"), WRONG)
def test_error_message_leaves_the_connection_open(client, data, words):
    with client() as speaking:
        speaking.send(data if isinstance(data, str) else json.dumps(data))
        assert words in receive(speaking, until="error")[1]["message"]
        send(speaking, "One.")
        assert receive(speaking)[0]
