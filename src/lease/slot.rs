//! One slot of the lease table: one member's lease.
//!
//! All fields are atomics; a shared lock protects the chains (a slot found stays that member's slot), an exclusive lock
//! is needed to change anything but the deadline word, the pins and `last_seen`.
//!
//! Life of the deadline word of a slot:
//!
//! ```text
//!            enter (commit)            the deadline passes         worker deleted the row
//!   FREE ───────────────────▶ deadline ──────────────────▶ CLAIMED ─────────────────────▶ TOMBSTONE
//!    ▲                        │   ▲ │                                                         │ ▲
//!    │                        └───┘ └──────────────── leave (commit) ─────────────────────────┼─┘
//!    │                      heartbeat                                                         │
//!    └────────────────────────────────────────────────────────────────────────────────────────┘
//!                        worker, once nobody can commit an older change (or: enter, newer version)
//! ```
//!
//! A renewal and an expiry are both a compare-and-swap on this one word, so exactly one of them wins, and
//! CLAIMED is final for that generation: whoever was told "true" by a heartbeat is alive.
//!
//! A lease is fixed when its member has said that it leaves: with a ttl of 0 a renewal is true, and moves nothing.

use super::atomic::Ordering::*;
use super::atomic::{AtomicU32, AtomicU64};

pub const FREE: u64 = 0;
pub const TOMBSTONE: u64 = 1;
pub const CLAIMED: u64 = 2;
/// The deadline of a session member without a ttl: the lease ends with the session.
pub const NEVER: u64 = u64::MAX;

/// Whether the word is a deadline that lies after `now`.
pub fn alive(word: u64, now: u64) -> bool {
    word > CLAIMED && word > now
}

/// Identifies a member: the database (its index in shared memory), the table `member` (each CREATE EXTENSION makes a
/// new one) and the keyed hash of room, member_id and connection_id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub database: u32,
    pub relation: u32,
    pub hash: u128,
}

/// One member's lease in shared memory. 96 bytes: two cache lines, wherever it begins.
#[repr(C)]
#[derive(Default)]
pub struct Slot {
    pub(super) hash_high: AtomicU64,
    pub(super) hash_low: AtomicU64,
    pub(super) deadline: AtomicU64,
    pub(super) last_seen: AtomicU64,
    /// The ttl (30 days at most), and the number of open transactions that are changing this member (fewer than there
    /// are processes, 2^18).
    pub(super) ttl_and_pins: Pair<42>,
    pub(super) version: AtomicU64,
    /// The generation (a version, below 2^53 like all numbers in JSON), and the database's index (below 1,000).
    pub(super) generation_and_database: Pair<53>,
    pub(super) owner: AtomicU64,
    pub(super) session: AtomicU64,
    pub(super) relation: AtomicU32,
    pub(super) next: AtomicU32,
    pub(super) changed_at: AtomicU64,
    pub(super) reverts_at: AtomicU64,
}

/// Two numbers in one word, the lower one of this many bits. Each has one writer at a time; the other may change
/// meanwhile.
#[derive(Default)]
pub struct Pair<const BITS: u32>(AtomicU64);

impl<const BITS: u32> Pair<BITS> {
    const LOWER: u64 = (1 << BITS) - 1;

    pub(super) fn lower(&self) -> u64 {
        self.0.load(Relaxed) & Self::LOWER
    }

    pub(super) fn upper(&self) -> u64 {
        self.0.load(Acquire) >> BITS
    }

    pub(super) fn set_lower(&self, number: u64) {
        self.0.fetch_xor(self.lower() ^ number.min(Self::LOWER), AcqRel);
    }

    pub(super) fn set_upper(&self, number: u64) {
        debug_assert!(number < 1 << (64 - BITS));
        self.0.fetch_xor((self.upper() ^ number) << BITS, AcqRel);
    }

    /// Nobody sets the upper number meanwhile.
    pub(super) fn increment_upper(&self) {
        self.0.fetch_add(1 << BITS, AcqRel);
    }

    pub(super) fn decrement_upper(&self) {
        self.0.fetch_sub(1 << BITS, AcqRel);
    }
}

/// The state of a lease that a commit writes and a reader finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// The deadline word: microseconds of the boot clock, or one of the constants above.
    pub deadline: u64,
    /// Boot clock. If there is a deadline this is deadline - ttl, unless the lease is fixed; then 0 means unknown.
    pub last_seen: u64,
    /// Microseconds; 0 with a deadline means that the lease is fixed.
    pub ttl: u64,
    pub version: u64,
    /// The version with which the member entered: a new one for each stay.
    pub generation: u64,
    /// Keyed hash of the owner's user_id.
    pub owner: u64,
    /// The database session that the member is bound to, 0 for none.
    pub session: u64,
    /// When a change of the member reverts, by the boot clock; 0 is never.
    pub reverts_at: u64,
    /// When the change that this slot shows was committed, by the boot clock.
    pub changed_at: u64,
    pub pins: u32,
}

/// Which stay of which owner a renewal applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stay {
    /// Keyed hash of the owner's user_id.
    pub owner: u64,
    pub generation: u64,
}

impl Lease {
    /// Whether a change of the member must have reverted by now.
    pub fn is_to_revert(&self, now: u64) -> bool {
        self.reverts_at != 0 && self.reverts_at <= now
    }

