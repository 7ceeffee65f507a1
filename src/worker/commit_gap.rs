//! Which records of the ring may be published: the commit gap (protocol 1 of docs/internals.md).
//!
//! The ring may hold far more than one batch: what a batch does not take is looked at, and left where it is.

use super::process;
use crate::error::Result;
use crate::event::record::{Head, Record};
use crate::event::ring::{Place, Ring};
use crate::extension::Extension;
use crate::shared::{Process, processes};
use pgrx::pg_sys;
use std::cell::Cell;
use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::Ordering::*;

/// More than one of so many parts of the ring is much: in total, and for one owner. (Small, because the size of records
/// says little about the work that they cause.)
const MUCH: u64 = 8;
const MUCH_OF_ONE: u64 = 128;
/// At most this many members' updates are compared.
const MOST_MEMBERS: usize = 20_000;

/// A record that may be published, and its places in the ring, with those that were conflated into it.
pub struct Ready {
    pub record: Record,
    pub positions: Vec<u64>,
    /// Its owner has much in the ring.
    pub is_flooded: bool,
}

/// The next records, oldest version first.
pub struct Batch {
    pub ready: Vec<Ready>,
    /// There are more.
    pub more: bool,
    /// The places of the leaves that are left for later.
    pub leaves: Vec<Place>,
    /// The place of the first record left for later; the largest number if there is none.
    pub left_from: u64,
}

/// The part of the ring whose transactions have ended by a snapshot.
pub struct Window {
    ring: Ring,
    head: u64,
    relation: u32,
    snapshot: pg_sys::Snapshot,
    /// Whether there are records of transactions that have not ended by the snapshot.
    is_open: Cell<bool>,
}

/// 0 marks a record without a transaction: from before the start, or a request to rotate.
fn is_over(xid: u32, snapshot: pg_sys::Snapshot) -> bool {
    // SAFETY: the active snapshot of this transaction.
    xid == 0 || !unsafe { pg_sys::XidInMVCCSnapshot(pg_sys::TransactionId::from(xid), snapshot) }
}

impl Window {
    /// For the current snapshot, until the transaction ends. None: a transaction is in the commit gap.
    pub fn open(extension: &Extension) -> Result<Option<Window>> {
        // SAFETY: `transaction` has pushed a snapshot.
        let snapshot = unsafe { pg_sys::GetActiveSnapshot() };
        let in_gap = |process: &Process| {
            let xid = process.committing.load(SeqCst);
            let here = process.database.load(Relaxed) == extension.database_index;
            xid != 0 && here && is_over(xid, snapshot)
        };
        for process in processes() {
            // The gap takes microseconds of copying memory, unless that backend does not get the processor.
            let mut turns = 0;
            while in_gap(process) {
                if turns == 200 {
                    return Ok(None);
                }
                turns += 1;
                std::thread::sleep(std::time::Duration::from_micros(if turns < 20 { 10 } else { 100 }));
                process::interrupts();
            }
        }
        let ring = extension.database.ring();
        let (head, relation) = (ring.head.load(Acquire), u32::from(extension.member));
        Ok(Some(Window { ring, head, relation, snapshot, is_open: Cell::new(false) }))
    }

    /// After `take`: there is nothing else up to here. (The largest number if there is.)
    pub fn looked(&self) -> u64 {
        if self.is_open.get() { u64::MAX } else { self.head }
    }

