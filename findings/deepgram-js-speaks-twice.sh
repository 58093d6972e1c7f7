#!/usr/bin/env bash
# @deepgram/sdk 5.13.0 (npm), client.speak.v1, with Node 20.
#
# Expected: when the server closes in mid-speech with code 1011, the `for await` loop over the socket
# ends or throws, and nothing more is asked of the service.
# Seen: the socket connects again after some seconds, up to 30 times by default. on("open"), where the
# text is usually sent, runs again, and the same loop goes on: it gets the half speech and then the
# whole one, as one stream with one "Flushed" at its end. The "error" handler is never called.
# Why it matters: the listener hears the beginning twice, and the service has spoken the text twice.
set -euo pipefail
for tool in node npm; do
  command -v "$tool" >/dev/null || { echo "This script needs $tool." >&2; exit 1; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-audit --no-fund --ignore-scripts @deepgram/sdk@5.13.0 ws@8.23.0

cat >demo.mjs <<'JS'
import { DeepgramClient } from "@deepgram/sdk";
import { WebSocketServer } from "ws";

const server = new WebSocketServer({ host: "127.0.0.1", port: 0 });
await new Promise((listening) => server.on("listening", listening));
let connections = 0;
server.on("connection", (peer) => {
  const isFirst = ++connections === 1;
  peer.on("message", (message) => {
    if (JSON.parse(message).type !== "Flush") return;
    peer.send(Buffer.alloc(1000));
    if (isFirst) return peer.close(1011, "speech engine failed");
    peer.send(Buffer.alloc(1000));
    peer.send(JSON.stringify({ type: "Flushed", sequence_id: 0 }));
  });
});

const address = `127.0.0.1:${server.address().port}`;
const local = {
  base: `http://${address}`,
  production: `ws://${address}`,
  agent: `ws://${address}`,
  agentRest: `http://${address}`,
};
const client = new DeepgramClient({ apiKey: "any", environment: local });
const socket = await client.speak.v1.connect({ model: "aura-2-thalia-en" });
socket.on("open", () => {
  console.log("open: the text is sent");
  socket.sendText({ type: "Speak", text: "Hello." });
  socket.sendFlush({ type: "Flush" });
});
socket.on("error", (error) => console.log("error:", error.message));
socket.connect();

let bytes = 0;
for await (const message of socket) {
  if (message.type === "Flushed") break;
  bytes += message.size;
}
console.log(`the loop saw ${bytes} bytes and one Flushed; the speech has 2000 bytes`);
process.exit();
JS

expected="open: the text is sent
open: the text is sent
the loop saw 3000 bytes and one Flushed; the speech has 2000 bytes"
seen=$(timeout 40 node demo.mjs) || true
echo "$seen"
[ "$seen" = "$expected" ] || { echo "The behaviour has changed." >&2; exit 1; }
