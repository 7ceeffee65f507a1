//! The event buffer of a database: a ring of bytes in shared memory. Committing backends append, one worker reads.
//!
//! A record is a multiple of 8 bytes and starts with its length and a flag. The worker may publish out of order
//! (a record whose transaction it may not see yet waits), so it flags what it has published, and the tail moves
//! past flagged records. Positions only grow; a position modulo the size is the place. The flag's word also says of whose
//! share the record is (`event::share`).
//!
//! ```text
//!      tail            head
//!   ────┬────┬────┬────┬─────
//!       │done│ .. │done│ free          tail moves to the first record that is not done
//!   ────┴────┴────┴────┴─────
//! ```

use super::share::{Demand, SHARES};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

/// Precedes each record: its length, and a flag with the share.
pub const RECORD_HEADER: usize = 8;

const DONE: u32 = 1;

/// The flag word of a record of this share that is not done.
pub fn mark_of(share: u16) -> u32 {
    u32::from(share) << 1
}

pub fn share_of(mark: u32) -> u16 {
    (mark >> 1) as u16
}

/// The position of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub position: u64,
    pub length: usize,
}

#[derive(Clone, Copy)]
pub struct Ring {
    pub head: &'static AtomicU64,
    pub tail: &'static AtomicU64,
    /// Bytes between tail and head, for each share.
    shares: &'static [AtomicU64; SHARES],
    base: *mut u8,
    size: u64,
}

impl Ring {
    /// # Safety
    /// `base` points to `size` bytes, aligned to 8, that live as long as the process and that only rings with
    /// this head, tail and shares use. `size` is a multiple of 8.
    pub unsafe fn new(
        head: &'static AtomicU64,
        tail: &'static AtomicU64,
        shares: &'static [AtomicU64; SHARES],
        base: *mut u8,
        size: u64,
    ) -> Ring {
        Ring { head, tail, shares, base, size }
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// The tail first: without the ring's lock both may move, and so the ring may look fuller than it is.
    pub fn used(&self) -> u64 {
        let tail = self.tail.load(Acquire);
        (self.head.load(Acquire) - tail).min(self.size)
    }

    pub fn free(&self) -> u64 {
        self.size.saturating_sub(self.used())
    }

    /// Append whole records, or nothing: no share gets more than this multiple of the space that is left afterwards.
    /// The caller holds the ring's lock exclusively.
    pub fn append(&self, records: &[u8], demand: &Demand, times: u64) -> bool {
        debug_assert!(records.len().is_multiple_of(8));
        let Some(left) = self.free().checked_sub(records.len() as u64) else { return false };
        let most = left.saturating_mul(times);
        if times < u64::MAX && demand.iter().any(|(share, bytes)| self.has(share) + bytes > most) {
            return false;
        }
        for (share, bytes) in demand.iter() {
            self.shares[share].fetch_add(bytes, AcqRel);
        }
        let head = self.head.load(Relaxed);
        self.copy_in(head, records);
        self.head.store(head + records.len() as u64, Release);
        true
    }

    /// The places of the records between two positions that are not done. Only the worker reads.
    pub fn places(&self, from: u64, to: u64) -> impl Iterator<Item = Place> + '_ {
        let mut at = from;
        std::iter::from_fn(move || {
            while at < to {
                let length = self.word(at, 0).load(Relaxed) as u64;
                if length < RECORD_HEADER as u64 || at + length > to {
                    break;
                }
                let place = Place { position: at, length: length as usize };
                at += length;
                if self.word(place.position, 4).load(Relaxed) & DONE == 0 {
                    return Some(place);
                }
            }
            at = to;
            None
        })
    }

    /// The bytes of a record.
    pub fn get(&self, place: Place) -> Vec<u8> {
        let mut bytes = vec![0; place.length];
        self.copy_out(place.position, &mut bytes);
        bytes
    }

    /// The first bytes of a record, as many as it has.
    pub fn begin<const N: usize>(&self, place: Place) -> ([u8; N], usize) {
        let (mut bytes, length) = ([0; N], place.length.min(N));
        self.copy_out(place.position, &mut bytes[..length]);
        (bytes, length)
    }

    /// The bytes of a share.
    fn has(&self, share: usize) -> u64 {
        self.shares[share % SHARES].load(Acquire)
    }

    /// The bytes of the same share as this record.
    pub fn beside(&self, place: Place) -> u64 {
        self.has(share_of(self.word(place.position, 4).load(Relaxed)) as usize)
    }

