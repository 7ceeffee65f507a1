"""What docs/drivers.md says of types, for psycopg 3 and asyncpg: types_of_drivers.py SOCKET_DIRECTORY."""

import asyncio
import datetime
import json
import sys

import asyncpg
import psycopg
from psycopg.types.json import Jsonb

MINUTE = datetime.timedelta(seconds=60)
ROW = """select version, ttl, state, audience, joined_at
         from presence.upsert('types', '{"a": [1]}', audience => '{users}', ttl => '90 s')"""
SESSION = "select expires_at from presence.upsert('types', connection_id => 'session', session => true)"
COMPOSITE = "select presence.upsert('types')"
where = {"host": sys.argv[1], "user": "alice"}


def check(version, ttl, state, audience, joined_at):
    assert type(version) is int
    assert ttl == datetime.timedelta(seconds=90)
    assert state == {"a": [1]}
    assert audience == ["users"]
    assert joined_at.tzinfo is not None


with psycopg.connect(**where, dbname="app", autocommit=True) as db:
    check(*db.execute(ROW).fetchone())
    assert db.execute(SESSION).fetchone() == (None,)
    assert type(db.execute(COMPOSITE).fetchone()[0]) is str
    for ttl in (MINUTE, "60 s"):
        assert db.execute("select ttl from presence.upsert('types', ttl => %s)", [ttl]).fetchone() == (MINUTE,)
    try:
        db.execute("select presence.upsert('types', ttl => %s)", [60])
        raise AssertionError("a number was taken as a ttl")
    except psycopg.errors.UndefinedFunction:
        pass
    for state in ({"x": 1}, [1, 2]):
        assert db.execute("select state from presence.upsert('types', %s)", [Jsonb(state)]).fetchone() == (state,)
    assert db.execute("select state from presence.upsert('types', %s)", [None]).fetchone() == ([1, 2],)
    assert db.execute("select audience from presence.upsert('types', audience => %s)", [["users"]]).fetchone() == (
        ["users"],
    )


async def main():
    db = await asyncpg.connect(**where, database="app")
    assert type((await db.fetchrow(ROW))["state"]) is str
    assert (await db.fetchval(COMPOSITE))["member_id"] == "alice"
    await db.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
    check(*await db.fetchrow(ROW))
    assert await db.fetchval(SESSION) is None
    try:
        await db.fetchval(COMPOSITE)
        raise AssertionError("a row as one value was read with a codec of text")
    except asyncpg.UnsupportedClientFeatureError:
        pass
    assert await db.fetchval("select ttl from presence.upsert('types', ttl => $1)", MINUTE) == MINUTE
    for ttl in ("60 s", 60):
        try:
            await db.fetchval("select ttl from presence.upsert('types', ttl => $1)", ttl)
            raise AssertionError(f"{ttl!r} was taken as a ttl")
        except asyncpg.DataError:
            pass
    for state in ({"x": 1}, [1, 2]):
        assert await db.fetchval("select state from presence.upsert('types', $1)", state) == state
    assert await db.fetchval("select audience from presence.upsert('types', audience => $1)", ["users"]) == ["users"]
    await db.close()


asyncio.run(main())
