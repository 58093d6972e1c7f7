#!/usr/bin/env python3
# /// script
# requires-python = ">=3.6"
# dependencies = ["websocket-client>=1.3.1,<2"]
# ///
"""Turn text into speech over a WebSocket with Smallest AI's Lightning V2.

Opens one connection, sends one JSON payload, decodes the base64 audio chunks as
they arrive and writes them to a WAV file: 16-bit little-endian mono PCM.

    python ws_streaming_api.py --text "Hello." --voice-id ryan

A setting is taken from its flag, else from its environment variable, else from
the file .env in the working directory, else from this script. The API key has a
variable, SMALLEST_API_KEY, but no flag: other users can read a command line.

Figures on standard error, times counted from the sending of the payload:
  Connection        how long TCP, TLS and the WebSocket handshake took together
  TTFB              time to the first audio (time to first byte)
  Chunks            how many chunks of audio came
  Audio             how long they play
  Last chunk        time to the last audio
  Complete          time to the service's word that the speech is complete
  Real-time factor  time to the last chunk, divided by the length of the audio
  Playback          gapless, or the gaps that a player would have had that began
                    at the first chunk and played each chunk as soon as it could
  Saved             the file and its size

Exit codes: 0 the whole audio is there; 1 the run failed; 2 a setting is wrong,
found before anything was sent; 130 interrupted, 143 terminated. What arrived
before a failure is kept beside output.wav, in output.partial.wav.
"""

import argparse
import base64
import ipaddress
import json
import math
import os
import queue
import re
import selectors
import signal
import socket
import ssl
import struct
import sys
import threading
from time import perf_counter
from typing import Callable, NamedTuple
from urllib.parse import urlsplit

try:
    import websocket
    from websocket import create_connection
except (ImportError, SyntaxError):  # it is not there, or the unrelated package "websocket" is in its place
    websocket = None

# Edit these three, or set SMALLEST_TEXT, SMALLEST_VOICE_ID and SMALLEST_API_KEY.
TEXT = "<TEXT>"
VOICE_ID = "<VOICE>"
API_KEY = "<AUTH TOKEN>"

V2_URL = "wss://api.smallest.ai/waves/v1/lightning-v2/get_speech/stream"
LIVE_URL = "wss://api.smallest.ai/waves/v1/tts/live"

# Put together, so that each placeholder stands only once in this file.
PLACEHOLDERS = [f"<{word}>" for word in ("TEXT", "VOICE", "AUTH TOKEN")]


class SettingsError(Exception):
    """Settings are wrong or missing: one line for each."""


class SpeechError(Exception):
    """The run failed: one sentence that says what happened and what to do."""


# --- Settings -----------------------------------------------------------------


def require(condition, reason):
    """Raise ValueError with the reason unless the condition holds."""
    if not condition:
        raise ValueError(reason)


def parse_text(value):
    """Return the text if there is any; raise ValueError if it is blank or not UTF-8."""
    require(value.strip(), "is blank")
    try:
        value.encode()
    except UnicodeEncodeError:  # UTF-8 that Python 3.6 took for ASCII, as it does in the C locale
        value = os.fsencode(value).decode()
    return value


def parse_key(value):
    """Return the key without blanks around it; raise ValueError if an HTTP header cannot hold it."""
    require(re.fullmatch("[!-~]+", value.strip()), "has a space, a line break or a letter outside ASCII")
    return value.strip()


def parse_number(low, high, whole=False):
    """Return the function that parses a number of this range; whole numbers become int, as JSON writes them."""

    def parse(value):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        require(math.isfinite(number), "is not a number")
        require(low <= number <= high, "is out of range")
        require(number.is_integer() or not whole, "is not a whole number")
        return int(number) if number.is_integer() else number

    return parse


def parse_timeout(value):
    """Return the number of seconds, over 0."""
    timeout = parse_number(0, math.inf)(value)
    require(timeout > 0, "is out of range")
    return min(timeout, 1e6)  # about what operating systems can wait


