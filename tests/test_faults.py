"""Whatever happens: one line, the right exit code, the audio kept, the old output untouched, no key."""

import base64
import json
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import threading
import time
from operator import methodcaller as does
from pathlib import Path

import pytest
from websockets.frames import Frame, Opcode

from conftest import KEY, check_fault, environment_for, finish, partial_files, read_wav, start
from scripted_server import PCM, ScriptedServer, refusal, say


def says(**fields):
    return does("json", fields)


def floods(opcode, data):
    def play(peer):
        while True:
            peer.frame(opcode, data)

    return play


TEXT = Opcode.TEXT
NO_AUDIO = r"No audio came for [0-9.]+ s"
DAMAGED = "not JSON with base64 audio: "
HOSTILE = "\x1b[31mred\x1b[0m\r\nnew line\u202eright to left\x9b31m\x07" + "x" * 3_000_000

# What the service does once it has the payload, and words that the user reads.
AFTER_PAYLOAD = {
    "error message": (says(status="error", message="Retired model"), r'error: .*"Retired model"}\.$'),
    "error of V2": (says(error="disk_full", request_id="task_6ba7b810-9dad"), "error: .*disk_full.*task_6ba7b810-9dad"),
    "error in payload": (says(payload={"status": "error", "message": "Broke"}), "error: .*Broke"),
    "error beside nothing": (says(status=None, data={"error": "Broke"}), "error: .*Broke"),
    "close": (does("close", 1011, "out of memory."), r"1011, out of memory\.$"),
    "close without a word": (does("close", 1000), r"1000, no reason given\.$"),
    "close without a code": (does("frame", Opcode.CLOSE, b""), r"1005, no reason given\.$"),
    "reset": (lambda peer: (time.sleep(0.2), peer.reset()), "lost"),  # it throws away what is on its way
    "end": (lambda peer: peer.sock.shutdown(socket.SHUT_RDWR), "lost"),
    "silence": (does("wait"), rf"{NO_AUDIO}\.$"),
    "flood of pings": (floods(Opcode.PING, b""), rf"{NO_AUDIO}\.$"),
    "flood of keep-alives": (floods(TEXT, b'{"status": "keepalive"}'), NO_AUDIO + ', after {"status": "keepalive"}'),
    "frame that stops": (does("send", b"\x81\x7f\x7f" + b"\xff" * 7 + b"{"), NO_AUDIO),
    "not JSON": (does("frame", TEXT, b"<html>Bad gateway</html>"), DAMAGED + "Bad gateway"),
    "deep JSON": (does("frame", TEXT, b"[" * 100_000), DAMAGED),
    "not base64": (says(status="chunk", data={"audio": "????"}), DAMAGED),
    "WAV in a chunk": (does("chunk", b"RIFF\x24\0\0\0WAVEfmt " + PCM), "WAV, not PCM"),
    "escapes and megabytes": (says(status="error", message=HOSTILE), "31mred"),
}


@pytest.mark.parametrize("chunks", [[], [PCM]], ids=["before audio", "after audio"])
@pytest.mark.parametrize(("then", "words"), AFTER_PAYLOAD.values(), ids=AFTER_PAYLOAD)
def test_fault_after_payload(run, old_output, chunks, then, words):
    result = run("--timeout", "0.7", play=say(*chunks, then=then))
    check_fault(result, old_output, words, kept=PCM if chunks else b"")


@pytest.mark.parametrize("chunks", [[], [b""], [b"\0"], [PCM, b"\0"]])
def test_complete_is_not_believed_without_whole_audio(run, old_output, chunks):
    kept = PCM if PCM in chunks else b""
    check_fault(run(play=say(*chunks)), old_output, f" {len(b''.join(chunks))} bytes of PCM", kept)


def test_ping_is_no_audio(run, old_output):
    """The seconds that are told are those that passed."""
    result = run("--timeout", "3", play=say(then=lambda peer: (time.sleep(2.7), peer.send(b"\x89\0"), peer.wait())))
    check_fault(result, old_output, NO_AUDIO)
    assert 2.9 < float(re.search("came for ([0-9.]+) s", result.err).group(1)) < 5.5


