#!/usr/bin/env python3
# /// script
# requires-python = ">=3.6"
# dependencies = ["websocket-client>=1.3.1,<2"]
# ///
"""Turn text into speech over a WebSocket with Smallest AI's Lightning V2.

    python ws_streaming_api.py --text "Hello." --voice-id ryan

The audio is written to a WAV file as it arrives: 16-bit little-endian mono PCM.

A setting is taken from its flag, else its environment variable, else the file
.env in the working directory, else the top of this script. The API key has only
a variable, SMALLEST_API_KEY: other users can read a command line. --text - reads
standard input, --output - writes standard output.

Exit codes: 0 the whole audio is there; 1 the run failed; 2 a setting is wrong,
found before anything was sent; 130 interrupted. What arrived before a failure
is kept beside output.wav, in output.partial.wav. Times in the report count from
the sending of the payload.
"""

import argparse
import base64
import ipaddress
import json
import os
import re
import socket
import struct
import sys
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Iterator
from urllib.parse import urlsplit

try:
    import websocket
except (ImportError, SyntaxError):
    websocket = None  # connect() says what to do

API_KEY = "<AUTH TOKEN>"
TEXT = "<TEXT>"
VOICE_ID = "<VOICE>"

# What is sent. Another field of the protocol is one more line, and has its flag and its variable.
PAYLOAD = {
    "text": TEXT,
    "voice_id": VOICE_ID,
    "sample_rate": 24000,
    "speed": 1,
    "language": "en",
    "consistency": 0.5,
    "similarity": 0,
    "enhancement": 1,
}
OPTIONS = {
    "model": "lightning-v2",
    "ws_url": "",  # that of the model
    "output": "output.wav",
    "timeout": 30,  # seconds without audio
}
# Between whole bounds only whole numbers are allowed.
RANGES = {
    "sample_rate": (8000, 48000),
    "speed": (0.1, 5.0),
    "consistency": (0.0, 1.0),
    "similarity": (0.0, 1.0),
    "enhancement": (0.0, 2.0),
    "timeout": (0.1, 3600.0),
}

# --- Copy from here, with the imports -----------------------------------------------------------------

V2_URL = "wss://api.smallest.ai/waves/v1/lightning-v2/get_speech/stream"
LIVE_URL = "wss://api.smallest.ai/waves/v1/tts/live"  # of every later model
RETIRED = f"Lightning V2 is retired: use lightning_v3.1 at {LIVE_URL}, or check the URL of your own host."
# What to do about a connection that failed: the first row whose pattern is found in the fault.
ADVICE = {
    "/lightning-v2/.* status 404|status 410": RETIRED,
    "status 40[13]": "Check the API key: missing, mistyped, of another product, or past its usage limit.",
    "status (426|505)": "Check the URL: a gateway on the way does not pass WebSockets on.",
    "status (429|5..)": "Try again later: the service is busy or at fault.",
    r"issuer|self.signed|failed \(": "Name the file of your own authority in WEBSOCKET_CLIENT_CA_BUNDLE.",
    "": "Check the URL, the network and, where one is set, the proxy (https_proxy).",
}


class SpeechError(Exception):
    """The speech is not whole: one line with what happened and what to do."""


def clean(words):
    """Return words from outside as one short line, without control characters and API keys."""
    text = words.decode("utf-8", "replace") if isinstance(words, bytes) else str(words)
    text = re.sub(r"\bsk_[\w-]+", "[API key]", text)
    return "".join(letter if letter.isprintable() else " " for letter in text)[:300]


def check_url(url):
    """Return host and port of a WebSocket URL; raise SpeechError if the API key could be read on the way."""
    parts = urlsplit(url)
    if not parts.hostname or not re.fullmatch("wss?://[!-~]+", url):
        raise SpeechError(f"{clean(url)} is not a WebSocket URL: wss://host/path, or ws://host/path.")
    address = parts.hostname, parts.port or (443 if parts.scheme == "wss" else 80)
    with suppress(socket.gaierror):  # an unknown host is for the connection to report
        for found in socket.getaddrinfo(*address, type=socket.SOCK_STREAM) if parts.scheme == "ws" else []:
            if ipaddress.ip_address(found[4][0].partition("%")[0]).is_global:
                raise SpeechError(f"{clean(url)} would send the API key in the clear: use wss://.")
    return address


