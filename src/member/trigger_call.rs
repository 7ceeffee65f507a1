//! What a trigger of `presence.member` is called with.

use super::column::Column;
use super::intent::{self, Intent};
use super::layout::Layout;
use super::revert::{Given, Set, Wish};
use super::row::Row;
use crate::access::identity::{self, Identity};
use crate::clock;
use crate::error::{Error, Result};
use crate::extension::{self, Extension};
use crate::pg::function::Call;
use pgrx::pg_sys::{self, Datum};
use std::rc::Rc;

/// The columns shown in events.
pub const PUBLISHED_COLUMNS: [Column; 5] =
    [Column::Status, Column::State, Column::Metadata, Column::Audience, Column::UserId];

/// The columns that decide who sees a member: a change of these may hide it from somebody.
pub const VISIBILITY_COLUMNS: [Column; 2] = [Column::Audience, Column::UserId];

/// One row that a statement writes.
pub struct TriggerCall<'a> {
    pub data: &'a pg_sys::TriggerData,
    pub extension: Extension,
    pub intent: Rc<Intent>,
    pub operation: Operation,
    /// The row before an UPDATE or DELETE, or the row of an INSERT.
    pub first: Row,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Insert,
    Update,
    Delete,
}

/// The trigger's call; None for TRUNCATE. Rows of another table, or other arguments, must not be read as members.
pub fn trigger_call<'a>(call: &'a Call, timing: u32) -> Result<Option<TriggerCall<'a>>> {
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
    // Whatever hash is given for a row that is about to be inserted.
    let is_new = operation == Operation::Insert && timing == pg_sys::TRIGGER_EVENT_BEFORE;
    let key = if is_new { first.make_key(&extension) } else { first.key(&extension) };
    let intent = intent::of(key.hash);
    Ok(Some(TriggerCall { data, extension, intent, operation, first }))
}

impl TriggerCall<'_> {
    /// The writer: the caller of a verb, whatever rights it writes with; otherwise the current role.
    pub fn identity(&self) -> Result<Rc<Identity>> {
        self.intent.caller.clone().map_or_else(|| identity::current(&self.extension), Ok)
    }

    /// The intent for an UPDATE of this row. Without one, what it sets is set for good.
    pub fn intent_for(&self, old: &Row) -> Rc<Intent> {
        if self.intent.wish.is_some() || old.get(Column::Reverts).is_none() {
            return self.intent.clone();
        }
        let sets = |column: Column| {
            let number = column as i32 + 1 - pg_sys::FirstLowInvalidHeapAttributeNumber;
            // SAFETY: the columns that the statement sets, or null, which is the empty set.
            unsafe { pg_sys::bms_is_member(number, self.data.tg_updatedcols) }
        };
        let state = if sets(Column::State) { Given::All } else { Given::Nothing };
        let set = Set { status: sets(Column::Status), state };
        let wish = Wish { as_of: clock::boot(), set, revert_after: None };
        Rc::new(Intent { wish: Some(Rc::new(wish)), ..Intent::clone(&self.intent) })
    }

    /// The row after an UPDATE.
    pub fn second(&self) -> Result<Row> {
        // SAFETY: an UPDATE has a new tuple.
        unsafe { Row::read(self.data.tg_newtuple, self.data.tg_relation) }
    }

    /// The row that would be stored.
    pub fn newest(&self) -> Result<Row> {
        match self.operation {
            Operation::Update => self.second(),
            _ => Ok(self.first.clone()),
        }
    }

    /// Continue with this row.
    pub fn proceed(&self, mut row: Row) -> Result<Option<Datum>> {
        // SAFETY: the row was read from this relation.
        let tuple = unsafe { row.form(Layout::of((*self.data.tg_relation).rd_att)?) };
        Ok(Some(Datum::from(tuple)))
    }

    /// Continue with the row as it is.
    pub fn proceed_unchanged(&self) -> Result<Option<Datum>> {
        let tuple = match self.operation {
            Operation::Update => self.data.tg_newtuple,
            _ => self.data.tg_trigtuple,
        };
        Ok(Some(Datum::from(tuple)))
    }

    /// Skip this row: a null pointer that is not SQL NULL.
    pub fn skip(&self) -> Result<Option<Datum>> {
        Ok(Some(Datum::from(0)))
    }
}
