//! `presence.listen`, `unlisten` and `channels`: who may hear what, as channel names.

use super::channels;
use crate::access::authorizer::{self, Action};
use crate::access::{client, identity};
use crate::error::{Error, Result};
use crate::event::image::Image;
use crate::event::record::Kind;
use crate::event::subscriptions::{self, Target};
use crate::event::transaction;
use crate::member::session;
use crate::member::verb::require_no_standby;
use crate::pg::datum::varlena;
use crate::pg::function::Call;
use crate::pg::notify;
use crate::{extension, validate};
use pgrx::pg_sys::Datum;
use std::ffi::CString;

fn room(call: &Call) -> Result<Option<&[u8]>> {
    let room = call.text(0);
    room.map_or(Ok(()), |room| validate::name("room", room))?;
    Ok(room)
}

/// SQL `presence.channels(room)`.
fn channels(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    require_no_standby("presence.channels()")?;
    client::require_own_session("channels")?;
    let open = channels::open(&extension, room(call)?)?;
    call.rows(open.all().map(|name| vec![Some(varlena(name.as_bytes()))]))
}

/// SQL `presence.listen(room)`. Channels that an earlier call for the same argument opened and that are no longer open
/// to the caller are closed: old names, and lost rights.
fn listen(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    require_no_standby("presence.listen()")?;
    let identity = identity::current(&extension)?;
    session::require(&identity, "listen")?;
    let room = room(call)?;
    let open = channels::open(&extension, room)?;
    let user = Target::User(identity.user_id.clone().unwrap_or_default());
    stop(&subscriptions::open(user, &open.database))?;
    stop(&subscriptions::open(target(room), &open.target))?;
    if let Some(own) = open.database.last() {
        subscriptions::opened(open.as_of, c_name(own.as_bytes())?);
    }
    for name in open.all() {
        notify::listen(&c_name(name.as_bytes())?);
        subscriptions::listen(name.as_bytes());
    }
    call.rows(open.all().map(|name| vec![Some(varlena(name.as_bytes()))]))
}

/// SQL `presence.unlisten(room)`: closes the channels that `listen` opened for the room, and returns their number. The
/// channels of the database stay while others need them.
fn unlisten(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    session::require(&*identity::current(&extension)?, "unlisten")?;
    let closed = subscriptions::open(target(room(call)?), &[]);
    stop(&closed)?;
    Ok(Some(Datum::from(closed.len() as i32)))
}

fn target(room: Option<&[u8]>) -> Target {
    room.map_or(Target::AllRooms, |room| Target::Room(room.to_vec()))
}

fn stop(names: &[subscriptions::Name]) -> Result<()> {
    for name in names {
        notify::unlisten(&c_name(name.text())?);
        subscriptions::unlisten(name.text());
    }
    Ok(())
}

/// SQL `presence.rotate_channels(room)`: makes new names. Listeners to the old ones hear `relisten` and then nothing.
/// Returns true.
fn rotate_channels(call: &Call) -> Result<Option<Datum>> {
    require_no_standby("presence.rotate_channels()")?;
    let extension = extension::current()?;
    let identity = identity::current(&extension)?;
    let room = room(call)?;
    match room {
        _ if identity.service => {}
        Some(room) => authorizer::require(room, Action::Manage)?,
        None => return Err(Error::ServiceOnly { what: "rotate all channels" }),
    }
    let image = Image::new([room, None, None, None, None, None, None, None]);
    transaction::signal(&extension, Kind::Rotate, image, None);
    Ok(Some(Datum::from(true)))
}

fn c_name(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| Error::InvalidArgument { argument: "room", why: "It has a NUL.".into() })
}

crate::sql_function!(presence_channels, pg_finfo_presence_channels, channels);
crate::sql_function!(presence_listen, pg_finfo_presence_listen, listen);
crate::sql_function!(presence_rotate_channels, pg_finfo_presence_rotate_channels, rotate_channels);
crate::sql_function!(presence_unlisten, pg_finfo_presence_unlisten, unlisten);
