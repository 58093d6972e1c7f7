#!/usr/bin/env bash
# elevenlabs 2.78.0 (PyPI), text_to_speech.convert_realtime.
#
# Expected: audio that has arrived is yielded at once, while the text iterator is still being waited
# for. That is what streaming the text in is for.
# Seen: while there is text to come, at most one message of audio is yielded for each piece of text,
# and only when that piece has come. The server below answers each piece of text with three messages
# after 0.1 s; two pieces later, six of them have arrived and the loop has been given one.
# Why it matters: with a language model as the source of the text, the time to first audio holds the
# wait for more text, the listener falls further behind with each piece, and the rest comes in a burst.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check elevenlabs==2.78.0 websockets==15.0.1

cat >"$work/demo.py" <<'PY'
import base64
import json
import threading
import time

from elevenlabs.client import ElevenLabs
from websockets.sync.server import serve

MESSAGES_FOR_A_PIECE = 3
sent = 0
yielded = 0


def answer(peer):
    global sent
    for message in peer:
        text = json.loads(message)["text"]
        if text == "":
            peer.send(json.dumps({"isFinal": True}))
            return
        if text.strip():
            time.sleep(0.1)
            for _ in range(MESSAGES_FOR_A_PIECE):
                peer.send(json.dumps({"audio": base64.b64encode(b"some audio").decode()}))
                sent += 1


def text_of_a_slow_model():
    # The client sends a piece when it has the next one, so the first answer needs two pieces.
    yield "One. "
    for piece in ("Two. ", "Three. ", "Four. "):
        sent_with_the_answer = sent + MESSAGES_FOR_A_PIECE
        yield piece
        while sent < sent_with_the_answer:
            time.sleep(0.01)
        time.sleep(0.5)
        print(f"{sent} messages arrived, {yielded} yielded")


with serve(answer, "127.0.0.1", 0) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.socket.getsockname()[1]
    client = ElevenLabs(api_key="any", base_url=f"http://127.0.0.1:{port}")
    # The package makes every base URL a wss:// one. A server without TLS needs this.
    client.text_to_speech._ws_base_url = f"ws://127.0.0.1:{port}"
    for audio in client.text_to_speech.convert_realtime("any", text=text_of_a_slow_model(), model_id="any"):
        yielded += 1
print(f"at the end: {sent} messages arrived, {yielded} yielded")
PY

expected="3 messages arrived, 0 yielded
6 messages arrived, 1 yielded
9 messages arrived, 2 yielded
at the end: 12 messages arrived, 12 yielded"
seen=$(timeout 30 "$work/venv/bin/python" "$work/demo.py") || true
echo "$seen"
[ "$seen" = "$expected" ] || { echo "The behaviour has changed." >&2; exit 1; }
