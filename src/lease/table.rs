//! The lease table: a fixed number of slots, hashed by member, in partitions with a lock each.
//!
//! The table does not know PostgreSQL: it works on memory it is given and locks it is given, so its tests run
//! with threads. What one slot is, and how it lives, says `slot`.

use super::atomic::Ordering::*;
use super::atomic::{AtomicU32, AtomicU64};
use super::slot::{CLAIMED, FREE, Key, Lease, NEVER, Slot, Stay, TOMBSTONE, alive};

/// Number of partitions, each with a lock. A power of two.
pub const PARTITIONS: usize = 128;

/// No slot: the end of a chain, or of the free list.
const NIL: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heartbeat {
    Renewed,
    /// The member has no slot: it is absent, or its lease lives in its row.
    NoSlot,
    /// Left or expired.
    Gone,
    /// Owned by another user.
    Foreign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    Done,
    /// The slot already holds a newer version.
    Older,
    /// No slot is free: the lease lives in the row.
    Full,
}

/// The locks of the partitions, which live in shared memory.
pub trait Locks {
    fn shared<T>(&self, partition: usize, body: impl FnOnce() -> T) -> T;
    fn exclusive<T>(&self, partition: usize, body: impl FnOnce() -> T) -> T;
}

/// The list head and counters; lives in the same memory as the slots.
#[repr(C)]
#[derive(Default)]
pub struct Header {
    /// Free list: a tag in the upper half guards against ABA, the slot index in the lower.
    free: AtomicU64,
    used: AtomicU64,
}

pub struct LeaseTable<L: Locks + 'static> {
    pub header: &'static Header,
    pub buckets: &'static [AtomicU32],
    pub slots: &'static [Slot],
    /// For each database and partition a lower bound of the deadlines and other due times in it: the sweeper skips
    /// later ones.
    pub earliest: &'static [AtomicU64],
    pub locks: L,
}

/// The number of buckets for this many slots: a power of two, 0.75 to 1.5 per slot.
pub fn bucket_count(slots: usize) -> usize {
    (slots - slots / 4).max(PARTITIONS).next_power_of_two()
}

impl<L: Locks> LeaseTable<L> {
    /// Initialize the memory as an empty table. Nobody else uses it yet.
    pub fn initialize(&self) {
        for bucket in self.buckets {
            bucket.store(NIL, Relaxed);
        }
        for (index, slot) in self.slots.iter().enumerate() {
            let next = if index + 1 < self.slots.len() { index as u32 + 1 } else { NIL };
            slot.deadline.store(FREE, Relaxed);
            slot.ttl_and_pins.set_upper(0);
            slot.next.store(next, Relaxed);
        }
        for earliest in self.earliest {
            earliest.store(NEVER, Relaxed);
        }
        self.header.free.store(if self.slots.is_empty() { NIL as u64 } else { 0 }, Relaxed);
        self.header.used.store(0, Relaxed);
    }

    pub fn used(&self) -> u64 {
        self.header.used.load(Relaxed)
    }

    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    fn bucket(&self, key: &Key) -> usize {
        // The hash is keyed and uniform, so its low bits suffice. The database is mixed in.
        (key.hash as usize ^ (key.database as usize).wrapping_mul(0x9E37_79B9)) & (self.buckets.len() - 1)
    }

    fn partition(&self, key: &Key) -> usize {
        self.bucket(key) % PARTITIONS
    }

    /// The slot of a member. The caller holds the partition's lock.
    fn find(&self, key: &Key) -> Option<(u32, &'static Slot)> {
        let mut index = self.buckets[self.bucket(key)].load(Relaxed);
        while index != NIL {
            let slot = &self.slots[index as usize];
            if slot.key() == *key {
                return Some((index, slot));
            }
            index = slot.next.load(Relaxed);
        }
        None
    }

