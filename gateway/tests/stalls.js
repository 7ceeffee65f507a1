// How long this machine has held up those who had something to do. A promise about time cannot be kept while nobody runs.
//
// From a change to a page it goes from hand to hand: the writer, the worker, the gateway, this program. Linux says how
// long each thread was ready and waited for a processor; together they cannot have held it up longer. What stands still
// as a whole, such as a virtual machine, is noticed by a thread that only sleeps; and what this program does itself, by a
// timer that comes late. Processes that began and ended meanwhile are not seen, and who waited finds cold caches: so all of
// that counts twice.
import { readFileSync, readdirSync } from 'node:fs'
import { Worker } from 'node:worker_threads'

const TICK = 5
/// Whatever stands still may do so in each hand.
const HANDS = 4

const sleeper = `
  const { lost, end, tick } = require('node:worker_threads').workerData
  for (let last = Date.now(); Atomics.load(end, 0) === 0; ) {
    Atomics.wait(end, 0, 0, tick)
    const now = Date.now()
    if (now - last > 2 * tick) Atomics.add(lost, 0, now - last - tick)
    last = now
  }`

const read = (file) => {
  try {
    return readFileSync(file, 'utf8')
  } catch {
    return '' // it has ended, or this is not Linux
  }
}

const threads = (pid) => {
  try {
    return readdirSync(`/proc/${pid}/task`).map((thread) => `/proc/${pid}/task/${thread}`)
  } catch {
    return []
  }
}

export class Stalls {
  constructor(dbs, gateways) {
    Object.assign(this, { dbs, gateways })
    this.lost = new Int32Array(new SharedArrayBuffer(4))
    this.over = new Int32Array(new SharedArrayBuffer(4))
    new Worker(sleeper, { eval: true, workerData: { lost: this.lost, end: this.over, tick: TICK } }).unref()
    this.busy = 0
    let last = Date.now()
    this.timer = setInterval(() => {
      const now = Date.now()
      if (now - last > 2 * TICK) this.busy += now - last - TICK
      last = now
    }, TICK)
  }

  /// How long each thread has waited for a processor, in ms.
  waits() {
    const postmasters = this.dbs.map((db) => read(`${db.data}/postmaster.pid`).split('\n')[0])
    const servers = postmasters.flatMap(threads).flatMap((thread) => read(`${thread}/children`).split(' ').filter(Boolean))
    const pids = [process.pid, ...this.gateways.map((gateway) => gateway.process.pid), ...servers]
    return new Map(pids.flatMap(threads).map((thread) => [thread, Number(read(`${thread}/schedstat`).split(' ')[1] ?? 0) / 1e6]))
  }

  /// To compare with later.
  now() {
    return { waits: this.waits(), lost: Atomics.load(this.lost, 0), busy: this.busy }
  }

  /// What to allow for, in ms, since then.
  since({ waits, lost, busy }) {
    let waited = 0
    for (const [thread, ms] of this.waits()) waited += Math.max(0, ms - (waits.get(thread) ?? 0))
    return Math.round(2 * (waited + HANDS * (Atomics.load(this.lost, 0) - lost) + this.busy - busy))
  }

  end() {
    clearInterval(this.timer)
    Atomics.store(this.over, 0, 1)
    Atomics.notify(this.over, 0)
  }
}
