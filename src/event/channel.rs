//! Channels: the names under which events are notified, and the tokens an event is for.
//!
//! NOTIFY has no access control, so a name is a capability: a keyed hash of room and token that nobody can guess
//! and that only `presence.listen` and `presence.channels` hand out, after the rights check. The hash has a random
//! number and epochs in it: `rotate_channels` and a crash make new names, a clean restart keeps them.
//!
//! One channel is not secret (`subscriber_counts::FIXED`): every listener hears there what concerns all, and that the server is alive.

use crate::extension::{Extension, Purpose};
use crate::shared::channel_epochs::{Cell, ChannelEpochs};
use crate::shared::subscriber_counts::{CountedAt, PREFIX};
use hmac::{Hmac, Mac};
use sha2::Sha256;

/// Where a channel listens: one room, all rooms, or the database's own affairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope<'a> {
    Room(&'a [u8]),
    AllRooms,
    Database,
    /// Rooms that get new names together: all who listen to one of them hear that they did.
    Cell(Cell),
}

/// Service roles hear everything on one channel: no token of a caller can be this.
pub const SERVICE: &[u8] = b"service";
/// Who listens to a room has a doorbell there, for events that reach them by none of its channels: those that are shared
/// with the members of another room. Who listens to all rooms, and is in too many for a channel each, has one for those that
/// are shared with the members of a room that is too large to look for them.
pub const DOORBELL: &[u8] = b"doorbell";
/// The same for those who have more teams and roles than channels of them: it also rings for what is shared with any.
pub const WIDE_DOORBELL: &[u8] = b"wide doorbell";
/// Of these a listener has one at most.
pub const DOORBELLS: &[&[u8]] = &[DOORBELL, WIDE_DOORBELL];
/// A listener's channels of teams and roles, in each room.
pub const MOST_GROUPS: usize = 7;
/// Who listens to all rooms, and is in so many at most, has a channel for the members of each. Who is in more hears by a
/// channel of their own what the worker finds to be for them.
pub const MOST_ROOMS: usize = 100;

/// All who know names of a cell hear this of it: `relisten`, when they get new ones.
pub const LISTENERS: &[u8] = b"listeners";

/// `user:<id>` in the scope of the database: `relisten`, for that user alone.
pub fn own_token(user_id: &[u8]) -> Vec<u8> {
    [b"user:", user_id].concat()
}

/// For all rooms: what is for the members of a room that this user is in, as the worker finds it. No token of a caller.
pub fn roaming_token(user_id: &[u8]) -> Vec<u8> {
    [b"roaming:", user_id].concat()
}

pub fn room_cell(extension: &Extension, room: &[u8]) -> Cell {
    Cell::of_room(extension.hash(Purpose::RoomEpoch, &[room]))
}

/// What gets new names by `rotate_channels(room)`: who listens to all rooms hears of this one, too.
pub fn rotated_with(extension: &Extension, room: &[u8]) -> [Cell; 2] {
    [room_cell(extension, room), Cell::ALL_ROOMS]
}

pub fn present_cell(extension: &Extension, room: &[u8]) -> Cell {
    Cell::of_present(extension.hash(Purpose::RoomEpoch, &[room]))
}

/// Who was given names of those present in a room, as their cell notes it.
pub fn knower(extension: &Extension, user_id: &[u8], room: &[u8]) -> u64 {
    extension.hash(Purpose::RoomChannel, &[user_id, room])
}

/// By which it is counted how often the user was told to listen again.
pub fn moves_of(extension: &Extension, user_id: Option<&[u8]>) -> u64 {
    extension.hash(Purpose::Moves, &[user_id.unwrap_or_default()])
}

pub struct Channel<'a> {
    scope: Scope<'a>,
    token: &'a [u8],
    /// Of the room, and of those present in the room that the token names: with these the name changes.
    cells: [Option<Cell>; 2],
}

