// Users with Chromium: each has a separate browser context, and collects what the page did wrong.
import { execFileSync } from 'node:child_process'
import { mkdtempSync } from 'node:fs'
import { dirname, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import puppeteer from 'puppeteer-core'

const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..')

/// Makes the folder for --page.
export function page(dir) {
  const folder = mkdtempSync(`${dir}/page.`)
  execFileSync(`${root}/scripts/live-page`, [folder])
  return folder
}

export class Browser {
  static async start() {
    const browser = new Browser()
    browser.process = await puppeteer.launch({
      executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
      args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--disable-background-timer-throttling', '--disable-renderer-backgrounding',
        '--disable-backgrounding-occluded-windows', '--force-color-profile=srgb'],
    })
    return browser
  }

  close() {
    return this.process.close()
  }

  /// A user with separate storage. `tab()` opens the page in another tab.
  async person(address, { width = 1100, height = 700, dark = false, calm = false } = {}) {
    const context = await this.process.createBrowserContext()
    const person = { context, wrong: [], pages: [] }
    person.tab = async () => {
      const tab = await context.newPage()
      await tab.setViewport({ width, height, deviceScaleFactor: width < 500 ? 2 : 1, isMobile: width < 500, hasTouch: width < 500 })
      await tab.emulateMediaFeatures([
        { name: 'prefers-color-scheme', value: dark ? 'dark' : 'light' },
        { name: 'prefers-reduced-motion', value: calm ? 'reduce' : 'no-preference' },
      ])
      tab.on('console', (message) => person.wrong.push(`console: ${message.text()}`))
      tab.on('pageerror', (error) => person.wrong.push(`error: ${error.message}`))
      tab.on('request', (request) => {
        const url = request.url()
        if (!url.startsWith('data:') && new URL(url).host !== new URL(address).host) person.wrong.push(`elsewhere: ${url}`)
      })
      await tab.goto(address)
      await tab.waitForFunction(() => document.querySelector('#connection.ok') && document.querySelector('#people li'))
      person.pages.push(tab)
      return tab
    }
    person.page = await person.tab()
    return person
  }
}
