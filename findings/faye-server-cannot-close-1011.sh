#!/usr/bin/env bash
# faye-websocket 0.11.4 as a server: closing with the standard codes for a fault, a restart or an overload of the service.
# Expected: close(1008), close(1011), close(1012) and close(1013) send a close frame with that code, as with ws.
# Seen: the server's close() keeps the rule for browsers ("either 1000, or between 3000 and 4999") and throws; nothing is
# sent and the connection stays open.
# Why it matters: where that throw is lost in a handler, the client of a failed or overloaded speech service waits for its
# timeout instead of reading a close code; and no client can be sent one of these codes at all.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
npm install --silent --no-audit --no-fund --ignore-scripts faye-websocket@0.11.4 ws@8.23.0 >npm.log

cat >probe.cjs <<'JS'
const { createServer } = require('node:http')
const FayeWebSocket = require('faye-websocket')
const WebSocket = require('ws')

const server = createServer()
server.on('upgrade', (request, socket, head) => {
  const ws = new FayeWebSocket(request, socket, head)
  ws.on('open', () => {
    for (const code of [1008, 1011, 1012, 1013, 4011]) {
      try {
        ws.close(code, 'the model failed')
        return
      } catch (error) {
        ws.send(`still open: ${error.message}`)
      }
    }
  })
})
server.listen(0, '127.0.0.1', () => {
  const ws = new WebSocket(`ws://127.0.0.1:${server.address().port}/`)
  ws.on('message', (message) => console.log(message.toString()))
  ws.on('close', (code, reason) => {
    console.log(`closed with ${code}, ${reason}`)
    process.exit()
  })
})
JS

node probe.cjs | tee seen
diff - seen <<'END' || { echo "This has changed." >&2; exit 1; }
still open: Failed to execute 'close' on WebSocket: The code must be either 1000, or between 3000 and 4999. 1008 is neither.
still open: Failed to execute 'close' on WebSocket: The code must be either 1000, or between 3000 and 4999. 1011 is neither.
still open: Failed to execute 'close' on WebSocket: The code must be either 1000, or between 3000 and 4999. 1012 is neither.
still open: Failed to execute 'close' on WebSocket: The code must be either 1000, or between 3000 and 4999. 1013 is neither.
closed with 4011, the model failed
END
