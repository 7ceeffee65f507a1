//! Argument checks of the reading functions, with our errors; the position of the log, and what it shows.

use crate::error::{Error, Result};
use crate::event::reach::whole;
use crate::pg::datum::Texts;
use crate::pg::encoding::decode;
use crate::pg::function::Call;
use crate::pg::role::as_role;
use crate::pg::spi::{Connection, Statement};
use crate::pg::{datum, jsonb};
use crate::{extension, validate};
use pgrx::pg_sys::Datum;
use std::sync::atomic::Ordering::*;

/// SQL `_presence._limit(max_rows)`: 1 to 1000.
fn limit(call: &Call) -> Result<Option<Datum>> {
    Ok(Some(Datum::from(validate::max_rows(call.int(0), 1_000)? as i64)))
}

/// SQL `_presence._page(max_rows)`: NULL, or 1 to 10,000.
fn page(call: &Call) -> Result<Option<Datum>> {
    Ok(page_of(call.int(0))?.map(|rows| Datum::from(rows as i64)))
}

/// The requested page size.
pub fn page_of(max_rows: Option<i32>) -> Result<Option<usize>> {
    max_rows.map(|rows| validate::max_rows(Some(rows), 10_000).map(|rows| rows as usize)).transpose()
}

/// SQL `_presence._room(room)`: the room, if its name is valid.
fn room(call: &Call) -> Result<Option<Datum>> {
    let room = call.text(0).ok_or(Error::MissingArgument { argument: "room" })?;
    validate::name("room", room)?;
    Ok(call.datum(0))
}

/// The key after which a page starts, of this many parts. None: it is the first page.
pub fn after(call: &Call, argument: usize, parts: usize) -> Result<Option<Texts>> {
    let wrong = |why: String| Error::InvalidArgument { argument: "after", why };
    let key = call.texts(argument).map_err(|why| wrong(why.into()))?;
    match &key {
        Some(key) if key.len() != parts => {
            Err(wrong(format!("The key of a member has {parts} parts here, not {}.", key.len())))
        }
        _ => Ok(key),
    }
}

/// SQL `presence._after(after, parts)` of releases before 0.3.0.
fn key(call: &Call) -> Result<Option<Datum>> {
    let Some(parts) = call.int(1) else { return Ok(None) };
    // Rebuilt, so that its subscripts start at 1.
    Ok(after(call, 0, parts as usize)?.map(|key| datum::text_array(key.iter())))
}

/// SQL `_presence._start(after, parts)`: the same; the first page starts after empty names, which no member has.
fn start(call: &Call) -> Result<Option<Datum>> {
    let parts = call.int(1).unwrap_or_default();
    Ok(Some(key(call)?.unwrap_or_else(|| datum::text_array((0..parts).map(|_| b"")))))
}

/// SQL `_presence._log_floor()`: the log contains every event after this seq.
fn log_floor(_call: &Call) -> Result<Option<Datum>> {
    Ok(Some(Datum::from(extension::current()?.database.log_floor.load(Acquire) as i64)))
}

/// SQL `_presence._seq(after_seq)`.
fn given_seq(call: &Call) -> Result<Option<Datum>> {
    call.datum(0).ok_or(Error::MissingArgument { argument: "after_seq" }).map(Some)
}

static NEWEST: Statement =
    Statement { sql: c"select seq from presence.event order by seq desc limit 1", arguments: &[] };

/// SQL `_presence._log_position()`: the newest seq in this statement's snapshot, whether or not the caller may see its
/// row.
fn log_position(_call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let newest = as_role(extension.owner_role, || {
        let connection = Connection::open()?;
        let rows = connection.run(&NEWEST, &[], false)?;
        Ok(rows.get(0, 0).map(|seq| seq.value() as i64))
    })?;
    let floor = extension.database.log_floor.load(Acquire) as i64;
    Ok(Some(Datum::from(newest.unwrap_or(floor).max(floor))))
}

/// SQL `_presence._direction(direction)`.
fn direction(call: &Call) -> Result<Option<Datum>> {
    match call.text(0) {
        Some(b"forwards") => Ok(Some(Datum::from(true))),
        Some(b"backwards") => Ok(Some(Datum::from(false))),
        _ => {
            Err(Error::InvalidArgument { argument: "direction", why: "It is backwards or forwards.".into() })
        }
    }
}

/// SQL `_presence._shown_audience(audience, whole)`.
fn shown_audience(call: &Call) -> Result<Option<Datum>> {
    let shown = match call.texts(0).ok().flatten() {
        _ if call.bool(1) != Some(true) => serde_json::json!({ "audience": null }),
        logged => match logged.and_then(|logged| whole(&logged.iter().collect::<Vec<_>>())) {
            Some(tokens) => {
                serde_json::json!({ "audience": tokens.iter().map(|token| decode(token)).collect::<Vec<_>>() })
            }
            None => serde_json::json!({}),
        },
    };
    Ok(Some(jsonb::of_json(&shown)))
}

crate::sql_function!(presence_shown_audience, pg_finfo_presence_shown_audience, shown_audience);
crate::sql_function!(presence_direction, pg_finfo_presence_direction, direction);
crate::sql_function!(presence_given_seq, pg_finfo_presence_given_seq, given_seq);
crate::sql_function!(presence_limit, pg_finfo_presence_limit, limit);
crate::sql_function!(presence_room, pg_finfo_presence_room, room);
// `presence._after`, of versions before 0.3.0.
crate::sql_function!(presence_after, pg_finfo_presence_after, key);
crate::sql_function!(presence_page, pg_finfo_presence_page, page);
crate::sql_function!(presence_start, pg_finfo_presence_start, start);
crate::sql_function!(presence_log_floor, pg_finfo_presence_log_floor, log_floor);
crate::sql_function!(presence_log_position, pg_finfo_presence_log_position, log_position);
