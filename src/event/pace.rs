//! A session that writes many members at once is slowed down to the speed of the worker; otherwise the ring would fill up and
//! lose events.
//!
//! Of what a session has put into the ring there may be as much as is free when its next bulk verb begins; where there is
//! more, that verb waits. So one such session fills half of the ring, two fill two thirds, and there is room for others
//! (dynamic thresholds, as in `share`). Who has little in the ring never waits, however full others have made it.
//!
//! It waits before it has locked anything. A transaction that has written before has locks that others wait for: it does not
//! wait, nor does a commit, nor a verb that is about one member.

use crate::clock;
use crate::pg::latch::pause;
use crate::shared::Database;
use pgrx::pg_sys;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::Ordering::*;

/// The longest wait for the worker.
const LONGEST: u64 = 1_000_000;

thread_local! {
    static MINE: RefCell<Mine> = const { RefCell::new(Mine(VecDeque::new())) };
}

/// Called before `appended`, which must not fail.
pub fn prepare() {
    MINE.with_borrow_mut(|mine| mine.0.reserve(Mine::PARTS - mine.0.len()));
}

/// Records of this session were appended to the ring, up to this end.
pub fn appended(database: &Database, end: u64, bytes: u64) {
    MINE.with_borrow_mut(|mine| {
        mine.forget(database.tail.load(Acquire));
        mine.add(end, bytes);
    });
}

/// Called before a verb whose events may take this many bytes.
pub fn wait_for_room(database: &'static Database, bytes: u64) {
    // SAFETY: plain read of this process's state.
    let has_written = unsafe { pg_sys::GetTopTransactionIdIfAny() } != pg_sys::InvalidTransactionId;
    let end = clock::boot() + LONGEST;
    while !has_written && is_ahead(database, bytes) && clock::boot() < end {
        pause(1, c"PresenceRoom");
    }
}

fn is_ahead(database: &'static Database, bytes: u64) -> bool {
    let ring = database.ring();
    let mine = MINE.with_borrow_mut(|mine| {
        mine.forget(ring.tail.load(Acquire));
        mine.bytes()
    });
    // A session with nothing in the ring does not wait, so any single verb gets through.
    mine > 0 && mine + bytes > ring.free() && database.worker.pid.load(Acquire) != 0
}

/// This session's records in the ring: the end of each part, and its bytes.
#[derive(Default)]
struct Mine(VecDeque<(u64, u64)>);

impl Mine {
    /// With this many parts, further ones are added to the last.
    const PARTS: usize = 32;

    fn add(&mut self, end: u64, bytes: u64) {
        let before = if self.0.len() == Self::PARTS { self.0.pop_back() } else { None };
        self.0.push_back((end, bytes + before.map_or(0, |(_, bytes)| bytes)));
    }

    /// Records before the ring's tail are published.
    fn forget(&mut self, tail: u64) {
        while self.0.front().is_some_and(|(end, _)| *end <= tail) {
            self.0.pop_front();
        }
    }

    fn bytes(&self) -> u64 {
        self.0.iter().map(|(_, bytes)| bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_does_not_count() {
        let mut mine = Mine::default();
        (1..=100).for_each(|end| mine.add(end * 10, 8));
        assert_eq!((mine.bytes(), mine.0.len()), (800, Mine::PARTS));
        mine.forget(105);
        assert_eq!(mine.bytes(), 720);
        mine.forget(999);
        assert_eq!(
            mine.bytes(),
            8 * (100 - Mine::PARTS as u64 + 1),
            "as long as any of the last part is there"
        );
        mine.add(1_010, 8);
        mine.forget(1_000);
        assert_eq!(mine.bytes(), 8);
        mine.forget(1_010);
        assert_eq!(mine.bytes(), 0);
    }
}
