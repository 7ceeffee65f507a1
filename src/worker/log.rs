//! The event log: `presence.event`. The worker alone adds to it.
//!
//! Three tables take turns, each for half of the retention time. Before a table is used again it is emptied with
//! TRUNCATE, so nothing is left for vacuum. Rows are deleted only where `presence.forget` erases a user.

use crate::error::Result;
use crate::extension::{self, Extension};
use crate::pg::datum::{self, varlena};
use crate::pg::spi::{Connection, Statement};
use crate::shared::control;
use crate::{clock, settings};
use pgrx::pg_sys::{self, Datum};
use std::ffi::CStr;
use std::sync::atomic::Ordering::*;

pub const PARTS: usize = 3;

/// The retention that `changes` needs, even if history is kept for a shorter time.
const SHORTEST: u64 = 5 * 60 * 1_000_000;

/// The types of a part's columns, in the order of sql/tables.sql.
const TYPES: [pg_sys::Oid; COLUMNS] = [
    pg_sys::INT8OID,
    pg_sys::INT8OID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::JSONBOID,
    pg_sys::JSONBOID,
    pg_sys::INT4OID,
    pg_sys::TEXTOID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::TEXTARRAYOID,
    pg_sys::TEXTOID,
];

/// The last column, which is missing before 0.3.0, and NULL if the server has no name.
const NODE: &CStr = c"node";

/// The NOT NULL columns.
const NEVER_NULL: [usize; 2] = [0, 2];

macro_rules! insert {
    ($table:literal, $columns:literal, $values:literal) => {
        Statement {
            sql: match CStr::from_bytes_with_nul(
                concat!(
                    "insert into _presence.",
                    $table,
                    " (seq, version, event, room, member_id, connection_id, user_id, status, state, metadata, \
                     connections, reason, at, joined_at, audience",
                    $columns,
                    ") values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15",
                    $values,
                    ")\0"
                )
                .as_bytes(),
            ) {
                Ok(sql) => sql,
                Err(_) => c"",
            },
            arguments: &TYPES,
        }
    };
}

static INSERT: [Statement; PARTS] =
    [insert!("_event_0", "", ""), insert!("_event_1", "", ""), insert!("_event_2", "", "")];

/// For a server with a name.
static INSERT_NAMED: [Statement; PARTS] = [
    insert!("_event_0", ", node", ", $16"),
    insert!("_event_1", ", node", ", $16"),
    insert!("_event_2", ", node", ", $16"),
];

const NAMES: [&CStr; PARTS] = [c"_event_0", c"_event_1", c"_event_2"];

const TRUNCATE: [&CStr; PARTS] =
    [c"truncate _presence._event_0", c"truncate _presence._event_1", c"truncate _presence._event_2"];

const NEWEST: [&CStr; PARTS] = [
    c"select seq from _presence._event_0 order by seq desc limit 1",
    c"select seq from _presence._event_1 order by seq desc limit 1",
    c"select seq from _presence._event_2 order by seq desc limit 1",
];

const NEWEST_VERSION: &CStr = c"select greatest((select pg_catalog.max(version) from presence.member),
                                                (select pg_catalog.max(version) from presence.room))";

/// Continue above existing numbers: a copy of a database (CREATE DATABASE ... TEMPLATE), or one from pg_upgrade, has a
/// log, members and rooms that this server's memory knows nothing of.
pub fn continue_numbers(extension: &Extension) -> Result<()> {
    let connection = Connection::open()?;
    let number = |sql| -> Result<u64> {
        Ok(connection.run_text(sql, false)?.get(0, 0).map_or(0, |number| number.value() as u64))
    };
    for sql in NEWEST {
        extension.database.seq.fetch_max(number(sql)?, AcqRel);
    }
    control().next_version.fetch_max(number(NEWEST_VERSION)? + 1, AcqRel);
    Ok(())
}

static FORGET: Statement = Statement {
    sql: c"with erased as (delete from presence.event where user_id operator(pg_catalog.=) $1 returning seq)
           select pg_catalog.count(*), pg_catalog.max(seq) from erased",
    arguments: &[pg_sys::TEXTOID],
};

/// Delete the lines of a user. Returns how many there were.
pub fn forget(extension: &Extension, connection: &Connection, user_id: &[u8]) -> Result<usize> {
    let erased = connection.run(&FORGET, &[Some(varlena(user_id))], true)?;
    if let Some(newest) = erased.get(0, 1) {
        miss(extension, newest.value() as u64);
    }
    Ok(erased.get(0, 0).map_or(0, |count| count.value()))
}

/// Lines up to this seq will be missing from the log: whoever has read less is told to list. Set before the commit, so
/// that nobody reads on without being told.
fn miss(extension: &Extension, seq: u64) {
    extension.database.log_floor.fetch_max(seq, AcqRel);
}

/// A row of the log.
pub type Values = [Option<Datum>; COLUMNS];
pub const COLUMNS: usize = 16;

pub struct Log {
    part: usize,
    /// Boot clock.
    since: u64,
    /// The current part has no rows yet, so it need not be rotated.
    pub is_fresh: bool,
}

impl Log {
    /// Continue in the part with the newest row.
    pub fn open() -> Result<Log> {
        let connection = Connection::open()?;
        let mut newest = (0, 0);
        for (part, sql) in NEWEST.iter().enumerate() {
            let rows = connection.run_text(sql, false)?;
            let seq = rows.get(0, 0).map_or(0, |seq| seq.value() as u64);
            newest = newest.max((seq, part));
        }
        Ok(Log { part: newest.1, since: clock::boot(), is_fresh: newest.0 == 0 })
    }

