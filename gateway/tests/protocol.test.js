// Frames, byte for byte: what clients depend on, and the answers to bad input.
import { test, before, after } from 'node:test'
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { connect as connectTcp } from 'node:net'
import pg from 'pg'
import WebSocket from 'ws'
import { Database, Gateway, Raw, token, until, sleep } from './lib.js'

let db, gateway
const refused = (reply, reason) => {
  assert.equal(reply.status, 'error')
  assert.match(reply.response.reason, reason)
}

before(async () => {
  db = await Database.start(['presence.default_audience=users'])
  gateway = await Gateway.start(db, { args: ['--max-calls', '50', '--max-channels', '20', '--origin', 'https://example.org', '--leave-grace', '500ms'] })
})
after(async () => {
  await gateway?.kill()
  await db?.remove()
})

for (const vsn of ['1.0.0', '2.0.0']) {
  test(`vsn ${vsn}: a join is a reply, then a state, then diffs`, async () => {
    const raw = await Raw.open(gateway, { vsn })
    const topic = `realtime:join ${vsn}`
    const reply = await raw.join(topic, token({ sub: 'ann' }))
    assert.deepEqual(reply, { status: 'ok', response: { postgres_changes: [] } })
    await raw.frame('state', (f) => f.event === 'presence_state')
    raw.send('1', '2', topic, 'presence', { type: 'presence', event: 'track', payload: { at: 1, phx_ref: 'mine' } })
    await raw.reply('2')
    const diff = await raw.frame('diff', (f) => f.event === 'presence_diff')
    assert.deepEqual(raw.frames.map((f) => f.event).filter((e) => e !== 'phx_reply'), ['presence_state', 'presence_diff'])
    const [meta] = diff.payload.joins.ann.metas
    assert.equal(typeof meta.phx_ref, 'string')
    assert.notEqual(meta.phx_ref, 'mine')
    assert.equal(meta.at, 1)
    assert.deepEqual(diff.payload.leaves, {})
    for (const frame of raw.frames) {
      assert.equal(frame.topic, topic)
      assert.ok('ref' in frame && typeof frame.payload === 'object')
      if (frame.event !== 'phx_reply') assert.equal(frame.ref, null)
    }
    assert.equal(raw.frames.find((f) => f.event === 'presence_state').join_ref, '1')
    assert.equal(diff.join_ref, null)
  })
}

test('topics with and without prefix are one room; each is echoed', async () => {
  const [a, b] = [await Raw.open(gateway), await Raw.open(gateway)]
  await a.join('realtime:one', token({ sub: 'ann' }))
  await b.join('one', token({ sub: 'bob' }))
  a.send('1', '2', 'realtime:one', 'presence', { event: 'TRACK', payload: {} })
  const diff = await b.frame('diff', (f) => f.event === 'presence_diff')
  assert.equal(diff.topic, 'one')
  assert.deepEqual(Object.keys(diff.payload.joins), ['ann'])
})

test('heartbeats, leaves, and the same topic again', async () => {
  const raw = await Raw.open(gateway)
  raw.send(null, '12', 'phoenix', 'heartbeat', {})
  assert.deepEqual((await raw.reply('12')).payload, { status: 'ok', response: {} })
  await raw.join('again', token({ sub: 'ann' }), '1')
  await raw.join('again', token({ sub: 'ann' }), '5')
  const close = await raw.frame('close', (f) => f.event === 'phx_close')
  assert.deepEqual([close.ref, close.join_ref], ['1', '1'])
  assert.ok(raw.frames.indexOf(close) < raw.frames.findIndex((f) => f.ref === '5'))
  // A late leave of the first join does not end the second.
  raw.send('1', '6', 'again', 'phx_leave', {})
  await raw.reply('6')
  raw.send('5', '7', 'again', 'presence', { event: 'track', payload: {} })
  assert.equal((await raw.reply('7')).payload.status, 'ok')
  raw.send('5', '8', 'again', 'phx_leave', {})
  await raw.reply('8')
  await raw.frame('close', (f) => f.event === 'phx_close' && f.ref === '5')
  raw.send('5', '9', 'again', 'presence', { event: 'track', payload: {} })
  refused((await raw.reply('9')).payload, /unmatched topic/)
})

