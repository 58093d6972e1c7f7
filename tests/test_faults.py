"""Whatever happens: one line, the right exit code, the audio kept, the old output untouched, no key."""

import base64
import json
import os
import re
import resource
import signal
import socket
import subprocess
import threading
import time

import pytest
from websockets.frames import Frame, Opcode

from conftest import KEY, check_fault, environment_for, finish, partial_files, read_wav, start
from scripted_server import PCM, ScriptedServer, refusal, say
from test_connection import CHECK_KEY, LATER

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
NO_AUDIO = r"No audio came for 0\.[789] s"
KEPT_ALIVE = NO_AUDIO + r', after {"status": "keepalive"}\.'
LOST = r"The connection was lost in mid-speech: "
DAMAGED = "not JSON with base64 audio: "
AGAIN = r"Check the text, the voice and the model, try again, or raise --timeout\.$"
WAV = b"RIFF\x24\0\0\0WAVEfmt " + PCM

# name, what the service does once it has the payload, words that the user reads
AFTER_PAYLOAD = [
    ("error message", says(status="error", message="Voice not found"), f"error: .*Voice not found.* {AGAIN}"),
    ("error object", says(status="error", error={"message": "Broke", "code": "E42"}), "Broke.*E42"),
    ("error of V2", says(error="invalid_parameter", message="voice_id is required"), "error: .*voice_id is required"),
    ("error in payload", says(payload={"status": "error", "message": "Broke"}), "reports an error: .*Broke"),
    ("error beside nothing", says(status=None, data={"error": "Broke"}), "reports an error: .*Broke"),
    ("close", does("close", 1011, "out of memory."), f"hung up .*: close code 1011, out of memory. {LATER}"),
    ("close without a word", does("close", 1000), f"close code 1000, no reason given. {LATER}"),
    ("close without a code", does("frame", Opcode.CLOSE, b""), f"close code 1005, no reason given. {LATER}"),
    ("close for ever", does("close", 1008, "no"), f"close code 1008, no. {CHECK_KEY}"),
    ("reset", lambda peer: (time.sleep(0.2), peer.reset()), f"{LOST}.*{AGAIN}"),  # it throws away what is on its way
    ("end", lambda peer: peer.sock.shutdown(socket.SHUT_RDWR), f"{LOST}.*{AGAIN}"),
    ("silence", does("wait"), rf"{NO_AUDIO}\. {AGAIN}"),
    ("a ping, then silence", lambda peer: (time.sleep(0.5), peer.send(PING), peer.wait()), rf"{NO_AUDIO}\. "),
    ("flood of pings", does("send", PING * 10_000, pause=0), rf"{NO_AUDIO}\. "),
    ("flood of keep-alives", does("send", KEEPALIVE * 10_000, pause=0), KEPT_ALIVE),
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
    ("WAV in a chunk", does("chunk", WAV), "What came is WAV, not PCM: the payload must not ask for another"),
    ("escapes and megabytes", says(status="error", message=HOSTILE), "31mred"),
    ("words without a blank", text(b'{"error":"' + b"x" * 500), 'audio: {"error":"x{290}\\. '),
    ("the key in an error", says(status="error", message=f"Key {KEY} is old"), "Key .API key. is old"),
    ("the key in a close reason", does("close", 1008, f"bad {KEY}"), "bad .API key."),
    ("the key at the cut", text(b"x" * 295 + b" " + KEY.encode() * 3), "x{295}"),
]


@pytest.mark.parametrize("chunks", [[], [PCM]], ids=["before audio", "after audio"])
@pytest.mark.parametrize(("then", "words"), [row[1:] for row in AFTER_PAYLOAD], ids=[row[0] for row in AFTER_PAYLOAD])
def test_fault_after_payload(run, old_output, chunks, then, words):
    result = run("--timeout", "0.7", play=say(*chunks, then=then))
    check_fault(result, old_output, words, kept=PCM if chunks else b"")


@pytest.mark.parametrize("chunks", [[], [b""], [b"\0"], [PCM, b"\0"]])
def test_complete_is_not_believed_without_whole_audio(run, old_output, chunks):
    result = run(play=say(*chunks))
    words = f"ended the speech after {len(b''.join(chunks))} bytes of PCM, no whole speech. {AGAIN}"
    check_fault(result, old_output, words, PCM if PCM in chunks else b"")