def parse_url(value):
    """Return the URL; raise ValueError if it could show the key to somebody on the way."""
    require(re.fullmatch("wss?://[!-~]+", value), "is not a WebSocket URL")
    host, port = split_address(value)
    if value.startswith("ws:"):
        try:
            addresses = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)
        except OSError:
            addresses = []  # an unknown host is for the connection to report
        require(all(is_private(address[4][0]) for address in addresses), "would send the key in the clear")
    return value


def split_address(url):
    """Return host and port of a URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "wss" else 80)
    except ValueError:
        host = port = None
    require(host, "names no host and port")
    return host, port


def is_private(address):
    """Tell whether an IP address is a loopback or a private one."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return ip.is_loopback or ip.is_private


def parse_output(value):
    """Return the path; raise ValueError if no file can be written there."""
    if value == "-":
        require(sys.stdout, "is closed")
        require(not sys.stdout.isatty(), "is a terminal: pipe it into a player, | ffplay -, or a file")
        return value
    folder = os.path.dirname(os.path.realpath(value))
    require(not os.path.isdir(value), "is a folder")
    require(os.path.isdir(folder), "is in a folder that does not exist")
    require(os.access(value if os.path.exists(value) else folder, os.W_OK), "cannot be written")
    return value


class Setting(NamedTuple):
    """One row of the table below. Its flag and its variable follow from its name."""

    name: str
    default: object
    parse: Callable  # turns the string into the value, or raises ValueError with the reason
    allowed: str
    help: str
    place: str = "payload"  # or "payload of V2", which later models do not know, or "client"

    @property
    def variable(self):
        return "SMALLEST_" + self.name.upper()

    @property
    def flags(self):
        if self.name == "api_key":
            return []
        return ["--" + self.name.replace("_", "-")] + ["-o"] * (self.name == "output")


# Every setting there is: a new row brings its flag, its variable and its field in the payload.
SETTINGS = [
    Setting("api_key", API_KEY, parse_key, "printable ASCII without spaces", "API key", "client"),
    Setting("text", TEXT, parse_text, "not blank", "text to speak; the flag reads standard input for -"),
    Setting("voice_id", VOICE_ID, parse_text, "not blank", "voice that speaks it"),
    Setting("sample_rate", 24000, parse_number(8000, 48000, True), "whole number, 8000 to 48000", "sample rate in Hz"),
    Setting("speed", 1, parse_number(0.1, 5), "0.1 to 5", "speed of the speech"),
    Setting("language", "en", parse_text, "not blank", "language of the text"),
    Setting("consistency", 0.5, parse_number(0, 1), "0 to 1", "consistency of the voice", "payload of V2"),
    Setting("similarity", 0, parse_number(0, 1), "0 to 1", "similarity to the voice", "payload of V2"),
    Setting("enhancement", 1, parse_number(0, 2), "0 to 2", "enhancement of the voice", "payload of V2"),
    Setting("model", "lightning-v2", parse_text, "any name", "all but Lightning V2 use the live endpoint", "client"),
    Setting("ws_url", "", parse_url, "wss://, or ws:// to a private host", "the model's endpoint unless set", "client"),
    Setting("output", "output.wav", parse_output, "a path that can be written, or -", "WAV file; - pipes it", "client"),
    Setting("timeout", 30, parse_timeout, "over 0", "seconds that the connection may be silent", "client"),
]


