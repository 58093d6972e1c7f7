"""A local stand-in for Smallest AI's Lightning, with a real voice: no key, no line to the service.

    python tests/lightning_server.py                    serve until Ctrl-C
    python tests/lightning_server.py -- COMMAND ...     serve on a free port while COMMAND runs

COMMAND finds the server and its key in its environment, and is told to reach it without a proxy; its
exit code becomes this program's. The voice is eSpeak NG's.

"complete" comes at once after the last audio; the hosted service waits 4 s for more text. A request
with "complete_backoff_ms": 4000 waits here as well. The live endpoint then closes the connection,
unless more was sent meanwhile, or the text was blank, came in pieces or with "flush"; that of V2
leaves it open. The fragments of a "context_id" are spoken as one text when their context is closed or
flushed, or when none came for "max_buffer_delay_ms"; the hosted service may begin at the end of a sentence.
"""

import _ctypes
import argparse
import asyncio
import base64
import contextlib
import ctypes
import json
import math
import os
import shlex
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

if sys.version_info < (3, 10):  # noqa: UP036 - before the packages, which older ones do not have
    sys.exit("The local server needs Python 3.10 or later.")

import espeakng_loader
import numpy
import soxr
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

KEY = "sk_local"
V2_PATH = "/waves/v1/lightning-v2/get_speech/stream"
LIVE_PATH = "/waves/v1/tts/live"
PATHS = [V2_PATH, "/api/v1/lightning-v2/get_speech/stream", LIVE_PATH]

# Each voice is one of eSpeak's variants; the two endpoints have catalogues of their own. Variants with
# breath (f2, f3, f5) would sound different each time: it is noise.
V2_VOICES = {"emily": "f1", "ryan": "m3", "arman": "m5", "mia": "f4", "aditi": "steph", "felix": "m7", "ashley": "f1"}
LIVE_VOICES = {"kaitlyn": "f4", "meher": "steph", "rhea": "steph2", "hazel": "f1", "kelsey": "f4", "blake": "m3"}
LIVE_VOICES.update(magnus="m1", olivia="f4", sophia="f1", liam="m7", avery="f1")
ACCENTS = {"en": "en-us", "auto": "en-us", "no": "nb", "zh": "cmn"}
SHARED_LANGUAGES = "en hi mr kn ta bn gu de fr es it pl nl ru ar".split()
V2_LANGUAGES = [*SHARED_LANGUAGES, "he"]
LIVE_LANGUAGES = ["auto", *SHARED_LANGUAGES, *"te ml pa or pt sv el fi no zh id ja ko ms tr vi".split()]
MODELS = ["lightning_v3.1_pro", "lightning_v3.1_pro_10_26", "lightning_v3.1"]
# The least, the most and the default of each number in a request.
V2_NUMBERS = {
    "sample_rate": (8000, 48000, 24000),
    "speed": (0.1, 5, 1),
    "consistency": (0, 1, 0.5),
    "similarity": (0, 1, 0),
    "enhancement": (0, 2, 1),
    "max_buffer_flush_ms": (0, 1000, 0),
    "complete_backoff_ms": (0, 10000, 0),
}
LIVE_NUMBERS = {**V2_NUMBERS, "sample_rate": (8000, 48000, 44100), "speed": (0.5, 2, 1)}
LIVE_NUMBERS["max_buffer_delay_ms"] = (0, 5000, 3000)
FLAGS = ["continue", "flush", "context_close", "cancel_request"]
CLOSE_AFTER = 0.1  # seconds; a text that was sent during the last one is there at once


class RequestError(Exception):
    """What is wrong with a request, in the words that go to the client."""


# --- The voice ----------------------------------------------------------------

