// How long this machine has delayed the processes under test. A latency promise cannot be kept while they do not run.
//
// A change passes through several processes on its way to a page: the writer, the worker, the gateway, this program. Linux
// reports how long each thread was runnable and waited for a processor; the sum is an upper bound of the delay. A thread
// that only sleeps notices when the whole machine stands still, such as a virtual machine; a late timer notices when this
// program itself was busy. Processes that began and ended in between are not measured, and a thread that has waited finds
// cold caches: so the result is doubled.
import { readFileSync, readdirSync } from 'node:fs'
import { Worker } from 'node:worker_threads'

const TICK = 5
/// The number of processes on the way: the machine may stand still in each.
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
    return '' // the process has ended, or this is not Linux
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

  /// The current values, for `since`.
  now() {
    return { waits: this.waits(), lost: Atomics.load(this.lost, 0), busy: this.busy }
  }

  /// The delay to allow for since then, in ms.
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
