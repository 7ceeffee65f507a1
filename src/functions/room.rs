//! Rooms: the functions behind `sql/rooms.sql`. What their settings mean to members is in `member::room_defaults`.

use crate::access::authorizer::{self, Action};
use crate::access::identity;
use crate::error::{Error, Result};
use crate::event::image::Image;
use crate::event::record::{Kind, Reason};
use crate::event::transaction;
use crate::extension::Extension;
use crate::member::intent::Intent;
use crate::member::{checks, delete};
use crate::pg::datum::{text_array, varlena};
use crate::pg::function::Call;
use crate::pg::role::as_role;
use crate::pg::spi::{Connection, Statement};
use crate::shared::next_version;
use crate::{extension, settings, validate};
use pgrx::pg_sys::{self, Datum};

static DROP_ROOM: Statement = Statement {
    sql: c"delete from presence.room where room operator(pg_catalog.=) $1",
    arguments: &[pg_sys::TEXTOID],
};

static MEMBERS_OF: Statement = Statement {
    sql: c"select key_hash from presence.member where room operator(pg_catalog.=) $1",
    arguments: &[pg_sys::TEXTOID],
};

fn require_manage(room: &[u8]) -> Result<()> {
    if identity::current(&extension::current()?)?.service {
        return Ok(());
    }
    authorizer::require(room, Action::Manage)
}

/// SQL `_presence._require_manage(room)`.
fn sql_require_manage(call: &Call) -> Result<Option<Datum>> {
    require_manage(call.text(0).ok_or(Error::MissingArgument { argument: "room" })?)?;
    Ok(None)
}

/// SQL `presence._audience(tokens, room)`, of versions before 0.3.0.
fn sql_audience(call: &Call) -> Result<Option<Datum>> {
    let Some(room) = call.text(1) else { return Ok(None) };
    let tokens = call.texts(0).map_err(|why| Error::InvalidAudience { why: why.into() })?;
    let Some(tokens) = tokens else { return Ok(None) };
    Ok(Some(text_array(&validate::audience(tokens.iter(), room)?)))
}

/// SQL `_presence._default_audience(room)`.
fn sql_default_audience(call: &Call) -> Result<Option<Datum>> {
    let Some(room) = call.text(0) else { return Ok(None) };
    let default = settings::default_audience();
    Ok(Some(text_array(&validate::audience(&default, room)?)))
}

/// SQL `presence._check_ttl(ttl)`, of versions before 0.3.0.
fn sql_check_ttl(call: &Call) -> Result<Option<Datum>> {
    if let Some(ttl) = call.interval(0) {
        validate::ttl(ttl)?;
    }
    Ok(call.datum(0))
}

/// SQL `presence._next_version()`, of versions before 0.3.0.
fn sql_next_version(_call: &Call) -> Result<Option<Datum>> {
    Ok(Some(Datum::from(next_version() as i64)))
}

/// SQL `_presence._tell_room(room, metadata, audience, old_audience)`.
fn sql_tell_room(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let room = call.text(0).ok_or(Error::MissingArgument { argument: "room" })?;
    validate::name("room", room)?;
    require_manage(room)?;
    let tokens = |place| call.texts(place).map_err(|why| Error::InvalidAudience { why: why.into() });
    let audience = tokens(2)?.ok_or(Error::MissingArgument { argument: "audience" })?;
    // Both audiences: the worker could not publish an event with an invalid one.
    for audience in [Some(audience), tokens(3)?].iter().flatten() {
        validate::audience(audience.iter(), room)?;
    }
    checks::state_size(call.varlena(1).as_slice())?;
    let image =
        |metadata, audience| Image::new([Some(room), None, None, None, None, None, metadata, audience]);
    let old = call.varlena(3).map(|old_audience| image(None, Some(old_audience)));
    transaction::signal(&extension, Kind::Room, image(call.varlena(1), call.varlena(2)), old);
    Ok(None)
}

/// SQL `_presence._same_json(jsonb, jsonb)`.
fn sql_same_json(call: &Call) -> Result<Option<Datum>> {
    Ok(Some(Datum::from(call.varlena(0) == call.varlena(1))))
}

/// SQL `presence.delete_room(room)`.
fn delete_room(call: &Call, extension: Extension) -> Result<Option<Datum>> {
    let room = call.text(0).ok_or(Error::MissingArgument { argument: "room" })?;
    validate::name("room", room)?;
    require_manage(room)?;
    let removed = as_role(extension.owner_role, || {
        let connection = Connection::open()?;
        connection.run(&DROP_ROOM, &[Some(varlena(room))], true)?;
        let members = delete::members(&connection, &MEMBERS_OF, &[Some(varlena(room))])?;
        delete::leave(&connection, members, Intent { reason: Some(Reason::Removed), ..Intent::default() })
    })?;
    Ok(Some(Datum::from(removed as i32)))
}

static KEEPS_HISTORY: Statement = Statement {
    sql: c"select keep_history from presence.room where room operator(pg_catalog.=) $1",
    arguments: &[pg_sys::TEXTOID],
};

/// SQL `_presence._keeps_history(room)`.
fn sql_keeps_history(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let Some(room) = call.text(0) else { return Ok(None) };
    let kept = as_role(extension.owner_role, || {
        let connection = Connection::open()?;
        let rows = connection.run(&KEEPS_HISTORY, &[Some(varlena(room))], false)?;
        Ok(rows.get(0, 0).is_none_or(|kept| kept.value() as u8 != 0))
    })?;
    Ok(Some(Datum::from(kept && settings::history_retention() > 0)))
}

crate::sql_function!(presence_require_manage, pg_finfo_presence_require_manage, sql_require_manage);
crate::sql_function!(presence_audience, pg_finfo_presence_audience, sql_audience);
crate::sql_function!(presence_default_audience, pg_finfo_presence_default_audience, sql_default_audience);
crate::sql_function!(presence_check_ttl, pg_finfo_presence_check_ttl, sql_check_ttl);
crate::sql_function!(presence_next_version, pg_finfo_presence_next_version, sql_next_version);
crate::sql_function!(presence_tell_room, pg_finfo_presence_tell_room, sql_tell_room);
crate::sql_function!(presence_same_json, pg_finfo_presence_same_json, sql_same_json);
crate::verb!(presence_delete_room, pg_finfo_presence_delete_room, "presence.delete_room()", delete_room);
crate::sql_function!(presence_keeps_history, pg_finfo_presence_keeps_history, sql_keeps_history);
