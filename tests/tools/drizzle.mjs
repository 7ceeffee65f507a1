// Tests Drizzle with the schema that drizzle-kit wrote.
import assert from 'node:assert/strict'
import { eq, sql } from 'drizzle-orm'
import { drizzle } from 'drizzle-orm/node-postgres'
import { onlineInPresence as online } from './schema.mjs'

const db = drizzle(process.env.DATABASE_URL)
await db.execute(sql`select version from presence.upsert('drizzle', '{"x": 1}')`)
const rows = await db.select({ who: online.memberId, state: online.state }).from(online).where(eq(online.room, 'drizzle'))
assert.deepEqual(rows, [{ who: 'alice', state: { x: 1 } }])
await db.$client.end()