impl<'a> Channel<'a> {
    pub fn new(extension: &Extension, scope: Scope<'a>, token: &'a [u8]) -> Channel<'a> {
        let cell = match scope {
            Scope::Room(room) => Some(room_cell(extension, room)),
            Scope::Cell(cell) => Some(cell),
            // A service role's right is no room's.
            Scope::AllRooms => (token != SERVICE).then_some(Cell::ALL_ROOMS),
            Scope::Database => None,
        };
        let present = token.strip_prefix(b"room:").map(|room| present_cell(extension, room));
        Channel { scope, token, cells: [cell, present] }
    }

    /// What everybody hears who knows names of the cell.
    pub fn of_cell(extension: &Extension, cell: Cell) -> Channel<'static> {
        Channel::new(extension, Scope::Cell(cell), LISTENERS)
    }

    /// What it gets a new name with, besides all others.
    pub fn cells(&self) -> impl Iterator<Item = Cell> + '_ {
        self.cells.iter().flatten().copied()
    }

    /// Whether somebody may know the name who may not hear it any more.
    pub fn is_stale(&self, names: &ChannelEpochs) -> bool {
        names.wants_all().is_some() || self.cells().any(|cell| names.wants(cell))
    }

    fn with_parts<T>(&self, body: impl FnOnce([&[u8]; 3]) -> T) -> T {
        match self.scope {
            Scope::Room(room) => body([b"room", room, self.token]),
            Scope::AllRooms => body([b"all", b"", self.token]),
            Scope::Database => body([b"database", b"", self.token]),
            Scope::Cell(Cell::Room(number)) => body([b"room cell", &number.to_le_bytes(), self.token]),
            Scope::Cell(Cell::Present(number)) => body([b"present cell", &number.to_le_bytes(), self.token]),
        }
    }

    /// What the name is made of: with other epochs it is another.
    fn all_parts<T>(&self, extension: &Extension, body: impl FnOnce([&[u8]; 6]) -> T) -> T {
        let names = &extension.database.names;
        let cells = self.cells.map(|cell| cell.map_or(0, |cell| names.epoch_of(cell)));
        let mut epochs = [names.epoch()].into_iter().chain(cells).map(u32::to_le_bytes);
        let [all, first, second] = std::array::from_fn(|_| epochs.next().unwrap_or_default());
        self.with_parts(|[scope, room, token]| body([&all, &first, &second, scope, room, token]))
    }

    /// 57 characters: an identifier that LISTEN does not cut short. Its end says where its holders are counted.
    pub fn name(&self, extension: &Extension) -> String {
        // HMAC takes keys of any length; without one there is no name to guess either.
        let Ok(mut hash) = Hmac::<Sha256>::new_from_slice(extension.secret()) else { return String::new() };
        hash.update(&extension.database.names.boot().to_le_bytes());
        self.all_parts(extension, |parts| {
            for part in parts {
                hash.update(&(part.len() as u32).to_le_bytes());
                hash.update(part);
            }
        });
        let digest = hash.finalize().into_bytes();
        let mut name = digest[..18].iter().fold(String::from(PREFIX), |mut name, byte| {
            name.push_str(&format!("{byte:02x}"));
            name
        });
        name.push_str(&self.counted_at(extension).digits());
        name
    }

    fn counted_at(&self, extension: &Extension) -> CountedAt {
        self.all_parts(extension, |parts| CountedAt::of_hash(extension.hash(Purpose::Channel, &parts)))
    }

    /// False: nobody listens to this channel.
    pub fn is_held(&self, extension: &Extension) -> bool {
        extension.database.held.is_held(self.counted_at(extension))
    }
}

/// A number for all names as they are: when it is another, none of them is good any more.
pub fn boot(extension: &Extension) -> u64 {
    boot_of(extension, extension.database.names.epoch())
}

/// The one that comes with new names for all.
pub fn next_boot(extension: &Extension) -> u64 {
    boot_of(extension, extension.database.names.epoch().wrapping_add(1))
}

fn boot_of(extension: &Extension, epoch: u32) -> u64 {
    let boot = extension.database.names.boot();
    extension.hash(Purpose::Boot, &[&boot.to_le_bytes(), &epoch.to_le_bytes()])
}

/// Which doorbells of a listener to a room ring for an event of the room that is shared with this token, and whether the
/// token has a channel of its own in the room.
pub fn in_room(room: &[u8], token: &[u8]) -> (&'static [&'static [u8]], bool) {
    match token.strip_prefix(b"room:") {
        Some(other) if other != room => (DOORBELLS, false),
        _ if is_group(token) => (&[WIDE_DOORBELL], true),
        _ => (&[], true),
    }
}

pub fn is_group(token: &[u8]) -> bool {
    token.starts_with(b"team:") || token.starts_with(b"role:")
}
