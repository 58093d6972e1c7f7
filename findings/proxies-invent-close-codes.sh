#!/usr/bin/env bash
# @fastify/http-proxy 11.6.3 (fastify 5.12.8) and crossws 0.4.17 as WebSocket proxies before a server with ws 8.23.0.
# Expected: what the client of the service sees directly: a lost connection is 1006, a close frame without a code is 1005.
# Seen: of a lost connection Fastify's proxy makes close code 4006 and crossws 1011; of a close without a code they make
# 4005 and 1000.
# Why it matters: codes from 4000 on belong to the service, so a client reports an error that the service never sent; and
# with crossws the unexplained close arrives as a normal one, the sign that the speech is whole.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
npm install --silent --no-audit --no-fund --ignore-scripts \
  @fastify/http-proxy@11.6.3 fastify@5.12.8 crossws@0.4.17 ws@8.23.0 >npm.log

cat >probe.mjs <<'JS'
import { createServer } from 'node:http'
import { once } from 'node:events'
import httpProxy from '@fastify/http-proxy'
import { createWebSocketProxy } from 'crossws'
import crossws from 'crossws/adapters/node'
import fastify from 'fastify'
import WebSocket, { WebSocketServer } from 'ws'

const service = new WebSocketServer({ host: '127.0.0.1', port: 0 })
service.on('connection', (ws, request) => {
  ws.send('half of the audio', () => (request.url === '/lost' ? ws.terminate() : ws.close()))
})
await once(service, 'listening')
const upstream = `127.0.0.1:${service.address().port}`

const fastifyProxy = fastify()
fastifyProxy.register(httpProxy, { upstream: `http://${upstream}`, websocket: true })
await fastifyProxy.listen({ host: '127.0.0.1', port: 0 })

const target = (peer) => `ws://${upstream}${new URL(peer.request.url).pathname}`
const crosswsProxy = createServer()
crosswsProxy.on('upgrade', crossws({ hooks: createWebSocketProxy({ target }) }).handleUpgrade)
crosswsProxy.listen(0, '127.0.0.1')
await once(crosswsProxy, 'listening')

const servers = { direct: service, '@fastify/http-proxy': fastifyProxy.server, crossws: crosswsProxy }
for (const [name, server] of Object.entries(servers)) {
  for (const path of ['lost', 'closed']) {
    const ws = new WebSocket(`ws://127.0.0.1:${server.address().port}/${path}`)
    const [[audio], [code]] = await Promise.all([once(ws, 'message'), once(ws, 'close')])
    console.log(`${name}: ${audio}, ${path} with ${code}`)
  }
}
process.exit()
JS

node probe.mjs | tee seen
diff - seen <<'END' || { echo "This has changed." >&2; exit 1; }
direct: half of the audio, lost with 1006
direct: half of the audio, closed with 1005
@fastify/http-proxy: half of the audio, lost with 4006
@fastify/http-proxy: half of the audio, closed with 4005
crossws: half of the audio, lost with 1011
crossws: half of the audio, closed with 1000
END
