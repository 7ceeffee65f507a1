//! Leases of tables that are no more: DROP EXTENSION, with or without a CREATE EXTENSION behind it, fires no triggers.
//!
//! Leases get into shared memory when their transaction commits, which made their table visible before. So a table that
//! a look at the catalog *after* a look at the leases does not find was dropped, and not just made: no lock is needed,
//! and what a session has done and not committed counts for nothing.

use super::process::transaction;
use crate::shared::Database;
use crate::shared::database::WorkerState;
use crate::shared::leases::leases;
use pgrx::pg_sys::{self, Datum, SysCacheIdentifier::RELOID};
use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::atomic::Ordering::Release;

/// Free the leases of this database whose table was dropped. What cannot be done now is done next time.
pub fn free_leases(database: &Database) {
    let index = database.index() as u32;
    let tables = RefCell::new(HashSet::new());
    leases().collect(|key, _| {
        if key.database == index {
            tables.borrow_mut().insert(key.relation);
        }
        false
    });
    let tables = tables.into_inner();
    let looked = transaction(c"looking for dropped tables", || {
        Ok(tables.into_iter().filter(|table| !exists(*table)).collect::<HashSet<u32>>())
    });
    match looked {
        Ok(dropped) if dropped.is_empty() => {}
        Ok(dropped) => leases().purge(index, |table| dropped.contains(&table)),
        Err(failure) => pgrx::log!("presence_ext: looking for dropped tables failed: {}", failure.message),
    }
}

/// The database has no extension any more.
pub fn forget_extension(database: &Database) {
    free_leases(database);
    database.sink.position.store(0, Release);
    database.worker.set_state(WorkerState::Absent);
}

fn exists(table: u32) -> bool {
    let zero = Datum::from(0);
    // SAFETY: a catalog look-up inside a transaction.
    unsafe { pg_sys::SearchSysCacheExists(RELOID as i32, Datum::from(table as usize), zero, zero, zero) }
}
