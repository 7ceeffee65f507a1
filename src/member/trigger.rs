//! The triggers of `presence.member`. Every write passes them, by whatever statement: BEFORE makes the row right
//! (names, owner, key, version, lease), AFTER notes what happened in the transaction's buffer.

use super::column::Column;
use super::intent::{self, Intent};
use super::row::Row;
use super::{after, before};
use crate::access::identity::{self, Identity};
use crate::error::{Error, Result};
use crate::extension::{self, Extension};
use crate::pg::function::Call;
use pgrx::pg_sys::{self, Datum};
use std::rc::Rc;

/// What listeners hear of.
pub const TOLD: [Column; 5] =
    [Column::Status, Column::State, Column::Metadata, Column::Audience, Column::UserId];

/// What decides who sees a member: with a change of these somebody may lose sight of it.
pub const SEEN_BY: [Column; 2] = [Column::Audience, Column::UserId];

/// One row that a statement writes.
pub struct Firing<'a> {
    data: &'a pg_sys::TriggerData,
    pub extension: Extension,
    pub intent: Rc<Intent>,
    operation: Operation,
    /// The row before an UPDATE or DELETE, or the row of an INSERT.
    pub first: Row,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Insert,
    Update,
    Delete,
}

/// The trigger's call; None is the statement that truncates. Rows of another table, or what a statement passes, must
/// not be read as if they were members.
fn firing<'a>(call: &'a Call, timing: u32) -> Result<Option<Firing<'a>>> {
    let extension = extension::current()?;
    let not_ours = Error::NotItsTrigger { table: "presence.member" };
    let Some(data) = call.trigger() else { return Err(not_ours) };
    // SAFETY: a trigger's relation is open.
    let table = unsafe { (*data.tg_relation).rd_id };
    if table != extension.member || data.tg_event & pg_sys::TRIGGER_EVENT_TIMINGMASK != timing {
        return Err(not_ours);
    }
    let is_row = data.tg_event & pg_sys::TRIGGER_EVENT_ROW != 0;
    let operation = match data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
        pg_sys::TRIGGER_EVENT_INSERT if is_row => Operation::Insert,
        pg_sys::TRIGGER_EVENT_UPDATE if is_row => Operation::Update,
        pg_sys::TRIGGER_EVENT_DELETE if is_row => Operation::Delete,
        pg_sys::TRIGGER_EVENT_TRUNCATE => return Ok(None),
        _ => return Err(not_ours),
    };
    // SAFETY: the tuple of this trigger's relation.
    let first = unsafe { Row::read(data.tg_trigtuple, data.tg_relation)? };
    let intent = intent::of(first.key(&extension).hash);
    Ok(Some(Firing { data, extension, intent, operation, first }))
}

impl Firing<'_> {
    /// Who writes: the caller of a verb, whatever the rights it writes with; else the current role.
    pub fn identity(&self) -> Result<Rc<Identity>> {
        self.intent.caller.clone().map_or_else(|| identity::current(&self.extension), Ok)
    }

    /// The row after an UPDATE.
    pub fn second(&self) -> Result<Row> {
        // SAFETY: an UPDATE has a new tuple.
        unsafe { Row::read(self.data.tg_newtuple, self.data.tg_relation) }
    }

    /// The row as it would be stored.
    pub fn newest(&self) -> Result<Row> {
        match self.operation {
            Operation::Update => self.second(),
            _ => Ok(self.first.clone()),
        }
    }

    /// Carry on with this row.
    pub fn proceed(&self, mut row: Row) -> Result<Option<Datum>> {
        // SAFETY: the row was read from this relation.
        Ok(Some(Datum::from(unsafe { row.form(self.data.tg_relation) })))
    }

    /// Carry on with the row as it is.
    pub fn proceed_unchanged(&self) -> Result<Option<Datum>> {
        let tuple = match self.operation {
            Operation::Update => self.data.tg_newtuple,
            _ => self.data.tg_trigtuple,
        };
        Ok(Some(Datum::from(tuple)))
    }

    /// Leave this row alone: a null pointer that is not SQL NULL.
    pub fn skip(&self) -> Result<Option<Datum>> {
        Ok(Some(Datum::from(0)))
    }
}

/// BEFORE INSERT, UPDATE, DELETE (each row) and TRUNCATE.
fn fire_before(call: &Call) -> Result<Option<Datum>> {
    let Some(firing) = firing(call, pg_sys::TRIGGER_EVENT_BEFORE)? else { return Err(Error::NoTruncate) };
    if firing.intent.system_columns_only {
        return firing.proceed_unchanged();
    }
    match firing.operation {
        Operation::Delete if is_replica() => firing.proceed_unchanged(),
        _ if is_replica() => before::replicated(&firing),
        Operation::Insert => before::insert(&firing),
        Operation::Update => before::update(&firing),
        Operation::Delete => before::delete(&firing),
    }
}

/// Whether this session applies what another server has decided: then values stay as they were given.
pub fn is_replica() -> bool {
    // SAFETY: a plain setting.
    unsafe { pg_sys::SessionReplicationRole == pg_sys::SESSION_REPLICATION_ROLE_REPLICA as i32 }
}

/// AFTER INSERT, UPDATE, DELETE, each row.
fn fire_after(call: &Call) -> Result<Option<Datum>> {
    if let Some(firing) = firing(call, pg_sys::TRIGGER_EVENT_AFTER)?
        && !firing.intent.system_columns_only
    {
        match firing.operation {
            Operation::Insert => after::insert(&firing)?,
            Operation::Update => after::update(&firing)?,
            Operation::Delete => after::delete(&firing)?,
        }
    }
    Ok(Some(Datum::from(0)))
}

crate::sql_function!(presence_member_before, pg_finfo_presence_member_before, fire_before);
crate::sql_function!(presence_member_after, pg_finfo_presence_member_after, fire_after);
