//! What a row must be to be stored: names, rights, sizes, defaults, and the limit per user.

use super::intent::Intent;
use super::lease::{INFINITY, expires_at};
use super::row::{Column, Row};
use super::{session, validate};
use crate::authorizer::{self, Action};
use crate::clock;
use crate::error::{Error, Result};
use crate::event::transaction;
use crate::extension::Extension;
use crate::identity::Identity;
use crate::lease::table::{Key, NEVER};
use crate::room;
use crate::settings::{self, MemberIds};
use crate::spi::{self, Connection, Statement, with_new_snapshot};
use crate::sqlfn::{self, texts_of, varlena};
use pgrx::pg_sys::{self, Datum};

/// jsonb '{}': the header of an object with no pairs.
pub const EMPTY_OBJECT: [u8; 4] = [0, 0, 0, 0x20];

pub fn check_names(row: &Row) -> Result<()> {
    let text = |column, argument| row.text(column).ok_or(Error::MissingArgument { argument });
    validate::name("room", text(Column::Room, "room")?)?;
    validate::name("member_id", text(Column::MemberId, "member_id")?)?;
    validate::connection_id("connection_id", text(Column::ConnectionId, "connection_id")?)?;
    validate::name("user_id", text(Column::UserId, "user_id")?)
}

/// What the room says where the member does not.
pub fn set_room_defaults(extension: &Extension, row: &mut Row, intent: &Intent) -> Result<()> {
    if row.get(Column::Audience).is_some() && row.get(Column::Ttl).is_some() {
        return Ok(());
    }
    let defaults = room::defaults(extension, row.text(Column::Room).unwrap_or_default())?;
    if let (None, Some(audience)) = (row.get(Column::Audience), defaults.audience) {
        row.set(Column::Audience, Some(sqlfn::text_array(&audience)));
    }
    // A member bound to its session needs no ttl.
    if let (None, Some(ttl), false) = (row.get(Column::Ttl), defaults.ttl, intent.session == Some(true)) {
        row.set(Column::Ttl, Some(sqlfn::interval(ttl as i64)));
    }
    Ok(())
}

pub fn check_join(identity: &Identity, row: &Row) -> Result<()> {
    if identity.service {
        return Ok(());
    }
    authorizer::require(row.text(Column::Room).unwrap_or_default(), Action::Join)
}

/// Nobody squats "bob".
pub fn check_member_id(identity: &Identity, member_id: &[u8]) -> Result<()> {
    if identity.service || settings::member_ids() == MemberIds::Any || identity.is(member_id) {
        return Ok(());
    }
    let own = identity.user_id.as_deref().unwrap_or_default();
    Err(Error::NotYourName { member_id: crate::error::printable(own) })
}

/// Status, state, metadata and audience as they shall be stored.
pub fn normalize(row: &mut Row) -> Result<()> {
    match row.text(Column::Status) {
        Some(b"") => row.set(Column::Status, None),
        Some(status) => validate::status(status)?,
        None => {}
    }
    let mut size = 0;
    for column in [Column::State, Column::Metadata] {
        if row.get(column).is_none() {
            row.set(column, Some(varlena(&EMPTY_OBJECT)));
        }
        size += row.varlena(column).map_or(0, <[u8]>::len);
    }
    validate::state_size(size)?;

    let room = row.text(Column::Room).unwrap_or_default();
    let default = settings::default_audience();
    let audience = match row.get(Column::Audience) {
        Some(given) => {
            // SAFETY: the column is text[].
            let tokens = unsafe { texts_of(given) };
            let tokens = tokens.map_err(|why| Error::InvalidAudience { why: why.into() })?;
            validate::audience(tokens.iter(), room)?
        }
        None => validate::audience(&default, room)?,
    };
    row.set(Column::Audience, Some(sqlfn::text_array(&audience)));
    Ok(())
}

/// Bind to this session, to none, or leave it as it was.
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

/// The lease starts now. A member bound to a session needs no ttl. Returns the wall time.
pub fn renew(row: &mut Row) -> Result<i64> {
    let ttl = match row.ttl() {
        Some(given) => Some(validate::ttl(given)?),
        None if row.get(Column::Session).is_some() => None,
        None => {
            let default = settings::default_ttl();
            row.set(Column::Ttl, Some(sqlfn::interval(default as i64)));
            Some(default)
        }
    };
    let now = clock::boot();
    let wall = clock::wall_of(now);
    let deadline = ttl.map_or(NEVER, |ttl| now + ttl);
    row.set(Column::Deadline, Some(Datum::from(deadline as i64)));
    row.set(Column::LastSeenAt, Some(Datum::from(wall)));
    row.set(Column::ExpiresAt, Some(Datum::from(ttl.map_or(INFINITY, |_| expires_at(deadline)))));
    Ok(wall)
}

static OWN_MEMBERS: Statement = Statement {
    sql: c"select pg_catalog.count(*) from (select 1 from presence.member where user_id operator(pg_catalog.=) $1 limit $2) own",
    arguments: &[pg_sys::TEXTOID, pg_sys::INT8OID],
};

/// One console shall not fill the slots. Near the limit, those who enter under one user take turns; how near depends
/// on how much this transaction has done, for others may be doing as much, and nobody counts it before it is committed.
pub fn check_max_per_user(extension: &Extension, identity: &Identity, row: &Row) -> Result<()> {
    let limit = settings::max_per_user();
    if limit == 0 || identity.service {
        return Ok(());
    }
    let user_id = row.text(Column::UserId).unwrap_or_default();
    let count = || {
        let connection = Connection::open()?;
        let rows = connection.run(
            &OWN_MEMBERS,
            &[Some(varlena(user_id)), Some(Datum::from(limit as i64 + 1))],
            false,
        )?;
        Ok(rows.get(0, 0).map_or(0, |count| count.value() as i64))
    };
    spi::as_role(extension.owner, || {
        // SAFETY: a plain number, set at the server's start.
        let others = unsafe { pg_sys::MaxBackends } as i64;
        let mut held = with_new_snapshot(count)?;
        if held + others * (transaction::changes() + 1) > limit as i64 {
            let lock = extension.hash(3, &[user_id]) as i64;
            Connection::open()?.lock(lock)?;
            held = with_new_snapshot(count)?;
        }
        if held > limit as i64 { Err(Error::TooManyMembers { what: "user", limit }) } else { Ok(()) }
    })
}