def connect(url: str, api_key: str, timeout: float = 30) -> "websocket.WebSocket":
    """Return an open WebSocket; the key is in its handshake, as a Bearer token, and nowhere else.

    `timeout`, in seconds, is for each step of the handshake, and later for stream_speech().
    Plain ws:// is for addresses that are not public, and uses no proxy. Raises SpeechError.
    """
    if not hasattr(websocket, "create_connection"):
        raise SpeechError("No websocket-client here: pip uninstall websocket; pip install websocket-client")
    where, said, sock = clean(url.partition("?")[0]), "", None
    header = ["Authorization: Bearer " + api_key]
    try:
        address = check_url(url)
        if url.startswith("ws:"):  # a proxy could read the key
            sock = socket.create_connection(address, timeout)
        # A redirect would take the key along; to validate UTF-8 is a slow loop, and json.loads() does it too.
        ws = websocket.create_connection(
            url, timeout, header=header, redirect_limit=0, skip_utf8_validation=True, socket=sock
        )
        if ws.getstatus() == 101:
            return ws
        ws.shutdown()
        fault = f"{where} redirects elsewhere, where the API key does not follow"
    except websocket.WebSocketBadStatusException as error:
        fault = f"{where} refused the handshake with status {error.status_code}"
        headers, body = error.resp_headers or {}, getattr(error, "resp_body", None) or b""
        named = [f"{name}: {headers[name]}; " for name in ("retry-after", "x-request-id") if name in headers]
        said = clean("".join(named) + clean(body))
    except (OSError, websocket.WebSocketException) as error:
        fault = f"No connection to {where}: {clean(error)}"
    except (LookupError, TypeError, ValueError):  # the words may quote the password of a proxy
        fault = f"No connection to {where}: that URL, a proxy's, or an answer cannot be read"
    advice = next(advice for pattern, advice in ADVICE.items() if re.search(pattern, fault))
    raise SpeechError(f"{fault}. {advice} {said}".strip())


def stream_speech(ws: "websocket.WebSocket", payload: dict) -> Iterator[bytes]:
    """Send a payload and yield the speech as it arrives: 16-bit little-endian mono PCM, in whole samples.

    After the service's "complete", `ws` is open for the next payload, if the service allows that, and the
    caller's to close: ws.close(timeout=0) does not wait. After a SpeechError (an error, a close, damaged
    audio, or none for the timeout of `ws`) and after a caller who stops in the middle, `ws` is shut.
    """
    if getattr(ws, "is_speaking", False):
        ws.shutdown()  # or the rest of the last speech would be heard as this one
    ws.is_speaking = True
    timeout = ws.gettimeout() or 1e6  # without one, days
    status, rest, is_silent = None, b"", True
    try:
        with suppress(OSError, websocket.WebSocketException):  # the service may have said why it hung up
            ws.send(json.dumps(payload))
        deadline = perf_counter() + timeout
        while status != "complete":
            status, audio = receive_message(ws, deadline)
            pcm = rest + audio
            whole = len(pcm) // 2 * 2  # a chunk may end within a sample
            rest = pcm[whole:]
            if whole:
                yield pcm[:whole]
                is_silent, deadline = False, perf_counter() + timeout
        if rest or is_silent:
            raise SpeechError("The service ended the speech without whole audio: check text and voice.")
        ws.is_speaking = False
    except websocket.WebSocketTimeoutException:
        raise SpeechError(f"No audio came for {timeout:g} s. Try again, or allow more time.") from None
    except (OSError, websocket.WebSocketException) as error:
        raise SpeechError(f"The connection was lost within the speech: {clean(error)}. Try again.") from error
    finally:
        ws.settimeout(timeout)
        if ws.is_speaking:
            ws.shutdown()


def receive_message(ws, deadline):
    """Return status and PCM of the next message; raise SpeechError for an "error", a close or damage.

    By Smallest AI's reference "chunk" has base64 in data.audio, and "complete" ends the speech.
    """
    ws.settimeout(max(deadline - perf_counter(), 0.001))  # what is left of it: a ping is no progress
    opcode, frame = ws.recv_data(control_frame=True)
    if opcode == websocket.ABNF.OPCODE_CLOSE:
        code, reason = int.from_bytes(frame[:2], "big"), clean(frame[2:]) or "no reason given"
        raise SpeechError(f"The service hung up within the speech: close code {code}, {reason}. Try again.")
    try:
        message = json.loads(frame) if opcode < websocket.ABNF.OPCODE_CLOSE else {}  # a ping or a pong
        status = message.get("status")
        data = message.get("data") if status in ("chunk", "complete") else None
        pcm = base64.b64decode((data or {}).get("audio") or "", validate=True)
    except (AttributeError, TypeError, ValueError, RecursionError):
        raise SpeechError(f"What came is not JSON with base64 audio, check the URL: {clean(frame)}") from None
    if status == "error" or message.get("error"):
        retired = RETIRED if b"DEPRECATED" in frame else ""
        raise SpeechError(f"The service reports an error: {clean(frame)} {retired}".strip())
    return status, pcm


