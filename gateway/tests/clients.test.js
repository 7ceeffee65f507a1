// Existing clients, unmodified: what an application that uses them sees.
import { test, before, after } from 'node:test'
import assert from 'node:assert/strict'
import { createClient } from '@supabase/supabase-js'
import { RealtimeClient as OldClient } from 'realtime-js-2-11'
import { Socket, Presence } from 'phoenix'
import WebSocket from 'ws'
import { Database, Gateway, realtime, follow, token, until, sleep } from './lib.js'

let db, gateway
const clients = []

before(async () => {
  db = await Database.start()
  gateway = await Gateway.start(db, { args: ['--leave-grace', '1s'] })
})
after(async () => {
  for (const client of clients) client.disconnect()
  await gateway?.kill()
  await db?.remove()
})

const user = (sub, options, Client) => {
  const client = realtime(gateway, typeof sub === 'function' ? sub : token({ sub }), options, Client)
  clients.push(client)
  return client
}
const keys = (page) => Object.keys(page.state()).sort().join()
const plain = (metas) => metas.map(({ presence_ref, ...state }) => state)

for (const [name, options, Client] of [
  ['realtime-js, vsn 2.0.0', {}, undefined],
  ['realtime-js, vsn 1.0.0', { vsn: '1.0.0' }, undefined],
  ['realtime-js 2.11', {}, OldClient],
]) {
  test(`${name}: track, update, untrack`, async () => {
    const room = `verbs ${name}`
    await db.sql('select presence.set_room($1, audience => $2)', [room, ['users']])
    const ann = follow(user('ann', options, Client), room, { track: { x: 1 } })
    await until('ann sees herself', () => keys(ann) === 'ann')
    const bob = follow(user('bob', options, Client), room)
    await until('bob sees ann', () => keys(bob) === 'ann')
    assert.deepEqual(plain(bob.state().ann), [{ x: 1 }])
    assert.equal(await bob.channel.track({ y: 1 }), 'ok')
    await until('both see both', () => keys(ann) === 'ann,bob' && keys(bob) === 'ann,bob')

    ann.events.length = 0
    assert.equal(await bob.channel.track({ y: 2 }), 'ok')
    await until('ann sees the update', () => ann.state().bob?.[0].y === 2)
    assert.deepEqual(plain(ann.state().bob), [{ y: 2 }])
    // One message carries the join and the leave: the key never vanishes in between.
    assert.deepEqual(ann.events.map((e) => e.event), ['join', 'leave', 'sync'])
    assert.deepEqual(plain(ann.events[0].metas), [{ y: 2 }])
    assert.deepEqual(plain(ann.events[1].metas), [{ y: 1 }])

    ann.events.length = 0
    assert.equal(await bob.channel.track({ y: 2 }), 'ok') // the same state: nothing changes
    assert.equal(await bob.channel.untrack(), 'ok')
    await until('bob is gone', () => keys(ann) === 'ann' && keys(bob) === 'ann')
    assert.deepEqual(ann.events.map((e) => e.event), ['leave', 'sync'])
    assert.equal(await bob.channel.untrack(), 'ok')
  })
}

test('what SQL and pages say is the same', async () => {
  await db.sql(`select presence.set_room('sql', audience => '{users}')`)
  const page = follow(user('ann'), 'sql', { track: { x: 1 } })
  await until('ann is here', () => keys(page) === 'ann')
  await db.as({ sub: 'bob' }, `select presence.upsert('sql', '{"a":{"b":[1]}}', connection_id => 'psql')`)
  await until('bob is seen', () => keys(page) === 'ann,bob')
  const [{ state }] = await db.as({ sub: 'ann' }, `select presence.state('sql') as state`)
  assert.deepEqual(page.state(), state)
  await db.as({ sub: 'bob' }, `select presence.delete('sql', connection_id => 'psql')`)
  await until('bob is gone', () => keys(page) === 'ann')
})

