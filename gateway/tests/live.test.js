// The page of `make live` in Chromium, with several users.
import { test, before, after } from 'node:test'
import assert from 'node:assert/strict'
import { mkdirSync, writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { join } from 'node:path'
import { Database, Gateway, Raw, token, until, sleep } from './lib.js'
import { Browser, page } from './browser.js'

let db, gateway, folder, browser, ann, bob

before(async () => {
  db = await Database.start(['presence.default_audience=users'])
  folder = page(db.dir)
  gateway = await Gateway.start(db, { args: ['--name', 'live', '--anonymous', '--leave-grace', '2s', '--page', folder] })
  browser = await Browser.start()
  ann = await browser.person(gateway.http)
  bob = await browser.person(gateway.http, { dark: true })
})
after(async () => {
  await browser?.close()
  await gateway?.kill()
  await db?.remove()
})

const text = (tab, selector) => tab.$eval(selector, (element) => element.innerText.replaceAll('\n', ' ')).catch(() => null)
const name = (person) => person.page.$eval('#name', (input) => input.value)
const list = (person) => person.page.$$eval('#people li:not(.leaving)', (all) => all.map((item) => item.innerText.replaceAll('\n', ' ')))
const cursor = (person, of) => person.page.$$eval('#cursors > div:not(.leaving)', (all, of) => all.find((arrow) => arrow.innerText === of)?.dataset.at ?? null, of)
const shows = (person, what, fits) => until(what, async () => fits((await list(person)).join(' | ')) || (await list(person)))

/// Records every change that the page shows from now on.
const watch = async ({ page }) => {
  await until('who has left is no more', () => page.$$eval('.leaving', (all) => all.length === 0))
  await page.evaluate(() => {
    window.changes = []
    new MutationObserver((all) => all.forEach(({ type, target }) => window.changes.push(`${type} ${target.id || target.className || target.nodeName}: ${target.textContent}`)))
      .observe(document.documentElement, { subtree: true, childList: true, characterData: true, attributes: true })
  })
}
const changes = ({ page }) => page.evaluate(() => window.changes)
const nothingWrong = () => [ann, bob].forEach((person) => assert.deepEqual(person.wrong, []))

test('the folder is served, and nothing beside it', async () => {
  writeFileSync(join(folder, '.env'), 'secret')
  mkdirSync(join(folder, '.git'), { recursive: true })
  writeFileSync(join(folder, '.git', 'config'), 'secret')
  writeFileSync(join(db.dir, 'beside.html'), 'secret')
  const get = (path) => new Promise((resolve, reject) => {
    // Sends the path unchanged: fetch would resolve the dots.
    request(gateway.http, { path }, (answer) => { answer.resume(); resolve(answer) }).on('error', reject).end()
  })
  for (const path of ['/', '/index.html', '/live.js']) {
    const { statusCode, headers } = await get(path)
    assert.equal(statusCode, 200, path)
    assert.match(headers['content-type'], path === '/live.js' ? /javascript/ : /html/)
    assert.match(headers['content-security-policy'], /default-src 'self'/)
  }
  for (const path of ['/.env', '/%2eenv', '/.git/config', '/x/../.env', '/../beside.html', '/%2e%2e/beside.html', '/..%2fbeside.html', '/..%5cbeside.html', '/no.html']) {
    assert.ok((await get(path)).statusCode >= 400, path)
  }
})

test('two people see each other', async () => {
  const [one, other] = [await name(ann), await name(bob)]
  assert.notEqual(one, other)
  for (const person of [ann, bob]) await shows(person, 'both', (all) => all.includes(one) && all.includes(other) && all.includes('You'))
  assert.equal(await text(ann.page, '#count'), '2')
})

test('cursors move, and go with the pointer', async () => {
  const of = await name(ann)
  await ann.page.mouse.move(300, 300, { steps: 4 })
  await until('it is shown', async () => Boolean(await cursor(bob, of)))
  const first = await cursor(bob, of)
  await ann.page.mouse.move(500, 400, { steps: 4 })
  await until('it moves', async () => (await cursor(bob, of)) !== first)
  await until('it is where the pointer is', async () => {
    const box = await bob.page.$$eval('#cursors > div', (all, of) => all.find((arrow) => arrow.innerText === of).getBoundingClientRect().toJSON(), of)
    return (Math.abs(box.x - 500) < 2 && Math.abs(box.y - 400) < 2) || box
  })
  assert.equal(await cursor(ann, of), null, 'one has a pointer of one’s own')
  await ann.page.mouse.move(1000, 300, { steps: 2 })
  await until('it is gone', async () => (await cursor(bob, of)) === null)
})

test('what is typed is there at once, and typing ends by itself', async () => {
  const of = await name(ann)
  await ann.page.focus('#note')
  await ann.page.keyboard.type('bread and wine')
  await until('the note', async () => (await bob.page.$eval('#note', (note) => note.value)) === 'bread and wine')
  await until('typing', async () => (await text(bob.page, '#typing')) === `${of} is typing…`)
  await until('no more', async () => (await text(bob.page, '#typing')) === '', 6000)
  // Another user writes before the caret: it stays at the same letter.
  await bob.page.focus('#note')
  await bob.page.keyboard.down('Control')
  await bob.page.keyboard.press('Home')
  await bob.page.keyboard.up('Control')
  await bob.page.keyboard.type('buy ')
  await until('the note', async () => (await ann.page.$eval('#note', (note) => note.value)) === 'buy bread and wine')
  assert.equal(await ann.page.$eval('#note', (note) => note.selectionStart), 'buy bread and wine'.length)
})

test('a second tab is the same person', async () => {
  const second = await ann.tab()
  await shows(bob, 'two tabs', (all) => all.includes('2 tabs'))
  assert.equal((await list(bob)).length, 2)
  await second.close()
  await shows(bob, 'one tab', (all) => !all.includes('tabs'))
  await ann.page.bringToFront()
})

test('name and status are those of all tabs', async () => {
  const second = await bob.tab()
  await second.select('#status', 'busy')
  await second.$eval('#name', (input) => input.select())
  await second.type('#name', 'Robert')
  await until('the first tab has them', async () => (await name(bob)) === 'Robert' && (await bob.page.$eval('#status', (select) => select.value)) === 'busy')
  await bob.page.bringToFront()
  await bob.page.mouse.move(310, 310, { steps: 2 }) // now the first tab is the newer one
  await until('its cursor', async () => Boolean(await cursor(ann, 'Robert')))
  await shows(ann, 'the new name', (all) => all.includes('Robert') && all.includes('Busy'))
  await second.close()
  await bob.page.select('#status', 'online')
  await ann.page.bringToFront()
  await shows(ann, 'one tab', (all) => !all.includes('tabs') && !all.includes('Busy'))
})

test('states of others may be anything', async () => {
  const odd = { toString: null }
  const note = await ann.page.$eval('#note', (note) => note.value)
  for (const state of [{ name: odd }, { name: ' ' }, { since: odd }, { colour: odd }, { colour: 'length' }, { cursor: [odd] }, { cursor: 'ab' }, {},
    { note: [Number.MAX_SAFE_INTEGER, 'for ever'] }, { note: [1e5, 'x'.repeat(501)] }, { note: [odd, odd] }]) {
    const raw = await Raw.open(gateway)
    assert.equal((await raw.join('live', token({ sub: 'odd' }))).status, 'ok')
    raw.send('1', '2', 'live', 'presence', { event: 'track', payload: state })
    assert.equal((await raw.reply('2')).payload.status, 'ok')
    await shows(ann, `somebody: ${JSON.stringify(state)}`, (all) => all.includes('Somebody'))
    raw.send('1', '3', 'live', 'phx_leave', {})
    await shows(ann, 'who is gone', (all) => !all.includes('Somebody'))
    raw.socket.close()
  }
  assert.equal(await ann.page.$eval('#note', (note) => note.value), note)
  nothingWrong()
})

test('a reload changes nothing for others', async () => {
  await until('nobody types', async () => !(await list(bob)).join().includes('Typing'))
  await sleep(3500) // readers of the note have tracked it by now
  await watch(bob)
  const before = await list(ann)
  await ann.page.reload()
  await until('she is back', async () => (await list(ann)).join() === before.join() || (await list(ann)))
  assert.equal(await ann.page.$eval('#note', (note) => note.value), 'buy bread and wine')
  await sleep(2500) // longer than the grace period
  assert.deepEqual(await changes(bob), [])
  nothingWrong()
})

test('who closes the page, and whose page is killed, is gone soon', async () => {
  const [first, second] = [await browser.person(gateway.http), await browser.person(gateway.http)]
  const [one, other] = [await name(first), await name(second)]
  await shows(bob, 'both came', (all) => all.includes(one) && all.includes(other))
  await first.page.close()
  await shows(bob, 'the first is gone', (all) => !all.includes(one) && all.includes(other))
  const session = await second.page.createCDPSession()
  session.send('Page.crash').catch(() => {})
  await shows(bob, 'the second is gone', (all) => !all.includes(other))
  assert.match(await text(bob.page, '#news'), new RegExp(`${other} left`))
  assert.equal((await list(bob)).length, 2)
})

test('by keyboard alone', async () => {
  const of = await name(ann)
  await ann.page.evaluate(() => document.activeElement.blur())
  const stops = []
  for (let n = 0; n < 4; n++) {
    await ann.page.keyboard.press('Tab')
    const stop = await ann.page.evaluate(() => [document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle])
    assert.equal(stop[1], 'solid', `${stop[0]} shows that it has the focus`)
    stops.push(stop[0])
    if (stop[0] === 'board') await ann.page.keyboard.press('ArrowRight')
  }
  assert.deepEqual(stops, ['name', 'status', 'board', 'note'])
  await until('the cursor', async () => (await cursor(bob, of)) === '52% 50%' || cursor(bob, of))
  await until('her own', async () => (await cursor(ann, of)) === '52% 50%')
  await ann.page.focus('#status')
  await ann.page.keyboard.press('b')
  await shows(bob, 'busy', (all) => all.includes('Busy'))
  nothingWrong()
})

test('text is readable in both schemes, and fits 320 pixels', async () => {
  for (const dark of [false, true]) {
    const phone = await browser.person(gateway.http, { width: 320, height: 640, dark, calm: true })
    await until('all three', async () => (await list(phone)).length === 3)
    await phone.page.evaluate(() => { document.querySelector('#typing').textContent = 'Somebody is typing…' })
    const found = await phone.page.evaluate(contrasts)
    assert.ok(found.length > 10)
    assert.deepEqual(found.filter(([, ratio]) => ratio < 4.5), [])
    assert.ok(await phone.page.evaluate(() => document.documentElement.scrollWidth <= 320))
    const moving = await phone.page.evaluate(() => [...document.querySelectorAll('*')].filter((element) =>
      Math.max(parseFloat(getComputedStyle(element).animationDuration), parseFloat(getComputedStyle(element).transitionDuration)) > 0.01).length)
    assert.equal(moving, 0, 'nothing moves for who does not want it')
    assert.deepEqual(phone.wrong, [])
    await phone.page.close()
    await shows(bob, 'two again', (all) => all.split('|').length === 2)
  }
})

test('database and gateway are killed, and come back', async () => {
  const of = await name(ann)
  await ann.page.focus('#note')
  for (const kill of [() => db.restart('immediate'), async () => { await gateway.kill(); await gateway.run() }]) {
    await watch(bob)
    await kill()
    for (const { page } of [ann, bob]) await until('connected', () => page.$eval('#connection.ok', () => true), 30000)
    const before = await ann.page.$eval('#note', (note) => note.value)
    await ann.page.keyboard.type('!')
    await until('the note', async () => (await bob.page.$eval('#note', (note) => note.value)).length === before.length + 1, 30000)
    await sleep(1500)
    for (const person of [ann, bob]) assert.equal((await list(person)).length, 2)
    assert.ok(!(await changes(bob)).some((change) => /childList (people|cursors)|left\./.test(change)), `nobody was seen to go: ${await changes(bob)}`)
  }
  assert.ok((await list(bob)).join().includes(of))
  // Chromium itself logs that the server is not there.
  for (const person of [ann, bob]) person.wrong = person.wrong.filter((wrong) => !/WebSocket connection|ERR_CONNECTION_REFUSED/.test(wrong))
  nothingWrong()
})

test('a visitor stays the same person as long as the token is kept', async () => {
  const ask = async (token, at = gateway.http) => {
    const answer = await fetch(`${at}/anonymous`, { method: 'POST', headers: token ? { authorization: `Bearer ${token}` } : {} })
    return answer.ok ? answer.json() : answer.status
  }
  const visitor = await ask()
  assert.equal((await ask(visitor.access_token)).user_id, visitor.user_id)
  for (const other of [undefined, token({ sub: visitor.user_id }), `${visitor.access_token}x`]) {
    assert.notEqual((await ask(other)).user_id, visitor.user_id, 'only a visitor’s own token stands for a visitor')
  }
  const raw = await Raw.open(gateway)
  assert.equal((await raw.join('visit', visitor.access_token)).status, 'ok')
  raw.send('1', '2', 'visit', 'presence', { event: 'track', payload: {} })
  await raw.reply('2')
  assert.deepEqual((await db.sql(`select member_id from presence.list('visit')`)).map((m) => m.member_id), [visitor.user_id])
  raw.socket.close()
  const closed = await Gateway.start(db)
  assert.equal(await ask(undefined, closed.http), 404)
  assert.equal((await fetch(closed.http)).status, 404)
  await closed.kill()
})

/// Runs in the page: returns each element with text of its own, and the contrast of that text.
function contrasts() {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true })
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1)
    canvas.fillStyle = colour
    canvas.fillRect(0, 0, 1, 1)
    return [...canvas.getImageData(0, 0, 1, 1).data]
  }
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0)
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor)
      if (colour[3] === 255) return colour
    }
    return [255, 255, 255, 255]
  }
  return [...document.querySelectorAll('body *')]
    .filter((element) => element.checkVisibility() && (element.value || [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())))
    .filter((element) => !['STYLE', 'SCRIPT', 'TEMPLATE', 'OPTION'].includes(element.tagName))
    .map((element) => {
      const [a, b] = [light(rgba(getComputedStyle(element).color)), light(behind(element))].sort((a, b) => b - a)
      return [`${element.tagName} ${element.id} ${element.textContent.slice(0, 20)}`, Math.round(((a + 0.05) / (b + 0.05)) * 100) / 100]
    })
}
