// Shows who is here, where they point, and what they write, using only presence with supabase-js.
//
// Each tab tracks one object, `me`. All tabs receive the objects of all others and show them. That is all.
const COLOURS = ['#1d4ed8', '#b42318', '#047857', '#7c3aed', '#b45309', '#be185d', '#0e7490', '#4d7c0f', '#a21caf', '#475569']
const NAMES = ['Amber Fox', 'Brave Otter', 'Calm Heron', 'Dapper Lynx', 'Eager Wren', 'Fleet Hare', 'Gentle Moth', 'Happy Crane',
  'Ivory Seal', 'Jolly Newt', 'Keen Raven', 'Lucky Toad', 'Merry Finch', 'Noble Bison', 'Olive Gecko', 'Proud Robin']
const OFTEN = 50      // ms between two tracks: smooth enough for the eye
const TYPING = 2500   // ms after the last key
const AWAY = 10000    // ms after which a hidden tab is away

const $ = (id) => document.getElementById(id), board = $('board'), note = $('note')

/// The token of a visitor of the gateway, the same in all tabs of this browser. In your app, use your login's token.
let visitor, asking
async function accessToken() {
  visitor = JSON.parse(localStorage.visitor ?? 'null')
  if (!visitor || visitor.expires_at < Date.now() / 1000 + 15 * 86400) { // half of its lifetime is over
    const headers = visitor ? { Authorization: `Bearer ${visitor.access_token}` } : {}
    asking ??= fetch('/anonymous', { method: 'POST', headers }).then((answer) => (answer.ok ? answer.json() : Promise.reject(answer.status)))
      .finally(() => { asking = null })
    localStorage.visitor = JSON.stringify(visitor = await asking)
  }
  return visitor.access_token
}

/// What others know of this tab. It survives a reload, so that others do not notice one.
const me = { name: null, colour: 0, since: Date.now(), status: 'online', away: false, typing: false, cursor: null, at: 0,
  note: [0, ''], ...JSON.parse(sessionStorage.me ?? '{}'), ...JSON.parse(localStorage.me ?? '{}') }
addEventListener('pagehide', () => { sessionStorage.me = JSON.stringify({ ...me, typing: false, away: false }) })

/// All tabs of this browser share name, colour and status.
const remember = () => { localStorage.me = JSON.stringify({ name: me.name, colour: me.colour, status: me.status }) }
const fill = () => { [$('name').value, $('status').value] = [me.name, me.status] }
addEventListener('storage', ({ key, newValue }) => {
  if (key !== 'me' || !newValue) return
  track(JSON.parse(newValue))
  fill()
})

const client = supabase.createClient(location.origin, 'visitor', { accessToken })
const channel = client.channel(new URLSearchParams(location.search).get('room') || 'live', { config: { presence: { enabled: true } } })

/// Changes what others know, at most every OFTEN ms. If the server did not get it, it is sent again.
let entered = false, waiting = null, last = 0
function track(change) {
  Object.assign(me, change)
  if (!entered || waiting) return
  waiting = setTimeout(async () => {
    [waiting, last] = [null, performance.now()]
    const answer = await channel.track(me)
    connected(answer === 'ok')
    if (answer !== 'ok') setTimeout(track, 1000)
  }, last + OFTEN - performance.now())
}

channel.on('presence', { event: 'sync' }, () => {
  if (!entered) enter()
  show()
})
await accessToken().catch(() => {})
channel.subscribe(async (status, error) => {
  entered = false // track again once it is known who else is here
  connected(status === 'SUBSCRIBED')
  if (/jwt/i.test(error?.message)) { // the token is from before the server had a new secret
    if (localStorage.visitor === JSON.stringify(visitor)) delete localStorage.visitor // another tab may have a new one
    await client.realtime.setAuth()
  }
})

/// A newcomer gets a name and a colour that nobody has yet.
function enter() {
  const others = people()
  const free = (all, key) => all.find((value) => !others.some((other) => other[key] === value)) ?? all[0]
  if (!me.name) {
    Object.assign(me, { name: free(NAMES.sort(() => Math.random() - 0.5), 'name'), colour: free([...COLOURS.keys()], 'colour') })
    remember()
  }
  fill();
  [note.value, entered] = [me.note[1], true]
  track()
}

/// The states of others may contain anything: returns `or` for what is not a number.
const number = (value, or = 0) => (Number.isFinite(value) ? value : or)
const share = (value) => Math.min(Math.max(number(value), 0), 1)

/// The people in the room, each once: the tabs of one person are entries under one key.
function people() {
  return Object.entries(channel.presenceState()).map(([id, tabs]) => {
    const { name, colour, status, cursor } = tabs.reduce((a, b) => (number(b.at) > number(a.at) ? b : a))
    const away = tabs.every((tab) => tab.away)
    return { id, tabs, name: (typeof name === 'string' && name.trim().slice(0, 24)) || 'Somebody', colour: number(colour, -1),
      cursor: Array.isArray(cursor) ? [share(cursor[0]), share(cursor[1])] : null, typing: tabs.some((tab) => tab.typing),
      status: away ? 'away' : status === 'busy' ? 'busy' : 'online', since: Math.min(...tabs.map((tab) => number(tab.since))) }
  }).sort((a, b) => a.since - b.since || (a.id < b.id ? -1 : 1))
}

// Rendering. Elements stay as long as the person does, and only what has changed is updated.

/// Sets a property. Returns whether that was a change.
const set = (element, property, value) => element[property] !== value && (element[property] = value, true)

