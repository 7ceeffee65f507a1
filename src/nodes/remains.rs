//! What a server has left here: its beat, and the rows of its members.

use super::unreachable;
use crate::error::Result;
use crate::pg::datum::varlena;
use crate::pg::spi::{Connection, Statement};
use pgrx::pg_sys;

static BEAT: Statement = Statement {
    sql: c"delete from presence.node where node operator(pg_catalog.=) $1",
    arguments: &[pg_sys::TEXTOID],
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
