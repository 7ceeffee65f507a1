//! `presence.listen`, `unlisten` and `channels`: who may hear what, as channel names.

use crate::error::{Error, Result};
use crate::event::channel::{Channel, EVERYBODY, SERVICE, Scope, own_token};
use crate::extension::{self, Extension};
use crate::identity;
use crate::member::{session, validate};
use crate::sqlfn::{Call, varlena};
use pgrx::pg_sys::Datum;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use std::ffi::{CString, c_char};

unsafe extern "C-unwind" {
    fn Async_Listen(channel: *const c_char);
    fn Async_Unlisten(channel: *const c_char);
}

/// The channels that the caller's rights open; `room` None is all rooms.
fn open_channels(extension: &Extension, room: Option<&[u8]>) -> Result<Vec<String>> {
    let identity = identity::current(extension)?;
    let scope = room.map_or(Scope::AllRooms, Scope::Room);
    let mut names = vec![Channel::new(extension, Scope::Database, EVERYBODY).hand_out(extension)];
    if let Some(user_id) = &identity.user_id {
        names.push(Channel::new(extension, Scope::Database, &own_token(user_id)).hand_out(extension));
    }
    if identity.service {
        names.push(Channel::new(extension, scope, SERVICE).hand_out(extension));
        return Ok(names);
    }
    for token in identity.tokens(&identity.rooms(extension)?)? {
        names.push(Channel::new(extension, scope, &token).hand_out(extension));
    }
    Ok(names)
}

fn room(call: &Call) -> Result<Option<&[u8]>> {
    let room = call.text(0);
    room.map_or(Ok(()), |room| validate::name("room", room))?;
    Ok(room)
}

/// SQL `presence.channels(room)`.
fn channels(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let names = open_channels(&extension, room(call)?)?;
    call.rows(names.iter().map(|name| vec![Some(varlena(name.as_bytes()))]))
}

/// SQL `presence.listen(room)`.
fn listen(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    session::require(&*identity::current(&extension)?, "listen")?;
    let names = open_channels(&extension, room(call)?)?;
    for name in &names {
        let channel = c_name(name)?;
        // SAFETY: a C string, copied by the callee; errors become panics at the boundary.
        unsafe { pg_guard_ffi_boundary(|| Async_Listen(channel.as_ptr())) };
    }
    call.rows(names.iter().map(|name| vec![Some(varlena(name.as_bytes()))]))
}

/// SQL `presence.unlisten(room)`: the channels of the room; those of the database stay for the others.
fn unlisten(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    session::require(&*identity::current(&extension)?, "unlisten")?;
    let identity = identity::current(&extension)?;
    let room = room(call)?;
    let scope = room.map_or(Scope::AllRooms, Scope::Room);
    let mut tokens = identity.tokens(&identity.rooms(&extension)?)?;
    tokens.push(SERVICE.to_vec());
    if let Some(room) = room {
        // One may have left the room since.
        tokens.push([b"room:", room].concat());
    }
    for token in tokens {
        let channel = c_name(&Channel::new(&extension, scope, &token).name(&extension))?;
        // SAFETY: as in `listen`.
        unsafe { pg_guard_ffi_boundary(|| Async_Unlisten(channel.as_ptr())) };
    }
    Ok(None)
}

fn c_name(name: &str) -> Result<CString> {
    CString::new(name).map_err(|_| Error::InvalidArgument { argument: "room", why: "It has a NUL.".into() })
}

crate::sql_function!(presence_channels, pg_finfo_presence_channels, channels);
crate::sql_function!(presence_listen, pg_finfo_presence_listen, listen);
crate::sql_function!(presence_unlisten, pg_finfo_presence_unlisten, unlisten);
