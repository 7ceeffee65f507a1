//! Rotation: new names for channels, so that who knows the old ones hears no more.
//!
//! - When a member leaves who was given the channel of those present in a room, that channel rotates by itself:
//!   at once, but at most every 5 s a room. Until then it carries doorbells only.
//! - `rotate_channels` rotates a room's channels, or all.
//!
//! The old names hear `relisten` with the rotation and again 1 s and 5 s later, for a LISTEN that was just
//! committing.

use super::process::transaction;
use super::writer::notify;
use crate::clock;
use crate::event::channel::{Channel, EVERYBODY, LISTENERS, Scope};
use crate::event::payload;
use crate::extension::{Extension, Purpose};
use crate::shared::Database;
use crate::subtransaction::Failure;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering::*};

const PAUSE: u64 = 5_000_000;
const REPEATS: [u64; 2] = [1_000_000, 5_000_000];

#[derive(Clone, Default)]
pub struct Rotation {
    /// Rooms that somebody left who knows the channel of those present.
    left: HashSet<Vec<u8>>,
    /// When such a room was rotated last, by the boot clock; for as long as that matters.
    rotated: HashMap<Vec<u8>, u64>,
    /// `rotate_channels`: rooms, and None for all.
    asked: HashSet<Option<Vec<u8>>>,
    /// Where to say `relisten` again, and when.
    repeats: Vec<(u64, String)>,
}

impl Rotation {
    pub fn left(&mut self, room: &[u8]) {
        self.left.insert(room.to_vec());
    }

    pub fn ask(&mut self, room: Option<&[u8]>) {
        self.asked.insert(room.map(<[u8]>::to_vec));
    }

    /// Whether somebody may listen to this channel who may not read it any more.
    pub fn is_stale(&self, scope: Scope, token: &[u8]) -> bool {
        if self.left.is_empty() && self.asked.is_empty() {
            return false;
        }
        let room = match scope {
            Scope::Room(room) => Some(room.to_vec()),
            _ => None,
        };
        token.strip_prefix(b"room:").is_some_and(|room| self.left.contains(room))
            || self.asked.contains(&None)
            || (room.is_some() && self.asked.contains(&room))
    }

    pub fn is_due(&self) -> bool {
        let now = clock::boot();
        !self.asked.is_empty() || self.left.iter().any(|room| self.may_rotate(room, now))
    }

    fn may_rotate(&self, room: &[u8], now: u64) -> bool {
        self.rotated.get(room).is_none_or(|last| now >= last + PAUSE)
    }

    /// What rotates now: the channel (by its old name) that all listeners hear, and the epoch to raise at commit.
    pub fn take_due(&mut self, extension: &Extension) -> Vec<(String, &'static AtomicU32)> {
        let now = clock::boot();
        let database: &'static Database = extension.database;
        self.rotated.retain(|_, last| now < *last + PAUSE);
        let due: Vec<Vec<u8>> = self.left.iter().filter(|room| self.may_rotate(room, now)).cloned().collect();
        let mut rotating = Vec::new();
        for room in due {
            let token = [b"room:", room.as_slice()].concat();
            let name = Channel::new(extension, Scope::Database, &token).name(extension);
            rotating.push((name, database.presence_epoch(extension.hash(Purpose::RoomEpoch, &[&room]))));
            self.left.remove(&room);
            self.rotated.insert(room, now);
        }
        for asked in self.asked.drain() {
            rotating.push(match &asked {
                Some(room) => {
                    let name = Channel::new(extension, Scope::Room(room), LISTENERS).name(extension);
                    (name, database.room_epoch(extension.hash(Purpose::RoomEpoch, &[room])))
                }
                None => {
                    (Channel::new(extension, Scope::Database, EVERYBODY).name(extension), &database.epoch)
                }
            });
        }
        for (name, _) in &rotating {
            self.repeats.extend(REPEATS.map(|pause| (now + pause, name.clone())));
        }
        rotating
    }

    /// Say `relisten` again where it is time.
    pub fn repeat(&mut self, extension: &Extension) -> Result<(), Failure> {
        let now = clock::boot();
        if !self.repeats.iter().any(|(due, _)| *due <= now) {
            return Ok(());
        }
        let payload = payload::relisten(extension.database.seq.load(Acquire), None);
        transaction(c"telling listeners to listen again", || {
            self.repeats
                .iter()
                .filter(|(due, _)| *due <= now)
                .try_for_each(|(_, name)| notify(name, &payload))
        })?;
        self.repeats.retain(|(due, _)| *due > now);
        Ok(())
    }
}
