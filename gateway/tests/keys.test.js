// Replacing the keys of --jwks while the gateway runs.
import { test, before, after } from 'node:test'
import assert from 'node:assert/strict'
import { readFileSync, renameSync, writeFileSync } from 'node:fs'
import { Database, Gateway, Raw, token, until } from './lib.js'

const keys = Object.fromEntries(['old', 'new', 'newest'].map((kid) => [kid, `the ${kid} key of the tests has more than 32 bytes`]))
const set = (...kids) => JSON.stringify({ keys: kids.map((kid) => ({ kty: 'oct', alg: 'HS256', kid, k: Buffer.from(keys[kid]).toString('base64url') })) })
const signed = (kid) => token({ sub: 'ann' }, { key: keys[kid], header: { alg: 'HS256', typ: 'JWT', kid } })

let db, file, gateway

before(async () => {
  db = await Database.start()
  file = `${db.dir}/jwks.json`
  writeFileSync(file, set('old'))
  gateway = await Gateway.start(db, { key: ['--jwks', file] })
})
after(async () => {
  await gateway?.kill()
  await db?.remove()
})

/// Replaces the file atomically, as an operator should.
const write = (text) => {
  writeFileSync(`${file}.next`, text)
  renameSync(`${file}.next`, file)
}
const status = async (kid) => (await fetch(`${gateway.http}/events?room=one`, { headers: { authorization: `Bearer ${signed(kid)}` }, signal: AbortSignal.timeout(5000) })).status
const isStale = async () => /^presence_gateway_jwks_stale 1$/m.test(await (await fetch(`${gateway.http}/metrics`)).text())

test('a changed file is read anew, and who is connected stays', async () => {
  const raw = await Raw.open(gateway)
  assert.equal((await raw.join('one', signed('old'))).status, 'ok')
  assert.equal(await status('new'), 401)
  write(set('old', 'new'))
  await until('the new key holds', async () => (await status('new')) === 200)
  assert.equal(await status('old'), 200)
  write(set('new'))
  await until('the old key is gone', async () => (await status('old')) === 401)
  raw.send('1', '2', 'one', 'presence', { event: 'track', payload: { n: 1 } })
  assert.equal((await raw.reply('2')).payload.status, 'ok')
  assert.equal((await db.sql(`select from presence.member where room = 'one'`)).length, 1)
  raw.socket.terminate()
})

test('a broken file, or none, leaves the keys and says so', async () => {
  for (const text of ['{"keys": [', '{"keys": []}']) {
    write(text)
    await until('it is noticed', isStale)
    assert.equal(await status('new'), 200)
    write(set('new'))
    await until('it is right again', async () => !(await isStale()))
  }
  renameSync(file, `${file}.away`)
  await until('it is noticed', isStale)
  assert.equal(await status('new'), 200)
  const log = readFileSync(gateway.log, 'utf8')
  assert.match(log, /ERROR.*the keys stay as they were.*jwks\.json: no JSON Web Key Set/)
  assert.match(log, /jwks\.json: No such file/)
  assert.ok(!log.includes(keys.new) && !log.includes(Buffer.from(keys.new).toString('base64url')))
})

test('SIGHUP reads it, and ends nothing', async () => {
  write(set('newest'))
  gateway.process.kill('SIGHUP')
  await until('the newest key holds', async () => (await status('newest')) === 200)
  assert.equal(gateway.process.signalCode ?? gateway.process.exitCode, null)
})

test('SIGHUP ends nothing where there is no file, either', async () => {
  const other = await Gateway.start(db)
  other.process.kill('SIGHUP')
  const ended = await Promise.race([other.exited.then(() => true), new Promise((done) => setTimeout(done, 500, false))])
  assert.equal(ended, false)
  assert.equal((await fetch(`${other.http}/healthz`)).status, 200)
  await other.kill()
})
