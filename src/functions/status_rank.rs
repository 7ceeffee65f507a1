//! Which of a user's statuses `presence.users` shows: the one that ranks highest in `presence.status_rank`.

use crate::error::Result;
use crate::pg::datum::varlena;
use crate::pg::function::Call;
use crate::settings;
use pgrx::pg_sys::Datum;
use std::cell::RefCell;

thread_local! {
    /// The parsed setting and its epoch. It is needed for each member of a room.
    static LISTED: RefCell<(u64, Vec<Vec<u8>>)> = const { RefCell::new((0, Vec::new())) };
}

fn with_listed<T>(body: impl FnOnce(&[Vec<u8>]) -> T) -> T {
    let epoch = settings::status_rank_epoch();
    LISTED.with_borrow_mut(|(of, listed)| {
        if *of != epoch {
            *listed = settings::status_rank();
            *of = epoch;
        }
        body(listed)
    })
}

/// SQL `_presence._rank(status)`: 1 ranks highest; NULL is not listed.
fn rank(call: &Call) -> Result<Option<Datum>> {
    let Some(status) = call.text(0) else { return Ok(None) };
    let place = with_listed(|listed| listed.iter().position(|listed| listed == status));
    Ok(place.map(|place| Datum::from(place as i32 + 1)))
}

/// SQL `_presence._ranked(rank, status)`: the status of that rank; with NULL, the one given.
fn ranked(call: &Call) -> Result<Option<Datum>> {
    let Some(rank) = call.int(0) else { return Ok(call.datum(1)) };
    let status = with_listed(|listed| listed.get(rank as usize - 1).map(|status| varlena(status)));
    Ok(status.or(call.datum(1)))
}

crate::sql_function!(presence_rank, pg_finfo_presence_rank, rank);
crate::sql_function!(presence_ranked, pg_finfo_presence_ranked, ranked);
