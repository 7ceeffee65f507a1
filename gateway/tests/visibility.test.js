// Who sees whom: audiences, the authorizer, tokens, rotations, policies, and server-sent events.
import { test, before, after } from 'node:test'
import assert from 'node:assert/strict'
import { Database, Gateway, Raw, token, until, sleep } from './lib.js'
import { Picture, Events } from './picture.js'

let db, gateway

before(async () => {
  db = await Database.start()
  gateway = await Gateway.start(db, { args: ['--leave-grace', '200ms'] })
})
after(async () => {
  await gateway?.kill()
  await db?.remove()
})

const look = (topic, claims, vsn) => Picture.open(gateway, topic, claims, vsn)
const put = (sub, room, audience, state = {}) =>
  db.as({ sub }, `select presence.upsert($1, $2, audience => $3)`, [room, JSON.stringify(state), audience])
const sees = (picture, keys) => until(`${picture.claims.sub} sees ${keys}`, () => picture.keys() === keys || picture.keys())

test('the default: you see who is in the rooms that you are in', async () => {
  const [ann, bob] = [await look('hall', { sub: 'ann' }), await look('hall', { sub: 'bob' })]
  await ann.track({})
  await sees(ann, 'ann')
  await sleep(50)
  assert.equal(bob.keys(), '')
  await bob.track({})
  await sees(bob, 'ann,bob')
  await sees(ann, 'ann,bob')
  await bob.untrack()
  await sees(bob, '')
  await sees(ann, 'ann')
})

test('an audience of users, teams and other rooms, and its changes', async () => {
  const [ann, bob, team] = [
    await look('doc', { sub: 'ann' }), await look('doc', { sub: 'bob' }), await look('doc', { sub: 'tim', app_metadata: { teams: ['7'] } }),
  ]
  await put('eve', 'doc', ['user:ann'])
  await sees(ann, 'eve')
  await put('eve', 'doc', ['team:7'])
  await sees(team, 'eve')
  await sees(ann, '')
  await put('eve', 'doc', ['room:lobby'])
  await sees(team, '')
  await put('bob', 'lobby', ['any'])
  await sees(bob, 'eve')
  assert.equal(ann.keys(), '')
  await db.as({ sub: 'bob' }, `select presence.delete('lobby')`)
  await sees(bob, '')
  await put('eve', 'doc', [])
  await put('ann', 'lobby', ['any'])
  await sleep(100)
  assert.equal(ann.keys() + bob.keys() + team.keys(), '')
})

test('a token with another team', async () => {
  const page = await look('teams', { sub: 'ann', app_metadata: { teams: ['1'] } })
  await put('eve', 'teams', ['team:1'])
  await put('fay', 'teams', ['team:2'])
  await sees(page, 'eve')
  await page.renew({ sub: 'ann', app_metadata: { teams: ['2'] } })
  await sees(page, 'fay')
})

test('an authorizer decides, and may change its mind', async () => {
  await db.sql(`create schema app; grant usage on schema app to public;
    create table app.denied (user_id text, action text); grant select on app.denied to public;
    create function app.authorize(room text, action text) returns boolean language sql stable as
    $$ select not exists (select from app.denied d where d.user_id = presence.user_id() and d.action = authorize.action) $$`)
  const page = await look('auth', { sub: 'cat' })
  await put('ann', 'auth', ['any'])
  await sees(page, 'ann')
  await db.sql(`insert into app.denied values ('cat', 'read'), ('dan', 'join')`)
  await db.sql(`alter database postgres set presence.authorizer = 'app.authorize'`)
  await sees(page, '')
  const late = await Raw.open(gateway)
  const reply = await late.join('auth', token({ sub: 'cat' }))
  assert.match(reply.response.reason, /Unauthorized/)
  const dan = await look('auth', { sub: 'dan' })
  await sees(dan, 'ann')
  assert.match(await dan.track({}), /not authorized to join/)
  await db.sql(`delete from app.denied`)
  await db.sql(`select presence.rotate_channels('auth')`)
  await sees(page, 'ann')
  await db.sql(`insert into app.denied values ('cat', 'read')`) // without a notification
  await until('asked again', () => page.keys() === '', 12000)
  await db.sql(`alter database postgres reset presence.authorizer`)
  await sees(page, 'ann')
})

