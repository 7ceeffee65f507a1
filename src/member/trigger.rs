//! The triggers of `presence.member`. BEFORE makes the row right (names, owner, key, version, lease), AFTER notes
//! what happened in the transaction's buffer. Every write passes what they call, by whatever statement: `store`, which
//! spares the executor, calls it by itself.

use super::trigger_call::{Operation, trigger_call};
use super::{after, before, restoring};
use crate::error::{Error, Result};
use crate::pg::function::Call;
use pgrx::pg_sys::{self, Datum};

/// BEFORE INSERT, UPDATE, DELETE (each row) and TRUNCATE.
fn fire_before(call: &Call) -> Result<Option<Datum>> {
    let Some(firing) = trigger_call(call, pg_sys::TRIGGER_EVENT_BEFORE)? else {
        return Err(Error::NoTruncate);
    };
    if firing.intent.system_columns_only {
        return firing.proceed_unchanged();
    }
    if firing.operation == Operation::Insert && !firing.intent.restoring {
        firing.extension.database.copy.wait();
    }
    match firing.operation {
        Operation::Insert if firing.intent.restoring => restoring::before(&firing),
        Operation::Delete if is_replica() => firing.proceed_unchanged(),
        _ if is_replica() => before::replicated(&firing),
        Operation::Insert => before::insert(&firing),
        Operation::Update => before::update(&firing),
        Operation::Delete => before::delete(&firing),
    }
}

/// Whether this session applies changes of another server: then values stay as given.
pub fn is_replica() -> bool {
    // SAFETY: a plain setting.
    unsafe { pg_sys::SessionReplicationRole == pg_sys::SESSION_REPLICATION_ROLE_REPLICA as i32 }
}

/// AFTER INSERT, UPDATE, DELETE, each row.
fn fire_after(call: &Call) -> Result<Option<Datum>> {
    if let Some(firing) = trigger_call(call, pg_sys::TRIGGER_EVENT_AFTER)?
        && !firing.intent.system_columns_only
    {
        match firing.operation {
            Operation::Insert if firing.intent.restoring => restoring::after(&firing)?,
            Operation::Insert => after::insert(&firing)?,
            Operation::Update => after::update(&firing)?,
            Operation::Delete => after::delete(&firing)?,
        }
    }
    Ok(Some(Datum::from(0)))
}

crate::sql_function!(presence_member_before, pg_finfo_presence_member_before, fire_before);
crate::sql_function!(presence_member_after, pg_finfo_presence_member_after, fire_after);
