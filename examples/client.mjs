// A client that follows the rule of docs/clients.md, with node-postgres. The numbers are those of its steps.
//
//   npm install pg
//   PGUSER=alice PGDATABASE=app node examples/client.mjs lobby '{"n": 1}'
//
// As a module: `new Client({ room, state, onChange }).run()`, with `connection` as pg.Client takes it. Without a state it only
// looks. It does nothing with `room` and `occupancy`.
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import pg from 'pg'

const SILENCE = 2 * 30_000 // presence.beacon, twice

const keyOf = ({ room, member_id, connection_id }) => JSON.stringify([room, member_id, connection_id])
const isSignal = ({ event }) => event === 'relisten' || event === 'resync' || event === 'alive'

export class Client {
  members = new Map()
  #versions = new Map()
  #buffer = []
  #position = 0
  #boot
  #removed = false
  #stopped = false
  #failures = 0
  #lease = Infinity // milliseconds
  #beatAt = 0
  #wake = () => {}

  constructor({ room, state, connection = {}, onChange = () => {} }) {
    Object.assign(this, { room, state, connection, onChange })
    this.asking = new pg.Pool({ ...connection, max: 2 })
    this.asking.on('error', () => {}) // the pool makes another
  }

  /** Until `stop`, which leaves: a new connection is a new start. What the user has no right to is thrown. */
  async run() {
    while (!this.#stopped) {
      try {
        await this.#follow()
      } catch (error) {
        if (error.code === '42501') throw error
        console.error(`${error.message}; connecting again`)
      }
      if (!this.#stopped) await sleep(Math.random() * Math.min(30_000, 1000 * 2 ** this.#failures++))
    }
    if (this.state !== undefined) await this.#ask('select presence.delete($1)', this.room).catch(() => {}) // 8
    await this.asking.end()
  }

  stop() {
    this.#stopped = true
    this.#wake()
  }

  async #ask(text, ...values) {
    return (await this.asking.query(text, values)).rows
  }

  async #follow() {
    const listening = new pg.Client(this.connection)
    let broken
    const breaks = (error) => {
      broken ??= error ?? new Error('the connection is closed')
      this.#wake()
    }
    listening.on('error', breaks).on('end', breaks)
    let heardAt = Date.now()
    listening.on('notification', ({ payload }) => {
      heardAt = Date.now()
      this.#buffer.push(JSON.parse(payload))
      this.#wake()
    })
    await listening.connect()
    try {
      this.#boot = undefined
      for (let from = 1; !this.#stopped; ) {
        if (from === 1) await this.#enter()
        if (from <= 2) await this.#listen(listening)
        await this.#list()
        this.#failures = 0
        for (from = undefined; from === undefined && !this.#stopped; ) {
          if (broken) throw broken
          if (Date.now() - heardAt > SILENCE) throw new Error('silence')
          if (Date.now() - this.#beatAt > this.#lease / 3) { // 7
            if (!(await this.#isHere()) && !this.#removed) from = 1
          } else if (this.#buffer.length > 0) {
            from = await this.#apply(this.#buffer.shift())
            if (this.#buffer.length === 0) this.onChange(this.members)
          } else {
            await this.#arrival(1000)
          }
        }
      }
    } finally {
      await listening.end().catch(() => {})
    }
  }

  #arrival(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds)
      this.#wake = () => (clearTimeout(timer), resolve())
    })
  }

  async #isHere() {
    this.#beatAt = Date.now()
    return (await this.#ask('select presence.heartbeat($1)', this.room))[0].heartbeat
  }

  async #enter() { // 1
    if (this.state === undefined) return
    this.me ??= (await this.#ask('select presence.user_id()'))[0].user_id
    if (this.#removed) return
    if (!(await this.#isHere())) await this.#ask('select version from presence.upsert($1, $2)', this.room, this.state)
    const [own] = await this.#ask(`select extract(epoch from ttl) * 1000 as lease from presence.get($1, $2, '')`, this.room, this.me)
    this.#lease = Number(own?.lease ?? Infinity)
  }

  async #listen(listening) { // 2
    this.#buffer = []
    await listening.query('select presence.listen($1)', [this.room])
    this.#buffer = this.#buffer.filter(isSignal)
  }

  async #list() { // 3, 4, 5
    this.#position = Number((await this.#ask('select presence.seq()'))[0].seq)
    const rows = await this.#ask('select * from presence.list($1)', this.room)
    this.members = new Map(rows.map((row) => [keyOf(row), row]))
    this.#versions = new Map(rows.map((row) => [keyOf(row), Number(row.version)]))
    this.onChange(this.members)
  }

  /** 6. The step to go on from, if it is another. */
  async #apply(event) {
    switch (event.event) {
      case 'enter':
      case 'update':
      case 'leave':
        return this.#change(event)
      case 'changes':
        if (event.seq > this.#position) return this.#read()
        return
      case 'resync':
        return 2
      case 'relisten':
      case 'alive': {
        const before = this.#boot
        this.#boot = event.boot ?? before
        if (event.boot !== undefined && event.boot === before) return
        return event.event === 'alive' && before === undefined ? undefined : 2
      }
    }
  }

  async #change(event) {
    const key = keyOf(event)
    let version = Number(event.version)
    if (this.#versions.get(key) >= version) return
    let row = event.event === 'leave' ? undefined : event
    if (row && (row.metadata ?? null) === null) {
      [row] = await this.#ask('select * from presence.get($1, $2, $3)', event.room, event.member_id, event.connection_id)
      version = Number(row?.version ?? version)
    }
    this.#versions.set(key, version)
    if (row) this.members.set(key, row)
    else this.members.delete(key)
    if (event.member_id === this.me && event.connection_id === '') {
      this.#removed = event.event === 'leave' && event.reason === 'removed' // 7
      if (event.event === 'leave' && event.reason === 'expired') return 1
    }
  }

  async #read() {
    for (let rows; rows === undefined || rows.length > 1; ) {
      rows = await this.#ask('select * from presence.changes($1, $2)', this.#position, this.room)
      this.#position = Number(rows.at(-1).seq)
      for (const row of rows) {
        if (row.event === 'resync') return 2
        const from = await this.#apply(row)
        if (from !== undefined) return from
      }
    }
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const show = (members) =>
    console.log(JSON.stringify([...members.values()].map(({ member_id, connection_id, state }) => [member_id, connection_id, state])))
  const [room = 'lobby', state] = process.argv.slice(2)
  const client = new Client({ room, state, onChange: show })
  process.once('SIGINT', () => client.stop())
  await client.run()
}
