//! Rows of `presence.member` in the order of the key, from behind a place, without the executor and without any policy: as
//! in `scan`.

use super::column::Column;
use super::index::{self, Indexed};
use super::layout::Layout;
use super::row::Row;
use crate::error::Result;
use crate::extension::Extension;
use crate::pg::datum::{text_array, varlena};
use crate::pg::role::as_role;
use crate::pg::spi::{Connection, Statement};
use pgrx::pg_sys::{self, Datum, Oid};

/// A key: room, member_id, connection_id.
pub type Place = [Vec<u8>; 3];

/// Which rows, and where to start.
#[derive(Clone)]
pub struct From<'a> {
    /// None: all rooms.
    pub room: Option<&'a [u8]>,
    /// Start after this one, which is in the room.
    pub after: Option<Place>,
}

/// A scan's condition on one of the three columns.
#[derive(Clone, Copy)]
struct Condition {
    column: usize,
    comparison: Comparison,
}

#[derive(Clone, Copy)]
enum Comparison {
    Equal,
    Greater,
}

impl Comparison {
    fn of_text(self) -> (u32, u32) {
        match self {
            Comparison::Equal => (pg_sys::BTEqualStrategyNumber, pg_sys::F_TEXTEQ),
            Comparison::Greater => (pg_sys::BTGreaterStrategyNumber, pg_sys::F_TEXT_GT),
        }
    }
}

/// Whether there is an index for this.
pub fn is_indexed(extension: &Extension) -> bool {
    // SAFETY: the table, open and locked while we look.
    unsafe {
        let table = pg_sys::table_open(extension.member, pg_sys::AccessShareLock as i32);
        let found = index::of_key(table).is_some();
        pg_sys::table_close(table, pg_sys::NoLock as i32);
        found
    }
}

/// Call `body` with each row in the active snapshot while it returns true; a row lives only during the call. False: the
/// body returned false, and there may be more.
pub fn each(
    extension: &Extension,
    from: &From,
    mut body: impl FnMut(pg_sys::HeapTuple, Layout) -> Result<bool>,
) -> Result<bool> {
    let text = |bytes: &[u8]| varlena(bytes);
    let (values, scans): (Vec<Datum>, &[&[Condition]]) = match (&from.after, from.room) {
        (None, None) => (Vec::new(), &[&[]]),
        (None, Some(room)) => (vec![text(room)], &[&[ROOM_IS]]),
        // The rows after a place: the rest of its member_id, of its room, and other rooms.
        (Some(place), room) => {
            let all: &[&[Condition]] = &[
                &[ROOM_IS, MEMBER_ID_IS, CONNECTION_ID_IS_GREATER],
                &[ROOM_IS, MEMBER_ID_IS_GREATER],
                &[ROOM_IS_GREATER],
            ];
            let scans = if room.is_some() { &all[..2] } else { all };
            (place.iter().map(|part| text(part)).collect(), scans)
        }
    };
    for conditions in scans {
        if !scan(extension, conditions, &values, &mut body)? {
            return Ok(false);
        }
    }
    Ok(true)
}

const ROOM_IS: Condition = Condition { column: 0, comparison: Comparison::Equal };
const ROOM_IS_GREATER: Condition = Condition { column: 0, comparison: Comparison::Greater };
const MEMBER_ID_IS: Condition = Condition { column: 1, comparison: Comparison::Equal };
const MEMBER_ID_IS_GREATER: Condition = Condition { column: 1, comparison: Comparison::Greater };
const CONNECTION_ID_IS_GREATER: Condition = Condition { column: 2, comparison: Comparison::Greater };

