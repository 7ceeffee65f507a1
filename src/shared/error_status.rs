//! What went wrong in a database's workers: the last error, when, and whether it still goes wrong.

use crate::clock;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, Ordering::*};

const BYTES: usize = 256;
const PARTS: usize = Part::Silence as usize + 1;

/// The part of a worker that fails; each recovers by itself.
#[derive(Clone, Copy)]
pub enum Part {
    Start = 0,
    /// Whether the worker may stay in this database.
    Maintenance = 1,
    Publishing = 2,
    NotifyQueue = 3,
    Sink = 4,
    Settings = 5,
    Sweeping = 6,
    /// Members that cannot be deleted.
    Members = 7,
    /// Events that cannot be written yet.
    Events = 8,
    LogRotation = 9,
    Relisten = 10,
    LastSeen = 11,
    Adopting = 12,
    Freeing = 13,
    LastSeenLook = 14,
    LastSeenForget = 15,
    LastSeenClean = 16,
    Beacon = 17,
    Numbers = 18,
    Counting = 19,
    /// The logged copy of the members.
    Copying = 20,
    Beating = 21,
    Restoring = 22,
    /// Members of other servers.
    Peers = 23,
    /// That they are gone, or back.
    Silence = 24,
}

#[repr(C)]
pub struct ErrorStatus {
    /// timestamptz
    at: AtomicI64,
    /// timestamptz: since when a part has been failing; 0 if its latest attempt succeeded.
    since: [AtomicI64; PARTS],
    length: AtomicU32,
    text: [AtomicU8; BYTES],
}

impl ErrorStatus {
    /// An attempt failed. Returns whether the one before succeeded.
    pub fn failed(&self, part: Part, message: &str) -> bool {
        let now = clock::wall();
        let mut length = message.len().min(BYTES);
        while !message.is_char_boundary(length) {
            length -= 1;
        }
        for (to, from) in self.text.iter().zip(&message.as_bytes()[..length]) {
            to.store(*from, Relaxed);
        }
        self.at.store(now, Release);
        self.length.store(length as u32, Release);
        self.since[part as usize].compare_exchange(0, now, AcqRel, Acquire).is_ok()
    }

    pub fn is_over(&self, part: Part) {
        self.since[part as usize].store(0, Release);
    }

    pub fn forget(&self) {
        self.since.iter().for_each(|since| since.store(0, Release));
        self.length.store(0, Release);
    }

    /// The last error and its time. A concurrent write may mix two of them.
    pub fn last(&self) -> Option<(String, i64)> {
        let length = (self.length.load(Acquire) as usize).min(BYTES);
        let bytes: Vec<u8> = self.text[..length].iter().map(|byte| byte.load(Relaxed)).collect();
        (length > 0).then(|| (String::from_utf8_lossy(&bytes).into_owned(), self.at.load(Acquire)))
    }

    /// Since when something has been failing.
    pub fn since(&self) -> Option<i64> {
        self.since.iter().map(|since| since.load(Acquire)).filter(|since| *since != 0).min()
    }
}
