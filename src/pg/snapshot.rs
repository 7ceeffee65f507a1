//! What a query sees: snapshots of one's own.

use crate::error::Result;
use pgrx::pg_sys;

/// Whether the transaction has one snapshot for all its statements.
pub fn is_one_for_all() -> bool {
    // SAFETY: a plain read of this process's state.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as i32 }
}

/// See what a statement that begins now would see: in READ COMMITTED, everything that is committed.
pub fn with_statement_snapshot<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: inside a transaction.
    let push = || unsafe {
        pg_sys::CommandCounterIncrement();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
    };
    pushed(push, body)
}

/// See this statement's own changes, and what others have committed while we waited for a lock.
pub fn with_new_snapshot<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: inside a transaction.
    let push = || unsafe {
        pg_sys::CommandCounterIncrement();
        pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
    };
    pushed(push, body)
}

/// See what is committed now, and no changes of this transaction.
pub fn with_committed_snapshot<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: inside a transaction. The snapshot on top is a copy that is nobody else's; to one from before the first command
    // all of this transaction's are still to come.
    let push = || unsafe {
        pg_sys::PushCopiedSnapshot(pg_sys::GetLatestSnapshot());
        (*pg_sys::GetActiveSnapshot()).curcid = 0;
    };
    pushed(push, body)
}

/// See the current catalog, whatever snapshot the caller's statement has; also in parallel plans, which allow no other
/// new snapshot.
pub fn with_catalog_snapshot<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: inside a transaction; pushing copies it.
    let push = || unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetCatalogSnapshot(pg_sys::InvalidOid)) };
    pushed(push, body)
}

/// `push` pushes one snapshot.
fn pushed<T>(push: impl FnOnce(), body: impl FnOnce() -> Result<T>) -> Result<T> {
    push();
    let value = body();
    // SAFETY: what was pushed; an error that PostgreSQL raises unwinds to an abort, which pops it.
    unsafe { pg_sys::PopActiveSnapshot() };
    value
}