SYNCHRONOUS, WORDS_PER_MINUTE, UTF8 = 2, 1, 1  # espeak_AUDIO_OUTPUT, espeak_PARAMETER, espeakCHARS_UTF8
NORMAL_SPEED = 175  # words a minute
SLICE_MS = 100
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@contextlib.contextmanager
def load_voice():
    """Yield the eSpeak NG library, initialised, and the sample rate of its voices in Hz.

    It is loaded anew each time: it remembers the last utterance, and the next would differ by that.
    The working directory is that of its data.
    """
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(SYNCHRONOUS, SLICE_MS, b".", 0)
    yield library, rate
    library.espeak_Terminate()
    unload = _ctypes.FreeLibrary if sys.platform == "win32" else _ctypes.dlclose
    unload(library._handle)


def synthesize(text, voice, speed, take):
    """Speak the text and hand each slice of 16-bit samples to `take`, until that returns False."""

    def callback(samples, count, events):
        more = take(numpy.ctypeslib.as_array(samples, (count,)).copy()) if count else True
        return 0 if more else 1

    kept, data = Callback(callback), text.encode() + b"\0"  # the library does not hold a reference
    with load_voice() as (library, _):
        library.espeak_SetSynthCallback(kept)
        library.espeak_SetVoiceByName(voice.encode())
        library.espeak_SetParameter(WORDS_PER_MINUTE, round(NORMAL_SPEED * speed), 0)
        library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 0, 0, UTF8, None, None)
        library.espeak_Synchronize()


async def stream_voice(voice, text, name, speed, sample_rate):
    """Yield the spoken text as 16-bit PCM at the sample rate, slice by slice, while it is being spoken."""
    executor, rate = voice
    loop, slices, heard = asyncio.get_running_loop(), asyncio.Queue(), True

    def take(samples):
        loop.call_soon_threadsafe(slices.put_nowait, samples)
        return heard

    spoken = loop.run_in_executor(executor, synthesize, text, name, speed, take)
    spoken.add_done_callback(lambda _: slices.put_nowait(None))
    resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")

    def resample(samples, last=False):
        resampled = resampler.resample_chunk(samples.astype("float32"), last=last)
        return resampled.round().clip(-32768, 32767).astype("<i2").tobytes()

    try:
        samples = await slices.get()
        while samples is not None:
            yield resample(samples)
            samples = await slices.get()
        await spoken
        yield resample(numpy.zeros(0), last=True)
    finally:
        heard = False


# --- The protocol -------------------------------------------------------------


def refuse(connection, request):
    """Answer the handshake with an HTTP error if path or key are wrong, else with nothing."""
    if urlsplit(request.path).path not in PATHS:
        return respond(connection, HTTPStatus.NOT_FOUND, "Cannot GET " + request.path)
    if request.headers.get("Authorization") not in ("Bearer " + KEY, "Token " + KEY):
        return respond(connection, HTTPStatus.UNAUTHORIZED, "Invalid or missing API key")
    return None


def respond(connection, status, message):
    response = connection.respond(status, json.dumps({"status": "error", "message": message}))
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = "application/json"
    response.headers["x-request-id"] = str(uuid.uuid4())
    return response


def parse_request(data):
    """Return a request as a dictionary; raise RequestError if it is none."""
    try:
        request = json.loads(data)
    except ValueError as error:
        raise RequestError(f"Invalid JSON: {error}") from error
    if not isinstance(request, dict):
        raise RequestError("Invalid JSON: not an object")
    return request


