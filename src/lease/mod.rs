//! Leases: the promise of each member to be here, one slot of shared memory a member.
//!
//! `table` is the data structure and `slot` its element, plain Rust over plain memory; `shared` is its home in
//! PostgreSQL's shared memory; `rule` says which of slot and row counts.

/// The atomics of the table. `tests/loom` replaces them by those of a model checker.
mod atomic {
    pub use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
}

pub mod rule;
pub mod slot;
pub mod table;

#[cfg(test)]
mod table_tests;
