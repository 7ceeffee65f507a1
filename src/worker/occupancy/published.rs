//! Where sessions read the numbers of rooms that they ask for.

use crate::shared::Database;
use crate::shared::occupancy::{Numbers, OccupancyTable};

pub trait Publish {
    /// Keep the counts of a room from now on; false if there is no place.
    fn put(&self, room: u64, numbers: Numbers, now: u64) -> bool;
    /// Update the counts of the rooms that are kept.
    fn change(&self, changed: impl Iterator<Item = (u64, Numbers)>);
    fn remove(&self, room: u64);
    fn clear(&self);
    /// Whether somebody asks for the room.
    fn is_wanted(&self, room: u64, now: u64) -> bool;
    /// Whether somebody may have seen other counts than those that were sent at that time.
    fn was_asked_since(&self, room: u64, time: u64) -> bool;
}

/// In shared memory.
#[derive(Clone, Copy)]
pub struct Published(&'static Database);

impl Published {
    /// For a new worker: the existing contents are not up to date.
    pub fn of(database: &'static Database) -> Published {
        database.change_numbers(OccupancyTable::clear);
        Published(database)
    }
}

impl Publish for Published {
    fn put(&self, room: u64, numbers: Numbers, now: u64) -> bool {
        self.0.change_numbers(|table| table.put(room, numbers, now))
    }

    fn change(&self, changed: impl Iterator<Item = (u64, Numbers)>) {
        let mut changed = changed.peekable();
        if changed.peek().is_some() {
            self.0.change_numbers(|table| changed.for_each(|(room, numbers)| table.change(room, numbers)));
        }
    }

    fn remove(&self, room: u64) {
        self.0.change_numbers(|table| table.remove(room));
    }

    fn clear(&self) {
        self.0.change_numbers(OccupancyTable::clear);
    }

    fn is_wanted(&self, room: u64, now: u64) -> bool {
        self.0.read_numbers(|table| table.is_wanted(room, now))
    }

    fn was_asked_since(&self, room: u64, time: u64) -> bool {
        self.0.numbers().was_asked_since(room, time)
    }
}
