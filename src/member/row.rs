//! A row of `presence.member`, column by column.

use super::column::{COLUMNS, Column};
use super::grace;
use super::layout::Layout;
use crate::clock;
use crate::error::Result;
use crate::event::image::Image;
use crate::extension::Extension;
use crate::lease::rule::RowLease;
use crate::lease::slot::Key;
use crate::pg::datum::{attribute, bytes_in, hash_of, interval_of, text_in};
use crate::pg::rows::Rows;
use pgrx::pg_sys::{self, Datum};

/// timestamptz 'infinity'
pub const INFINITY: i64 = i64::MAX;

#[derive(Clone)]
pub struct Row {
    /// The tuple that it was read from, which has columns that others have added.
    tuple: pg_sys::HeapTuple,
    /// The memory context in which it was read and its values are detoasted; the row must not outlive it.
    memory: pg_sys::MemoryContext,
    values: [Datum; COLUMNS],
    nulls: [bool; COLUMNS],
}

impl Row {
    /// A row to be stored.
    pub fn empty() -> Row {
        // SAFETY: plain read of this process's state.
        let memory = unsafe { pg_sys::CurrentMemoryContext };
        let tuple = std::ptr::null_mut();
        Row { tuple, memory, values: [Datum::from(0); COLUMNS], nulls: [true; COLUMNS] }
    }

    /// # Safety
    /// `tuple` is a tuple of the table `relation`.
    pub unsafe fn read(tuple: pg_sys::HeapTuple, relation: pg_sys::Relation) -> Result<Row> {
        // SAFETY: the caller's promise.
        unsafe { Ok(Row::deform(tuple, Layout::of((*relation).rd_att)?)) }
    }

    /// The first row of a query for all columns, in the current memory context.
    pub fn of_query(rows: &Rows) -> Result<Option<Row>> {
        let Some((tuple, descriptor)) = rows.first() else { return Ok(None) };
        // SAFETY: the tuple is of the descriptor; it is copied, for the rows go before it does.
        unsafe { Ok(Some(Row::deform(pg_sys::heap_copytuple(tuple), Layout::of(descriptor)?))) }
    }

    /// # Safety
    /// `tuple` has this layout, and lives as long as the row.
    pub unsafe fn deform(tuple: pg_sys::HeapTuple, layout: Layout) -> Row {
        let mut row = Row { tuple, ..Row::empty() };
        // SAFETY: the caller's promise.
        unsafe { layout.deform(tuple, &mut row.values, &mut row.nulls) };
        row
    }

    /// A new tuple of the table, in the current memory context, with added columns as they were read.
    ///
    /// # Safety
    /// The layout is that of the table that the row was read from.
    pub unsafe fn form(&mut self, layout: Layout) -> pg_sys::HeapTuple {
        // SAFETY: the caller's promise.
        unsafe {
            // Before 0.3.0 the column was NOT NULL.
            if self.get(Column::ExpiresAt).is_none()
                && (*attribute(layout.descriptor(), Column::ExpiresAt as i32)).attnotnull
            {
                self.set(Column::ExpiresAt, Some(Datum::from(INFINITY)));
            }
            layout.form(self.tuple, &mut self.values, &mut self.nulls)
        }
    }

    /// The place of a stored row.
    pub fn place(&self) -> pg_sys::ItemPointerData {
        // SAFETY: the tuple lives as long as the row; null is a row that is not stored.
        unsafe { self.tuple.as_ref() }.map_or_else(Default::default, |tuple| tuple.t_self)
    }

    pub fn get(&self, column: Column) -> Option<Datum> {
        (!self.nulls[column as usize]).then(|| self.values[column as usize])
    }

    pub fn set(&mut self, column: Column, value: Option<Datum>) {
        self.nulls[column as usize] = value.is_none();
        self.values[column as usize] = value.unwrap_or(Datum::from(0));
    }

    /// For text columns, and others if the alignment of the bytes does not matter.
    pub fn text(&self, column: Column) -> Option<&[u8]> {
        // SAFETY: the callers name columns of a varlena.
        self.get(column).map(|datum| unsafe { text_in(self, self.memory, datum) })
    }

    /// For jsonb and array columns: the bytes after the header.
    pub fn varlena(&self, column: Column) -> Option<&[u8]> {
        // SAFETY: the callers name jsonb or array columns.
        self.get(column).map(|datum| unsafe { bytes_in(self, self.memory, datum) })
    }

    pub fn number(&self, column: Column) -> u64 {
        self.get(column).map_or(0, |datum| datum.value() as u64)
    }

    pub fn time(&self, column: Column) -> i64 {
        self.get(column).map_or(0, |datum| datum.value() as i64)
    }

    pub fn ttl(&self) -> Option<i128> {
        // SAFETY: the column is an interval.
        self.get(Column::Ttl).map(|datum| unsafe { interval_of(datum) })
    }

    pub fn lease(&self) -> RowLease {
        self.lease_read(clock::read_since())
    }

    /// The same for many rows of one statement.
    pub fn lease_read(&self, read_since: u64) -> RowLease {
        let (deadline, is_fixed) = grace::read_deadline(self.number(Column::Deadline));
        RowLease {
            read_since,
            version: self.number(Column::Version),
            generation: self.number(Column::Generation),
            deadline,
            is_fixed,
            ttl: self.ttl().unwrap_or(0) as u64,
            session: self.number(Column::Session),
        }
    }

    /// The key of a stored row.
    pub fn key(&self, extension: &Extension) -> Key {
        // SAFETY: the column is a uuid.
        match self.get(Column::KeyHash).map(|hash| unsafe { hash_of(hash) }) {
            Some(hash) => extension.key_of(hash),
            None => self.make_key(extension),
        }
    }

    /// The key from the row's names.
    pub fn make_key(&self, extension: &Extension) -> Key {
        let text = |column| self.text(column).unwrap_or_default();
        extension.key(text(Column::Room), text(Column::MemberId), text(Column::ConnectionId))
    }

    /// The image for an event; `state` replaces the row's own if given (the last word of a leave).
    pub fn image(&self, state: Option<&[u8]>) -> Image {
        Image::new([
            self.text(Column::Room),
            self.text(Column::MemberId),
            self.text(Column::ConnectionId),
            self.text(Column::UserId),
            self.text(Column::Status),
            state.or_else(|| self.text(Column::State)),
            self.text(Column::Metadata),
            self.text(Column::Audience),
        ])
    }

    /// Whether these columns have the same bytes in both rows.
    pub fn same(&self, other: &Row, columns: &[Column]) -> bool {
        // A value that was not set since one row was made from the other is identical.
        let value = |row: &Row, column| row.get(column).map(|value| value.value());
        columns.iter().all(|column| match column {
            _ if value(self, *column) == value(other, *column) => true,
            Column::Ttl => self.ttl() == other.ttl(),
            Column::LeavesAt => false,
            _ => self.text(*column) == other.text(*column),
        })
    }
}
