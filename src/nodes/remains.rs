//! What a server has left here: its beat, and the rows of its members.

use super::row::{Shared, SharedRow};
use super::{events, unreachable};
use crate::error::Result;
use crate::event::record::Reason;
use crate::extension::Extension;
use crate::pg::datum::varlena;
use crate::pg::spi::{Connection, Statement};
use crate::settings;
use crate::worker::copy;
use pgrx::pg_sys;

static BEAT: Statement = Statement {
    sql: c"delete from presence.node where node operator(pg_catalog.=) $1",
    arguments: &[pg_sys::TEXTOID],
};

static OF_USER: Statement = Statement {
    sql: c"delete from presence.shared
           where user_id operator(pg_catalog.=) $1 and node operator(pg_catalog.<>) $2 returning *",
    arguments: &[pg_sys::TEXTOID, pg_sys::TEXTOID],
};

static MEMBERS: Statement = Statement {
    sql: c"delete from presence.shared where node operator(pg_catalog.=) $1",
    arguments: &[pg_sys::TEXTOID],
};

pub fn delete_beat(connection: &Connection, node: &[u8]) -> Result<()> {
    connection.run(&BEAT, &[Some(varlena(node))], true).map(|_| ())
}

/// How many there were.
pub fn delete_members(connection: &Connection, node: &[u8]) -> Result<usize> {
    unreachable::remove_up_to(connection, node, None)?;
    Ok(connection.run(&MEMBERS, &[Some(varlena(node))], true)?.count)
}

/// `presence.forget`: delete the user's rows of other servers, or of this one under another name. Our own rows go when the
/// leaves are published. Returns how many there were.
///
/// Whoever is told as present leaves with this: what their server says later finds no row, and is told to nobody.
pub fn forget(extension: &Extension, connection: &Connection, user_id: &[u8]) -> Result<usize> {
    if !copy::is_there() {
        return Ok(0);
    }
    let name = settings::node_name().unwrap_or_default();
    let rows = connection.run(&OF_USER, &[Some(varlena(user_id)), Some(varlena(&name))], true)?;
    for (tuple, descriptor) in rows.tuples() {
        // SAFETY: a row of the table, which lives as long as the rows.
        let row = unsafe { SharedRow::deform(tuple, descriptor) }?;
        let node = row.text(Shared::Node).unwrap_or_default();
        unreachable::exclude_the_worker(extension, node);
        if unreachable::contains_now(extension, &row)? {
            unreachable::remove(extension, &row)?;
        } else if row.get(Shared::Reason).is_none()
            && extension.database.heard.is_told(extension.node_hash(node))
        {
            events::left(extension, &row, Reason::Left);
        }
    }
    Ok(rows.count)
}