PASSED_OVER = [{"status": "warning", "code": "model_deprecated"}, {"type": "error", "code": 5}, {"success": False}]
ENDS = {"silence": NO_AUDIO, "close": "1011, out of memory", "end": "lost.*"}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("message", PASSED_OVER)
def test_words_of_a_message_that_is_passed_over(run, old_output, message, end):
    """They stand behind what happened next, and not where audio came after them."""
    play = say(PCM, then=lambda peer: (peer.json(message), AFTER_PAYLOAD[end][0](peer)))
    words = f"{ENDS[end]}, after {re.escape(json.dumps(message))}"
    check_fault(run("--timeout", "0.7", play=play), old_output, words, kept=PCM)
    later = run(play=say(then=lambda peer: (peer.json(message), peer.chunk(PCM), peer.close(1011))))
    assert "TTFB: " in later.err and "after" not in later.err


AUDIO = json.dumps({"data": {"audio": base64.b64encode(PCM[:480]).decode()}}).encode()
BURST = (b"\x89\0" * 20 + Frame(TEXT, AUDIO).serialize(mask=False)) * 10  # one segment, or some of it may be lost
GONE = {
    "close": (lambda peer: (peer.accept(), peer.close(1008, "No credit")), "1008, No credit", b""),
    "error": (lambda peer: (peer.accept(), peer.json({"error": "No credit"})), "error: .*No credit", b""),
    "end": (lambda peer: (peer.hear(), peer.send(BURST)), "lost", PCM[:480] * 10),
}


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize(("play", "words", "kept"), GONE.values(), ids=GONE)
def test_what_came_from_a_service_that_is_gone(run, old_output, authority, play, words, kept, tls, attempt):
    """Its answers to what the script sends would be errors, before what has arrived is read."""
    play_and_go = lambda peer: (play(peer), peer.sock.close())  # noqa: E731
    with ScriptedServer(play_and_go, tls=authority.context("127.0.0.1") if tls else None) as server:
        result = run(server=server, env={"WEBSOCKET_CLIENT_CA_BUNDLE": authority.file})
    check_fault(result, old_output, words, kept)


LICENSE = "on-premises/key+1"


@pytest.mark.parametrize("given", [KEY, LICENSE, f"Token {LICENSE}", f"Bearer {LICENSE}"])
def test_key_is_hidden_wherever_it_stands(run, given):
    """It need not begin with sk_. No part of it is printed either, where the service's words are cut."""
    key = given.split()[-1]
    words = json.dumps({"message": f"Key {key} of Token {key}"}).encode()
    plays = [refusal(302, f"Location: /{key}"), refusal(401, body=words), refusal(500, body=words)]
    thens = [says(error=key), does("close", 1008, f"No {key}"), does("frame", TEXT, words)]
    thens += [does("frame", TEXT, b"x" * size + key.encode()) for size in (270, 280, 285, 290, 295, 299)]
    for play in plays + [say(then=then) for then in thens]:
        result = run("--timeout", "0.3", play=play, env={"SMALLEST_API_KEY": given})
        assert result.code == 1 and not re.search(r"sk_9|on-|key\+1|\+Q", result.err), result.err


def wait_for(condition):
    deadline = time.perf_counter() + 30
    while not condition():
        assert time.perf_counter() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("when", ["reading the text", "connecting", "before audio", "after audio"])
def test_interrupted(old_output, when):
    chunks, flags = [PCM] * (when == "after audio"), ["--text", "-"] * (when == "reading the text")
    play = say(*chunks, then=does("wait"))
    with ScriptedServer(play if "audio" in when else does("wait")) as server:
        process = start(*flags, env=environment_for(server), cwd=old_output, stdin=subprocess.PIPE)
        conditions = {
            "reading the text": lambda: process.stdin.write(b"x" * 1_000_000),  # it ends when somebody reads
            "connecting": lambda: server.requests,
            "before audio": lambda: server.peers and hasattr(server.peers[0], "payload"),
            "after audio": lambda: arrived(old_output, PCM),
        }
        wait_for(conditions[when])
        process.send_signal(signal.SIGINT)
        check_fault(finish(process), old_output, "Interrupted", kept=b"".join(chunks), code=130)


def arrived(folder, pcm):
    """Return whether there is a partial file with a header and just this PCM."""
    return any(path.read_bytes()[44:] == pcm for path in partial_files(folder))


def lengths(path):
    """Return the lengths of RIFF and of the data in the header of a WAV file."""
    return struct.unpack("<4xI32xI", path.read_bytes()[:44])


