//! What all verbs begin with: this server takes writes, and who was here before it crashed is here again.

use crate::error::{Error, Result};
use crate::extension::{self, Extension};
use crate::pg::function::Call;
use crate::pg::snapshot::with_statement_snapshot;
use pgrx::pg_sys::{self, Datum};

/// Define the C function of a verb: like `sql_function!`, with its name for errors.
#[macro_export]
macro_rules! verb {
    ($symbol:ident, $info:ident, $name:literal, $body:path) => {
        $crate::sql_function!($symbol, $info, |call| $crate::member::verb::enter(call, $name, $body));
    };
}

pub fn enter(
    call: &Call,
    what: &'static str,
    body: fn(&Call, Extension) -> Result<Option<Datum>>,
) -> Result<Option<Datum>> {
    require_no_standby(what)?;
    let extension = extension::current()?;
    match extension.database.copy.wait() {
        false => body(call, extension),
        // The statement's snapshot is older than the restore.
        true => with_statement_snapshot(|| body(call, extension)),
    }
}

pub fn require_no_standby(what: &'static str) -> Result<()> {
    // SAFETY: a look-up in shared memory, once no more than a variable.
    if unsafe { pg_sys::RecoveryInProgress() } { Err(Error::OnStandby { what }) } else { Ok(()) }
}