# --- Copy to here -------------------------------------------------------------------------------------


class WavFile:
    """A WAV file that can be played at every moment; until it is whole, its name is output.partial.wav."""

    def __init__(self, path, sample_rate):
        self.partial, self.byte_rate, self.size = None, sample_rate * 2, 0
        if path == "-" or (os.path.exists(path) and not os.path.isfile(path)):  # a pipe or a device
            self.path = "Standard output" if path == "-" else path
            self.file = open(1 if path == "-" else path, "wb", closefd=path != "-")
        else:
            self.path = os.path.realpath(path) if os.path.islink(path) else path  # a link stays
            self.partial = "{}.partial{}".format(*os.path.splitext(self.path))
            self.file = open(self.partial, "wb")
        self.write_header(0 if self.partial else 0xFFFFFFFF - 36)  # the largest: until the end

    def write_header(self, size):
        """Write the header of `size` bytes of PCM."""
        parts = b"WAVEfmt ", 16, 1, 1, self.byte_rate // 2, self.byte_rate, 2, 16, b"data", size
        self.file.write(struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", size + 36, *parts))

    def append(self, pcm):
        """Add PCM, and count it in the header."""
        self.file.write(pcm)
        self.file.flush()
        if self.partial:
            self.file.seek(0)
            self.write_header(self.size + len(pcm))
            self.file.seek(0, os.SEEK_END)
        self.size += len(pcm)

    def finish(self):
        """Close the file and give it its name."""
        self.file.close()
        if self.partial:
            os.replace(self.partial, self.path)

    def abandon(self):
        """Close the file; return whether the partial file stays, which it does if there is audio in it."""
        with suppress(OSError):  # of a full disk: what the header counts is there
            self.file.close()
        if self.partial and not self.size:
            os.remove(self.partial)
        return self.partial and self.size


SETTINGS = {"api_key": API_KEY, **PAYLOAD, **OPTIONS}
ALLOWED = {
    **{number: "{} to {}".format(*bounds) for number, bounds in RANGES.items()},
    "api_key": "printable ASCII without spaces",
    "text": "what to say, or - for standard input",
    "voice_id": "a voice of the model",
    "model": "lightning-v2, or a later one",
    "ws_url": "wss://, or ws:// to an address that is not public",
    "output": "a file in a folder that is there, or - for a pipe",
}


def parse(name, value):
    """Return what the string of a setting stands for; raise an error if it is not allowed."""
    if name == "api_key":
        is_allowed = re.fullmatch("[!-~]+", value)
    elif name == "ws_url":
        is_allowed = check_url(value)
    elif name == "output" and value == "-":
        is_allowed = not sys.stdout.isatty()
    elif name == "output":
        is_allowed = os.path.isdir(os.path.dirname(os.path.realpath(value))) and not os.path.isdir(value)
    elif isinstance(SETTINGS[name], str):
        is_allowed = value.strip() and value.encode()
    else:
        value = json.loads(re.sub(r"\.0+$", "", value))  # whole numbers travel as such
        low, high = RANGES.get(name, (False, True) if isinstance(SETTINGS[name], bool) else (-1e99, 1e99))
        is_allowed = type(value) in (int, type(low)) and low <= value <= high
    if not is_allowed:
        raise ValueError
    return value


def read_dotenv(path):
    """Return the NAME=value lines of a file as a dictionary, empty if there is no such file."""
    values = {}
    if os.path.exists(path) and not os.path.isdir(path):  # a virtual environment may be called .env
        with open(path, encoding="utf-8-sig") as lines:
            for line in lines:
                name, _, value = re.sub(r"^\s*export\s+", "", line).partition("=")
                quoted = re.match(r"""\s*(["'])(.*?)\1\s*(#.*)?$""", value)
                values[name.strip()] = quoted.group(2) if quoted else re.sub(r"\s#.*", "", value).strip()
    return values


def read_settings(argv=None):
    """Return every setting, checked; if some are wrong or missing, name them all and exit with 2."""
    usage = "%(prog)s [options], or edit what stands at the top of the script"
    layout = partial(argparse.RawDescriptionHelpFormatter, max_help_position=40, width=100)
    parser = argparse.ArgumentParser(usage=usage, description=__doc__, formatter_class=layout)
    for name, default in {**PAYLOAD, **OPTIONS}.items():
        flags = ["--" + name.replace("_", "-")] + ["-o"] * (name == "output")
        words = f"{ALLOWED.get(name, 'like the default')} (default: {default!a})".replace("%", "%%")
        parser.add_argument(*flags, dest="SMALLEST_" + name.upper(), help=words)
    flags, unknown = parser.parse_known_args(argv)
    if unknown:  # only flags are named: the rest may be a key
        names = " ".join(re.findall("(?m)^--[a-z-]+", "\n".join(unknown)))
        parser.error(f"not known: {names or 'a word without a flag'}; the API key goes into SMALLEST_API_KEY")
    try:
        sources = [vars(flags), os.environ, read_dotenv(".env")]
    except (OSError, ValueError) as error:
        parser.error(f".env cannot be read: {error}")
    settings, problems = {}, []
    for name, default in SETTINGS.items():
        variable = "SMALLEST_" + name.upper()
        found = [source.get(variable) for source in sources]
        found.append(default if isinstance(default, str) else json.dumps(default))
        value = next((v for v in found if v and not re.fullmatch("<(TEXT|VOICE|AUTH TOKEN)>", v)), "")
        try:
            if name == "text" and value == found[0] == "-":
                value = sys.stdin.buffer.read().decode("utf-8-sig").rstrip("\r\n")
            settings[name] = parse(name, value) if value or name in ("api_key", "text", "voice_id") else ""
        except (AttributeError, OSError, SpeechError, ValueError):
            shown = "missing" if not value else "wrong" if name == "api_key" else f"{clean(value)!a}"
            problems.append(f"{variable} is {shown}; allowed: {ALLOWED.get(name, 'like the default')}.")
    if problems:
        parser.error("\n".join(problems).replace(settings.get("api_key", "<>"), "[API key]"))
    return settings


def say(line, end="\n"):
    """Print to standard error; one that is closed or that nobody reads must cost no audio."""
    with suppress(OSError):
        if sys.stderr:  # print() would take standard output in its place
            print(line, end=end, file=sys.stderr, flush=True)


def speak(settings, wav):
    """Stream the speech into the file, and report the figures."""
    url, payload = V2_URL, {name: settings[name] for name in PAYLOAD}
    if settings["model"] not in ("lightning-v2", "lightning_v2"):
        url, payload["model"] = LIVE_URL, settings["model"]
        for name in "consistency", "similarity", "enhancement":  # of V2 alone
            payload.pop(name, None)
    started = perf_counter()
    ws = connect(settings["ws_url"] or url, settings["api_key"], settings["timeout"])
    sent = perf_counter()
    say(f"Connection: {(sent - started) * 1000:.1f} ms")
    gaps, waited, heard_until, is_terminal = 0, 0.0, 0.0, sys.stderr and sys.stderr.isatty()
    for chunks, pcm in enumerate(stream_speech(ws, payload), 1):
        last = perf_counter() - sent
        if chunks == 1:
            say(f"TTFB: {last * 1000:.1f} ms")
        elif last > heard_until:
            gaps, waited = gaps + 1, waited + last - heard_until
        wav.append(pcm)
        heard_until = max(heard_until, last) + len(pcm) / wav.byte_rate
        if is_terminal:
            say(f"Received: {wav.size / wav.byte_rate:.1f} s of audio", end="\r")  # the next line is longer
    say(f"Last chunk: {last * 1000:.1f} ms, real-time factor {last * wav.byte_rate / wav.size:.3f}")
    say(f"Complete: {(perf_counter() - sent) * 1000:.1f} ms")
    ws.close(timeout=0)
    wav.finish()
    playback = f"{gaps} gap{'s' * (gaps > 1)}, {waited:.2f} s in all" if gaps else "gapless"
    say(f"Audio: {wav.size / wav.byte_rate:.2f} s in {chunks} chunk{'s' * (chunks > 1)}, {playback}")
    say(f"Saved: {wav.path} ({(wav.size + 44) / 1000:.1f} kB)")


def main(argv=None):
    """Run with these arguments, or the command line's, and return the exit code."""
    wav, code = None, 1
    try:
        settings = read_settings(argv)
        wav = WavFile(settings["output"], settings["sample_rate"])
        speak(settings, wav)
        return 0
    except SpeechError as error:
        fault = str(error).replace(settings["api_key"], "[API key]")
        if "WEBSOCKET_CLIENT_CA_BUNDLE" in fault:
            fault += f" It is {os.environ.get('WEBSOCKET_CLIENT_CA_BUNDLE', 'not set')} now."
        if RETIRED in fault:
            fault += " Here: --model lightning_v3.1 --voice-id magnus."
    except OSError as error:
        fault = f"{wav.path if wav else settings['output']} cannot be written: {error}."
        code = 1 if wav else 2
    except KeyboardInterrupt:
        fault, code = "Interrupted before the speech was complete.", 130
    say(fault)
    if wav and wav.abandon():
        say(f"Kept: {wav.partial} holds {wav.size / wav.byte_rate:.2f} s of audio.")
    return code


if __name__ == "__main__":
    sys.exit(main())
