//! The triggers of `presence.member`. Every write passes them, by whatever statement: BEFORE makes the row right
//! (names, owner, key, version, lease), AFTER notes what happened in the transaction's buffer.

use super::intent::{self, Intent};
use super::lease::{self, INFINITY, expires_at};
use super::row::{Column, Row};
use super::{session, validate};
use crate::authorizer::{self, Action};
use crate::clock;
use crate::error::{Error, Result};
use crate::event::fold::{Change, What};
use crate::event::record::{Image, Reason};
use crate::event::transaction::{self, is_outdated, issue_version};
use crate::extension::{self, Extension};
use crate::identity::{self, Identity};
use crate::lease::shared::leases;
use crate::lease::table::{Key, Lease, NEVER, TOMBSTONE, alive};
use crate::room;
use crate::settings::{self, MemberIds};
use crate::spi::{self, Connection, Statement, with_new_snapshot};
use crate::sqlfn::{self, Call, texts_of, uuid, varlena};
use pgrx::pg_sys::{self, Datum};
use std::sync::atomic::Ordering::*;

/// jsonb '{}': the header of an object with no pairs.
pub const EMPTY_OBJECT: [u8; 4] = [0, 0, 0, 0x20];

/// What listeners hear of.
const TOLD: [Column; 5] = [Column::Status, Column::State, Column::Metadata, Column::Audience, Column::UserId];

struct Firing<'a> {
    data: &'a pg_sys::TriggerData,
    extension: Extension,
    intent: Intent,
}

enum Operation {
    Insert,
    Update,
    Delete,
    Truncate,
}

impl Firing<'_> {
    fn of(call: &Call) -> Result<Firing<'_>> {
        let data = call.trigger().ok_or(Error::InvalidArgument {
            argument: "call",
            why: "This function is a trigger of presence.member.".into(),
        })?;
        Ok(Firing { data, extension: extension::current()?, intent: intent::current() })
    }

    fn operation(&self) -> Operation {
        match self.data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
            pg_sys::TRIGGER_EVENT_INSERT => Operation::Insert,
            pg_sys::TRIGGER_EVENT_UPDATE => Operation::Update,
            pg_sys::TRIGGER_EVENT_DELETE => Operation::Delete,
            _ => Operation::Truncate,
        }
    }

    /// The row before an UPDATE or DELETE, or the row of an INSERT.
    fn first(&self) -> Result<Row> {
        // SAFETY: the tuple of this trigger's relation.
        unsafe { Row::read(self.data.tg_trigtuple, self.data.tg_relation) }
    }

    /// The row after an UPDATE.
    fn second(&self) -> Result<Row> {
        // SAFETY: an UPDATE has a new tuple.
        unsafe { Row::read(self.data.tg_newtuple, self.data.tg_relation) }
    }

    /// Carry on with this row.
    fn proceed(&self, mut row: Row) -> Result<Option<Datum>> {
        // SAFETY: the row was read from this relation.
        Ok(Some(Datum::from(unsafe { row.form(self.data.tg_relation) })))
    }

    /// Carry on with the row as it is.
    fn proceed_unchanged(&self) -> Result<Option<Datum>> {
        let tuple = match self.operation() {
            Operation::Update => self.data.tg_newtuple,
            _ => self.data.tg_trigtuple,
        };
        Ok(Some(Datum::from(tuple)))
    }

    /// Leave this row alone: a null pointer that is not SQL NULL.
    fn skip(&self) -> Result<Option<Datum>> {
        Ok(Some(Datum::from(0)))
    }
}

/// BEFORE INSERT, UPDATE, DELETE (each row) and TRUNCATE.
fn before(call: &Call) -> Result<Option<Datum>> {
    let firing = Firing::of(call)?;
    if firing.intent.technical {
        return firing.proceed_unchanged();
    }
    match firing.operation() {
        Operation::Insert => before_insert(&firing),
        Operation::Update => before_update(&firing),
        Operation::Delete => before_delete(&firing),
        Operation::Truncate => Err(Error::NoTruncate),
    }
}

/// AFTER INSERT, UPDATE, DELETE, each row.
fn after(call: &Call) -> Result<Option<Datum>> {
    let firing = Firing::of(call)?;
    if !firing.intent.technical {
        match firing.operation() {
            Operation::Insert => after_insert(&firing)?,
            Operation::Update => after_update(&firing)?,
            Operation::Delete => after_delete(&firing)?,
            Operation::Truncate => {}
        }
    }
    Ok(Some(Datum::from(0)))
}

