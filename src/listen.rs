//! `presence.listen`, `unlisten` and `channels`: who may hear what, as channel names.

use crate::authorizer::{self, Action};
use crate::client;
use crate::error::{Error, Result};
use crate::event::channel::{
    Channel, DOORBELL, MOST_GROUPS, SERVICE, Scope, WIDE_DOORBELL, boot, own_token, present_cell, room_cell,
};
use crate::event::record::Kind;
use crate::event::transaction;
use crate::extension::{self, Extension, Purpose};
use crate::holding;
use crate::identity::{self, Identity};
use crate::member::{session, validate};
use crate::shared::held::FIXED;
use crate::shared::names::Cell;
use crate::spi::with_committed_snapshot;
use crate::sqlfn::{Call, varlena};
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::pg_sys::{self, Datum};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{CString, c_char};

unsafe extern "C-unwind" {
    fn Async_Listen(channel: *const c_char);
    fn Async_Unlisten(channel: *const c_char);
}

/// The channels that the caller's rights open; `room` None is all rooms.
fn open_channels(extension: &Extension, room: Option<&[u8]>) -> Result<Vec<String>> {
    extension.database.names.read(|| {
        extension.database.beacon.knows(boot(extension));
        names(extension, room)
    })
}

/// The same, by the names as they are; whoever gets new ones meanwhile is not noted for them.
fn names(extension: &Extension, room: Option<&[u8]>) -> Result<Vec<String>> {
    let identity = identity::current(extension)?;
    if !extension.may_read() {
        return Err(Error::NotAuthorized { action: "read" });
    }
    let scope = room.map_or(Scope::AllRooms, Scope::Room);
    let mut names = vec![FIXED.to_owned()];
    if let Some(user_id) = &identity.user_id {
        names.push(Channel::new(extension, Scope::Database, &own_token(user_id)).name(extension));
    }
    if let Some(room) = room {
        names.push(Channel::of_cell(extension, room_cell(extension, room)).name(extension));
        if !identity.service {
            authorizer::require(room, Action::Read)?;
        }
    }
    if identity.service {
        names.push(Channel::new(extension, scope, SERVICE).name(extension));
        return Ok(names);
    }
    // As is committed now, whatever an old snapshot says: who enters and rolls back, or leaves at once, was never there,
    // and nobody would ever be told to take the names back. Again once the worker knows whom to rotate for.
    note(extension, &identity, &present_in(extension, &identity, room)?);
    let rooms = present_in(extension, &identity, room)?;
    note(extension, &identity, &rooms);
    let cells: BTreeSet<Cell> = rooms.iter().map(|room| present_cell(extension, room)).collect();
    names.extend(cells.into_iter().map(|cell| Channel::of_cell(extension, cell).name(extension)));
    let tokens = match room {
        Some(room) => tokens_in_room(extension, &identity, room, &rooms)?,
        None => identity.tokens(&rooms)?,
    };
    names.extend(tokens.iter().map(|token| Channel::new(extension, scope, token).name(extension)));
    Ok(names)
}

