// How much it takes: SOCKETS sockets in rooms of TEN, then RATE tracks a second for SECONDS, each told to ten.
//
//   PRESENCE_GATEWAY=../target/release/presence-gateway node load.mjs
import { readFileSync } from 'node:fs'
import { Database, Gateway, token, until, sleep } from './lib.js'
import WebSocket from 'ws'

const { SOCKETS = 10000, TEN = 10, RATE = 1000, SECONDS = 20 } = process.env
const db = await Database.start(['max_connections=100', 'presence.max_members=200000'])
const gateway = await Gateway.start(db, { args: ['--max-sockets', '50000'], quiet: true })
const memory = () => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${gateway.process.pid}/status`, 'utf8'))[1])
const before = memory()
const sockets = []
let joined = 0
const delays = []
const exp = Math.floor(Date.now() / 1000) + 36000

function open(n) {
  const socket = new WebSocket(`${gateway.ws}/socket/websocket?vsn=2.0.0`, { perMessageDeflate: false })
  const topic = `room ${Math.floor(n / TEN)}`
  const say = (ref, event, payload) => socket.send(JSON.stringify(['1', ref, topic, event, payload]))
  socket.track = (state) => say('9', 'presence', { type: 'presence', event: 'track', payload: state })
  socket.on('error', (error) => console.log(error.message))
  socket.on('message', (text) => {
    const [, ref, , event, payload] = JSON.parse(text)
    if (ref === '1') {
      if (payload.status !== 'ok') console.log(payload.response)
      joined++
      socket.track({ at: 0 })
    } else if (event === 'presence_state') {
      socket.shown = new Set(Object.keys(payload))
    } else if (event === 'presence_diff') {
      for (const key of Object.keys(payload.leaves)) socket.shown.delete(key)
      for (const key of Object.keys(payload.joins)) socket.shown.add(key)
      for (const { metas } of Object.values(payload.joins)) {
        if (metas[0].at) delays.push(performance.now() - metas[0].at)
      }
    }
  })
  return new Promise((done) =>
    socket.on('open', () => {
      sockets.push(socket)
      say('1', 'phx_join', { access_token: token({ sub: `u${n}`, exp }) })
      done()
    }))
}

let began = Date.now()
for (let n = 0; n < SOCKETS; n += 50) {
  await Promise.all(Array.from({ length: 50 }, (_, k) => open(n + k)))
  await until('they are joined', () => joined > n - 500)
}
await until('all are joined', () => joined >= SOCKETS, 60000)
await until('all are shown to all', () => sockets.every((socket) => socket.shown?.size === Number(TEN)), 60000)
console.log(`${SOCKETS} sockets joined, tracked, and were all shown to each other within ${((Date.now() - began) / 1000).toFixed(1)} s`)
await sleep(3000)
console.log(`memory of the gateway: ${(memory() / 1024).toFixed(0)} MB, ${((memory() - before) / SOCKETS).toFixed(1)} kB a socket`)

delays.length = 0
began = performance.now()
const cpu = () => readFileSync(`/proc/${gateway.process.pid}/stat`, 'utf8').split(' ').slice(13, 15).reduce((a, b) => a + Number(b), 0) / 100
const cpuBefore = cpu()
let sent = 0
while (performance.now() - began < SECONDS * 1000) {
  const due = Math.floor(((performance.now() - began) / 1000) * RATE)
  for (; sent < due; sent++) sockets[Math.floor(Math.random() * sockets.length)].track({ at: performance.now() })
  await sleep(2)
}
await sleep(2000)
delays.sort((a, b) => a - b)
const at = (share) => delays[Math.floor(delays.length * share)]?.toFixed(1)
console.log(`${sent} tracks in ${SECONDS} s, told ${delays.length} times: p50 ${at(0.5)} ms, p99 ${at(0.99)} ms, max ${delays.at(-1)?.toFixed(1)} ms; gateway used ${((cpu() - cpuBefore) / SECONDS).toFixed(2)} cores`)
console.log(`memory: ${(memory() / 1024).toFixed(0)} MB`)
await gateway.kill()
await db.remove()
process.exit(0)
