#!/usr/bin/env python3
# /// script
# requires-python = ">=3.6"
# dependencies = ["websocket-client"]
# ///
"""Turn text into speech over a WebSocket with Smallest AI's Lightning V2.

    python ws_streaming_api.py --text "Hello." --voice-id ryan

The audio is written to a WAV file as it arrives: 16-bit little-endian mono PCM.

A setting is taken from its flag, else its variable (SMALLEST_VOICE_ID for
--voice-id) in the environment or in the file .env, else the top of this script.
The API key has only a variable: other users can read a command line.

Exit codes: 0 the whole audio is there; 1 the run failed; 2 a setting is wrong,
found before anything was sent; 130 interrupted. What arrived before a failure
is kept in a file of this run's own, such as output.partial-1a2b3c4d.wav.
"""

import base64
import json
import os
import re
import sys
import wave
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Generator

try:
    from websocket import ABNF, WebSocket, WebSocketException, WebSocketTimeoutException
except (ImportError, SyntaxError):  # SyntaxError: an old package of that name
    sys.exit("websocket-client is missing. Run: python -m pip install --force-reinstall websocket-client")

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

HOST = "wss://api.smallest.ai"
V2_PATH = "/waves/v1/lightning-v2/get_speech/stream"
LIVE_PATH = "/waves/v1/tts/live"  # of every later model
SECRET = r"sk_[^\s\"']+"  # an API key in words from outside


class SpeechError(Exception):
    """The speech is not whole: one line says what happened.

    `status` is that of a refused handshake (0: none came), the code of a close (1005: it had none), or None.
    """

    def __init__(self, text, status=None):
        super().__init__(text)
        self.status = status


class Connection(WebSocket):
    """A WebSocket for one speech, which can be read to its end after the service has gone."""

    secret = SECRET  # a pattern of what must not be repeated
    is_used = False

    def send(self, payload, opcode=ABNF.OPCODE_TEXT):
        """Send, but let a failure pass: the library answers a ping or a close before it returns what came."""
        with suppress(OSError, WebSocketException):
            return super().send(payload, opcode)
        return 0


def connect(url: str, api_key: str, timeout: float = 30) -> Connection:
    """Return an open connection for one speech; the key is in its handshake and nowhere else.

    `url` is whole, such as HOST + LIVE_PATH. The key is sent as Bearer, unless it begins with "Token ".
    `timeout`, in seconds, holds for each step of the handshake, then for stream_speech(). Raises SpeechError.
    """
    scheme, key = check_access(url, api_key)
    ws = Connection(skip_utf8_validation=True)  # json.loads() checks it; the library would, byte by byte
    ws.secret = f"{re.escape(key)}|{SECRET}"
    ws.settimeout(timeout)
    status = None
    reason = "no reason given"
    try:
        ws.connect(url, header=[f"Authorization: {scheme} {key}"], redirect_limit=0)  # or the key goes along
    except (OSError, WebSocketException) as error:
        status = getattr(error, "status_code", None)  # a refusal has one, and maybe a body
        reason = getattr(error, "resp_body", None) or (reason if status else error)
    except Exception:  # of an odd answer or proxy; the words may hold a proxy's password
        reason = "the URL, a proxy's, or an answer cannot be read"
    status = status or ws.getstatus() or 0
    if status == 101:
        return ws
    ws.shutdown()
    fault = f"the handshake was refused with status {status}, " if status else ""
    raise SpeechError(f"No connection to {url.partition('?')[0]}: {fault}{clean(reason, ws.secret)}.", status)


def check_access(url, api_key):
    """Return the scheme and the key; raise SpeechError, which repeats neither, for a wrong URL or key."""
    if not re.fullmatch(r"(?a)wss?://([\w.-]+|\[[\w:.]+\])(:\d{1,5})?(/[!-~]*)?", url):  # host, port, path
        raise SpeechError("The URL has to be wss://host/path, or ws://host/path, without user and password.")
    if re.match(r"(?i)ws://([^/]*\.)?smallest\.ai\b", url):
        raise SpeechError("The URL would send the API key in the clear: use wss://.")
    access = re.fullmatch(r"(?:(Bearer|Token) )?([!#-&(-~]+)", api_key.strip())  # ASCII, but no " and no '
    if not access:
        raise SpeechError("The API key is empty, in quotation marks, or not printable ASCII without blanks.")
    return access.groups(default="Bearer")


