// Measures the load that the gateway sustains, with examples/load.rs as its clients. scripts/bench-gateway runs it; a
// missed mark is an error. SOAK=MINUTES runs continuous load instead, under which memory must not grow.
import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { cpus } from 'node:os'
import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Database, Gateway, secret, sleep, until } from './lib.js'

const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..')
const quick = Boolean(process.env.QUICK)
const number = (name, full, short) => Number(process.env[name] ?? (quick ? short : full))
const [sockets, rate, seconds, room, kills] = [number('SOCKETS', 10000, 1000), number('RATE', 1000, 200), number('SECONDS', 20, 5), number('ROOM', 1000, 200), number('KILLS', 100, 6)]
const soak = Number(process.env.SOAK ?? 0)

const db = await Database.start(['max_connections=100', 'presence.max_members=200000'])
const gateway = await Gateway.start(db, { args: ['--name', 'bench', '--max-sockets', '50000'], quiet: true })

/// The process of the clients. It reads commands and writes answers, one per line; see examples/load.rs.
class Load {
  constructor() {
    this.process = spawn(`${root}/gateway/target/release/examples/load`, [gateway.ws], {
      stdio: ['pipe', 'pipe', 'inherit'], env: { ...process.env, PRESENCE_GATEWAY_JWT_SECRET: secret },
    })
    this.answers = createInterface({ input: this.process.stdout })[Symbol.asyncIterator]()
    process.on('exit', () => this.process.kill('SIGKILL'))
  }

  async say(line) {
    this.process.stdin.write(`${line}\n`)
    const { value, done } = await this.answers.next()
    if (done) throw new Error(`the clients ended at: ${line}`)
    return JSON.parse(value)
  }

  async end() {
    await this.say('close')
    await until('all are gone', async () => (await db.sql('select count(*)::int as n from presence.online'))[0].n === 0, 60000)
    this.process.kill()
  }
}

/// The parent and the processor time, in seconds, of a process.
function ticks(pid) {
  try {
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/.*\) /, '').split(' ')
    return { parent: Number(fields[1]), used: (Number(fields[11]) + Number(fields[12])) / 100 }
  } catch {
    return { parent: 0, used: 0 } // the process has ended
  }
}
function used() {
  const postmaster = Number(readFileSync(`${db.data}/data/postmaster.pid`, 'utf8').split('\n')[0])
  const ours = readdirSync('/proc').filter((name) => /^\d+$/.test(name)).filter((pid) => Number(pid) === postmaster || ticks(pid).parent === postmaster)
  return { gateway: ticks(gateway.process.pid).used, database: new Map(ours.map((pid) => [pid, ticks(pid).used])) }
}
function cores(before, after, seconds) {
  const database = [...after.database].reduce((sum, [pid, used]) => sum + used - (before.database.get(pid) ?? 0), 0)
  return { gateway: ((after.gateway - before.gateway) / seconds).toFixed(2), database: (database / seconds).toFixed(2) }
}
/// What the gateway has allocated, in kB; the process also has the free memory of its heap, until that is returned.
const allocated = async () => Math.round(Number(/^presence_gateway_allocated_bytes (\S+)/m.exec(await (await fetch(`${gateway.http}/metrics`)).text())[1]) / 1024)
const memory = () => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${gateway.process.pid}/status`, 'utf8'))[1])

const table = []
let missed = 0
function report(what, measured, mark, ok) {
  if (!ok) missed++
  table.push(`| ${what} | ${measured} | ${mark} | ${ok ? 'yes' : '**no**'} |`)
  console.log(`${ok ? '  ' : '! '}${what}: ${measured} (${mark})`)
}
const thousands = (n) => n.toLocaleString('en')

async function bench() {
  const empty = memory()
  let load = new Load()
  const opened = await load.say(`open ${sockets} 10`)
  await sleep(3000)
  const each = (memory() - empty) / sockets
  report(`${thousands(sockets)} sockets in rooms of ten: joined, tracked, all shown to each other`, `${opened.seconds} s`, 'all', opened.wrong === 0)
  report('memory of the gateway', `${each.toFixed(1)} kB a socket`, '≤ 30 kB', each <= 30)
  const before = used()
  const told = await load.say(`rate ${rate} ${seconds}`)
  const cpu = cores(before, used(), told.seconds)
  const what = `${thousands(rate)} tracks a second for ${seconds} s, each told to ten`
  report(`${what}: from track to the diff`, `p50 ${told.p50?.toFixed(1)} ms, p99 ${told.p99?.toFixed(1)} ms, most ${told.max?.toFixed(0)} ms`, 'p50 ≤ 25 ms, p99 ≤ 100 ms', told.p50 <= 25 && told.p99 <= 100)
  // Every track is counted in one of these: exactly for the last of each client; for earlier ones, see `count` in
  // examples/load.rs.
  const all = told.told + told.conflated + told.lost === told.sent * 10
  report('of these', `${thousands(told.told)} told, ${thousands(told.conflated)} left out as their client's next came before the slowest diff, ${thousands(told.lost)} lost`, 'none lost, the last of each client told to all', all && told.lost === 0)
  report('processor', `gateway ${cpu.gateway}, database ${cpu.database} cores`, 'measured', true)
  const after = await load.say('right 30')
  report('then every client is right', `${after.wrong} are not`, '0', after.wrong === 0)
  await load.end()

  load = new Load()
  const one = await load.say(`open ${room} ${room}`)
  report(`a room of ${thousands(room)}: joined, tracked, all shown to each other`, `${one.seconds} s`, '≤ 10 s, all equal', one.seconds <= 10 && one.wrong === 0)
  await load.end()

  load = new Load()
  await load.say('open 300 10')
  const ways = {
    gateway: async () => { await gateway.kill(); await gateway.run() },
    database: () => db.restart('immediate'),
    sockets: () => load.say('cut 100'),
  }
  let wrong = 0
  for (let n = 0; n < kills; n++) {
    const way = Object.keys(ways)[n % 3]
    const tracks = load.say('rate 100 1') // gateway and database are killed in the middle of it
    if (way !== 'sockets') await ways[way]()
    await tracks
    if (way === 'sockets') await ways[way]()
    const end = await load.say('right 60')
    wrong += end.wrong
    if (end.wrong) console.log(`! kill ${n}, ${way}: ${end.wrong} clients are wrong`)
  }
  report(`${kills} kills in the middle of tracks, of gateway, database and a third of 300 sockets in turn: clients that are not right afterwards`, String(wrong), '0', wrong === 0)
  await load.end()
}

