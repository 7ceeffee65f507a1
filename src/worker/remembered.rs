//! Counts by key, those that were asked for last. Of two maps the older one is given up when the newer one is full: so
//! what is asked for often stays, and never are all forgotten at once.

use std::collections::HashMap;

/// Memory of a bucket of a map: key, count and the map's own byte.
const BUCKET_BYTES: usize = 17;

#[derive(Default)]
pub struct Remembered {
    newer: HashMap<u64, u32>,
    older: HashMap<u64, u32>,
}

impl Remembered {
    /// Make room for this many more: if both maps together could exceed this size, forget what was not asked for
    /// recently.
    pub fn make_room(&mut self, bytes: usize, coming: usize) {
        // A map has a power of two of buckets, of which at most seven eighths are used; while it grows the old ones
        // exist, too.
        let buckets = (bytes * 2 / 5 / BUCKET_BYTES + 1).next_power_of_two() / 2;
        if self.newer.len() + coming > buckets / 8 * 7 {
            self.older = std::mem::take(&mut self.newer);
        }
    }

    pub fn get(&self, key: u64) -> Option<u32> {
        self.newer.get(&key).or_else(|| self.older.get(&key)).copied()
    }

    /// Whether the key is known; marks it as recently used.
    pub fn touch(&mut self, key: u64) -> bool {
        self.newer.contains_key(&key)
            || self.older.remove(&key).is_some_and(|count| {
                self.newer.insert(key, count);
                true
            })
    }

    pub fn set(&mut self, key: u64, count: u32) {
        self.older.remove(&key);
        self.newer.insert(key, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES: usize = 100_000;

    fn fill(counts: &mut Remembered, keys: std::ops::Range<u64>) {
        for key in keys {
            counts.make_room(BYTES, 1);
            counts.set(key, key as u32);
        }
    }

    #[test]
    fn what_is_asked_for_stays() {
        let mut counts = Remembered::default();
        counts.set(7, 7);
        for key in 1000..100_000 {
            fill(&mut counts, key..key + 1);
            assert!(counts.touch(7));
        }
        assert_eq!((counts.get(7), counts.get(1000)), (Some(7), None));
    }

    #[test]
    fn it_takes_no_more_than_it_may() {
        let mut counts = Remembered::default();
        fill(&mut counts, 0..100_000);
        let (newer, older) = (counts.newer.capacity(), counts.older.capacity());
        // Like hashbrown: a power of two of buckets, of which seven eighths can be used.
        assert!((newer + newer / 2 + older) * 8 / 7 * BUCKET_BYTES <= BYTES, "{newer} and {older}");
        assert!(older > 500);
    }

    #[test]
    fn the_newest_count_is_the_one() {
        let mut counts = Remembered::default();
        fill(&mut counts, 0..4000);
        let old = *counts.older.keys().next().expect("some are older");
        counts.set(old, 99);
        assert_eq!(counts.get(old), Some(99));
        assert!(!counts.older.contains_key(&old));
    }
}
