"""The local server speaks the protocol to other clients than the script too."""

import base64
import json
import time

import pytest
from websockets.sync.client import connect

MESSAGE = {"voice_id": "magnus", "model": "lightning_v3.1", "language": "en", "sample_rate": 24000, "speed": 1.0}


@pytest.fixture
def client(lightning):
    def open_client(live=True, query=""):
        url = lightning.live_url if live else lightning.url
        return connect(url + query, additional_headers={"Authorization": f"Bearer {lightning.key}"})

    return open_client


def send(client, text, **fields):
    message = {**MESSAGE, "max_buffer_flush_ms": 0, "continue": False, "flush": False, "text": text, **fields}
    client.send(json.dumps(message))


def receive(client, until="complete"):
    """Return the PCM up to a message of that status, and that message."""
    pcm = b""
    while True:
        message = json.loads(client.recv(timeout=10))
        if message["status"] == until:
            return pcm, message
        assert message["status"] == "chunk" and {"session_id", "request_id"} <= set(message)
        pcm += base64.b64decode(message["data"]["audio"])


def test_text_in_pieces_ends_with_one_complete(client):
    """As a client streams words of a language model: pieces that go on, then an empty one that flushes."""
    with client() as pieces, client() as whole:
        for piece in "One two three, ", "four five six, ", "seven eight.":
            send(pieces, piece, **{"continue": True})
        send(pieces, "", flush=True)
        send(whole, "One two three, four five six, seven eight.")
        lengths = [len(receive(speaking)[0]) for speaking in (pieces, whole)]
        assert lengths[0] == pytest.approx(lengths[1], rel=0.02) and lengths[0] > 48000
        with pytest.raises(TimeoutError):
            pieces.recv(timeout=0.3)


def test_flush_speaks_what_is_buffered_and_waits_for_more(client):
    with client() as speaking:
        send(speaking, "One.", **{"continue": True})
        with pytest.raises(TimeoutError):
            speaking.recv(timeout=0.3)
        send(speaking, " Two.", **{"continue": True, "flush": True})
        assert json.loads(speaking.recv(timeout=5))["status"] == "chunk"
        send(speaking, "Three.")
        assert receive(speaking)[0]


def test_connection_serves_one_request_after_another(client):
    with client() as speaking:
        lengths = []
        for text in "One.", "One, two, three, four, five, six, seven.":
            send(speaking, text)
            lengths.append(len(receive(speaking)[0]))
    assert 0 < lengths[0] < lengths[1]


def test_complete_backoff(client):
    with client() as speaking:
        send(speaking, "One.", complete_backoff_ms=400)
        receive(speaking, until="chunk")
        started = time.perf_counter()
        receive(speaking)
        assert 0.3 < time.perf_counter() - started < 1


def test_idle_connection_is_closed(client):
    with client(query="?timeout=0.3") as idle:
        message = receive(idle, until="error")[1]
        assert message["message"] == "Connection timed out after 0.3 seconds of inactivity"
        with pytest.raises(Exception, match="1000"):
            idle.recv(timeout=5)


def test_v2_has_no_session_id(client):
    with client(live=False) as speaking:
        speaking.send(json.dumps({"text": "One.", "voice_id": "ryan"}))
        message = json.loads(speaking.recv(timeout=5))
    assert message["status"] == "chunk" and "session_id" not in message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("{", "Invalid JSON"),
        ("[]", "Invalid JSON"),
        (json.dumps({**MESSAGE}), "text must be a str"),
        (json.dumps({**MESSAGE, "text": ""}), "must not be empty"),
        (json.dumps({**MESSAGE, "text": "x", "sample_rate": 7000}), "sample_rate must be a number from 8000 to 48000"),
        (json.dumps({**MESSAGE, "text": "x", "speed": 3}), "speed must be"),
        (json.dumps({**MESSAGE, "text": "x", "speed": True}), "speed must be"),
        (json.dumps({**MESSAGE, "text": "x", "complete_backoff_ms": 10001}), "complete_backoff_ms must be"),
        (json.dumps({**MESSAGE, "text": "x", "voice_id": "ryan"}), "Voice ryan not found"),
    ],
)
def test_error_message_leaves_the_connection_open(client, data, words):
    with client() as speaking:
        speaking.send(data)
        assert words in receive(speaking, until="error")[1]["message"]
        send(speaking, "One.")
        assert receive(speaking)[0]
