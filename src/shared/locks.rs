//! The extension's LWLocks: one tranche. Sections under a lock are memory operations only: no SPI, no error.

use crate::lease::table::PARTITIONS;
use pgrx::pg_sys;
use std::sync::atomic::{AtomicPtr, Ordering::*};

/// 0 to PARTITIONS - 1 are the partitions of the lease table.
pub const DATABASES_LOCK: usize = PARTITIONS;
pub const SEATS_LOCK: usize = PARTITIONS + 1;
/// From here on each database has two locks: for its ring, and for its occupancy counts.
pub const FIRST_DATABASE_LOCK: usize = PARTITIONS + 2;

pub const TRANCHE: &std::ffi::CStr = c"presence_ext";

static LOCKS: AtomicPtr<pg_sys::LWLockPadded> = AtomicPtr::new(std::ptr::null_mut());

pub fn count(databases: usize) -> usize {
    FIRST_DATABASE_LOCK + 2 * databases
}

/// In the postmaster, when the tranche has been allocated.
pub fn attach() {
    // SAFETY: the tranche was requested under this name by `startup::request`.
    LOCKS.store(unsafe { pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr()) }, Release);
}

pub fn shared<T>(index: usize, body: impl FnOnce() -> T) -> T {
    with(index, pg_sys::LWLockMode::LW_SHARED, body)
}

pub fn exclusive<T>(index: usize, body: impl FnOnce() -> T) -> T {
    with(index, pg_sys::LWLockMode::LW_EXCLUSIVE, body)
}

fn with<T>(index: usize, mode: pg_sys::LWLockMode::Type, body: impl FnOnce() -> T) -> T {
    // SAFETY: LOCKS points to as many locks as `count` says since the server started; callers index within.
    let lock = unsafe { &raw mut (*LOCKS.load(Relaxed).add(index)).lock };
    // SAFETY: a lock of ours, and released below: the body neither raises errors nor panics.
    unsafe { unguarded::LWLockAcquire(lock, mode) };
    let value = body();
    // SAFETY: acquired above.
    unsafe { unguarded::LWLockRelease(lock) };
    value
}

/// Without pgrx's guard, which takes longer than the functions themselves and catches errors. They raise errors only if
/// more locks are held at once than we ever hold, or a released lock is not held.
mod unguarded {
    use pgrx::pg_sys::{LWLock, LWLockMode};

    unsafe extern "C" {
        pub fn LWLockAcquire(lock: *mut LWLock, mode: LWLockMode::Type) -> bool;
        pub fn LWLockRelease(lock: *mut LWLock);
    }
}