test('presence off: nothing until the first track', async () => {
  const raw = await Raw.open(gateway)
  await raw.join('off', token({ sub: 'ann' }), '1', { presence: { enabled: false } })
  await db.as({ sub: 'bob' }, `select presence.upsert('off')`)
  await sleep(100)
  assert.ok(!raw.frames.some((f) => f.event.startsWith('presence')))
  raw.send('1', '2', 'off', 'presence', { event: 'track', payload: {} })
  await raw.reply('2')
  await raw.frame('state', (f) => f.event === 'presence_state' && f.payload.bob)
  await raw.frame('diff', (f) => f.event === 'presence_diff' && f.payload.joins.ann)
})

test('of calls that wait only the last is sent, and all are answered', async () => {
  const raw = await Raw.open(gateway)
  await raw.join('burst', token({ sub: 'ann' }))
  for (let n = 10; n < 50; n++) raw.send('1', String(n), 'burst', 'presence', { event: 'track', payload: { n } })
  for (let n = 10; n < 50; n++) assert.equal((await raw.reply(String(n))).payload.status, 'ok')
  const [{ state }] = await db.sql(`select state from presence.get('burst', 'ann')`)
  assert.deepEqual(state, { n: 49 })
})

test('calls that wait are answered when their channel ends, and by nobody elses result', async () => {
  const holder = new pg.Client({ host: '127.0.0.1', port: db.port, user: 'postgres', database: 'postgres' })
  await holder.connect()
  const track = (raw, ref, payload) => raw.send('1', ref, 'ends', 'presence', { event: 'track', payload })
  const [first, other] = [await Raw.open(gateway), await Raw.open(gateway)]
  await first.join('ends', token({ sub: 'ann' }))
  track(first, '2', { n: 1 })
  await first.reply('2')
  await other.join('ends', token({ sub: 'bob' }))
  await holder.query('begin; lock table presence.member in share row exclusive mode')
  try {
    track(other, '2', { n: 1 })
    track(other, '3', { n: 2 })
    other.send('1', '4', 'ends', 'phx_leave', {})
    await other.frame('close', (f) => f.event === 'phx_close')
    assert.deepEqual(other.frames.filter((f) => f.event !== 'presence_state').map((f) => f.ref), ['1', '2', '3', '4', '1'])
    refused(other.frames.find((f) => f.ref === '3').payload, /has ended/)
    // A reloaded page starts its refs at 1 again.
    track(first, '3', { n: 2 })
    track(first, '4', { big: 'x'.repeat(70000) })
    await until('the write waits', async () => (await db.sql(`select from pg_locks where not granted`)).length >= 2)
    first.socket.close()
    await first.closed
    const reloaded = await Raw.open(gateway)
    await reloaded.join('ends', token({ sub: 'ann' }))
    track(reloaded, '4', { n: 3 })
    await sleep(100)
    await holder.query('rollback')
    assert.deepEqual((await reloaded.reply('4')).payload, { status: 'ok', response: {} })
    assert.equal(reloaded.frames.filter((f) => f.event === 'phx_reply').length, 2)
  } finally {
    await holder.end()
  }
})

test('what would make other clients deaf is refused', async () => {
  const raw = await Raw.open(gateway)
  await raw.join('deaf', token({ sub: 'ann' }))
  raw.socket.send(`["1","2","deaf","presence",{"event":"track","payload":{"a":${'['.repeat(6000)}${']'.repeat(6000)}}}]`)
  refused((await raw.reply('2')).payload, /nested/)
  await raw.join('named', token({ sub: 'constructor' }), '3')
  raw.send('3', '4', 'named', 'presence', { event: 'track', payload: {} })
  refused((await raw.reply('4')).payload, /"constructor" is not allowed/)
})

