//! The sink: a process of its own that calls the function of `presence.sink` with each batch of the log, as the
//! function's owner, and stores its position in the same transaction. What the function writes in this database
//! happens exactly once for each event; an error is tried again, ever more slowly, and delays nobody else.

use super::launcher::background_worker;
use super::place::Place;
use super::process::{self, transaction};
use super::sweeper::raw_length;
use super::{memory, settings as own_settings, tenancy};
use crate::error::{Error, Result, printable};
use crate::extension::{self, Extension};
use crate::pg::datum::varlena;
use crate::pg::role::as_role;
use crate::pg::spi::{Connection, Statement, statement};
use crate::pg::subtransaction::Failure;
use crate::settings::SinkScope;
use crate::shared::Database;
use crate::shared::error_status::Part;
use crate::{clock, nodes, settings};
use pgrx::pg_sys::Datum;
use pgrx::{pg_guard, pg_sys};
use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::sync::atomic::Ordering::*;
use std::time::Duration;

const SECOND: u64 = 1_000_000;
/// Longest pause between two attempts of a sink that fails.
const LONGEST_PAUSE: u64 = 30 * SECOND;

thread_local! {
    /// The database's search_path, which the author of the sink's function expects. Ours is pinned.
    static SEARCH_PATH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Called by the database's worker once a second: start the process if there is a sink and no process.
pub fn start_if_wanted(database: &'static Database) {
    if settings::sink().is_empty() {
        database.trouble.is_over(Part::Sink);
        return;
    }
    let now = clock::boot();
    let recently = now < database.sink.started.load(Acquire) + 2 * SECOND;
    if database.sink.pid.load(Acquire) != 0 || recently {
        return;
    }
    database.sink.started.store(now, Release);
    let oid = database.oid.load(Acquire) as usize;
    let mut worker = background_worker("presence_ext sink", "presence_sink_worker", Datum::from(oid));
    let mut handle = std::ptr::null_mut();
    // SAFETY: a complete description; the handle is of no further use.
    if !unsafe { pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle) } {
        database
            .trouble
            .failed(Part::Sink, "no free slot for the sink's background worker: raise max_worker_processes");
    }
}

/// The process's entry point; the argument is the database's oid.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn presence_sink_worker(argument: Datum) {
    process::install_signals();
    process::connect(pg_sys::Oid::from(argument.value() as u32), c"presence_ext sink");
    // SAFETY: a zero-terminated string of the settings.
    let search_path =
        unsafe { CStr::from_ptr(pg_sys::GetConfigOption(c"search_path".as_ptr(), false, false)) };
    SEARCH_PATH.set(search_path.to_bytes().to_vec());
    // A crash must not undo what a sink has committed: the log that it was read from would be gone.
    own_settings::pin_settings(c"on", c"30s");
    let Ok(extension) = transaction(c"starting", || match extension::member_table() {
        Some(_) => extension::current(),
        None => Err(Error::NotInstalled),
    }) else {
        return;
    };
    let database = extension.database;
    let sink = &database.sink;
    let place = Place { database, pid: &sink.pid, process: &sink.process, leaving: |_| {}, left: || {} };
    if !place.take() {
        return;
    }
    run(&extension);
}

fn run(extension: &Extension) {
    let mut failures = 0u32;
    let mut maintenance = 0;
    loop {
        let now = clock::boot();
        if now >= maintenance + SECOND {
            maintenance = now;
            if !may_stay(extension).unwrap_or(false) {
                return;
            }
        }
        let pause = match feed(extension) {
            Ok(more) => {
                failures = 0;
                extension.database.trouble.is_over(Part::Sink);
                if more {
                    continue;
                }
                SECOND
            }
            Err(failure) => {
                failures += 1;
                extension.database.trouble.failed(Part::Sink, &format!("sink: {}", failure.message));
                pgrx::log!("presence_ext: the sink failed and will be tried again: {}", failure.message);
                LONGEST_PAUSE.min(100_000 << failures.min(16))
            }
        };
        // After a failure events do not wake us, only the timeout.
        let until = clock::boot() + pause;
        while clock::boot() < until {
            let left = (until - clock::boot().min(until)).min(SECOND);
            process::wait(Duration::from_micros(left.max(1_000)), failures > 0);
            if failures == 0 {
                break;
            }
            if !may_stay(extension).unwrap_or(false) {
                return;
            }
        }
    }
}