    /// Prefetch this member's bucket, or (`slot`) its first slot. Nothing that is read here without the lock is
    /// trusted.
    pub fn prefetch(&self, key: &Key, slot: bool) {
        let bucket = &self.buckets[self.bucket(key)];
        if !slot {
            return prefetch_line(std::ptr::from_ref(bucket).cast());
        }
        if let Some(first) = self.slots.get(bucket.load(Relaxed) as usize) {
            let start = std::ptr::from_ref(first).cast::<u8>();
            prefetch_line(start);
            prefetch_line(start.wrapping_add(64));
        }
    }

    pub fn read(&self, key: &Key) -> Option<Lease> {
        self.locks.shared(self.partition(key), || self.find(key).map(|(_, slot)| slot.lease()))
    }

    /// Renew the lease: proof of life at `now`. `owner` None is a service role, which may renew any member.
    pub fn heartbeat(&self, key: &Key, owner: Option<u64>, now: u64) -> Heartbeat {
        self.locks.shared(self.partition(key), || match self.find(key) {
            None => Heartbeat::NoSlot,
            Some((_, slot)) if owner.is_some_and(|owner| owner != slot.owner.load(Relaxed)) => {
                Heartbeat::Foreign
            }
            Some((_, slot)) if slot.renew(now) => Heartbeat::Renewed,
            Some(_) => Heartbeat::Gone,
        })
    }

    /// Renew this stay, if it is still current and has the same owner: proof of life at `now`.
    pub fn renew_stay(&self, key: &Key, stay: &Stay, now: u64) {
        self.locks.shared(self.partition(key), || {
            if let Some((_, slot)) = self.find(key)
                && slot.owner.load(Relaxed) == stay.owner
                && slot.generation() == stay.generation
            {
                slot.renew(now);
            }
        });
    }

    /// Whether the slot still has this version, is alive, and nobody is changing the member, so that it can be renewed
    /// at commit.
    pub fn unchanged(&self, key: &Key, version: u64, now: u64) -> bool {
        self.locks.shared(self.partition(key), || {
            self.find(key).is_some_and(|(_, slot)| {
                slot.version.load(Relaxed) == version
                    && slot.pins() == 0
                    && alive(slot.deadline.load(Acquire), now)
            })
        })
    }

    /// Keep the slot in place until `unpin`, because its row is being changed.
    pub fn pin(&self, key: &Key) -> Option<u32> {
        self.locks.shared(self.partition(key), || {
            self.find(key).map(|(index, slot)| {
                slot.ttl_and_pins.increment_upper();
                index
            })
        })
    }

    pub fn unpin(&self, index: u32) {
        self.slots[index as usize].ttl_and_pins.decrement_upper();
    }

    /// Expire the member, if its lease has run out or (`ended`) its session has ended: final for this generation. The
    /// caller has the member's row locked, or knows that there is none, so no renewal of it is about to commit.
    pub fn claim(&self, key: &Key, generation: u64, now: u64, ended: bool) -> bool {
        self.locks.shared(self.partition(key), || {
            self.find(key).is_some_and(|(_, slot)| slot.generation() == generation && slot.claim(now, ended))
        })
    }

    /// Claim a member bound to this session, which has ended. A pinned one may be about to be bound to another session:
    /// the sweeper comes back to it.
    pub fn end_session(&self, key: &Key, session: u64, now: u64) {
        self.locks.shared(self.partition(key), || {
            if let Some((_, slot)) = self.find(key)
                && slot.session.load(Relaxed) == session
                && slot.pins() == 0
            {
                slot.claim(now, true);
                self.note_deadline(key, 0);
            }
        });
    }

    /// A committed enter or change. The newest version wins; a lease is never shortened by an old proof of life.
    pub fn apply_present(&self, key: &Key, change: &Lease) -> Applied {
        self.locks.exclusive(self.partition(key), || {
            if let Some((_, slot)) = self.find(key) {
                if slot.version.load(Relaxed) >= change.version {
                    return Applied::Older;
                }
                slot.put(&change.on_top_of(&slot.lease()));
            } else {
                let Some(index) = self.pop_free() else { return Applied::Full };
                let slot = &self.slots[index as usize];
                slot.set_key(key);
                slot.put(change);
                slot.ttl_and_pins.set_upper(0);
                self.chain(key, index);
            }
            self.note_deadline(key, change.due());
            Applied::Done
        })
    }