    /// The records that may be published, in the order of the ring.
    fn heads(&self) -> impl Iterator<Item = (Head, Place)> + '_ {
        self.ring.places(self.ring.tail.load(Acquire), self.head).filter_map(|place| {
            let (bytes, length) = self.ring.begin::<{ Head::BYTES }>(place);
            // The table is locked, so records of another table belong to an extension that was dropped.
            match Head::decode(&bytes[..length]).filter(|head| head.relation == self.relation) {
                Some(head) if is_over(head.xid, self.snapshot) => Some((head, place)),
                Some(_) => {
                    self.is_open.set(true);
                    None
                }
                None => {
                    self.ring.mark_done(place.position);
                    None
                }
            }
        })
    }

    /// Read one of them.
    pub fn record(&self, place: Place) -> Option<Record> {
        Record::decode(&self.ring.get(place))
    }

    /// Every record that may be published, in the order of the ring.
    pub fn each(&self, mut body: impl FnMut(&Record)) {
        for (_, place) in self.heads() {
            if let Some(record) = Record::decode(&self.ring.get(place)) {
                body(&record);
            }
        }
    }

    /// If there is much in the ring, drop all but the newest of a member's consecutive updates without reading them.
    pub fn thin_out(&self) {
        if self.ring.used() < self.ring.size() / MUCH {
            return;
        }
        let mut latest: HashMap<u128, Place> = HashMap::new();
        for (head, place) in self.heads() {
            if latest.len() > MOST_MEMBERS {
                latest.clear();
            }
            let before = match head.is_plain {
                true => latest.insert(head.hash, place),
                false => latest.remove(&head.hash),
            };
            if let Some(before) = before.filter(|_| head.is_update) {
                self.ring.mark_done(before.position);
            }
        }
        self.ring.advance();
    }

    /// Whether the owner has much in the ring. Such owners yield to others every other time, and take less of what all
    /// listeners must read.
    fn is_flooded(&self, place: Place) -> bool {
        self.ring.beside(place) > self.ring.size() / MUCH_OF_ONE
    }

    /// The oldest records, as many as requested, and at least one; `skip` selects members whose records wait. With
    /// `others_first` records of owners with much in the ring come last; each member's stay in order.
    pub fn take(&self, most: usize, bytes: usize, others_first: bool, skip: impl Fn(u128) -> bool) -> Batch {
        let (mut leaves, mut left_from) = (Vec::new(), u64::MAX);
        let mut leave_out = |place: Place, is_leave: bool| {
            leaves.extend(is_leave.then_some(place));
            left_from = left_from.min(place.position);
        };
        // The newest version is on top, to be replaced by an older one.
        let mut oldest = BinaryHeap::new();
        let mut last = Members::default();
        let mut more = false;
        for (head, place) in self.heads() {
            if skip(head.hash) {
                leave_out(place, head.is_leave);
                continue;
            }
            // Records after one that comes last come last, too, even if the member has another owner by then.
            let is_last = others_first && (self.is_flooded(place) || last.has(head.hash));
            if is_last {
                last.add(head.hash);
            }
            oldest.push((is_last, head.version, place, head.is_leave));
            if oldest.len() > most {
                more = true;
                if let Some((_, _, place, is_leave)) = oldest.pop() {
                    leave_out(place, is_leave);
                }
            }
        }
        let mut ready = Vec::new();
        let mut total = 0;
        let mut is_full = false;
        for (_, _, place, is_leave) in oldest.into_sorted_vec() {
            total += place.length;
            is_full |= total > bytes && !ready.is_empty();
            if is_full {
                more = true;
                leave_out(place, is_leave);
                continue;
            }
            match Record::decode(&self.ring.get(place)) {
                Some(record) => {
                    let (positions, is_flooded) = (vec![place.position], self.is_flooded(place));
                    ready.push(Ready { record, positions, is_flooded });
                }
                None => self.ring.mark_done(place.position),
            }
        }
        self.ring.advance();
        Batch { ready, more, leaves, left_from }
    }
}

/// A set of members in little memory, with rare false positives (a Bloom filter).
#[derive(Default)]
struct Members(Vec<u64>);

impl Members {
    const WORDS: usize = 1 << 14;

    fn places(hash: u128) -> [(usize, u64); 2] {
        [hash as u64, (hash >> 64) as u64].map(|part| ((part >> 6) as usize % Self::WORDS, 1 << (part % 64)))
    }

    fn add(&mut self, hash: u128) {
        self.0.resize(Self::WORDS, 0);
        Self::places(hash).into_iter().for_each(|(word, bit)| self.0[word] |= bit);
    }

    fn has(&self, hash: u128) -> bool {
        !self.0.is_empty() && Self::places(hash).into_iter().all(|(word, bit)| self.0[word] & bit != 0)
    }
}