fn before_insert(firing: &Firing) -> Result<Option<Datum>> {
    let extension = &firing.extension;
    let mut row = firing.first()?;
    let identity = identity::current(extension)?;
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
    check_member_id(&identity, &row)?;
    check_join(&identity, &row)?;
    set_room_defaults(extension, &mut row, &firing.intent)?;
    normalize(&mut row)?;

    let key = row.key(extension);
    make_way(extension, &identity, &key, &owner)?;
    transaction::pin(&key);

    row.set(Column::KeyHash, Some(uuid(key.hash)));
    let version = issue_version(&key, false);
    set_session(&mut row, None, &key, &firing.intent)?;
    let now = renew(&mut row)?;
    for column in [Column::Version, Column::Generation] {
        row.set(column, Some(Datum::from(version as i64)));
    }
    for column in [Column::JoinedAt, Column::UpdatedAt] {
        row.set(column, Some(Datum::from(now)));
    }
    firing.proceed(row)
}

/// Before a member enters: whoever holds the key must be gone, or be oneself.
fn make_way(extension: &Extension, identity: &Identity, key: &Key, owner: &[u8]) -> Result<()> {
    let now = clock::boot();
    let slot = leases().read(key);
    if let Some(slot) = &slot
        && alive(slot.deadline, now)
    {
        let own = slot.owner == extension.owner_hash(owner);
        let pending_leave = matches!(transaction::pending(key), transaction::Pending::Gone);
        return if own || identity.service || pending_leave { Ok(()) } else { Err(Error::OwnedByAnother) };
    }
    if slot.is_some_and(|slot| slot.deadline == TOMBSTONE) || (slot.is_none() && !may_be_slotless(extension))
    {
        return Ok(());
    }
    // A row whose lease has run out, or one that has no slot.
    expire(extension, key)?;
    if slot.is_none() && !identity.service && owner_of(extension, key)?.is_some_and(|other| other != owner) {
        return Err(Error::OwnedByAnother);
    }
    Ok(())
}

/// Whether there can be rows without a slot at all.
pub fn may_be_slotless(extension: &Extension) -> bool {
    extension.database.slotless.load(Acquire) > 0
}

static EXPIRE: Statement = Statement {
    sql: c"delete from presence.member where key_hash = $1 \
           and presence._claim(key_hash, version, generation, deadline, session)",
    arguments: &[pg_sys::UUIDOID],
};

static OWNER: Statement = Statement {
    sql: c"select user_id from presence.member where key_hash = $1",
    arguments: &[pg_sys::UUIDOID],
};

/// Delete the member's row if its lease has run out: its leave (expired) comes before whatever follows.
pub fn expire(extension: &Extension, key: &Key) -> Result<usize> {
    spi::as_role(extension.owner, || {
        let _intent = intent::set(Intent { expiring: true, ..Intent::default() });
        Ok(Connection::open()?.run(&EXPIRE, &[Some(uuid(key.hash))], true)?.count)
    })
}

/// A write found no member of the caller's: say so if there is another's, seen or unseen alike.
pub fn refuse_anothers(extension: &Extension, identity: &Identity, key: &Key) -> Result<()> {
    let there = leases().read(key).is_some_and(|slot| alive(slot.deadline, clock::boot()));
    if !identity.service && there && owner_of(extension, key)?.is_some_and(|owner| !identity.is(&owner)) {
        return Err(Error::OwnedByAnother);
    }
    Ok(())
}

/// Who owns the member, whether the caller may see it or not.
fn owner_of(extension: &Extension, key: &Key) -> Result<Option<Vec<u8>>> {
    spi::as_role(extension.owner, || {
        let connection = Connection::open()?;
        let rows = connection.run(&OWNER, &[Some(uuid(key.hash))], false)?;
        // SAFETY: a text.
        Ok(rows.get(0, 0).map(|owner| unsafe { sqlfn::text_of(owner) }.to_vec()))
    })
}