test('what is no good is answered, and nothing is lost', async () => {
  const raw = await Raw.open(gateway)
  await raw.join('room', token({ sub: 'ann' }), '1')
  raw.socket.send('no json')
  refused((await raw.frame('an answer', (f) => f.topic === 'phoenix')).payload, /a frame is/)
  raw.send('1', '2', 'room', 'dance', {})
  refused((await raw.reply('2')).payload, /unknown event/)
  raw.send('1', '3', 'elsewhere', 'presence', { event: 'track', payload: {} })
  refused((await raw.reply('3')).payload, /unmatched topic/)
  raw.send('1', '4', 'room', 'presence', { event: 'track', payload: [1] })
  refused((await raw.reply('4')).payload, /must be a map/)
  raw.send('1', '5', 'room', 'presence', { event: 'wave' })
  refused((await raw.reply('5')).payload, /track or untrack/)
  raw.send('1', '6', 'room', 'presence', { event: 'track', payload: { big: 'x'.repeat(70000) } })
  refused((await raw.reply('6')).payload, /too large/)
  raw.send('1', '7', 'room', 'presence', { event: 'track', payload: { nul: '\u0000' } })
  assert.equal((await raw.reply('7')).payload.status, 'error')
  for (const [ref, topic] of [['8', 'x'.repeat(256)], ['9', ''], ['10', 'realtime:'], ['11', 'a\nb']]) {
    refused(await raw.join(topic, token({ sub: 'ann' }), ref), /room/)
  }
  refused(await raw.join('changes', token({ sub: 'ann' }), '12', { postgres_changes: [{ event: '*' }] }), /presence only/)
  const frame = Buffer.from([3, 1, 2, 4, 1, 0, 1, ...Buffer.from('1' + '13' + 'room' + 'e' + '{}')])
  raw.socket.send(frame)
  refused((await raw.reply('13')).payload, /broadcast/)
  raw.socket.send(Buffer.from([9, 9, 9]))
  raw.send('1', '14', 'room', 'presence', { event: 'track', payload: { fine: true } })
  assert.equal((await raw.reply('14')).payload.status, 'ok')
})

test('tokens that are no good', async () => {
  const raw = await Raw.open(gateway)
  const cases = [
    [undefined, /a JWT is needed/],
    ['sb_publishable_x', /a JWT is needed/],
    [token({ sub: 'ann' }, { key: 'a foreign secret that is long enough, too' }), /JwtSignatureError/],
    [token({ sub: 'ann', exp: 1 }), /expired/],
    [token({ sub: 'ann', exp: undefined }), /exp/],
    [token({ sub: 'ann', role: 'service_role' }), /role "service_role"/],
    [token({ sub: 'ann' }, { header: { alg: 'none' } }), /alg "none"/],
    [token({ sub: 'ann' }, { header: { alg: 'HS256', crit: ['x'] } }), /crit/],
    ['a.b.c', /MalformedJWT/],
  ]
  for (const [n, [bad, reason]] of cases.entries()) refused(await raw.join(`t${n}`, bad, String(n)), reason)
  assert.equal((await raw.join('good', token({ sub: 'ann' }), '20')).status, 'ok')
})

test('nobody sees what is for all, and cannot be present', async () => {
  await db.sql(`select presence.set_room('public', audience => '{any}')`)
  await db.as({ sub: 'ann' }, `select presence.upsert('public')`)
  const raw = await Raw.open(gateway, { query: `&apikey=${token({ role: 'anon' })}` })
  assert.equal((await raw.join('public')).status, 'ok')
  await raw.frame('state', (f) => f.event === 'presence_state' && f.payload.ann)
  raw.send('1', '2', 'public', 'presence', { event: 'track', payload: {} })
  refused((await raw.reply('2')).payload, /nobody/)
  raw.send('1', '3', 'public', 'presence', { event: 'untrack' })
  await raw.reply('3')
})

test('a bad token on an open channel ends it so that the client joins again', async () => {
  const raw = await Raw.open(gateway)
  const good = token({ sub: 'ann' })
  await raw.join('renew', good)
  raw.send('1', '2', 'renew', 'access_token', { access_token: good })
  raw.send('1', '3', 'renew', 'access_token', { access_token: null })
  raw.send('1', '4', 'renew', 'access_token', { access_token: token({ sub: 'ann', exp: 1 }) })
  const error = await raw.frame('error', (f) => f.event === 'phx_error')
  const system = raw.frames.find((f) => f.event === 'system')
  assert.deepEqual([error.ref, error.join_ref], ['1', '1'])
  assert.deepEqual({ ...system.payload, message: '' }, { extension: 'system', status: 'error', message: '', channel: 'renew' })
  assert.ok(raw.frames.indexOf(system) < raw.frames.indexOf(error))
})

