//! Listeners to all rooms who are in too many rooms to hold a channel for each: when the worker tells what is for the members
//! of a room it looks for them among these. So they hear of a room exactly while they are in it.

use crate::error::Result;
use crate::event::channel::{Channel, DOORBELLS, Scope, WIDE_DOORBELL, is_group, roaming_token};
use crate::extension::Extension;
use crate::member::column::Column;
use crate::member::{scan, user_rooms};
use crate::nodes::{self, row::Shared, scan::Of};
use crate::pg::memory::Scratch;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

/// At most this many members of a room are searched; in a larger room a doorbell rings.
const MOST_MEMBERS: usize = 1_000;
/// At most this many listeners are notified of an event one by one.
const MOST_LISTENERS: usize = 64;
/// At most this many members are searched in one batch; each room counts as some.
const MOST_IN_BATCH: usize = 50_000;
const ROOM: usize = 10;

type Tokens = Rc<[Vec<u8>]>;

/// For one batch, by its snapshot.
pub struct Roaming<'a> {
    extension: &'a Extension,
    /// Whether there are such listeners: all of them listen to one of these doorbells.
    is_wanted: bool,
    rooms: HashMap<Vec<u8>, Option<Tokens>>,
    looked_at: usize,
}

impl<'a> Roaming<'a> {
    pub fn new(extension: &'a Extension) -> Roaming<'a> {
        let is_held = |bell: &&[u8]| Channel::new(extension, Scope::AllRooms, bell).is_held(extension);
        let is_wanted = DOORBELLS.iter().any(is_held);
        Roaming { extension, is_wanted, rooms: HashMap::new(), looked_at: 0 }
    }

    /// For an event that is shared with this token, in addition to the token's channel for all rooms: the tokens of
    /// listeners who are notified one by one, and the doorbells to ring.
    pub fn hear(&mut self, token: &[u8]) -> Result<(Tokens, &'static [&'static [u8]])> {
        let nobody: Tokens = [].into();
        match token.strip_prefix(b"room:") {
            Some(room) if self.is_wanted => Ok(match self.in_room(room)? {
                Some(tokens) => (tokens, &[]),
                None => (nobody, DOORBELLS),
            }),
            Some(_) => Ok((nobody, &[])),
            None => Ok((nobody, if is_group(token) { &[WIDE_DOORBELL] } else { &[] })),
        }
    }

    /// The users in the room; None if there are too many to search, or to notify.
    fn in_room(&mut self, room: &[u8]) -> Result<Option<Tokens>> {
        if let Some(known) = self.rooms.get(room) {
            return Ok(known.clone());
        }
        let found = self.look(room)?;
        self.rooms.insert(room.to_vec(), found.clone());
        Ok(found)
    }

    fn look(&mut self, room: &[u8]) -> Result<Option<Tokens>> {
        self.looked_at += ROOM;
        let (mut members, mut tokens) = (0, BTreeSet::new());
        let scratch = Scratch::new();
        scratch.within(|| {
            scan::of_room(self.extension, room, |row| {
                members += 1;
                self.looked_at += 1;
                if let Some(user_id) = row.text(Column::UserId) {
                    let token = roaming_token(user_id);
                    if Channel::new(self.extension, Scope::AllRooms, &token).is_held(self.extension)
                        && user_rooms::is_alive(self.extension, row)
                    {
                        tokens.insert(token);
                    }
                }
                Ok(members <= MOST_MEMBERS && self.looked_at <= MOST_IN_BATCH)
            })?;
            nodes::scan::of_room(self.extension, Of::Heard, room, |row| {
                members += 1;
                self.looked_at += 1;
                if let Some(user_id) = row.text(Shared::UserId) {
                    let token = roaming_token(user_id);
                    if Channel::new(self.extension, Scope::AllRooms, &token).is_held(self.extension) {
                        tokens.insert(token);
                    }
                }
                Ok(members <= MOST_MEMBERS && self.looked_at <= MOST_IN_BATCH)
            })
        })?;
        scratch.clear();
        let is_whole = members <= MOST_MEMBERS && self.looked_at <= MOST_IN_BATCH;
        Ok((is_whole && tokens.len() <= MOST_LISTENERS).then(|| tokens.into_iter().collect()))
    }
}