fn may_stay(extension: &Extension) -> std::result::Result<bool, Failure> {
    let present = transaction(c"looking for the extension", || Ok(extension::member_table()))?;
    Ok(present == Some(extension.member)
        && !tenancy::somebody_waits_for_the_database()?
        && own_settings::read_database_settings()?
        && !settings::sink().is_empty())
}

static FUNCTION: Statement = Statement {
    sql: c"select p.proowner, p.oid::pg_catalog.regproc::pg_catalog.text
           from pg_catalog.pg_proc p
           where p.oid operator(pg_catalog.=)
                 pg_catalog.to_regprocedure($1 operator(pg_catalog.||) '(presence.event[])')",
    arguments: &[pg_sys::TEXTOID],
};

static POSITION: Statement = Statement {
    sql: c"select position from _presence._sink where function_name operator(pg_catalog.=) $1 for update",
    arguments: &[pg_sys::TEXTOID],
};

/// A new sink starts with the next event.
static BEGIN: Statement = Statement {
    sql: c"insert into _presence._sink (function_name, position, updated_at)
           values ($1, _presence._log_position(), pg_catalog.clock_timestamp()) returning position",
    arguments: &[pg_sys::TEXTOID],
};

static ADVANCE: Statement = Statement {
    sql: c"update _presence._sink set position = $2, updated_at = pg_catalog.clock_timestamp() where function_name operator(pg_catalog.=) $1",
    arguments: &[pg_sys::TEXTOID, pg_sys::INT8OID],
};

/// What is large in the next events, to measure it.
static NEXT: Statement = Statement {
    sql: c"select e.seq, e.state, e.metadata from presence.event e where e.seq operator(pg_catalog.>) $1
           order by e.seq limit 1000",
    arguments: &[pg_sys::INT8OID],
};

/// The next events up to a seq; if the log does not reach back that far, a `resync` comes first. The audience contains
/// those for whom a line is: those who gained sight have a line of their own.
macro_rules! batch {
    ($arguments:expr, $of:literal) => {
        statement!(
            $arguments,
            "select pg_catalog.array_agg(b.e order by b.seq)",
            $of,
            ", pg_catalog.max(b.seq)
           from ((select case when pg_catalog.starts_with(e.audience[pg_catalog.cardinality(e.audience)], '+')
                              then pg_catalog.jsonb_populate_record(e, pg_catalog.jsonb_build_object('audience',
                                       array(select token from pg_catalog.unnest(e.audience) token
                                             where not pg_catalog.starts_with(token, '+'))))
                              else e end as e, e.seq
                  from presence.event e
                  where e.seq operator(pg_catalog.>) $1 and e.seq operator(pg_catalog.<=) $2
                  order by e.seq limit 1000)
                 union all
                 select pg_catalog.jsonb_populate_record(null::presence.event,
                            pg_catalog.jsonb_build_object('seq', _presence._log_floor(), 'event', 'resync')),
                        _presence._log_floor()
                 where $1 operator(pg_catalog.<) _presence._log_floor()) b"
        )
    };
}
static BATCH: Statement = batch!([pg_sys::INT8OID, pg_sys::INT8OID], "");
/// Only events of this server: otherwise the function's work would be done by each of several servers.
static OWN_BATCH: Statement = batch!(
    [pg_sys::INT8OID, pg_sys::INT8OID, pg_sys::TEXTOID],
    " filter (where coalesce((b.e).node, $3) operator(pg_catalog.=) $3)"
);