def read_settings(argv=None):
    """Return every setting, checked, as a namespace with the names of the table.

    `argv` are the flags, without the program's name; None takes the command line's.
    Raises SettingsError with one line for each setting that is wrong or missing.
    """
    flags, problems = read_flags(argv)
    dotenv = read_dotenv(".env")
    settings = argparse.Namespace()
    secret = ""
    for row in SETTINGS:
        value = find_value(row, getattr(flags, row.name, None), dotenv)
        if row.name == "api_key":
            secret = value
        names = " or ".join([row.variable, *row.flags[:1]])
        try:
            require(value or row.default == "", f"missing; set it, or {row.name.upper()} in the script")
            if row.name == "text" and flags.text == "-":
                value = read_standard_input()
            setattr(settings, row.name, row.parse(value) if value else None)
        except ValueError as error:
            reason = "is not UTF-8" if isinstance(error, UnicodeError) else error
            found = f"found '{quote(value, secret, 80)}', which {reason}" if value else reason
            problems.append(f"{names}: {found}; allowed: {row.allowed}.")
    if problems:
        raise SettingsError("\n".join(problems))
    settings.ws_url = settings.ws_url or (V2_URL if is_v2(settings) else LIVE_URL)
    return settings


def find_value(row, flag, dotenv):
    """Return a setting as a string: from its flag, its variable, .env or the script; None if it is in none."""
    if flag is not None and flag not in PLACEHOLDERS:
        return flag
    sources = os.environ.get(row.variable), dotenv.get(row.variable), str(row.default)
    return next((value for value in sources if value and value not in PLACEHOLDERS), None)


def read_flags(argv):
    """Return the flags that are given, as a namespace, and a sentence for each that is not known."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout, allow_abbrev=False, add_help=False)
    parser.error = raise_usage_error
    parser.add_argument("-h", "--help", action="store_true", help="show this text")
    for row in SETTINGS:
        if not row.flags:
            continue
        default = quote(row.default, limit=40).encode("ascii", "backslashreplace").decode()
        words = f"{row.help}; {row.allowed}" + (f" (default: {default})" if default else "")
        parser.add_argument(*row.flags, metavar=row.variable, help=words.replace("%", "%%"))
    flags, unknown = parser.parse_known_args(argv)
    if flags.help:
        say(parser.format_help(), end="", stream=sys.stdout)
        sys.exit(0)
    # Of what is not known only a flag's name is shown: the rest may be a key that should not be there.
    names = {re.match("--[a-z-]+|", word).group() or "An argument without a flag" for word in unknown}
    return flags, [f"{name} is not known; see --help. The key goes into SMALLEST_API_KEY." for name in sorted(names)]


def raise_usage_error(message):
    """Take the place of argparse's own way out, which prints several lines."""
    raise SettingsError(f"{message}; see --help.")


def read_dotenv(path):
    """Return the NAME=value lines of a file as a dictionary, empty if there is no such file."""
    values = {}
    if not os.path.exists(path) or os.path.isdir(path):  # .env may also be a virtual environment
        return values
    try:
        with open(path, encoding="utf-8-sig") as lines:
            for line in lines:
                name, _, value = re.sub(r"^\s*export\s+", "", line).partition("=")
                quoted = re.match(r"""\s*(["'])(.*?)\1\s*(#.*)?$""", value)
                values[name.strip()] = quoted.group(2) if quoted else re.sub(r"\s#.*", "", value).strip()
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}.") from error
    return values


def read_standard_input():
    """Return standard input, which is UTF-8, without the end of its last line."""
    require(sys.stdin, "is closed")
    return sys.stdin.buffer.read().decode("utf-8-sig").rstrip("\r\n")


# --- Payload ------------------------------------------------------------------


def is_v2(settings):
    """Tell whether the model is Lightning V2, however it is spelt."""
    return settings.model.lower().replace("_", "-") == "lightning-v2"


def build_payload(settings):
    """Return the request: the eight fields of Lightning V2, or a later model's with its `model`."""
    places = ("payload", "payload of V2") if is_v2(settings) else ("payload",)
    payload = {row.name: getattr(settings, row.name) for row in SETTINGS if row.place in places}
    return payload if is_v2(settings) else {**payload, "model": settings.model}


# --- Connection ---------------------------------------------------------------