    /// A committed leave: the tombstone prevents an older change that is still to be applied from reviving the member.
    pub fn apply_gone(&self, key: &Key, version: u64) -> Applied {
        self.locks.exclusive(self.partition(key), || {
            let slot = match self.find(key) {
                Some((_, slot)) if slot.version.load(Relaxed) >= version => return Applied::Older,
                Some((_, slot)) => slot,
                None => {
                    let Some(index) = self.pop_free() else { return Applied::Full };
                    let slot = &self.slots[index as usize];
                    slot.set_key(key);
                    slot.ttl_and_pins.set_upper(0);
                    self.chain(key, index);
                    slot
                }
            };
            slot.put(&Lease {
                deadline: TOMBSTONE,
                last_seen: 0,
                ttl: 0,
                version,
                generation: version,
                owner: 0,
                session: 0,
                reverts_at: 0,
                changed_at: 0,
                pins: 0,
            });
            Applied::Done
        })
    }

    /// This version of the member reverts at that time. Returns false if there is no slot, or it has another version.
    pub fn note_revert(&self, key: &Key, version: u64, at: u64) -> bool {
        self.locks.exclusive(self.partition(key), || {
            let slot = self.find(key).filter(|(_, slot)| slot.version.load(Relaxed) == version);
            if let Some((_, slot)) = slot {
                slot.reverts_at.store(at, Relaxed);
                self.note_deadline(key, at);
            }
            slot.is_some()
        })
    }

    /// Free a slot, if it is (still) at this version, dead and not pinned.
    pub fn free(&self, key: &Key, version: u64) -> bool {
        self.locks.exclusive(self.partition(key), || {
            let Some((index, slot)) = self.find(key) else { return false };
            let dead = matches!(slot.deadline.load(Relaxed), TOMBSTONE | CLAIMED);
            let same = slot.version.load(Relaxed) == version && slot.pins() == 0;
            if dead && same {
                self.unchain(key, index);
                self.push_free(index);
            }
            dead && same
        })
    }

    /// A lower bound of the database's deadlines and reverts.
    pub fn earliest(&self, database: u32) -> u64 {
        self.hints(database).iter().map(|hint| hint.load(Relaxed)).min().unwrap_or(NEVER)
    }

    /// The same over the partitions whose bound is after `time`.
    pub fn earliest_after(&self, database: u32, time: u64) -> u64 {
        let hints = self.hints(database).iter().map(|hint| hint.load(Relaxed));
        hints.filter(|hint| *hint > time).min().unwrap_or(NEVER)
    }

    /// All leases that have expired, or are claimed, by `now`.
    #[cfg(test)]
    pub fn expired(&self, database: u32, now: u64) -> Vec<(Key, Lease)> {
        (0..PARTITIONS).flat_map(|partition| self.expired_in(partition, database, now, |_| true)).collect()
    }

    /// The same for one partition and the wanted members; and the members with something to revert.
    pub fn expired_in(
        &self,
        partition: usize,
        database: u32,
        now: u64,
        wanted: impl Fn(&Key) -> bool,
    ) -> Vec<(Key, Lease)> {
        let mut found = Vec::new();
        let hint = &self.hints(database)[partition];
        if hint.load(Relaxed) > now {
            return found;
        }
        self.locks.shared(partition, || {
            let mut earliest = NEVER;
            self.each_in(partition, |slot| {
                let (key, lease) = (slot.key(), slot.lease());
                if key.database != database || lease.deadline == TOMBSTONE {
                    return;
                }
                earliest = earliest.min(lease.due());
                if (!alive(lease.deadline, now) || lease.is_to_revert(now)) && wanted(&key) {
                    found.push((key, lease));
                }
            });
            hint.store(earliest, Relaxed);
        });
        found
    }

