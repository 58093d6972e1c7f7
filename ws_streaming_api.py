#!/usr/bin/env python3
# /// script
# requires-python = ">=3.6"
# dependencies = ["websocket-client"]
# ///
"""Turn text into speech over a WebSocket with Smallest AI's Lightning V2.

    python ws_streaming_api.py --text "Hello." --voice-id ryan

A setting is taken from its flag, else its variable (SMALLEST_VOICE_ID for
--voice-id) in the environment, else in the file .env, else the script's top.
The API key has only SMALLEST_API_KEY: other users can read a command line.

The audio is written to a WAV file as it arrives. What arrived before a failure
is kept in a file of this run's own, such as output.partial-1a2b3c4d.wav.
Exit codes: 0 the whole audio is there; 1 the run failed; 2 a setting is wrong,
found before anything was sent; 130 interrupted.
"""

import base64
import json
import os
import re
import socket
import sys
import wave
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Generator

try:
    from http.cookies import CookieError

    from websocket import ABNF, WebSocket, WebSocketException, WebSocketTimeoutException
except (AttributeError, ImportError, SyntaxError) as error:  # Another file or package has the name.
    if __name__ != "__main__":
        raise
    sys.exit("%s. Activate the virtual environment in which websocket-client is installed." % error)

API_KEY = "<AUTH TOKEN>"
TEXT = "<TEXT>"
VOICE_ID = "<VOICE>"

HOST = "wss://api.smallest.ai"
V2_PATH = "/waves/v1/lightning-v2/get_speech/stream"
LIVE_PATH = "/waves/v1/tts/live"
LIVE_MODEL = "lightning_v3.1_pro"
LIVE_VOICE = "kaitlyn"
RETIRED = "Lightning V2 is retired: use --model %s --voice-id %s." % (LIVE_MODEL, LIVE_VOICE)

# Each line is a flag and a variable too. Another field of the protocol is one more line of PAYLOAD.
PAYLOAD = {
    "text": TEXT,
    "voice_id": VOICE_ID,
    "sample_rate": 24000,  # 8000, 16000, 24000 or 44100 Hz
    "speed": 1,  # 0.1 to 5; later models take 0.5 to 2
    "language": "en",
    "consistency": 0.5,  # 0 to 1: lower if words are skipped, higher if words are repeated
    "similarity": 0,  # 0 to 1: how close to the reference voice
    "enhancement": 1,  # 0 to 2: better sound, but later first audio
}
OPTIONS = {
    "model": "lightning-v2",
    "ws_url": HOST,  # without a path, that of the model is added
    "output": "output.wav",  # a file, or - for standard output
    "timeout": 30,  # seconds without audio, and for each step of the connection, at most 3600
}


class SpeechError(Exception):
    """What the service or the network did, so that the speech is not whole. `status` is the HTTP status
    of a refused handshake (0: there was no answer), the code of a close (1005: it had none), or None.
    """

    def __init__(self, text, status=None):
        super().__init__(text)
        self.status = status


class Connection(WebSocket):
    """A WebSocket for one speech, which a `with` block closes at its end."""

    tls_context = None  # All connections share it: to load the system's certificates is slow.

    def __init__(self, api_key):
        super().__init__(skip_utf8_validation=True, sslopt={"context": self.tls_context})
        self.api_key = api_key
        self.is_used = False
        self.is_aborted = False

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()

    def send(self, payload, opcode=ABNF.OPCODE_TEXT):
        """Send, but ignore a failure: what the service said before it hung up can still be read."""
        with suppress(OSError, WebSocketException):
            super().send(payload, opcode)

    def abort(self) -> None:
        """End the speech from any thread: stream_speech() raises SpeechError, on Windows at the timeout."""
        self.is_used = self.is_aborted = True
        sock = self.sock
        if sock:
            with suppress(OSError):
                # The shutdown() of a TLS socket would leave an error to the reading thread's next connection.
                socket.socket.shutdown(sock, socket.SHUT_RD)

    def quote(self, words):
        """Return what others say as one short line, without API key, markup and control characters."""
        text = words.decode("utf-8-sig", "replace") if isinstance(words, bytes) else str(words)
        text = text.replace(self.api_key, "[API key]")[:5000].strip()
        if text.startswith("<"):
            text = re.sub(r"(?is)<(style|script).*?(</\1>|$)|<[^>]*>?", " ", text)
        line = " ".join(text.split())
        return "".join(filter(str.isprintable, line))[:300].rstrip(" .") or "no reason given"


