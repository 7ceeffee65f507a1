//! A row of `presence.member`, column by column.

use crate::clock;
use crate::error::{Error, Result};
use crate::event::record::Image;
use crate::extension::Extension;
use crate::lease::rule::RowLease;
use crate::lease::table::Key;
use crate::spi::Rows;
use crate::sqlfn::{bytes_of, interval_of, text_of};
use pgrx::pg_sys::{self, Datum};

/// The columns, in the order of sql/tables.sql.
#[derive(Clone, Copy)]
#[repr(usize)]
pub enum Column {
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
    ExpiresAt,
    Ttl,
    Deadline,
    Session,
    SessionPid,
    KeyHash,
}

pub const COLUMNS: usize = 19;

#[derive(Clone)]
pub struct Row {
    place: pg_sys::ItemPointerData,
    values: [Datum; COLUMNS],
    nulls: [bool; COLUMNS],
}

impl Row {
    /// # Safety
    /// `tuple` is a tuple of the table `relation`.
    pub unsafe fn read(tuple: pg_sys::HeapTuple, relation: pg_sys::Relation) -> Result<Row> {
        // SAFETY: the caller's promise.
        unsafe { Row::deform(tuple, (*relation).rd_att) }
    }

    /// The first row of a `select *`, in the current memory context.
    pub fn of_query(rows: &Rows) -> Result<Option<Row>> {
        let Some((tuple, descriptor)) = rows.first() else { return Ok(None) };
        // SAFETY: the tuple is of the descriptor; it is copied, for the rows go before it does.
        unsafe { Row::deform(pg_sys::heap_copytuple(tuple), descriptor).map(Some) }
    }

    /// # Safety
    /// `tuple` is of `descriptor`, which has the columns of the table.
    pub unsafe fn deform(tuple: pg_sys::HeapTuple, descriptor: pg_sys::TupleDesc) -> Result<Row> {
        // SAFETY: the caller's promise; there is room for all columns.
        unsafe {
            let place = (*tuple).t_self;
            let mut row = Row { place, values: [Datum::from(0); COLUMNS], nulls: [true; COLUMNS] };
            if (*descriptor).natts as usize != COLUMNS {
                return Err(Error::TooManyColumns);
            }
            pg_sys::heap_deform_tuple(tuple, descriptor, row.values.as_mut_ptr(), row.nulls.as_mut_ptr());
            Ok(row)
        }
    }

    /// Lock the row that a scan found, as an UPDATE does, waiting for whoever has it. False if it was changed since.
    ///
    /// # Safety
    /// `table` is the table it was found in, open and locked for writing.
    pub unsafe fn lock(&self, table: pg_sys::Relation) -> bool {
        let mut tuple = pg_sys::HeapTupleData { t_self: self.place, ..Default::default() };
        let (mut buffer, mut failure) = (0, pg_sys::TM_FailureData::default());
        // SAFETY: the caller's promise; the buffer that it pins is released.
        unsafe {
            let result = pg_sys::heap_lock_tuple(
                table,
                &mut tuple,
                pg_sys::GetCurrentCommandId(true),
                pg_sys::LockTupleMode::LockTupleNoKeyExclusive,
                pg_sys::LockWaitPolicy::LockWaitBlock,
                false,
                &mut buffer,
                &mut failure,
            );
            pg_sys::ReleaseBuffer(buffer);
            result == pg_sys::TM_Result::TM_Ok
        }
    }

    /// Store this in place of `old`, which is locked.
    ///
    /// # Safety
    /// `table` is the table that both are of, open and locked for writing.
    pub unsafe fn replace(&mut self, table: pg_sys::Relation, old: &Row) {
        let mut place = old.place;
        // SAFETY: the caller's promise. What extensions use for tables of their own: it updates the heap, and the
        // indexes unless the new row stays on its page.
        unsafe {
            let tuple = self.form(table);
            pg_sys::CatalogTupleUpdate(table, &mut place, tuple);
            pg_sys::CommandCounterIncrement();
        }
    }

    /// A new tuple of the table, in the current memory context.
    ///
    /// # Safety
    /// `relation` is the table the row was read from.
    pub unsafe fn form(&mut self, relation: pg_sys::Relation) -> pg_sys::HeapTuple {
        // SAFETY: the caller's promise; values and nulls have a place for each column.
        unsafe {
            pg_sys::heap_form_tuple((*relation).rd_att, self.values.as_mut_ptr(), self.nulls.as_mut_ptr())
        }
    }

    pub fn get(&self, column: Column) -> Option<Datum> {
        (!self.nulls[column as usize]).then(|| self.values[column as usize])
    }

    pub fn set(&mut self, column: Column, value: Option<Datum>) {
        self.nulls[column as usize] = value.is_none();
        self.values[column as usize] = value.unwrap_or(Datum::from(0));
    }

    /// For text columns.
    pub fn text(&self, column: Column) -> Option<&[u8]> {
        // SAFETY: the callers name text columns.
        self.get(column).map(|datum| unsafe { text_of(datum) })
    }

    /// For jsonb and array columns: the bytes behind the header.
    pub fn varlena(&self, column: Column) -> Option<&[u8]> {
        // SAFETY: the callers name jsonb or array columns.
        self.get(column).map(|datum| unsafe { bytes_of(datum) })
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
        RowLease {
            read_since,
            version: self.number(Column::Version),
            generation: self.number(Column::Generation),
            deadline: self.number(Column::Deadline),
            ttl: self.ttl().unwrap_or(0) as u64,
            session: self.number(Column::Session),
        }
    }

    pub fn key(&self, extension: &Extension) -> Key {
        let text = |column| self.text(column).unwrap_or_default();
        extension.key(text(Column::Room), text(Column::MemberId), text(Column::ConnectionId))
    }

    /// As an event shows it; `state` stands in for the row's own if given (the last word of a leave).
    pub fn image(&self, state: Option<&[u8]>) -> Image {
        Image::new([
            self.text(Column::Room),
            self.text(Column::MemberId),
            self.text(Column::ConnectionId),
            self.text(Column::UserId),
            self.text(Column::Status),
            state.or_else(|| self.varlena(Column::State)),
            self.varlena(Column::Metadata),
            self.varlena(Column::Audience),
        ])
    }

    /// Whether these columns have the same bytes in both rows.
    pub fn same(&self, other: &Row, columns: &[Column]) -> bool {
        columns.iter().all(|column| match column {
            Column::Ttl => self.ttl() == other.ttl(),
            Column::State | Column::Metadata | Column::Audience => {
                self.varlena(*column) == other.varlena(*column)
            }
            _ => self.text(*column) == other.text(*column),
        })
    }
}
