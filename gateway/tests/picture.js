// The presence state that the frames of a channel, or the events of a stream, add up to, and when it last changed.
import { Raw, token, until } from './lib.js'

let calls = 100

/// The version and its server, in the format of `phx_ref`.
export const reference = ({ node, version }) => (node ? `${node}.${version}` : `${version}`)

class Shown {
  shown = new Map()
  errors = []
  changes = 0
  changedAt = 0

  changed() {
    this.changes++
    this.changedAt = Date.now()
  }
}

export class Picture extends Shown {
  static async open(gateway, topic, claims, vsn = '2.0.0') {
    const picture = new Picture()
    Object.assign(picture, { topic, claims, begun: false })
    picture.raw = await Raw.open(gateway, { vsn })
    picture.raw.socket.on('message', () => picture.take(picture.raw.frames.pop()))
    picture.raw.socket.on('error', () => {})
    picture.raw.closed.then(() => (picture.ended = true))
    picture.replies = new Map()
    const reply = await picture.call('phx_join', { access_token: token(claims), config: {} }, (picture.join_ref = String(calls)))
    if (reply.status !== 'ok') throw new Error(reply.response.reason)
    await until('the first state', () => picture.begun)
    return picture
  }

  take({ topic, event, ref, join_ref, payload }) {
    if (event === 'phx_reply') this.replies.set(ref, payload)
    if (topic !== this.topic) return
    if (event === 'presence_state' || event === 'presence_diff') this.changed()
    if (event === 'presence_state') {
      this.begun = true
      this.shown = new Map()
      for (const [key, { metas }] of Object.entries(payload)) for (const meta of metas) this.add(key, meta)
    } else if (event === 'presence_diff') {
      if (!this.begun) this.errors.push('a diff before the state')
      for (const [key, { metas }] of Object.entries(payload.leaves))
        for (const meta of metas) {
          if (!this.shown.delete(`${key} ${meta.phx_ref}`)) this.errors.push(`a leave of what was not shown: ${key}`)
        }
      for (const [key, { metas }] of Object.entries(payload.joins)) for (const meta of metas) this.add(key, meta)
    } else if (event === 'phx_error' || event === 'phx_close') {
      this.ended = true
    }
  }

  add(key, meta) {
    const id = `${key} ${meta.phx_ref}`
    if (this.shown.has(id)) this.errors.push(`a join of what was shown: ${id}`)
    this.shown.set(id, meta)
  }

  async call(event, payload, ref = String(calls)) {
    calls++
    this.raw.send(this.join_ref, ref, this.topic, event, payload)
    await until(`reply to ${event}`, () => this.replies.has(ref) || this.ended === true)
    return this.replies.get(ref) ?? { status: 'ended' }
  }

  async presence(event, payload) {
    const reply = await this.call('presence', { type: 'presence', event, payload })
    return reply.status === 'ok' ? 'ok' : reply.response?.reason
  }

  track(state) {
    return this.presence('track', state)
  }

  untrack() {
    return this.presence('untrack')
  }

  async renew(claims) {
    this.claims = claims
    this.raw.send(this.join_ref, String(calls++), this.topic, 'access_token', { access_token: token(claims) })
  }

  keys() {
    return [...this.shown.keys()].map((id) => id.slice(0, id.lastIndexOf(' '))).sort().join()
  }

  /// In the format that the tests make from presence.list.
  versions() {
    return [...this.shown].map(([id, { phx_ref, ...state }]) => `${id} ${JSON.stringify(state)}`).sort().join('\n')
  }

  close() {
    this.raw.socket.terminate()
  }
}

export class Events extends Shown {
  static async open(gateway, room, claims) {
    const page = new Events()
    Object.assign(page, { topic: room, claims, events: [], abort: new AbortController() })
    const response = await fetch(`${gateway.http}/events?room=${encodeURIComponent(room)}`, {
      headers: { authorization: `Bearer ${token(claims)}` }, signal: page.abort.signal,
    })
    if (response.status !== 200) throw new Error(`${response.status} ${await response.text()}`)
    page.read(response.body).catch(() => (page.ended = true))
    await until('the first state', () => page.events.length > 0)
    return page
  }

  async read(body) {
    let text = ''
    for await (const part of body.pipeThrough(new TextDecoderStream())) {
      text += part
      for (let end; (end = text.indexOf('\n\n')) >= 0; text = text.slice(end + 2)) {
        const fields = Object.fromEntries(text.slice(0, end).split('\n').filter((line) => !line.startsWith(':')).map((line) => [line.slice(0, line.indexOf(':')), line.slice(line.indexOf(':') + 1).trim()]))
        if (fields.event) this.take(fields.event, JSON.parse(fields.data))
      }
    }
    this.ended = true
  }

  take(event, data) {
    this.events.push({ event, data })
    this.changed()
    const id = (member) => `${member.member_id}\u0000${member.connection_id}\u0000${member.node ?? ''}`
    if (event === 'state') this.shown = new Map(data.map((member) => [id(member), member]))
    else if (event === 'leave') {
      if (!this.shown.delete(id(data))) this.errors.push('a leave of what was not shown')
    } else if (event === 'enter' || event === 'update') {
      if (this.shown.has(id(data)) !== (event === 'update')) this.errors.push(`${event} of ${id(data)}`)
      this.shown.set(id(data), data)
    }
  }

  keys() {
    return [...this.shown.values()].map((member) => member.member_id).sort().join()
  }

  versions() {
    return [...this.shown.values()].map((m) => `${m.member_id} ${reference(m)} ${JSON.stringify(m.state)}`).sort().join('\n')
  }

  close() {
    this.abort.abort()
  }
}

/// The presence keys that the frames of a socket add up to.
export function added(frames, topic) {
  const picture = Object.assign(new Picture(), { topic, replies: new Map() })
  for (const frame of frames) picture.take(frame)
  return picture.keys()
}
