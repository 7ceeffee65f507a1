//! The lease table in PostgreSQL's shared memory.

use super::{locks, startup};
use crate::extension::Extension;
use crate::lease::slot::Key;
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

/// The key of a member whose slot will be needed soon: it is prefetched, because it lies anywhere in a large memory.
pub fn awaited_key(extension: &Extension, room: &[u8], member_id: &[u8], connection_id: &[u8]) -> Key {
    let key = extension.key(room, member_id, connection_id);
    leases().prefetch(&key, true);
    key
}
