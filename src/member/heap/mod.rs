//! The table `member`, open for writing: what SELECT, UPDATE, DELETE and INSERT … ON CONFLICT DO NOTHING do with the heap
//! and with whatever indexes there are. Who writes many members opens it once.

mod indexes;
mod write;

use super::column::Column;
use super::index;
use super::layout::Layout;
use super::row::Row;
use crate::error::Result;
use crate::extension::Extension;
use crate::lease::slot::Key;
use crate::pg::datum::uuid;
use crate::pg::memory::within;
use indexes::Indexes;
use pgrx::pg_sys::{self, Oid};
use std::cell::{Cell, OnceCell};
pub use write::Purpose;

/// Lives no longer than the call and the snapshot that was active when it was opened.
pub struct Heap {
    table: pg_sys::Relation,
    layout: Layout,
    /// The memory context of everything that is kept open.
    memory: pg_sys::MemoryContext,
    /// The snapshot and the scan by key, after the first look-up.
    scan: Cell<Option<(pg_sys::Snapshot, pg_sys::SysScanDesc)>>,
    /// For tuples in buffers; created when needed.
    slot: Cell<*mut pg_sys::TupleTableSlot>,
    /// Opened for writing when a row needs new entries.
    indexes: OnceCell<Indexes>,
}

impl Heap {
    /// The table must be locked for writing, and must have our columns.
    pub fn open(extension: &Extension) -> Result<Heap> {
        // SAFETY: our own table, which is locked; closed when dropped, or by the abort that an error leads to.
        unsafe {
            let table = pg_sys::table_open(extension.member, pg_sys::NoLock as i32);
            Ok(Heap {
                table,
                layout: Layout::of((*table).rd_att)?,
                memory: pg_sys::CurrentMemoryContext,
                scan: Cell::new(None),
                slot: Cell::new(std::ptr::null_mut()),
                indexes: OnceCell::new(),
            })
        }
    }

    /// The member's row in the active snapshot. None: unknown, because another snapshot was active before, or no index
    /// can be used.
    pub fn find(&self, key: &Key) -> Option<Option<Row>> {
        // SAFETY: a snapshot is active while a function runs. The scan is one by key, of the open table; what it keeps is
        // in memory that lives as long. The tuple is copied, and then nothing on its page is held that pruning minds.
        unsafe {
            let snapshot = pg_sys::GetActiveSnapshot();
            let (scan, is_new) = match self.scan.get() {
                Some((of, scan)) => (Some(scan).filter(|_| of == snapshot)?, false),
                None => (self.begin_scan(snapshot, key)?, true),
            };
            let tuple = within(self.memory, || {
                if !is_new {
                    let mut condition = condition(1, key);
                    pg_sys::index_rescan((*scan).iscan, &mut condition, 1, std::ptr::null_mut(), 0);
                }
                pg_sys::systable_getnext(scan)
            });
            let found = (!tuple.is_null()).then(|| Row::deform(pg_sys::heap_copytuple(tuple), self.layout));
            pg_sys::ExecClearTuple((*scan).slot);
            Some(found)
        }
    }

    /// # Safety
    /// The snapshot is active.
    unsafe fn begin_scan(&self, snapshot: pg_sys::Snapshot, key: &Key) -> Option<pg_sys::SysScanDesc> {
        // SAFETY: the table is open and locked; the condition is copied.
        unsafe {
            let (_, index) = index::of(self.table, Column::KeyHash);
            let (index, _) = index?;
            let scan = within(self.memory, || {
                let mut condition = condition(Column::KeyHash as i16 + 1, key);
                pg_sys::systable_beginscan(self.table, index, true, snapshot, 1, &mut condition)
            });
            // If indexes are ignored it is a sequential scan.
            if (*scan).iscan.is_null() {
                pg_sys::systable_endscan(scan);
                return None;
            }
            self.scan.set(Some((snapshot, scan)));
            Some(scan)
        }
    }

    fn slot(&self) -> *mut pg_sys::TupleTableSlot {
        if self.slot.get().is_null() {
            // SAFETY: the table is open.
            self.slot.set(within(self.memory, || unsafe {
                pg_sys::MakeSingleTupleTableSlot(
                    (*self.table).rd_att,
                    pg_sys::table_slot_callbacks(self.table),
                )
            }));
        }
        self.slot.get()
    }

    fn indexes(&self) -> &Indexes {
        // SAFETY: the table is open, and locked for writing.
        self.indexes.get_or_init(|| within(self.memory, || unsafe { Indexes::open(self.table) }))
    }
}

fn condition(column: i16, key: &Key) -> pg_sys::ScanKeyData {
    let mut condition = pg_sys::ScanKeyData::default();
    // SAFETY: fills the condition in.
    unsafe {
        let (equal, function) = (pg_sys::BTEqualStrategyNumber, Oid::from(pg_sys::F_UUID_EQ));
        pg_sys::ScanKeyInit(&mut condition, column, equal as u16, function, uuid(key.hash));
    }
    condition
}

impl Drop for Heap {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        // SAFETY: all of it was opened here, and nobody else has it. The locks stay.
        unsafe {
            if let Some((_, scan)) = self.scan.get() {
                pg_sys::systable_endscan(scan);
            }
            if let Some(indexes) = self.indexes.take() {
                indexes.close();
            }
            if !self.slot.get().is_null() {
                pg_sys::ExecDropSingleTupleTableSlot(self.slot.get());
            }
            pg_sys::table_close(self.table, pg_sys::NoLock as i32);
        }
    }
}
