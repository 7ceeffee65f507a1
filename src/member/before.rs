//! BEFORE trigger: validates the row, and sets its owner, key, version and lease.

use super::checks::{
    audience_of, check_join, check_names, is_session_bound, keep_lease, normalize, renew, set_room_defaults,
    set_session,
};
use super::column::Column;
use super::holder::evict_expired_holder;
use super::intent::{Grace, Intent};
use super::room_defaults::Rooms;
use super::row::{INFINITY, Row};
use super::trigger_call::{PUBLISHED_COLUMNS, TriggerCall, VISIBILITY_COLUMNS};
use super::{grace, liveness, revert};
use crate::access::identity::Identity;
use crate::access::ownership::check_member_id;
use crate::clock;
use crate::error::{Error, Result};
use crate::event::transaction::{self, issue_version};
use crate::extension::Extension;
use crate::lease::slot::NEVER;
use crate::pg::datum::{uuid, varlena};
use pgrx::pg_sys::Datum;

pub fn insert(firing: &TriggerCall) -> Result<Option<Datum>> {
    let identity = firing.identity()?;
    firing.proceed(enter(
        &firing.extension,
        &identity,
        &Rooms::default(),
        &firing.intent,
        firing.first.clone(),
    )?)
}

/// The row to be stored for a member that enters.
pub fn enter(
    extension: &Extension,
    identity: &Identity,
    rooms: &Rooms,
    intent: &Intent,
    mut row: Row,
) -> Result<Row> {
    let owner = match row.text(Column::UserId) {
        Some(given) if identity.service => given.to_vec(),
        _ => identity.writer()?.to_vec(),
    };
    row.set(Column::UserId, Some(varlena(&owner)));
    if row.get(Column::MemberId).is_none() {
        row.set(Column::MemberId, Some(varlena(&owner)));
    }
    if row.get(Column::ConnectionId).is_none() {
        row.set(Column::ConnectionId, Some(varlena(b"")));
    }
    check_names(&row)?;
    check_member_id(identity, row.text(Column::MemberId).unwrap_or_default())?;
    check_join(identity, &row)?;
    set_room_defaults(rooms, &mut row, is_session_bound(None, intent))?;
    revert::settle(None, &mut row, intent.wish.as_deref());
    normalize(&mut row, None)?;
    grace::check(identity, None, &mut row, intent)?;

    let key = row.make_key(extension);
    evict_expired_holder(extension, identity, &key, &owner)?;
    transaction::pin(&key);

    row.set(Column::KeyHash, Some(uuid(key.hash)));
    let version = issue_version(&key, false);
    crate::injection::stall("versioned");
    set_session(&mut row, None, &key, intent)?;
    let now = renew(&mut row)?;
    grace::fix(&key, None, &mut row);
    for column in [Column::Version, Column::Generation] {
        row.set(column, Some(Datum::from(version as i64)));
    }
    for column in [Column::JoinedAt, Column::UpdatedAt] {
        row.set(column, Some(Datum::from(now)));
    }
    Ok(row)
}

pub fn update(firing: &TriggerCall) -> Result<Option<Datum>> {
    let (old, row) = (&firing.first, firing.second()?);
    let (extension, rooms) = (&firing.extension, &Rooms::default());
    match change(extension, &*firing.identity()?, rooms, &firing.intent_for(old), old, row)? {
        Some(row) => firing.proceed(row),
        None => firing.skip(),
    }
}

/// The row to be stored in place of `old`, which the caller has locked; None if the member is gone.
pub fn change(
    extension: &Extension,
    identity: &Identity,
    rooms: &Rooms,
    intent: &Intent,
    old: &Row,
    mut row: Row,
) -> Result<Option<Row>> {
    if !row.same(old, &[Column::Room, Column::MemberId, Column::ConnectionId]) {
        return Err(Error::KeyIsFixed);
    }
    let key = old.key(extension);
    transaction::pin(&key);
    let Some(deadline) = liveness::deadline(&key, &old.lease()) else { return Ok(None) };
    if !identity.service {
        row.set(Column::UserId, old.get(Column::UserId));
    }
    check_names(&row)?;
    // A member that may not stay may still announce its leave.
    if intent.grace != Grace::Announced {
        check_join(identity, &row)?;
    }
    set_room_defaults(rooms, &mut row, is_session_bound(Some(old), intent))?;
    let undone = revert::settle(Some(old), &mut row, intent.wish.as_deref());
    if intent.reverting && undone.is_none() {
        return Ok(None);
    }
    normalize(&mut row, Some(old))?;
    grace::check(identity, Some(old), &mut row, intent)?;
    for column in [Column::Generation, Column::JoinedAt, Column::KeyHash] {
        row.set(column, old.get(column));
    }
    set_session(&mut row, Some(old), &key, intent)?;
    let now = match undone.filter(|_| intent.reverting) {
        Some(moment) => {
            keep_lease(&mut row, old, &key);
            clock::wall_of(moment)
        }
        None => renew(&mut row)?,
    };
    grace::fix(&key, Some((old, deadline)), &mut row);
    // Somebody may have seen the reverted row meanwhile, even if the values are now those from before.
    let told = undone.is_some() || !row.same(old, &PUBLISHED_COLUMNS);
    let quiet = row.ttl() != old.ttl()
        || row.number(Column::Session) != old.number(Column::Session)
        || !row.same(old, &[Column::Reverts])
        || !grace::same(&row, old);
    let version = if told || quiet {
        issue_version(&key, !row.same(old, &VISIBILITY_COLUMNS))
    } else {
        old.number(Column::Version)
    };
    row.set(Column::Version, Some(Datum::from(version as i64)));
    row.set(Column::UpdatedAt, if told { Some(Datum::from(now)) } else { old.get(Column::UpdatedAt) });
    Ok(Some(row))
}

pub fn delete(firing: &TriggerCall) -> Result<Option<Datum>> {
    if may_leave(&firing.extension, &firing.intent, &firing.first) {
        firing.proceed_unchanged()
    } else {
        firing.skip()
    }
}

/// Whether this DELETE is the member's leave. A member whose lease has run out is not the caller's to delete: it leaves
/// as expired, once.
pub fn may_leave(extension: &Extension, intent: &Intent, old: &Row) -> bool {
    let key = old.key(extension);
    transaction::pin(&key);
    intent.expiring || liveness::deadline(&key, &old.lease()).is_some()
}

/// A row from another server: its values stay if the worker can handle them; only columns that belong to this server
/// are filled in.
pub fn replicated(firing: &TriggerCall) -> Result<Option<Datum>> {
    let mut row = firing.newest()?;
    check_names(&row)?;
    audience_of(&row)?;
    grace::check_moment(&row)?;
    let key = row.make_key(&firing.extension);
    transaction::pin(&key);
    row.set(Column::KeyHash, Some(uuid(key.hash)));
    row.set(Column::Session, None);
    let left = row.time(Column::ExpiresAt).saturating_sub(clock::wall()).max(1) as u64;
    let ends = row.get(Column::ExpiresAt).is_some() && row.time(Column::ExpiresAt) != INFINITY;
    let deadline = match () {
        _ if ends && grace::is_leaving(&row) => grace::fixed_until(row.time(Column::ExpiresAt)),
        _ if ends => Datum::from(clock::boot().saturating_add(left) as i64),
        _ => Datum::from(NEVER as i64),
    };
    row.set(Column::Deadline, Some(deadline));
    firing.proceed(row)
}
