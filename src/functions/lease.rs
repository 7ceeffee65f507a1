//! Leases as SQL sees them: the functions behind the view `online`.

use crate::error::Result;
use crate::lease::rule::RowLease;
use crate::member::grace;
use crate::member::liveness::{Shown, claim};
use crate::pg::function::{Call, Query};
use crate::shared::leases::leases;
use crate::{clock, extension};
use pgrx::pg_sys::Datum;
use std::cell::Cell;

/// (key_hash, version, generation, deadline, session): the lease columns of a row.
#[derive(Clone, Copy, PartialEq)]
struct LeaseArguments {
    hash: u128,
    version: u64,
    generation: u64,
    deadline: u64,
    session: u64,
}

impl LeaseArguments {
    fn of(call: &Call) -> Option<LeaseArguments> {
        Some(LeaseArguments {
            hash: call.hash(0)?,
            version: call.bigint(1)? as u64,
            generation: call.bigint(2)? as u64,
            deadline: call.bigint(3)? as u64,
            session: call.bigint(4).unwrap_or(0) as u64,
        })
    }

    fn row(&self) -> RowLease {
        let LeaseArguments { version, generation, deadline, session, .. } = *self;
        let (deadline, is_fixed) = grace::read_deadline(deadline);
        RowLease { read_since: clock::read_since(), version, generation, deadline, is_fixed, ttl: 0, session }
    }
}

/// The state of a row's member.
#[derive(Clone, Copy)]
struct Found {
    asked: LeaseArguments,
    shown: Shown,
}

/// The view `online` asks whether a row is alive, then for two more columns.
#[derive(Clone, Copy, PartialEq)]
enum Question {
    LastSeenAt,
    ExpiresAt,
}

thread_local! {
    /// The result for the row that `_is_alive` accepted last, and the question answered since; until its query ends.
    static FOUND: Cell<Option<(Query, Found, Option<Question>)>> = const { Cell::new(None) };
}

/// Whether a row's member is alive, by the clock.
fn look(asked: &LeaseArguments) -> Result<Option<Found>> {
    let key = extension::current()?.key_of(asked.hash);
    Ok(Shown::look(&key, &asked.row()).map(|shown| Found { asked: *asked, shown }))
}

/// The columns of a row use the result that accepted it, without another look-up: each of them once, so that the result
/// is current.
fn looked(call: &Call, question: Question) -> Result<Option<Found>> {
    let Some(asked) = LeaseArguments::of(call) else { return Ok(None) };
    let query = call.query();
    match FOUND.take() {
        Some((of, looked, answered))
            if of == query && looked.asked == asked && answered != Some(question) =>
        {
            // After the second question the result is discarded.
            FOUND.set(answered.is_none().then_some((query, looked, Some(question))));
            Ok(Some(looked))
        }
        _ => look(&asked),
    }
}

/// SQL `_presence._is_alive(key_hash, version, generation, deadline, session)`.
fn sql_is_alive(call: &Call) -> Result<Option<Datum>> {
    let looked = LeaseArguments::of(call).map_or(Ok(None), |asked| look(&asked))?;
    let query = call.query();
    FOUND.set(looked.map(|looked| (query, looked, None)));
    call.when_query_ends(move || {
        if FOUND.get().is_some_and(|(of, ..)| of == query) {
            FOUND.set(None);
        }
    });
    Ok(Some(Datum::from(looked.is_some())))
}

/// SQL `_presence._expires_at(key_hash, version, generation, deadline, session)`: NULL if the member is gone or its
/// lease has no end.
fn sql_expires_at(call: &Call) -> Result<Option<Datum>> {
    let found = looked(call, Question::ExpiresAt)?;
    Ok(found.and_then(|found| found.shown.expires_at()).map(Datum::from))
}

/// SQL `_presence._last_seen_at(key_hash, version, generation, deadline, session, ttl, last_seen_at)`.
fn sql_last_seen_at(call: &Call) -> Result<Option<Datum>> {
    let Some(Found { asked, shown }) = looked(call, Question::LastSeenAt)? else { return Ok(None) };
    let row = RowLease { ttl: call.interval(5).map_or(0, |ttl| ttl as u64), ..asked.row() };
    Ok(shown.last_seen_at(&row, call.bigint(6)).map(Datum::from))
}

/// SQL `presence._claim(key_hash, version, generation, deadline, session)` of releases before 0.3.0, whose SQL names it;
/// nothing calls it any more.
fn sql_claim(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let claimed = LeaseArguments::of(call)
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
