//! How many members there are with the same room, member_id and audience, by what was published: so that 1 on
//! enter is "came" and 0 on leave is "went", also when two tabs close at once. And how many a user has in a room.
//!
//! Counted, not queried: two concurrent leaves must give 1 and 0, in the order of the log.

use crate::error::Result;
use crate::event::record::{Field, Image, Kind, Record};
use crate::spi::{Connection, Statement};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

#[derive(Default)]
pub struct Connections {
    hasher: RandomState,
    counts: HashMap<u64, u32>,
}

/// What one event counts.
pub struct Counted {
    pub connections: u32,
    /// Of the audience that lost sight, after they did.
    pub hidden: u32,
    /// The user's members in the room, whatever their member_id.
    pub of_user: u32,
    /// The same for the owner before, if that was another.
    pub of_old_user: u32,
}

static ALL: Statement =
    Statement { sql: c"select room, member_id, audience, user_id from presence.member", arguments: &[] };

impl Connections {
    /// From the table, as the current snapshot has it, less what that snapshot sees but nobody has published.
    pub fn build(unpublished: &[Record]) -> Result<Connections> {
        let mut connections = Connections::default();
        let connection = Connection::open()?;
        let rows = connection.run(&ALL, &[], false)?;
        for row in 0..rows.count {
            let (room, member_id) = (rows.text(row, 0), rows.text(row, 1));
            let (group, user) = connections.keys(room, member_id, rows.array(row, 2), rows.text(row, 3));
            connections.add(group, 1);
            connections.add(user, 1);
        }
        for record in unpublished.iter().rev() {
            connections.take_back(record);
        }
        Ok(connections)
    }

    /// Count an event and say what to tell.
    pub fn count(&mut self, record: &Record) -> Counted {
        let (group, user) = self.keys_of(&record.image);
        match (record.kind, &record.old) {
            (Kind::Enter, _) => {
                self.add(group, 1);
                self.add(user, 1);
            }
            (Kind::Leave, _) => {
                self.add(group, -1);
                self.add(user, -1);
            }
            (Kind::Update, Some(old)) => {
                let (before, user_before) = self.keys_of(old);
                self.add(before, -1);
                self.add(user_before, -1);
                self.add(group, 1);
                self.add(user, 1);
            }
            _ => {}
        }
        let hidden = record.old.as_ref().map_or(0, |old| self.get(self.keys_of(old).0));
        let of_old_user = record.old.as_ref().map_or(0, |old| self.get(self.keys_of(old).1));
        Counted { connections: self.get(group), hidden, of_user: self.get(user), of_old_user }
    }

    /// The reverse of `count`.
    fn take_back(&mut self, record: &Record) {
        let (group, user) = self.keys_of(&record.image);
        match (record.kind, &record.old) {
            (Kind::Enter, _) => {
                self.add(group, -1);
                self.add(user, -1);
            }
            (Kind::Leave, _) => {
                self.add(group, 1);
                self.add(user, 1);
            }
            (Kind::Update, Some(old)) => {
                let (before, user_before) = self.keys_of(old);
                self.add(group, -1);
                self.add(user, -1);
                self.add(before, 1);
                self.add(user_before, 1);
            }
            _ => {}
        }
    }

    fn keys_of(&self, image: &Image) -> (u64, u64) {
        self.keys(
            image.get(Field::Room),
            image.get(Field::MemberId),
            image.get(Field::Audience),
            image.get(Field::UserId),
        )
    }

    fn keys(
        &self,
        room: Option<&[u8]>,
        member_id: Option<&[u8]>,
        audience: Option<&[u8]>,
        user_id: Option<&[u8]>,
    ) -> (u64, u64) {
        (self.hasher.hash_one((0, room, member_id, audience)), self.hasher.hash_one((1, room, user_id)))
    }

    fn get(&self, key: u64) -> u32 {
        self.counts.get(&key).copied().unwrap_or(0)
    }

    fn add(&mut self, key: u64, change: i32) {
        let count = self.counts.entry(key).or_insert(0);
        *count = count.saturating_add_signed(change);
        if *count == 0 {
            self.counts.remove(&key);
        }
    }
}