def check_request(request, live, pending):
    """Return the fields of a request, with their defaults; raise RequestError if one is wrong.

    What comes after a text that goes on may leave out the fields that were said with it. Its text is
    that of all so far; between the fragments of a context there is a blank.
    """
    is_context = live and bool(request.get("context_id"))
    text = "" if is_context or any(request.get(name) is True for name in FLAGS[1:]) else None
    request = {**pending, "context_id": "", "text": text, **dict.fromkeys(FLAGS, False), **request}
    for name, kind in ("context_id", str), ("text", str), *[(flag, bool) for flag in FLAGS]:
        if not isinstance(request[name], kind):
            raise RequestError(f"{name} must be a {kind.__name__}")
    if not (request["text"] or pending or is_context or any(request[name] for name in FLAGS)):
        raise RequestError("text must not be empty")
    if isinstance(request.get("speed"), str):  # as some clients send it
        with contextlib.suppress(ValueError):
            request["speed"] = float(request["speed"])
    for name, (least, most, default) in (LIVE_NUMBERS if live else V2_NUMBERS).items():
        number = request.setdefault(name, default)
        if isinstance(number, bool) or not isinstance(number, int | float) or not least <= number <= most:
            raise RequestError(f"{name} must be a number from {least} to {most}")
    voices = LIVE_VOICES if live else V2_VOICES
    if request.get("voice_id") not in voices and (request["text"] or "voice_id" in request):
        raise RequestError(f"Voice {request.get('voice_id')} not found; there are {', '.join(voices)}")
    if live and request.setdefault("model", MODELS[0]) not in MODELS:
        raise RequestError(f"Model {request['model']} not found; there are {', '.join(MODELS)}")
    languages = LIVE_LANGUAGES if live else V2_LANGUAGES
    language = request.setdefault("language", languages[0])
    if language not in languages:
        raise RequestError(f"Language {language} not supported; there are {', '.join(languages)}")
    buffered = pending.get("text", "")
    if is_context:
        request["text"] = f"{buffered} {request['text']}".strip()
        request["release_after"] = request["max_buffer_delay_ms"] / 1000
    else:
        request["text"] = buffered + request["text"]
        request["release_after"] = request["max_buffer_flush_ms"] / 1000 or math.inf
    request["voice"] = f"{ACCENTS.get(language, language)}+{voices.get(request.get('voice_id'))}"
    return request


def read_idle_seconds(query):
    """Return the seconds of `?timeout=`, or the service's 60 where that is no positive number."""
    try:
        seconds = float(parse_qs(query)["timeout"][0])
    except (KeyError, ValueError):
        return 60.0
    return seconds if seconds > 0 else 60.0


async def serve_client(connection, voice, pace):
    """Speak for one client until it goes, or until it has been idle for `?timeout=` seconds."""
    url = urlsplit(connection.request.path)
    live, idle = url.path == LIVE_PATH, read_idle_seconds(url.query)
    ids = {"session_id": f"ws_{uuid.uuid4()}"} if live else {}
    echoes = {"request_id": "request_id"}  # by what name an id of the client comes back
    if live:
        echoes = {"session_id": "external_session_id", "request_id": "external_request_id"}
    pending = {}  # what goes on, by context: the last request, with the text of all that is not spoken
    is_closing = False

    async def send(status, **fields):
        await connection.send(json.dumps({**ids, "status": status, **fields}))

    while True:
        ids["request_id"] = f"task_{uuid.uuid4()}" if live else str(uuid.uuid4())
        waits = [(request["release_after"], context) for context, request in pending.items() if request["text"]]
        release_after, overdue = min(waits, default=(math.inf, None))
        timeout = min(release_after, CLOSE_AFTER if is_closing else idle)
        try:
            request = parse_request(await asyncio.wait_for(connection.recv(), timeout))
            if request.get("type") == "ping":
                await connection.send('{"type": "pong"}')
                continue
            for name, echo in echoes.items():
                if name in request:
                    ids[echo] = request[name]
            context = str(request.get("context_id") or "") if live else ""
            earlier = pending.pop(context, {})
            request = check_request(request, live, earlier)
            is_plain = not (earlier or context or any(request[flag] for flag in FLAGS))
            is_closing = live and is_plain and not pending and not request["text"].isspace()
        except asyncio.TimeoutError:
            if is_closing:
                return
            if timeout == idle:
                await send("error", message=f"Connection timed out after {idle:g} seconds of inactivity")
                return
            context = overdue
            request = {**pending[overdue], "flush": True}  # no more text came in time
        except RequestError as error:
            await send("error", message=str(error))
            continue
        if request["cancel_request"]:
            continue  # what is buffered is no longer pending
        if request["continue"]:
            pending[context] = {**request, "text": "" if request["flush"] else request["text"]}
            if not request["flush"]:
                continue
        if not request["text"] and (context or request["flush"] or request["context_close"]):
            continue  # nothing to speak gets no answer
        await speak(request, voice, pace, send)
        if context or not request["continue"]:
            await asyncio.sleep(request["complete_backoff_ms"] / 1000)
            await send("complete", **({} if live else {"message": "All chunks sent", "done": True}))