fn before_update(firing: &Firing) -> Result<Option<Datum>> {
    let extension = &firing.extension;
    let (old, mut row) = (firing.first()?, firing.second()?);
    if !row.same(&old, &[Column::Room, Column::MemberId, Column::ConnectionId]) {
        return Err(Error::KeyIsFixed);
    }
    let key = old.key(extension);
    transaction::pin(&key);
    if lease::deadline(&key, &old.lease()).is_none() {
        return firing.skip();
    }
    let identity = identity::current(extension)?;
    if !identity.service {
        row.set(Column::UserId, old.get(Column::UserId));
    }
    check_names(&row)?;
    check_join(&identity, &row)?;
    normalize(&mut row)?;
    for column in [Column::Generation, Column::JoinedAt, Column::KeyHash] {
        row.set(column, old.get(column));
    }
    set_session(&mut row, Some(&old), &key, &firing.intent)?;
    let now = renew(&mut row)?;
    let told = !row.same(&old, &TOLD);
    let quiet = row.ttl() != old.ttl() || row.number(Column::Session) != old.number(Column::Session);
    let version = if told || quiet {
        issue_version(&key, !row.same(&old, &[Column::Audience]))
    } else {
        old.number(Column::Version)
    };
    row.set(Column::Version, Some(Datum::from(version as i64)));
    row.set(Column::UpdatedAt, if told { Some(Datum::from(now)) } else { old.get(Column::UpdatedAt) });
    firing.proceed(row)
}

fn before_delete(firing: &Firing) -> Result<Option<Datum>> {
    let old = firing.first()?;
    let key = old.key(&firing.extension);
    transaction::pin(&key);
    // One whose lease has run out is not the caller's to delete: it leaves as expired, once.
    if !firing.intent.expiring && lease::deadline(&key, &old.lease()).is_none() {
        return firing.skip();
    }
    firing.proceed_unchanged()
}

fn after_insert(firing: &Firing) -> Result<()> {
    let mut row = firing.first()?;
    let key = row.key(&firing.extension);
    if is_outdated(&key, row.number(Column::Version)) {
        let version = issue_version(&key, false);
        for column in [Column::Version, Column::Generation] {
            row.set(column, Some(Datum::from(version as i64)));
        }
        set_version(&firing.extension, &key, version)?;
    }
    check_max_per_user(&firing.extension, &row)?;
    room::check_limit(&firing.extension, row.text(Column::Room).unwrap_or_default())?;
    let lease = lease_of(&firing.extension, &row);
    note(
        &key,
        What::Enter { lease },
        row.number(Column::Version),
        row.time(Column::JoinedAt),
        &row,
        row.image(None),
    );
    Ok(())
}

static OWN_MEMBERS: Statement = Statement {
    sql: c"select count(*) from (select 1 from presence.member where user_id = $1 limit $2) own",
    arguments: &[pg_sys::TEXTOID, pg_sys::INT8OID],
};

static LOCK_USER: Statement =
    Statement { sql: c"select pg_catalog.pg_advisory_xact_lock($1)", arguments: &[pg_sys::INT8OID] };

/// One console shall not fill the slots. Near the limit, those who enter under one user take turns.
fn check_max_per_user(extension: &Extension, row: &Row) -> Result<()> {
    let limit = settings::max_per_user();
    if limit == 0 || identity::current(extension)?.service {
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
        if held + others > limit as i64 {
            let lock = extension.hash(3, &[user_id]) as i64;
            Connection::open()?.run(&LOCK_USER, &[Some(Datum::from(lock))], true)?;
            held = with_new_snapshot(count)?;
        }
        if held > limit as i64 { Err(Error::TooManyMembers { what: "user", limit }) } else { Ok(()) }
    })
}

static SET_VERSION: Statement = Statement {
    sql: c"update presence.member set version = $2, generation = $2 where key_hash = $1",
    arguments: &[pg_sys::UUIDOID, pg_sys::INT8OID],
};

fn set_version(extension: &Extension, key: &Key, version: u64) -> Result<()> {
    spi::as_role(extension.owner, || {
        let _intent = intent::set(Intent { technical: true, ..Intent::default() });
        let values = [Some(uuid(key.hash)), Some(Datum::from(version as i64))];
        Connection::open()?.run(&SET_VERSION, &values, true)?;
        Ok(())
    })
}

fn after_update(firing: &Firing) -> Result<()> {
    let (old, row) = (firing.first()?, firing.second()?);
    let key = row.key(&firing.extension);
    let lease = lease_of(&firing.extension, &row);
    let version = row.number(Column::Version);
    let what = if version == old.number(Column::Version) {
        What::Renew
    } else if row.same(&old, &TOLD) {
        What::Quiet { lease }
    } else {
        let hidden = !row.same(&old, &[Column::Audience]);
        What::Update { lease, old: hidden.then(|| old.image(None)) }
    };
    note(&key, what, version, row.time(Column::UpdatedAt), &row, row.image(None));
    Ok(())
}

