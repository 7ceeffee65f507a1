// Present members stay, and those that are gone disappear: leases, grace periods, kicks, restarts, kills.
import { test, before, after } from 'node:test'
import assert from 'node:assert/strict'
import { Database, Gateway, Raw, token, until, sleep } from './lib.js'
import { added } from './picture.js'

let db, gateway

before(async () => {
  db = await Database.start(['presence.default_audience=users'])
  gateway = await Gateway.start(db, { args: ['--name', 'g', '--leave-grace', '1s', '--drain', '500ms'] })
})
after(async () => {
  await gateway?.kill()
  await db?.remove()
})

const enter = async (topic, sub, state = {}, config) => {
  const raw = await Raw.open(gateway)
  assert.equal((await raw.join(topic, token({ sub }), '1', config)).status, 'ok')
  raw.send('1', 'track', topic, 'presence', { event: 'track', payload: state })
  assert.equal((await raw.reply('track')).payload.status, 'ok')
  return raw
}
const members = async (room) => (await db.sql(`select member_id from presence.list($1)`, [room])).map((m) => m.member_id).join()

test('a closed socket leaves after the grace, once', async () => {
  const watcher = await enter('grace', 'ann')
  const raw = await enter('grace', 'bob')
  raw.socket.terminate()
  await sleep(500)
  assert.equal(await members('grace'), 'ann,bob')
  await until('bob is gone', async () => (await members('grace')) === 'ann')
  await db.sql(`select presence.wait_for_flush('10 s')`)
  const [{ n }] = await db.sql(`select count(*)::int as n from presence.event where room = 'grace' and event = 'leave'`)
  assert.equal(n, 1)
  watcher.socket.close()
})

test('members are renewed in batches, far longer than a lease', async () => {
  const raw = await enter('renewal', 'ann')
  const read = async () => (await db.sql(`select expires_at from presence.get('renewal', 'ann')`))[0]?.expires_at
  const first = await read()
  await until('it is renewed', async () => (await read()) > first, 20000)
  raw.socket.close()
})

test('who was removed is told, and is not entered again', async () => {
  const raw = await enter('kick', 'ann')
  await db.sql(`select presence.delete('kick', 'ann', null)`)
  const system = await raw.frame('system', (f) => f.event === 'system')
  assert.equal(system.payload.status, 'ok')
  assert.match(system.payload.message, /removed/)
  await sleep(300)
  assert.equal(await members('kick'), '')
  raw.send('1', '3', 'kick', 'presence', { event: 'track', payload: {} })
  assert.equal((await raw.reply('3')).payload.status, 'ok')
  await until('back by its own will', async () => (await members('kick')) === 'ann')
  raw.socket.close()
})

test('the database goes away and comes back: errors at once, sockets stay', async () => {
  const [ann, bob] = [await enter('away', 'ann', { x: 1 }), await enter('away', 'bob')]
  await until('both', () => added(ann.frames, 'away') === 'ann,bob' && added(bob.frames, 'away') === 'ann,bob')
  db.cluster('stop', db.data, 'fast')
  await until('it is noticed', async () => (await fetch(`${gateway.http}/healthz`)).status === 503)
  const began = Date.now()
  ann.send('1', '5', 'away', 'presence', { event: 'track', payload: { x: 2 } })
  assert.match((await ann.reply('5')).payload.response.reason, /does not answer/)
  assert.match((await ann.join('away too', token({ sub: 'ann' }), '6')).response.reason, /does not answer/)
  assert.ok(Date.now() - began < 2000)
  const frames = bob.frames.length
  db.cluster('start', db.data)
  await db.connect()
  await until('listening', async () => (await fetch(`${gateway.http}/healthz`)).status === 200)
  await sleep(300)
  assert.ok(!bob.frames.slice(frames).some((f) => f.event.startsWith('presence')))
  assert.equal(await members('away'), 'ann,bob')
  for (const raw of [ann, bob]) raw.socket.close()
})

test('a crash of the database: all are entered again, and nobody is seen to go', async () => {
  const [ann, bob] = [await enter('crash', 'ann', { x: 1 }), await enter('crash', 'bob')]
  await until('both', () => added(ann.frames, 'crash') === 'ann,bob' && added(bob.frames, 'crash') === 'ann,bob')
  const frames = bob.frames.length
  await db.restart('immediate')
  await until('entered again', async () => (await members('crash')) === 'ann,bob')
  await until('versions are new', () => bob.frames.length > frames)
  await until('both', () => added(ann.frames, 'crash') === 'ann,bob' && added(bob.frames, 'crash') === 'ann,bob')
  for (const { event, payload } of bob.frames.slice(frames)) {
    if (event === 'presence_diff') assert.deepEqual(Object.keys(payload.leaves).filter((key) => !payload.joins[key]), [])
  }
  for (const raw of [ann, bob]) raw.socket.close()
})

test('a gateway that is killed: who comes back stays, who does not goes', async () => {
  await enter('killed', 'ann', { x: 1 })
  await enter('killed', 'bob')
  await gateway.kill()
  await gateway.run()
  const ann = await enter('killed', 'ann', { x: 1 })
  await until('bob goes', async () => (await members('killed')) === 'ann', 15000)
  await db.sql(`select presence.wait_for_flush('10 s')`)
  const events = await db.sql(`select event from presence.event where room = 'killed' and member_id = 'ann'`)
  assert.deepEqual(events.map((e) => e.event), ['enter'])
  ann.socket.close()
})

test('SIGTERM and a start: who comes back stays, who does not goes', async () => {
  await enter('stopped', 'ann', { x: 1 })
  await enter('stopped', 'bob')
  await gateway.kill('SIGTERM')
  await gateway.run()
  const ann = await enter('stopped', 'ann', { x: 1 })
  await until('bob goes', async () => (await members('stopped')) === 'ann', 15000)
  await sleep(500)
  assert.equal(await members('stopped'), 'ann')
  await db.sql(`select presence.wait_for_flush('10 s')`)
  const events = await db.sql(`select event, reason from presence.event where room = 'stopped' order by seq`)
  assert.deepEqual(events.map((e) => e.event).join(), 'enter,enter,leave')
  ann.socket.close()
})

test('SIGTERM: all sockets are told to come back, spread over the drain', async () => {
  const own = await Gateway.start(db, { args: ['--drain', '600ms'] })
  const sockets = []
  for (let n = 0; n < 10; n++) sockets.push(await Raw.open(own))
  const began = Date.now()
  const closed = sockets.map((raw) => raw.closed.then(({ code }) => ({ code, ms: Date.now() - began })))
  await own.kill('SIGTERM')
  const ends = await Promise.all(closed)
  assert.ok(ends.every((end) => end.code === 1012))
  const times = ends.map((end) => end.ms)
  assert.ok(Math.max(...times) - Math.min(...times) > 150, times.join())
  assert.equal(own.process.exitCode, 0)
})