def clean(words, secret=SECRET):
    """Return words from outside as a short line, without API keys, control characters and a full stop."""
    text = words.decode("utf-8", "replace") if isinstance(words, bytes) else str(words)
    text = re.sub(secret, "[API key]", text)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text[:300].rstrip(" .")


def stream_speech(ws: Connection, payload: dict) -> Generator[bytes, None, None]:
    """Send a payload and yield the speech as it arrives: 16-bit little-endian mono PCM, in whole samples.

    Nothing is sent before the first next(); `ws` is shut at every end. Raises SpeechError for an error that
    the service reports, a close, a loss, damaged audio, and where none comes for the timeout of `ws`.
    """
    if ws.is_used:  # or the rest of the last text could be heard as this one
        raise SpeechError("This connection has been given a text. Connect again.")
    ws.is_used = True
    timeout = ws.gettimeout()
    size = 0
    rest = b""
    is_last = False
    try:
        ws.send(json.dumps(payload))
        while not is_last:
            chunk, is_last = receive_chunk(ws, timeout)
            size += len(chunk)
            pcm = rest + chunk
            whole = len(pcm) // 2 * 2
            rest = pcm[whole:]  # a chunk may end within a sample
            if whole:
                yield pcm[:whole]
        if rest or not size:
            raise SpeechError(f"The service ended the speech after {size} bytes of PCM, no whole speech.")
        ws.close(timeout=0)
    finally:
        ws.shutdown()


def receive_chunk(ws, timeout):
    """Return the next PCM, and whether it is the last; raise SpeechError for every other end."""
    started = perf_counter()
    remaining = timeout
    said = ""  # the last message without audio, which may say why there is no more
    while remaining > 0:  # a ping, or a message without audio, is no progress
        try:
            ws.settimeout(remaining)
            opcode, frame = ws.recv_data(control_frame=True)
        except WebSocketTimeoutException:
            break
        except Exception as error:  # whatever TLS makes of an abort(), too
            raise SpeechError(f"The connection was lost in mid-speech: {clean(error)}{said}.") from None
        if opcode == ABNF.OPCODE_CLOSE:
            code = int.from_bytes(frame[:2], "big") or 1005
            reason = clean(frame[2:] or "no reason given", ws.secret)
            raise SpeechError(f"The service hung up in mid-speech: close code {code}, {reason}{said}.", code)
        if opcode < ABNF.OPCODE_CLOSE:  # above it are pings and pongs
            pcm, is_last = read_message(frame, ws.secret)
            if pcm or is_last:
                return pcm, is_last
            said = f", after {clean(frame, ws.secret)}"
        remaining = timeout - (perf_counter() - started)
    raise SpeechError("No audio came for %.1f s%s." % (perf_counter() - started, said))


def read_message(frame, secret):
    """Return the PCM in a message, and whether it is the last; raise SpeechError for an error or damage."""
    # By Smallest AI's reference "audio" is in "data", and "complete" the end. Clients of V2 met the others.
    try:
        message = json.loads(frame)
        pcm = base64.b64decode(find(message, "audio") or "", validate=True)
    except (AttributeError, TypeError, ValueError, RecursionError):
        raise SpeechError(f"What came is not JSON with base64 audio: {clean(frame, secret)}.") from None
    if pcm.startswith(b"RIFF"):
        raise SpeechError("What came is WAV, not PCM: the payload must not ask for another output format.")
    status = find(message, "status")
    if status == "error" or find(message, "error"):
        raise SpeechError(f"The service reports an error: {clean(frame, secret)}.")
    return pcm, status in ("complete", "comp") or find(message, "done") is True


def find(message, name):
    """Return a field of a message, or else of its "data", or else of its "payload"."""
    for part in (message, message.get("data"), message.get("payload")):
        if isinstance(part, dict) and part.get(name):
            return part[name]
    return None


# --- Down to here it is for copying into a program of your own ------------------------------------------


