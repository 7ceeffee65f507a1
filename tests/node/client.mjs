// Tests that examples/client.mjs ends up with what is listed, whatever happens: node client.mjs CLUSTER_DIRECTORY.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { copyFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'

const dir = process.argv[2]
const here = new URL('.', import.meta.url)
// A copy in a place where it finds its packages.
const copy = new URL('node_modules/.presence-client.mjs', here)
copyFileSync(new URL('../../examples/client.mjs', here), copy)
const { Client } = await import(copy)

const connection = (user) => ({ host: dir, user, database: 'app' })
const clients = ['alice', 'bob'].map((user) => new Client({ room: 'lobby', state: {}, connection: connection(user) }))
const [alice] = clients
const service = new pg.Pool(connection('postgres'))
service.on('error', () => {})
const cluster = (...command) => execFileSync(new URL('../../scripts/cluster', here).pathname, [command[0], dir, ...command.slice(1)])
const ask = async (sql) => (await service.query(sql)).rows

const runs = clients.map((client) => client.run())
const shown = (rows) => rows.map(({ member_id, connection_id, state }) => JSON.stringify([member_id, connection_id, state])).sort()

const as = async (user, sql) =>
  (await service.query(`begin; set local session authorization ${user}; ${sql}; commit`))[2].rows

/** Waits until each client holds what is listed to its user, and that is this many members. */
async function agree(what, counts, seconds = 5) {
  for (const end = Date.now() + 1000 * seconds; ; await sleep(20)) {
    try {
      for (const [at, user] of ['alice', 'bob'].entries()) {
        const listed = shown(await as(user, `select * from presence.list('lobby')`))
        assert.equal(listed.length, counts[at])
        assert.deepEqual(shown([...clients[at].members.values()]), listed)
      }
      return
    } catch (error) {
      if (Date.now() > end) throw new Error(`${what}: ${error.message}`)
    }
  }
}

const kill = (user) => ask(`select pg_terminate_backend(pid) from pg_stat_activity where usename = '${user}'`)

await agree('both came', [2, 2])
await as('alice', `select presence.update('lobby', '{"n": 1}')`)
await agree('an update', [2, 2])
await as('alice', `select presence.upsert('lobby', jsonb_build_object('x', repeat('x', 9000)), connection_id => 'big')`)
await agree('too big for a notification', [3, 3])
await kill('alice')
await as('bob', `select presence.update('lobby', '{"n": 2}')`)
await agree('the connections of one were killed', [3, 3])
await ask('select presence.rotate_channels()')
await as('bob', `select presence.update('lobby', '{"n": 3}')`)
await agree('new names', [3, 3])
await ask(`alter database app set presence.notify_payload = 'doorbell'`)
await kill('alice')
await as('bob', `select presence.update('lobby', '{"n": 4}')`)
await agree('a doorbell', [3, 3])
await as('alice', `select presence.delete('lobby', connection_id => 'big')`)
await agree('a doorbell for who left', [2, 2])
await ask(`alter database app reset presence.notify_payload`)
cluster('restart')
await agree('a restart', [2, 2], 20)
cluster('stop', 'immediate')
cluster('start')
await agree('a crash', [2, 2], 20)
await ask(`select presence.delete('lobby', 'bob')`)
await agree('somebody was removed', [1, 0])
await kill('bob')
await ask(`select presence.upsert('lobby', member_id => 'bob', user_id => 'bob', connection_id => 'x')`)
await agree('whoever was removed is back on another device only', [2, 2])
assert.ok(![...alice.members.values()].some((row) => row.member_id === 'bob' && row.connection_id === ''))

clients.forEach((client) => client.stop())
await Promise.all([...runs, service.end()])