def test_seconds_of_silence_are_those_that_passed(run, old_output):
    """A message that trickles restarts the library's clock, and a lost network ends it early."""

    def trickles(peer):
        for piece in KEEPALIVE[:9], KEEPALIVE[9:18], KEEPALIVE[18:]:
            time.sleep(0.4)
            peer.send(piece)

    result = run("--timeout", "0.7", play=say(then=trickles))
    check_fault(result, old_output, r'No audio came for 1\.[234] s, after {"status": "keepalive"}\.')


ERRORS = [{"type": "error", "message": "Broke"}, {"errors": [{"message": "Broke"}]}]
ERRORS += [{"success": False, "message": "Broke"}, {"error_code": "E42", "message": "Broke"}]


ENDS = {NO_AUDIO: does("wait"), "hung up .* 1011, no reason given": does("close", 1011)}
ENDS[LOST + ".*"] = lambda peer: peer.sock.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(("began", "end"), ENDS.items())
@pytest.mark.parametrize("error", ERRORS)
def test_words_of_an_error_that_nobody_has_seen(run, old_output, error, began, end):
    """They stand behind what happened next, and not where audio came after them."""
    result = run("--timeout", "0.7", play=say(PCM, then=lambda peer: (peer.json(error), end(peer))))
    check_fault(result, old_output, f"{began}, after {re.escape(json.dumps(error))}", kept=PCM)
    later = say(then=lambda peer: (peer.json(error), peer.chunk(PCM), peer.close(1011)))
    assert "after" not in run("-o", "other.wav", play=later).err


def hangs_up_before_the_payload(peer):
    peer.accept()
    peer.close(1008, "No credit")


def reports_before_the_payload(peer):
    peer.accept()
    peer.json({"status": "error", "message": "No credit"})


def breaks_behind_pings_and_audio(peer):
    peer.hear()
    audio = json.dumps({"data": {"audio": base64.b64encode(PCM[:480]).decode()}}).encode()
    frame = Frame(Opcode.TEXT, audio).serialize(mask=False)
    peer.send((PING * 20 + frame) * 10)  # in one segment, or what is still to be sent is lost on the way


GONE = {hangs_up_before_the_payload: "close code 1008, No credit", reports_before_the_payload: "error: .*No credit"}
GONE[breaks_behind_pings_and_audio] = LOST


@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize("play", GONE)
def test_what_came_from_a_service_that_is_gone(run, old_output, authority, play, tls):
    """Its answers to what the script sends would be errors, before what has arrived is read."""
    play_and_go = lambda peer: (play(peer), peer.sock.close())  # noqa: E731
    env = {"WEBSOCKET_CLIENT_CA_BUNDLE": authority.file}
    with ScriptedServer(play_and_go, tls=authority.context("127.0.0.1") if tls else None) as server:
        for _ in range(5):
            kept = PCM[:480] * 10 if play is breaks_behind_pings_and_audio else b""
            check_fault(run(server=server, env=env), old_output, GONE[play], kept=kept)
            for partial in partial_files(old_output):
                partial.unlink()


LICENSE = "on-premises/key+1"


@pytest.mark.parametrize("given", [LICENSE, f"Token {LICENSE}", f"Bearer {LICENSE}"])
def test_license_key_is_not_repeated(run, given):
    """It has no sk_; not in part either, where the service's words are cut at 300 characters."""
    words = json.dumps({"message": f"Key {LICENSE} of Token {LICENSE}"})
    plays = [refusal(status, body=words.encode()) for status in (302, 401, 403, 404, 429, 500)]
    plays += [say(then=text(words.encode())), say(then=lambda peer: peer.close(1008, f"No {LICENSE}"))]
    plays += [say(then=text(words.replace("message", "error").encode())), say(then=text(LICENSE.encode()))]
    plays += [say(then=text(b'{"error":"' + b"x" * size + LICENSE.encode())) for size in (270, 274, 280, 289, 290)]
    for play in plays:
        result = run("--timeout", "0.3", play=play, env={"SMALLEST_API_KEY": given})
        assert result.code == 1 and "on-" not in result.err and "key+1" not in result.err, result.err


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
    paths = [path for path in partial_files(folder) if path.stat().st_size == 44 + len(pcm)]
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
        (partial,) = partial_files(tmp_path)
        assert read_wav(partial) == (whole, 24000) and len(list(tmp_path.iterdir())) == 1
        partial.unlink()


