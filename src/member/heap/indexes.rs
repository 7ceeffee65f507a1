//! The indexes of a table, open for writing.

use pgrx::pg_sys;

pub struct Indexes {
    list: *mut pg_sys::ResultRelInfo,
    state: *mut pg_sys::EState,
}

/// Which indexes get an entry for a row.
#[derive(Clone, Copy, PartialEq)]
pub enum Which {
    All,
    /// Only summarizing ones, such as BRIN (from 16 on): the row is on the page of the one that it replaces.
    #[cfg(not(feature = "pg15"))]
    Summarizing,
}

impl Indexes {
    /// # Safety
    /// The table is open, and locked for writing, for as long as they are; what is current as memory lives as long.
    pub unsafe fn open(table: pg_sys::Relation) -> Indexes {
        // SAFETY: the caller's promise; both are nodes, empty but for what is looked at.
        unsafe {
            let list = pg_sys::palloc0(size_of::<pg_sys::ResultRelInfo>()).cast::<pg_sys::ResultRelInfo>();
            (*list).type_ = pg_sys::NodeTag::T_ResultRelInfo;
            (*list).ri_RelationDesc = table;
            pg_sys::ExecOpenIndices(list, true);
            Indexes { list, state: pg_sys::CreateExecutorState() }
        }
    }

    /// # Safety
    /// Not while an error unwinds.
    pub unsafe fn close(self) {
        // SAFETY: opened in `open`; the locks stay.
        unsafe {
            pg_sys::ExecCloseIndices(self.list);
            pg_sys::FreeExecutorState(self.state);
        }
    }

    /// Whether the unique indexes have no conflict; waits for transactions that may cause one. Otherwise where the
    /// conflicting row is.
    ///
    /// # Safety
    /// The slot has a tuple of the table.
    pub unsafe fn are_free_for(
        &self,
        slot: *mut pg_sys::TupleTableSlot,
        other: &mut pg_sys::ItemPointerData,
    ) -> bool {
        let all = std::ptr::null_mut();
        // SAFETY: the caller's promise; the indexes are open.
        unsafe {
            #[cfg(feature = "pg18")]
            {
                let mut nobody = pg_sys::ItemPointerData::default();
                pg_sys::ItemPointerSetInvalid(&mut nobody);
                pg_sys::ExecCheckIndexConstraints(self.list, slot, self.state, other, &mut nobody, all)
            }
            #[cfg(not(feature = "pg18"))]
            pg_sys::ExecCheckIndexConstraints(self.list, slot, self.state, other, all)
        }
    }

    /// Insert entries for a new row. False: its key exists.
    ///
    /// # Safety
    /// The slot has a tuple that was stored in the table.
    pub unsafe fn enter(&self, slot: *mut pg_sys::TupleTableSlot) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.insert(slot, Which::All, false) }
    }

    /// Insert entries for a row that replaces another.
    ///
    /// # Safety
    /// As above.
    pub unsafe fn replace(&self, slot: *mut pg_sys::TupleTableSlot, which: Which) {
        // SAFETY: the caller's promise.
        unsafe { self.insert(slot, which, true) };
    }

    /// # Safety
    /// As above.
    unsafe fn insert(&self, slot: *mut pg_sys::TupleTableSlot, which: Which, is_update: bool) -> bool {
        let (mut is_late, all) = (false, std::ptr::null_mut());
        #[cfg(feature = "pg15")]
        let Which::All = which;
        // SAFETY: the caller's promise; the indexes are open for writing.
        unsafe {
            pg_sys::ExecInsertIndexTuples(
                self.list,
                slot,
                self.state,
                is_update,
                !is_update,
                &mut is_late,
                all,
                #[cfg(not(feature = "pg15"))]
                (which == Which::Summarizing),
            );
        }
        !is_late
    }
}
