//! The place that a background process has in its database: who finds it taken goes away.

use crate::shared::Database;
use pgrx::{pg_guard, pg_sys};
use std::cell::Cell;
use std::sync::atomic::{AtomicI32, AtomicPtr, Ordering::*};

#[derive(Clone, Copy)]
pub struct Place {
    pub database: &'static Database,
    pub pid: &'static AtomicI32,
    pub process: &'static AtomicPtr<pg_sys::PGPROC>,
    /// Called when the process exits, before the place is free.
    pub leaving: fn(&'static Database),
    /// Called after it is free.
    pub left: fn(),
}

thread_local! {
    static MINE: Cell<Option<Place>> = const { Cell::new(None) };
}

impl Place {
    /// Take the place; it is released when the process exits.
    pub fn take(self) -> bool {
        // SAFETY: plain reads of this process's state; the callback has the right signature.
        unsafe {
            if self.pid.compare_exchange(0, pg_sys::MyProcPid, AcqRel, Acquire).is_err() {
                return false;
            }
            MINE.set(Some(self));
            pg_sys::before_shmem_exit(Some(leave), pg_sys::Datum::from(0));
            self.process.store(pg_sys::MyProc, Release);
        }
        true
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn leave(_code: i32, _argument: pg_sys::Datum) {
    let Some(place) = MINE.take() else { return };
    place.process.store(std::ptr::null_mut(), Release);
    (place.leaving)(place.database);
    place.pid.store(0, Release);
    (place.left)();
}
