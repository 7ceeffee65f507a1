//! What fails for one member or event: it is tried again by itself, with a growing pause, while the others go on. Of many at
//! once the one that fails is found by halves.

use crate::pg::subtransaction::Failure;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Beyond this items are not recorded: they are tried each time.
const MOST: usize = 50_000;

#[derive(Clone, Copy)]
struct Pause {
    since: u64,
    until: u64,
    length: u64,
}

pub struct Stuck {
    pauses: HashMap<u128, Pause>,
    first: u64,
    longest: u64,
}

impl Stuck {
    /// With pauses in microseconds from `first` on, doubled each time, up to `longest`.
    pub fn new(first: u64, longest: u64) -> Stuck {
        Stuck { pauses: HashMap::new(), first, longest }
    }

    pub fn is_empty(&self) -> bool {
        self.pauses.is_empty()
    }

    /// Whether the item must still wait.
    pub fn waits(&self, key: u128, now: u64) -> bool {
        self.pauses.get(&key).is_some_and(|pause| now < pause.until)
    }

    /// Since when the item has been failing.
    pub fn since(&self, key: u128) -> Option<u64> {
        self.pauses.get(&key).map(|pause| pause.since)
    }

    /// When the next item must be retried.
    pub fn next(&self) -> u64 {
        self.pauses.values().map(|pause| pause.until).min().unwrap_or(u64::MAX)
    }

    /// The item failed. Returns whether it was not failing before.
    pub fn failed(&mut self, key: u128, now: u64) -> bool {
        let is_full = self.pauses.len() >= MOST;
        match self.pauses.entry(key) {
            Entry::Occupied(mut known) => {
                let length = (known.get().length * 2).min(self.longest);
                *known.get_mut() = Pause { until: now + length, length, ..*known.get() };
                false
            }
            Entry::Vacant(new) if !is_full => {
                new.insert(Pause { since: now, until: now + self.first, length: self.first });
                true
            }
            Entry::Vacant(_) => false,
        }
    }

    /// The item succeeded.
    pub fn is_over(&mut self, key: u128) {
        if !self.pauses.is_empty() {
            self.pauses.remove(&key);
        }
    }

    /// Forget items that nobody has retried in their time: they are gone.
    pub fn forget_gone(&mut self, now: u64) {
        let longest = self.longest;
        self.pauses.retain(|_, pause| now < pause.until + longest);
    }
}

/// After this many failures in a row the cause is not a particular item.
const MOST_FAILURES: u32 = 16;

/// Do something with all items at once; if that fails, with the halves, down to single items that fail. A cancel that
/// must be obeyed ends it; so does an error that concerns all of them and may pass.
pub fn by_halves<T>(
    items: &[T],
    obeys_cancel: bool,
    mut attempt: impl FnMut(&[T]) -> Result<(), Failure>,
    mut alone: impl FnMut(&T, Failure),
) -> Result<(), Failure> {
    let mut failures = 0;
    let mut parts = vec![items];
    while let Some(part) = parts.pop() {
        let failure = match attempt(part) {
            Ok(()) => {
                failures = 0;
                continue;
            }
            Err(failure) => failure,
        };
        failures += 1;
        if failure.cancelled && obeys_cancel || failure.passing && failures > MOST_FAILURES {
            return Err(failure);
        }
        match part {
            [item] => alone(item, failure),
            _ => {
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(passing: bool, cancelled: bool) -> Failure {
        let code = pgrx::PgSqlErrorCode::ERRCODE_INTERNAL_ERROR;
        Failure { message: String::new(), limit: false, passing, cancelled, code }
    }

    /// Which items succeed and which fail, and whether it was completed.
    fn halve(bad: &[u32], error: fn() -> Failure, obeys_cancel: bool) -> (Vec<u32>, Vec<u32>, bool) {
        let items: Vec<u32> = (0..100).collect();
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        let attempt = |part: &[u32]| {
            if part.iter().any(|item| bad.contains(item)) {
                return Err(error());
            }
            done.extend(part);
            Ok(())
        };
        let ended = by_halves(&items, obeys_cancel, attempt, |item, _| failed.push(*item)).is_ok();
        (done, failed, ended)
    }

    #[test]
    fn what_fails_is_found_and_the_rest_is_done_in_order() {
        for passing in [|| failure(false, false), || failure(true, false)] {
            let (done, failed, ended) = halve(&[0, 17, 18, 99], passing, true);
            assert_eq!((failed, ended), (vec![0, 17, 18, 99], true));
            assert_eq!(done, (0..100).filter(|item| ![0, 17, 18, 99].contains(item)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_fails_with_all_of_them_and_may_pass_ends_soon() {
        let all: Vec<u32> = (0..100).collect();
        let (done, failed, ended) = halve(&all, || failure(true, false), true);
        assert!(done.is_empty() && failed.len() < 10 && !ended);
        assert_eq!(halve(&all, || failure(false, false), true).1, all);
    }

    #[test]
    fn a_cancel_is_obeyed_unless_it_is_none() {
        assert_eq!(halve(&[17], || failure(true, true), true), (vec![], vec![], false));
        assert_eq!(halve(&[17], || failure(true, true), false).1, [17]);
    }

    #[test]
    fn pauses_grow_and_end() {
        let mut stuck = Stuck::new(10, 35);
        assert!(stuck.failed(1, 100));
        assert_eq!((stuck.waits(1, 109), stuck.waits(1, 110), stuck.waits(2, 100)), (true, false, false));
        for (now, until) in [(110, 130), (130, 165), (165, 200)] {
            assert!(!stuck.failed(1, now), "known");
            assert_eq!((stuck.next(), stuck.since(1)), (until, Some(100)));
        }
        stuck.is_over(1);
        assert_eq!((stuck.next(), stuck.is_empty()), (u64::MAX, true));
    }

    #[test]
    fn what_nobody_asks_for_any_more_is_forgotten() {
        let mut stuck = Stuck::new(10, 20);
        stuck.failed(1, 0);
        stuck.forget_gone(29);
        assert!(!stuck.is_empty());
        stuck.forget_gone(30);
        assert!(stuck.is_empty());
    }

    #[test]
    fn only_so_many_are_remembered() {
        let mut stuck = Stuck::new(10, 20);
        for key in 0..MOST as u128 + 5 {
            assert_eq!(stuck.failed(key, 0), key < MOST as u128);
        }
        assert_eq!(stuck.pauses.len(), MOST);
    }
}