class WavFile:
    """A WAV file that can be played at every moment. Until it is whole, its name is this run's own."""

    def __init__(self, path, sample_rate):
        self.path = path
        self.partial = ""
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
            stem, extension = os.path.splitext(path)
            self.partial = f"{stem}.partial-{os.urandom(4).hex()}{extension}"
            self.file = open(self.partial, "xb")
        self.wav = wave.open(self.file, "wb")
        self.wav.setnchannels(1)
        self.wav.setsampwidth(2)
        self.wav.setframerate(sample_rate)
        if not self.partial:
            self.wav.setnframes(0x7FFFFFED)  # the largest: the header leaves before the length is known

    def append(self, pcm):
        """Write PCM so that whoever reads the file finds it at once."""
        if self.partial:
            self.wav.writeframes(pcm)
        else:
            self.wav.writeframesraw(pcm)
        self.file.flush()
        self.size += len(pcm)

    def close(self):
        with suppress(OSError):  # nobody can tell a pipe the length
            self.wav.close()
        self.file.close()

    def finish(self):
        """Close the whole file and give it its name."""
        self.close()
        if self.partial:
            os.replace(self.partial, self.path)

    def abandon(self):
        """Close the broken file, remove it if it has no audio, and return whether it is there."""
        with suppress(OSError):  # of a full disk: what the header counts is there
            self.close()
        if self.partial and not self.size:
            with suppress(OSError):
                os.remove(self.partial)
        return os.path.exists(self.partial)


def number_between(kind, low, high):
    """Return a reader of numbers for argparse; a whole one is an int, which a service may insist on."""

    def read_number(value):
        with suppress(ValueError):
            number = kind(value)
            if low <= number <= high:
                return number if number % 1 else int(number)
        raise ArgumentTypeError(f"{value!a} is not a number from {low} to {high}")

    return read_number


def read_word(value):
    """Return what is not empty, without blanks around it."""
    if not value.strip():
        raise ArgumentTypeError("it is empty")
    return value.strip()


def read_text(value):
    """Return the text to speak; "-" stands for standard input."""
    try:
        if value == "-":
            with open(0, encoding="utf-8-sig") as file:
                value = file.read()
        value.encode()
    except (OSError, ValueError) as error:
        raise ArgumentTypeError(f"the text cannot be read: {error}") from None
    return read_word(value)


class Parser(ArgumentParser):
    """A parser whose errors repeat no API key."""

    def error(self, message):
        super().error(clean(message))


def make_parser():
    """Return the parser of the command line. A flag is a setting; most are fields of PAYLOAD as well."""
    layout = partial(RawDescriptionHelpFormatter, width=80)  # to ask the terminal would slow every start
    parser = Parser(usage="%(prog)s [options]", description=__doc__, formatter_class=layout)

    def add(flags, read, what, default=None):
        parser.add_argument(*flags.split(), type=read, default=default, help=what + " (default: %(default)a)")

    add("--text", read_text, "what to say, or - for standard input")
    add("--voice-id", read_word, "a voice of the model, such as ryan")
    add("--sample-rate", number_between(int, 8000, 48000), "Hz, a whole number from 8000 to 48000")
    add("--speed", number_between(float, 0.1, 5.0), "a factor from 0.1 to 5.0")
    add("--language", read_word, "a language code, such as en")
    add("--consistency", number_between(float, 0.0, 1.0), "0.0 to 1.0: lower where words are skipped")
    add("--similarity", number_between(float, 0.0, 1.0), "0.0 to 1.0: how close to the reference voice")
    add("--enhancement", number_between(float, 0.0, 2.0), "0.0 to 2.0: better sound, but a later start")
    add("--model", read_word, "lightning-v2, or a later one, such as lightning_v3.1", "lightning-v2")
    add("--ws-url", read_word, "wss://host or ws://host; without a path it takes the model's", HOST)
    add("--output -o", read_word, "a file, or - for standard output", "output.wav")
    add("--timeout", number_between(float, 0.1, 3600.0), "seconds without audio before it gives up", 30)
    return parser


def is_set(value):
    """Return whether a value is neither missing nor a placeholder."""
    return not re.fullmatch("(<[A-Z ]+>)?", str(value or ""))


def read_dotenv():
    """Yield the names and values of the lines in .env that are for this script; the rest is other tools'."""
    if os.path.exists(".env") and not os.path.isdir(".env"):  # a virtual environment may have that name
        with open(".env", encoding="utf-8-sig") as file:
            lines = re.findall(r"(?m)^[ \t]*(?:export[ \t]+)?(SMALLEST_\w+)[ \t]*=(.*)", file.read())
        for name, value in lines:
            quoted = re.fullmatch(r"\s*([\"'])(.*?)\1\s*(#.*)?", value)
            if quoted:
                yield name, quoted.group(2)
            elif re.match(r"\s*[\"']", value):
                raise ValueError(f"a quotation mark of {name} is not closed")
            else:
                yield name, re.split(r"\s#", value)[0]


