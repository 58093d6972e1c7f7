#!/usr/bin/env bash
# @neuphonic/neuphonic-js 0.7.3 (npm), with Node 20 and its own isomorphic-ws.
#
# Expected: `for await (const chunk of ws.send(text))`, the loop of the package's README, gets every
# chunk of audio that the server sent, whatever the loop does with a chunk.
# Seen: a chunk that arrives while the loop is still busy with the one before it is dropped. A loop
# that awaits 300 ms of work for each chunk gets 1 of 6 chunks, ends normally and is told nothing.
# Why it matters: to await the write to a file, a socket or a player is the usual work of such a
# loop, and the faster the service sends, the more of the speech is missing.
set -euo pipefail
for tool in node npm openssl; do
  command -v "$tool" >/dev/null || { echo "This script needs $tool." >&2; exit 1; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-audit --no-fund --ignore-scripts @neuphonic/neuphonic-js@0.7.3 ws@8.23.0

# The package always speaks TLS, so the local server needs a certificate that Node is told to trust.
openssl req -x509 -newkey rsa:2048 -nodes -days 1 -keyout key.pem -out cert.pem \
  -subj /CN=localhost -addext subjectAltName=DNS:localhost 2>/dev/null

cat >demo.mjs <<'JS'
import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import { setTimeout as sleep } from "node:timers/promises";
import { createClient } from "@neuphonic/neuphonic-js";
import { WebSocketServer } from "ws";

const CHUNKS = 6;

function chunkMessage(number) {
  const audio = Buffer.from([number, number]).toString("base64");
  const data = { audio, text: "", sampling_rate: 22050, stop: number === CHUNKS };
  return JSON.stringify({ status_code: 200, data });
}

async function speak(millisecondsBetweenChunks, millisecondsOfWork) {
  const server = createServer({ key: readFileSync("key.pem"), cert: readFileSync("cert.pem") });
  new WebSocketServer({ server }).on("connection", (peer) => {
    peer.on("message", async () => {
      for (let number = 1; number <= CHUNKS; number++) {
        peer.send(chunkMessage(number));
        await sleep(millisecondsBetweenChunks);
      }
    });
  });
  await new Promise((listening) => server.listen(0, "localhost", listening));
  const client = createClient({ baseURL: `localhost:${server.address().port}`, apiKey: "any" });
  const socket = await client.tts.websocket({ lang_code: "en" });
  const received = [];
  for await (const chunk of socket.send("Hello.<STOP>")) {
    received.push(chunk.audio[0]);
    await sleep(millisecondsOfWork);
  }
  return `${received.length} of ${CHUNKS} chunks, the loop ended normally`;
}

console.log("server slower than the loop:", await speak(300, 0));
console.log("loop slower than the server:", await speak(0, 300));
process.exit();
JS

expected="server slower than the loop: 6 of 6 chunks, the loop ended normally
loop slower than the server: 1 of 6 chunks, the loop ended normally"
seen=$(NODE_EXTRA_CA_CERTS=cert.pem timeout 30 node demo.mjs) || true
echo "$seen"
[ "$seen" = "$expected" ] || { echo "The behaviour has changed." >&2; exit 1; }
