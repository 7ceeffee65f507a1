//! When each server that has a name was heard last, by the clock of this one: a beat counts when it is seen here, so no two
//! clocks are compared.

use crate::{clock, settings};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};

/// As many servers are known at once.
const MOST: usize = 64;
/// For so long after a beat of another epoch two servers have one name.
const CONFLICT: u64 = 60_000_000;

/// Of one database. On a standby its one worker writes it; else that and the processes that apply what peers send.
#[repr(C)]
pub struct Heard {
    nodes: [Node; MOST],
    /// A beat of another server has been applied here since this one started.
    has_peers: AtomicBool,
}

#[repr(C)]
struct Node {
    /// A keyed hash of the name; 0 is none.
    name: AtomicU64,
    /// The last beat, of this epoch.
    epoch: AtomicU64,
    beat: AtomicU64,
    /// When it was seen, by the boot clock. 0: it was there when this server began to look, and may be old.
    at: AtomicU64,
    /// Of a peer: listeners were told of its members, and hear what becomes of them.
    is_told: AtomicBool,
    /// When a beat came of another epoch than the newest, by the boot clock; 0 is never. Two servers have the name.
    conflict_at: AtomicU64,
}

/// What a beat means.
pub enum Arrival {
    Known,
    /// Listeners do not know yet that its members are here.
    New,
    /// It is of an older epoch than the newest, and does not count.
    Conflict,
}

impl Heard {
    /// A server has said this, the last time that somebody looked.
    pub fn note(&self, name: u64, epoch: u64, beat: u64) {
        let Some((node, is_known)) = self.claim(name) else { return };
        let is_news = node.epoch.load(Relaxed) != epoch || node.beat.load(Relaxed) != beat;
        if !is_known || is_news {
            node.epoch.store(epoch, Relaxed);
            node.beat.store(beat, Relaxed);
            node.at.store(if is_known { clock::boot() } else { 0 }, Release);
        }
    }

    /// This server itself: nothing of it is old.
    pub fn note_own(&self, name: u64, epoch: u64, beat: u64) {
        self.note(name, epoch, beat);
        if let Some(node) = self.find(name) {
            node.at.store(clock::boot(), Release);
        }
    }

    /// A beat of a peer is applied.
    pub fn note_arrival(&self, name: u64, epoch: u64, beat: u64) -> Arrival {
        let Some((node, _)) = self.claim(name) else { return Arrival::Known };
        if epoch < node.epoch.fetch_max(epoch, AcqRel) {
            return Arrival::Conflict;
        }
        node.beat.store(beat, Relaxed);
        node.at.store(clock::boot(), Release);
        self.has_peers.store(true, Release);
        if node.is_told.swap(true, AcqRel) { Arrival::Known } else { Arrival::New }
    }

    /// Two servers have this name. Whether that is news: nothing of it was seen for a while.
    pub fn note_conflict(&self, name: u64) -> bool {
        let is_news = !self.has_conflict(name);
        if let Some((node, _)) = self.claim(name) {
            node.conflict_at.store(clock::boot(), Release);
        }
        is_news
    }

    pub fn has_conflict(&self, name: u64) -> bool {
        self.conflict_age(name).is_some_and(|age| age <= CONFLICT)
    }

    /// How long ago that was seen last.
    fn conflict_age(&self, name: u64) -> Option<u64> {
        let at = self.find(name)?.conflict_at.load(Acquire);
        (at != 0).then(|| clock::boot().saturating_sub(at))
    }

    /// It has said that it stops, or what is here of it is being replaced: until the next beat nobody of it is here.
    pub fn hide(&self, name: u64) {
        if let Some(node) = self.find(name) {
            node.at.store(0, Release);
        }
    }

    /// Whether there may be members of other servers: since this one started.
    pub fn has_peers(&self) -> bool {
        self.has_peers.load(Acquire)
    }

    /// Whether listeners hear what becomes of its members.
    pub fn is_told(&self, name: u64) -> bool {
        self.find(name).is_some_and(|node| node.is_told.load(Acquire))
    }

    /// Whether there are peers that are not heard any more, and listeners do not know. From now on they do.
    pub fn take_silent(&self) -> bool {
        let mut is_any = false;
        for node in self.told().filter(|node| !node.is_heard()) {
            is_any |= node.is_told.swap(false, AcqRel);
        }
        is_any
    }

    /// When the next of the peers would have been silent for too long; the largest number if there is none.
    pub fn next_silence(&self) -> u64 {
        let timeout = settings::node_timeout();
        self.told().map(|node| node.at.load(Acquire).saturating_add(timeout)).min().unwrap_or(u64::MAX)
    }

    fn told(&self) -> impl Iterator<Item = &Node> {
        let nodes = if self.has_peers() { &self.nodes[..] } else { &[] };
        nodes.iter().filter(|node| node.is_told.load(Acquire))
    }

    /// Whether it was heard within presence.node_timeout.
    pub fn is_heard(&self, name: u64) -> bool {
        self.find(name).is_some_and(Node::is_heard)
    }

    /// How long ago; None: not since this server began to look.
    pub fn age(&self, name: u64) -> Option<u64> {
        self.find(name)?.age()
    }

    fn find(&self, name: u64) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name.load(Acquire) == name)
    }

    /// Its entry, and whether that was there.
    fn claim(&self, name: u64) -> Option<(&Node, bool)> {
        loop {
            if let Some(node) = self.find(name) {
                return Some((node, true));
            }
            let free = self.find(0)?;
            if free.name.compare_exchange(0, name, AcqRel, Acquire).is_ok() {
                return Some((free, false));
            }
        }
    }

    /// The database, or the extension in it, is gone.
    pub fn forget(&self) {
        self.has_peers.store(false, Release);
        for node in &self.nodes {
            for number in [&node.epoch, &node.beat, &node.at, &node.conflict_at] {
                number.store(0, Relaxed);
            }
            node.is_told.store(false, Relaxed);
            node.name.store(0, Release);
        }
    }
}

impl Node {
    fn age(&self) -> Option<u64> {
        let at = self.at.load(Acquire);
        (at != 0).then(|| clock::boot().saturating_sub(at))
    }

    fn is_heard(&self) -> bool {
        self.age().is_some_and(|age| age < settings::node_timeout())
    }
}
