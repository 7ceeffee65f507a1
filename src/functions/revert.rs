//! What has reverted by now, as the view `online` shows it.

use crate::clock;
use crate::member::revert;
use crate::pg::datum::varlena;
use crate::pg::function::{Call, Query};
use pgrx::pg_sys::Datum;
use std::cell::Cell;

#[derive(Clone, Copy, PartialEq)]
enum Question {
    Status,
    State,
}

/// A row, identified by the query that reads it, its key and its version.
type Read = (Query, Option<u128>, Option<i64>);

thread_local! {
    /// When one of the two questions was asked for a row, so that both use one moment. Until its query ends.
    static ASKED: Cell<Option<(Read, Question, u64)>> = const { Cell::new(None) };
}

/// The moment for which to answer: that of the other question if it was asked just before, otherwise now.
fn as_of(call: &Call, question: Question) -> u64 {
    let query = call.query();
    let read = (query, call.hash(2), call.bigint(3));
    match ASKED.take() {
        Some((before, other, at)) if before == read && other != question => at,
        _ => {
            let now = clock::boot();
            ASKED.set(Some((read, question, now)));
            call.when_query_ends(move || {
                if ASKED.get().is_some_and(|((of, ..), ..)| of == query) {
                    ASKED.set(None);
                }
            });
            now
        }
    }
}

/// SQL `_presence._current_status(status, reverts, key_hash, version)`.
fn current_status(call: &Call) -> crate::error::Result<Option<Datum>> {
    let Some(reverts) = call.varlena(1) else { return Ok(call.datum(0)) };
    let at = as_of(call, Question::Status);
    Ok(revert::status(call.text(0), reverts, at).as_deref().map(varlena))
}

/// SQL `_presence._current_state(state, reverts, key_hash, version)`.
fn current_state(call: &Call) -> crate::error::Result<Option<Datum>> {
    let (Some(state), Some(reverts)) = (call.varlena(0), call.varlena(1)) else { return Ok(call.datum(0)) };
    let at = as_of(call, Question::State);
    Ok(revert::state(state, reverts, at).as_deref().map(varlena).or(call.datum(0)))
}

crate::sql_function!(presence_current_status, pg_finfo_presence_current_status, current_status);
crate::sql_function!(presence_current_state, pg_finfo_presence_current_state, current_state);
