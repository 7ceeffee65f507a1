//! Rows of `presence.member` by a column, without the executor and without any policy: for callers that know whose
//! rows they may look at. By an index, if there is one; else through the whole table, as SQL would.

use super::index::Indexed;
use super::row::{Column, Layout, Row};
use crate::error::Result;
use crate::extension::Extension;
use crate::lease::table::Key;
use crate::sqlfn::{uuid, varlena};
use pgrx::pg_sys::{self, Datum, Oid};

/// The member's row as a snapshot has it, in the current memory context.
pub fn by_key(extension: &Extension, key: &Key, snapshot: pg_sys::Snapshot) -> Result<Option<Row>> {
    let mut found = None;
    let condition = (Column::KeyHash, pg_sys::F_UUID_EQ, uuid(key.hash));
    scan(extension, condition, snapshot, |tuple, layout| {
        // SAFETY: a tuple of the table; copied, because the scan's own goes with it.
        found = Some(unsafe { Row::deform(pg_sys::heap_copytuple(tuple), layout) });
        Ok(false)
    })?;
    Ok(found)
}

/// Every row of a room as the active snapshot has it; each lives only as long as the body has it.
pub fn of_room(extension: &Extension, room: &[u8], mut body: impl FnMut(&Row) -> Result<()>) -> Result<()> {
    // SAFETY: a snapshot is active while a function runs.
    let snapshot = unsafe { pg_sys::GetActiveSnapshot() };
    let condition = (Column::Room, pg_sys::F_TEXTEQ, varlena(room));
    scan(extension, condition, snapshot, |tuple, layout| {
        // SAFETY: a tuple of the table, which the scan keeps until the next one.
        body(&unsafe { Row::deform(tuple, layout) }).map(|()| true)
    })
}

/// The rows where a column equals a value, while the body says true.
fn scan(
    extension: &Extension,
    (column, equality, value): (Column, u32, Datum),
    snapshot: pg_sys::Snapshot,
    mut body: impl FnMut(pg_sys::HeapTuple, Layout) -> Result<bool>,
) -> Result<()> {
    // SAFETY: a scan of our own table, ended and closed below, also after an error of the body; the lock on the
    // table stays until the transaction ends, as that of a SELECT does.
    unsafe {
        let table = pg_sys::table_open(extension.member, pg_sys::AccessShareLock as i32);
        let layout = Layout::of((*table).rd_att)?;
        let indexed = Indexed::new(table, column);
        let index = indexed.index(table);
        let mut condition = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyEntryInitialize(
            &mut condition,
            0,
            indexed.number,
            pg_sys::BTEqualStrategyNumber as u16,
            pg_sys::InvalidOid,
            indexed.collation,
            Oid::from(equality),
            value,
        );
        let (by_index, index) = (index.is_some(), index.unwrap_or(pg_sys::InvalidOid));
        let scan = pg_sys::systable_beginscan(table, index, by_index, snapshot, 1, &mut condition);
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
