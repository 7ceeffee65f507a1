//! Locks, replaces, deletes and inserts rows of the table.

use super::Heap;
use super::indexes::Which;
use crate::error::{Error, Result};
use crate::member::row::Row;
use crate::pg::snapshot::is_one_for_all;
use pgrx::pg_sys;

/// The purpose of a row lock.
#[derive(Clone, Copy)]
pub enum Purpose {
    Replace,
    Delete,
}

impl Heap {
    /// Lock as an UPDATE or DELETE does: wait for other writers, follow the row to its newest version (in READ
    /// COMMITTED; at other levels that is 40001), lock and read that.
    pub fn lock(&self, found: &Row, purpose: Purpose) -> Result<Option<Row>> {
        let mode = match purpose {
            Purpose::Replace => pg_sys::LockTupleMode::LockTupleNoKeyExclusive,
            Purpose::Delete => pg_sys::LockTupleMode::LockTupleExclusive,
        };
        let mut place = found.place();
        let mut failure = pg_sys::TM_FailureData::default();
        let flags = if is_one_for_all() { 0 } else { pg_sys::TUPLE_LOCK_FLAG_FIND_LAST_VERSION };
        // SAFETY: the table is open and locked; the slot is of its kind, and cleared after the tuple was copied.
        unsafe {
            let slot = self.slot();
            let result = pg_sys::table_tuple_lock(
                self.table,
                &mut place,
                pg_sys::GetActiveSnapshot(),
                slot,
                pg_sys::GetCurrentCommandId(true),
                mode,
                pg_sys::LockWaitPolicy::LockWaitBlock,
                flags as u8,
                &mut failure,
            );
            let held = match result {
                pg_sys::TM_Result::TM_Ok => {
                    Some(Row::deform(pg_sys::ExecCopySlotHeapTuple(slot), self.layout))
                }
                pg_sys::TM_Result::TM_Updated | pg_sys::TM_Result::TM_Deleted if flags == 0 => {
                    return Err(Error::ConcurrentUpdate);
                }
                _ => None,
            };
            pg_sys::ExecClearTuple(slot);
            Ok(held)
        }
    }

    /// Store the row in place of `old`, which this transaction has locked.
    pub fn replace(&self, old: &Row, row: &mut Row) {
        let mut place = old.place();
        // SAFETY: the row was read from this table, which is open and locked for writing. The slot lives as long as we use
        // it. What extensions do with tables of their own, but that indexes are opened only where they must know.
        unsafe {
            let tuple = row.form(self.layout);
            if let Some(which) = update(self.table, &mut place, tuple) {
                let slot = self.stored(tuple);
                self.indexes().replace(slot, which);
                pg_sys::ExecDropSingleTupleTableSlot(slot);
            }
            pg_sys::CommandCounterIncrement();
        }
    }

    /// Delete the row, which this transaction has locked for this purpose.
    pub fn delete(&self, held: &Row) {
        let mut place = held.place();
        // SAFETY: the row was read from this table, which is open and locked for writing. Indexes lose it with VACUUM.
        unsafe {
            pg_sys::simple_heap_delete(self.table, &mut place);
            pg_sys::CommandCounterIncrement();
        }
    }

    /// Store a new row; false if its key exists. Waits for transactions that are entering under that key; of two at
    /// once the first one in the index wins.
    ///
    /// The caller has just looked for the key and found none. So, unlike the executor for ON CONFLICT DO NOTHING, this
    /// asks the unique index only once an insertion has met somebody else there: one descent less for each member who
    /// enters, and a dead row for each one who comes second.
    pub fn insert(&self, row: &mut Row) -> Result<bool> {
        // SAFETY: the row is one of this table, which is open and locked for writing, and so are its indexes. The slot is a
        // copy that lives as long as we use it. The steps are the executor's.
        unsafe {
            let tuple = row.form(self.layout);
            let indexes = self.indexes();
            let slot = self.stored(tuple);
            let mut other = pg_sys::ItemPointerData::default();
            let mut is_contested = false;
            let is_stored = loop {
                pgrx::check_for_interrupts!();
                if is_contested && !indexes.are_free_for(slot, &mut other) {
                    break false;
                }
                let transaction = pg_sys::GetCurrentTransactionId();
                let token = pg_sys::SpeculativeInsertionLockAcquire(transaction);
                let command = pg_sys::GetCurrentCommandId(true);
                let none = std::ptr::null_mut();
                pg_sys::table_tuple_insert_speculative(self.table, slot, command, 0, none, token);
                let is_first = indexes.enter(slot);
                pg_sys::table_tuple_complete_speculative(self.table, slot, token, is_first);
                pg_sys::SpeculativeInsertionLockRelease(transaction);
                if is_first {
                    break true;
                }
                is_contested = true;
            };
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            pg_sys::CommandCounterIncrement();
            if !is_stored && is_one_for_all() && !self.sees(&mut other) {
                return Err(Error::ConcurrentUpdate);
            }
            Ok(is_stored)
        }
    }

    /// A slot with the tuple, as the executor has it.
    ///
    /// # Safety
    /// A tuple of this table, which lives as long as the slot; and that is to be dropped.
    unsafe fn stored(&self, tuple: pg_sys::HeapTuple) -> *mut pg_sys::TupleTableSlot {
        // SAFETY: the caller's promise; the table is open.
        unsafe {
            let slot = pg_sys::MakeSingleTupleTableSlot((*self.table).rd_att, &pg_sys::TTSOpsHeapTuple);
            pg_sys::ExecStoreHeapTuple(tuple, slot, false);
            (*slot).tts_tableOid = (*self.table).rd_id;
            slot
        }
    }

    /// # Safety
    /// A place in this table.
    unsafe fn sees(&self, place: &mut pg_sys::ItemPointerData) -> bool {
        // SAFETY: the caller's promise; a snapshot is active while a function runs.
        unsafe {
            let slot = self.slot();
            let snapshot = pg_sys::GetActiveSnapshot();
            let sees = pg_sys::table_tuple_fetch_row_version(self.table, place, snapshot, slot);
            pg_sys::ExecClearTuple(slot);
            sees
        }
    }
}

/// Update the heap. Some: indexes need new entries; None: it was a HOT update.
///
/// # Safety
/// `place` is that of a row that this transaction has locked, in a table that is open and locked for writing; `tuple` is
/// one of that table.
unsafe fn update(
    table: pg_sys::Relation,
    place: &mut pg_sys::ItemPointerData,
    tuple: pg_sys::HeapTuple,
) -> Option<Which> {
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(feature = "pg15")]
        {
            pg_sys::simple_heap_update(table, place, tuple);
            let is_heap_only = (*(*tuple).t_data).t_infomask2 as u32 & pg_sys::HEAP_ONLY_TUPLE != 0;
            (!is_heap_only).then_some(Which::All)
        }
        #[cfg(not(feature = "pg15"))]
        {
            let mut indexes = pg_sys::TU_UpdateIndexes::TU_None;
            pg_sys::simple_heap_update(table, place, tuple, &mut indexes);
            match indexes {
                pg_sys::TU_UpdateIndexes::TU_None => None,
                pg_sys::TU_UpdateIndexes::TU_Summarizing => Some(Which::Summarizing),
                _ => Some(Which::All),
            }
        }
    }
}