def connect(url: str, api_key: str, timeout: float = 30) -> Connection:
    """Return an open connection for one speech.

    `url` has a path, such as HOST + LIVE_PATH. The key is sent as "Bearer", unless "Token " stands before it.
    `timeout` is in seconds, for each step of the handshake and later for the wait for audio.
    Raises ValueError for a wrong argument, before it connects, and SpeechError if there is no connection.
    """
    header, key = check_arguments(url, api_key, timeout)
    ws = Connection(key)
    status = 0
    try:
        # A redirect would take the API key along. Servers behind a proxy refuse the library's Origin.
        ws.connect(url, header=[header], timeout=timeout, redirect_limit=0, suppress_origin=True)
    except (OSError, WebSocketException) as error:
        status = getattr(error, "status_code", 0)
        reason = getattr(error, "resp_body", "" if status else error) or ""
    except (AttributeError, CookieError, LookupError, TypeError, ValueError):
        reason = "the URL, a proxy's URL or the answer cannot be read"  # The error may hold a password.
    response = ws.handshake_response
    if response:
        status = response.status
        reason = "it redirects to %s" % response.headers.get("location")
    if status == 101:
        Connection.tls_context = getattr(ws.sock, "context", None)
        return ws
    ws.shutdown()
    words = ws.quote(reason)
    if status:
        words = "the handshake was refused with status %d, %s" % (status, words)
    raise SpeechError("No connection to %s: %s." % (url.partition("?")[0], words), status)


def check_arguments(url, api_key, timeout):
    """Return the header for the key, and the key; raise ValueError, which repeats neither key nor URL."""
    if not re.fullmatch(r"(?a)wss?://([\w.-]+|\[[\w:.]+\])(:\d{1,5})?(/[!-~]*)?", str(url)):
        raise ValueError("The URL has to be wss://host/path or ws://host/path, without user and password.")
    if re.match(r"(?i)ws://([^/]*\.)?smallest\.ai\b", url):
        raise ValueError("The URL would send the API key in the clear: use wss://.")
    access = re.fullmatch(r"(?:(Bearer|Token) )?([!#-&(-~]+)", str(api_key or "").strip())
    if not access:
        raise ValueError("The API key is empty, in quotation marks, or not printable ASCII without blanks.")
    if not 0 < timeout <= 3600:
        raise ValueError("The timeout has to be more than 0 and at most 3600 seconds.")
    return "Authorization: %s %s" % access.groups(default="Bearer"), access.group(2)


def stream_speech(ws: Connection, payload: dict) -> Generator[bytes, None, None]:
    """Send a payload and yield the speech as it arrives: 16-bit little-endian mono PCM, in whole samples.

    Nothing is sent before the first next(). The connection is closed at the end, whatever the end is.
    Raises SpeechError for an error message, a close, a lost connection, damaged audio, and if no audio
    comes for the timeout of `ws`; ValueError or TypeError if the payload is no JSON.
    """
    if ws.is_used:
        raise SpeechError("This connection has been given a text, or was aborted. Connect again.")
    ws.is_used = True
    timeout = ws.timeout
    size = 0
    rest = b""
    is_last = False
    try:
        ws.send(json.dumps(payload, ensure_ascii=False, allow_nan=False))
        while not is_last:
            chunk, is_last = receive_chunk(ws, timeout)
            size += len(chunk)
            pcm = rest + chunk
            whole = len(pcm) // 2 * 2
            rest = pcm[whole:]  # A chunk may end in the middle of a sample.
            if whole:
                yield pcm[:whole]
        if rest or not size:
            raise SpeechError("The service ended the speech after %d bytes of PCM, no whole speech." % size)
        ws.close(timeout=0)
    finally:
        ws.shutdown()


def receive_chunk(ws, timeout):
    """Return the next PCM, and whether it is the last; raise SpeechError for every other end."""
    started = perf_counter()
    remaining = timeout
    said = ""  # The last message without audio may say why there is no more.
    while remaining > 0:
        try:
            if ws.timeout != remaining:
                ws.timeout = remaining  # A ping or a message without audio is no progress.
            opcode, frame = ws.recv_data(control_frame=True)
        except WebSocketTimeoutException:
            break
        except (AttributeError, OSError, ValueError, WebSocketException) as error:
            if not ws.is_aborted:
                raise SpeechError("The connection was lost: %s%s." % (ws.quote(error), said)) from None
        if ws.is_aborted:
            raise SpeechError("The speech was stopped by abort().")
        if opcode == ABNF.OPCODE_CLOSE:
            code = int.from_bytes(frame[:2], "big") or 1005
            words = ws.quote(frame[2:]) + said
            raise SpeechError("The service hung up in mid-speech: close code %d, %s." % (code, words), code)
        if opcode < ABNF.OPCODE_CLOSE:  # Pings and pongs are above it.
            pcm, is_last = read_message(ws, frame)
            if pcm or is_last:
                return pcm, is_last
            said = ", after " + ws.quote(frame)
        remaining = timeout - (perf_counter() - started)
    raise SpeechError("No audio came for %.1f s%s." % (perf_counter() - started, said))


