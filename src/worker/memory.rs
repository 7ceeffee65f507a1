//! The worker's memory: what it may use for what, so that all together it stays within `presence.worker_memory`,
//! whatever anybody writes.

use crate::settings;

/// Records of one batch, read from the ring.
pub fn for_records() -> usize {
    settings::worker_memory() / 8
}

/// Notifications of one transaction, which PostgreSQL keeps until the commit. The batch ends at this size.
pub fn for_notifications() -> usize {
    settings::worker_memory() / 4
}

/// Full payloads of one line of the log: further channels get a doorbell. 64 tokens fit with the smallest setting.
pub fn for_payloads_of_a_line() -> usize {
    settings::worker_memory() / 8
}

/// The same for an owner with much in the ring, because every listener reads all notifications, on whichever channel.
pub const FOR_PAYLOADS_OF_A_FLOODED_LINE: usize = 64 * 1024;

/// Events of the members that one transaction of the sweeper deletes: as changes, as records and as bytes.
pub fn for_leaves() -> usize {
    settings::worker_memory() / 32
}

/// Cached counts of connections.
pub fn for_counts() -> usize {
    settings::worker_memory() / 8
}

/// Rooms whose counts somebody may listen to.
pub fn for_rooms() -> usize {
    settings::worker_memory() / 32
}

/// Counting a room. (It is not done while a batch is published.)
pub fn for_counting() -> usize {
    settings::worker_memory() / 4
}

/// Users whose last_seen is not written yet.
pub fn for_last_seen() -> usize {
    settings::worker_memory() / 16
}

/// Events that a sink gets at once: as rows, and as an array of rows.
pub fn for_sink() -> usize {
    settings::worker_memory() / 8
}
