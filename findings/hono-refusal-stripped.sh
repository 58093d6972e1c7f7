#!/usr/bin/env bash
# @hono/node-ws 1.3.1 (hono 4.13.19, @hono/node-server 1.19.19): a route that refuses the handshake with 429, JSON and
# Retry-After.
# Expected: the client of the WebSocket gets what an ordinary request to the same route gets.
# Seen: the status alone is left; the body is empty and every header of the answer, Retry-After among them, is gone.
# Why it matters: a client can neither say why it was refused nor know how long to wait, though the service told both.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
npm install --silent --no-audit --no-fund --ignore-scripts \
  @hono/node-ws@1.3.1 @hono/node-server@1.19.19 hono@4.13.19 ws@8.23.0 >npm.log

cat >probe.mjs <<'JS'
import { serve } from '@hono/node-server'
import { createNodeWebSocket } from '@hono/node-ws'
import { Hono } from 'hono'
import WebSocket from 'ws'

const app = new Hono()
const { injectWebSocket, upgradeWebSocket } = createNodeWebSocket({ app })

const refuse = async (c) => c.json({ message: 'credits used up' }, 429, { 'Retry-After': '7' })
app.get('/speech', refuse, upgradeWebSocket(() => ({})))

const show = (what, status, retryAfter, body) =>
  console.log(`${what}: ${status}, Retry-After: ${retryAfter ?? 'none'}, body: ${body || 'empty'}`)

const server = serve({ fetch: app.fetch, hostname: '127.0.0.1', port: 0 }, async ({ port }) => {
  const plain = await fetch(`http://127.0.0.1:${port}/speech`)
  show('plain request', plain.status, plain.headers.get('retry-after'), await plain.text())

  const ws = new WebSocket(`ws://127.0.0.1:${port}/speech`)
  ws.on('unexpected-response', async (request, response) => {
    const body = (await response.toArray()).join('')
    show('WebSocket handshake', response.statusCode, response.headers['retry-after'], body)
    process.exit()
  })
})
injectWebSocket(server)
JS

node probe.mjs | tee seen
diff - seen <<'END' || { echo "This has changed." >&2; exit 1; }
plain request: 429, Retry-After: 7, body: {"message":"credits used up"}
WebSocket handshake: 429, Retry-After: none, body: empty
END
