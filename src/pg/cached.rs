//! What a session remembers of the catalog, by one rule: take the epoch, then look the answer up as of now, and
//! remember it under that epoch. Callbacks move epochs on when the catalog changes; a change that comes while we look
//! makes the answer one of an epoch that is over, so it is looked up again.
//!
//! As of now: the caller's statement may have begun before it waited for a lock, or see an old snapshot altogether.

use super::snapshot::with_catalog_snapshot;
use crate::error::Result;
use std::cell::RefCell;
use std::collections::VecDeque;

/// Answers by question, the most recently used ones.
pub struct Cached<K, E, T> {
    most: usize,
    /// The latest first.
    known: RefCell<VecDeque<Known<K, E, T>>>,
}

struct Known<K, E, T> {
    key: K,
    epoch: E,
    answer: T,
}

impl<K: PartialEq, E: PartialEq, T: Clone> Cached<K, E, T> {
    pub const fn new(most: usize) -> Cached<K, E, T> {
        Cached { most, known: RefCell::new(VecDeque::new()) }
    }

    /// The answer for this epoch, which is the current one.
    pub fn get(&self, key: K, epoch: E, look_up: impl FnOnce(&K) -> Result<T>) -> Result<T> {
        if let Some(answer) = self.known(&key, &epoch) {
            return Ok(answer);
        }
        let answer = with_catalog_snapshot(|| look_up(&key))?;
        let mut known = self.known.borrow_mut();
        known.retain(|known| known.epoch == epoch);
        known.push_front(Known { key, epoch, answer: answer.clone() });
        known.truncate(self.most);
        Ok(answer)
    }

    fn known(&self, key: &K, epoch: &E) -> Option<T> {
        let mut known = self.known.borrow_mut();
        let at = known.iter().position(|known| known.key == *key && known.epoch == *epoch)?;
        if at > 0 {
            let found = known.remove(at)?;
            known.push_front(found);
        }
        known.front().map(|known| known.answer.clone())
    }
}
