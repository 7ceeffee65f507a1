//! How many are in rooms that somebody asks for, as published: so that whoever may have the full numbers of a room has them
//! without counting. Sessions ask for rooms; the worker counts them, and keeps the numbers true. All under one lock a
//! database, but `asked` and `current`.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::*};

/// The counts of a room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    pub members: u32,
    pub users: u32,
}

const SETS: usize = 512;
const WAYS: usize = 8;
const WISHES: usize = 16;
/// More than the length of any room's name.
const NAME: usize = 1_024;
const CELLS: usize = 1 << 12;

/// A room that nobody has asked for in this time can be replaced.
pub const IDLE: u64 = 60_000_000;

#[repr(C)]
pub struct OccupancyTable {
    /// A room may be in any place of its set.
    sets: [[Place; WAYS]; SETS],
    wishes: [Wish; WISHES],
    wished: AtomicU32,
    /// When somebody last asked for a room of the cell, whether or not it is kept.
    asked: [AtomicU64; CELLS],
    /// All events committed before this time are published.
    current: AtomicU64,
}

#[repr(C)]
struct Place {
    /// Hash of the room; 0 means free.
    room: AtomicU64,
    numbers: AtomicU64,
    asked: AtomicU64,
}

#[repr(C)]
struct Wish {
    length: AtomicU32,
    name: [AtomicU8; NAME],
}

impl Numbers {
    fn packed(self) -> u64 {
        u64::from(self.members) << 32 | u64::from(self.users)
    }

    fn unpacked(both: u64) -> Numbers {
        Numbers { members: (both >> 32) as u32, users: both as u32 }
    }

    pub fn plus(self, members: i32, users: i32) -> Numbers {
        Numbers {
            members: self.members.saturating_add_signed(members),
            users: self.users.saturating_add_signed(users),
        }
    }
}

impl OccupancyTable {
    fn set(&self, room: u64) -> &[Place; WAYS] {
        &self.sets[room as usize % SETS]
    }

    fn place(&self, room: u64) -> Option<&Place> {
        self.set(room).iter().find(|place| place.room.load(Relaxed) == room)
    }

    /// Look up a room.
    pub fn get(&self, room: u64, now: u64) -> Option<Numbers> {
        let place = self.place(room)?;
        place.asked.store(now, Relaxed);
        Some(Numbers::unpacked(place.numbers.load(Relaxed)))
    }

    /// Request that a room be kept here. Requests beyond the limit are ignored.
    pub fn wish(&self, name: &[u8]) {
        let count = self.wished.load(Relaxed) as usize;
        if count >= WISHES || name.len() > NAME || self.wishes[..count].iter().any(|wish| wish.is_for(name)) {
            return;
        }
        let wish = &self.wishes[count];
        wish.name.iter().zip(name).for_each(|(to, from)| to.store(*from, Relaxed));
        wish.length.store(name.len() as u32, Relaxed);
        self.wished.store(count as u32 + 1, Release);
    }

    /// May be called without the lock.
    pub fn has_wishes(&self) -> bool {
        self.wished.load(Acquire) > 0
    }

    pub fn take_wishes(&self) -> Vec<Vec<u8>> {
        let count = self.wished.swap(0, AcqRel) as usize;
        self.wishes[..count.min(WISHES)].iter().map(Wish::name).collect()
    }

    /// Keep a room here from now on; false if there is no place.
    pub fn put(&self, room: u64, numbers: Numbers, now: u64) -> bool {
        let set = self.set(room);
        let place = self.place(room).or_else(|| {
            let age = |place: &&Place| match place.room.load(Relaxed) {
                0 => u64::MAX,
                _ => now.saturating_sub(place.asked.load(Relaxed)),
            };
            set.iter().max_by_key(age).filter(|place| age(place) >= IDLE)
        });
        let Some(place) = place else { return false };
        place.room.store(room, Relaxed);
        place.numbers.store(numbers.packed(), Relaxed);
        place.asked.store(now, Relaxed);
        true
    }

