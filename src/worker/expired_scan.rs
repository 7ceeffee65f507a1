//! What is due: members whose lease has run out or whose session is over, and those of which something has reverted.

use super::row_scan::RowScan;
use crate::clock;
use crate::error::Result;
use crate::extension::Extension;
use crate::lease::slot::{Key, Lease, TOMBSTONE, alive};
use crate::lease::table::PARTITIONS;
use crate::member::session;
use crate::shared::leases::leases;
use std::collections::HashSet;

/// At most this many slots of a partition are looked at in one round.
const MOST: usize = 50_000;

/// A scan of everything that may be due: first the leases, by partition, then the rows, if some have no slot. In
/// portions, so that it takes little memory however much is due.
pub struct ExpiredScan {
    now: u64,
    partition: usize,
    /// The scan of the rows, if needed.
    pub rows: Option<RowScan>,
    /// The live sessions, if any has ended.
    live_sessions: Option<HashSet<u64>>,
    /// Members of ended sessions were found: look again whether all are gone.
    pub sessions_left: bool,
    /// The delay of the oldest of them, in microseconds.
    pub lateness: u64,
}

/// Members that may be due, in key order.
#[derive(Default)]
pub struct Due {
    pub keys: Vec<u128>,
    /// Their slots, to be freed if there is no row.
    pub slots: Vec<(Key, Lease)>,
    /// Live members with something to revert.
    pub reverting: Vec<u128>,
    /// Live members without a slot.
    pub slotless: Vec<u128>,
}

impl ExpiredScan {
    /// `sessions`: include members of ended sessions; `rows`: include those without a slot.
    pub fn start(extension: &Extension, sessions: bool, rows: bool) -> ExpiredScan {
        ExpiredScan {
            now: clock::boot(),
            partition: 0,
            rows: rows.then(|| RowScan::start(extension)),
            live_sessions: sessions.then(|| session::live(extension)),
            sessions_left: false,
            lateness: 0,
        }
    }

    /// The next portion, without those to skip; None at the end.
    pub fn next(&mut self, extension: &Extension, skip: impl Fn(u128) -> bool) -> Result<Option<Due>> {
        let relation = u32::from(extension.member);
        let mut due = Due::default();
        let wanted = |key: &Key| key.relation == relation && !skip(key.hash);
        while self.partition < PARTITIONS && due.slots.len() + due.reverting.len() < BATCH {
            let partition = self.partition;
            self.partition += 1;
            let mut found = leases().expired_in(partition, extension.database_index, self.now, wanted);
            found.truncate(MOST);
            let is_here = |(_, lease): &(Key, Lease)| alive(lease.deadline, self.now);
            let (here, over): (Vec<_>, Vec<_>) = found.into_iter().partition(is_here);
            due.reverting.extend(here.iter().map(|(key, _)| key.hash));
            due.slots.extend(over);
            let Some(live) = &self.live_sessions else { continue };
            let over = leases().collect_in(partition, |key, lease| {
                key.database == extension.database_index
                    && wanted(key)
                    && lease.session != 0
                    && lease.deadline != TOMBSTONE
                    && !live.contains(&lease.session)
            });
            // Some may be locked by a change that is about to commit or fail: look again until none is left.
            self.sessions_left |= !over.is_empty();
            due.slots.extend(over.into_iter().take(MOST));
        }
        let late = due.slots.iter().map(|(_, lease)| self.now.saturating_sub(lease.ended()));
        self.lateness = late.max().unwrap_or(0).max(self.lateness);
        due.keys = due.slots.iter().map(|(key, _)| key.hash).collect();
        let mut is_end = due.keys.is_empty() && due.reverting.is_empty();
        if is_end
            && let Some(rows) = &mut self.rows
            && let Some(portion) = rows.next(extension)?
        {
            is_end = false;
            due = Due { keys: portion.over, reverting: portion.reverting, slotless: portion.slotless, ..due };
            due.keys.retain(|hash| !skip(*hash));
            due.reverting.retain(|hash| !skip(*hash));
        }
        due.keys.sort_unstable();
        due.keys.dedup();
        due.reverting.sort_unstable();
        Ok((!is_end).then_some(due))
    }
}

impl Due {
    /// In batches for one transaction each.
    pub fn batches(keys: &[u128]) -> impl Iterator<Item = &[u128]> {
        keys.chunks(BATCH)
    }

    pub fn has_slots(&self) -> bool {
        !self.slots.is_empty()
    }
}

/// At most this many rows are looked at in one transaction.
pub const BATCH: usize = 1_000;
