//! What a room's row says about those who enter.

use crate::error::Result;
use crate::extension::Extension;
use crate::pg::datum::{interval_of, varlena};
use crate::pg::role::as_role;
use crate::pg::spi::{Connection, Statement};
use pgrx::pg_sys;

/// What a room's row says about those who enter.
#[derive(Default)]
pub struct Defaults {
    /// Microseconds.
    pub ttl: Option<u64>,
    pub audience: Option<Vec<Vec<u8>>>,
}

static DEFAULTS: Statement = Statement {
    sql: c"select ttl, audience from presence.room where room operator(pg_catalog.=) $1 and (ttl is not null or audience is not null)",
    arguments: &[pg_sys::TEXTOID],
};

/// The defaults of a room that has a row, read with the owner's rights.
pub fn defaults(extension: &Extension, room: &[u8]) -> Result<Defaults> {
    as_role(extension.owner_role, || {
        let connection = Connection::open()?;
        let rows = connection.run(&DEFAULTS, &[Some(varlena(room))], false)?;
        Ok(Defaults {
            // SAFETY: an interval.
            ttl: rows.get(0, 0).map(|ttl| unsafe { interval_of(ttl) } as u64),
            audience: rows.texts(0, 1).map(|tokens| tokens.iter().map(<[u8]>::to_vec).collect()),
        })
    })
}

static COUNT_AUDIENCE: Statement = Statement {
    sql: c"select count_audience from presence.room where room operator(pg_catalog.=) $1",
    arguments: &[pg_sys::TEXTOID],
};

/// Who may have the full numbers of a room, whose members they may not see; None where nobody said so. Read with the
/// owner's rights.
pub fn count_audience(extension: &Extension, room: &[u8]) -> Result<Option<Vec<Vec<u8>>>> {
    as_role(extension.owner_role, || {
        let connection = Connection::open()?;
        let rows = connection.run(&COUNT_AUDIENCE, &[Some(varlena(room))], false)?;
        Ok(rows.texts(0, 0).map(|tokens| tokens.iter().map(<[u8]>::to_vec).collect()))
    })
}