/// Call the function with its next batch. Returns whether there was one.
fn feed(extension: &Extension) -> std::result::Result<bool, Failure> {
    let name = settings::sink();
    let position = transaction(c"calling the sink", || {
        let (owner, function) = find_function(&name)?;
        let connection = Connection::open()?;
        let key = || Some(varlena(&name));
        let known =
            connection.run(&POSITION, &[key()], true)?.get(0, 0).map(|position| position.value() as i64);
        let position = match known {
            Some(position) => position,
            None => connection
                .run(&BEGIN, &[key()], true)?
                .get(0, 0)
                .map_or(0, |position| position.value() as i64),
        };
        let last = Datum::from(last_that_fits(&connection, position)?);
        let position_and_last = [Some(Datum::from(position)), Some(last)];
        let own = settings::node_name().filter(|_| nodes::scan::are_there(extension.database));
        let batch = match own.filter(|_| settings::sink_scope() == SinkScope::Own) {
            Some(own) => {
                let [position, last] = position_and_last;
                connection.run(&OWN_BATCH, &[position, last, Some(varlena(&own))], false)?
            }
            None => connection.run(&BATCH, &position_and_last, false)?,
        };
        let Some(last) = batch.get(0, 1) else { return Ok((position, false)) };
        if let Some(events) = batch.get(0, 0) {
            call(&connection, owner, &function, events)?;
        }
        connection.run(&ADVANCE, &[key(), Some(last)], true)?;
        Ok((last.value() as i64, true))
    });
    position.map(|(position, more)| {
        extension.database.sink.position.store(position as u64, Release);
        more
    })
}

/// The seq up to which a batch fits into memory; at least one event.
fn last_that_fits(connection: &Connection, position: i64) -> Result<i64> {
    let rows = connection.run(&NEXT, &[Some(Datum::from(position))], false)?;
    let (mut last, mut size) = (position, 0);
    for row in 0..rows.count {
        // SAFETY: jsonb; looks at its header.
        let length = |column| rows.get(row, column).map_or(0, |jsonb| unsafe { raw_length(jsonb) });
        size += length(1) + length(2) + 2_000;
        if row > 0 && size > memory::for_sink() {
            break;
        }
        last = rows.number(row, 0) as i64;
    }
    Ok(last)
}

fn find_function(name: &[u8]) -> Result<(pg_sys::Oid, Vec<u8>)> {
    let connection = Connection::open()?;
    let rows = connection.run(&FUNCTION, &[Some(varlena(name))], false)?;
    let (Some(owner), Some(function)) = (rows.get(0, 0), rows.text(0, 1)) else {
        let why = format!("There is no function {}(presence.event[]).", printable(name));
        return Err(Error::InvalidArgument { argument: "presence.sink", why });
    };
    Ok((pg_sys::Oid::from(owner.value() as u32), function.to_vec()))
}

/// Call it as its owner, deferred triggers included, so that nothing of theirs runs as us at commit.
fn call(connection: &Connection, owner: pg_sys::Oid, function: &[u8], events: Datum) -> Result<()> {
    let sql = [b"select ".as_slice(), function, b"($1)"].concat();
    let sql = CString::new(sql)
        .map_err(|_| Error::InvalidArgument { argument: "presence.sink", why: "It has a NUL.".into() })?;
    let search_path =
        |path: &[u8]| connection.run(&SET_SEARCH_PATH, &[Some(varlena(path))], false).map(|_| ());
    SEARCH_PATH.with_borrow(|path| search_path(path))?;
    as_role(owner, || {
        connection.run_once(&sql, &[(event_array(), events)])?;
        connection.run_text(c"set constraints all immediate", true).map(|_| ())
    })?;
    search_path(b"pg_catalog, pg_temp")
}

static SET_SEARCH_PATH: Statement = Statement {
    sql: c"select pg_catalog.set_config('search_path', $1, true)",
    arguments: &[pg_sys::TEXTOID],
};

/// The type presence.event[].
fn event_array() -> pg_sys::Oid {
    // SAFETY: catalog look-ups.
    unsafe {
        let relation = extension::relation(c"event").unwrap_or(pg_sys::InvalidOid);
        pg_sys::get_array_type(pg_sys::get_rel_type_id(relation))
    }
}
