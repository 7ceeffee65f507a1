//! Leases as SQL sees them: the functions behind the view `online`, and the one that expires a row.

use super::session;
use crate::error::Result;
use crate::event::transaction;
use crate::lease::rule::{self, RowLease, Start};
use crate::lease::table::{Key, Lease, NEVER, alive};
use crate::pg::function::{Call, Query};
use crate::pg::spi::Rows;
use crate::shared::control;
use crate::shared::leases::leases;
use crate::{clock, extension, settings};
use pgrx::pg_sys::Datum;
use std::cell::Cell;
use std::sync::atomic::Ordering::*;

pub fn start() -> Start {
    let control = control();
    Start {
        version: control.started_version.load(Relaxed),
        grace_until: control.started_at.load(Relaxed) + settings::restart_grace(),
    }
}

/// The lease of a row that a query found; `columns` are where it has version, generation, deadline and session.
pub fn found(rows: &Rows, row: usize, columns: [usize; 4]) -> RowLease {
    let [version, generation, deadline, session] = columns.map(|column| rows.number(row, column));
    RowLease { read_since: clock::read_since(), version, generation, deadline, ttl: 0, session }
}

/// The deadline that counts for a row, by the boot clock; None if the member is gone.
pub fn deadline(key: &Key, row: &RowLease) -> Option<u64> {
    counting(key, slot(key, row).as_ref(), row, clock::boot())
}

/// As the rule says; but without a slot nobody could tell a row that its session is over. (A copy of a database and
/// pg_upgrade bring rows of sessions that this server never had.)
pub fn counting(key: &Key, slot: Option<&Lease>, row: &RowLease, now: u64) -> Option<u64> {
    if slot.is_none() && row.session != 0 && !session::is_live(key.database, row.session) {
        return None;
    }
    rule::deadline(slot, row, &start(), now)
}

/// The slot; for a row of our own making what it will be.
pub fn slot(key: &Key, row: &RowLease) -> Option<Lease> {
    pending(key).filter(|lease| lease.version == row.version).or_else(|| leases().read(key))
}

/// The lease of a member that this transaction has entered or changed, as it would be if that were committed now: with
/// the heartbeats since.
pub fn pending(key: &Key) -> Option<Lease> {
    let lease = transaction::pending_lease(key)?;
    Some(leases().read(key).map_or(lease, |slot| lease.on_top_of(&slot)))
}

/// The wall time of a deadline; NULL where no lease ends. (Not infinity, which most drivers cannot read.)
pub fn expires_at(deadline: u64) -> Option<Datum> {
    (deadline != NEVER).then(|| Datum::from(clock::wall_of(deadline)))
}

/// Expire a row whose lease has run out, or whose session is over: true exactly if it is the caller's to delete.
/// The caller has the row locked.
pub fn claim(key: &Key, row: &RowLease, now: u64) -> bool {
    let slot = leases().read(key);
    if let Some(own) = pending(key).filter(|own| own.version == row.version) {
        // Our own change ran out before it was committed. Where the slot of that stay has run out as well it is over for
        // everybody, and no renewal may come between.
        let over = !alive(own.deadline, now);
        return over
            && slot
                .filter(|slot| slot.generation == row.generation && !alive(slot.deadline, now))
                .is_none_or(|_| leases().claim(key, row.generation, now, false));
    }
    match slot {
        None => counting(key, None, row, now).is_none(),
        // The row's commit has not reached the slot yet; it will, and then we look again.
        Some(slot) if slot.version < row.version => false,
        Some(slot) if slot.generation != row.generation => false,
        Some(slot) => leases().claim(key, row.generation, now, session_over(key, &slot)),
    }
}

fn session_over(key: &Key, slot: &Lease) -> bool {
    slot.session != 0 && !session::is_live(key.database, slot.session)
}

/// (key_hash, version, generation, deadline, session): what a row says of its lease.
#[derive(Clone, Copy, PartialEq)]
struct Asked {
    hash: u128,
    version: u64,
    generation: u64,
    deadline: u64,
    session: u64,
}

impl Asked {
    fn of(call: &Call) -> Option<Asked> {
        Some(Asked {
            hash: call.hash(0)?,
            version: call.bigint(1)? as u64,
            generation: call.bigint(2)? as u64,
            deadline: call.bigint(3)? as u64,
            session: call.bigint(4).unwrap_or(0) as u64,
        })
    }

    fn row(&self) -> RowLease {
        let Asked { version, generation, deadline, session, .. } = *self;
        RowLease { read_since: clock::read_since(), version, generation, deadline, ttl: 0, session }
    }
}

