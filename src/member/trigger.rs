//! The triggers of `presence.member`. Every write passes them, by whatever statement: BEFORE makes the row right
//! (names, owner, key, version, lease), AFTER notes what happened in the transaction's buffer.

use super::intent::{self, Intent};
use super::row::{Column, Row};
use super::{after, before};
use crate::error::{Error, Result};
use crate::extension::{self, Extension};
use crate::identity::{self, Identity};
use crate::sqlfn::Call;
use pgrx::pg_sys::{self, Datum};
use std::rc::Rc;

/// What listeners hear of.
pub const TOLD: [Column; 5] =
    [Column::Status, Column::State, Column::Metadata, Column::Audience, Column::UserId];

/// What decides who sees a member: with a change of these somebody may lose sight of it.
pub const SEEN_BY: [Column; 2] = [Column::Audience, Column::UserId];

pub struct Firing<'a> {
    data: &'a pg_sys::TriggerData,
    pub extension: Extension,
    pub intent: Intent,
}

enum Operation {
    Insert,
    Update,
    Delete,
    Truncate,
}

impl Firing<'_> {
    fn of(call: &Call) -> Result<Firing<'_>> {
        let data = call.trigger().ok_or(Error::InvalidArgument {
            argument: "call",
            why: "This function is a trigger of presence.member.".into(),
        })?;
        Ok(Firing { data, extension: extension::current()?, intent: intent::current() })
    }

    /// Who writes: the caller of a verb, whatever the rights it writes with; else the current role.
    pub fn identity(&self) -> Result<Rc<Identity>> {
        self.intent.caller.clone().map_or_else(|| identity::current(&self.extension), Ok)
    }

    fn operation(&self) -> Operation {
        match self.data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
            pg_sys::TRIGGER_EVENT_INSERT => Operation::Insert,
            pg_sys::TRIGGER_EVENT_UPDATE => Operation::Update,
            pg_sys::TRIGGER_EVENT_DELETE => Operation::Delete,
            _ => Operation::Truncate,
        }
    }

    /// The row before an UPDATE or DELETE, or the row of an INSERT.
    pub fn first(&self) -> Result<Row> {
        // SAFETY: the tuple of this trigger's relation.
        unsafe { Row::read(self.data.tg_trigtuple, self.data.tg_relation) }
    }

    /// The row after an UPDATE.
    pub fn second(&self) -> Result<Row> {
        // SAFETY: an UPDATE has a new tuple.
        unsafe { Row::read(self.data.tg_newtuple, self.data.tg_relation) }
    }

    /// The row as it would be stored.
    pub fn newest(&self) -> Result<Row> {
        match self.operation() {
            Operation::Update => self.second(),
            _ => self.first(),
        }
    }

    /// Carry on with this row.
    pub fn proceed(&self, mut row: Row) -> Result<Option<Datum>> {
        // SAFETY: the row was read from this relation.
        Ok(Some(Datum::from(unsafe { row.form(self.data.tg_relation) })))
    }

    /// Carry on with the row as it is.
    pub fn proceed_unchanged(&self) -> Result<Option<Datum>> {
        let tuple = match self.operation() {
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
    let firing = Firing::of(call)?;
    if firing.intent.technical {
        return firing.proceed_unchanged();
    }
    let replicated = is_replica();
    match firing.operation() {
        Operation::Insert | Operation::Update if replicated => before::replicated(&firing),
        Operation::Delete if replicated => firing.proceed_unchanged(),
        Operation::Insert => before::insert(&firing),
        Operation::Update => before::update(&firing),
        Operation::Delete => before::delete(&firing),
        Operation::Truncate => Err(Error::NoTruncate),
    }
}

/// Whether this session applies what another server has decided: then values stay as they were given.
pub fn is_replica() -> bool {
    // SAFETY: a plain setting.
    unsafe { pg_sys::SessionReplicationRole == pg_sys::SESSION_REPLICATION_ROLE_REPLICA as i32 }
}

/// AFTER INSERT, UPDATE, DELETE, each row.
fn fire_after(call: &Call) -> Result<Option<Datum>> {
    let firing = Firing::of(call)?;
    if !firing.intent.technical {
        match firing.operation() {
            Operation::Insert => after::insert(&firing)?,
            Operation::Update => after::update(&firing)?,
            Operation::Delete => after::delete(&firing)?,
            Operation::Truncate => {}
        }
    }
    Ok(Some(Datum::from(0)))
}

crate::sql_function!(presence_member_before, pg_finfo_presence_member_before, fire_before);
crate::sql_function!(presence_member_after, pg_finfo_presence_member_after, fire_after);
