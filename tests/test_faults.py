"""Whatever happens: one line, the right exit code, the audio kept, the old output untouched, no key."""

import os
import re
import resource
import signal
import socket
import struct
import subprocess
import time

import pytest
from websockets.frames import Opcode

from conftest import KEY, RETIRED, check_fault, environment_for, finish, make_device, read_wav, start
from scripted_server import PCM, ScriptedServer, say

KEPT = r"Kept: output.partial.wav holds 1\.07 s of audio\."
HOSTILE = "\x1b[31mred\x1b[0m\r\nnew line\u202eright to left\x9b31m\x07" + "x" * 3_000_000


def sends(*messages):
    return lambda peer: [peer.json(message) for message in messages]


def sends_text(data):
    return lambda peer: peer.frame(Opcode.TEXT, data)


def sends_bytes(data):
    return lambda peer: peer.send(data)


def closes(code, reason=""):
    return lambda peer: peer.close(code, reason)


def resets(peer):
    time.sleep(0.2)  # a reset throws away what is still on its way
    peer.reset()


def leaves(peer):
    peer.sock.shutdown(socket.SHUT_RDWR)


def repeats(send):
    def play(peer):
        while True:
            send(peer)
            time.sleep(0.1)

    return play


def audio(value):
    return {"status": "chunk", "data": {"audio": value}}


NO_AUDIO = r"No audio came for 0\.7 s"
LOST = "The connection was lost within the speech: .*Try again"
DAMAGED = "not JSON with base64 audio, check the URL: "

# name, what the service does once it has the payload, words that the user reads
AFTER_PAYLOAD = [
    ("error message", sends({"status": "error", "message": "Voice not found"}), "error: .*Voice not found"),
    ("error string", sends({"status": "error", "error": "Voice not found"}), "error: .*Voice not found"),
    ("error object", sends({"status": "error", "error": {"message": "Broke", "code": "E42"}}), "Broke.*E42"),
    ("error of V2", sends({"status": "error", "error_code": "MODEL_DEPRECATED"}), f"DEPRECATED.*{RETIRED}"),
    ("error without status", sends({"error": "Concurrency limit"}), "error: .*Concurrency limit"),
    ("close", closes(1011, "out of memory"), "hung up .*: close code 1011, out of memory. Try again"),
    ("reset", resets, LOST),
    ("end", leaves, LOST),
    ("silence", lambda peer: peer.wait(), NO_AUDIO),
    ("pings only", repeats(lambda peer: peer.frame(Opcode.PING, b"still here")), NO_AUDIO),
    ("keep-alive only", repeats(sends({"status": "keepalive"})), NO_AUDIO),
    ("empty chunks only", repeats(sends(audio(""))), NO_AUDIO),
    ("frame that stops", sends_bytes(b"\x81\x7f\x7f" + b"\xff" * 7 + b"{"), NO_AUDIO),
    ("not JSON", sends_text(b"<html>Bad gateway</html>"), DAMAGED + "<html>Bad gateway</html>"),
    ("not an object", sends_text(b'["chunk"]'), DAMAGED + r'\["chunk"\]'),
    ("not UTF-8", sends_text(b'{"status": "\xff"}'), DAMAGED),
    ("deep JSON", sends_text(b"[" * 100_000), DAMAGED),
    ("binary message", lambda peer: peer.frame(Opcode.BINARY, PCM), DAMAGED),
    ("data a string", sends({"status": "chunk", "data": "AAAA"}), DAMAGED),
    ("audio a number", sends(audio(5)), DAMAGED),
    ("not base64", sends(audio("????")), DAMAGED),
    ("audio of complete damaged", sends({"status": "complete", "data": {"audio": 5}}), DAMAGED),
    ("escapes and megabytes", sends({"status": "error", "message": HOSTILE}), "31mred"),
    (
        "the key in an error",
        sends({"status": "error", "message": f"Key {KEY} is old"}),
        "Key .API key. is old",
    ),
    ("the key in a close reason", closes(1008, f"bad {KEY}"), "bad .API key."),
    ("the key at the cut", sends_text(b"x" * 285 + b" " + KEY.encode() * 3), "x.*.API key."),
]


@pytest.mark.parametrize("chunks", [[], [PCM]], ids=["before audio", "after audio"])
@pytest.mark.parametrize(("then", "words"), [row[1:] for row in AFTER_PAYLOAD], ids=[row[0] for row in AFTER_PAYLOAD])
def test_fault_after_payload(run, old_output, chunks, then, words):
    with ScriptedServer(say(*chunks, then=then)) as server:
        result = run("--timeout", "0.7", server=server)
    check_fault(result, old_output, words, kept=PCM if chunks else b"")


@pytest.mark.parametrize("chunks", [[], [b""], [b"\0"], [PCM, b"\0"]])
def test_complete_is_not_believed_without_whole_audio(run, old_output, chunks):
    with ScriptedServer(say(*chunks)) as server:
        check_fault(
            run(server=server),
            old_output,
            "ended the speech without whole audio",
            kept=chunks and chunks[0][1:] and PCM,
        )


def test_words_of_a_service_that_hangs_up_before_the_payload(run, old_output):
    def play(peer):
        peer.accept()
        peer.json({"status": "error", "message": "Concurrency limit"})
        peer.reset()

    with ScriptedServer(play) as server:
        for _ in range(5):
            check_fault(run(server=server), old_output, "Concurrency limit")


def test_key_of_another_form_is_not_repeated(run):
    key = "on-premises/key+1"
    with ScriptedServer(say(then=sends({"status": "error", "message": f"Key {key} is old"}))) as server:
        result = run(server=server, env={"SMALLEST_API_KEY": key})
    assert "Key [API key] is old" in result.err and key not in result.err