/// What was found out of a row.
#[derive(Clone, Copy)]
struct Looked {
    asked: Asked,
    slot: Option<Lease>,
    deadline: u64,
    at: u64,
}

/// The view `online` asks whether a row is alive, then for two columns.
#[derive(Clone, Copy, PartialEq)]
enum Question {
    LastSeenAt,
    ExpiresAt,
}

thread_local! {
    /// Of the row that `_is_alive` let pass last, and which questions it has answered since; until its query ends.
    static LOOKED: Cell<Option<(Query, Looked, Option<Question>)>> = const { Cell::new(None) };
}

/// Whether a row's member is here, by the clock.
fn look(asked: &Asked) -> Result<Option<Looked>> {
    let key = extension::current()?.key_of(asked.hash);
    let row = asked.row();
    let (slot, at) = (slot(&key, &row), clock::boot());
    let deadline = counting(&key, slot.as_ref(), &row, at);
    Ok(deadline.map(|deadline| Looked { asked: *asked, slot, deadline, at }))
}

/// The columns of a row show what let it pass, and need not look again: once each, so that the answer is of now.
fn looked(call: &Call, question: Question) -> Result<Option<Looked>> {
    let Some(asked) = Asked::of(call) else { return Ok(None) };
    let query = call.query();
    match LOOKED.take() {
        Some((of, looked, answered))
            if of == query && looked.asked == asked && answered != Some(question) =>
        {
            // The second question is the last.
            LOOKED.set(answered.is_none().then_some((query, looked, Some(question))));
            Ok(Some(looked))
        }
        _ => look(&asked),
    }
}

/// SQL `_presence._is_alive(key_hash, version, generation, deadline, session)`.
fn sql_is_alive(call: &Call) -> Result<Option<Datum>> {
    let looked = Asked::of(call).map_or(Ok(None), |asked| look(&asked))?;
    let query = call.query();
    LOOKED.set(looked.map(|looked| (query, looked, None)));
    call.when_query_ends(move || {
        if LOOKED.get().is_some_and(|(of, ..)| of == query) {
            LOOKED.set(None);
        }
    });
    Ok(Some(Datum::from(looked.is_some())))
}

/// SQL `_presence._expires_at(key_hash, version, generation, deadline, session)`: NULL is gone, or no lease that ends.
fn sql_expires_at(call: &Call) -> Result<Option<Datum>> {
    let Some(Looked { deadline, at, .. }) = looked(call, Question::ExpiresAt)? else { return Ok(None) };
    Ok((deadline != NEVER).then(|| Datum::from(clock::wall_of_at(deadline, at))))
}

/// SQL `_presence._last_seen_at(key_hash, version, generation, deadline, session, ttl, last_seen_at)`.
fn sql_last_seen_at(call: &Call) -> Result<Option<Datum>> {
    let Some(Looked { slot, deadline, at, .. }) = looked(call, Question::LastSeenAt)? else {
        return Ok(None);
    };
    let ttl = call.interval(5).map_or(0, |ttl| ttl as u64);
    // The grace after a restart may be longer than the ttl: still nobody was seen in the future.
    let last_seen =
        rule::last_seen(slot.as_ref(), deadline, ttl).map(|seen| clock::wall_of_at(seen.min(at), at));
    Ok(last_seen.or(call.bigint(6)).map(Datum::from))
}

/// SQL `_presence._claim(key_hash, version, generation, deadline, session)`, for the sweeper.
fn sql_claim(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let claimed = Asked::of(call)
        .is_some_and(|asked| claim(&extension.key_of(asked.hash), &asked.row(), clock::boot()));
    Ok(Some(Datum::from(claimed)))
}

/// SQL `_presence._has_slot(key_hash)`.
fn sql_has_slot(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let found = call.hash(0).is_some_and(|hash| leases().read(&extension.key_of(hash)).is_some());
    Ok(Some(Datum::from(found)))
}

crate::sql_function!(presence_expires_at, pg_finfo_presence_expires_at, sql_expires_at);
crate::sql_function!(presence_last_seen_at, pg_finfo_presence_last_seen_at, sql_last_seen_at);
crate::sql_function!(presence_is_alive, pg_finfo_presence_is_alive, sql_is_alive);
crate::sql_function!(presence_claim, pg_finfo_presence_claim, sql_claim);
crate::sql_function!(presence_has_slot, pg_finfo_presence_has_slot, sql_has_slot);
