//! Members of other servers that listeners were told have left, because their server is silent: their rows stay, as do these
//! marks beside them, until it is heard again. The worker tells of all members of a server so, and of their return, part by
//! part; in between whoever applies what the server sends goes by the marks. What both do is in order, since they exclude
//! each other, server by server.

use super::row::{Shared, SharedRow};
use crate::error::Result;
use crate::extension::Extension;
use crate::pg::datum::{text_array, varlena};
use crate::pg::own_lock;
use crate::pg::role::as_role;
use crate::pg::rows::Rows;
use crate::pg::spi::{Connection, Statement};
use pgrx::pg_sys::{self, Datum, Oid};

const KEY: [Shared; 4] = [Shared::Node, Shared::Room, Shared::MemberId, Shared::ConnectionId];
const KEY_TYPES: [Oid; 4] = [pg_sys::TEXTOID; 4];

static CONTAINS: Statement = Statement {
    sql: c"select from _presence._unreachable
           where node operator(pg_catalog.=) $1 and room operator(pg_catalog.=) $2
             and member_id operator(pg_catalog.=) $3 and connection_id operator(pg_catalog.=) $4",
    arguments: &KEY_TYPES,
};

static REMOVE: Statement = Statement {
    sql: c"delete from _presence._unreachable
           where node operator(pg_catalog.=) $1 and room operator(pg_catalog.=) $2
             and member_id operator(pg_catalog.=) $3 and connection_id operator(pg_catalog.=) $4",
    arguments: &KEY_TYPES,
};

static FORGET: Statement = Statement {
    sql: c"delete from _presence._unreachable where node operator(pg_catalog.=) $1",
    arguments: &[pg_sys::TEXTOID],
};

/// Of a server's members that are told as present, in order, behind one of them.
static PRESENT: Statement = Statement {
    sql: c"select s.* from presence.shared s
           where s.node operator(pg_catalog.=) $1 and s.reason is null
             and (s.room, s.member_id, s.connection_id) operator(pg_catalog.>) ($2, $3, $4)
             and not exists (select from _presence._unreachable u
                             where u.node operator(pg_catalog.=) s.node and u.room operator(pg_catalog.=) s.room
                               and u.member_id operator(pg_catalog.=) s.member_id
                               and u.connection_id operator(pg_catalog.=) s.connection_id)
           order by s.room, s.member_id, s.connection_id limit 256",
    arguments: &KEY_TYPES,
};

static ADD_ALL: Statement = Statement {
    sql: c"insert into _presence._unreachable (node, room, member_id, connection_id)
           select $1, pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4)
           on conflict do nothing",
    arguments: &[pg_sys::TEXTOID, pg_sys::TEXTARRAYOID, pg_sys::TEXTARRAYOID, pg_sys::TEXTARRAYOID],
};

/// Of those that are told as gone.
static GONE: Statement = Statement {
    sql: c"select s.* from _presence._unreachable u
           join presence.shared s on s.room operator(pg_catalog.=) u.room and s.member_id operator(pg_catalog.=) u.member_id
                and s.connection_id operator(pg_catalog.=) u.connection_id and s.node operator(pg_catalog.=) u.node
           where u.node operator(pg_catalog.=) $1
             and (u.room, u.member_id, u.connection_id) operator(pg_catalog.>) ($2, $3, $4)
           order by u.room, u.member_id, u.connection_id limit 256",
    arguments: &KEY_TYPES,
};

static REMOVE_UP_TO: Statement = Statement {
    sql: c"delete from _presence._unreachable
           where node operator(pg_catalog.=) $1
             and (room, member_id, connection_id) operator(pg_catalog.<=) ($2, $3, $4)",
    arguments: &KEY_TYPES,
};

fn key(row: &SharedRow) -> [Option<Datum>; 4] {
    KEY.map(|column| Some(varlena(row.text(column).unwrap_or_default())))
}

/// For who applies what this server sends: until this transaction ends the worker takes no further step with it, and we have
/// waited for the one that it was at.
pub fn exclude_the_worker(extension: &Extension, node: &[u8]) {
    own_lock::share(extension.node_hash(node));
}

/// For the worker, until its transaction ends. False: somebody applies something of this server just now.
pub fn exclude_appliers(extension: &Extension, node: &[u8]) -> bool {
    own_lock::try_exclusive(extension.node_hash(node))
}

/// Whether this one is told as gone, as the active snapshot has it.
pub fn contains(extension: &Extension, row: &SharedRow) -> Result<bool> {
    look(extension, row, false)
}

/// The same as it is now: for who excludes the worker.
pub fn contains_now(extension: &Extension, row: &SharedRow) -> Result<bool> {
    look(extension, row, true)
}

fn look(extension: &Extension, row: &SharedRow, now: bool) -> Result<bool> {
    as_role(extension.owner_role, || Ok(Connection::open()?.run(&CONTAINS, &key(row), now)?.count > 0))
}

pub fn add(extension: &Extension, row: &SharedRow) -> Result<()> {
    let node = row.text(Shared::Node).unwrap_or_default();
    as_role(extension.owner_role, || add_all(&Connection::open()?, node, &[Place::of(row)]))
}

pub fn remove(extension: &Extension, row: &SharedRow) -> Result<()> {
    as_role(extension.owner_role, || Connection::open()?.run(&REMOVE, &key(row), true).map(|_| ()))
}

/// Nothing was told of this server's members.
pub fn forget(extension: &Extension, node: &[u8]) -> Result<()> {
    as_role(extension.owner_role, || remove_up_to(&Connection::open()?, node, None))
}

/// A place in the order of a server's members.
#[derive(Clone, Default)]
pub struct Place([Vec<u8>; 3]);

impl Place {
    pub fn of(row: &SharedRow) -> Place {
        Place(
            [Shared::Room, Shared::MemberId, Shared::ConnectionId]
                .map(|column| row.text(column).unwrap_or_default().to_vec()),
        )
    }

    fn values(&self, node: &[u8]) -> [Option<Datum>; 4] {
        let [room, member_id, connection_id] = &self.0;
        [node, room, member_id, connection_id].map(|text| Some(varlena(text)))
    }
}

/// The next members of a server that are told as present. Looked for behind the lock: by a snapshot from before, what was
/// applied last would be missing.
pub fn next_present<'c>(connection: &'c Connection, node: &[u8], behind: &Place) -> Result<Rows<'c>> {
    connection.run(&PRESENT, &behind.values(node), true)
}

/// The next of those that are told as gone and whose rows are there.
pub fn next_gone<'c>(connection: &'c Connection, node: &[u8], behind: &Place) -> Result<Rows<'c>> {
    connection.run(&GONE, &behind.values(node), true)
}

pub fn add_all(connection: &Connection, node: &[u8], members: &[Place]) -> Result<()> {
    let column = |at: usize| Some(text_array(members.iter().map(|Place(key)| &key[at])));
    connection.run(&ADD_ALL, &[Some(varlena(node)), column(0), column(1), column(2)], true).map(|_| ())
}

/// The marks up to this place; without one, all.
pub fn remove_up_to(connection: &Connection, node: &[u8], place: Option<&Place>) -> Result<()> {
    let removed = match place {
        Some(place) => connection.run(&REMOVE_UP_TO, &place.values(node), true),
        None => connection.run(&FORGET, &[Some(varlena(node))], true),
    };
    removed.map(|_| ())
}