RETIRED = (
    "The hosted service has retired Lightning V2: try --model lightning_v3.1 and a voice of that model, "
    "since voices differ; on a host of your own check --ws-url."
)
REDIRECTED = "The service answers with a redirect, which is refused to keep the key where it is; check --ws-url."
# What websocket-client raises, one version or another, for a handshake that is not HTTP.
ODD_ANSWER = (ValueError, LookupError, TypeError, ArithmeticError, MemoryError)
ADVICE = {
    400: "Check the settings: voice, language and sample rate have to suit the model.",
    401: "Check SMALLEST_API_KEY: it is missing, mistyped or revoked.",
    403: "Check that the key is of the right workspace and product, and within its usage limit.",
    410: "Choose another --model: this one is retired.",
    429: "Too many connections or requests at once: try again later.",
}


def open_connection(settings):
    """Return an open WebSocket; the key went with the handshake, as a Bearer token.

    Raises SpeechError if the handshake is refused or takes more than `settings.timeout` seconds.
    """
    if websocket is None:
        raise SpeechError("websocket-client is not installed: pip uninstall websocket; pip install websocket-client")
    where = "{}:{}".format(*split_address(settings.ws_url))
    try:
        ws = call_within(settings.timeout, connect, settings)
        if ws.getstatus() == 101:
            return ws
        ws.shutdown()
        fault = REDIRECTED
    except (queue.Empty, socket.timeout, websocket.WebSocketTimeoutException):
        fault = f"{where} did not answer within {settings.timeout:g} s; check the network or raise --timeout."
    except websocket.WebSocketBadStatusException as error:
        fault = describe_refusal(error, settings)
    except (socket.gaierror, websocket.WebSocketAddressException) as error:
        fault = f"The host of {where} was not found; check --ws-url and the network: {error}"
    except (ssl.SSLError, ssl.CertificateError) as error:
        fault = describe_tls_fault(error, where)
    except OSError as error:
        fault = f"There is no connection to {where}; check --ws-url and the network: {error.strerror or error}"
    except (*ODD_ANSWER, websocket.WebSocketException) as error:
        fault = f"{where} does not answer as a WebSocket; check --ws-url: {error}"
        if str(error).startswith("Redirect"):
            fault = REDIRECTED
    raise SpeechError(quote(fault, settings.api_key))