/// Keeps one child of `parent` for each person, in their order, made from the template with this id.
function each(parent, template, all, update) {
  const old = new Map([...parent.children].filter((child) => !child.classList.contains('leaving')).map((child) => [child.dataset.id, child]))
  let next = parent.firstElementChild
  for (const person of all) {
    const child = old.get(person.id) ?? $(template).content.firstElementChild.cloneNode(true)
    old.delete(person.id)
    set(child.dataset, 'id', person.id)
    set(child.dataset, 'colour', COLOURS[person.colour] ?? '#475569') && child.style.setProperty('--colour', child.dataset.colour)
    update(child, person)
    while (next && next !== child && (next.classList.contains('leaving') || old.has(next.dataset.id))) next = next.nextElementSibling
    if (next === child) next = child.nextElementSibling
    else parent.insertBefore(child, next)
  }
  for (const child of old.values()) {
    child.classList.add('leaving')
    setTimeout(() => child.remove(), 300)
  }
}

let known = null, byKeys = false
function show() {
  const all = people()
  each($('people'), 'person', all, (item, { id, name, status, tabs, typing }) => {
    const mine = id === visitor?.user_id
    const words = [mine && 'You', typing ? 'Typing…' : { online: 'Online', busy: 'Busy', away: 'Away' }[status], tabs.length > 1 && `${tabs.length} tabs`]
    set(item, 'className', status)
    set(item.querySelector('.avatar'), 'textContent', name.split(/\s+/).map((word) => [...word][0]).slice(0, 2).join('').toUpperCase())
    set(item.querySelector('b'), 'textContent', name)
    set(item.querySelector('small'), 'textContent', words.filter(Boolean).join(' · '))
  })
  const others = all.filter(({ id }) => id !== visitor?.user_id)
  each($('cursors'), 'cursor', all.filter((one) => one.cursor && (byKeys || others.includes(one))), (arrow, { name, cursor }) => {
    const [x, y] = cursor.map((part) => `${part * 100}%`)
    set(arrow.querySelector('span'), 'textContent', name)
    set(arrow, 'className', cursor[0] > 0.75 ? 'flip' : '')
    set(arrow.dataset, 'at', `${x} ${y}`) && (arrow.style.translate = arrow.dataset.at)
  })
  const typing = others.filter((one) => one.typing).map((one) => one.name)
  set($('typing'), 'textContent', typing.length === 0 ? '' : typing.length > 2 ? `${typing.length} people are typing…` : `${typing.join(' and ')} ${typing.length > 1 ? 'are' : 'is'} typing…`)
  set($('count'), 'textContent', String(all.length))
  takeNote(all.flatMap(({ tabs }) => tabs.map((tab) => tab.note)))

  const names = new Map(others.map(({ id, name }) => [id, name]))
  const came = [...names].filter(([id]) => known && !known.has(id)).map(([, name]) => `${name} came.`)
  const left = [...(known ?? [])].filter(([id]) => !names.has(id)).map(([, name]) => `${name} left.`)
  if (came.length + left.length) set($('news'), 'textContent', [...came, ...left].join(' '))
  known = names
}

/// The newest note of anybody counts. Readers of a note track it too, so that it outlives its writer. If two write at the
/// same moment, one wins: a collaborative editor needs more (Yjs), and uses presence only to show who is there.
let carrying
function takeNote(notes) {
  const newer = (a, b) => b[0] > a[0] || (b[0] === a[0] && b[1] > a[1])
  const fits = (one) => Array.isArray(one) && Number.isSafeInteger(one[0]) && one[0] < me.note[0] + 1e6 // more than anybody types
    && typeof one[1] === 'string' && one[1].length <= note.maxLength
  const found = notes.filter(fits).reduce((a, b) => (newer(a, b) ? b : a), me.note)
  if (found === me.note) return
  const [before, after, { selectionStart, selectionEnd }] = [note.value, found[1], note]
  me.note = found
  clearTimeout(carrying)
  carrying = setTimeout(track, 1000 + Math.random() * 2000)
  if (before === after) return
  let same = 0 // the caret stays at the same letter
  while (same < before.length && before[same] === after[same]) same++
  const move = (at) => (at <= same ? at : Math.max(same, at + after.length - before.length))
  note.value = after
  if (document.activeElement === note) note.setSelectionRange(move(selectionStart), move(selectionEnd))
}

function connected(is) {
  set($('connection'), 'textContent', is ? 'Connected' : 'Reconnecting…')
  set($('connection'), 'className', is ? 'ok' : '')
}

// Input.
const point = (x, y) => track({ cursor: [x, y].map((part) => Math.round(share(part) * 1e4) / 1e4), at: Date.now() })
board.addEventListener('pointermove', ({ clientX, clientY }) => {
  const box = board.getBoundingClientRect()
  byKeys = false
  point((clientX - box.left) / box.width, (clientY - box.top) / box.height)
})
board.addEventListener('pointerleave', ({ pointerType }) => pointerType === 'mouse' && track({ cursor: null }))
board.addEventListener('keydown', (event) => {
  const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key]
  if (!way || event.target !== board) return
  event.preventDefault()
  byKeys = true
  const [x, y] = me.cursor ?? [0.5, 0.5]
  point(x + way[0] * 0.02, y + way[1] * 0.02)
})

let stop, hidden
note.addEventListener('input', () => {
  track({ note: [me.note[0] + 1, note.value], typing: true, at: Date.now() })
  clearTimeout(stop)
  stop = setTimeout(track, TYPING, { typing: false })
})
$('name').addEventListener('input', ({ target }) => {
  track({ name: target.value.trim() || NAMES[0], at: Date.now() })
  remember()
})
$('status').addEventListener('change', ({ target }) => {
  track({ status: target.value, at: Date.now() })
  remember()
})

document.addEventListener('visibilitychange', () => {
  clearTimeout(hidden)
  if (document.hidden) hidden = setTimeout(track, AWAY, { away: true })
  else if (me.away) track({ away: false })
})
