//! Which channels the caller's rights open, as names.

use crate::access::authorizer::{self, Action};
use crate::access::identity::{self, Identity};
use crate::error::{Error, Result};
use crate::event::channel::{
    Channel, DOORBELL, MOST_GROUPS, MOST_ROOMS, SERVICE, Scope, WIDE_DOORBELL, boot, knower, moves_of,
    own_token, present_cell, roaming_token, room_cell,
};
use crate::extension::Extension;
use crate::member::user_rooms;
use crate::pg::snapshot::with_committed_snapshot;
use crate::shared::channel_epochs::{AsOf, Cell};
use crate::shared::subscriber_counts::FIXED;
use std::collections::BTreeSet;

pub struct Open {
    pub as_of: AsOf,
    /// Channels with signals for everybody, and with what concerns the caller, whatever they listen to.
    pub database: Vec<String>,
    /// Channels of the requested room, or of all rooms.
    pub target: Vec<String>,
}

impl Open {
    pub fn all(&self) -> impl Iterator<Item = &String> {
        self.database.iter().chain(&self.target)
    }
}

/// `room` None is all rooms.
pub fn open(extension: &Extension, room: Option<&[u8]>) -> Result<Open> {
    let identity = identity::current(extension)?;
    let as_of = extension.database.names.as_of(moves_of(extension, identity.user_id.as_deref()));
    // Repeated if names change meanwhile, so that the caller is noted for the names that are returned.
    extension.database.names.read(|| {
        extension.database.beacon.knows(boot(extension));
        names(extension, &identity, room, as_of)
    })
}

fn names(extension: &Extension, identity: &Identity, room: Option<&[u8]>, as_of: AsOf) -> Result<Open> {
    if !extension.may_read() {
        return Err(Error::NotAuthorized { action: "read" });
    }
    let scope = room.map_or(Scope::AllRooms, Scope::Room);
    let name = |scope, token: &[u8]| Channel::new(extension, scope, token).name(extension);
    let mut open = Open { as_of, database: vec![FIXED.to_owned()], target: Vec::new() };
    if let Some(user_id) = &identity.user_id {
        open.database.push(name(Scope::Database, &own_token(user_id)));
    }
    if let Some(room) = room.filter(|_| !identity.service) {
        authorizer::require(room, Action::Read)?;
    }
    if room.is_some() || !identity.service {
        let cell = room.map_or(Cell::ALL_ROOMS, |room| room_cell(extension, room));
        open.target.push(Channel::of_cell(extension, cell).name(extension));
    }
    if identity.service {
        open.target.push(name(scope, SERVICE));
        return Ok(open);
    }
    let user_id = identity.user_id.as_deref();
    // By committed data, whatever an old snapshot says: a caller who enters and rolls back, or leaves at once, was
    // never present, and nobody would ever be told to revoke the names. Read again once the worker knows for whom to
    // rotate.
    note(extension, user_id, &present_in(extension, user_id, room)?);
    let presence = present_in(extension, user_id, room)?;
    note(extension, user_id, &presence);
    let cells: BTreeSet<Cell> = presence.rooms.iter().map(|room| present_cell(extension, room)).collect();
    open.target.extend(cells.into_iter().map(|cell| Channel::of_cell(extension, cell).name(extension)));
    let mut tokens = identity.own_tokens();
    tokens.extend(presence.rooms.iter().map(|room| [b"room:", room.as_slice()].concat()));
    if let (None, true, Some(user_id)) = (room, presence.rings, user_id) {
        tokens.push(roaming_token(user_id));
    }
    let groups = identity.group_tokens()?;
    if groups.len() > MOST_GROUPS {
        tokens.push(WIDE_DOORBELL.to_vec());
    } else if presence.rings {
        tokens.push(DOORBELL.to_vec());
    }
    tokens.extend(groups.into_iter().take(MOST_GROUPS));
    open.target.extend(tokens.iter().map(|token| name(scope, token)));
    Ok(open)
}

/// The listener's rooms, as far as they matter for the channels.
#[derive(Default)]
struct Presence {
    /// Rooms with a channel of their own for what is shared with their members.
    rooms: Vec<Vec<u8>>,
    /// The listener is also in other rooms. (Whoever enters one later is told to listen again.)
    rings: bool,
}

/// A listener to a room who is a member of it has a channel for its members; a listener to all rooms has one for each
/// room they are in, unless there are too many.
fn present_in(extension: &Extension, user_id: Option<&[u8]>, room: Option<&[u8]>) -> Result<Presence> {
    let Some(user_id) = user_id else { return Ok(Presence::default()) };
    with_committed_snapshot(|| {
        Ok(match room {
            Some(room) => Presence {
                rooms: user_rooms::is_in(extension, user_id, room)?
                    .then(|| room.to_vec())
                    .into_iter()
                    .collect(),
                rings: user_rooms::is_elsewhere(extension, user_id, room)?,
            },
            None => match user_rooms::few_rooms(extension, user_id, MOST_ROOMS)? {
                Some(rooms) => Presence { rooms, rings: false },
                None => Presence { rooms: Vec::new(), rings: true },
            },
        })
    })
}

/// Note that this user is given the names of those present in these rooms.
fn note(extension: &Extension, user_id: Option<&[u8]>, presence: &Presence) {
    for room in &presence.rooms {
        let knower = knower(extension, user_id.unwrap_or_default(), room);
        extension.database.names.note_knower(present_cell(extension, room), knower);
    }
}
