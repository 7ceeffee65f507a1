//! The beat: one small row that says that this server is alive, and that all before it is copied.

use crate::error::Result;
use crate::extension::{self, Extension};
use crate::pg::datum::varlena;
use crate::pg::spi::{Connection, Statement};
use crate::shared::control;
use pgrx::pg_sys::{self, Datum};
use std::sync::atomic::Ordering::*;

static BEAT: Statement = Statement {
    sql: c"insert into presence.node as n (node, epoch, beat, beat_at, state, members, floor, library)
           values ($1, $2, 1, pg_catalog.clock_timestamp(), $3, $4, $5, $6)
           on conflict (node) do update
           set epoch = excluded.epoch, beat = coalesce(n.beat, 0) operator(pg_catalog.+) 1, beat_at = excluded.beat_at,
               state = excluded.state, members = excluded.members, floor = excluded.floor, library = excluded.library
           returning n.beat",
    arguments: &[
        pg_sys::TEXTOID,
        pg_sys::INT8OID,
        pg_sys::TEXTOID,
        pg_sys::INT8OID,
        pg_sys::INT8OID,
        pg_sys::TEXTOID,
    ],
};

/// No version or seq was issued above the floor: a promoted server continues there.
pub fn write(extension: &Extension, node: &[u8], members: Option<i64>, state: &str) -> Result<()> {
    let values = [
        Some(varlena(node)),
        Some(Datum::from(extension.database.copy.epoch() as i64)),
        Some(varlena(state.as_bytes())),
        members.map(Datum::from),
        Some(Datum::from(control().floor.load(Acquire) as i64)),
        Some(varlena(extension::LIBRARY_VERSION.as_bytes())),
    ];
    let connection = Connection::open()?;
    let beat = connection.run(&BEAT, &values, true)?.number(0, 0);
    let epoch = extension.database.copy.epoch();
    extension.database.heard.note_own(extension.node_hash(node), epoch, beat);
    Ok(())
}
