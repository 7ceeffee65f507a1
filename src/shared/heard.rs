//! When each server that has a name was heard last, by the clock of this one: a beat counts when it is seen here, so no two
//! clocks are compared.

use crate::{clock, settings};
use std::sync::atomic::{AtomicU64, Ordering::*};

/// As many servers are known at once.
const MOST: usize = 64;

/// Of one database. Written by its one worker.
#[repr(C)]
pub struct Heard([Node; MOST]);

#[repr(C)]
struct Node {
    /// A keyed hash of the name; 0 is none.
    name: AtomicU64,
    /// The last beat, of this epoch.
    epoch: AtomicU64,
    beat: AtomicU64,
    /// When it was seen, by the boot clock. 0: it was there when this server began to look, and may be old.
    at: AtomicU64,
}

impl Heard {
    /// A server has said this, the last time that somebody looked.
    pub fn note(&self, name: u64, epoch: u64, beat: u64) {
        let Some(node) = self.find(name).or_else(|| self.find(0)) else { return };
        let is_known = node.name.load(Relaxed) == name;
        let is_news = node.epoch.load(Relaxed) != epoch || node.beat.load(Relaxed) != beat;
        if !is_known || is_news {
            node.epoch.store(epoch, Relaxed);
            node.beat.store(beat, Relaxed);
            node.at.store(if is_known { clock::boot() } else { 0 }, Release);
            node.name.store(name, Release);
        }
    }

    /// This server itself: nothing of it is old.
    pub fn note_own(&self, name: u64, epoch: u64, beat: u64) {
        self.note(name, epoch, beat);
        if let Some(node) = self.find(name) {
            node.at.store(clock::boot(), Release);
        }
    }

    /// Whether it was heard within presence.node_timeout.
    pub fn is_heard(&self, name: u64) -> bool {
        self.age(name).is_some_and(|age| age < settings::node_timeout())
    }

    /// How long ago; None: not since this server began to look.
    pub fn age(&self, name: u64) -> Option<u64> {
        let at = self.find(name)?.at.load(Acquire);
        (at != 0).then(|| clock::boot().saturating_sub(at))
    }

    fn find(&self, name: u64) -> Option<&Node> {
        self.0.iter().find(|node| node.name.load(Acquire) == name)
    }

    pub fn forget(&self) {
        self.0.iter().for_each(|node| node.name.store(0, Release));
    }
}
