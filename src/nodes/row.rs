//! A row of `presence.shared`. Its columns never change: it is what servers of different versions tell each other.

use crate::error::{Error, Result};
use crate::event::image::{FIELDS, Image};
use crate::event::record::size_of_record;
use crate::pg::datum::{begins_with, bytes_in, text_in};
use pgrx::pg_sys::{self, Datum, Oid};

#[derive(Clone, Copy)]
#[repr(usize)]
pub enum Shared {
    Node,
    Room,
    MemberId,
    ConnectionId,
    UserId,
    Status,
    State,
    Metadata,
    Audience,
    Version,
    Generation,
    JoinedAt,
    UpdatedAt,
    LastSeenAt,
    Reason = 16,
}

const COLUMNS: usize = 18;

pub const TYPES: [Oid; COLUMNS] = [
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::JSONBOID,
    pg_sys::JSONBOID,
    pg_sys::TEXTARRAYOID,
    pg_sys::INT8OID,
    pg_sys::INT8OID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::INTERVALOID,
    pg_sys::BOOLOID,
    pg_sys::TEXTOID,
    pg_sys::JSONBOID,
];

pub struct SharedRow {
    memory: pg_sys::MemoryContext,
    values: Vec<Datum>,
    nulls: Vec<bool>,
}

impl SharedRow {
    /// # Safety
    /// `tuple` is one of this descriptor, and lives as long as the row; so does the current memory context.
    pub unsafe fn deform(tuple: pg_sys::HeapTuple, descriptor: pg_sys::TupleDesc) -> Result<SharedRow> {
        // SAFETY: the caller's promise; there is room for all columns.
        unsafe {
            if !begins_with(descriptor, &TYPES) {
                return Err(Error::TooManyColumns);
            }
            let width = (*descriptor).natts as usize;
            let (mut values, mut nulls) = (vec![Datum::from(0); width], vec![true; width]);
            pg_sys::heap_deform_tuple(tuple, descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            Ok(SharedRow { memory: pg_sys::CurrentMemoryContext, values, nulls })
        }
    }

    pub fn get(&self, column: Shared) -> Option<Datum> {
        (!self.nulls[column as usize]).then(|| self.values[column as usize])
    }

    /// For text columns, and others where it does not matter how bytes are aligned.
    pub fn text(&self, column: Shared) -> Option<&[u8]> {
        // SAFETY: the callers name columns of a varlena.
        self.get(column).map(|datum| unsafe { text_in(self, self.memory, datum) })
    }

    /// For jsonb and array columns.
    pub fn varlena(&self, column: Shared) -> Option<&[u8]> {
        // SAFETY: the callers name jsonb or array columns.
        self.get(column).map(|datum| unsafe { bytes_in(self, self.memory, datum) })
    }

    pub fn number(&self, column: Shared) -> i64 {
        self.get(column).map_or(0, |datum| datum.value() as i64)
    }

    /// The columns of ours from this one on.
    pub fn values_from(&self, first: Shared) -> impl Iterator<Item = Option<Datum>> {
        (first as usize..COLUMNS).map(|at| (!self.nulls[at]).then(|| self.values[at]))
    }

    pub fn same(&self, other: &SharedRow, columns: &[Shared]) -> bool {
        columns.iter().all(|column| self.text(*column) == other.text(*column))
    }

    /// As an event shows it.
    pub fn image(&self) -> Image {
        Image::new(self.fields())
    }

    /// What an event that shows it takes in the event buffer.
    pub fn size_of_event(&self) -> usize {
        size_of_record(self.fields().map(|field| field.map(<[u8]>::len)))
    }

    fn fields(&self) -> [Option<&[u8]>; FIELDS] {
        [
            self.text(Shared::Room),
            self.text(Shared::MemberId),
            self.text(Shared::ConnectionId),
            self.text(Shared::UserId),
            self.text(Shared::Status),
            self.varlena(Shared::State),
            self.varlena(Shared::Metadata),
            self.varlena(Shared::Audience),
        ]
    }
}