def test_end_is_not_waited_for(run):
    """The script says goodbye with a close frame, and does not wait for a peer that never answers it."""
    seen = []

    def goodbye(peer):
        peer.complete()
        sent = time.perf_counter()
        seen.append(peer.next_frame(Opcode.CLOSE).data)
        peer.wait()
        seen.append(time.perf_counter() - sent)

    with ScriptedServer(say(PCM, then=goodbye)) as server:
        assert run(server=server).code == 0
        wait_for(lambda: len(seen) == 2)
    assert seen[0] == struct.pack("!H", 1000) and seen[1] < 1.5


def wait_for(condition):
    deadline = time.perf_counter() + 10
    while not condition():
        assert time.perf_counter() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("when", ["reading the text", "connecting", "before audio", "after audio"])
def test_interrupted(old_output, when):
    chunks, flags = [PCM] * (when == "after audio"), ["--text", "-"] * (when == "reading the text")
    play = say(*chunks, then=lambda peer: peer.wait())
    with ScriptedServer(play if "audio" in when else lambda peer: peer.wait()) as server:
        process = start(*flags, env=environment_for(server), cwd=old_output, stdin=subprocess.PIPE)
        wait_for(lambda: flags or (server.peers and ("audio" not in when or hasattr(server.peers[0], "payload"))))
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        check_fault(finish(process), old_output, "Interrupted", kept=b"".join(chunks), code=130)


def test_killed_in_the_middle(tmp_path):
    """What is on the disk is a WAV with every chunk so far, at every moment."""
    partial, kept = tmp_path / "output.partial.wav", b""
    for chunk in [os.urandom(size) for size in (2, 1000, 3333, 48001, 4)]:
        kept += chunk
        whole = kept[: len(kept) // 2 * 2]  # half a sample waits for its other half
        with ScriptedServer(say(kept[:-1], kept[-1:], then=lambda peer: peer.wait())) as server:
            process = start(env=environment_for(server), cwd=tmp_path)
            wait_for(lambda: partial.exists() and partial.stat().st_size == 44 + len(whole))  # noqa: B023
            time.sleep(0.05)
            process.kill()
            process.communicate()
        assert read_wav(partial) == (whole, 24000) and not (tmp_path / "output.wav").exists()


@pytest.mark.parametrize("output", ["x" * 250, "/proc/output.wav"])
def test_output_that_cannot_be_opened(run, tmp_path, output):
    with ScriptedServer(say(PCM)) as server:
        result = run("-o", output, server=server)
        assert server.connections == 0
    assert result.code == 2 and result.lines[0].startswith(f"{output} cannot be written: ")
    assert len(result.lines) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [43, 44, 100, 8192, 20_000, 44 + 51_200, 44 + 51_200 + 7, 2 * 51_200 + 43])
def test_full_disk(old_output, limit):
    """A limit on the size of a file fails like a full disk: a write takes some of the bytes, the next none."""
    with ScriptedServer(say(PCM, PCM)) as server:
        set_limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: E731
        result = finish(start(env=environment_for(server), cwd=old_output, preexec_fn=set_limit))
    kept = PCM * ((limit - 44) // len(PCM)) if limit > 44 else b""
    check_fault(result, old_output, "output.wav cannot be written: .*File too large", kept=kept)


def test_full_device(run, tmp_path):
    with ScriptedServer(say(PCM)) as server:
        result = run("-o", make_device(tmp_path, "full", 7), server=server)
    assert result.code == 1 and "full cannot be written: [Errno 28]" in result.lines[-1]


def test_output_that_cannot_be_replaced(run, tmp_path):
    def blocks(peer):
        (tmp_path / "output.wav").mkdir()
        peer.complete()

    with ScriptedServer(say(PCM, then=blocks)) as server:
        result = run(server=server)
    assert result.code == 1 and re.fullmatch(KEPT, result.lines[-1])
    assert re.search("cannot be written: .*'output.partial.wav' -> 'output.wav'", result.err)
    assert read_wav(tmp_path / "output.partial.wav") == (PCM, 24000)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_console_that_cannot_print(run, tmp_path, encoding):
    output = tmp_path / "größe 🎉.wav"
    with ScriptedServer(say(PCM)) as server:
        assert run("-o", str(output), server=server, env={"PYTHONIOENCODING": encoding}).code == 0
    assert read_wav(output) == (PCM, 24000)
    with ScriptedServer(say(then=sends({"status": "error", "message": "आवाज़ 🎉"}))) as server:
        result = run(server=server, env={"PYTHONIOENCODING": encoding})
    assert result.code == 1 and "The service reports an error" in result.err


@pytest.mark.parametrize("output", ["output.wav", "-"])
@pytest.mark.parametrize("case", ["closed", "full", "read by nobody"])
def test_standard_error_that_takes_nothing(tmp_path, output, case):
    reader, writer = os.pipe()
    os.close(reader)
    with ScriptedServer(say(PCM)) as server, open("/dev/full", "wb") as full:
        close = lambda: [os.close(stream) for stream in ((2,) if output == "-" else (1, 2))]  # noqa: E731
        options = {"closed": {"preexec_fn": close}, "full": {"stderr": full}}.get(case, {"stderr": writer})
        result = finish(start("-o", output, env=environment_for(server), cwd=tmp_path, **options))
    os.close(writer)
    assert result.code == 0 or case != "closed"  # Python may have a code of its own for what it cannot flush
    assert result.out[44:] == PCM if output == "-" else read_wav(tmp_path / output) == (PCM, 24000)
