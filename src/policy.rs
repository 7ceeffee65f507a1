//! Whether the SELECT policies on `presence.member` are the built-in ones. As soon as they are not, events cannot
//! be routed by audience alone: notifications become doorbells, and the log shows ordinary roles nothing until it
//! gets policies of its own.

use crate::error::Result;
use crate::extension::{self, Extension};
use crate::spi::{self, Connection, Statement};
use crate::sqlfn::Call;
use pgrx::pg_sys::Datum;
use std::cell::Cell;

static IS_BUILTIN: Statement = Statement {
    sql: c"select s.policies operator(pg_catalog.=) presence._policies('presence.member'::pg_catalog.regclass) from presence.secret s",
    arguments: &[],
};

thread_local! {
    /// The answer, for as long as nothing changed the table's definition.
    static KNOWN: Cell<Option<(u64, bool)>> = const { Cell::new(None) };
}

pub fn is_builtin(extension: &Extension) -> Result<bool> {
    let epoch = extension::epoch();
    if let Some((at, answer)) = KNOWN.get()
        && at == epoch
    {
        return Ok(answer);
    }
    let answer = spi::as_role(extension.owner, || {
        let connection = Connection::open()?;
        let rows = connection.run(&IS_BUILTIN, &[], false)?;
        Ok(rows.get(0, 0).is_some_and(|same| same.value() as u8 != 0))
    })?;
    KNOWN.set(Some((epoch, answer)));
    Ok(answer)
}

/// SQL `presence._has_builtin_policies()`.
fn has_builtin_policies(_call: &Call) -> Result<Option<Datum>> {
    Ok(Some(Datum::from(is_builtin(&extension::current()?)?)))
}

crate::sql_function!(
    presence_has_builtin_policies,
    pg_finfo_presence_has_builtin_policies,
    has_builtin_policies
);
