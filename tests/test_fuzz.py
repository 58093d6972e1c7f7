"""Whatever a server sends, the script ends with 0 or 1, in time, without a traceback, and with 0 only for the truth."""

import base64
import json

import pytest
from conftest import environment_for, finish, read_wav, start
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_server import ScriptedServer
from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, Protocol, Side

pytestmark = pytest.mark.timeout(0)  # as long as the number of examples makes it
SHARDS = 4  # each is a test of its own, so that they can run side by side
FATAL, WILD, AUDIO, COMPLETE = "fatal", "wild", "audio", "complete"


@pytest.fixture
def hostile(request):
    """Return the decorator of a fuzz test: as many examples as the command line wants, never the same ones twice."""
    examples = max(1, request.config.getoption("--fuzz") // SHARDS)
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)


def run_against(play, folder):
    """Run the script against a server; return the Run and the audio that it left."""
    for name in "output.wav", "output.partial.wav":
        (folder / name).unlink(missing_ok=True)
    with ScriptedServer(play) as server:
        result = finish(start("--timeout", "0.5", env=environment_for(server), cwd=folder))
    assert result.code in (0, 1), result.err
    assert result.seconds < 5
    assert (folder / "output.wav").exists() == (result.code == 0)
    left = folder / ("output.wav" if result.code == 0 else "output.partial.wav")
    return result, read_wav(left)[0] if left.exists() else b""


# --- Messages -----------------------------------------------------------------

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner), max_leaves=9
)
pcm = st.binary(max_size=2000)
damaged = (
    st.text(max_size=50).filter(lambda text: len(text) % 4 or not text.isascii() or not text.isalnum()).filter(len)
)


def encode(data):
    return base64.b64encode(data).decode()


def chunk(audio):
    return {"status": "chunk", "data": {"audio": audio}}


def unknown(message):
    """Return a message that a client passes over, or may complain about."""
    return {**message, "status": "chunky" if message.get("status") in ("chunk", "complete") else message.get("status")}


messages = st.one_of(
    pcm.map(lambda data: (AUDIO, data, chunk(encode(data)))),
    pcm.map(lambda data: (AUDIO, data, {**chunk(encode(data)), "session_id": "s", "error": None})),
    damaged.map(lambda text: (WILD, b"", chunk(text))),
    anything.filter(lambda value: not isinstance(value, str)).map(lambda value: (FATAL, b"", chunk(value))),
    anything.filter(lambda value: not isinstance(value, dict)).map(
        lambda value: (FATAL, b"", {"status": "chunk", "data": value})
    ),
    anything.map(lambda value: (FATAL, b"", {"status": "error", "message": value, "error": value})),
    st.dictionaries(st.sampled_from(["status", "data", "error", "message", "x"]), anything).map(
        lambda message: (WILD, b"", unknown(message))
    ),
    anything.filter(lambda value: not isinstance(value, dict)).map(lambda value: (FATAL, b"", value)),
    st.binary(max_size=300).map(lambda data: (WILD, b"", data)),
    st.just((COMPLETE, b"", {"status": "complete"})),
    pcm.map(lambda data: (COMPLETE, data, {"status": "complete", "data": {"audio": encode(data)}})),
)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_messages(hostile, tmp_path, shard):
    @hostile
    @given(st.lists(messages, max_size=8), st.sampled_from(["complete", "close", "silence"]))
    def check(conversation, end):
        if end == "complete":
            conversation = [*conversation, (COMPLETE, b"", {"status": "complete"})]

        def play(peer):
            peer.hear()
            for _, _, message in conversation:
                data = message if isinstance(message, bytes) else json.dumps(message).encode()
                peer.frame(Opcode.TEXT, data)
            if end == "close":
                peer.close(1000)

        kinds = [kind for kind, _, _ in conversation]
        told = kinds.index(COMPLETE) + 1 if COMPLETE in kinds else len(kinds)
        audio = b"".join(data for _, data, _ in conversation[:told])
        result, left = run_against(play, tmp_path)
        if COMPLETE not in kinds or FATAL in kinds[:told] or len(audio) % 2 or not audio:
            assert result.code == 1, result.err
        elif WILD not in kinds[:told]:
            assert result.code == 0, result.err
        if result.code == 0:
            assert left == audio
        else:
            assert audio.startswith(left)

    check()


# --- Frames -------------------------------------------------------------------


def good_bytes(sizes):
    """Return the frames of a good conversation."""
    frames = [Frame(Opcode.PING, b"ping")]
    for size in sizes:
        frames.append(Frame(Opcode.TEXT, json.dumps(chunk(encode(bytes(size)))).encode()))
    frames.append(Frame(Opcode.TEXT, b'{"status": "complete"}'))
    return b"".join(frame.serialize(mask=False) for frame in frames)


edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "drop", "add", "cut"]), st.integers(0, 10**6), st.binary(min_size=1, max_size=9)
    ),
    min_size=1,
    max_size=4,
)


def damage(data, changes):
    data = bytearray(data)
    for kind, place, new in changes:
        at = place % (len(data) + 1)
        if kind == "flip":
            data[at : at + len(new)] = new
        elif kind == "drop":
            del data[at : at + len(new)]
        elif kind == "add":
            data[at:at] = new
        else:
            del data[at:]
    return bytes(data)


def heard_by_another_client(data):
    """Return what an independent WebSocket client reads: the audio, and whether it ends with `complete`."""
    protocol = Protocol(Side.CLIENT, state=OPEN, max_size=None)
    protocol.receive_data(data)
    audio, text = b"", b""
    for frame in protocol.events_received():
        if frame.opcode in (Opcode.TEXT, Opcode.CONT):
            text += frame.data
            if frame.fin:
                message, text = json.loads(text.decode()), b""
                if message.get("status") in ("chunk", "complete"):
                    found = (message.get("data") or {}).get("audio") or ""
                    audio += base64.b64decode(found, validate=True)
                if message.get("status") == "complete":
                    return audio, True
    return audio, False


@pytest.mark.parametrize("shard", range(SHARDS))
def test_frames(hostile, tmp_path, shard):
    @hostile
    @given(st.lists(st.integers(0, 300), min_size=1, max_size=4), edits)
    def check(sizes, changes):
        data = damage(good_bytes(sizes), changes)

        def play(peer):
            peer.hear()
            peer.send(data)

        result, left = run_against(play, tmp_path)
        if result.code == 0:
            assert heard_by_another_client(data) == (left, True)

    check()


# --- The handshake ------------------------------------------------------------


@pytest.mark.parametrize("shard", range(SHARDS))
def test_handshakes(hostile, tmp_path, shard):
    good = (
        b"HTTP/1.1 %d Something\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAA\r\n"
        b"Location: ws://127.0.0.1/\r\nRetry-After: 1\r\nSet-Cookie: a=b\r\nContent-Length: 17\r\n\r\n"
        b'{"message": "no"}'
    )

    @hostile
    @given(st.sampled_from([101, 200, 302, 308, 401, 404, 429, 500]), edits)
    def check(status, changes):
        data = damage(good % status, changes)
        result, left = run_against(lambda peer: (peer.send(data), peer.sock.close()), tmp_path)
        assert result.code == 1 and left == b"" and len(result.lines) == 1

    check()
