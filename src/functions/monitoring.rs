//! For administrators: health, flush, sweep, the worker's pid.

use crate::access::identity;
use crate::error::{Error, Result};
use crate::extension::{self, Extension};
use crate::member::verb::require_no_standby;
use crate::pg::datum::varlena;
use crate::pg::encoding::encode_lossy;
use crate::pg::function::Call;
use crate::pg::latch::pause;
use crate::shared::database::{self, WorkerState};
use crate::shared::leases::leases;
use crate::worker::sweeper;
use crate::{clock, settings};
use pgrx::pg_sys::Datum;
use std::sync::atomic::Ordering::*;

/// SQL `presence.seq()`.
fn seq(_call: &Call) -> Result<Option<Datum>> {
    require_no_standby("presence.seq()")?;
    Ok(Some(Datum::from(extension::current()?.database.seq.load(Acquire) as i64)))
}

/// SQL `presence.worker_pid()`.
fn worker_pid(_call: &Call) -> Result<Option<Datum>> {
    let pid = extension::current()?.database.worker.pid.load(Acquire);
    Ok((pid != 0).then(|| Datum::from(pid)))
}

/// SQL `presence.wait_for_flush(timeout)`: whether everything committed before the call was published in time.
fn wait_for_flush(call: &Call) -> Result<Option<Datum>> {
    require_no_standby("presence.wait_for_flush()")?;
    let database = extension::current()?.database;
    let timeout = call.interval(0).ok_or(Error::MissingArgument { argument: "timeout" })?;
    if !(0..=86_400_000_000).contains(&timeout) {
        return Err(Error::InvalidTimeout);
    }
    database::request_worker(database);
    let goal = database.ring().head.load(Acquire);
    let end = clock::boot() + timeout as u64;
    while database.flushed.load(Acquire) < goal || database.owed_resync().is_some() {
        if clock::boot() >= end {
            return Ok(Some(Datum::from(false)));
        }
        pause(1, c"PresenceFlush");
    }
    Ok(Some(Datum::from(true)))
}

/// SQL `presence.sweep()`.
fn sweep(_call: &Call, extension: Extension) -> Result<Option<Datum>> {
    if !identity::current(&extension)?.service {
        return Err(Error::ServiceOnly { what: "sweep" });
    }
    Ok(Some(Datum::from(sweeper::sweep_now(&extension)? as i32)))
}

/// SQL `_presence._announce()`: at the end of CREATE EXTENSION.
fn announce(_call: &Call) -> Result<Option<Datum>> {
    crate::event::transaction::want_worker(extension::current()?.database);
    Ok(None)
}

/// SQL `_presence._health()`: one row, whose columns the view `health` names.
fn health(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let database = extension.database;
    database::request_worker(database);
    let pid = database.worker.pid.load(Acquire);
    let state = match database.worker.state() {
        WorkerState::None => "none",
        WorkerState::Starting => "starting",
        WorkerState::Running => "running",
        WorkerState::Yielded => "yielded",
        WorkerState::Absent => "absent",
        WorkerState::Standby => "standby",
    };
    let counters = &database.counters;
    let number = |number: u64| Some(Datum::from(number as i64));
    let last_error = database.trouble.last();
    let last_sweep = counters.last_sweep.load(Relaxed);
    let ring = database.ring();
    call.rows([vec![
        Some(varlena(extension::LIBRARY_VERSION.as_bytes())),
        (pid != 0).then(|| Datum::from(pid)),
        Some(varlena(state.as_bytes())),
        number(leases().used()),
        number(leases().capacity() as u64),
        number(ring.used()),
        number(settings::event_buffer() as u64),
        number(counters.published.load(Relaxed)),
        number(counters.dropped.load(Relaxed)),
        number(counters.notifications.load(Relaxed)),
        number(counters.heartbeats.total()),
        number(counters.expired.load(Relaxed)),
        (last_sweep != 0).then(|| Datum::from(last_sweep)),
        Some(crate::pg::datum::interval(counters.sweep_lag.load(Relaxed))),
        number(counters.resyncs.load(Relaxed)),
        {
            let position = database.sink.position.load(Acquire);
            (position != 0).then(|| Datum::from(position as i64))
        },
        {
            let position = database.sink.position.load(Acquire);
            (position != 0).then(|| Datum::from(database.seq.load(Acquire).saturating_sub(position) as i64))
        },
        // Lossy: the message may be in any language, and this view must not fail.
        last_error.map(|(message, _)| varlena(&encode_lossy(&message))),
    ]])
}

/// SQL `_presence._trouble()`: one row.
fn trouble(call: &Call) -> Result<Option<Datum>> {
    let trouble = &extension::current()?.database.trouble;
    call.rows([vec![trouble.last().map(|(_, at)| Datum::from(at)), trouble.since().map(Datum::from)]])
}

/// SQL `_presence._fast_writes()`.
fn fast_writes(_call: &Call) -> Result<Option<Datum>> {
    let written = extension::current()?.database.counters.fast_writes.total();
    Ok(Some(Datum::from(written as i64)))
}

crate::sql_function!(presence_fast_writes, pg_finfo_presence_fast_writes, fast_writes);
crate::sql_function!(presence_seq, pg_finfo_presence_seq, seq);
crate::sql_function!(presence_worker_pid, pg_finfo_presence_worker_pid, worker_pid);
crate::sql_function!(presence_wait_for_flush, pg_finfo_presence_wait_for_flush, wait_for_flush);
crate::verb!(presence_sweep, pg_finfo_presence_sweep, "presence.sweep()", sweep);
crate::sql_function!(presence_announce, pg_finfo_presence_announce, announce);
crate::sql_function!(presence_trouble, pg_finfo_presence_trouble, trouble);
crate::sql_function!(presence_health, pg_finfo_presence_health, health);
