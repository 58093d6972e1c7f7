"""The hosted service: LIVE=1 SMALLEST_API_KEY=sk_... python -m pytest -s tests/test_service.py

It costs money, for a sentence and a word. Nobody who wrote it has a key, so it only ever ran against the local
server: LIVE=1 python tests/lightning_server.py -- python -m pytest -s tests/test_service.py
"""

import os
import re

import numpy
import pytest

from conftest import SCRIPT, read_wav, run_program

WANTED = re.compile("SMALLEST_(API_KEY|WS_URL)$|WEBSOCKET_|.*_proxy$", re.IGNORECASE)
SETTINGS = {name: value for name, value in os.environ.items() if WANTED.match(name)}
KEY = SETTINGS.get("SMALLEST_API_KEY", "")
pytestmark = pytest.mark.skipif(not KEY.startswith("sk_") or os.environ.get("LIVE") != "1", reason="it costs money")
PRINT_IDS = """
import json, os
from ws_streaming_api import HOST, LIVE_MODEL, LIVE_PATH, LIVE_VOICE, connect
with connect(os.environ.get("SMALLEST_WS_URL", HOST) + LIVE_PATH, os.environ["SMALLEST_API_KEY"]) as ws:
    ws.send(json.dumps({"text": "Hello.", "voice_id": LIVE_VOICE, "model": LIVE_MODEL, "sample_rate": 24000}))
    print(ws.quote(ws.recv()))
"""


def test_sentence(run, tmp_path):
    model, voice = re.findall(r'(?m)^LIVE_(?:MODEL|VOICE) = "(.+)"', SCRIPT.read_text(encoding="utf-8"))
    result = run("--model", model, "--voice-id", voice, "--text", "The quick brown fox jumps.", env=SETTINGS)
    print(result.err)
    assert result.code == 0 and KEY not in result.err
    assert 1 < result.figure("Audio") < 6 and result.figure("TTFB") < 5000
    loudness = abs(numpy.frombuffer(read_wav(tmp_path / "output.wav")[0], "<i2") / 32768)
    assert loudness.max() > 0.1 and 0.2 < numpy.mean(loudness > 0.01) < 0.98


def test_ids_that_support_asks_for(tmp_path):
    printed = run_program(PRINT_IDS, tmp_path, **SETTINGS)
    print(printed.out.decode(), printed.err)
    assert printed.code == 0 and b'"session_id"' in printed.out and b'"request_id"' in printed.out