    /// Open the current part for a batch of rows.
    pub fn page(&self, connection: &Connection) -> Result<Page> {
        let open = OpenPartition::of(NAMES[self.part]);
        if open.is_none() {
            // Constraints that others have added must fail with the row that causes it, and before our commit.
            connection.run_text(c"set constraints all immediate", true)?;
        }
        Ok(Page { part: self.part, open })
    }

    pub fn is_due(&self) -> bool {
        let retention = settings::history_retention().max(SHORTEST);
        !self.is_fresh && clock::boot() > self.since + retention / 2
    }

    /// Empty the next part and continue there, in a separate transaction. None: somebody is reading that part; until
    /// they have finished, the current one grows.
    pub fn rotate(&self, extension: &Extension) -> Result<Option<Log>> {
        let next = (self.part + 1) % PARTS;
        let Some(part) = extension::internal_relation(NAMES[next]) else { return Ok(None) };
        // SAFETY: a lock on an oid, held until the transaction ends.
        if !unsafe { pg_sys::ConditionalLockRelationOid(part, pg_sys::AccessExclusiveLock as i32) } {
            return Ok(None);
        }
        let connection = Connection::open()?;
        let rows = connection.run_text(NEWEST[next], false)?;
        let lost = rows.get(0, 0).map_or(0, |seq| seq.value() as u64);
        connection.run_text(TRUNCATE[next], true)?;
        miss(extension, lost);
        Ok(Some(Log { part: next, since: clock::boot(), is_fresh: true }))
    }
}

/// The target of a batch of rows.
pub struct Page {
    part: usize,
    open: Option<OpenPartition>,
}

impl Page {
    pub fn insert(&self, connection: &Connection, row: &Values) -> Result<()> {
        match &self.open {
            Some(open) => {
                open.insert(row);
                Ok(())
            }
            None if row[COLUMNS - 1].is_some() && extension::has_internal_schema() => {
                connection.run(&INSERT_NAMED[self.part], row, true).map(|_| ())
            }
            None => connection.run(&INSERT[self.part], row, true).map(|_| ()),
        }
    }
}

/// A part with its indexes, written without the executor, whose set-up for each row costs as much as the row. Closed on
/// drop, or by the abort while an ERROR unwinds.
struct OpenPartition {
    table: pg_sys::Relation,
    indexes: pg_sys::CatalogIndexState,
}

impl OpenPartition {
    /// None if a row needs more than heap and columns: an added column, a trigger, a rule, a check, or an index on an
    /// expression. Then SQL is used.
    fn of(name: &CStr) -> Option<OpenPartition> {
        let oid = extension::internal_relation(name)?;
        // SAFETY: a table of ours, opened here and closed by `drop`; the arrays are as long as they say.
        unsafe {
            let table = pg_sys::table_open(oid, pg_sys::RowExclusiveLock as i32);
            let open = OpenPartition { table, indexes: pg_sys::CatalogOpenIndexes(table) };
            let is_plain = |index: usize| {
                let info = *(*open.indexes).ri_IndexRelationInfo.add(index);
                let relation = *(*open.indexes).ri_IndexRelationDescs.add(index);
                (*info).ii_Expressions.is_null()
                    && (*info).ii_Predicate.is_null()
                    && (*info).ii_ExclusionOps.is_null()
                    && (*(*relation).rd_index).indimmediate
            };
            let facts = &*(*table).rd_rel;
            let plain = facts.relam == pg_sys::HEAP_TABLE_AM_OID
                && !facts.relhastriggers
                && !facts.relhasrules
                && !facts.relforcerowsecurity
                && facts.relchecks == 0
                && are_our_columns((*table).rd_att)
                && (0..(*open.indexes).ri_NumIndices as usize).all(is_plain);
            plain.then_some(open)
        }
    }

    fn insert(&self, row: &Values) {
        let mut values = row.map(|value| value.unwrap_or(Datum::from(0)));
        let mut nulls = row.map(|value| value.is_none());
        // SAFETY: the table is open, and the values are of its columns.
        unsafe {
            let tuple =
                pg_sys::heap_form_tuple((*self.table).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            pg_sys::CatalogTupleInsertWithInfo(self.table, tuple, self.indexes);
            pg_sys::heap_freetuple(tuple);
        }
    }
}

/// Whether a part has exactly our columns.
///
/// # Safety
/// The columns of an open table.
unsafe fn are_our_columns(columns: pg_sys::TupleDesc) -> bool {
    // SAFETY: the caller's promise.
    let many = unsafe { (*columns).natts } as usize;
    (many == COLUMNS - 1 || many == COLUMNS)
        && TYPES[..many].iter().enumerate().all(|(at, of_type)| {
            // SAFETY: one of its columns, as above.
            let (column, is_node) = unsafe {
                (&*datum::attribute(columns, at as i32), datum::is_named(columns, at as i32, NODE))
            };
            !column.attisdropped
                && (at < COLUMNS - 1 || is_node)
                && column.atttypid == *of_type
                && column.atttypmod == -1
                && column.attgenerated == 0
                && (!column.attnotnull || NEVER_NULL.contains(&at))
        })
}

impl Drop for OpenPartition {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened in `of`; the lock stays until the transaction ends.
            unsafe {
                pg_sys::CatalogCloseIndexes(self.indexes);
                pg_sys::table_close(self.table, pg_sys::NoLock as i32);
            }
        }
    }
}