@pytest.mark.parametrize("size", [2, 3333, 48001])
def test_killed_in_the_middle(tmp_path, size):
    """What is on the disk is a WAV of unknown length with every chunk so far."""
    pcm = os.urandom(size)
    whole = pcm[: size // 2 * 2]  # half a sample waits for its other half
    with ScriptedServer(say(pcm[:-1], pcm[-1:], then=does("wait"))) as server:
        process = start(env=environment_for(server), cwd=tmp_path)
        wait_for(lambda: arrived(tmp_path, whole))
        process.kill()
        process.communicate()
    (partial,) = tmp_path.iterdir()
    assert read_wav(partial) == (whole, 24000) and lengths(partial) == (0x7FFFF024, 0x7FFFF000)


def test_two_runs_at_once(tmp_path):
    """Each has a file of its own, says what became of it, and leaves a header with the true lengths."""
    speeches = {"whole": b"\1\0" * 9000, "broken": b"\2\0" * 8000}
    both = threading.Barrier(2)

    def play(peer):
        peer.chunk(speeches[peer.hear()["text"]])
        both.wait(30)
        peer.complete() if peer.payload["text"] == "whole" else peer.close(1011)

    with ScriptedServer(play) as server:
        runs = [start(env=environment_for(server, SMALLEST_TEXT=text), cwd=tmp_path) for text in speeches]
        results = [finish(process) for process in runs]
    for result, expected, pcm in zip(results, [(0, "Saved:"), (1, "Kept:")], speeches.values(), strict=True):
        word, path = result.lines[-1].split()[:2]
        assert (result.code, word) == expected and read_wav(path)[0] == pcm
        assert lengths(Path(path)) == (36 + len(pcm), len(pcm))


@pytest.mark.parametrize("output", ["x" * 250, "/sys/output.wav", "no/such/folder.wav", "."])
def test_output_that_cannot_be_opened(run, tmp_path, output):
    """It is named as it was given."""
    with ScriptedServer(say(PCM)) as server:
        result = run("-o", output, server=server)
    assert (result.code, server.connections, list(tmp_path.iterdir())) == (2, 0, [])
    assert re.fullmatch(rf"The output {re.escape(output)} cannot be written: \w[\w -]+\.\n", result.err)


@pytest.mark.parametrize("limit", [43, 44, 100, 8192, 20_000, 44 + 51_200, 44 + 51_200 + 7, 2 * 51_200 + 43])
def test_full_disk(old_output, limit):
    """A limit on the size of a file fails like a full disk: a write takes some of the bytes, the next none."""
    with ScriptedServer(say(PCM, PCM)) as server:
        set_limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: E731
        result = finish(start(env=environment_for(server), cwd=old_output, preexec_fn=set_limit))
    assert result.code == 1 and "The output output.wav cannot be written: File too large." in result.lines
    assert (old_output / "output.wav").read_bytes() == b"old"
    kept = [read_wav(path)[0][: len(PCM)] for path in partial_files(old_output)]
    assert kept == [PCM] * (limit > len(PCM)) and result.err.count("wav holds 1.07 s") == len(kept)


@pytest.mark.parametrize("end", [does("complete"), does("close", 1011)])
def test_output_that_cannot_be_finished(run, tmp_path, end):
    """Nothing is said to be kept that is not there."""
    result = run(play=say(PCM, then=lambda peer: (time.sleep(0.3), partial_files(tmp_path)[0].unlink(), end(peer))))
    assert result.code == 1 and "Kept: " not in result.err
    assert re.search(r"\n(The output output\.wav cannot be written: [\w ]+\.|.* hung up .*)\n", result.err)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_console_that_cannot_print(run, tmp_path, encoding):
    result = run("-o", "größe 🎉.wav", play=say(PCM), env={"PYTHONIOENCODING": encoding})
    assert result.code == 0 and read_wav(tmp_path / "größe 🎉.wav") == (PCM, 24000)


@pytest.mark.parametrize("output", ["output.wav", "-"])
@pytest.mark.parametrize("case", ["closed", "full"])
def test_standard_error_that_takes_nothing(tmp_path, output, case):
    close = lambda: [os.close(stream) for stream in ((2,) if output == "-" else (1, 2))]  # noqa: E731
    with ScriptedServer(say(PCM)) as server, open("/dev/full", "wb") as full:
        options = {"preexec_fn": close} if case == "closed" else {"stderr": full}
        result = finish(start("-o", output, env=environment_for(server), cwd=tmp_path, **options))
    assert result.code == 0 or case == "full"  # Python may have a code of its own for what it cannot flush
    assert result.out[44:] == PCM if output == "-" else read_wav(tmp_path / output) == (PCM, 24000)