    /// Empty the ring. The caller holds the ring's lock exclusively, and there is no worker.
    pub fn clear(&self) {
        self.tail.store(self.head.load(Acquire), Release);
        self.shares.iter().for_each(|share| share.store(0, Release));
    }

    /// This record was published.
    pub fn mark_done(&self, position: u64) {
        self.word(position, 4).fetch_or(DONE, Release);
    }

    /// Free the space of everything before the first record that is not done.
    pub fn advance(&self) {
        let head = self.head.load(Acquire);
        let mut tail = self.tail.load(Relaxed);
        while tail < head {
            let mark = self.word(tail, 4).load(Acquire);
            if mark & DONE == 0 {
                break;
            }
            let length = self.word(tail, 0).load(Relaxed) as u64;
            self.shares[share_of(mark) as usize % SHARES].fetch_sub(length, AcqRel);
            tail += length;
        }
        self.tail.store(tail, Release);
    }

    fn word(&self, position: u64, offset: u64) -> &AtomicU32 {
        let place = ((position + offset) % self.size) as usize;
        // SAFETY: records and the size are multiples of 8, so the header of a record does not wrap and is
        // aligned; place is within the ring.
        unsafe { &*(self.base.add(place) as *const AtomicU32) }
    }

    fn copy_in(&self, position: u64, bytes: &[u8]) {
        let place = (position % self.size) as usize;
        let first = bytes.len().min(self.size as usize - place);
        // SAFETY: both parts lie within the ring; the space is free, so nobody else touches it (ring's lock).
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(place), first);
            std::ptr::copy_nonoverlapping(bytes.as_ptr().add(first), self.base, bytes.len() - first);
        }
    }

    fn copy_out(&self, position: u64, bytes: &mut [u8]) {
        let place = (position % self.size) as usize;
        let first = bytes.len().min(self.size as usize - place);
        let (before, after) = bytes.split_at_mut(first);
        // SAFETY: both parts lie within the ring, between tail and head, where no writer writes.
        unsafe {
            std::ptr::copy_nonoverlapping(self.base.add(place), before.as_mut_ptr(), before.len());
            std::ptr::copy_nonoverlapping(self.base, after.as_mut_ptr(), after.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::share::{UNBOUNDED, WHOLE};
    use super::*;
    use proptest::prelude::*;

    fn ring(size: u64) -> Ring {
        let memory = Box::leak(vec![0u64; size as usize / 8].into_boxed_slice());
        let head = Box::leak(Box::new(AtomicU64::new(0)));
        let tail = Box::leak(Box::new(AtomicU64::new(0)));
        let shares = Box::leak(Box::new([const { AtomicU64::new(0) }; SHARES]));
        // SAFETY: leaked memory of that size, aligned to 8.
        unsafe { Ring::new(head, tail, shares, memory.as_mut_ptr() as *mut u8, size) }
    }

    fn append(ring: &Ring, records: &[u8]) -> bool {
        ring.append(records, &Demand::of(records), UNBOUNDED)
    }

    fn record_of(share: u16, content: &[u8]) -> Vec<u8> {
        let mut bytes = record(content);
        bytes[4..8].copy_from_slice(&mark_of(share).to_le_bytes());
        bytes
    }

    fn record(content: &[u8]) -> Vec<u8> {
        let length = (RECORD_HEADER + content.len()).next_multiple_of(8);
        let mut bytes = (length as u32).to_le_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(content);
        bytes.resize(length, 0);
        bytes
    }

    fn read(ring: &Ring, from: u64, to: u64) -> Vec<(u64, Vec<u8>)> {
        ring.places(from, to).map(|place| (place.position, ring.get(place))).collect()
    }

    #[test]
    fn the_beginning_of_a_record_is_read_also_where_the_ring_ends() {
        let ring = ring(64);
        assert!(append(&ring, &record(&[1; 40])));
        ring.mark_done(0);
        ring.advance();
        assert!(append(&ring, &record(&[2; 24])));
        let place = ring.places(48, 80).next().expect("a record");
        assert_eq!(ring.begin::<30>(place), (ring.get(place)[..30].try_into().expect("as many"), 30));
        assert_eq!(ring.begin::<40>(place).1, 32);
    }

    #[test]
    fn refuses_what_does_not_fit_and_takes_it_when_there_is_room() {
        let ring = ring(64);
        assert!(append(&ring, &record(&[1; 40])));
        assert!(!append(&ring, &record(&[2; 40])));
        ring.mark_done(0);
        ring.advance();
        assert!(append(&ring, &record(&[2; 40])));
        assert_eq!(read(&ring, ring.tail.load(Relaxed), ring.head.load(Relaxed)), [(48, record(&[2; 40]))]);
    }

    #[test]
    fn one_share_leaves_room_for_others() {
        let ring = ring(1024);
        let put = |share, length: usize| {
            let bytes = record_of(share, &vec![1; length - RECORD_HEADER]);
            ring.append(&bytes, &Demand::of(&bytes), WHOLE)
        };
        for _ in 0..12 {
            assert!(put(1, 64));
        }
        assert!(!put(1, 64), "three quarters are one's own");
        assert!(put(2, 64) && put(3, 128));
        assert!(!put(1, 8), "it has more than three times what is free");
        for place in ring.places(0, 512) {
            ring.mark_done(place.position);
        }
        ring.advance();
        assert!(put(1, 256));
        ring.places(512, 2048).for_each(|place| ring.mark_done(place.position));
        ring.advance();
        assert_eq!((ring.used(), ring.shares.iter().map(|share| share.load(Relaxed)).sum::<u64>()), (0, 0));
    }

    #[test]
    fn the_tail_waits_for_the_first_record_that_is_not_done() {
        let ring = ring(128);
        append(&ring, &record(&[1; 8]));
        append(&ring, &record(&[2; 8]));
        ring.mark_done(16);
        ring.advance();
        assert_eq!(ring.tail.load(Relaxed), 0);
        assert_eq!(read(&ring, 0, 32).len(), 1);
        ring.mark_done(0);
        ring.advance();
        assert_eq!(ring.tail.load(Relaxed), 32);
    }

    /// Ends the other threads, even if this one panics.
    struct Over<'a>(&'a AtomicU32);

    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(1, Relaxed);
        }
    }

    /// Two writers, who take turns with the ring's lock, and the worker, who has no lock: what it reads is complete and
    /// in order, and nobody overwrites it meanwhile.
    #[test]
    fn writers_and_reader_race() {
        const EACH: u64 = 5_000;
        let ring = ring(512);
        let base = ring.base as usize;
        // SAFETY: the same leaked memory as above, in another thread.
        let again = move || unsafe { Ring::new(ring.head, ring.tail, ring.shares, base as *mut u8, 512) };
        let content = |writer: u8, number: u64| {
            // Of all lengths; each byte identifies writer and record.
            record(&vec![(number as u8) << 1 | writer; 8 + number as usize % 90])
        };
        let (lock, over) = (std::sync::Mutex::new(()), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for writer in 0..2 {
                let (lock, over) = (&lock, &over);
                scope.spawn(move || {
                    let ring = again();
                    for number in 0..EACH {
                        let record = content(writer, number);
                        while !lock.lock().map(|_lock| append(&ring, &record)).unwrap() {
                            if over.load(Relaxed) != 0 {
                                return;
                            }
                            std::thread::yield_now();
                        }
                    }
                });
            }
            let _over = Over(&over);
            let ring = again();
            let mut next = [0; 2];
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
            while next != [EACH; 2] {
                assert!(std::time::Instant::now() < deadline, "stuck at {next:?}");
                for (position, bytes) in read(&ring, ring.tail.load(Acquire), ring.head.load(Acquire)) {
                    let writer = bytes[RECORD_HEADER] & 1;
                    assert_eq!(bytes, content(writer, next[writer as usize]), "{next:?}, writer {writer}");
                    next[writer as usize] += 1;
                    ring.mark_done(position);
                }
                ring.advance();
                std::thread::yield_now();
            }
            assert_eq!(ring.used(), 0);
        });
    }

    proptest! {
        /// Whatever is appended comes out once, complete and in order, however often the ring wraps.
        #[test]
        fn everything_comes_out_once(contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..200)) {
            let ring = ring(256);
            let mut out = Vec::new();
            let drain = |out: &mut Vec<Vec<u8>>| {
                for (position, bytes) in read(&ring, ring.tail.load(Relaxed), ring.head.load(Relaxed)) {
                    ring.mark_done(position);
                    out.push(bytes);
                }
                ring.advance();
            };
            for content in &contents {
                if !append(&ring, &record(content)) {
                    drain(&mut out);
                    prop_assert!(append(&ring, &record(content)));
                }
            }
            drain(&mut out);
            prop_assert_eq!(out, contents.iter().map(|c| record(c)).collect::<Vec<_>>());
            prop_assert_eq!(ring.used(), 0);
        }
    }
}