    /// When the member needs attention next.
    pub fn due(&self) -> u64 {
        if self.reverts_at == 0 { self.deadline } else { self.deadline.min(self.reverts_at) }
    }

    pub fn stay(&self) -> Stay {
        Stay { owner: self.owner, generation: self.generation }
    }

    /// Whether renewals leave the deadline alone.
    pub fn is_fixed(&self) -> bool {
        self.ttl == 0 && self.deadline > CLAIMED && self.deadline != NEVER
    }

    /// When an expired lease ended.
    pub fn ended(&self) -> u64 {
        if self.is_fixed() { self.deadline } else { self.last_seen.saturating_add(self.ttl) }
    }

    /// Proof of life at `now`.
    pub fn renew(&mut self, now: u64) {
        if self.is_fixed() {
            return;
        }
        self.last_seen = self.last_seen.max(now);
        if self.deadline != NEVER {
            self.deadline = self.deadline.max(now.saturating_add(self.ttl));
        }
    }

    /// This change applied over the slot's state, keeping what heartbeats have proved meanwhile. A claim stays: it is
    /// final for its generation.
    pub fn on_top_of(&self, old: &Lease) -> Lease {
        let mut new = *self;
        if old.generation == self.generation {
            if old.deadline == CLAIMED {
                new.deadline = CLAIMED;
            } else if old.last_seen > self.last_seen && !self.is_fixed() {
                new.last_seen = old.last_seen;
                if new.deadline != NEVER {
                    new.deadline = old.last_seen.saturating_add(new.ttl);
                }
            }
        }
        new
    }
}

impl Slot {
    pub(super) fn ttl(&self) -> u64 {
        self.ttl_and_pins.lower()
    }

    pub(super) fn pins(&self) -> u32 {
        self.ttl_and_pins.upper() as u32
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation_and_database.lower()
    }

    pub(super) fn key(&self) -> Key {
        Key {
            database: self.generation_and_database.upper() as u32,
            relation: self.relation.load(Relaxed),
            hash: (self.hash_high.load(Relaxed) as u128) << 64 | self.hash_low.load(Relaxed) as u128,
        }
    }

    pub(super) fn set_key(&self, key: &Key) {
        self.generation_and_database.set_upper(key.database.into());
        self.relation.store(key.relation, Relaxed);
        self.hash_high.store((key.hash >> 64) as u64, Relaxed);
        self.hash_low.store(key.hash as u64, Relaxed);
    }

    pub(super) fn lease(&self) -> Lease {
        let deadline = self.deadline.load(Acquire);
        let ttl = self.ttl();
        let last_seen = match deadline {
            FREE | TOMBSTONE | CLAIMED | NEVER => self.last_seen.load(Relaxed),
            _ if ttl == 0 => self.last_seen.load(Relaxed),
            deadline => deadline.saturating_sub(ttl),
        };
        Lease {
            deadline,
            last_seen,
            ttl,
            version: self.version.load(Relaxed),
            generation: self.generation(),
            owner: self.owner.load(Relaxed),
            session: self.session.load(Relaxed),
            reverts_at: self.reverts_at.load(Relaxed),
            changed_at: self.changed_at.load(Relaxed),
            pins: self.pins(),
        }
    }

    pub(super) fn put(&self, lease: &Lease) {
        self.ttl_and_pins.set_lower(lease.ttl);
        self.last_seen.store(lease.last_seen, Relaxed);
        self.version.store(lease.version, Relaxed);
        self.generation_and_database.set_lower(lease.generation);
        self.owner.store(lease.owner, Relaxed);
        self.session.store(lease.session, Relaxed);
        self.reverts_at.store(lease.reverts_at, Relaxed);
        self.changed_at.store(lease.changed_at, Relaxed);
        self.deadline.store(lease.deadline, Release);
    }

    pub(super) fn renew(&self, now: u64) -> bool {
        let mut word = self.deadline.load(Acquire);
        loop {
            if !alive(word, now) {
                return false;
            }
            if word == NEVER {
                self.last_seen.fetch_max(now, Relaxed);
                return true;
            }
            // For a fixed lease the ttl is 0, so nothing moves.
            let renewed = now.saturating_add(self.ttl());
            if renewed <= word {
                return true;
            }
            match self.deadline.compare_exchange_weak(word, renewed, AcqRel, Acquire) {
                Ok(_) => return true,
                Err(current) => word = current,
            }
        }
    }

    pub(super) fn claim(&self, now: u64, ended: bool) -> bool {
        let mut word = self.deadline.load(Acquire);
        loop {
            match word {
                CLAIMED => return true,
                FREE | TOMBSTONE => return false,
                _ if !ended && alive(word, now) => return false,
                _ => {}
            }
            let last_seen = match self.ttl() {
                _ if word == NEVER => self.last_seen.load(Relaxed),
                // A fixed lease: when it ended.
                0 => word.min(now),
                ttl => word.saturating_sub(ttl),
            };
            match self.deadline.compare_exchange_weak(word, CLAIMED, AcqRel, Acquire) {
                Ok(_) => {
                    self.last_seen.store(last_seen, Relaxed);
                    return true;
                }
                Err(current) => word = current,
            }
        }
    }
}
