//! The lease table in PostgreSQL's shared memory.

use super::{locks, startup};
use crate::lease::table::{LeaseTable, Locks};

/// LWLocks as the table's locks.
pub struct PartitionLocks;

impl Locks for PartitionLocks {
    fn shared<T>(&self, partition: usize, body: impl FnOnce() -> T) -> T {
        locks::shared(partition, body)
    }

    fn exclusive<T>(&self, partition: usize, body: impl FnOnce() -> T) -> T {
        locks::exclusive(partition, body)
    }
}

pub fn leases() -> &'static LeaseTable<PartitionLocks> {
    match startup::lease_table() {
        Some(table) => table,
        None => crate::error::Error::NotPreloaded.raise(),
    }
}
