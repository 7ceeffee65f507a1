//! Whether the client itself is asking.
//!
//! ANALYZE, REINDEX, REFRESH and their like run code of a table's owner in whatever session maintains the table, and
//! background processes run code that no client asked for. What a session was told of its user (`identity`) and what
//! belongs to a session (LISTEN, session members) is not for that code: there it is its role, and nothing else.

use crate::error::{Error, Result};
use crate::pg::role::in_restricted_operation;
use pgrx::pg_sys;

/// Whether this is a client's own session, running what the client asked for, even while it has rights that we lent.
pub fn is_own_session() -> bool {
    serves_a_client() && !in_restricted_operation()
}

/// Refuse what only a client's own session may do. Other people's code may not, even where we lent it rights.
pub fn require_own_session(what: &'static str) -> Result<()> {
    let why = if !serves_a_client() {
        "This is a background process of the server."
    // SAFETY: a plain read of this process's state.
    } else if unsafe { pg_sys::InSecurityRestrictedOperation() } {
        "This is a security-restricted operation, in which ANALYZE, REINDEX, REFRESH and their like run code of others."
    } else {
        return Ok(());
    };
    Err(Error::NotOwnSession { what, why })
}

/// Not a background worker, apply worker, autovacuum or walsender. A parallel worker counts as its leader, whose roles
/// and settings it has.
fn serves_a_client() -> bool {
    // SAFETY: plain reads of this process's state.
    unsafe {
        if pg_sys::MyBackendType == pg_sys::BackendType::B_BACKEND {
            return true;
        }
        pg_sys::ParallelWorkerNumber >= 0
            && pg_sys::MyProc
                .as_ref()
                .and_then(|process| process.lockGroupLeader.as_ref())
                .is_some_and(is_regular_backend)
    }
}

#[cfg(not(feature = "pg18"))]
fn is_regular_backend(process: &pg_sys::PGPROC) -> bool {
    !process.isBackgroundWorker
}

#[cfg(feature = "pg18")]
fn is_regular_backend(process: &pg_sys::PGPROC) -> bool {
    process.isRegularBackend
}
