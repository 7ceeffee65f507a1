// The gateway keeps nothing of clients that are gone: sockets break in the middle of everything, over and over, and
// afterwards nothing of them is held. PRESENCE_SOCKETS=2500 PRESENCE_ROUNDS=4 is more than the soak breaks in an hour.
import { test, before, after } from 'node:test'
import assert from 'node:assert/strict'
import { Database, Gateway, Raw, token, until } from './lib.js'

const sockets = Number(process.env.PRESENCE_SOCKETS ?? 200)
const rounds = Number(process.env.PRESENCE_ROUNDS ?? 4)
let db, gateway

before(async () => {
  db = await Database.start(['presence.default_audience=users'])
  gateway = await Gateway.start(db, { args: ['--name', 'g', '--leave-grace', '200ms'], quiet: true })
})
after(async () => {
  await gateway?.kill()
  await db?.remove()
})

async function gauges() {
  const text = await (await fetch(`${gateway.http}/metrics`)).text()
  return Object.fromEntries([...text.matchAll(/^presence_gateway_(\w+) (\S+)$/gm)].map(([, name, value]) => [name, Number(value)]))
}

/// One socket: it ends during its join, in the middle of its tracks, or after all answers; with or without a close.
async function live(n) {
  const room = `room ${n % 7}`
  const raw = await Raw.open(gateway)
  raw.send('1', '1', room, 'phx_join', { access_token: token({ sub: `u${n % 50}` }) })
  if (n % 5 !== 0) await raw.reply('1')
  for (let call = 2; call < 12; call++) raw.send('1', String(call), room, 'presence', { event: 'track', payload: { n, call } })
  if (n % 5 > 1) await raw.reply('11')
  if (n % 5 === 3) raw.send('1', 'leave', room, 'phx_leave', {})
  if (n % 2) raw.socket.terminate()
  else raw.socket.close()
  await raw.closed
}

/// A stream that is aborted after its first chunk.
async function look(n) {
  const stop = new AbortController()
  const response = await fetch(`${gateway.http}/events?room=room%20${n % 7}&access_token=${token({ sub: `u${n % 50}` })}`, { signal: stop.signal })
  await response.body.getReader().read()
  stop.abort()
}

test('what sockets have needed is given up when they are gone', async (t) => {
  const held = ['connections', 'channels', 'members', 'leaving', 'rooms', 'rows']
  const seen = []
  for (let round = 0; round < rounds; round++) {
    for (let n = 0; n < sockets; n += 20) {
      await Promise.all([...Array.from({ length: 20 }, (_, i) => live(n + i)), look(n)])
    }
    let now
    await until('nothing is held', async () => {
      now = await gauges()
      return held.every((name) => now[name] === 0) || now
    }, 60000)
    t.diagnostic(`after ${(round + 1) * sockets} sockets: ${now.allocated_bytes} bytes, ${now.tasks} tasks`)
    seen.push(now)
  }
  // The first round opens database connections and grows tables to the size that they need: it is not compared.
  const [first, last] = [seen[1], seen.at(-1)]
  assert.ok(last.tasks <= first.tasks + 10, `${first.tasks} tasks, then ${last.tasks}`)
  // Thread caches count as allocated, and fill up: some hundred kB.
  if (first.allocated_bytes) assert.ok(last.allocated_bytes < first.allocated_bytes + 512 * 1024, `${first.allocated_bytes} bytes, then ${last.allocated_bytes}`)
})
