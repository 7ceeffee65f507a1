//! Which channels the caller's rights open, as names.

use crate::authorizer::{self, Action};
use crate::error::{Error, Result};
use crate::event::channel::{
    Channel, DOORBELL, MOST_GROUPS, MOST_ROOMS, SERVICE, Scope, WIDE_DOORBELL, boot, own_token, present_cell,
    roaming_token, room_cell,
};
use crate::extension::{Extension, Purpose};
use crate::identity::{self, Identity};
use crate::shared::held::FIXED;
use crate::shared::names::Cell;
use crate::spi::with_committed_snapshot;
use std::collections::BTreeSet;

#[derive(Default)]
pub struct Open {
    /// The database's own, which all listeners share.
    pub database: Vec<String>,
    /// Of what was asked for: a room, or all rooms.
    pub target: Vec<String>,
}

impl Open {
    pub fn all(&self) -> impl Iterator<Item = &String> {
        self.database.iter().chain(&self.target)
    }
}

/// `room` None is all rooms.
pub fn open(extension: &Extension, room: Option<&[u8]>) -> Result<Open> {
    // By the names as they are: whoever gets new ones meanwhile is not noted for them.
    extension.database.names.read(|| {
        extension.database.beacon.knows(boot(extension));
        names(extension, room)
    })
}

fn names(extension: &Extension, room: Option<&[u8]>) -> Result<Open> {
    let identity = identity::current(extension)?;
    if !extension.may_read() {
        return Err(Error::NotAuthorized { action: "read" });
    }
    let scope = room.map_or(Scope::AllRooms, Scope::Room);
    let name = |scope, token: &[u8]| Channel::new(extension, scope, token).name(extension);
    let mut open = Open::default();
    open.database.push(FIXED.to_owned());
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
    // As is committed now, whatever an old snapshot says: who enters and rolls back, or leaves at once, was never there,
    // and nobody would ever be told to take the names back. Again once the worker knows whom to rotate for.
    note(extension, &identity, present_in(extension, &identity, room)?.as_deref().unwrap_or_default());
    let rooms = present_in(extension, &identity, room)?;
    note(extension, &identity, rooms.as_deref().unwrap_or_default());
    let rooms_by_name = rooms.as_deref().unwrap_or_default();
    let cells: BTreeSet<Cell> = rooms_by_name.iter().map(|room| present_cell(extension, room)).collect();
    open.target.extend(cells.into_iter().map(|cell| Channel::of_cell(extension, cell).name(extension)));
    let mut tokens = identity.own_tokens();
    tokens.extend(rooms_by_name.iter().map(|room| [b"room:", room.as_slice()].concat()));
    let groups = identity.group_tokens()?;
    let rings = match (room, &identity.user_id) {
        _ if groups.len() > MOST_GROUPS => Some(WIDE_DOORBELL),
        // Who enters another room later is told to listen again.
        (Some(room), _) => {
            with_committed_snapshot(|| identity.is_elsewhere(extension, room))?.then_some(DOORBELL)
        }
        (None, _) => rooms.is_none().then_some(DOORBELL),
    };
    if let (None, Some(user_id)) = (&rooms, &identity.user_id) {
        tokens.push(roaming_token(user_id));
    }
    tokens.extend(groups.into_iter().take(MOST_GROUPS));
    tokens.extend(rings.map(<[u8]>::to_vec));
    open.target.extend(tokens.iter().map(|token| name(scope, token)));
    Ok(open)
}

/// Who listens to a room hears what is for its members if they are one; what is for those of another room rings. Who listens
/// to all rooms hears what is for the members of those that they are in; None if these are too many for a channel each.
fn present_in(
    extension: &Extension,
    identity: &Identity,
    room: Option<&[u8]>,
) -> Result<Option<Vec<Vec<u8>>>> {
    with_committed_snapshot(|| match room {
        Some(room) => Ok(Some(identity.is_in(extension, room)?.then(|| room.to_vec()).into_iter().collect())),
        None => identity.few_rooms(extension, MOST_ROOMS),
    })
}

/// The names of those present in these rooms are about to be given away.
fn note(extension: &Extension, identity: &Identity, rooms: &[Vec<u8>]) {
    let user_id = identity.user_id.as_deref().unwrap_or_default();
    for room in rooms {
        let knower = extension.hash(Purpose::RoomChannel, &[user_id, room]);
        extension.database.names.note_knower(present_cell(extension, room), knower);
    }
}
