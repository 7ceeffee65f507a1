//! When each server that has a name was heard last, by the clock of this one: a beat counts when it is seen here, so no two
//! clocks are compared.
//!
//! Readers go by the clock. Listeners are told, each time with a delay, by the worker (`worker/silence.rs`):
//!
//! ```text
//!            first beat since the start: resync                     no beat for node_timeout, or "down"
//!  unknown ------------------------------------> told, present ----------------------------------------> told, silent
//!     ^                                               ^                                                  (leaves)   |
//!     |                                               +------- a beat (enters, with versions above the floor) -------+
//!     +----- what is here of it is replaced by a new copy: resync ------- from either
//! ```

use crate::{clock, settings};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};

/// As many servers are known at once.
const MOST: usize = 64;
/// From a floor on, so many versions are given out at once to members whose own are older: each has one for itself, as versions
/// of one server do not repeat within so many. Programs take a version for a name of what they show, as the gateway does.
const SPREAD: u64 = 1 << 22;
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
    /// Since then it has said how many it has.
    is_counted: AtomicBool,
    /// Listeners hear, or have heard, that its members are gone.
    is_silent: AtomicBool,
    /// How often it fell silent or came back, and up to which of these times listeners have been told.
    turns: AtomicU64,
    told_turns: AtomicU64,
    /// Its members are shown with versions from here on: newer than the leaves of before.
    floor: AtomicU64,
    /// When a beat came of another epoch than the newest, by the boot clock; 0 is never. Two servers have the name.
    conflict_at: AtomicU64,
}

/// What a beat means.
pub enum Arrival {
    Known,
    /// Listeners do not know yet that its members are here.
    New,
    /// They have been told that its members are gone.
    Back,
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
        let is_new = !node.is_told.load(Acquire);
        let is_back = node.is_silent.load(Acquire);
        if is_new || is_back {
            // Before they are shown.
            node.floor.store(super::next_versions(SPREAD), Release);
        }
        node.at.store(clock::boot(), Release);
        if is_new {
            node.is_counted.store(false, Release);
        }
        self.has_peers.store(true, Release);
        if is_back {
            node.turns.fetch_add(1, AcqRel);
        }
        node.is_silent.store(false, Release);
        node.is_told.store(true, Release);
        match () {
            _ if is_new => Arrival::New,
            _ if is_back => Arrival::Back,
            _ => Arrival::Known,
        }
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

    /// It has said that it stops: until the next beat nobody of it is here. False: that is of an older epoch than the newest,
    /// and does not count.
    pub fn hide(&self, name: u64, epoch: u64) -> bool {
        let Some(node) = self.find(name) else { return true };
        if epoch < node.epoch.fetch_max(epoch, AcqRel) {
            return false;
        }
        node.at.store(0, Release);
        true
    }

    /// What is here of it is being replaced. Whether listeners were told of it: they have to list anew.
    pub fn replace(&self, name: u64) -> bool {
        let Some(node) = self.find(name) else { return false };
        node.at.store(0, Release);
        node.is_silent.store(false, Release);
        node.told_turns.store(node.turns.load(Acquire), Release);
        node.is_told.swap(false, AcqRel)
    }

    /// It says how many members it has. Whether that is the first time since listeners were told of them.
    pub fn is_first_count(&self, name: u64) -> bool {
        self.find(name).is_some_and(|node| node.is_told.load(Acquire) && !node.is_counted.swap(true, AcqRel))
    }

    /// Whether there may be members of other servers: since this one started.
    pub fn has_peers(&self) -> bool {
        self.has_peers.load(Acquire)
    }

    /// Whether listeners hear what becomes of its members.
    pub fn is_told(&self, name: u64) -> bool {
        self.find(name).is_some_and(|node| node.is_told.load(Acquire))
    }

    /// Whether listeners hear that its members are gone.
    pub fn is_silent(&self, name: u64) -> bool {
        self.find(name).is_some_and(|node| node.is_silent.load(Acquire))
    }

    /// Whether some of its members may be told as gone: since this server has started it was silent.
    pub fn may_have_left(&self, name: u64) -> bool {
        self.find(name).is_some_and(|node| node.is_silent.load(Acquire) || node.is_unsettled())
    }

    /// The version with which a member of that server is shown, whose own is this one.
    pub fn version_here(&self, name: u64, version: u64) -> u64 {
        let floor = self.find(name).map_or(0, |node| node.floor.load(Acquire));
        if version < floor { floor + version % SPREAD } else { version }
    }

    /// Peers that are not heard any more are silent from now on.
    pub fn take_silent(&self) {
        for node in self.told().filter(|node| !node.is_heard() && !node.is_silent.load(Acquire)) {
            node.turns.fetch_add(1, AcqRel);
            node.is_silent.store(true, Release);
        }
    }

    /// Whether listeners wait to be told of a server's silence or return.
    pub fn is_unsettled(&self) -> bool {
        self.told().any(Node::is_unsettled)
    }

    /// Which turn of this server listeners wait to be told of.
    pub fn unsettled(&self, name: u64) -> Option<u64> {
        let node = self.find(name).filter(|node| node.is_told.load(Acquire) && node.is_unsettled())?;
        Some(node.turns.load(Acquire))
    }

    /// They have been told of that turn.
    pub fn settle(&self, name: u64, turn: u64) {
        if let Some(node) = self.find(name) {
            node.told_turns.fetch_max(turn, AcqRel);
        }
    }

    /// When the next of the peers would have been silent for too long; the largest number if there is none.
    pub fn next_silence(&self) -> u64 {
        let timeout = settings::node_timeout();
        let heard = self.told().filter(|node| !node.is_silent.load(Acquire));
        heard.map(|node| node.at.load(Acquire).saturating_add(timeout)).min().unwrap_or(u64::MAX)
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
            let turns = [&node.turns, &node.told_turns];
            for number in
                [&node.epoch, &node.beat, &node.at, &node.conflict_at, &node.floor].into_iter().chain(turns)
            {
                number.store(0, Relaxed);
            }
            for flag in [&node.is_told, &node.is_counted, &node.is_silent] {
                flag.store(false, Relaxed);
            }
            node.name.store(0, Release);
        }
    }
}

impl Node {
    fn age(&self) -> Option<u64> {
        let at = self.at.load(Acquire);
        (at != 0).then(|| clock::boot().saturating_sub(at))
    }

    fn is_unsettled(&self) -> bool {
        self.turns.load(Acquire) > self.told_turns.load(Acquire)
    }

    fn is_heard(&self) -> bool {
        self.age().is_some_and(|age| age < settings::node_timeout())
    }
}
