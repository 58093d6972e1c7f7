"""Whatever happens: one line, the right exit code, the audio kept, the old output untouched, no key."""

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

import pytest
from websockets.frames import Opcode

from conftest import KEY, RETIRED, check_fault, environment_for, finish, make_device, read_wav, start
from scripted_server import PCM, ScriptedServer, say

HOSTILE = "\x1b[31mred\x1b[0m\r\nnew line\u202eright to left\x9b31m\x07" + "x" * 3_000_000


def does(action, *arguments, pause=None):
    """Return what a peer does, once or, with a pause in between, for ever."""

    def play(peer):
        getattr(peer, action)(*arguments)
        while pause is not None:
            time.sleep(pause)
            getattr(peer, action)(*arguments)

    return play


def says(**fields):
    return does("json", fields)


def text(data):
    return does("frame", Opcode.TEXT, data)


PING, KEEPALIVE = b"\x89\0", b'\x81\x17{"status": "keepalive"}'
NO_AUDIO = r"No audio came for 0\.7 s"
LOST = r"The connection was lost in mid-speech: .*\. Connect again\.$"
DAMAGED = "not JSON with base64 audio, check the URL: "

# name, what the service does once it has the payload, words that the user reads
AFTER_PAYLOAD = [
    ("error message", says(status="error", message="Voice not found"), "error: .*Voice not found.*Check the payload"),
    ("error string", says(status="error", error="Voice not found"), "error: .*Voice not found"),
    ("error object", says(status="error", error={"message": "Broke", "code": "E42"}), "Broke.*E42"),
    ("error of V2", says(status="error", error_code="MODEL_DEPRECATED"), f"DEPRECATED.*{RETIRED}"),
    ("error without status", says(error="Concurrency limit"), "error: .*Concurrency limit"),
    ("error in payload", says(payload={"status": "error", "message": "Broke"}), "reports an error: .*Broke"),
    ("close", does("close", 1011, "out of memory."), r"hung up .*: close code 1011, out of memory\. Connect again\.$"),
    ("close without a word", does("close", 1000), "close code 1000, no reason given. Connect again"),
    ("close for ever", does("close", 1008, "no"), r"close code 1008, no\. Check the API key and its limits\.$"),
    ("reset", lambda peer: (time.sleep(0.2), peer.reset()), LOST),  # it throws away what is on its way
    ("end", lambda peer: peer.sock.shutdown(socket.SHUT_RDWR), LOST),
    ("silence", does("wait"), NO_AUDIO),
    ("pings only", does("frame", Opcode.PING, b"still here", pause=0.1), NO_AUDIO),
    ("flood of pings", does("send", PING * 10_000, pause=0), NO_AUDIO),
    ("keep-alive only", does("json", {"status": "keepalive"}, pause=0.1), NO_AUDIO),
    ("flood of keep-alives", does("send", KEEPALIVE * 10_000, pause=0), NO_AUDIO),
    ("empty chunks only", does("chunk", b"", pause=0.1), NO_AUDIO),
    ("frame that stops", does("send", b"\x81\x7f\x7f" + b"\xff" * 7 + b"{"), NO_AUDIO),
    ("not JSON", text(b"<html>Bad gateway</html>"), DAMAGED + "<html>Bad gateway</html>"),
    ("not an object", text(b'["chunk"]'), DAMAGED + r'\["chunk"\]'),
    ("not UTF-8", text(b'{"status": "\xff"}'), DAMAGED),
    ("deep JSON", text(b"[" * 100_000), DAMAGED),
    ("binary message", does("frame", Opcode.BINARY, PCM), DAMAGED),
    ("audio a number", says(status="chunk", data={"audio": 5}), DAMAGED),
    ("not base64", says(status="chunk", data={"audio": "????"}), DAMAGED),
    ("audio of complete damaged", says(status="complete", data={"audio": 5}), DAMAGED),
    ("escapes and megabytes", says(status="error", message=HOSTILE), "31mred"),
    ("the key in an error", says(status="error", message=f"Key {KEY} is old"), "Key .API key. is old"),
    ("the key in a close reason", does("close", 1008, f"bad {KEY}"), "bad .API key."),
    ("the key at the cut", text(b"x" * 295 + b" " + KEY.encode() * 3), "x{295}"),
]


@pytest.mark.parametrize("chunks", [[], [PCM]], ids=["before audio", "after audio"])
@pytest.mark.parametrize(("then", "words"), [row[1:] for row in AFTER_PAYLOAD], ids=[row[0] for row in AFTER_PAYLOAD])
def test_fault_after_payload(run, old_output, chunks, then, words):
    result = run("--timeout", "0.7", play=say(*chunks, then=then))
    check_fault(result, old_output, words, kept=PCM if chunks else b"")


@pytest.mark.parametrize(
    ("chunks", "words"),
    [([], "any"), ([b""], "any"), ([b"\0"], "whole"), ([PCM, b"\0"], "whole")],
)
def test_complete_is_not_believed_without_whole_audio(run, old_output, chunks, words):
    result = run(play=say(*chunks))
    check_fault(result, old_output, f"ended the speech without {words} audio", PCM if PCM in chunks else b"")


def test_words_of_a_service_that_hangs_up_before_the_payload(run, old_output):
    def play(peer):
        peer.accept()
        peer.json({"status": "error", "message": "Concurrency limit"})
        peer.reset()

    with ScriptedServer(play) as server:
        for _ in range(5):
            check_fault(run(server=server), old_output, "Concurrency limit")


