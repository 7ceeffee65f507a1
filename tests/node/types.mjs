// Tests what docs/drivers.md says about types, for node-postgres and postgres.js: node types.mjs SOCKET_DIRECTORY.
import assert from 'node:assert/strict'
import pg from 'pg'
import postgres from 'postgres'

const where = { host: process.argv[2], user: 'alice', database: 'app' }
const row = `select version, ttl, state, audience, joined_at from presence.upsert('types', '{"a": [1]}', audience => '{users}', ttl => '90 s')`
const session = `select expires_at from presence.upsert('types', connection_id => 'session', session => true)`
const composite = `select presence.upsert('types') as whole`

function check({ version, state, audience, joined_at }) {
  assert.equal(typeof version, 'string')
  assert.ok(Number.isSafeInteger(Number(version)))
  assert.deepEqual(state, { a: [1] })
  assert.deepEqual(audience, ['users'])
  assert.ok(joined_at instanceof Date)
}

const client = new pg.Client(where)
await client.connect()
{
  const ask = async (text, ...values) => (await client.query(text, values)).rows[0]
  const entered = await ask(row)
  check(entered)
  assert.deepEqual({ ...entered.ttl }, { minutes: 1, seconds: 30 })
  assert.equal((await ask(session)).expires_at, null)
  assert.equal(typeof (await ask(composite)).whole, 'string')
  for (const ttl of ['60 s', 60, { seconds: 60 }])
    assert.equal((await ask(`select ttl from presence.upsert('types', ttl => $1)`, ttl)).ttl.minutes, 1)
  const state = async (value) => (await ask(`select state from presence.upsert('types', $1)`, value)).state
  assert.deepEqual(await state({ x: 1 }), { x: 1 })
  assert.deepEqual(await state(null), { x: 1 })
  await assert.rejects(state([1, 2]), { code: '22P02' })
  assert.deepEqual(await state(JSON.stringify([1, 2])), [1, 2])
  assert.equal(await state(JSON.stringify(null)), null)
  const given = await ask(`select audience from presence.upsert('types', audience => $1)`, ['user:bob', 'users'])
  assert.deepEqual(given.audience, ['user:bob', 'users'])
}
await client.end()

const sql = postgres(where)
{
  const [entered] = await sql.unsafe(row)
  check(entered)
  assert.equal(entered.ttl, '00:01:30')
  assert.equal((await sql.unsafe(session))[0].expires_at, null)
  assert.equal(typeof (await sql.unsafe(composite))[0].whole, 'string')
  for (const ttl of ['60 s', 60]) {
    const [changed] = await sql`select ttl from presence.upsert('types', ttl => ${ttl})`
    assert.equal(changed.ttl, '00:01:00')
  }
  await assert.rejects(sql`select presence.upsert('types', ttl => ${{ seconds: 60 }})`, { code: '22007' })
  for (const state of [{ x: 1 }, [1, 2], sql.json('text')]) {
    const [changed] = await sql`select state from presence.upsert('types', ${state})`
    assert.deepEqual(changed.state, state.value ?? state)
  }
  const [given] = await sql`select audience from presence.upsert('types', audience => ${['users']})`
  assert.deepEqual(given.audience, ['users'])
}
await sql.end()
