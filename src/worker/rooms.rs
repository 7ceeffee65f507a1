//! Rooms whose numbers somebody may want to hear: what they are, as published, and when they are to be told.
//!
//! A room is here from the first change of its numbers that somebody may hear, until nobody listens any more. What a
//! change does to the numbers follows from what `Connections` counts; how many there were before is counted once, by
//! whoever wants to tell it (`worker::counting`).
//!
//! ```text
//!   a change ──▶ due: now, or a second after it was looked at last ──▶ told, if all changes since have changed anything
//! ```

use super::connections::Counted;
use super::memory;
use crate::event::channel::{Channel, room_cell};
use crate::event::record::{Field, Kind, Record};
use crate::extension::{Extension, Purpose};
use std::collections::{BTreeSet, HashMap};

/// A room is told of at most this often.
const PAUSE: u64 = 1_000_000;
/// Who must listen anew hears so 1 s and 5 s later, too: so long the news wait for somebody who may hear them.
const MOST_TRIES: u32 = 6;
/// What a room takes, beside its name: here and among those that are due.
const ROOM_BYTES: usize = 200;

/// Of a room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    pub members: u32,
    pub users: u32,
}

impl Numbers {
    fn plus(self, members: i32, users: i32) -> Numbers {
        Numbers {
            members: self.members.saturating_add_signed(members),
            users: self.users.saturating_add_signed(users),
        }
    }
}

/// What an event does to the numbers of a room.
pub struct Change {
    room: u64,
    name: Vec<u8>,
    members: i32,
    users: i32,
}

struct Room {
    name: Vec<u8>,
    /// None: nobody has counted yet.
    numbers: Option<Numbers>,
    /// What has changed since it was told last: members and users.
    since: [i32; 2],
    /// To be told even if that comes to nothing.
    anyway: bool,
    /// When it was looked at last.
    looked: u64,
    due: Option<u64>,
    tries: u32,
}

/// A room whose turn it is.
pub struct Due {
    pub room: u64,
    pub name: Vec<u8>,
    pub numbers: Option<Numbers>,
    /// There is something to tell.
    pub is_news: bool,
}

/// What came of it.
#[derive(Clone, Copy)]
pub enum Outcome {
    NoNews,
    /// Nobody may have the numbers.
    Nobody,
    /// Who may have them may be about to listen anew.
    NobodyYet,
    Told(Numbers),
    /// Some were told, others cannot be now.
    ToldSome(Numbers),
    NotNow,
}

#[derive(Default)]
pub struct Rooms {
    rooms: HashMap<u64, Room>,
    /// When, and which.
    due: BTreeSet<(u64, u64)>,
    bytes: usize,
    cleaned: u64,
    /// Nothing could be told when it was tried last.
    is_stuck: bool,
}

pub fn key(extension: &Extension, room: &[u8]) -> u64 {
    extension.hash(Purpose::Numbers, &[room])
}

/// Whether somebody listens to the room; it may be another one.
pub fn is_listened_to(extension: &Extension, room: &[u8]) -> bool {
    Channel::of_cell(extension, room_cell(extension, room)).is_held(extension)
}

impl Rooms {
    /// What an event does to the numbers of its room, if they are of any interest. For `apply`, once it is committed.
    pub fn change(&self, extension: &Extension, record: &Record, counted: &Counted) -> Option<Change> {
        let [members, users] = effect(record, counted)?;
        let name = record.image.get(Field::Room)?;
        let room = key(extension, name);
        let is_wanted = self.rooms.contains_key(&room) || is_listened_to(extension, name);
        is_wanted.then(|| Change { room, name: name.to_vec(), members, users })
    }

    pub fn apply(&mut self, changes: Vec<Change>, now: u64) {
        for Change { room, name, members, users } in changes {
            let bytes = &mut self.bytes;
            let found = self.rooms.entry(room).or_insert_with(|| {
                *bytes += ROOM_BYTES + name.len();
                Room::new(name)
            });
            found.numbers = found.numbers.map(|numbers| numbers.plus(members, users));
            found.since = [found.since[0] + members, found.since[1] + users];
            found.tries = 0;
            if found.due.is_none() {
                let at = now.max(found.looked + PAUSE);
                found.due = Some(at);
                self.due.insert((at, room));
            }
        }
    }

    /// Whether more can be noted: else those that are due come first, and early. What cannot be told is given up, for
    /// events must not wait for it.
    pub fn make_room(&mut self, now: u64) -> bool {
        if self.bytes > memory::for_rooms() {
            self.retain(|room| room.due.is_some());
        }
        if self.bytes <= memory::for_rooms() {
            return true;
        }
        if self.is_stuck {
            *self = Rooms::default();
            return true;
        }
        self.due.clear();
        for (key, room) in &mut self.rooms {
            room.due = Some(now);
            self.due.insert((now, *key));
        }
        false
    }

    /// Whether anything came of what was due.
    pub fn note_progress(&mut self, has_any: bool) {
        self.is_stuck = !has_any;
    }