test('tabs are metas below one key, and each goes by itself', async () => {
  const tabs = [1, 2].map((n) => follow(user('ann'), 'tabs', { track: { tab: n } }))
  await until('two tabs', () => tabs.every((tab) => tab.state().ann?.length === 2))
  await tabs[1].channel.untrack()
  await until('one tab', () => tabs.every((tab) => tab.state().ann?.length === 1))
  assert.deepEqual(plain(tabs[0].state().ann), [{ tab: 1 }])
})

test("keys: one's own, or a label where members may have any; another's is refused", async () => {
  const own = follow(user('ann'), 'keys', { key: 'ann', track: {} })
  await until('ann', () => keys(own) === 'ann')
  const other = follow(user('bob'), 'keys', { key: 'ann' })
  await until('refused', () => other.statuses.some((s) => s.status === 'CHANNEL_ERROR' && /another user's/.test(s.error)))
  const name = follow(user('bob'), 'keys 2', { key: '__proto__' })
  await until('refused', () => name.statuses.some((s) => /not allowed/.test(s.error)))

  await db.set('presence.member_ids', 'any')
  await db.sql('select presence.rotate_channels()') // settings apply only to new sessions: rotate, as an operator would
  try {
    await until('a label', async () => {
      const label = follow(user('bob'), 'keys 3', { key: 'player one', track: {} })
      await sleep(300)
      return keys(label) === 'player one'
    })
  } finally {
    await db.set('presence.member_ids', 'own')
    await db.sql('select presence.rotate_channels()')
  }
})

test('a reloaded page changes nothing for others', async () => {
  const watcher = follow(user('ann'), 'reload', { track: {} })
  let client = user('bob')
  let page = follow(client, 'reload', { track: { page: 1 } })
  await until('both', () => keys(watcher) === 'ann,bob')
  watcher.events.length = 0
  for (let n = 0; n < 3; n++) {
    client.disconnect()
    await sleep(100)
    client = user('bob')
    page = follow(client, 'reload', { track: { page: 1 } })
    await until('bob is back', () => keys(page) === 'ann,bob')
  }
  await sleep(1300)
  assert.deepEqual(watcher.events, [])
  client.disconnect()
  await until('bob is gone after the grace', () => keys(watcher) === 'ann')
})

test('removeChannel ends the member at once', async () => {
  const watcher = follow(user('ann'), 'remove', { track: {} })
  const client = user('bob')
  const page = follow(client, 'remove', { track: {} })
  await until('both', () => keys(watcher) === 'ann,bob')
  const began = Date.now()
  assert.equal(await client.removeChannel(page.channel), 'ok')
  await until('bob is gone', () => keys(watcher) === 'ann')
  assert.ok(Date.now() - began < 900)
})

test('a token that ends is renewed: the page stays, and so does the member', async () => {
  const watcher = follow(user('ann'), 'renewal', { track: {} })
  await watcher.joined()
  // A page that renews its token only after it has expired.
  const end = () => Math.floor(Date.now() / 1000)
  let exp = 0
  let current
  const accessToken = async () => {
    if (end() >= exp) {
      exp = end() + 3
      current = token({ sub: 'bob', exp })
    }
    return current
  }
  const page = follow(user(accessToken, { heartbeatIntervalMs: 300 }), 'renewal', { track: { x: 1 } })
  await until('bob', () => keys(watcher) === 'ann,bob')
  watcher.events.length = 0
  await until('joined again', () => page.statuses.filter((s) => s.status === 'SUBSCRIBED').length >= 3)
  assert.ok(page.events.some((e) => e.event === 'system' && /expired/.test(e.message)))
  await until('tracked again', () => keys(page) === 'ann,bob')
  assert.deepEqual(watcher.events, [])
})

test('setAuth: the same user goes on, another one begins anew', async () => {
  const watcher = follow(user('ann'), 'set auth', { track: {} })
  const client = user('bob')
  const page = follow(client, 'set auth', { track: {} })
  await until('bob', () => keys(watcher) === 'ann,bob')
  watcher.events.length = 0
  await client.setAuth(token({ sub: 'bob', more: 'claims' }))
  assert.equal(await page.channel.track({}), 'ok')
  assert.deepEqual(watcher.events, [])
  await client.setAuth(token({ sub: 'carol' }))
  await until('carol instead', () => keys(watcher) === 'ann,carol')
})

test('the gateway is killed: pages come back, and nobody saw them go', async () => {
  const own = await Gateway.start(db, { args: ['--name', 'own', '--leave-grace', '1s'] })
  try {
    const watcher = follow(user('ann'), 'killed', { track: {} })
    const client = realtime(own, token({ sub: 'bob' }))
    clients.push(client)
    const page = follow(client, 'killed', { track: { x: 1 } })
    await until('both', () => keys(watcher) === 'ann,bob' && keys(page) === 'ann,bob')
    watcher.events.length = 0
    await own.kill()
    await own.run()
    await until('bob is back', () => page.statuses.filter((s) => s.status === 'SUBSCRIBED').length === 2)
    await until('bob sees all', () => keys(page) === 'ann,bob')
    await sleep(500)
    assert.deepEqual(watcher.events, [])
    assert.equal(watcher.state().bob.length, 1)
    client.disconnect()
    await until('bob goes', () => keys(watcher) === 'ann')
  } finally {
    await own.kill()
  }
})

test('supabase-js', async () => {
  const anonymous = await Gateway.start(db, { args: ['--anonymous'] })
  const [ann, eve] = [token({ sub: 'ann' }), undefined].map((accessToken) => {
    const client = createClient(anonymous.http, 'sb_publishable_x', {
      realtime: { transport: WebSocket },
      ...(accessToken ? { accessToken: async () => accessToken } : { auth: { persistSession: false, autoRefreshToken: false } }),
    })
    clients.push(client.realtime)
    return client
  })
  try {
    await db.sql(`select presence.set_room('supabase', audience => '{users}')`)
    const page = follow(ann, 'supabase', { track: { name: 'Ann' } })
    await until('ann', () => keys(page) === 'ann')
    const guest = follow(eve, 'supabase', { track: { name: 'guest' } })
    await until('both', () => Object.keys(page.state()).length === 2 && Object.keys(guest.state()).length === 2)
    assert.match(Object.keys(guest.state()).find((key) => key !== 'ann'), /^[0-9a-f-]{36}$/)
  } finally {
    await anonymous.kill()
  }
})

test('phoenix', async () => {
  const open = (sub, how) => {
    const socket = how === 'subprotocol'
      ? new Socket(`${gateway.ws}/socket`, { transport: WebSocket, authToken: token({ sub }) })
      : new Socket(`${gateway.ws}/socket`, { transport: WebSocket, params: { token: token({ sub }) } })
    socket.connect()
    clients.push(socket)
    const channel = socket.channel('phoenix', {})
    const presence = new Presence(channel)
    channel.join()
    return { socket, channel, presence, keys: () => presence.list((key) => key).sort().join() }
  }
  const ann = open('ann', 'subprotocol')
  const bob = open('bob', 'query')
  for (const page of [ann, bob]) {
    await new Promise((ok, failed) =>
      page.channel.push('presence', { event: 'track', payload: { x: 1 } }).receive('ok', ok).receive('error', failed))
  }
  await until('both', () => ann.keys() === 'ann,bob' && bob.keys() === 'ann,bob')
  bob.channel.leave()
  await until('bob has left', () => ann.keys() === 'ann')
  const refused = await new Promise((done) =>
    ann.channel.push('shout', {}).receive('error', done).receive('ok', () => done('ok')))
  assert.match(refused.reason, /unknown event/)
})