async function keepOn(minutes) {
  const load = new Load()
  await load.say('open 1000 10')
  await sleep(3000)
  const began = Date.now()
  const [seen, held] = [[], []] // after each round, when nothing is pending
  const marks = new Map([[0, memory()]]) // minute: memory
  while (Date.now() < began + minutes * 60000) {
    await load.say('rate 300 20')
    await load.say('cut 50')
    const { wrong } = await load.say('right 60')
    if (wrong) throw new Error(`${wrong} clients are wrong`)
    seen.push(memory())
    held.push(await allocated())
    for (const minute of [5, 10, minutes]) {
      if (!marks.has(minute) && Date.now() >= began + minute * 60000) marks.set(minute, memory())
    }
  }
  const most = (of, from, to) => Math.max(...of.slice(Math.floor(of.length * from), Math.ceil(of.length * to)))
  const at = [...marks].map(([minute, kB]) => `${thousands(kB)} kB ${minute ? `after ${minute} minutes` : 'at the start'}`)
  report(`${minutes} minutes of 300 tracks a second and 150 broken sockets a minute: memory of the gateway`, at.join(', '), 'measured', true)
  for (const [what, of] of [['most of it', seen], ['most that it had allocated when nothing waited', held]]) {
    const [early, late] = [most(of, 0.1, 0.4), most(of, 0.7, 1)]
    report(what, `${thousands(early)} kB in the second to fourth tenth, ${thousands(late)} kB in the last three`, '≤ 5 % and 2 MB more', late <= early * 1.05 + 2048)
  }
  await load.end()
}

if (soak) await keepOn(soak)
else await bench()

/// Writes the results. The page has two sections: each kind of run replaces its own, and leaves the other.
function write() {
  const page = `${root}/docs/performance-gateway.md`
  const second = '## Load that goes on'
  const [first, rest = ''] = readFileSync(page, 'utf8').split(second)
  const head = `| | measured | mark | reached |\n|---|---|---|---|\n${table.join('\n')}\n`
  const introduction = `# How much the gateway takes

Written by \`make bench-gateway\`: database, gateway and all clients (\`gateway/examples/load.rs\`) on one machine of
${cpus().length} cores. Clients come in as fast as they are let in; each track is a transaction of its user in the database.

`
  writeFileSync(page, soak ? `${first.trimEnd()}\n\n${second}\n\nBy \`make soak\`, with a thousand sockets:\n\n${head}` : `${introduction}${head}${rest && `\n${second}${rest}`}`)
}

if (soak ? soak >= 20 : !quick) write()
await gateway.kill()
await db.remove()
process.exit(missed ? 1 : 0)