/// Who listens to a room hears what is for its members if they are one; what is for those of another room rings.
fn present_in(extension: &Extension, identity: &Identity, room: Option<&[u8]>) -> Result<Vec<Vec<u8>>> {
    with_committed_snapshot(|| match room {
        Some(room) => Ok(identity.is_in(extension, room)?.then(|| room.to_vec()).into_iter().collect()),
        None => identity.rooms(extension),
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

/// So few that a room costs a bounded number of channels: all others ring the doorbell.
fn tokens_in_room(
    extension: &Extension,
    identity: &Identity,
    room: &[u8],
    rooms: &[Vec<u8>],
) -> Result<Vec<Vec<u8>>> {
    let mut tokens = identity.own_tokens();
    tokens.extend(rooms.iter().map(|room| [b"room:", room.as_slice()].concat()));
    let groups = identity.group_tokens()?;
    if groups.len() > MOST_GROUPS {
        tokens.push(WIDE_DOORBELL.to_vec());
    } else if with_committed_snapshot(|| identity.is_elsewhere(extension, room))? {
        // Who enters another room later is told to listen again.
        tokens.push(DOORBELL.to_vec());
    }
    tokens.extend(groups.into_iter().take(MOST_GROUPS));
    Ok(tokens)
}

fn room(call: &Call) -> Result<Option<&[u8]>> {
    let room = call.text(0);
    room.map_or(Ok(()), |room| validate::name("room", room))?;
    Ok(room)
}

/// SQL `presence.channels(room)`.
fn channels(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    client::require_own_session("channels")?;
    let names = open_channels(&extension, room(call)?)?;
    call.rows(names.iter().map(|name| vec![Some(varlena(name.as_bytes()))]))
}

thread_local! {
    /// The rooms that this session listens to: those of a cell share a channel.
    static LISTENED: RefCell<HashMap<Cell, HashSet<Vec<u8>>>> = RefCell::default();
    /// And to all that the caller is in.
    static LISTENED_TO_ALL: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// SQL `presence.listen(room)`.
fn listen(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    // SAFETY: raises on a standby, where nobody would be heard.
    unsafe { pg_sys::PreventCommandDuringRecovery(c"presence.listen()".as_ptr()) };
    session::require(&*identity::current(&extension)?, "listen")?;
    let room = room(call)?;
    let names = open_channels(&extension, room)?;
    match room {
        Some(room) => LISTENED.with_borrow_mut(|listened| {
            listened.entry(room_cell(&extension, room)).or_default().insert(room.to_vec());
        }),
        None => LISTENED_TO_ALL.set(true),
    }
    for name in &names {
        let channel = c_name(name)?;
        // SAFETY: a C string, copied by the callee; errors become panics at the boundary.
        unsafe { pg_guard_ffi_boundary(|| Async_Listen(channel.as_ptr())) };
        holding::listen(name.as_bytes());
    }
    call.rows(names.iter().map(|name| vec![Some(varlena(name.as_bytes()))]))
}

/// SQL `presence.unlisten(room)`: the channels of the room; those of the database stay for the others.
fn unlisten(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let identity = identity::current(&extension)?;
    session::require(&identity, "unlisten")?;
    let room = room(call)?;
    let scope = room.map_or(Scope::AllRooms, Scope::Room);
    // One may have left the room since, or have other teams.
    let rooms = match room {
        Some(room) => vec![room.to_vec()],
        None => identity.rooms(&extension)?,
    };
    let mut tokens = identity.tokens(&rooms)?;
    tokens.extend([SERVICE, DOORBELL, WIDE_DOORBELL].map(<[u8]>::to_vec));
    match room {
        Some(room) => forget(room_cell(&extension, room), room),
        None => LISTENED_TO_ALL.set(false),
    }
    let cells = rooms.iter().flat_map(|room| [room_cell(&extension, room), present_cell(&extension, room)]);
    let unused = cells.filter(|cell| !is_used(*cell)).collect::<BTreeSet<Cell>>();
    let of_cell = |cell| Channel::of_cell(&extension, cell).name(&extension);
    let mut names: Vec<String> = unused.into_iter().map(of_cell).collect();
    names.extend(tokens.iter().map(|token| Channel::new(&extension, scope, token).name(&extension)));
    for name in &names {
        let channel = c_name(name)?;
        // SAFETY: as in `listen`.
        unsafe { pg_guard_ffi_boundary(|| Async_Unlisten(channel.as_ptr())) };
        holding::unlisten(name.as_bytes());
    }
    Ok(None)
}

fn forget(cell: Cell, room: &[u8]) {
    LISTENED.with_borrow_mut(|listened| {
        if let Some(rooms) = listened.get_mut(&cell) {
            rooms.remove(room);
            if rooms.is_empty() {
                listened.remove(&cell);
            }
        }
    });
}

/// Whether the session listens to a room of the cell.
fn is_used(cell: Cell) -> bool {
    let is_of_all = matches!(cell, Cell::Present(_)) && LISTENED_TO_ALL.get();
    let same = match cell {
        Cell::Room(number) | Cell::Present(number) => Cell::Room(number),
    };
    is_of_all || LISTENED.with_borrow(|listened| listened.contains_key(&same))
}

/// SQL `presence.rotate_channels(room)`: new names; the old ones hear `relisten` and then nothing.
fn rotate_channels(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let identity = identity::current(&extension)?;
    let room = room(call)?;
    match room {
        _ if identity.service => {}
        Some(room) => authorizer::require(room, Action::Manage)?,
        None => return Err(Error::ServiceOnly { what: "rotate all channels" }),
    }
    transaction::tell(&extension, Kind::Rotate, [room, None, None, None, None, None, None, None]);
    Ok(None)
}

fn c_name(name: &str) -> Result<CString> {
    CString::new(name).map_err(|_| Error::InvalidArgument { argument: "room", why: "It has a NUL.".into() })
}

crate::sql_function!(presence_channels, pg_finfo_presence_channels, channels);
crate::sql_function!(presence_listen, pg_finfo_presence_listen, listen);
crate::sql_function!(presence_rotate_channels, pg_finfo_presence_rotate_channels, rotate_channels);
crate::sql_function!(presence_unlisten, pg_finfo_presence_unlisten, unlisten);