    /// The counts of a room changed, if it is kept here.
    pub fn change(&self, room: u64, numbers: Numbers) {
        if let Some(place) = self.place(room) {
            place.numbers.store(numbers.packed(), Relaxed);
        }
    }

    pub fn remove(&self, room: u64) {
        if let Some(place) = self.place(room) {
            place.room.store(0, Relaxed);
        }
    }

    pub fn clear(&self) {
        self.sets.iter().flatten().for_each(|place| place.room.store(0, Relaxed));
        self.wished.store(0, Release);
    }

    /// Whether the room is kept here, and was asked for recently.
    pub fn is_wanted(&self, room: u64, now: u64) -> bool {
        self.place(room).is_some_and(|place| now < place.asked.load(Relaxed) + IDLE)
    }

    /// Somebody is about to ask for the counts of the room.
    pub fn note_asked(&self, room: u64, now: u64) {
        self.asked[room as usize % CELLS].store(now, SeqCst);
    }

    pub fn was_asked_since(&self, room: u64, time: u64) -> bool {
        self.asked[room as usize % CELLS].load(SeqCst) >= time
    }

    pub fn current(&self) -> u64 {
        self.current.load(Acquire)
    }

    /// All events committed by then are published.
    pub fn set_current(&self, time: u64) {
        self.current.fetch_max(time, AcqRel);
    }
}

impl Wish {
    fn name(&self) -> Vec<u8> {
        let length = (self.length.load(Relaxed) as usize).min(NAME);
        self.name[..length].iter().map(|byte| byte.load(Relaxed)).collect()
    }

    fn is_for(&self, name: &[u8]) -> bool {
        let length = self.length.load(Relaxed) as usize;
        length == name.len() && self.name.iter().zip(name).all(|(here, there)| here.load(Relaxed) == *there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOME: Numbers = Numbers { members: 70_000, users: 3 };

    fn table() -> Box<OccupancyTable> {
        // SAFETY: zero is a valid value of all atomics.
        unsafe { Box::new(std::mem::zeroed()) }
    }

    #[test]
    fn numbers_are_there_until_they_are_taken_away() {
        let table = table();
        assert_eq!(table.get(7, 1), None);
        table.change(7, SOME);
        assert_eq!(table.get(7, 1), None, "nobody has counted");
        assert!(table.put(7, SOME, 1));
        assert_eq!(table.get(7, 1), Some(SOME));
        table.change(7, SOME.plus(-1, 1));
        assert_eq!(table.get(7, 1), Some(Numbers { members: 69_999, users: 4 }));
        table.remove(7);
        assert_eq!(table.get(7, 1), None);
    }

    #[test]
    fn who_is_asked_for_makes_no_way() {
        let table = table();
        let room = |number: u64| 1 + number * SETS as u64;
        for number in 0..WAYS as u64 {
            assert!(table.put(room(number), SOME, 5 + number));
        }
        assert!(!table.put(room(100), SOME, 20));
        table.get(room(0), IDLE);
        assert!(table.put(room(100), SOME, 5 + 1 + IDLE));
        assert_eq!(table.get(room(1), 0), None, "the one that nobody has asked for");
        assert!(table.get(room(0), IDLE).is_some() && !table.put(room(101), SOME, 5 + 1 + IDLE));
        assert!(!table.is_wanted(room(101), 0) && table.is_wanted(room(100), IDLE));
    }

    #[test]
    fn wishes_are_taken_once_each() {
        let table = table();
        for number in 0..40u8 {
            table.wish(&[number / 2]);
        }
        table.wish(&[0; NAME + 1]);
        assert_eq!(table.take_wishes(), (0..16).map(|number| vec![number]).collect::<Vec<_>>());
        assert!(!table.has_wishes() && table.take_wishes().is_empty());
    }
}