async def speak(request, voice, pace, send):
    """Send the text of a request as chunks of audio."""
    if not request["text"].strip():
        return
    rate = request["sample_rate"]
    due = time.monotonic()
    async for pcm in stream_voice(voice, request["text"], request["voice"], request["speed"], int(rate)):
        if pcm:
            await send("chunk", data={"audio": base64.b64encode(pcm).decode()})
        if pace:
            due += len(pcm) / 2 / rate
            await asyncio.sleep(due - time.monotonic())


# --- The program --------------------------------------------------------------


async def run_server(port, command, folder, pace):
    """Serve on 127.0.0.1 until the command ends in its folder, or for ever without one; return the exit code."""
    with ThreadPoolExecutor(1) as executor:  # eSpeak speaks for one at a time
        with load_voice() as (_, rate):
            voice = executor, rate

        async def handler(connection):
            with contextlib.suppress(ConnectionClosed):  # the client is free to go at any moment
                await serve_client(connection, voice, pace)

        async with serve(handler, "127.0.0.1", port, process_request=refuse, max_size=2**24) as server:
            base = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            settings = describe_environment(base)
            if command:
                try:
                    environment = {**os.environ, **settings}
                    process = await asyncio.create_subprocess_exec(*command, env=environment, cwd=folder)
                except OSError as error:
                    print(f"{command[0]} cannot be run: {error.strerror}.", file=sys.stderr)
                    return 127
                return await process.wait()
            print(f"Serving until Ctrl-C. The key is {KEY}. In another terminal:")
            for name, value in settings.items():
                is_windows = sys.platform == "win32"  # where quotation marks would be part of the value
                print(f"  set {name}={value}" if is_windows else f"  export {name}={shlex.quote(value)}")
            print('  python ws_streaming_api.py --voice-id emily --text "The quick brown fox jumps over the lazy dog."')
            print(f"Voices: {', '.join(V2_VOICES)}. Languages: {', '.join(V2_LANGUAGES)}.")
            print(f"With --model {MODELS[0]} the voices are {', '.join(LIVE_VOICES)}.", flush=True)
            return await server.serve_forever()


def describe_environment(base):
    """Return the variables by which a client finds the server; a proxy would not find it."""
    exempt = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    no_proxy = f"{exempt},127.0.0.1" if exempt else "127.0.0.1"
    return {"SMALLEST_WS_URL": base, "SMALLEST_API_KEY": KEY, "no_proxy": no_proxy}


def main():
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--port", type=int, help="port to serve on (default: 8765, or a free one for COMMAND)")
    parser.add_argument("--pace", action="store_true", help="send the audio as fast as it is spoken, not at once")
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="what to run, and its arguments, after --")
    arguments = parser.parse_args()
    command, folder = arguments.command, os.getcwd()
    port = arguments.port if arguments.port is not None else 0 if command else 8765
    if command and os.path.dirname(command[0]):
        command[0] = os.path.abspath(command[0])  # Windows would look for it from the server's folder
    os.chdir(espeakng_loader.get_data_path())  # eSpeak takes a path of at most 159 bytes
    try:
        return asyncio.run(run_server(port, command, folder, arguments.pace))
    except KeyboardInterrupt:
        return 130
    except (OSError, OverflowError) as error:
        print(f"There is no serving on port {port}: {error}.", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
