// What the tests share: a database cluster, a gateway, and clients.
import { spawn, execFileSync } from 'node:child_process'
import { createHmac } from 'node:crypto'
import { mkdtempSync, chmodSync, readFileSync, openSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import WebSocket from 'ws'
import { RealtimeClient } from '@supabase/realtime-js'

const here = dirname(fileURLToPath(import.meta.url))
const cluster = resolve(here, '../../scripts/cluster')
const binary = process.env.PRESENCE_GATEWAY ?? resolve(here, '../target/debug/presence-gateway')
export const secret = 'a secret of the tests that has more than 32 bytes'

pg.types.setTypeParser(20, Number)

export const sleep = (ms) => new Promise((done) => setTimeout(done, ms))

/// Waits for a condition; on a timeout, the error says what it saw last.
export async function until(what, condition, ms = 15000) {
  const end = Date.now() + ms
  let last
  for (;;) {
    try {
      last = await condition()
      if (last === true) return
    } catch (error) {
      if (error.final) throw error
      last = error
    }
    if (Date.now() > end) throw new Error(`not within ${ms} ms: ${what}; last: ${last?.stack ?? JSON.stringify(last)}`)
    await sleep(5)
  }
}

/// Cleans up what an interrupted test leaves running.
const left = new Set()
process.on('exit', () => left.forEach((end) => end()))

const base64 = (data) => Buffer.from(data).toString('base64url')

export function token(claims, { key = secret, header = { alg: 'HS256', typ: 'JWT' } } = {}) {
  const exp = Math.floor(Date.now() / 1000) + 3600
  const text = `${base64(JSON.stringify(header))}.${base64(JSON.stringify({ role: 'authenticated', aud: 'authenticated', exp, ...claims }))}`
  return `${text}.${createHmac('sha256', key).update(text).digest('base64url')}`
}

export class Database {
  static async start(options = []) {
    const db = new Database()
    db.dir = mkdtempSync(`${tmpdir()}/presence-gateway.`)
    chmodSync(db.dir, 0o711)
    db.data = `${db.dir}/db`
    const settings = ['presence.trusted_login_roles=authenticator', 'max_connections=200', ...options]
    db.end = () => {
      left.delete(db.end)
      db.cluster('remove', db.data)
      rmSync(db.dir, { recursive: true, force: true })
    }
    left.add(db.end)
    db.cluster('start', db.data, '-p', '0', ...settings.flatMap((o) => ['-o', o]))
    db.port = Number(readFileSync(`${db.data}/port`, 'utf8'))
    await db.connect()
    await db.sql(`create extension presence_ext`)
    await db.sql(`create role authenticator login noinherit; create role authenticated; create role anon;
      create role service_role bypassrls; grant authenticated, anon, service_role to authenticator;
      select presence.grant_access('authenticated'), presence.grant_access('anon', write => false),
        presence.grant_access('service_role')`)
    return db
  }

  cluster(...args) {
    execFileSync(cluster, args, { stdio: ['ignore', 'ignore', 'inherit'] })
  }

  async connect() {
    this.client = new pg.Client({ host: '127.0.0.1', port: this.port, user: 'postgres', database: 'postgres' })
    this.client.on('error', () => {})
    await this.client.connect()
  }

  /// Runs SQL as a superuser; without values, it may be several statements.
  async sql(text, values) {
    return (await this.client.query(text, values)).rows ?? []
  }

  /// Runs SQL as a user, to see what a direct read shows.
  async as(claims, text, values) {
    const client = this.reader ?? new pg.Client({ host: '127.0.0.1', port: this.port, user: 'authenticator', database: 'postgres' })
    if (!this.reader) {
      client.on('error', () => (this.reader = undefined))
      await client.connect()
      this.reader = client
    }
    const run = async () => {
      await client.query('begin')
      try {
        await client.query(`select set_config('role', $1, true), set_config('request.jwt.claims', $2, true)`, [claims.role ?? 'authenticated', JSON.stringify(claims)])
        return (await client.query(text, values)).rows
      } finally {
        await client.query('commit')
      }
    }
    // One transaction after the other, on one connection.
    const turn = (this.turn ?? Promise.resolve()).then(run, run)
    this.turn = turn.catch(() => {})
    return turn
  }

  async set(name, value) {
    await this.sql(`alter system set ${name} = '${value}'`)
    await this.sql('select pg_reload_conf()')
  }

  url(user = 'authenticator') {
    return `host=${this.data} port=${this.port} user=${user} dbname=postgres`
  }

  async restart(mode) {
    await this.reader?.end().catch(() => {})
    this.reader = undefined
    await this.client.end().catch(() => {})
    this.cluster('stop', this.data, mode)
    this.cluster('start', this.data)
    await this.connect()
  }

  async remove() {
    await this.reader?.end().catch(() => {})
    await this.client?.end().catch(() => {})
    this.end()
  }
}

export async function freePort() {
  const server = createServer().listen(0, '127.0.0.1')
  await new Promise((done) => server.once('listening', done))
  const { port } = server.address()
  await new Promise((done) => server.close(done))
  return port
}

export class Gateway {
  static async start(db, options = {}) {
    const gateway = new Gateway()
    gateway.db = db
    gateway.quiet = options.quiet
    gateway.env = options.env
    gateway.port = options.port ?? (await freePort())
    gateway.log = `${db.dir}/gateway.${gateway.port}.log`
    gateway.args = ['--database', options.url ?? db.url(), ...(options.key ?? ['--jwt-secret', secret]), '--listen', `127.0.0.1:${gateway.port}`,
      '--service-role', 'service_role', '--role', 'authenticated', '--role', 'anon', ...(options.args ?? [])]
    await gateway.run()
    return gateway
  }

  async run() {
    const log = openSync(this.log, 'a')
    this.process = spawn(binary, this.args, { stdio: ['ignore', log, log], env: { ...process.env, ...this.env, PRESENCE_GATEWAY_LOG: this.quiet ? 'warn' : 'debug' } })
    const end = () => this.process.kill('SIGKILL')
    left.add(end)
    this.exited = new Promise((done) => this.process.once('exit', done)).then(() => left.delete(end))
    await until('the gateway is ready', async () => {
      if (this.process.exitCode !== null) throw Object.assign(new Error(readFileSync(this.log, 'utf8')), { final: true })
      return (await fetch(`http://127.0.0.1:${this.port}/healthz`)).status === 200
    })
  }

  async kill(signal = 'SIGKILL') {
    this.process.kill(signal)
    await this.exited
  }

  get http() {
    return `http://127.0.0.1:${this.port}`
  }

  get ws() {
    return `ws://127.0.0.1:${this.port}`
  }
}

/// The realtime client of a page, as supabase-js makes it.
export function realtime(gateway, accessToken, options = {}, Client = RealtimeClient) {
  const client = new Client(`${gateway.ws}/realtime/v1`, {
    // Older clients have a defect in this option, and find `ws` by themselves.
    ...(Client === RealtimeClient ? { transport: WebSocket } : {}),
    params: { apikey: typeof accessToken === 'string' ? accessToken : 'sb_publishable_x' },
    reconnectAfterMs: () => 200,
    ...(typeof accessToken === 'function' ? { accessToken } : {}),
    ...options,
  })
  if (typeof accessToken === 'string') client.setAuth(accessToken)
  return client
}

/// Subscribes to a channel, and collects its events and statuses.
export function follow(client, topic, { key, track } = {}) {
  const channel = client.channel(topic, { config: { presence: { enabled: true, ...(key ? { key } : {}) } } })
  const events = []
  channel.on('presence', { event: 'sync' }, () => events.push({ event: 'sync' }))
  channel.on('presence', { event: 'join' }, (e) => events.push({ event: 'join', key: e.key, metas: e.newPresences }))
  channel.on('presence', { event: 'leave' }, (e) => events.push({ event: 'leave', key: e.key, metas: e.leftPresences }))
  channel.on('system', {}, (e) => events.push({ event: 'system', ...e }))
  const statuses = []
  channel.subscribe((status, error) => {
    statuses.push({ status, error: error?.message ?? error })
    if (status === 'SUBSCRIBED' && track) channel.track(track)
  })
  return { channel, events, statuses, state: () => channel.presenceState(), joined: () => until('joined', () => statuses.some((s) => s.status === 'SUBSCRIBED') || statuses) }
}

/// A plain socket that sends frames and collects those that arrive.
export class Raw {
  static async open(gateway, { vsn = '2.0.0', query = '', protocols, headers } = {}) {
    const raw = new Raw()
    raw.vsn = vsn
    raw.frames = []
    raw.socket = new WebSocket(`${gateway.ws}/socket/websocket?vsn=${vsn}${query}`, protocols, { headers })
    raw.closed = new Promise((done) => raw.socket.once('close', (code, reason) => done({ code, reason: String(reason) })))
    raw.socket.on('message', (text) => raw.frames.push(raw.read(String(text))))
    await new Promise((done, failed) => {
      raw.socket.once('open', done)
      raw.socket.once('error', failed)
    })
    return raw
  }

  read(text) {
    const message = JSON.parse(text)
    if (this.vsn.startsWith('2')) {
      const [join_ref, ref, topic, event, payload] = message
      return { join_ref, ref, topic, event, payload }
    }
    return message
  }

  send(join_ref, ref, topic, event, payload) {
    this.socket.send(JSON.stringify(this.vsn.startsWith('2') ? [join_ref, ref, topic, event, payload] : { join_ref, ref, topic, event, payload }))
  }

  async frame(what, fits) {
    let found
    await until(what, () => Boolean((found = this.frames.find(fits))) || this.frames)
    return found
  }

  reply(ref) {
    return this.frame(`reply to ${ref}`, (f) => f.event === 'phx_reply' && f.ref === ref)
  }

  async join(topic, accessToken, ref = '1', config = {}) {
    this.send(ref, ref, topic, 'phx_join', { config, ...(accessToken ? { access_token: accessToken } : {}) })
    return (await this.reply(ref)).payload
  }
}
