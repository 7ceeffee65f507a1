//! Counts rooms as they were published: what the table says by the snapshot of a window, less what that snapshot sees and
//! nobody has published. Users are counted exactly, in bounded memory: where there are too many, part by part.

use crate::error::Result;
use crate::event::image::Field;
use crate::extension::Extension;
use crate::member::column::Column;
use crate::member::scan;
use crate::nodes::{self, row::Shared, scan::Of};
use crate::pg::datum::bytes_of;
use crate::pg::memory::Scratch;
use crate::shared::occupancy::Numbers;
use crate::worker::commit_gap::Window;
use crate::worker::connections::effects;
use crate::worker::memory;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// A user with unpublished changes, with its place in a map.
const USER_BYTES: usize = 64;

/// Must run in the transaction of the window's snapshot.
pub fn count(extension: &Extension, rooms: &[&[u8]], window: &Window) -> Result<Vec<Numbers>> {
    let places = rooms.iter().enumerate().map(|(at, room)| (*room, at)).collect();
    let scratch = Scratch::new();
    let counting = Counting { extension, rooms, places, window, scratch, hasher: RandomState::new() };
    let mut parts = 1;
    loop {
        match counting.in_parts(parts)? {
            Ok(numbers) => return Ok(numbers),
            Err(more) => parts = more.max(parts * 2),
        }
    }
}

struct Counting<'a> {
    extension: &'a Extension,
    rooms: &'a [&'a [u8]],
    places: HashMap<&'a [u8], usize>,
    window: &'a Window,
    scratch: Scratch,
    hasher: RandomState,
}

/// Hashes of users, with duplicates.
struct Users {
    seen: Vec<u64>,
    most: usize,
}

impl Users {
    /// False: there are too many.
    fn add(&mut self, user: u64) -> bool {
        if self.seen.len() >= self.most && self.distinct() > self.most / 2 {
            return false;
        }
        self.seen.push(user);
        true
    }

    fn distinct(&mut self) -> usize {
        self.seen.sort_unstable();
        self.seen.dedup();
        self.seen.len()
    }
}

impl Counting<'_> {
    /// Count the users in this many passes; the error is how many passes it takes.
    fn in_parts(&self, parts: u64) -> Result<std::result::Result<Vec<Numbers>, u64>> {
        let most = memory::for_counting() / 32;
        let mut numbers = vec![[0i64; 2]; self.rooms.len()];
        for part in 0..parts {
            // By room and user: how the published count differs from the table.
            let mut moving: HashMap<(usize, u64), i64> = HashMap::new();
            self.unpublished(|room, user, change| {
                if part == 0 {
                    numbers[room][0] -= change;
                }
                let user = self.user(user);
                if user % parts == part {
                    *moving.entry((room, user)).or_insert(0) -= change;
                }
            });
            if moving.len() * USER_BYTES > memory::for_counting() / 2 {
                return Ok(Err(parts * 2));
            }
            for (at, room) in self.rooms.iter().enumerate() {
                let mut users = Users { seen: Vec::new(), most };
                let (mut members, mut fits) = (0, true);
                self.members(room, |user| {
                    members += 1;
                    let user = self.user(user);
                    if fits && user % parts == part {
                        match moving.get_mut(&(at, user)) {
                            Some(count) => *count += 1,
                            None => fits = users.add(user),
                        }
                    }
                })?;
                if !fits {
                    return Ok(Err(members as u64 * 2 / most as u64 + 1));
                }
                if part == 0 {
                    numbers[at][0] += members;
                }
                numbers[at][1] += users.distinct() as i64;
            }
            for ((room, _), count) in moving {
                numbers[room][1] += i64::from(count > 0);
            }
        }
        let number = |number: i64| number.clamp(0, u32::MAX.into()) as u32;
        let of_room = |[members, users]: [i64; 2]| Numbers { members: number(members), users: number(users) };
        Ok(Ok(numbers.into_iter().map(of_room).collect()))
    }

    /// The user of each member of the room in the table.
    fn members(&self, room: &[u8], mut body: impl FnMut(&[u8])) -> Result<()> {
        let mut rows = 0u32;
        let scanned = self.scratch.within(|| {
            scan::of_room(self.extension, room, |row| {
                rows += 1;
                if rows.is_multiple_of(1_024) {
                    pgrx::check_for_interrupts!();
                }
                // SAFETY: a text. (A copy, for what is unpacked in its place would stay until the end.)
                body(&row.get(Column::UserId).map(|user| unsafe { bytes_of(user) }).unwrap_or_default());
                Ok(true)
            })?;
            nodes::scan::of_room(self.extension, Of::Told, room, |row| {
                pgrx::check_for_interrupts!();
                body(row.text(Shared::UserId).unwrap_or_default());
                Ok(true)
            })
        });
        self.scratch.clear();
        scanned
    }

    /// The unpublished changes of these rooms: the room's index, the user, and the change in members.
    fn unpublished(&self, mut body: impl FnMut(usize, &[u8], i64)) {
        self.window.each(|record| {
            let room = record.image.get(Field::Room).unwrap_or_default();
            if let Some(at) = self.places.get(room) {
                effects(record, |image, change| {
                    body(*at, image.get(Field::UserId).unwrap_or_default(), change.into());
                });
            }
        });
    }

    fn user(&self, user_id: &[u8]) -> u64 {
        self.hasher.hash_one(user_id)
    }
}
