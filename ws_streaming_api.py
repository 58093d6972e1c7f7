#!/usr/bin/env python3
"""Turn text into speech over a WebSocket with Smallest AI's Lightning V2.

    python ws_streaming_api.py --text "Hello." --voice-id ryan

The audio is written to a WAV file as it arrives: 16-bit little-endian mono PCM.

A setting is taken from its flag, else its environment variable, else the file
.env in the working directory, else the top of this script. The API key has only
a variable, SMALLEST_API_KEY: other users can read a command line.

Exit codes: 0 the whole audio is there; 1 the run failed; 2 a setting is wrong,
found before anything was sent; 130 interrupted. What arrived before a failure
is kept in output.partial.wav. Times count from the sending of the payload.
"""

import base64
import json
import os
import re
import shlex
import struct
import sys
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Generator

try:
    from websocket import ABNF, WebSocket, WebSocketException, WebSocketTimeoutException, create_connection
except (ImportError, SyntaxError):  # SyntaxError: an old package of that name
    sys.exit("websocket-client is missing. Run: pip uninstall websocket; pip install websocket-client")

API_KEY = "<AUTH TOKEN>"
TEXT = "<TEXT>"
VOICE_ID = "<VOICE>"

# What is sent. Another field of the protocol is one more line.
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

V2_URL = "wss://api.smallest.ai/waves/v1/lightning-v2/get_speech/stream"
LIVE_URL = "wss://api.smallest.ai/waves/v1/tts/live"  # of every later model
RETIRED = f"Lightning V2 is retired: use model lightning_v3.1, voice magnus, at {LIVE_URL}, or check the URL."


class SpeechError(Exception):
    """The speech is not whole: one line with what happened and what to do."""


def connect(url: str, api_key: str, timeout: float = 30) -> WebSocket:
    """Return an open WebSocket; the key is in its handshake, as a Bearer token, and nowhere else.

    `timeout` is in seconds, for each step of the handshake and then for stream_speech(). Raises SpeechError.
    """
    header = ["Authorization: Bearer " + check_access(url, api_key)]
    status = 0
    try:
        # A redirect would take the key along. json.loads() checks UTF-8; the library would, byte by byte.
        ws = create_connection(url, timeout, header=header, redirect_limit=0, skip_utf8_validation=True)
        if ws.getstatus() != 101:
            raise WebSocketException("Redirect")
        return ws
    except (OSError, WebSocketException) as error:
        fault = clean(error)
        status = getattr(error, "status_code", 0)
        if status:
            body = getattr(error, "resp_body", None) or "no reason given"
            fault = f"the handshake was refused with status {status}, {clean(body)}"
    except (LookupError, TypeError, ValueError):  # the words may quote the password of a proxy
        fault = "the URL, a proxy's, or an answer cannot be read"
    where = clean(url.partition("?")[0])
    raise SpeechError(f"No connection to {where}: {fault}. {advise(url, status, fault)}")


def advise(url, status, fault):
    """Return what to do about a handshake that failed."""
    if status in (404, 410) and "/lightning-v2/" in url:
        return RETIRED
    if status in (401, 403):
        return "Check the API key: missing, mistyped, of another product, or past its usage limit."
    if status == 429 or status >= 500:
        return "Try again later: the service is busy or at fault."
    if "Redirect" in fault:
        return "The API key does not follow a redirect: if you trust where it leads, use that URL."
    if re.search("certificate|X509|Permission", fault):
        return "Check the host's name, your clock, and the file that WEBSOCKET_CLIENT_CA_BUNDLE names."
    return "Check the URL, the network and, where https_proxy is set, the proxy, its user and its password."


def check_access(url, api_key):
    """Return the key, fit for a header; raise SpeechError, which repeats neither, for a wrong URL or key."""
    if not re.fullmatch(r"(?a)wss?://([\w.-]+|\[[\w:.]+\])(:\d{1,5})?(/[!-~]*)?", url):  # host, port, path
        raise SpeechError("The URL has to be wss://host/path, or ws://host/path, without user and password.")
    if re.match(r"(?i)ws://([^/]*\.)?smallest\.ai\b", url):
        raise SpeechError("The URL would send the API key in the clear: use wss://.")
    if not re.fullmatch("[!-~]+", api_key.strip()):
        raise SpeechError("The API key is empty, or is not printable ASCII without blanks.")
    return api_key.strip()


