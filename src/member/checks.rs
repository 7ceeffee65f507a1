//! What a row must satisfy to be stored: names, rights, sizes, defaults.

use super::column::Column;
use super::intent::Intent;
use super::room_defaults::Rooms;
use super::row::Row;
use super::{liveness, revert, session};
use crate::access::authorizer::{self, Action};
use crate::access::identity::Identity;
use crate::error::{Error, Result};
use crate::lease::rule;
use crate::lease::slot::{Key, NEVER};
use crate::pg::datum::{self, texts_of, varlena};
use crate::pg::jsonb::text_len;
use crate::{clock, settings, validate};
use pgrx::pg_sys::{self, Datum};

/// jsonb '{}': the header of an empty object.
pub const EMPTY_OBJECT: [u8; 4] = [0, 0, 0, 0x20];

pub fn check_names(row: &Row) -> Result<()> {
    let text = |column, argument| row.text(column).ok_or(Error::MissingArgument { argument });
    validate::key(
        text(Column::Room, "room")?,
        text(Column::MemberId, "member_id")?,
        text(Column::ConnectionId, "connection_id")?,
    )?;
    validate::name("user_id", text(Column::UserId, "user_id")?)
}

/// Use the room's defaults for what the member does not set. A ttl of 0 is not set; a member bound to its session needs
/// none.
pub fn set_room_defaults(rooms: &Rooms, row: &mut Row, session_bound: bool) -> Result<()> {
    if row.ttl() == Some(0) {
        row.set(Column::Ttl, None);
    }
    let needs_ttl = row.get(Column::Ttl).is_none() && !session_bound;
    if row.get(Column::Audience).is_some() && !needs_ttl {
        return Ok(());
    }
    let defaults = rooms.defaults(row.text(Column::Room).unwrap_or_default())?;
    if let (None, Some(audience)) = (row.get(Column::Audience), &defaults.audience) {
        row.set(Column::Audience, Some(datum::text_array(audience)));
    }
    if let Some(ttl) = defaults.ttl.filter(|_| needs_ttl) {
        row.set(Column::Ttl, Some(datum::interval(ttl as i64)));
    }
    Ok(())
}

/// The ttl of a member that sets none; None means that the lease has no end.
pub fn default_ttl(rooms: &Rooms, room: &[u8], session_bound: bool) -> Result<Option<u64>> {
    if session_bound {
        return Ok(None);
    }
    let of_room = rooms.defaults(room)?.ttl;
    Ok(Some(of_room.unwrap_or_else(settings::default_ttl)))
}

/// Whether the member will be bound to a session.
pub fn is_session_bound(old: Option<&Row>, intent: &Intent) -> bool {
    intent.session.unwrap_or_else(|| old.is_some_and(|old| old.get(Column::Session).is_some()))
}

pub fn check_join(identity: &Identity, row: &Row) -> Result<()> {
    if identity.service {
        return Ok(());
    }
    authorizer::require(row.text(Column::Room).unwrap_or_default(), Action::Join)
}

/// Normalize status, state, metadata and audience, to be stored in place of `old`.
pub fn normalize(row: &mut Row, old: Option<&Row>) -> Result<()> {
    match row.text(Column::Status) {
        Some(b"") => row.set(Column::Status, None),
        Some(status) => validate::status(status)?,
        None => {}
    }
    for column in [Column::State, Column::Metadata] {
        if row.get(column).is_none() {
            row.set(column, Some(varlena(&EMPTY_OBJECT)));
        }
    }
    check_size(row, old)?;
    // It was normalized when it was stored.
    if old.is_some_and(|old| row.same(old, &[Column::Audience])) {
        return Ok(());
    }
    let audience = match audience_of(row)? {
        Some(given) => given,
        None => validate::audience(settings::default_audience(), row.text(Column::Room).unwrap_or_default())?,
    };
    row.set(Column::Audience, Some(datum::text_array(&audience)));
    Ok(())
}

/// The tokens of the row, normalized.
pub fn audience_of(row: &Row) -> Result<Option<Vec<Vec<u8>>>> {
    let Some(given) = row.get(Column::Audience) else { return Ok(None) };
    // SAFETY: the column is text[].
    let tokens = unsafe { texts_of(given) };
    let tokens = tokens.map_err(|why| Error::InvalidAudience { why: why.into() })?;
    validate::audience(tokens.iter(), row.text(Column::Room).unwrap_or_default()).map(Some)
}

