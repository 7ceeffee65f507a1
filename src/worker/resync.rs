//! When listeners are told that events were lost: soon, but not again and again. Each of them lists anew.

use crate::clock;
use crate::shared::Database;
use std::sync::atomic::Ordering::*;

/// Minimum interval between two `resync`.
const PAUSE: u64 = 1_000_000;

/// The losses that a `resync` announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owed {
    /// How often events were lost.
    pub losses: u64,
    /// Everything that was in the ring before the last of these losses is before this position. It is published before
    /// the `resync`: after it, it would revive members whose leave was lost.
    pub head: u64,
}

#[derive(Clone, Default)]
pub struct Resync {
    not_before: u64,
    /// Begun, and not sent yet: later losses belong to the next one.
    owed: Option<Owed>,
    /// The losses that were seen last.
    seen: u64,
}

impl Resync {
    /// Whether something was lost since the last look. Transactions of these losses have ended by any later snapshot.
    pub fn look(&mut self, database: &'static Database) -> bool {
        let Some(losses) = database.owed_resync() else { return false };
        if self.owed.is_none() && clock::boot() >= self.not_before {
            self.owed = Some(Owed { losses, head: database.ring().head.load(Acquire) });
        }
        std::mem::replace(&mut self.seen, losses) != losses
    }

    /// What must be sent now.
    pub fn owed(&self) -> Option<Owed> {
        self.owed
    }

    /// It has been committed.
    pub fn told(&mut self) {
        self.owed = None;
        self.not_before = clock::boot() + PAUSE;
    }

    /// When the next one must be sent; the largest number if none is owed.
    pub fn next(&self, database: &Database) -> u64 {
        if database.owed_resync().is_some() { self.not_before } else { u64::MAX }
    }
}
