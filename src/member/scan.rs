//! Rows of `presence.member` by a column, without the executor and without any policy: for callers that know whose
//! rows they may look at. By an index, if there is one; else through the whole table, as SQL would.

use super::column::Column;
use super::index;
use super::layout::Layout;
use super::row::Row;
use crate::error::Result;
use crate::extension::Extension;
use crate::lease::slot::Key;
use crate::pg::datum::{uuid, varlena};
use pgrx::pg_sys::{self, Datum, Oid};

/// The member's row in a snapshot, in the current memory context.
pub fn by_key(extension: &Extension, key: &Key, snapshot: pg_sys::Snapshot) -> Result<Option<Row>> {
    let mut found = None;
    let condition = (Column::KeyHash, pg_sys::F_UUID_EQ, uuid(key.hash));
    scan(extension, condition, None, snapshot, |tuple, layout| {
        // SAFETY: a tuple of the table; copied, because the scan's own goes with it.
        found = Some(unsafe { Row::deform(pg_sys::heap_copytuple(tuple), layout) });
        Ok(false)
    })?;
    Ok(found)
}

/// Call `body` with each row of a room in the active snapshot while it returns true; a row lives only during the call.
pub fn of_room(extension: &Extension, room: &[u8], body: impl FnMut(&Row) -> Result<bool>) -> Result<()> {
    each(extension, (Column::Room, room), None, body)
}

/// The rows of a room with this member_id.
pub fn of_member_id(
    extension: &Extension,
    room: &[u8],
    member_id: &[u8],
    body: impl FnMut(&Row) -> Result<bool>,
) -> Result<()> {
    each(extension, (Column::Room, room), Some((Column::MemberId, member_id)), body)
}

/// The rows of a user, in one room or all.
pub fn of_user(
    extension: &Extension,
    user_id: &[u8],
    room: Option<&[u8]>,
    body: impl FnMut(&Row) -> Result<bool>,
) -> Result<()> {
    each(extension, (Column::UserId, user_id), room.map(|room| (Column::Room, room)), body)
}

fn each(
    extension: &Extension,
    (column, text): (Column, &[u8]),
    second: Option<(Column, &[u8])>,
    mut body: impl FnMut(&Row) -> Result<bool>,
) -> Result<()> {
    // SAFETY: a snapshot is active while a function runs.
    let snapshot = unsafe { pg_sys::GetActiveSnapshot() };
    let condition = (column, pg_sys::F_TEXTEQ, varlena(text));
    let and = second.map(|(column, text)| (column, varlena(text)));
    scan(extension, condition, and, snapshot, |tuple, layout| {
        // SAFETY: a tuple of the table, which the scan keeps until the next one.
        let row = unsafe { Row::deform(tuple, layout) };
        // The index may cover the first column only.
        let is_meant = second.is_none_or(|(column, text)| row.text(column) == Some(text));
        if is_meant { body(&row) } else { Ok(true) }
    })
}

/// Call `body` with the rows where a column equals a value, and another one a text, while it returns true. The second
/// condition is applied only as far as the index can check it.
pub(super) fn scan(
    extension: &Extension,
    (column, equality, value): (Column, u32, Datum),
    and: Option<(Column, Datum)>,
    snapshot: pg_sys::Snapshot,
    mut body: impl FnMut(pg_sys::HeapTuple, Layout) -> Result<bool>,
) -> Result<()> {
    // SAFETY: a scan of our own table, ended and closed below, also after an error of the body; the lock on the
    // table stays until the transaction ends, as that of a SELECT does.
    unsafe {
        let table = pg_sys::table_open(extension.member, pg_sys::AccessShareLock as i32);
        let layout = Layout::of((*table).rd_att)?;
        let (indexed, index) = index::of(table, column);
        let mut conditions = [pg_sys::ScanKeyData::default(); 2];
        let mut number = 0;
        let mut add = |column: i16, equality: u32, value| {
            pg_sys::ScanKeyEntryInitialize(
                &mut conditions[number],
                0,
                column,
                pg_sys::BTEqualStrategyNumber as u16,
                pg_sys::InvalidOid,
                indexed.collation,
                Oid::from(equality),
                value,
            );
            number += 1;
        };
        add(indexed.number, equality, value);
        if let (Some((second, text)), Some((_, key))) = (and, index)
            && key == second as i16 + 1
        {
            add(key, pg_sys::F_TEXTEQ, text);
        }
        let by_index = index.is_some();
        let index = index.map_or(pg_sys::InvalidOid, |(index, _)| index);
        let scan = pg_sys::systable_beginscan(
            table,
            index,
            by_index,
            snapshot,
            number as i32,
            conditions.as_mut_ptr(),
        );
        let mut result = Ok(true);
        while let Ok(true) = result {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            result = body(tuple, layout);
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(table, pg_sys::NoLock as i32);
        result.map(|_| ())
    }
}