test('floods, too many channels, frames that are too large', async () => {
  const many = await Raw.open(gateway)
  for (let n = 0; n < 20; n++) {
    assert.equal((await many.join(`m${n}`, token({ sub: 'ann' }), String(n))).status, 'ok')
    await sleep(100)
  }
  refused(await many.join('m21', token({ sub: 'ann' }), '21'), /ChannelRateLimitReached/)

  const flood = await Raw.open(gateway)
  await flood.join('flood', token({ sub: 'ann' }))
  for (let n = 0; n < 1000; n++) flood.send('1', `f${n}`, 'flood', 'presence', { event: 'track', payload: { n } })
  assert.equal((await flood.closed).code, 1008)
  assert.ok(flood.frames.some((f) => /too many calls/.test(f.payload?.response?.reason)))

  const large = await Raw.open(gateway)
  large.socket.send('x'.repeat(300000))
  assert.deepEqual(await large.closed, { code: 1009, reason: 'the frame is too large (--max-frame)' })
  const odd = await Raw.open(gateway)
  odd.socket.send(Buffer.from([0xff]), { binary: false })
  assert.equal((await odd.closed).code, 1007)
})

test('origins, versions, addresses', async () => {
  const status = (path, headers) =>
    new Promise((done) => {
      const socket = new WebSocket(`${gateway.ws}${path}`, { headers })
      socket.on('open', () => (socket.close(), done(101)))
      socket.on('unexpected-response', (_, response) => done(response.statusCode))
    })
  assert.equal(await status('/socket/websocket?vsn=2.0.0', { origin: 'https://evil.example' }), 403)
  assert.equal(await status('/socket/websocket?vsn=2.0.0', { origin: 'https://example.org' }), 101)
  assert.equal(await status('/socket/websocket?vsn=3.0.0'), 400)
  assert.equal(await status('/realtime/v1/websocket'), 101)
  assert.equal(await status('/socket/longpoll'), 404)
})

test('a socket that never reads holds up nobody, and is right when it reads again', async () => {
  const slow = await Raw.open(gateway)
  await slow.join('slow', token({ sub: 'slow' }))
  slow.socket.pause()
  const fast = await Raw.open(gateway)
  await fast.join('slow', token({ sub: 'fast' }))
  // In one call, because a socket that is silent for long is considered dead.
  await db.sql(`do $$ begin for n in 0..299 loop
    perform presence.upsert('slow', jsonb_build_object('text', repeat('x', 20000), 'n', n), user_id => 'writer'); commit;
  end loop; end $$`)
  await fast.frame('the last', (f) => f.payload.joins?.writer?.metas[0].n === 299)
  slow.socket.resume()
  await slow.frame('the last', (f) => f.payload.joins?.writer?.metas[0].n === 299)
})

test('who connects and says nothing, or half of it, does not stay', async () => {
  const connect = (text) => {
    const socket = connectTcp(gateway.port, '127.0.0.1', () => socket.write(text))
    return new Promise((done) => socket.on('error', done).on('close', done).resume())
  }
  const socket = await Raw.open(gateway)
  await Promise.all(['', 'GET /healthz HTTP/1.1\r\nHost: x\r\n', 'GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n'].map(connect))
  socket.send(null, '1', 'phoenix', 'heartbeat', {})
  await socket.reply('1')
})

test('no token is in the log', async () => {
  const secretive = token({ sub: 'secretive' })
  const raw = await Raw.open(gateway, { query: `&apikey=${secretive}` })
  await raw.join('log')
  await fetch(`${gateway.http}/events?room=log&token=${secretive}`).then((r) => r.body.cancel())
  raw.socket.close()
  await raw.closed
  const log = readFileSync(gateway.log, 'utf8')
  assert.ok(log.includes('ready'))
  assert.ok(!log.includes('eyJ') && !log.includes('secretive'))
})

test('bad flags are a sentence', async () => {
  const failing = async (args) => {
    try {
      const started = await Gateway.start(db, { args })
      await started.kill()
      return 'it started'
    } catch (error) {
      return String(error)
    }
  }
  assert.match(await failing(['--role', 'service_role']), /may not name the service role/)
  assert.match(await failing(['--name', 'a/b']), /letters, digits/)
  assert.match(await failing(['--pool', '0']), /pool/)
  await db.set('presence.trusted_login_roles', 'nobody')
  await until('it is refused', async () => /everybody would be one person/.test(await failing([])))
  await db.set('presence.trusted_login_roles', 'authenticator')
})