def read_message(ws, frame):
    """Return the PCM in a message, and whether it is the last; raise SpeechError for an error or damage."""
    # Smallest AI documents "audio" in "data" and the status "complete". Clients of V2 met the other forms.
    fields = {}
    try:
        message = json.loads(frame.decode())
        for part in message.get("payload"), message.get("data"), message:
            if isinstance(part, dict):
                for name, value in part.items():
                    if value:
                        fields[name] = value
        pcm = base64.b64decode(fields.get("audio", ""), validate=True)
    except (AttributeError, RecursionError, TypeError, ValueError):
        raise SpeechError("The message is not JSON with base64 audio: %s." % ws.quote(frame)) from None
    if pcm.startswith(b"RIFF"):
        raise SpeechError("The audio is WAV, not PCM: the payload must not ask for another output format.")
    status = fields.get("status")
    if status == "error" or "error" in fields:
        raise SpeechError("The service reports an error: %s." % ws.quote(frame))
    return pcm, status in ("complete", "comp") or fields.get("done") is True


# --- Down to here, the lines are for copying into a program of your own ---------------------------------


class WavFile:
    """A WAV file that can be played while it grows. Until it is whole, only this run uses its name."""

    def __init__(self, path, sample_rate):
        self.path = "standard output" if path == "-" else os.path.abspath(path)
        self.partial = ""
        self.byte_rate = sample_rate * 2
        self.size = 0
        if path in ("-", "/dev/stdout"):
            if os.isatty(1):
                raise OSError("standard output is a terminal: send the audio to a player or to a file")
            self.file = open(1, "wb", closefd=False)
        elif os.path.exists(path) and not os.path.isfile(path):  # a pipe or a device
            self.file = open(path, "wb")
        else:
            stem, extension = os.path.splitext(self.path)
            self.partial = "%s.partial-%s%s" % (stem, os.urandom(4).hex(), extension)
            self.file = open(self.partial, "xb")
        self.wav = wave.open(self.file, "wb")
        self.wav.setparams((1, 2, sample_rate, 0x3FFFF800, "NONE", "not compressed"))  # an unknown length

    def append(self, pcm):
        """Write PCM so that whoever reads the file finds it at once."""
        self.wav.writeframesraw(pcm)
        self.file.flush()
        self.size += len(pcm)

    def close(self):
        with suppress(OSError):  # A pipe cannot be rewound to write the true length.
            self.wav.close()
        self.file.close()

    def abandon(self):
        """Close the file of a failed run, remove it if it has no audio, and return whether it is kept."""
        with suppress(OSError):
            self.close()
        if not self.size:
            with suppress(OSError):
                os.remove(self.partial)
        return os.path.exists(self.partial)


def is_set(value):
    """Return whether a value is neither empty nor a placeholder."""
    return not re.fullmatch("(<[A-Z ]+>)?", str(value).strip())


def number(value):
    """Return the number in a string; a whole one is an int, which a service may insist on."""
    result = float(value)
    return int(result) if result.is_integer() else result


def read_dotenv():
    """Yield the names and values of this script's lines in .env, if that is a file that can be read."""
    pattern = r"""(?mx) ^[ \t]* (?:export[ \t]+)? (SMALLEST_\w+) [ \t]*=
        (?: [ \t]*"((?:\\.|[^\\\n])*?)" | [ \t]*'(.*?)' | ((?![ \t]*["']).*?) )
        (?:[ \t]+\#.*)? [ \t]*$"""
    with suppress(OSError), open(".env", encoding="utf-8-sig") as file:
        for name, double_quoted, quoted, plain in re.findall(pattern, file.read()):
            yield name, re.sub(r'\\(["\\])', r"\1", double_quoted) or quoted or plain


def make_parser(variables):
    """Return the parser of the command line; each line of PAYLOAD and of OPTIONS is a flag."""
    layout = partial(RawDescriptionHelpFormatter, width=80)  # To ask the terminal would slow every start.
    parser = ArgumentParser(usage="%(prog)s [options]", description=__doc__, formatter_class=layout)
    parser.epilog = RETIRED
    for name, default in {**OPTIONS, **PAYLOAD}.items():
        flag = "--" + name.replace("_", "-")
        kind = number if isinstance(default, (int, float)) else str
        value = variables.get("SMALLEST_" + name.upper(), default)
        parser.add_argument(flag, type=kind, default=value, help="default: %(default)a")
    parser.add_argument("-o", dest="output")
    return parser


