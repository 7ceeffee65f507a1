//! Shares of the ring: nobody's events crowd out those of others.
//!
//! Whoever owns the members that events tell of may have so many times as much of the ring as is free: one who floods
//! leaves a part for others, two leave less, and so on (dynamic thresholds, as switches divide a buffer among ports).
//! Beyond the first threshold events are lean: without state and metadata, which the worker reads from the row. Beyond the
//! second they are lost.

use super::record::lengths;
use std::collections::HashMap;

/// The number of shares; owners are assigned by hash.
pub const SHARES: usize = 1 << 12;

/// Limit for full records: three times what is free, so three quarters of the ring if nobody else uses it.
pub const WHOLE: u64 = 3;
/// Limit for lean records: seven eighths.
pub const LEAN: u64 = 7;
/// For the worker's own events: it makes sure itself that there is room.
pub const UNBOUNDED: u64 = u64::MAX;

/// The size of records in each share.
#[derive(Debug, Default)]
pub struct Demand(HashMap<u16, u64>);

impl Demand {
    pub fn of(records: &[u8]) -> Demand {
        let mut demand = Demand::default();
        demand.count(records);
        demand
    }

    /// Count again from nothing. For the same owners this allocates nothing.
    pub fn count(&mut self, records: &[u8]) {
        self.0.values_mut().for_each(|bytes| *bytes = 0);
        for (share, length) in lengths(records) {
            *self.0.entry(share).or_default() += length as u64;
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.0.iter().map(|(share, bytes)| (*share as usize % SHARES, *bytes))
    }
}
