#!/usr/bin/env bash
# sarvamai 0.1.39 (PyPI), sarvamai.play.save (sarvamai.play.play joins the chunks in the same way).
#
# Expected: an answer with several `audios` (a list, one for each text, by the package's own types) is
# saved whole, whatever `output_audio_codec` was asked for: the package has wav, mp3, linear16 and more.
# Seen: wav alone is. The chunks are joined at the `data` of a WAV header, so that a later chunk in
# another codec is dropped without a word, and a length is written over bytes 4 to 7 of the first one.
# Why it matters: what is saved plays, so that only somebody who knows the text hears what is missing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check sarvamai==0.1.39

cat >"$work/demo.py" <<'PY'
import base64
import http.server
import io
import json
import sys
import threading
import wave

from sarvamai import SarvamAI
from sarvamai.environment import SarvamAIEnvironment
from sarvamai.play import save

FIRST = b"\1\1" * 500
SECOND = b"\2\2" * 500


def wav(samples):
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 22050, 0, "NONE", None))
        writer.writeframes(samples)
    return file.getvalue()


class Service(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chunks = [FIRST, SECOND] if request["output_audio_codec"] == "linear16" else [wav(FIRST), wav(SECOND)]
        body = json.dumps({"audios": [base64.b64encode(chunk).decode() for chunk in chunks]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
local = SarvamAIEnvironment(base=url, creative=url, production=url)
client = SarvamAI(api_subscription_key="any", environment=local)
for codec in ("wav", "linear16"):
    answer = client.text_to_speech.convert(text="Hello.", language_code="en-IN", output_audio_codec=codec)
    save(answer, sys.argv[1])
    with open(sys.argv[1], "rb") as file:
        saved = file.read()
    sound = saved[44:] if codec == "wav" else saved
    print(f"{codec}: {len(sound)} of 2000 bytes of sound, "
          f"the first chunk intact: {sound.startswith(FIRST)}, the second there: {SECOND in sound}")
server.shutdown()
PY

expected="wav: 2000 of 2000 bytes of sound, the first chunk intact: True, the second there: True
linear16: 1000 of 2000 bytes of sound, the first chunk intact: False, the second there: False"
seen=$(timeout 30 "$work/venv/bin/python" "$work/demo.py" "$work/speech") || true
echo "$seen"
[ "$seen" = "$expected" ] || { echo "The behaviour has changed." >&2; exit 1; }
