// Tests GraphQL by PostGraphile over examples/wrapper.sql: node postgraphile.mjs SOCKET_DIRECTORY. The database is `app`,
// the login `authenticator`; the user is in the claims.
import assert from 'node:assert/strict'
import { makeSchema } from 'postgraphile'
import { makePgService } from 'postgraphile/adaptors/pg'
import { grafast } from 'postgraphile/grafast'
import { PostGraphileAmberPreset } from 'postgraphile/presets/amber'

// PostGraphile needs this from a newer Node.js than distributions have.
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new Promise((...both) => ([resolve, reject] = both))
  return { promise, resolve, reject }
}

const service = makePgService({
  connectionString: `postgres:///app?host=${process.argv[2]}&user=authenticator`,
  schemas: ['presence_api'],
  pubsub: false,
})
const { schema, resolvedPreset } = await makeSchema({
  extends: [PostGraphileAmberPreset],
  pgServices: [service],
  grafast: {
    context: ({ user }) => ({
      pgSettings: { role: 'authenticated', ...(user && { 'request.jwt.claims': JSON.stringify({ sub: user }) }) },
    }),
  },
})

async function ask(user, source, variableValues = {}) {
  const result = await grafast({ schema, resolvedPreset, source, variableValues, requestContext: { user } })
  assert.equal(result.errors, undefined, `${source}: ${result.errors}`)
  return JSON.parse(JSON.stringify(result.data))
}

try {
  // Every function is a query or a mutation.
  const fields = (type) => Object.keys(type.getFields())
  const queries = ['changes', 'get', 'getRoom', 'history', 'list', 'occupancy', 'rooms', 'seq', 'state', 'tokens', 'users']
  const mutations = ['delete', 'deleteAll', 'heartbeat', 'heartbeatMany', 'setRoom', 'update', 'upsert', 'upsertMany']
  for (const name of queries) assert.ok(fields(schema.getQueryType()).includes(name), `no query ${name}`)
  for (const name of mutations) assert.ok(fields(schema.getMutationType()).includes(name), `no mutation ${name}`)

  const upsert = `mutation ($state: JSON, $ttl: IntervalInput) {
    upsert(input: {room: "lobby", state: $state, status: "online", ttl: $ttl}) {
      result { memberId connectionId version state ttl { minutes } expiresAt } } }`
  const entered = (await ask('alice', upsert, { state: { x: 1 }, ttl: { minutes: 2 } })).upsert.result
  assert.equal(entered.memberId, 'alice')
  assert.deepEqual(entered.state, { x: 1 })
  assert.equal(entered.ttl.minutes, 2)
  assert.ok(new Date(entered.expiresAt) > new Date())

  const list = `{ list(room: "lobby") { nodes { memberId userId status state audience } } }`
  assert.deepEqual((await ask('bob', list)).list.nodes, [], 'who is not there sees nobody')
  const change = `mutation { update(input: {room: "lobby", patch: {y: 2}}) { result { state } } }`
  assert.deepEqual((await ask('bob', change)).update.result, [], 'a late update makes no ghost')
  assert.deepEqual((await ask('alice', change)).update.result, [{ state: { x: 1, y: 2 } }])

  await ask('bob', upsert, { state: {} })
  const nodes = (await ask('bob', list)).list.nodes
  assert.deepEqual(nodes.map(({ memberId, audience }) => [memberId, audience]), [['alice', null], ['bob', ['room:lobby']]])
  const numbers = `{ occupancy(room: "lobby") { nodes { members users } } }`
  assert.deepEqual((await ask('bob', numbers)).occupancy.nodes, [{ members: '2', users: '2' }])

  const beat = `mutation { heartbeat(input: {room: "lobby"}) { result } }`
  assert.equal((await ask('alice', beat)).heartbeat.result, true)
  const leave = `mutation { delete(input: {room: "lobby"}) { result } }`
  assert.equal((await ask('alice', leave)).delete.result, 1)
  assert.equal((await ask('alice', beat)).heartbeat.result, false)
  assert.deepEqual((await ask(undefined, list)).list.nodes, [], 'nobody sees nobody')
} finally {
  await service.release?.()
}