    /// Events were lost: nobody knows what there is now.
    pub fn forget_numbers(&mut self, now: u64) {
        for (key, room) in &mut self.rooms {
            (room.numbers, room.anyway, room.tries) = (None, true, 0);
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

    /// The first ones that are due.
    pub fn due(&self, now: u64, most: usize) -> Vec<Due> {
        let due = self.due.iter().take_while(|(at, _)| *at <= now).take(most);
        due.filter_map(|(_, key)| {
            let room = self.rooms.get(key)?;
            let is_news = room.anyway || room.since != [0, 0];
            Some(Due { room: *key, name: room.name.clone(), numbers: room.numbers, is_news })
        })
        .collect()
    }

    /// This came of one that was due.
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
                (room.numbers, room.since, room.anyway) = (None, [0, 0], false);
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

    /// Now and then: forget those in which nothing happens, and to which nobody listens.
    pub fn clean(&mut self, now: u64, is_listened_to: impl Fn(&[u8]) -> bool) {
        if now < self.cleaned + PAUSE {
            return;
        }
        self.cleaned = now;
        self.retain(|room| {
            room.due.is_some()
                || now < room.looked + PAUSE
                || (room.numbers.is_some() && is_listened_to(&room.name))
        });
    }

    fn retain(&mut self, keep: impl Fn(&Room) -> bool) {
        self.rooms.retain(|_, room| {
            let stays = keep(room);
            if !stays {
                self.bytes -= ROOM_BYTES + room.name.len();
            }
            stays
        });
    }
}

impl Room {
    fn new(name: Vec<u8>) -> Room {
        Room { name, numbers: None, since: [0, 0], anyway: false, looked: 0, due: None, tries: 0 }
    }
}

/// What an event does to the numbers of members and of users.
fn effect(record: &Record, counted: &Counted) -> Option<[i32; 2]> {
    let (first, last) = (i32::from(counted.of_user == 1), i32::from(counted.of_user == 0));
    match (record.kind, &record.old) {
        (Kind::Enter, _) => Some([1, first]),
        (Kind::Leave, _) => Some([-1, -last]),
        // Given to another.
        (Kind::Update, Some(old)) if old.get(Field::UserId) != record.image.get(Field::UserId) => {
            Some([0, first - i32::from(counted.of_old_user == 0)])
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn change(members: i32, users: i32) -> Vec<Change> {
        vec![Change { room: 7, name: b"hall".to_vec(), members, users }]
    }

    fn due(rooms: &Rooms, now: u64) -> Option<(Option<Numbers>, bool)> {
        rooms.due(now, 10).first().map(|due| (due.numbers, due.is_news))
    }

    fn numbers(members: u32, users: u32) -> Numbers {
        Numbers { members, users }
    }

    #[test]
    fn a_room_is_told_at_once_then_once_a_second_and_the_last_change_always() {
        let mut rooms = Rooms::default();
        rooms.apply(change(1, 1), 5 * SECOND);
        assert_eq!(due(&rooms, 5 * SECOND), Some((None, true)));
        rooms.settle(7, Outcome::Told(numbers(3, 3)), 5 * SECOND);
        assert_eq!((due(&rooms, 9 * SECOND), rooms.next()), (None, u64::MAX));
        for _ in 0..2 {
            rooms.apply(change(1, 0), 5 * SECOND + 1);
        }
        assert_eq!((due(&rooms, 6 * SECOND - 1), rooms.next()), (None, 6 * SECOND));
        assert_eq!(due(&rooms, 6 * SECOND), Some((Some(numbers(5, 3)), true)));
    }

    #[test]
    fn what_comes_to_nothing_is_no_news() {
        let mut rooms = Rooms::default();
        rooms.apply(change(1, 1), SECOND);
        rooms.apply(change(-1, -1), SECOND);
        assert_eq!(due(&rooms, SECOND), Some((None, false)));
        rooms.settle(7, Outcome::NoNews, SECOND);
        // As many members, of fewer users.
        rooms.apply(change(1, 0), 3 * SECOND);
        rooms.apply(change(-1, -1), 3 * SECOND);
        assert_eq!(due(&rooms, 3 * SECOND), Some((None, true)));
    }

    #[test]
    fn who_cannot_hear_yet_hears_later() {
        let mut rooms = Rooms::default();
        rooms.apply(change(1, 1), SECOND);
        rooms.settle(7, Outcome::ToldSome(numbers(1, 1)), SECOND);
        assert_eq!(due(&rooms, 2 * SECOND), Some((Some(numbers(1, 1)), true)), "for the others");
        rooms.settle(7, Outcome::Told(numbers(1, 1)), 2 * SECOND);
        rooms.apply(change(1, 1), 4 * SECOND);
        for turn in 0..6 {
            let now = (4 + turn) * SECOND;
            assert_eq!(due(&rooms, now), Some((Some(numbers(2, 2)), true)));
            rooms.settle(7, Outcome::NobodyYet, now);
        }
        rooms.settle(7, Outcome::NobodyYet, 10 * SECOND);
        assert_eq!(rooms.next(), u64::MAX, "nobody comes");
    }

    #[test]
    fn after_lost_events_all_is_counted_and_told_anew() {
        let mut rooms = Rooms::default();
        rooms.apply(change(1, 1), SECOND);
        rooms.settle(7, Outcome::Told(numbers(1, 1)), SECOND);
        rooms.forget_numbers(2 * SECOND);
        assert_eq!(due(&rooms, 2 * SECOND), Some((None, true)));
    }

    #[test]
    fn where_nobody_listens_nothing_stays() {
        let mut rooms = Rooms::default();
        rooms.apply(change(1, 1), SECOND);
        rooms.settle(7, Outcome::Told(numbers(1, 1)), SECOND);
        rooms.clean(3 * SECOND, |_| true);
        rooms.apply(change(1, 1), 3 * SECOND);
        assert_eq!(due(&rooms, 3 * SECOND), Some((Some(numbers(2, 2)), true)), "somebody listened");
        rooms.settle(7, Outcome::Told(numbers(2, 2)), 3 * SECOND);
        rooms.clean(5 * SECOND, |_| false);
        assert_eq!((rooms.rooms.len(), rooms.bytes), (0, 0));
    }
}
