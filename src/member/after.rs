//! AFTER trigger: records the change in the transaction's buffer.

use super::column::Column;
use super::intent::{self, Intent};
use super::room_defaults::Rooms;
use super::row::Row;
use super::trigger_call::{PUBLISHED_COLUMNS, TriggerCall, VISIBILITY_COLUMNS};
use super::{grace, limits, liveness, revert, session};
use crate::access::identity::Identity;
use crate::clock;
use crate::error::Result;
use crate::event::image::Image;
use crate::event::net_effect::{Change, What};
use crate::event::record::Reason;
use crate::event::transaction::{self, Pending, is_outdated, issue_version};
use crate::extension::Extension;
use crate::lease::slot::{Key, Lease, NEVER};
use crate::pg::datum::uuid;
use crate::pg::role::as_role;
use crate::pg::spi::{Connection, Statement};
use crate::settings;
use pgrx::pg_sys::{self, Datum};
use std::rc::Rc;

pub fn insert(firing: &TriggerCall) -> Result<()> {
    entered(&firing.extension, &*firing.identity()?, &Rooms::default(), &firing.first)
}

pub fn entered(extension: &Extension, identity: &Identity, rooms: &Rooms, row: &Row) -> Result<()> {
    let mut row = row.clone();
    let key = row.key(extension);
    if is_outdated(&key, row.number(Column::Version)) {
        let version = issue_version(&key, false);
        for column in [Column::Version, Column::Generation] {
            row.set(column, Some(Datum::from(version as i64)));
        }
        set_version(extension, &key, version)?;
    }
    let text = |column| row.text(column).unwrap_or_default();
    limits::check_user(extension, identity, &key, text(Column::UserId))?;
    limits::check_room(extension, rooms, &key, text(Column::Room))?;
    let lease = lease_of(extension, &row);
    note(
        extension,
        &key,
        What::Enter { lease },
        row.number(Column::Version),
        row.time(Column::JoinedAt),
        &row,
        row.image(None),
    );
    Ok(())
}

static SET_VERSION: Statement = Statement {
    sql: c"update presence.member set version = $2, generation = $2 where key_hash operator(pg_catalog.=) $1",
    arguments: &[pg_sys::UUIDOID, pg_sys::INT8OID],
};

fn set_version(extension: &Extension, key: &Key, version: u64) -> Result<()> {
    as_role(extension.owner_role, || {
        let _intent = intent::set(vec![key.hash], Intent { system_columns_only: true, ..Intent::default() });
        let values = [Some(uuid(key.hash)), Some(Datum::from(version as i64))];
        Connection::open()?.run(&SET_VERSION, &values, true)?;
        Ok(())
    })
}

pub fn update(firing: &TriggerCall) -> Result<()> {
    changed(&firing.extension, &firing.first, &firing.second()?);
    Ok(())
}

pub fn changed(extension: &Extension, old: &Row, row: &Row) {
    let key = row.key(extension);
    let lease = lease_of(extension, row);
    let version = row.number(Column::Version);
    let what = if version == old.number(Column::Version) {
        if let Pending::Present { .. } = transaction::pending(&key) {
            transaction::renew_pending(&key, clock::boot(), false);
            return;
        }
        What::Renew { stay: lease.stay() }
    } else if row.same(old, &PUBLISHED_COLUMNS) && row.time(Column::UpdatedAt) == old.time(Column::UpdatedAt)
    {
        What::Quiet { lease, copied: settings::node_name().is_some() }
    } else {
        let hidden = !row.same(old, &VISIBILITY_COLUMNS);
        What::Update { lease, old: hidden.then(|| image_at(old, row.time(Column::UpdatedAt), None)) }
    };
    note(extension, &key, what, version, row.time(Column::UpdatedAt), row, row.image(None));
}

pub fn delete(firing: &TriggerCall) -> Result<()> {
    left(&firing.extension, &firing.intent, &firing.first, || firing.identity())
}

/// `caller` is called if no reason was given.
pub fn left(
    extension: &Extension,
    intent: &Intent,
    old: &Row,
    caller: impl FnOnce() -> Result<Rc<Identity>>,
) -> Result<()> {
    let key = old.key(extension);
    let version = issue_version(&key, false);
    let leaving = intent.expiring && grace::is_leaving(old);
    let (reason, at) = if leaving {
        grace::end(extension, &key, old)
    } else if intent.expiring {
        let session = old.number(Column::Session);
        let over = session != 0 && !session::is_live(extension.database_index, session);
        let at = if over { clock::now() } else { expired_at(&key, old) };
        (if over { Reason::Disconnected } else { Reason::Expired }, at)
    } else {
        (intent.reason.map_or_else(|| caller().map(|caller| default_reason(&caller, old)), Ok)?, clock::now())
    };
    let last_word = if leaving { old.varlena(Column::LastWord) } else { intent.last_word.as_deref() };
    let image = image_at(old, at, last_word);
    note(extension, &key, What::Leave { reason }, version, at, old, image);
    Ok(())
}

/// The image of a member that leaves, or that somebody no longer sees, at that moment.
fn image_at(old: &Row, at: i64, last_word: Option<&[u8]>) -> Image {
    let undone = revert::undone(old, clock::boot_of(at));
    undone.as_ref().unwrap_or(old).image(last_word)
}

/// `removed` by another user, or `left`.
fn default_reason(caller: &Identity, old: &Row) -> Reason {
    let own = caller.user_id.is_some() && old.text(Column::UserId) == caller.user_id.as_deref();
    if own { Reason::Left } else { Reason::Removed }
}

/// When the lease of an expired row ended.
fn expired_at(key: &Key, old: &Row) -> i64 {
    match liveness::slot(key, &old.lease()) {
        Some(slot) if slot.version == old.number(Column::Version) && slot.ttl > 0 => {
            clock::wall_of(slot.last_seen.saturating_add(slot.ttl)).min(clock::now())
        }
        _ if old.get(Column::ExpiresAt).is_none() => clock::now(),
        _ => old.time(Column::ExpiresAt).min(clock::now()),
    }
}

fn note(extension: &Extension, key: &Key, what: What, version: u64, at: i64, row: &Row, image: Image) {
    let joined_at = row.time(Column::JoinedAt);
    let seen_at = match what {
        // An expired member was last seen one ttl earlier.
        What::Leave { reason: Reason::Expired } => at - row.ttl().unwrap_or(0) as i64,
        What::Leave { .. } => at,
        // A revert is no proof of life.
        _ => row.time(Column::LastSeenAt),
    };
    transaction::push(
        extension,
        Change { key: *key, what, version, at, joined_at, seen_at, image, node: None, previous: None },
    );
}

pub fn lease_of(extension: &Extension, row: &Row) -> Lease {
    let lease = row.lease();
    let last_seen = match lease.deadline {
        NEVER => clock::boot_of(row.time(Column::LastSeenAt)).min(clock::boot()),
        _ if lease.is_fixed => clock::boot_of(row.time(Column::LastSeenAt)),
        deadline => deadline.saturating_sub(lease.ttl),
    };
    Lease {
        deadline: lease.deadline,
        last_seen,
        ttl: if lease.is_fixed { 0 } else { lease.ttl },
        version: lease.version,
        generation: lease.generation,
        owner: extension.owner_hash(row.text(Column::UserId).unwrap_or_default()),
        session: lease.session,
        reverts_at: revert::next(row),
        changed_at: 0,
        pins: 0,
    }
}
