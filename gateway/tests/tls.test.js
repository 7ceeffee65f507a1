// Encryption of database connections, and the errors that an operator reads when a connection fails.
import { test, before, after } from 'node:test'
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { Database, Gateway } from './lib.js'

let db

before(async () => {
  db = await Database.start()
  execFileSync('openssl', ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=localhost',
    '-addext', 'subjectAltName=DNS:localhost', '-addext', 'basicConstraints=critical,CA:FALSE',
    '-keyout', `${db.dir}/key.pem`, '-out', `${db.dir}/cert.pem`], { stdio: 'ignore' })
  for (const name of ['key.pem', 'cert.pem']) {
    // Into the data directory, readable for the server's user, who owns it.
    execFileSync('install', ['-m', '600', ...(process.getuid() === 0 ? ['-o', 'postgres'] : []), `${db.dir}/${name}`, `${db.data}/${name}`])
  }
  await db.set('ssl_cert_file', `${db.data}/cert.pem`)
  await db.set('ssl_key_file', `${db.data}/key.pem`)
  await db.set('ssl', 'on')
})
after(() => db?.remove())

const start = (sslmode, env) =>
  Gateway.start(db, { url: `postgresql://authenticator@localhost:${db.port}/postgres${sslmode}`, env })

test('by default it is encrypted, whoever that is', async () => {
  const gateway = await start('')
  const encrypted = await db.sql(`select bool_and(s.ssl) as all from pg_stat_ssl s join pg_stat_activity a using (pid)
    where a.application_name = 'presence-gateway'`)
  assert.equal(encrypted[0].all, true)
  await gateway.kill()
})

test('required: the certificate is verified', async () => {
  await assert.rejects(start('?sslmode=require'), /certificate/i)
  await assert.rejects(start('?sslmode=verify-full'), /certificate/i)
  const gateway = await start('?sslmode=require', { SSL_CERT_FILE: `${db.dir}/cert.pem` })
  await gateway.kill()
})

test('disabled: it is not encrypted', async () => {
  const gateway = await start('?sslmode=disable')
  const [{ any }] = await db.sql(`select bool_or(s.ssl) as any from pg_stat_ssl s join pg_stat_activity a using (pid)
    where a.application_name = 'presence-gateway'`)
  assert.equal(any, false)
  await gateway.kill()
})

test('what is wrong with the database is said at start', async () => {
  const failing = (url) => assert.rejects.bind(null, Gateway.start(db, { url }))
  await failing('postgresql://authenticator@127.0.0.1:1/postgres')(/refused/i)
  await failing(`postgresql://authenticator@localhost:${db.port}/nowhere`)(/"nowhere" does not exist/)
  await failing(`postgresql://stranger@localhost:${db.port}/postgres`)(/"stranger" does not exist/)
  await failing(`postgresql://authenticator@localhost:${db.port}/template1`)(/has no extension presence_ext/)
  await failing(`host=`)(/--database/)
  await failing(`host=localhost sslmode=verify-ca`)(/--database: .*sslmode/)
})
