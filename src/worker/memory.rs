//! The worker's memory: what it may use for what, so that all together it stays within `presence.worker_memory`,
//! whatever anybody writes.

use crate::settings;

/// Records of one batch, read from the ring.
pub fn for_records() -> usize {
    settings::worker_memory() / 8
}

/// Notifications of one transaction: PostgreSQL keeps them until the commit. The batch ends when it has so many.
pub fn for_notifications() -> usize {
    settings::worker_memory() / 4
}

/// Whole payloads of one line of the log: what is beyond rings the bell. 64 tokens fit at the smallest setting.
pub fn for_payloads_of_a_line() -> usize {
    settings::worker_memory() / 8
}

/// The same, of one who floods: PostgreSQL has every listener read all that is notified, on whichever channel.
pub const FOR_PAYLOADS_OF_A_FLOODED_LINE: usize = 64 * 1024;

/// Events of the members that one transaction of the sweeper deletes: as changes, as records and as bytes.
pub fn for_leaves() -> usize {
    settings::worker_memory() / 32
}

/// Counts of connections that are remembered.
pub fn for_counts() -> usize {
    settings::worker_memory() / 8
}

/// Rooms whose numbers somebody may want to hear.
pub fn for_rooms() -> usize {
    settings::worker_memory() / 32
}

/// What counting a room takes. (It is not done while a batch is published.)
pub fn for_counting() -> usize {
    settings::worker_memory() / 4
}

/// Users whose last sight is not written yet.
pub fn for_last_seen() -> usize {
    settings::worker_memory() / 16
}

/// Events that a sink is given at once: as rows, and as an array of rows.
pub fn for_sink() -> usize {
    settings::worker_memory() / 8
}
