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

/// The scope of a channel: one room, all rooms, or the database itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope<'a> {
    Room(&'a [u8]),
    AllRooms,
    Database,
    /// A cell of rooms that get new names together: all who listen to one of them are told so here.
    Cell(Cell),
}

/// Service roles hear everything on one channel. No caller can have this token.
pub const SERVICE: &[u8] = b"service";
/// A listener to a room has a doorbell there, for events that none of its channels carry: those that are shared with
/// the members of another room. A listener to all rooms, who is in too many for a channel each, has one for events that
/// are shared with the members of a room that is too large to search for them.
pub const DOORBELL: &[u8] = b"doorbell";
/// The same for those who have more teams and roles than channels for them: it also rings for events that are shared
/// with any team or role.
pub const WIDE_DOORBELL: &[u8] = b"wide doorbell";
/// A listener has at most one of these.
pub const DOORBELLS: &[&[u8]] = &[DOORBELL, WIDE_DOORBELL];
/// How many channels for teams and roles a listener has in each room.
pub const MOST_GROUPS: usize = 7;
/// A listener to all rooms who is in at most this many has a channel for the members of each. In more rooms they have a
/// channel of their own, for the events that the worker finds to be for them.
pub const MOST_ROOMS: usize = 100;

/// On this channel of a cell everybody who knows its names hears `relisten` when they change.
pub const LISTENERS: &[u8] = b"listeners";

/// `user:<id>` in the scope of the database: `relisten`, for that user alone.
pub fn own_token(user_id: &[u8]) -> Vec<u8> {
    [b"user:", user_id].concat()
}

/// For all rooms: events for the members of a room that this user is in, as the worker finds. No caller can have this
/// token.
pub fn roaming_token(user_id: &[u8]) -> Vec<u8> {
    [b"roaming:", user_id].concat()
}

pub fn room_cell(extension: &Extension, room: &[u8]) -> Cell {
    Cell::of_room(extension.hash(Purpose::RoomEpoch, &[room]))
}

/// The cells that `rotate_channels(room)` renames: listeners to all rooms hear of this one, too.
pub fn rotated_with(extension: &Extension, room: &[u8]) -> [Cell; 2] {
    [room_cell(extension, room), Cell::ALL_ROOMS]
}

pub fn present_cell(extension: &Extension, room: &[u8]) -> Cell {
    Cell::of_present(extension.hash(Purpose::RoomEpoch, &[room]))
}

/// A user who was given the names of those present in a room, as the room's cell records it.
pub fn knower(extension: &Extension, user_id: &[u8], room: &[u8]) -> u64 {
    extension.hash(Purpose::RoomChannel, &[user_id, room])
}

/// The counter of how often the user was told to listen again.
pub fn moves_of(extension: &Extension, user_id: Option<&[u8]>) -> u64 {
    extension.hash(Purpose::Moves, &[user_id.unwrap_or_default()])
}

pub struct Channel<'a> {
    scope: Scope<'a>,
    token: &'a [u8],
    /// The cell of the room, and that of those present in the room that the token names. The name changes with both.
    cells: [Option<Cell>; 2],
}

impl<'a> Channel<'a> {
    pub fn new(extension: &Extension, scope: Scope<'a>, token: &'a [u8]) -> Channel<'a> {
        let cell = match scope {
            Scope::Room(room) => Some(room_cell(extension, room)),
            Scope::Cell(cell) => Some(cell),
            // A service role's right does not depend on a room.
            Scope::AllRooms => (token != SERVICE).then_some(Cell::ALL_ROOMS),
            Scope::Database => None,
        };
        let present = token.strip_prefix(b"room:").map(|room| present_cell(extension, room));
        Channel { scope, token, cells: [cell, present] }
    }

    /// The channel that everybody who knows names of the cell listens to.
    pub fn of_cell(extension: &Extension, cell: Cell) -> Channel<'static> {
        Channel::new(extension, Scope::Cell(cell), LISTENERS)
    }

    /// The cells with which its name changes, apart from a renewal of all names.
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

    /// The parts of the name's hash: other epochs give another name.
    fn all_parts<T>(&self, extension: &Extension, body: impl FnOnce([&[u8]; 6]) -> T) -> T {
        let names = &extension.database.names;
        let cells = self.cells.map(|cell| cell.map_or(0, |cell| names.epoch_of(cell)));
        let mut epochs = [names.epoch()].into_iter().chain(cells).map(u32::to_le_bytes);
        let [all, first, second] = std::array::from_fn(|_| epochs.next().unwrap_or_default());
        self.with_parts(|[scope, room, token]| body([&all, &first, &second, scope, room, token]))
    }

    /// 57 characters, which LISTEN does not truncate. The last ones select the counters of its listeners.
    pub fn name(&self, extension: &Extension) -> String {
        // HMAC takes keys of any length, so this does not fail.
        let Ok(mut hash) = Hmac::<Sha256>::new_from_slice(extension.secret()) else { return String::new() };
        hash.update(&extension.database.names.boot().to_le_bytes());
        self.all_parts(extension, |parts| {
            for part in parts {
                hash.update(&(part.len() as u32).to_le_bytes());
                hash.update(part);
            }
        });
        let digest = hash.finalize().into_bytes();
        let mut name = String::with_capacity(64);
        name.push_str(PREFIX);
        let digits = digest[..18].iter().flat_map(|byte| [byte >> 4, byte & 15]);
        name.extend(digits.filter_map(|digit| char::from_digit(digit.into(), 16)));
        name.push_str(&self.counted_at(extension).digits());
        name
    }

    fn counted_at(&self, extension: &Extension) -> CountedAt {
        self.all_parts(extension, |parts| CountedAt::of_hash(extension.hash(Purpose::Channel, &parts)))
    }

    /// False means that nobody listens to this channel.
    pub fn is_held(&self, extension: &Extension) -> bool {
        extension.database.held.is_held(self.counted_at(extension))
    }
}

/// A number for the current generation of all names: if it changes, none of the old ones is valid.
pub fn boot(extension: &Extension) -> u64 {
    boot_of(extension, extension.database.names.epoch())
}

/// The number after all names have been renewed.
pub fn next_boot(extension: &Extension) -> u64 {
    boot_of(extension, extension.database.names.epoch().wrapping_add(1))
}

fn boot_of(extension: &Extension, epoch: u32) -> u64 {
    let boot = extension.database.names.boot();
    extension.hash(Purpose::Boot, &[&boot.to_le_bytes(), &epoch.to_le_bytes()])
}

/// Which doorbells of listeners to a room ring for an event of the room that is shared with this token, and whether the
/// token has a channel of its own there.
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
