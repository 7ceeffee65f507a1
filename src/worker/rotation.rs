//! Rotation: new names for channels, so that who knows the old ones hears no more.
//!
//! - When a member leaves who was given the channel of those present in a room, that channel rotates by itself:
//!   at once, but not again before a pause, by how many have to listen anew: 10 ms each, at most 5 s.
//! - `rotate_channels` rotates a room's channels, or all.
//! - When rights in the catalog shrink, all rotate. When the worker loses events, all do, with the `resync` that tells of
//!   it; when a commit loses its own, those of their rooms and users (`event::overflow`).
//!
//! Until then the old names carry doorbells only. What is to rotate stands in shared memory (`shared::channel_epochs`).
//!
//! The old names hear `relisten` with the rotation and again 1 s and 5 s later, for a LISTEN that was just
//! committing; and whenever a session listens to one (`shared::retired`).

use super::process::transaction;
use crate::access::authorizer;
use crate::clock;
use crate::event::channel::{Channel, knower, present_cell, rotated_with};
use crate::event::image::Field;
use crate::event::payload;
use crate::event::record::Record;
use crate::extension::Extension;
use crate::pg::notify::notify;
use crate::pg::subtransaction::Failure;
use crate::shared::channel_epochs::{Cell, ChannelEpochs, Renewal};
use crate::shared::subscriber_counts::FIXED;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering::*;

/// The pause between two rotations of a cell: this for each session that has to listen again, and at most the other.
const PAUSE_EACH: u64 = 10_000;
const LONGEST_PAUSE: u64 = 5_000_000;
const REPEATS: [u64; 2] = [1_000_000, 5_000_000];

#[derive(Clone, Default)]
pub struct Rotation {
    /// Cells whose names somebody knows who has left, with the leave not yet published.
    leaving: HashSet<Cell>,
    /// Until when such a cell is not rotated again, by the boot clock.
    rotated: HashMap<Cell, u64>,
    /// Users with an expired member in a room, without a leave yet that would tell them.
    over: HashSet<(Vec<u8>, Vec<u8>)>,
    /// Where to repeat `relisten`, and when.
    repeats: Vec<(u64, String)>,
}

/// Whether the user was given the channel of those present in the room.
fn knows(extension: &Extension, user_id: &[u8], room: &[u8]) -> bool {
    extension.database.names.knows(present_cell(extension, room), knower(extension, user_id, room))
}

/// The user is not in the room any more.
pub fn left(extension: &Extension, user_id: &[u8], room: &[u8]) {
    if knows(extension, user_id, room) {
        extension.database.names.want(present_cell(extension, room));
    }
}

/// `rotate_channels`; without a room all.
pub fn ask(extension: &Extension, room: Option<&[u8]>) {
    let names = &extension.database.names;
    match room {
        Some(room) => rotated_with(extension, room).into_iter().for_each(|cell| names.want(cell)),
        None => names.want_all(),
    }
}

impl Rotation {
    /// Leaves that are committed, but published only with a later batch.
    pub fn will_be_told(&mut self, extension: &Extension, leaves: impl Iterator<Item = Record>) {
        self.leaving.clear();
        for record in leaves {
            let [user_id, room] =
                [Field::UserId, Field::Room].map(|field| record.image.get(field).unwrap_or_default());
            if knows(extension, user_id, room) {
                self.leaving.insert(present_cell(extension, room));
            }
        }
    }

    /// A member has expired, and cannot be removed yet.
    pub fn is_over(&mut self, extension: &Extension, user_id: &[u8], room: &[u8]) {
        left(extension, user_id, room);
        self.over.insert((user_id.to_vec(), room.to_vec()));
    }

    /// Users who must be told that they may not be in these rooms any more.
    pub fn take_over(&mut self) -> HashSet<(Vec<u8>, Vec<u8>)> {
        std::mem::take(&mut self.over)
    }

    /// Whether somebody may listen to this channel who may not read it any more.
    pub fn is_stale(&self, extension: &Extension, channel: &Channel) -> bool {
        channel.is_stale(&extension.database.names)
            || (!self.leaving.is_empty() && channel.cells().any(|cell| self.leaving.contains(&cell)))
    }

    pub fn is_due(&self, extension: &Extension) -> bool {
        let (names, now) = (&extension.database.names, clock::boot());
        // Not with a `resync` that is owed, or of which we do not know: then it is no reason to write a batch.
        (names.wants_all().is_some() && extension.database.owed_resync().is_none())
            || self.due_cells(names, now).next().is_some()
            || !self.over.is_empty()
    }

    fn due_cells<'n>(&'n self, names: &'n ChannelEpochs, now: u64) -> impl Iterator<Item = Cell> + 'n {
        // With an authorizer, by which others than service roles may manage a room, the channels for all rooms carry
        // doorbells anyway. So their rotation waits until there is no authorizer, and nobody can make all listeners
        // listen again without the right to do so.
        let is_harmless = |cell: &Cell| *cell == Cell::ALL_ROOMS && authorizer::is_set();
        let is_due = move |cell: &Cell| self.rotated.get(cell).is_none_or(|until| now >= *until);
        names.wanted().filter(move |cell| !is_harmless(cell) && is_due(cell))
    }

    /// The rotations that are due: the channel (by its old name) on which everybody who knows the names is told, and
    /// what to renew at commit. Whoever must list again listens again as well, so with an owed `resync` both come
    /// together.
    pub fn take_due(&mut self, extension: &Extension, owes_resync: bool) -> Vec<(String, Renewal)> {
        let now = clock::boot();
        let names = &extension.database.names;
        self.rotated.retain(|_, until| now < *until);
        let rotating = match names.wants_all().filter(|_| !owes_resync) {
            Some(wishes) => vec![(FIXED.to_owned(), Renewal::All(wishes))],
            None => {
                let due: Vec<Cell> = self.due_cells(names, now).collect();
                let mut rotating = Vec::with_capacity(due.len());
                for cell in due {
                    let name = Channel::of_cell(extension, cell).name(extension);
                    // A request for a room comes from somebody who may manage it: it does not wait for the pause.
                    if matches!(cell, Cell::Present(_)) {
                        let listeners = extension.database.held.count(&name);
                        let pause = (u64::from(listeners) * PAUSE_EACH).min(LONGEST_PAUSE);
                        self.rotated.insert(cell, now + pause);
                    }
                    rotating.push((name, Renewal::Of(cell)));
                }
                rotating
            }
        };
        // The beacon repeats it to all.
        for (name, _) in rotating.iter().filter(|(_, renewal)| matches!(renewal, Renewal::Of(_))) {
            self.repeats.extend(REPEATS.map(|pause| (now + pause, name.clone())));
        }
        rotating
    }

    /// Repeat `relisten` where it is time, and to those who have only now listened to old names.
    pub fn repeat(&mut self, extension: &Extension) -> Result<(), Failure> {
        let now = clock::boot();
        self.repeats.extend(extension.database.retired.take_asked().into_iter().map(|name| (now, name)));
        if !self.repeats.iter().any(|(due, _)| *due <= now) {
            return Ok(());
        }
        let payload = payload::relisten(extension.database.seq.load(Acquire), None);
        let held = &extension.database.held;
        transaction(c"telling listeners to listen again", || {
            self.repeats
                .iter()
                .filter(|(due, name)| *due <= now && held.holds(name))
                .try_for_each(|(_, name)| notify(name, &payload))
        })?;
        self.repeats.retain(|(due, _)| *due > now);
        Ok(())
    }
}