def read_settings(argv):
    """Return every setting, checked, and the payload; if one is wrong or missing, say so and exit with 2."""
    parser = make_parser()
    try:
        pairs = [*read_dotenv(), *os.environ.items()]
    except (OSError, ValueError) as error:
        parser.error(f".env cannot be read: {error}")
    variables = {name: value.strip() for name, value in pairs if is_set(value.strip())}
    for name in vars(parser.parse_args([])):
        default = PAYLOAD.get(name, parser.get_default(name))
        value = variables.get("SMALLEST_" + name.upper(), default)
        if value is not None:
            parser.set_defaults(**{name: str(value)})  # a string is read and checked as that of a flag
    settings = parser.parse_args(argv)
    settings.api_key = variables.get("SMALLEST_API_KEY", str(API_KEY))
    required = ["api_key", "text", "voice_id", "sample_rate"]
    missing = ["SMALLEST_" + name.upper() for name in required if not is_set(getattr(settings, name))]
    if missing:
        parser.error(f"set {', '.join(missing)}, or edit the top of the script")
    settings.ws_url, settings.payload = choose_model(settings)
    try:
        check_access(settings.ws_url, settings.api_key)
    except SpeechError as error:
        parser.error(str(error))
    return settings


def choose_model(settings):
    """Return the URL of the model, and the payload without fields that are foreign to it."""
    path = V2_PATH
    foreign = ["api_key", "ws_url", "output", "timeout"]
    if re.fullmatch(r"(?i)lightning[\W_]*v2", settings.model):
        foreign += ["model"]
    else:
        path = LIVE_PATH
        foreign += ["consistency", "similarity", "enhancement"]
    payload = {}
    for name in [*PAYLOAD, *vars(settings)]:
        value = getattr(settings, name, PAYLOAD.get(name))  # a field that has no flag is sent as it stands
        if value is not None and name not in foreign:
            payload[name] = value
    url = settings.ws_url
    if url.rstrip("/").count("/") == 2:  # a host alone
        url = url.rstrip("/") + path
    return url, payload


def say(line):
    """Print to standard error; one that is closed or that nobody reads must cost no audio."""
    with suppress(OSError):
        if sys.stderr:  # print() would take standard output in its place
            print(line, file=sys.stderr, flush=True)


def speak(settings, wav):
    """Stream the speech into the file, and report the figures."""
    waited = 0.0
    heard_until = 0.0  # when a player that began with the first chunk would run dry
    started = perf_counter()
    ws = connect(settings.ws_url, settings.api_key, settings.timeout)
    sent = perf_counter()
    say("Connection: %.1f ms" % ((sent - started) * 1000))
    for chunks, pcm in enumerate(stream_speech(ws, settings.payload), 1):
        last = perf_counter() - sent
        if chunks == 1:
            say("TTFB: %.1f ms" % (last * 1000))
        elif last > heard_until:
            waited += last - heard_until
        heard_until = max(heard_until, last) + len(pcm) / wav.byte_rate
        wav.append(pcm)
    seconds = wav.size / wav.byte_rate
    say("Last chunk: %.1f ms, real-time factor %.3f" % (last * 1000, last / seconds))
    say("Complete: %.1f ms" % ((perf_counter() - sent) * 1000))
    wav.finish()
    gaps = "gaps of %.2f s in all" % waited if waited >= 0.01 else "gapless"
    say("Audio: %.2f s in %d chunks, %s" % (seconds, chunks, gaps))
    say(f"Saved: {wav.path}")


def advise(status, url):
    """Return what to do about a SpeechError of that status."""
    if status is None:
        return "Check the text, the voice and the model, try again, or raise --timeout."
    if status in (401, 403, 1008):
        return "Check the API key: missing, mistyped, of another product, or past its usage limit."
    if status in (404, 410) and url.startswith(HOST + V2_PATH):
        return "Lightning V2 is retired: use --model lightning_v3.1 --voice-id magnus."
    if status == 429 or status >= 500:
        return "Try again later: the service is busy or at fault."
    if status:
        return "Check the URL and its path; the API key follows no redirect."
    return "Check the URL, the network, the proxy of https_proxy, your clock and WEBSOCKET_CLIENT_CA_BUNDLE."


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
        fault = f"{error} {advise(error.status, settings.ws_url)}"
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
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
