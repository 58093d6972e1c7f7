#!/usr/bin/env bash
# pyneuphonic 3.1.2 (PyPI), client.tts.SSEClient().send with save_audio, as its README has them.
#
# Expected: a refused key (HTTP 401 with a JSON body) raises httpx.HTTPStatusError, as it does in the
# package's other calls.
# Seen: the loop has no turn and no exception, and save_audio leaves a valid WAV file without a sample.
# The status is never looked at, and a line of the body without the word "data" is passed over.
# Why it matters: a revoked key, a quota or a fault of the service turns into silence that nobody reports.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -qq --no-compile --disable-pip-version-check pyneuphonic==3.1.2

cat >"$work/demo.py" <<'PY'
import http.server
import sys
import threading
import wave

import httpx
from pyneuphonic import Neuphonic, save_audio


class Service(http.server.BaseHTTPRequestHandler):
    def refuse(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(401)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"detail": "Unauthorized"}')

    do_GET = do_POST = refuse

    def log_message(self, *args):
        pass


server = http.server.ThreadingHTTPServer(("localhost", 0), Service)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = Neuphonic(api_key="revoked", base_url=f"localhost:{server.server_port}")

try:
    client.voices.list()
except httpx.HTTPStatusError as error:
    print("list of voices: raised HTTPStatusError", error.response.status_code)

save_audio(client.tts.SSEClient().send("Hello."), sys.argv[1])
with wave.open(sys.argv[1]) as speech:
    print(f"speech: no exception, a WAV file with {speech.getnframes()} samples")
PY

expected="list of voices: raised HTTPStatusError 401
speech: no exception, a WAV file with 0 samples"
seen=$(timeout 30 "$work/venv/bin/python" "$work/demo.py" "$work/speech.wav" 2>/dev/null) || true
echo "$seen"
[ "$seen" = "$expected" ] || { echo "The behaviour has changed." >&2; exit 1; }
