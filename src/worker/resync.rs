//! When listeners are told that events were lost: soon, but not again and again. Each of them lists anew.

use crate::clock;
use crate::shared::Database;
use std::sync::atomic::Ordering::*;

/// From one `resync` to the next.
const PAUSE: u64 = 1_000_000;

/// What a `resync` tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owed {
    /// How often events were lost.
    pub losses: u64,
    /// What was in the ring before the last of these lies before this position. All of it is told before the
    /// `resync`: after it, it would revive members whose leave was lost.
    pub head: u64,
}

#[derive(Clone, Default)]
pub struct Resync {
    not_before: u64,
    /// Begun, and not told yet: what is lost meanwhile is the next one's.
    owed: Option<Owed>,
    /// The losses that were seen last.
    seen: u64,
}

impl Resync {
    /// Whether something was lost since the last look. What was lost by now is over by any snapshot taken after.
    pub fn look(&mut self, database: &'static Database) -> bool {
        let Some(losses) = database.owed_resync() else { return false };
        if self.owed.is_none() && clock::boot() >= self.not_before {
            self.owed = Some(Owed { losses, head: database.ring().head.load(Acquire) });
        }
        std::mem::replace(&mut self.seen, losses) != losses
    }

    /// What is to be told now.
    pub fn owed(&self) -> Option<Owed> {
        self.owed
    }

    /// It is committed.
    pub fn told(&mut self) {
        self.owed = None;
        self.not_before = clock::boot() + PAUSE;
    }

    /// When there is one to tell; the largest number if none is owed.
    pub fn next(&self, database: &Database) -> u64 {
        if database.owed_resync().is_some() { self.not_before } else { u64::MAX }
    }
}