fn after_delete(firing: &Firing) -> Result<()> {
    let old = firing.first()?;
    let key = old.key(&firing.extension);
    let version = issue_version(&key, false);
    let (reason, at) = if firing.intent.expiring {
        let session = old.number(Column::Session);
        let over = session != 0 && !session::is_live(session);
        let at = if over { clock::wall() } else { expired_at(&key, &old) };
        (transaction::expiry_reason(over), at)
    } else {
        (firing.intent.reason.map_or_else(|| default_reason(firing, &old), Ok)?, clock::wall())
    };
    let image = old.image(firing.intent.last_word.as_deref());
    note(&key, What::Leave { reason }, version, at, &old, image);
    Ok(())
}

/// Removed by another, or left by oneself.
fn default_reason(firing: &Firing, old: &Row) -> Result<Reason> {
    let identity = identity::current(&firing.extension)?;
    let caller = firing.intent.caller.as_deref().or(identity.user_id.as_deref());
    let own = caller.is_some() && old.text(Column::UserId) == caller;
    Ok(if own { Reason::Left } else { Reason::Removed })
}

/// When the lease of an expired row ended.
fn expired_at(key: &Key, old: &Row) -> i64 {
    match leases().read(key) {
        Some(slot) if slot.version == old.number(Column::Version) && slot.ttl > 0 => {
            clock::wall_of(slot.last_seen.saturating_add(slot.ttl)).min(clock::wall())
        }
        _ => old.time(Column::ExpiresAt).min(clock::wall()),
    }
}

fn note(key: &Key, what: What, version: u64, at: i64, row: &Row, image: Image) {
    let joined_at = row.time(Column::JoinedAt);
    // Who expires was last seen a ttl earlier.
    let expired = matches!(what, What::Leave { reason: Reason::Expired });
    let seen_at = if expired { at - row.ttl().unwrap_or(0) as i64 } else { at };
    transaction::push(Change { key: *key, what, version, at, joined_at, seen_at, image, previous: None });
}

pub fn lease_of(extension: &Extension, row: &Row) -> Lease {
    let lease = row.lease();
    let last_seen =
        if lease.deadline == NEVER { clock::boot() } else { lease.deadline.saturating_sub(lease.ttl) };
    Lease {
        deadline: lease.deadline,
        last_seen,
        ttl: lease.ttl,
        version: lease.version,
        generation: lease.generation,
        owner: extension.owner_hash(row.text(Column::UserId).unwrap_or_default()),
        session: lease.session,
        pins: 0,
    }
}

fn check_names(row: &Row) -> Result<()> {
    let text = |column, argument| row.text(column).ok_or(Error::MissingArgument { argument });
    validate::name("room", text(Column::Room, "room")?)?;
    validate::name("member_id", text(Column::MemberId, "member_id")?)?;
    validate::connection_id("connection_id", text(Column::ConnectionId, "connection_id")?)?;
    validate::name("user_id", text(Column::UserId, "user_id")?)
}

/// What the room says where the member does not.
fn set_room_defaults(extension: &Extension, row: &mut Row, intent: &Intent) -> Result<()> {
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

fn check_join(identity: &Identity, row: &Row) -> Result<()> {
    if identity.service {
        return Ok(());
    }
    authorizer::require(row.text(Column::Room).unwrap_or_default(), Action::Join)
}

/// Nobody squats "bob".
pub fn check_member_id(identity: &Identity, row: &Row) -> Result<()> {
    let free = identity.service || settings::member_ids() == MemberIds::Any;
    match row.text(Column::MemberId) {
        Some(given) if !free && !identity.is(given) => {
            let own = identity.user_id.as_deref().unwrap_or_default();
            Err(Error::NotYourName { member_id: crate::error::printable(own) })
        }
        _ => Ok(()),
    }
}

/// Status, state, metadata and audience as they shall be stored.
fn normalize(row: &mut Row) -> Result<()> {
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
    let tokens = match row.get(Column::Audience) {
        Some(given) => {
            // SAFETY: the column is text[].
            let tokens = unsafe { texts_of(given) };
            tokens.map_err(|why| Error::InvalidAudience { why: why.into() })?
        }
        None => default.iter().map(|token| token.as_bytes()).collect(),
    };
    let audience = validate::audience(&tokens, room)?;
    row.set(Column::Audience, Some(sqlfn::text_array(&audience)));
    Ok(())
}

/// Bind to this session, to none, or leave it as it was.
fn set_session(row: &mut Row, old: Option<&Row>, key: &Key, intent: &Intent) -> Result<()> {
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
fn renew(row: &mut Row) -> Result<i64> {
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

crate::sql_function!(presence_member_before, pg_finfo_presence_member_before, before);
crate::sql_function!(presence_member_after, pg_finfo_presence_member_after, after);