def call_within(limit, function, *args):
    """Return what the call returns or raise what it raises; raise queue.Empty after `limit` seconds.

    A socket's own timeout starts anew with every byte, so a peer that trickles could hold it for ever.
    """
    answers = queue.Queue()

    def call():
        try:
            answers.put((function(*args), None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=call, daemon=True).start()
    result, error = answers.get(timeout=limit)
    if error:
        raise error
    return result


def connect(settings):
    """Return what create_connection() gives, the key in its handshake and nowhere else."""
    options = {}
    if settings.ws_url.startswith("ws:"):  # never through a proxy, which could read the key
        sock = options["socket"] = socket.create_connection(split_address(settings.ws_url), settings.timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as the library sets its own
        if not is_private(sock.getpeername()[0]):
            raise OSError("its address is not private")
    return create_connection(
        settings.ws_url,
        timeout=settings.timeout,
        header=["Authorization: Bearer " + settings.api_key],
        redirect_limit=0,  # a redirect would take the key along
        skip_utf8_validation=True,  # a slow loop over every byte; decoding the message checks it too
        **options,
    )


def describe_refusal(error, settings):
    """Return the sentence for a handshake that was answered with an HTTP status other than 101."""
    status, headers = error.status_code or 0, error.resp_headers or {}
    if 300 <= status < 400:
        return REDIRECTED
    advice = ADVICE.get(status, "The service is at fault: try again later." if status >= 500 else "Check --ws-url.")
    if status in (404, 410) and is_v2(settings):
        advice = RETIRED
    words = [f"{name}: {headers[name]}" for name in ("retry-after", "x-request-id") if name in headers]
    try:
        words.append(read_words(parse_message(getattr(error, "resp_body", None) or b"")))
    except (ValueError, RecursionError):
        pass  # a body that is not JSON says nothing
    return f"The handshake was refused with status {status}. {advice} {'; '.join(words)}"


def describe_tls_fault(error, where):
    """Return the sentence for a TLS handshake that failed."""
    if not isinstance(error, ssl.CertificateError) and "CERTIFICATE_VERIFY_FAILED" not in str(error):
        return f"There is no TLS connection to {where}; check --ws-url: {error}"
    advice = "set WEBSOCKET_CLIENT_CA_BUNDLE to the certificates of a private authority"
    if sys.platform == "darwin":
        advice += ", or run Install Certificates.command from Python's folder in Applications"
    return f"The certificate of {where} is not trusted, so the key was not sent; to trust it, {advice}: {error}"


# --- Messages -----------------------------------------------------------------

CONTINUATION, TEXT_FRAME, CLOSE, PING, PONG = 0x0, 0x1, 0x8, 0x9, 0xA  # opcodes of RFC 6455
WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
# Nothing here counts with numbers, and one of a million digits would take minutes to convert.
DECODER = json.JSONDecoder(parse_int=lambda digits: int(digits[:20]))


def receive_message(ws, selector, deadline):
    """Return the next text message as bytes.

    Raises socket.timeout if it is not whole by the deadline, on the clock of perf_counter(),
    and what the library raises: WebSocketException, OSError.
    """
    frames = []
    while True:
        try:
            frame = ws.recv_frame()  # not recv(): where a ping or a close cannot be answered, it loses what came
        except WOULD_BLOCK:
            left = deadline - perf_counter()
            if left > 0 and selector.select(left):
                continue
            raise socket.timeout from None
        if frame.opcode >= CLOSE:
            take_control_frame(ws, frame)
        elif frame.opcode not in (CONTINUATION, TEXT_FRAME) or bool(frames) != (frame.opcode == CONTINUATION):
            raise websocket.WebSocketProtocolException(f"a frame of opcode {frame.opcode} is out of place")
        else:
            frames.append(frame)
            if frame.fin:
                return b"".join(part.data for part in frames)
        if perf_counter() > deadline:  # neither pings nor fragments are progress
            raise socket.timeout


def take_control_frame(ws, frame):
    """Answer a ping, pass over a pong, raise WebSocketConnectionClosedException for a close."""
    if len(frame.data) > 125 or not frame.fin:
        raise websocket.WebSocketProtocolException("a control frame is too long or in parts")
    if frame.opcode == CLOSE:
        code = struct.unpack("!H", frame.data[:2])[0] if frame.data else "missing"
        reason = frame.data[2:].decode("utf-8", "replace") or "no reason given"
        raise websocket.WebSocketConnectionClosedException(f"close code {code}, {reason}")
    if frame.opcode == PING:
        try:
            ws.send(frame.data, PONG)
        except (OSError, websocket.WebSocketException):
            pass  # what the peer sent before it went is still to be read


def parse_message(data):
    """Return a message, or a body, as a dictionary; raise ValueError or RecursionError if it is no JSON object."""
    message = DECODER.decode(data.decode())
    require(isinstance(message, dict), "not an object")
    return message


def read_words(message):
    """Return what the service says in any shape of message: its words, its code, its request_id."""
    error = message.get("error")
    inner = error if isinstance(error, dict) else {"message": error}
    words = message.get("message") or inner.get("message") or message.get("detail") or json.dumps(message)
    code = message.get("error_code") or message.get("code") or inner.get("code")
    named = ("code", code), ("request_id", message.get("request_id"))
    return "; ".join([str(words)] + [f"{name}: {value}" for name, value in named if value])


def describe_error(message, settings):
    """Return the sentence for a message of status "error"."""
    words = read_words(message)
    advice = RETIRED + " " if is_v2(settings) and "DEPRECATED" in words else ""
    return f"The service reports an error: {advice}{words}"


def decode_audio(message):
    """Return the PCM of a message, empty if it has none; raise ValueError if its audio is damaged.

    It is base64 in data.audio of a "chunk", and may be on "complete" too; another status
    is passed over, since the service may add some (Smallest AI's WebSocket reference).
    """
    status, data = message.get("status"), message.get("data")
    if status not in ("chunk", "complete") or (status == "complete" and not data):
        return b""
    require(isinstance(data, dict), "data is not an object")
    audio = data.get("audio")
    if status == "complete" and audio is None:
        return b""
    require(isinstance(audio, str), "audio is not a string")
    require(len(audio) % 4 == 0, "audio is cut short")
    return base64.b64decode(audio, validate=True)


# --- Audio --------------------------------------------------------------------


def stream_speech(ws, settings):
    """Send the payload over an open connection and yield the speech as it arrives.

    Yields bytes: whole samples of 16-bit little-endian mono PCM at `settings.sample_rate` Hz.
    Ends when the service says that the speech is complete, and then hangs up, as it does
    when the caller stops early. Raises SpeechError if the speech is not whole: an error
    message, an early close, `settings.timeout` seconds without audio, damaged audio.
    """
    try:
        yield from receive_speech(ws, settings)
        return
    except SpeechError as error:
        fault = str(error)
    except (socket.timeout, websocket.WebSocketTimeoutException):
        fault = f"The service sent no audio for {settings.timeout:g} s; try again, or raise --timeout."
    except websocket.WebSocketConnectionClosedException as error:
        fault = f"The service closed the connection before the speech was complete; try again: {error}"
    except websocket.WebSocketException as error:
        fault = f"The service broke the WebSocket protocol; check --ws-url: {error}"
    except OSError as error:
        fault = f"The connection was lost before the speech was complete; try again: {error}"
    finally:
        hang_up(ws)
    raise SpeechError(quote(fault, settings.api_key))


def receive_speech(ws, settings):
    """Do the work of stream_speech() and raise what it meets."""
    try:
        ws.send(json.dumps(build_payload(settings)))
    except (ConnectionError, websocket.WebSocketConnectionClosedException):
        pass  # the service may have said why before it went: read on
    ws.settimeout(0)
    message, half, spoken = {}, b"", False
    with selectors.DefaultSelector() as selector:
        selector.register(ws.sock, selectors.EVENT_READ)
        deadline = perf_counter() + settings.timeout
        while message.get("status") != "complete":
            data = receive_message(ws, selector, deadline)
            try:
                message = parse_message(data)
                if message.get("status") == "error" or message.get("error"):
                    raise SpeechError(describe_error(message, settings))
                pcm = half + decode_audio(message)
            except (ValueError, RecursionError) as error:
                words = data.decode("utf-8", "replace")
                raise SpeechError(f"The service sent a message that cannot be read ({error}): {words}") from error
            whole = len(pcm) // 2 * 2  # a chunk may end in the middle of a sample
            half = pcm[whole:]
            if whole:
                spoken = True
                yield pcm[:whole]
                deadline = perf_counter() + settings.timeout
    if half:
        raise SpeechError("The speech is cut short, it ends with half a sample; try again.")
    if not spoken:
        raise SpeechError("The service says that the speech is complete but sent no audio; check text and voice.")


def hang_up(ws):
    """Send a close frame and close the socket, without waiting for an answer that may never come."""
    try:
        ws.settimeout(0)
        ws.send_close()
    except (OSError, websocket.WebSocketException):
        pass
    ws.shutdown()


# --- File ---------------------------------------------------------------------

HEADER_SIZE = 44
UNTIL_THE_END = 0xFFFFFFFF  # the size that players take for a stream's, and the largest that a WAV can state


def open_output(settings):
    """Return the file for the audio, unbuffered, and the name that it has until it is whole.

    The name is output.partial.wav for output.wav. It is None for standard output, a pipe or
    a device: they take the audio directly. Raises SettingsError if the file cannot be opened.
    """
    path = settings.output
    try:
        if path == "-":
            return open(sys.stdout.fileno(), "wb", buffering=0, closefd=False), None
        if os.path.exists(path) and not os.path.isfile(path):
            return call_within(settings.timeout, open, path, "wb", 0), None
        partial = "{}.partial{}".format(*os.path.splitext(resolve_link(path)))
        if os.path.lexists(partial):
            os.remove(partial)
        return open(partial, "xb", buffering=0), partial
    except queue.Empty:
        raise SettingsError(f"Nobody reads from {quote(path)}; start its reader first.") from None
    except OSError as error:
        raise SettingsError(f"{name_output(path)} cannot be written: {error.strerror or error}.") from error


def resolve_link(path):
    """Return the path that a link leads to, so that the link itself stays."""
    return os.path.realpath(path) if os.path.islink(path) else path


def name_output(path):
    """Return how a sentence calls the output."""
    return "Standard output" if path == "-" else quote(path)


def write_all(file, data):
    """Write all the bytes; an unbuffered file may take only some of them at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def write_header(file, sample_rate, size):
    """Write the header of a WAV file with `size` bytes of 16-bit mono PCM."""
    riff_size, size = min(size + HEADER_SIZE - 8, UNTIL_THE_END), min(size, UNTIL_THE_END)
    fmt = (b"fmt ", 16, 1, 1, sample_rate, sample_rate * 2, 2, 16)
    write_all(file, struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", riff_size, b"WAVE", *fmt, b"data", size))


def append_pcm(file, pcm, sample_rate, seekable):
    """Add PCM and make the header true, so that what is on disk can be played at every moment."""
    write_all(file, pcm)
    if seekable:
        size = file.tell() - HEADER_SIZE
        file.seek(0)
        write_header(file, sample_rate, size)
        file.seek(0, os.SEEK_END)


def is_ours(file, partial):
    """Tell whether the name still leads to this run's file: another run may have taken it."""
    exists = os.path.exists(partial)
    return exists and (file.closed or os.path.samestat(os.stat(partial), os.fstat(file.fileno())))


def finish_output(file, partial, path):
    """Close the output and, where it had another name so far, give it its own."""
    if partial and not is_ours(file, partial):
        raise SpeechError(f"Another run took {quote(partial)}; give each run an --output of its own.")
    file.close()
    if partial:
        os.replace(partial, resolve_link(path))


def keep_partial(file, partial, sample_rate):
    """Close the output of a run that failed, and return how many seconds of audio `partial` holds.

    It is left as a valid WAV; without any audio no file is left.
    """
    ours = partial and is_ours(file, partial)
    file.close()
    if not ours:
        return 0
    samples = (os.path.getsize(partial) - HEADER_SIZE) // 2
    if samples <= 0:
        os.remove(partial)
        return 0
    try:
        with open(partial, "r+b", buffering=0) as kept:
            kept.truncate(HEADER_SIZE + samples * 2)
            write_header(kept, sample_rate, samples * 2)
    except OSError:
        pass  # a disk this full keeps the header of the chunk before
    return samples / sample_rate


# --- Report -------------------------------------------------------------------


def say(line, end="\n", stream=None):
    """Print a line to standard error, or a stream; one that is closed or full costs neither audio nor exit code."""
    stream = stream or sys.stderr
    try:
        if stream:
            print(line, end=end, file=stream, flush=True)
    except OSError:
        pass


def quote(words, key="", limit=400):
    """Return words from outside as one harmless line: without the key or control characters, cut to the limit."""
    words = str(words).replace(key, "[API key]") if key else str(words)
    words = words[:limit] + "..." * (len(words) > limit)
    return "".join(letter if letter.isprintable() else " " for letter in words).strip()


def show_progress(words):
    """Rewrite the last line of a terminal."""
    if sys.stderr and sys.stderr.isatty():
        say(f"\r{'':40}\r{words}", end="")


def record_speech(chunks, file, sample_rate, seekable):
    """Write the chunks to the file as they come; return the figures of the report, times in s and sizes in bytes."""
    figures = argparse.Namespace(chunks=0, audio=0.0, last=0.0, complete=0.0, gaps=0, silence=0.0, size=HEADER_SIZE)
    heard_until = 0.0  # when a player has played all that came so far
    started = perf_counter()
    try:
        for pcm in chunks:
            figures.last = perf_counter() - started
            if not figures.chunks:
                say(f"TTFB: {figures.last * 1000:.1f} ms")
            elif figures.last > heard_until:
                figures.gaps += 1
                figures.silence += figures.last - heard_until
            append_pcm(file, pcm, sample_rate, seekable)
            figures.chunks += 1
            figures.size += len(pcm)
            length = len(pcm) / 2 / sample_rate
            figures.audio += length
            heard_until = max(heard_until, figures.last) + length
            show_progress(f"Received: {figures.audio:.1f} s of audio")
        figures.complete = perf_counter() - started
    finally:
        show_progress("")
    return figures


def report(figures, path):
    """Print the figures of a run that succeeded."""
    say(f"Chunks: {figures.chunks}")
    say(f"Audio: {figures.audio:.2f} s")
    say(f"Last chunk: {figures.last * 1000:.1f} ms")
    say(f"Complete: {figures.complete * 1000:.1f} ms")
    say(f"Real-time factor: {figures.last / figures.audio:.3f}")
    gaps = f"{figures.gaps} gap{'s' * (figures.gaps != 1)}, {figures.silence:.2f} s in all"
    say(f"Playback: {gaps if figures.gaps else 'gapless'}")
    say(f"Saved: {name_output(path)} ({figures.size / 1000:.1f} kB)")


def speak(settings, file, partial):
    """Go from the settings to the finished output. Raises SpeechError, or OSError if the output fails."""
    write_header(file, settings.sample_rate, 0 if partial else UNTIL_THE_END)
    started = perf_counter()
    ws = open_connection(settings)
    say(f"Connection: {(perf_counter() - started) * 1000:.1f} ms")
    figures = record_speech(stream_speech(ws, settings), file, settings.sample_rate, seekable=bool(partial))
    finish_output(file, partial, settings.output)
    report(figures, settings.output)


def main(argv=None):
    """Run the script with these flags, or with the command line's, and return its exit code."""
    try:
        settings = read_settings(argv)
        file, partial = open_output(settings)
    except SettingsError as problems:
        say(problems)
        return 2
    code = 1
    try:
        speak(settings, file, partial)
        code = 0
    except SpeechError as fault:
        say(fault)
    except OSError as error:
        say(f"{name_output(partial or settings.output)} cannot be written: {error.strerror or error}.")
    except (KeyboardInterrupt, SystemExit) as stop:
        say("Interrupted.")
        code = getattr(stop, "code", 128 + signal.SIGINT)
    finally:
        kept = keep_partial(file, partial, settings.sample_rate) if code else 0
        if kept:
            say(f"Kept: {quote(partial)} holds {kept:.2f} s of audio.")
    return code


def exit_on_signal(number, frame):
    """Leave by the same door as every fault, so that the audio is kept."""
    for each in signal.SIGINT, signal.SIGTERM:
        signal.signal(each, signal.SIG_IGN)  # a second one must not disturb that
    sys.exit(128 + number)


if __name__ == "__main__":
    for each in signal.SIGINT, signal.SIGTERM:
        if signal.getsignal(each) != signal.SIG_IGN:  # as nohup and shells set it
            signal.signal(each, exit_on_signal)
    sys.exit(main())
