//! Rooms whose numbers somebody may want: what they are, as published, and when they are to be pushed.
//!
//! A room is here from the first change of its numbers that somebody may hear, until nobody listens any more, or for as long
//! as sessions ask for it. What a change does to the numbers follows from what `Connections` counts; how many there were
//! before is counted once, when they are to be told (`counting`).
//!
//! ```text
//!   a change ──▶ due: now, or a second after it was looked at last ──▶ told, if all changes since have changed anything
//! ```

use super::change::Change;
use super::published::{Publish, Published};
use crate::shared::occupancy::Numbers;
use crate::worker::memory;
use std::collections::{BTreeSet, HashMap};

/// The counts of a room are sent at most this often.
const PAUSE: u64 = 1_000_000;
/// `relisten` is repeated after 1 s and 5 s: until then counts wait for listeners that cannot hear them yet.
const MOST_TRIES: u32 = 6;
/// Memory of a room in addition to its name, here and among those that are due.
const ROOM_BYTES: usize = 200;

struct Room {
    name: Vec<u8>,
    /// None: not counted yet.
    numbers: Option<Numbers>,
    /// The changes in members and users since the counts were last sent.
    since: [i32; 2],
    /// Send the counts even if they have not changed.
    anyway: bool,
    /// Sessions have asked for the room: its counts are kept for them.
    asked: bool,
    /// Time of the last look.
    looked: u64,
    due: Option<u64>,
    tries: u32,
}

/// A room that is due.
pub struct Due {
    pub room: u64,
    pub name: Vec<u8>,
    pub numbers: Option<Numbers>,
    /// The counts have changed.
    pub is_news: bool,
}

/// The result for a room that was due.
#[derive(Clone, Copy)]
pub enum Outcome {
    NoNews,
    /// Nobody may have the counts.
    Nobody,
    /// Those who may have them may be about to listen again.
    NobodyYet,
    Told(Numbers),
    /// Some were sent the counts, others cannot be now.
    ToldSome(Numbers),
    NotNow,
}

pub struct Rooms<S = Published> {
    rooms: HashMap<u64, Room>,
    /// (time, room).
    due: BTreeSet<(u64, u64)>,
    bytes: usize,
    cleaned: u64,
    /// Nothing could be sent at the last try.
    is_stuck: bool,
    shown: S,
}

impl<S: Publish + Copy> Rooms<S> {
    pub fn new(shown: S) -> Rooms<S> {
        let (rooms, due) = (HashMap::new(), BTreeSet::new());
        Rooms { rooms, due, bytes: 0, cleaned: 0, is_stuck: false, shown }
    }

    /// The changes of a committed batch.
    pub fn apply(&mut self, changes: Vec<Change>, now: u64) {
        let (mut shown, mut due) = (HashMap::new(), Vec::new());
        for Change { room, name, members, users } in changes {
            let found = self.entry(room, name, now);
            found.numbers = found.numbers.map(|numbers| numbers.plus(members, users));
            found.since = [found.since[0] + members, found.since[1] + users];
            found.tries = 0;
            if found.due.is_none() {
                let at = now.max(found.looked + PAUSE);
                found.due = Some(at);
                due.push((at, room));
            }
            if let Some(numbers) = found.numbers.filter(|_| found.asked) {
                shown.insert(room, numbers);
            }
        }
        self.due.extend(due);
        self.shown.change(shown.into_iter());
    }

    pub fn is_known(&self, room: u64) -> bool {
        self.rooms.contains_key(&room)
    }

    pub fn numbers(&self, room: u64) -> Option<Numbers> {
        self.rooms.get(&room)?.numbers
    }

    pub fn may_show_more(&self) -> bool {
        self.bytes < memory::for_rooms() / 2
    }

    /// From now on sessions find the counts of a room, as published.
    pub fn show(&mut self, room: u64, name: Vec<u8>, numbers: Numbers, now: u64) {
        if self.shown.put(room, numbers, now) {
            let found = self.entry(room, name, now);
            (found.numbers, found.asked) = (Some(numbers), true);
        }
    }