def clean(words):
    """Return words from outside as a short line, without API keys, control characters and a full stop."""
    text = words.decode("utf-8", "replace") if isinstance(words, bytes) else str(words)
    text = re.sub(r"\bsk_[^\s\"']+", "[API key]", text)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    if len(text) > 300:  # cut at a blank, never within a key
        text = text[:300].rpartition(" ")[0]
    return text.rstrip(" .")


def stream_speech(ws: WebSocket, payload: dict) -> Generator[bytes, None, None]:
    """Send a payload and yield the speech as it arrives: 16-bit little-endian mono PCM, in whole samples.

    After that `ws` is open for another payload, if the service allows it. After a SpeechError (an error, a
    close, damaged audio, or none for the timeout of `ws`) and after a caller who stops early, it is shut.
    """
    if getattr(ws, "is_speaking", False):
        ws.shutdown()  # or the rest of the last speech would be heard as this one
    setattr(ws, "is_speaking", True)  # an attribute that the library does not declare
    timeout = ws.gettimeout()
    pcm = b""
    rest = b""
    try:
        with suppress(OSError, WebSocketException):  # the service may have said why it hung up
            ws.send(json.dumps(payload))
        for chunk in receive_audio(ws, timeout or 1e6):  # without a timeout, days
            pcm = rest + chunk
            rest = pcm[len(pcm) // 2 * 2 :]  # a chunk may end within a sample
            yield pcm[: len(pcm) // 2 * 2]
        if not pcm:
            raise SpeechError("The service ended the speech without any audio. Check the text and the voice.")
        if rest:
            raise SpeechError("The service ended the speech without whole audio. Connect again.")
        setattr(ws, "is_speaking", False)
    except WebSocketTimeoutException:
        raise SpeechError(f"No audio came for {timeout} s. Connect again, or allow more time.") from None
    except (OSError, WebSocketException) as error:
        raise SpeechError(f"The connection was lost in mid-speech: {clean(error)}. Connect again.") from None
    finally:
        ws.settimeout(timeout)
        if getattr(ws, "is_speaking", True):
            ws.shutdown()


def receive_audio(ws, timeout):
    """Yield the PCM of every message up to the last; raise SpeechError for a close."""
    deadline = perf_counter() + timeout
    is_last = False
    while not is_last:
        remaining = deadline - perf_counter()
        if remaining <= 0:  # a ping, or a message without audio, is no progress
            raise WebSocketTimeoutException
        ws.settimeout(remaining)
        opcode, frame = ws.recv_data(control_frame=True)
        if opcode == ABNF.OPCODE_CLOSE:
            code = int.from_bytes(frame[:2], "big")
            reason = clean(frame[2:] or "no reason given")
            advice = "Check the API key and its limits." if code == 1008 else "Connect again."
            raise SpeechError(f"The service hung up in mid-speech: close code {code}, {reason}. {advice}")
        if opcode < ABNF.OPCODE_CLOSE:  # above it are pings and pongs
            pcm, is_last = read_message(frame)
            if pcm:
                yield pcm
                deadline = perf_counter() + timeout


def read_message(frame):
    """Return the PCM in a message, and whether it is the last; raise SpeechError for an error or damage."""
    try:
        message = json.loads(frame)
        # By the reference "audio" is in "data"; clients of the hosted V2 saw the end in "payload" or "done".
        for part in ("payload", "data"):
            if isinstance(message.get(part), dict):
                message = {**message[part], **message}
        pcm = base64.b64decode(message.get("audio") or "", validate=True)
    except (AttributeError, TypeError, ValueError, RecursionError):
        raise SpeechError(f"What came is not JSON with base64 audio, check the URL: {clean(frame)}") from None
    status = message.get("status")
    if status == "error" or message.get("error"):
        advice = RETIRED if b"DEPRECATED" in frame else "Check the payload, or connect again later."
        raise SpeechError(f"The service reports an error: {clean(frame)}. {advice}")
    return pcm, (status == "complete" or message.get("done"))


# --- Down to here it is for copying into a program of your own ------------------------------------------


class WavFile:
    """A WAV file that can be played at every moment. Until it is whole, its name is this run's own."""

    def __init__(self, path, sample_rate):
        self.path = path
        self.partial = None
        self.byte_rate = sample_rate * 2
        self.size = 0
        if path == "-":
            if os.isatty(1):
                raise OSError("standard output is a terminal, let a player or a file take the audio")
            self.path = "Standard output"
            self.file = open(1, "wb")
        elif os.path.exists(path) and not os.path.isfile(path):  # a pipe or a device
            self.file = open(path, "wb")
        else:
            if os.path.islink(path):  # a link stays one
                self.path = os.path.realpath(path)
            self.kept = "{}.partial{}".format(*os.path.splitext(self.path))
            self.partial = f"{self.kept}-{os.urandom(4).hex()}"
            self.file = open(self.partial, "xb")
        self.write_header(0xFFFFFFFF - 36)  # the largest: until the end

    def write_header(self, pcm_size):
        parts = 16, 1, 1, self.byte_rate // 2, self.byte_rate, 2, 16, b"data", pcm_size  # PCM, mono, 16 bits
        self.file.write(struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", pcm_size + 36, b"WAVEfmt ", *parts))

    def append(self, pcm):
        self.file.write(pcm)
        self.file.flush()
        self.size += len(pcm)
        if self.partial:
            self.file.seek(0)
            self.write_header(self.size)
            self.file.seek(0, os.SEEK_END)

    def finish(self):
        """Close the whole file and give it its name."""
        self.file.close()
        if self.partial:
            os.replace(self.partial, self.path)

    def abandon(self):
        """Close the broken file, and return whether it stays, under the name `partial`, for its audio."""
        with suppress(OSError):  # of a full disk: what the header counts is there
            self.file.close()
        if self.partial and not self.size:
            os.remove(self.partial)
        elif self.partial:
            with suppress(OSError):  # on Windows, a player may hold the file of the last failure
                os.replace(self.partial, self.kept)
                self.partial = self.kept
        return self.partial and self.size


def read_number(kind, low, high, value):
    """Return the number in a string; a whole one is an int, which a service may insist on."""
    with suppress(ValueError):
        number = kind(value)
        if low <= number <= high:
            return number if number % 1 else int(number)
    raise ArgumentTypeError(f"{clean(value)!a} is not a number from {low} to {high}")


def read_text(value):
    """Return the text to speak; "-" stands for standard input."""
    try:
        if value == "-":
            value = open(0, encoding="utf-8-sig").read()
        value.encode()
    except (OSError, ValueError) as error:
        raise ArgumentTypeError(f"the text cannot be read: {error}") from None
    return value.strip()


OPTIONS = {"model": "lightning-v2", "ws_url": "", "output": "output.wav", "timeout": 30}
# How the string of a setting is read, and what it means.
SETTINGS = {
    "text": (read_text, "what to say, or - for standard input"),
    "voice_id": (str, "a voice of the model, such as ryan"),
    "sample_rate": (partial(read_number, int, 8000, 48000), "Hz, a whole number from 8000 to 48000"),
    "speed": (partial(read_number, float, 0.1, 5.0), "a factor from 0.1 to 5.0"),
    "language": (str, "a language code, such as en"),
    "consistency": (partial(read_number, float, 0.0, 1.0), "0.0 to 1.0: lower where words are skipped"),
    "similarity": (partial(read_number, float, 0.0, 1.0), "0.0 to 1.0: how close to the reference voice"),
    "enhancement": (partial(read_number, float, 0.0, 2.0), "0.0 to 2.0: better sound, but a later start"),
    "model": (str, "lightning-v2, or a later one, such as lightning_v3.1"),
    "ws_url": (str, "wss://host or ws://host; it takes the path of the model, if it has none"),
    "output": (str, "a file, or - for standard output"),
    "timeout": (partial(read_number, float, 0.1, 3600.0), "seconds without audio before it gives up"),
}
NOT_SET = "(<[A-Z ]+>)?"  # nothing, or a placeholder


def read_variables():
    """Return what the environment or, behind it, the file .env sets; placeholders set nothing."""
    variables = {}
    if os.path.isfile(".env"):  # a virtual environment may have that name
        with open(".env", encoding="utf-8-sig") as file:
            for name, value in re.findall(r"(?m)^\s*(?:export\s+)?(\w+)\s*=[ \t]*(.*)", file.read()):
                if re.match("['\"]", value):
                    variables[name] = " ".join(shlex.split(value, comments=True))
                else:
                    variables[name] = re.sub(r"(^|\s)#.*", "", value).strip()
    for name, value in os.environ.items():
        if value.strip():
            variables[name] = value.strip()
    return {name: value for name, value in variables.items() if not re.fullmatch(NOT_SET, value)}


def read_settings(argv):
    """Return every setting, checked; if one is wrong or missing, say so and exit with 2."""
    parser = ArgumentParser(usage="%(prog)s [options]", description=__doc__, add_help=False)
    parser.formatter_class = RawDescriptionHelpFormatter
    group = parser.add_argument_group("options")  # the parser's own would import shutil at every start
    group.add_argument("-h", "--help", action="help", help="show this and exit")
    try:
        variables = read_variables()
    except (OSError, ValueError) as error:
        parser.error(f".env cannot be read: {error}")
    defaults = {**OPTIONS, **PAYLOAD}
    for name, (kind, meaning) in SETTINGS.items():
        if name in defaults:  # a field may have been taken out of PAYLOAD
            flags = ["--" + name.replace("_", "-")]
            if name == "output":
                flags += ["-o"]
            variable = "SMALLEST_" + name.upper()
            value = variables.get(variable, str(defaults[name]))
            words = meaning + " (default: %(default)a)"
            group.add_argument(*flags, metavar=variable, type=kind, default=value, help=words)
    settings, unknown = parser.parse_known_args(argv)
    if unknown:  # only the flags are shown, as the rest may be a key
        flags = [word.partition("=")[0] for word in unknown if word.startswith("--")]
        shown = " ".join(flags) or "a word without a flag"
        parser.error(clean(f"the API key goes into SMALLEST_API_KEY, and this is not known: {shown}"))
    settings.api_key = variables.get("SMALLEST_API_KEY", API_KEY)
    required = ("API_KEY", "TEXT", "VOICE_ID")
    missing = [name for name in required if re.fullmatch(NOT_SET, getattr(settings, name.lower()))]
    if missing:
        variables = ["SMALLEST_" + name for name in missing]
        parser.error(f"edit {', '.join(missing)} at the top of the script, or set {', '.join(variables)}")
    try:
        settings.api_key = check_access(settings.ws_url or V2_URL, settings.api_key)
    except SpeechError as error:
        parser.error(str(error))
    return settings


def choose_model(settings):
    """Return the URL of the model, and the payload without fields that are foreign to it."""
    url = V2_URL
    foreign = ["model"]
    if settings.model not in ("lightning-v2", "lightning_v2"):
        url = LIVE_URL
        foreign = ["consistency", "similarity", "enhancement"]
    fields = {"model": "", **PAYLOAD}
    payload = {name: getattr(settings, name, fields[name]) for name in fields if name not in foreign}
    own = settings.ws_url
    if own.rstrip("/").count("/") == 2:  # a host alone: the path is that of the model
        own = re.sub("wss?://[^/]+", own.rstrip("/"), url)
    return own or url, payload


def say(line):
    """Print to standard error; one that is closed or that nobody reads must cost no audio."""
    with suppress(OSError):
        if sys.stderr:  # print() would take standard output in its place
            print(line, file=sys.stderr, flush=True)


def speak(settings, wav):
    """Stream the speech into the file, and report the figures."""
    url, payload = choose_model(settings)
    gaps = 0
    waited = 0.0
    heard_until = 0.0  # when a player that began with the first chunk would run dry
    started = perf_counter()
    ws = connect(url, settings.api_key, settings.timeout)
    sent = perf_counter()
    say("Connection: %.1f ms" % ((sent - started) * 1000))
    for chunks, pcm in enumerate(stream_speech(ws, payload), 1):
        last = perf_counter() - sent
        if chunks == 1:
            say("TTFB: %.1f ms" % (last * 1000))
        elif last > heard_until:
            gaps += 1
            waited += last - heard_until
        heard_until = max(heard_until, last) + len(pcm) / wav.byte_rate
        wav.append(pcm)
    seconds = wav.size / wav.byte_rate
    say("Last chunk: %.1f ms, real-time factor %.3f" % (last * 1000, last / seconds))
    say("Complete: %.1f ms" % ((perf_counter() - sent) * 1000))
    ws.close(timeout=0)
    wav.finish()
    playback = "%d gaps, %.2f s in all" % (gaps, waited) if gaps else "gapless"
    say("Audio: %.2f s in %d chunks, %s" % (seconds, chunks, playback))
    say(f"Saved: {wav.path}")


def main(argv=None):
    """Run with these arguments, or the command line's, and return the exit code."""
    wav = None
    code = 1
    try:
        settings = read_settings(argv)
        wav = WavFile(settings.output, settings.sample_rate)
        speak(settings, wav)
        return 0
    except SpeechError as error:
        fault = str(error).replace(settings.api_key, "[API key]")
    except OSError as error:
        fault = f"The output cannot be written: {error}."
        code = 1 if wav else 2
    except KeyboardInterrupt:
        fault = "Interrupted before the speech was complete."
        code = 130
    say(fault)
    if wav and wav.abandon():
        say("Kept: %s holds %.2f s of audio." % (wav.partial, wav.size / wav.byte_rate))
    return code


if __name__ == "__main__":
    sys.exit(main())
