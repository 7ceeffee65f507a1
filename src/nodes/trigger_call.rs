//! What a trigger of a table that is replicated is called with.

use crate::error::{Error, Result};
use crate::extension;
use crate::pg::function::Call;
use pgrx::pg_sys::{self, Datum};
use std::ffi::CStr;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Insert,
    Update,
    Delete,
}

pub struct Firing<'a> {
    data: &'a pg_sys::TriggerData,
    pub operation: Operation,
}

impl<'a> Firing<'a> {
    /// Rows of another table must not be read as if they were of this one.
    pub fn of(call: &'a Call, name: &CStr, table: &'static str, timing: u32) -> Result<Firing<'a>> {
        let not_ours = Error::NotItsTrigger { table };
        let Some(data) = call.trigger() else { return Err(not_ours) };
        // SAFETY: a trigger's relation is open.
        let fired_on = unsafe { (*data.tg_relation).rd_id };
        let is_row = data.tg_event & pg_sys::TRIGGER_EVENT_ROW != 0;
        let operation = match data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
            pg_sys::TRIGGER_EVENT_INSERT => Operation::Insert,
            pg_sys::TRIGGER_EVENT_UPDATE => Operation::Update,
            pg_sys::TRIGGER_EVENT_DELETE => Operation::Delete,
            _ => return Err(not_ours),
        };
        let is_ours = Some(fired_on) == extension::relation(name)
            && is_row
            && data.tg_event & pg_sys::TRIGGER_EVENT_TIMINGMASK == timing;
        if is_ours { Ok(Firing { data, operation }) } else { Err(not_ours) }
    }

    /// The row of an INSERT or DELETE, or that before an UPDATE.
    pub fn first(&self) -> pg_sys::HeapTuple {
        self.data.tg_trigtuple
    }

    /// The row as it would be stored, or was.
    pub fn newest(&self) -> pg_sys::HeapTuple {
        if self.operation == Operation::Update { self.data.tg_newtuple } else { self.data.tg_trigtuple }
    }

    pub fn descriptor(&self) -> pg_sys::TupleDesc {
        // SAFETY: a trigger's relation is open.
        unsafe { (*self.data.tg_relation).rd_att }
    }

    pub fn proceed(&self) -> Result<Option<Datum>> {
        Ok(Some(Datum::from(self.newest())))
    }

    /// Carry on with another number in a column, which is counted from 0.
    pub fn proceed_with(&self, column: usize, number: i64) -> Result<Option<Datum>> {
        let (columns, values, nulls) = ([column as i32 + 1], [Datum::from(number)], [false]);
        // SAFETY: the tuple is of the descriptor, which has the column, a bigint.
        let tuple = unsafe {
            pg_sys::heap_modify_tuple_by_cols(
                self.newest(),
                self.descriptor(),
                1,
                columns.as_ptr().cast_mut(),
                values.as_ptr().cast_mut(),
                nulls.as_ptr().cast_mut(),
            )
        };
        Ok(Some(Datum::from(tuple)))
    }

    /// Leave this row alone: a null pointer that is not SQL NULL.
    pub fn skip(&self) -> Result<Option<Datum>> {
        Ok(Some(Datum::from(0)))
    }
}