fn scan(
    extension: &Extension,
    conditions: &[Condition],
    values: &[Datum],
    body: &mut impl FnMut(pg_sys::HeapTuple, Layout) -> Result<bool>,
) -> Result<bool> {
    // SAFETY: a scan of our own table with a snapshot that is active while a function runs, ended and closed below, also
    // after an error of the body; the locks stay until the transaction ends, as those of a SELECT do.
    unsafe {
        let table = pg_sys::table_open(extension.member, pg_sys::AccessShareLock as i32);
        let layout = Layout::of((*table).rd_att)?;
        let Some((index, columns)) = index::of_key(table) else {
            pg_sys::table_close(table, pg_sys::NoLock as i32);
            return Ok(true);
        };
        let mut keys: Vec<_> = conditions.iter().map(|condition| condition.key(&columns, values)).collect();
        let index = pg_sys::index_open(index, pg_sys::AccessShareLock as i32);
        let snapshot = pg_sys::GetActiveSnapshot();
        let scan =
            pg_sys::systable_beginscan_ordered(table, index, snapshot, keys.len() as i32, keys.as_mut_ptr());
        let mut result = Ok(true);
        while let Ok(true) = result {
            let tuple = pg_sys::systable_getnext_ordered(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            result = body(tuple, layout);
        }
        pg_sys::systable_endscan_ordered(scan);
        pg_sys::index_close(index, pg_sys::NoLock as i32);
        pg_sys::table_close(table, pg_sys::NoLock as i32);
        result
    }
}

impl Condition {
    fn key(&self, columns: &[Indexed; 3], values: &[Datum]) -> pg_sys::ScanKeyData {
        let mut key = pg_sys::ScanKeyData::default();
        let column = &columns[self.column];
        let (strategy, function) = self.comparison.of_text();
        // SAFETY: a text, compared by the order of texts.
        unsafe {
            pg_sys::ScanKeyEntryInitialize(
                &mut key,
                0,
                column.number,
                strategy as u16,
                pg_sys::InvalidOid,
                column.collation,
                Oid::from(function),
                values[self.column],
            );
        }
        key
    }
}

/// If the caller sees more rows than this, reading in the order of the key finds them soon enough.
const MOST_SHARED: usize = 16_384;

/// By the index on audience, sorted by key. OFFSET 0 forces that index, whatever condition follows. Some tokens at a time: each
/// row that is found is compared with all that were asked for together, and each time the index is asked takes a while.
static SHARED: Statement = Statement {
    sql: c"select distinct on (c.room, c.member_id, c.connection_id) c.* from (select m.* from (
               select m.* from presence.member m where m.user_id operator(pg_catalog.=) $1
               union all
               select m.* from (select pg_catalog.array_agg(token.token) as some
                                from pg_catalog.unnest($2) with ordinality token
                                group by (token.ordinality operator(pg_catalog.-) 1) operator(pg_catalog./) 32) t,
                    lateral (select m.* from presence.member m
                             where m.audience operator(pg_catalog.&&) t.some offset 0) m) m
               where ($3::pg_catalog.text is null or m.room operator(pg_catalog.=) $3)
                 and ($4::pg_catalog.text is null
                      or (m.room, m.member_id, m.connection_id) operator(pg_catalog.>) ($4, $5, $6))
               limit 16385) c
           order by c.room, c.member_id, c.connection_id",
    arguments: &[
        pg_sys::TEXTOID,
        pg_sys::TEXTARRAYOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
    ],
};

/// The same for rows that belong to a user or have one of the tokens, if these are few and there is an index for them.
/// None otherwise.
pub fn each_shared(
    extension: &Extension,
    from: &From,
    user_id: Option<&[u8]>,
    tokens: &[Vec<u8>],
    mut body: impl FnMut(pg_sys::HeapTuple, Layout) -> Result<bool>,
) -> Result<Option<bool>> {
    if !is_on_audience(extension) {
        return Ok(None);
    }
    let connection = Connection::open()?;
    let place = |part: usize| from.after.as_ref().map(|place| varlena(&place[part]));
    let values = [
        user_id.map(varlena),
        Some(text_array(tokens)),
        from.room.map(varlena),
        place(0),
        place(1),
        place(2),
    ];
    // All of them, whether the caller may see them or not: visibility is checked for each.
    let rows = as_role(extension.owner_role, || connection.run(&SHARED, &values, false))?;
    if rows.count > MOST_SHARED {
        return Ok(None);
    }
    for (tuple, descriptor) in rows.tuples() {
        // SAFETY: a tuple of the query, which lives as long as the rows.
        let is_wanted = unsafe { body(tuple, Layout::of(descriptor)?)? };
        if !is_wanted {
            return Ok(Some(false));
        }
    }
    Ok(Some(true))
}

fn is_on_audience(extension: &Extension) -> bool {
    // SAFETY: as in `is_indexed`.
    unsafe {
        let table = pg_sys::table_open(extension.member, pg_sys::AccessShareLock as i32);
        let found = index::is_on_audience(table);
        pg_sys::table_close(table, pg_sys::NoLock as i32);
        found
    }
}

/// The key of a row.
pub fn place(row: &Row) -> Place {
    [Column::Room, Column::MemberId, Column::ConnectionId]
        .map(|column| row.text(column).unwrap_or_default().to_vec())
}
