//! Who may read, as a database's worker found it last. In shared memory, for the next worker; a clean restart keeps it.

use pgrx::pg_sys;
use siphasher::sip::SipHasher13;
use std::hash::Hasher;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

/// The number of facts, a hash of each of the first ones, and one of all. Only the worker writes.
#[repr(C)]
pub struct Rights {
    /// OID of the table `member`.
    table: AtomicU32,
    count: AtomicU64,
    digest: AtomicU64,
    first: [AtomicU64; FACTS],
}

const FACTS: usize = 2_048;

impl Rights {
    /// Whether all old facts still hold, given the current ones in order. If there are too many to compare, only if
    /// nothing changed. Facts of a dropped extension do not matter, because the next one has another secret and other
    /// channels.
    pub fn are_kept_by(&self, table: pg_sys::Oid, facts: &[u64]) -> bool {
        if self.table.load(Acquire) != u32::from(table) {
            return true;
        }
        match self.count.load(Acquire) as usize {
            count if count > FACTS => self.digest.load(Acquire) == digest(facts),
            count => self.first[..count].iter().all(|fact| facts.binary_search(&fact.load(Acquire)).is_ok()),
        }
    }

    pub fn set(&self, table: pg_sys::Oid, facts: &[u64]) {
        self.table.store(u32::from(table), Release);
        self.first.iter().zip(facts).for_each(|(place, fact)| place.store(*fact, Release));
        self.digest.store(digest(facts), Release);
        self.count.store(facts.len() as u64, Release);
    }

    pub fn forget(&self) {
        self.count.store(0, Release);
    }

    /// The state for the next start; nothing if it is unknown.
    pub fn save(&self) -> Vec<u64> {
        let (table, count) = (u64::from(self.table.load(Acquire)), self.count.load(Acquire));
        if table == 0 || count == 0 {
            return Vec::new();
        }
        let first = self.first.iter().take(count as usize).map(|fact| fact.load(Acquire));
        [table, count, self.digest.load(Acquire)].into_iter().chain(first).collect()
    }

    /// Restore into fresh memory. False: these numbers are not from `save`, and nothing is changed.
    pub fn restore(&self, saved: &[u64]) -> bool {
        let Some((&[table, count, digest], first)) = saved.split_first_chunk() else { return false };
        if table == 0 || count == 0 || first.len() as u64 != count.min(FACTS as u64) {
            return false;
        }
        self.table.store(table as u32, Release);
        self.first.iter().zip(first).for_each(|(place, fact)| place.store(*fact, Release));
        self.digest.store(digest, Release);
        self.count.store(count, Release);
        true
    }
}

fn digest(facts: &[u64]) -> u64 {
    let mut hasher = SipHasher13::new();
    facts.iter().for_each(|fact| hasher.write_u64(*fact));
    hasher.finish()
}
