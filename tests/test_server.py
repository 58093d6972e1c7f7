"""The local server speaks the protocol to other clients than the script too."""

import base64
import contextlib
import json
import time

import pytest
from websockets.sync.client import connect

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
        assert message["status"] == "chunk" and {"session_id", "request_id"} <= set(message)
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


def test_same_text_sounds_the_same_every_time(client):
    with client() as speaking:
        spoken = []
        for text in "One.", "One, two, three.", "One.":
            send(speaking, text)
            spoken.append(receive(speaking)[0])
    assert spoken[0] == spoken[2] and 0 < len(spoken[0]) < len(spoken[1])


def test_ids_of_the_client_come_back(client):
    with client() as speaking:
        send(speaking, "One.", session_id="mine", request_id="r 1")
        receive(speaking, external_session_id="mine", external_request_id="r 1")
        send(speaking, "Two.", session_id="mine", request_id="r 2", speed=9)
        receive(speaking, until="error", external_session_id="mine", external_request_id="r 2")


def test_idle_connection_is_closed(client):
    with client(query="?timeout=0.3") as idle:
        message = receive(idle, until="error")[1]
        assert message["message"] == "Connection timed out after 0.3 seconds of inactivity"
        with pytest.raises(Exception, match="1000"):
            idle.recv(timeout=5)


@pytest.mark.parametrize("seconds", ["abc", "", "-1", "nan", "inf"])
def test_idle_seconds_that_are_no_number_are_the_usual_ones(client, seconds):
    with client(query="?timeout=" + seconds) as speaking:
        with pytest.raises(TimeoutError):
            speaking.recv(timeout=0.3)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("{", "Invalid JSON"),
        (MESSAGE, "text must be a str"),
        ({**MESSAGE, "text": ""}, "must not be empty"),
        ({**MESSAGE, "text": "x", "sample_rate": 7000}, "sample_rate must be a number from 8000 to 48000"),
        ({**MESSAGE, "text": "x", "voice_id": "ryan"}, "Voice ryan not found"),
        ({"text": "x"}, "Voice None not found"),
    ],
)
def test_error_message_leaves_the_connection_open(client, data, words):
    with client() as speaking:
        speaking.send(data if isinstance(data, str) else json.dumps(data))
        assert words in receive(speaking, until="error")[1]["message"]
        send(speaking, "One.")
        assert receive(speaking)[0]