    /// Every used slot for which `wanted` holds.
    pub fn collect(&self, wanted: impl Fn(&Key, &Lease) -> bool) -> Vec<(Key, Lease)> {
        (0..PARTITIONS).flat_map(|partition| self.collect_in(partition, &wanted)).collect()
    }

    /// The same for one partition.
    pub fn collect_in(&self, partition: usize, wanted: impl Fn(&Key, &Lease) -> bool) -> Vec<(Key, Lease)> {
        let mut found = Vec::new();
        self.locks.shared(partition, || {
            self.each_in(partition, |slot| {
                let (key, lease) = (slot.key(), slot.lease());
                if wanted(&key, &lease) {
                    found.push((key, lease));
                }
            });
        });
        found
    }

    /// Free a database's slots of these tables, which were dropped.
    pub fn purge(&self, database: u32, dropped: impl Fn(u32) -> bool) {
        for (key, _) in self.collect(|key, _| key.database == database && dropped(key.relation)) {
            self.locks.exclusive(self.partition(&key), || {
                // A pinned slot stays, because its pinner has its index. A later purge frees it.
                if let Some((index, slot)) = self.find(&key)
                    && slot.pins() == 0
                {
                    self.unchain(&key, index);
                    self.push_free(index);
                }
            });
        }
    }

    fn hints(&self, database: u32) -> &'static [AtomicU64] {
        let start = database as usize * PARTITIONS;
        &self.earliest[start..start + PARTITIONS]
    }

    fn note_deadline(&self, key: &Key, deadline: u64) {
        self.hints(key.database)[self.partition(key)].fetch_min(deadline, AcqRel);
    }

    fn each_in(&self, partition: usize, mut body: impl FnMut(&'static Slot)) {
        for bucket in (partition..self.buckets.len()).step_by(PARTITIONS) {
            let mut index = self.buckets[bucket].load(Relaxed);
            while index != NIL {
                let slot = &self.slots[index as usize];
                body(slot);
                index = slot.next.load(Relaxed);
            }
        }
    }

    fn chain(&self, key: &Key, index: u32) {
        let bucket = &self.buckets[self.bucket(key)];
        self.slots[index as usize].next.store(bucket.load(Relaxed), Relaxed);
        bucket.store(index, Relaxed);
    }

    fn unchain(&self, key: &Key, index: u32) {
        let mut link = &self.buckets[self.bucket(key)];
        loop {
            let at = link.load(Relaxed);
            if at == index {
                return link.store(self.slots[index as usize].next.load(Relaxed), Relaxed);
            }
            if at == NIL {
                return;
            }
            link = &self.slots[at as usize].next;
        }
    }

    /// Partitions share one pool of slots. Otherwise a full one would refuse members while others have room.
    fn pop_free(&self) -> Option<u32> {
        let mut head = self.header.free.load(Acquire);
        loop {
            let index = head as u32;
            if index == NIL {
                return None;
            }
            let next = self.slots[index as usize].next.load(Relaxed);
            match self.header.free.compare_exchange_weak(head, retagged(head, next), AcqRel, Acquire) {
                Ok(_) => {
                    self.header.used.fetch_add(1, Relaxed);
                    return Some(index);
                }
                Err(now) => head = now,
            }
        }
    }

    fn push_free(&self, index: u32) {
        let slot = &self.slots[index as usize];
        slot.deadline.store(FREE, Relaxed);
        let mut head = self.header.free.load(Acquire);
        loop {
            slot.next.store(head as u32, Relaxed);
            match self.header.free.compare_exchange_weak(head, retagged(head, index), AcqRel, Acquire) {
                Ok(_) => {
                    self.header.used.fetch_sub(1, Relaxed);
                    return;
                }
                Err(now) => head = now,
            }
        }
    }
}

/// Prefetch a cache line.
#[cfg(target_arch = "x86_64")]
pub fn prefetch_line(address: *const u8) {
    // SAFETY: a hint; any address will do.
    unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
pub fn prefetch_line(_address: *const u8) {}

fn retagged(head: u64, index: u32) -> u64 {
    ((head >> 32).wrapping_add(1) << 32) | index as u64
}