def read_settings(argv):
    """Return every setting, and the payload; raise ValueError if one is wrong or missing."""
    try:
        variables = {key: text.strip() for key, text in [*read_dotenv(), *os.environ.items()] if is_set(text)}
        settings = make_parser(variables).parse_args(argv)
        if settings.text == "-":
            if os.name == "posix":
                os.set_blocking(0, True)  # Otherwise a part of the text could pass for all of it.
            with open(0, encoding="utf-8-sig", closefd=False) as file:
                settings.text = file.read().strip()
    except (OSError, ValueError) as error:
        raise ValueError("The text or the file .env cannot be read: %s." % error) from None
    settings.api_key = variables.get("SMALLEST_API_KEY", API_KEY)
    missing = ["SMALLEST_" + name.upper() for name, value in vars(settings).items() if not is_set(value)]
    if missing:
        raise ValueError("Set %s in %s, or edit the script." % (", ".join(missing), os.path.abspath(".env")))
    settings.payload = {name: vars(settings)[name] for name in PAYLOAD}
    if settings.payload.get("sample_rate") not in range(8000, 48001):
        raise ValueError("The sample_rate has to be a whole number from 8000 to 48000, without quotes.")
    path = V2_PATH
    if not re.fullmatch(r"(?i)lightning[\W_]*v2", settings.model):
        path = LIVE_PATH
        settings.payload["model"] = settings.model
        for name in "consistency", "similarity", "enhancement":  # Later models do not have these fields.
            settings.payload.pop(name, None)
    if re.fullmatch("[a-z]+://[^/]*/?", settings.ws_url):
        settings.ws_url = settings.ws_url.rstrip("/") + path
    check_arguments(settings.ws_url, settings.api_key, settings.timeout)
    return settings


def say(line):
    """Print to standard error. If it is closed, or nobody reads it, the audio goes on."""
    with suppress(OSError):
        if sys.stderr:  # Without this, print() would write into standard output.
            print(line, file=sys.stderr, flush=True)


def speak(settings, wav):
    """Stream the speech into the file, and report the figures."""
    waited = heard_until = 0.0  # A player that began with the first chunk has played all by heard_until.
    say("Writing: " + (wav.partial or wav.path))
    started = perf_counter()
    with connect(settings.ws_url, settings.api_key, settings.timeout) as ws:
        sent = perf_counter()
        say("Connection: %.1f ms" % ((sent - started) * 1000))
        for chunks, pcm in enumerate(stream_speech(ws, settings.payload), 1):
            arrived = perf_counter() - sent
            if chunks == 1:
                say("TTFB: %.1f ms" % (arrived * 1000))
            elif arrived > heard_until:
                waited += arrived - heard_until
            heard_until = max(heard_until, arrived) + len(pcm) / wav.byte_rate
            wav.append(pcm)
    seconds = wav.size / wav.byte_rate
    say("Last chunk: %.1f ms, real-time factor %.3f" % (arrived * 1000, arrived / seconds))
    say("Complete: %.1f ms" % ((perf_counter() - sent) * 1000))
    wav.close()
    if wav.partial:
        os.replace(wav.partial, wav.path)
    gaps = "gaps of %.2f s in all" % waited if waited >= 0.01 else "gapless"
    say("Audio: %.2f s in %d chunks, %s" % (seconds, chunks, gaps))
    say("Saved: " + wav.path)


def advise(error, url):
    """Return what to do about a SpeechError, if that is sure."""
    if error.status in (404, 410) and HOST + V2_PATH in url:
        return RETIRED
    if error.status in (401, 403):
        return "Check the API key, and the path of the URL."
    if error.status == 0:
        return "Check the URL, that the server runs, the network, and the proxy (http_proxy, https_proxy)."
    return ""


def main(argv=None):
    """Run with these arguments, or the command line's, and return the exit code."""
    wav = None
    try:
        settings = read_settings(argv)
        wav = WavFile(settings.output, settings.sample_rate)
        speak(settings, wav)
        return 0
    except SpeechError as error:
        fault, code = ("%s %s" % (error, advise(error, settings.ws_url))).rstrip(), 1
    except OSError as error:
        fault = "The output %s cannot be written: %s." % (settings.output, error.strerror or error)
        code = 1 if wav else 2
    except (TypeError, ValueError) as error:
        fault, code = str(error), 2
    except KeyboardInterrupt:
        fault, code = "Interrupted before the speech was complete.", 130
    say(fault)
    if wav and wav.abandon():
        say("Kept: %s holds %.2f s of audio." % (wav.partial, wav.size / wav.byte_rate))
    return code


if __name__ == "__main__":
    sys.exit(main())