    /// Whether more rooms can be recorded. Otherwise those that are due come early, and what cannot be sent is given
    /// up, because events must not wait for it.
    pub fn make_room(&mut self, now: u64) -> bool {
        if self.bytes > memory::for_rooms() {
            self.retain(|_, room| room.due.is_some());
        }
        if self.bytes <= memory::for_rooms() {
            return true;
        }
        if self.is_stuck {
            self.shown.clear();
            *self = Rooms::new(self.shown);
            return true;
        }
        self.due.clear();
        for (key, room) in &mut self.rooms {
            room.due = Some(now);
            self.due.insert((now, *key));
        }
        false
    }

    /// Whether anything that was due could be sent.
    pub fn note_progress(&mut self, has_any: bool) {
        self.is_stuck = !has_any;
    }

    /// Events were lost: the counts are unknown.
    pub fn forget_numbers(&mut self, now: u64) {
        self.shown.clear();
        for (key, room) in &mut self.rooms {
            (room.numbers, room.asked, room.anyway, room.tries) = (None, false, true, 0);
            if room.due.is_none() {
                room.due = Some(now);
                self.due.insert((now, *key));
            }
        }
    }

    /// When the next one is due.
    pub fn next(&self) -> u64 {
        self.due.first().map_or(u64::MAX, |(at, _)| *at)
    }

    /// The first rooms that are due.
    pub fn due(&self, now: u64, most: usize) -> Vec<Due> {
        let due = self.due.iter().take_while(|(at, _)| *at <= now).take(most);
        due.filter_map(|(_, key)| {
            let room = self.rooms.get(key)?;
            // Somebody who asked in between may have seen counts that have changed back since.
            let is_news =
                room.anyway || room.since != [0, 0] || self.shown.was_asked_since(*key, room.looked);
            Some(Due { room: *key, name: room.name.clone(), numbers: room.numbers, is_news })
        })
        .collect()
    }

    /// The result for a room that was due.
    pub fn settle(&mut self, key: u64, outcome: Outcome, now: u64) {
        let Some(room) = self.rooms.get_mut(&key) else { return };
        if let Some(at) = room.due.take() {
            self.due.remove(&(at, key));
        }
        room.looked = now;
        let again = match outcome {
            Outcome::NobodyYet if room.tries < MOST_TRIES => {
                room.tries += 1;
                true
            }
            Outcome::NoNews => {
                room.since = [0, 0];
                false
            }
            Outcome::Nobody | Outcome::NobodyYet => {
                room.numbers = room.numbers.filter(|_| room.asked);
                (room.since, room.anyway) = ([0, 0], false);
                false
            }
            Outcome::Told(numbers) => {
                (room.numbers, room.since, room.anyway) = (Some(numbers), [0, 0], false);
                false
            }
            Outcome::ToldSome(numbers) => {
                (room.numbers, room.since, room.anyway) = (Some(numbers), [0, 0], true);
                true
            }
            Outcome::NotNow => true,
        };
        if again {
            room.due = Some(now + PAUSE);
            self.due.insert((now + PAUSE, key));
        }
    }

    /// From time to time: forget rooms without changes and without listeners.
    pub fn clean(&mut self, now: u64, is_listened_to: impl Fn(&[u8]) -> bool) {
        if now < self.cleaned + PAUSE {
            return;
        }
        self.cleaned = now;
        let shown = self.shown;
        self.retain(|key, room| {
            if room.asked && !shown.is_wanted(key, now) {
                shown.remove(key);
                room.asked = false;
            }
            room.asked
                || room.due.is_some()
                || now < room.looked + PAUSE
                || (room.numbers.is_some() && is_listened_to(&room.name))
        });
    }

    /// Find or create the room's entry.
    fn entry(&mut self, room: u64, name: Vec<u8>, now: u64) -> &mut Room {
        let bytes = &mut self.bytes;
        self.rooms.entry(room).or_insert_with(|| {
            *bytes += ROOM_BYTES + name.len();
            let (numbers, since, due) = (None, [0, 0], None);
            let looked = now.saturating_sub(PAUSE);
            Room { name, numbers, since, anyway: false, asked: false, looked, due, tries: 0 }
        })
    }

    fn retain(&mut self, keep: impl Fn(u64, &mut Room) -> bool) {
        self.rooms.retain(|key, room| {
            let stays = keep(*key, room);
            if !stays {
                self.bytes -= ROOM_BYTES + room.name.len();
                if room.asked {
                    self.shown.remove(*key);
                }
            }
            stays
        });
    }
}

#[cfg(test)]
#[path = "rooms_tests.rs"]
mod tests;