/// Neither is too large, now and after any revert, unless the row was as large before: then the limit was lowered, or
/// the size was checked when the revert was noted.
fn check_size(row: &Row, old: Option<&Row>) -> Result<()> {
    let is_same = |old: &Row| row.same(old, &[Column::State, Column::Metadata, Column::Reverts]);
    if old.is_some_and(is_same) {
        return Ok(());
    }
    let (size, limit) = (size_of(row), settings::max_state_size());
    let was_as_large = |old: &Row| {
        row.same(old, &[Column::State, Column::Metadata])
            || (old.get(Column::Reverts).is_some() && size <= size_of(old))
    };
    if size > limit && !old.is_some_and(was_as_large) {
        return Err(Error::StateTooLarge { size, limit });
    }
    Ok(())
}

fn size_of(row: &Row) -> usize {
    let metadata = row.varlena(Column::Metadata).unwrap_or_default();
    match revert::largest_state(row) {
        Some(state) => size(&[&state, metadata]),
        None => size(&[row.varlena(Column::State).unwrap_or_default(), metadata]),
    }
}

/// Bind to this session, to none, or keep the binding.
pub fn set_session(row: &mut Row, old: Option<&Row>, key: &Key, intent: &Intent) -> Result<()> {
    let kept = |column| old.and_then(|old| old.get(column));
    let (session, pid) = match intent.session {
        // SAFETY: plain read of this process's number.
        Some(true) => (Some(session::bind(key)? as i64), Some(unsafe { pg_sys::MyProcPid })),
        Some(false) => (None, None),
        None => {
            row.set(Column::Session, kept(Column::Session));
            row.set(Column::SessionPid, kept(Column::SessionPid));
            return Ok(());
        }
    };
    row.set(Column::Session, session.map(Datum::from));
    row.set(Column::SessionPid, pid.map(Datum::from));
    Ok(())
}

/// Start a new lease now. A member bound to a session needs no ttl. Returns the wall time.
pub fn renew(row: &mut Row) -> Result<i64> {
    let ttl = match row.ttl() {
        Some(given) => Some(validate::ttl(given)?),
        None if row.get(Column::Session).is_some() => None,
        None => {
            let default = settings::default_ttl();
            row.set(Column::Ttl, Some(datum::interval(default as i64)));
            Some(default)
        }
    };
    let now = clock::boot();
    let wall = clock::wall_of(now);
    let deadline = ttl.map_or(NEVER, |ttl| now + ttl);
    row.set(Column::Deadline, Some(Datum::from(deadline as i64)));
    row.set(Column::LastSeenAt, Some(Datum::from(wall)));
    row.set(Column::ExpiresAt, liveness::expires_at(deadline));
    Ok(wall)
}

/// Keep the lease in its current state, including heartbeats.
pub fn keep_lease(row: &mut Row, old: &Row, key: &Key) {
    let lease = old.lease();
    let (slot, now) = (liveness::slot(key, &lease), clock::boot());
    // A member that is gone by now leaves as expired, whatever is written here.
    let deadline = liveness::effective_deadline(key, slot.as_ref(), &lease, now).unwrap_or(lease.deadline);
    let last_seen =
        rule::last_seen(slot.as_ref(), deadline, &lease).map(|seen| clock::wall_of(seen.min(now)));
    row.set(Column::Deadline, Some(Datum::from(deadline as i64)));
    row.set(Column::LastSeenAt, last_seen.map(Datum::from).or_else(|| old.get(Column::LastSeenAt)));
    row.set(Column::ExpiresAt, liveness::expires_at(deadline));
}

/// Check jsonb values, together.
pub fn state_size(values: &[&[u8]]) -> Result<()> {
    let (size, limit) = (size(values), settings::max_state_size());
    if size > limit { Err(Error::StateTooLarge { size, limit }) } else { Ok(()) }
}

/// The size of their JSON text, which is what is sent.
fn size(values: &[&[u8]]) -> usize {
    values.iter().map(|value| text_len(value)).fold(0, usize::saturating_add)
}