@pytest.mark.parametrize("before_the_cut", [250, 1, 5, 16])
def test_key_of_another_form_is_not_repeated(run, before_the_cut):
    """Not in part either, where the service's words are cut at 300 characters."""
    key, message = "on-premises/key+1", {"status": "error", "message": "{}Key {} is old"}
    before = 300 - before_the_cut - json.dumps(message).index("{}K") - len("Key ")
    message["message"] = message["message"].format("x" * before, key)
    result = run(play=say(then=does("json", message)), env={"SMALLEST_API_KEY": key})
    assert ("Key [API key] is old" in result.err) == (before_the_cut == 250) and "reports an error" in result.err
    assert "on-" not in result.err


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
    """Return whether there is a partial file that is a WAV of just this PCM."""
    paths = [path for path in folder.glob("output.partial*") if path.stat().st_size == 44 + len(pcm)]
    return any(read_wav(path) == (pcm, 24000) for path in paths)


def test_killed_in_the_middle(tmp_path):
    """What is on the disk is a WAV with every chunk so far, at every moment."""
    kept = b""
    for chunk in [os.urandom(size) for size in (2, 1000, 3333, 48001, 4)]:
        kept += chunk
        whole = kept[: len(kept) // 2 * 2]  # half a sample waits for its other half
        with ScriptedServer(say(kept[:-1], kept[-1:], then=lambda peer: peer.wait())) as server:
            process = start(env=environment_for(server), cwd=tmp_path)
            wait_for(lambda: arrived(tmp_path, whole))  # noqa: B023
            process.kill()
            process.communicate()
        (partial,) = tmp_path.iterdir()
        assert read_wav(partial) == (whole, 24000)
        partial.unlink()


SPEECHES = {"one": [b"\1\0" * 9000, b"\1\0" * 7000], "two": [b"\2\0" * 8000, b"\2\0" * 5000]}


@pytest.mark.parametrize("broken", [[], ["one"], ["one", "two"]])
def test_two_runs_at_once(tmp_path, broken):
    """Each writes a file of its own, and says of that file alone what became of it."""
    both, results = threading.Barrier(2), {}

    def play(peer):
        first, last = SPEECHES[peer.hear()["text"]]
        peer.chunk(first)
        both.wait(10)
        peer.chunk(last)
        both.wait(10)
        peer.close(1011) if peer.payload["text"] in broken else peer.complete()

    with ScriptedServer(play) as server:
        processes = {text: start(env=environment_for(server, SMALLEST_TEXT=text), cwd=tmp_path) for text in SPEECHES}
        for text, process in processes.items():
            results[text] = finish(process)
    for name, ended in ("output.wav", set(SPEECHES) - set(broken)), ("output.partial.wav", set(broken)):
        heard = read_wav(tmp_path / name)[0] if ended else None
        assert heard in ([b"".join(SPEECHES[text]) for text in ended] or [None])
        for text in ended:
            assert results[text].code == (1 if text in broken else 0)
            assert results[text].lines[-1].startswith(f"Kept: {name}" if text in broken else f"Saved: {name}")
    assert len(list(tmp_path.iterdir())) == 1 + (len(broken) == 1)


@pytest.mark.parametrize("output", ["x" * 250, "/proc/output.wav", "no/such/folder.wav", "."])
def test_output_that_cannot_be_opened(run, tmp_path, output):
    with ScriptedServer(say(PCM)) as server:
        result = run("-o", output, server=server)
        assert server.connections == 0
    stem = re.escape(output.partition(".wav")[0])
    assert result.code == 2 and re.fullmatch(rf"The output cannot be written: .*'{stem}.*'\.", result.lines[0])
    assert len(result.lines) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [43, 44, 100, 8192, 20_000, 44 + 51_200, 44 + 51_200 + 7, 2 * 51_200 + 43])
def test_full_disk(old_output, limit):
    """A limit on the size of a file fails like a full disk: a write takes some of the bytes, the next none."""
    with ScriptedServer(say(PCM, PCM)) as server:
        set_limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: E731
        result = finish(start(env=environment_for(server), cwd=old_output, preexec_fn=set_limit))
    kept = PCM * ((limit - 44) // len(PCM)) if limit > 44 else b""
    check_fault(result, old_output, "The output cannot be written: .*File too large", kept=kept)


def test_full_device(run, tmp_path):
    result = run("-o", make_device(tmp_path, "full", 7), play=say(PCM))
    assert result.code == 1 and "The output cannot be written: [Errno 28]" in result.lines[-1]


@pytest.mark.parametrize("blocked", [["output.wav"], ["output.wav", "output.partial.wav"]])
def test_output_that_cannot_be_replaced(run, tmp_path, blocked):
    def blocks(peer):
        for name in blocked:
            (tmp_path / name).mkdir()
        peer.complete()

    result = run(play=say(PCM, then=blocks))
    kept = re.fullmatch(r"Kept: (\S+) holds 1\.07 s of audio\.", result.lines[-1]).group(1)
    assert result.code == 1 and (kept == "output.partial.wav") == (len(blocked) == 1)
    assert re.search(r"cannot be written: .*'output\.partial\.wav-\w+' -> 'output.wav'", result.err)
    assert read_wav(tmp_path / kept) == (PCM, 24000)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_console_that_cannot_print(run, tmp_path, encoding):
    output = tmp_path / "größe 🎉.wav"
    assert run("-o", str(output), play=say(PCM), env={"PYTHONIOENCODING": encoding}).code == 0
    assert read_wav(output) == (PCM, 24000)
    result = run(play=say(then=says(status="error", message="आवाज़ 🎉")), env={"PYTHONIOENCODING": encoding})
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