SPEECHES = {"one": [b"\1\0" * 9000, b"\1\0" * 7000], "two": [b"\2\0" * 8000, b"\2\0" * 5000]}


@pytest.mark.parametrize("broken", [[], ["one"], ["one", "two"]])
def test_two_runs_at_once(tmp_path, broken):
    """Each writes a file of its own, and says of that file alone what became of it."""
    both = threading.Barrier(2)

    def play(peer):
        first, last = SPEECHES[peer.hear()["text"]]
        peer.chunk(first)
        both.wait(10)
        peer.chunk(last)
        both.wait(10)
        peer.close(1011) if peer.payload["text"] in broken else peer.complete()

    with ScriptedServer(play) as server:
        processes = {text: start(env=environment_for(server, SMALLEST_TEXT=text), cwd=tmp_path) for text in SPEECHES}
        results = {text: finish(process) for text, process in processes.items()}
    for text, result in results.items():
        word, name = result.lines[-1].split()[:2]
        assert (result.code, word) == ((1, "Kept:") if text in broken else (0, "Saved:"))
        possible = [text] if text in broken else set(SPEECHES) - set(broken)  # of two whole ones the last stays
        assert read_wav(tmp_path / name)[0] in [b"".join(SPEECHES[text]) for text in possible]
    assert len(list(tmp_path.iterdir())) == len(broken) + (len(broken) < 2)


NO_NAMES = ["x" * 250, "/proc/output.wav", "no/such/folder.wav", ".", "a\0b", "gr\u00f6\u00dfe"]


@pytest.mark.parametrize("output", NO_NAMES)
def test_output_that_cannot_be_opened(run, tmp_path, output):
    """A NUL can only come from .env, and what the locale cannot write too, in the oldest Python alone."""
    (tmp_path / ".env").write_text(f"SMALLEST_OUTPUT={output}\n", encoding="utf-8")
    with ScriptedServer(say(PCM)) as server:
        result = run(server=server, env={"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"})
        assert server.connections == (result.code == 0)
    words = {"a\0b": "embedded null byte", "gr\u00f6\u00dfe": "can't encode"}.get(output, re.escape(output[:9]))
    assert result.code == 2 and re.fullmatch(rf"The output cannot be written: .*{words}.*\.", result.lines[0])
    assert len(result.lines) == 1 and [path.name for path in tmp_path.iterdir()] == [".env"]


@pytest.mark.parametrize("limit", [43, 44, 100, 8192, 20_000, 44 + 51_200, 44 + 51_200 + 7, 2 * 51_200 + 43])
def test_full_disk(old_output, limit):
    """A limit on the size of a file fails like a full disk: a write takes some of the bytes, the next none."""
    with ScriptedServer(say(PCM, PCM)) as server:
        set_limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: E731
        result = finish(start(env=environment_for(server), cwd=old_output, preexec_fn=set_limit))
    kept = PCM * ((limit - 44) // len(PCM)) if limit > 44 else b""
    check_fault(result, old_output, "The output cannot be written: .*File too large", kept=kept)


SPOILS = {lambda folder: (folder / "output.wav").mkdir(): 1, lambda folder: partial_files(folder)[0].unlink(): 0}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("chunks", [[PCM], []], ids=["audio", "no audio"])
@pytest.mark.parametrize(("spoil", "stays"), SPOILS.items(), ids=["output is a folder", "partial is gone"])
def test_output_that_cannot_be_finished(run, tmp_path, spoil, stays, chunks, fails):
    """Nothing is said to be kept that is not there."""
    end = does("close", 1011) if fails else does("complete")
    result = run(play=say(*chunks, then=lambda peer: (time.sleep(0.3), spoil(tmp_path), end(peer))))
    kept = [(PCM, 24000)] * len(chunks) * stays
    assert result.code == 1 and [read_wav(path) for path in partial_files(tmp_path)] == kept
    fault = r"The output cannot be written: .*'output\.partial-\w+\.wav' -> 'output.wav'\." if chunks else "0 bytes"
    assert re.search("hung up" if fails else fault, result.err) and result.err.count("Kept: ") == len(kept)


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
