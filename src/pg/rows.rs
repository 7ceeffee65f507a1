//! The rows of a query.

use super::datum::{bytes_in, hash_of, text_in};
use super::spi::Connection;
use pgrx::pg_sys::{self, Datum, Oid};
use std::marker::PhantomData;

/// The rows of one query, freed when dropped.
pub struct Rows<'c> {
    table: *mut pg_sys::SPITupleTable,
    /// Rows returned or affected.
    pub count: usize,
    connection: PhantomData<&'c Connection>,
}

impl<'c> Rows<'c> {
    /// # Safety
    /// An execution on this connection has just ended well, and nobody has taken its rows yet.
    pub(super) unsafe fn of_last_execution(_connection: &'c Connection) -> Rows<'c> {
        // SAFETY: globals that the execution has set.
        let (table, count) = unsafe { (pg_sys::SPI_tuptable, pg_sys::SPI_processed as usize) };
        Rows { table, count, connection: PhantomData }
    }
}

impl Rows<'_> {
    /// A bigint column; NULL is 0.
    pub fn number(&self, row: usize, column: usize) -> u64 {
        self.get(row, column).map_or(0, |number| number.value() as u64)
    }

    pub fn uuid(&self, row: usize, column: usize) -> Option<u128> {
        let datum = self.get_of(row, column, &[pg_sys::UUIDOID])?;
        // SAFETY: a uuid.
        Some(unsafe { hash_of(datum) })
    }

    /// A whole column.
    pub fn uuids(&self, column: usize) -> Vec<u128> {
        (0..self.count).filter_map(|row| self.uuid(row, column)).collect()
    }

    /// The first row as a tuple, and its descriptor.
    pub fn first(&self) -> Option<(pg_sys::HeapTuple, pg_sys::TupleDesc)> {
        self.tuples().next()
    }

    /// All rows as tuples, which live as long as the rows, and their descriptor.
    pub fn tuples(&self) -> impl Iterator<Item = (pg_sys::HeapTuple, pg_sys::TupleDesc)> {
        let count = if self.table.is_null() { 0 } else { self.count };
        // SAFETY: the table lives as long as we do, and has as many rows as were counted.
        (0..count).map(|row| unsafe { (*(*self.table).vals.add(row), (*self.table).tupdesc) })
    }

    pub fn get(&self, row: usize, column: usize) -> Option<Datum> {
        // SAFETY: the table lives as long as we do; row and column are checked by it and us.
        unsafe {
            if self.table.is_null() || row >= self.count {
                return None;
            }
            let tuple = *(*self.table).vals.add(row);
            let mut null = false;
            let datum = pg_sys::SPI_getbinval(tuple, (*self.table).tupdesc, column as i32 + 1, &mut null);
            (!null).then_some(datum)
        }
    }

    /// Of a text or bytea column.
    pub fn text(&self, row: usize, column: usize) -> Option<&[u8]> {
        let datum = self.get_of(row, column, &[pg_sys::TEXTOID, pg_sys::BYTEAOID])?;
        // SAFETY: a varlena; it and what it is unpacked to are freed with the rows.
        Some(unsafe { text_in(self, (*self.table).tuptabcxt, datum) })
    }

    /// The bytes of a text array, without their header.
    pub fn array(&self, row: usize, column: usize) -> Option<&[u8]> {
        let datum = self.get_of(row, column, &[pg_sys::TEXTARRAYOID])?;
        // SAFETY: as above.
        Some(unsafe { bytes_in(self, (*self.table).tuptabcxt, datum) })
    }

    /// A column of one of these types; None for any other type.
    fn get_of(&self, row: usize, column: usize, types: &[Oid]) -> Option<Datum> {
        let datum = self.get(row, column)?;
        // SAFETY: there is such a column.
        let found = unsafe { pg_sys::SPI_gettypeid((*self.table).tupdesc, column as i32 + 1) };
        debug_assert!(types.contains(&found), "a column of type {found}");
        types.contains(&found).then_some(datum)
    }
}

impl Drop for Rows<'_> {
    fn drop(&mut self) {
        // Otherwise a loop of queries on one connection would keep all results. While an ERROR unwinds, the abort frees
        // them.
        if !self.table.is_null() && !std::thread::panicking() {
            // SAFETY: a result of the open connection; freeing one that is not there any more is checked by SPI.
            unsafe { pg_sys::SPI_freetuptable(self.table) };
        }
    }
}