test('an authorizer that fails for one room', async () => {
  await db.sql(`create table app.doc (id text primary key); grant select on app.doc to public; insert into app.doc values ('kept'), ('gone');
    create function app.find(room text, action text) returns boolean language plpgsql stable as
    $$ declare found text; begin select id into strict found from app.doc d where d.id = room; return true; end $$`)
  await put('ann', 'kept', ['any'])
  await put('ann', 'gone', ['any'])
  const raw = await Raw.open(gateway)
  const cat = token({ sub: 'cat' })
  for (const [n, room] of ['kept', 'gone'].entries()) await raw.join(room, cat, String(n))
  const shows = (room) => raw.frames.filter((f) => f.topic === room && f.event.startsWith('presence')).at(-1)
  await until('both', () => Boolean(shows('kept') && shows('gone')))
  await db.sql(`alter database postgres set presence.authorizer = 'app.find'`)
  try {
    await db.sql(`delete from app.doc where id = 'gone'`)
    await db.sql('select presence.rotate_channels()')
    await until('one is gone', () => Boolean(shows('gone').payload.leaves?.ann))
    assert.equal(shows('kept').event, 'presence_state')
  } finally {
    await db.sql(`alter database postgres reset presence.authorizer`)
    await db.sql('select presence.rotate_channels()')
    await until('it is there again', () => Boolean(shows('gone').payload.joins?.ann))
    raw.socket.close()
  }
})

test('who could not be asked is asked again soon', async () => {
  await db.sql(`create table app.gate (state text); grant select on app.gate to public; insert into app.gate values ('open');
    create function app.pass(room text, action text) returns boolean language plpgsql stable as $$ begin
      if room <> 'gated' then return true; end if;
      if (select state from app.gate) = 'busy' then raise exception using errcode = '40001', message = 'try again'; end if;
      return (select state from app.gate) = 'open'; end $$;
    alter database postgres set presence.authorizer = 'app.pass'`)
  const page = await look('gated', { sub: 'bob' })
  try {
    await put('ann', 'gated', ['any'])
    await sees(page, 'ann')
    await db.sql(`update app.gate set state = 'busy'`)
    await db.sql('select presence.rotate_channels()')
    await sleep(300) // the rights have been queried by now, and the query failed with a transient error
    await db.sql(`update app.gate set state = 'shut'`)
    const began = Date.now()
    await sees(page, '')
    assert.ok(Date.now() - began < 5000, `after ${Date.now() - began} ms`)
  } finally {
    await db.sql(`alter database postgres reset presence.authorizer`)
    await db.sql('select presence.rotate_channels()')
    await sees(page, 'ann')
  }
})

test('a role that may not use presence any more', async () => {
  const page = await look('grants', { role: 'anon' })
  await put('ann', 'grants', ['any'])
  await sees(page, 'ann')
  await db.sql(`select presence.revoke_access('anon')`)
  await sees(page, '')
  await db.sql(`select presence.grant_access('anon', write => false)`)
})

test("policies of one's own: what the user's list shows", async () => {
  const page = await look('policy', { sub: 'bob' })
  await put('ann', 'policy', ['any'])
  await sees(page, 'ann')
  await db.sql(`create policy mute on presence.member as restrictive for select using (status is distinct from 'invisible')`)
  try {
    await put('fay', 'policy', ['any'])
    await sees(page, 'ann,fay')
    await db.sql(`select presence.upsert('policy', user_id => 'fay', status => 'invisible')`)
    await sees(page, 'ann')
    await db.sql(`select presence.upsert('policy', user_id => 'fay', status => 'here')`)
    await sees(page, 'ann,fay')
    const late = await look('policy', { sub: 'tim' })
    await sees(late, 'ann,fay')
  } finally {
    await db.sql(`drop policy mute on presence.member`)
  }
  await put('gus', 'policy', ['any'])
  await until('gus', () => page.keys() === 'ann,fay,gus', 12000)
})

test('server-sent events: state, enter, update, leave', async () => {
  await put('ann', 'sse', ['users'], { x: 1 })
  const page = await Events.open(gateway, 'sse', { sub: 'bob' })
  await sees(page, 'ann')
  assert.deepEqual(page.events[0].data[0].state, { x: 1 })
  await put('eve', 'sse', ['users'])
  await sees(page, 'ann,eve')
  await put('ann', 'sse', ['users'], { x: 2 })
  await until('the update', () => page.events.at(-1).event === 'update')
  assert.deepEqual(page.events.at(-1).data.state, { x: 2 })
  await db.as({ sub: 'eve' }, `select presence.delete('sse')`)
  await sees(page, 'ann')
  assert.deepEqual(page.events.map((e) => e.event), ['state', 'enter', 'update', 'leave'])
  page.close()
})

test('server-sent events: who is refused', async () => {
  const get = (path, headers) => fetch(`${gateway.http}${path}`, { headers })
  assert.equal((await get('/rooms/sse/events')).status, 401)
  assert.equal((await get('/events')).status, 400)
  assert.equal((await get(`/events?room=${'x'.repeat(256)}`)).status, 400)
  const page = await Events.open(gateway, '..', { sub: 'bob' })
  await put('ann', '..', ['users'])
  await sees(page, 'ann')
  page.close()
  const short = await Events.open(gateway, 'sse', { sub: 'bob', exp: Math.floor(Date.now() / 1000) + 2 })
  await until('it ends', () => short.ended)
  assert.equal(short.events.at(-1).event, 'end')
})
