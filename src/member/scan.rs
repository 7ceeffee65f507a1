//! Rows of `presence.member` by an index, without the executor and without any policy: for callers that know whose rows
//! they may look at.

use super::row::{Column, Layout, Row};
use crate::error::Result;
use crate::extension::{self, Extension};
use crate::lease::table::Key;
use crate::sqlfn::{uuid, varlena};
use pgrx::pg_sys::{self, Datum, Oid};

/// The member's row as a snapshot has it, in the current memory context.
pub fn by_key(extension: &Extension, key: &Key, snapshot: pg_sys::Snapshot) -> Result<Option<Row>> {
    let mut found = None;
    let condition = (Column::KeyHash, pg_sys::F_UUID_EQ, uuid(key.hash));
    scan(extension, extension.key_index, condition, snapshot, |tuple, layout| {
        // SAFETY: a tuple of the table; copied, because the scan's own goes with it.
        found = Some(unsafe { Row::deform(pg_sys::heap_copytuple(tuple), layout) });
        Ok(false)
    })?;
    Ok(found)
}

/// Every row of a room as the active snapshot has it; each lives only as long as the body has it. False if the table
/// has not got its primary key.
pub fn of_room(extension: &Extension, room: &[u8], mut body: impl FnMut(&Row) -> Result<()>) -> Result<bool> {
    let Some(index) = extension::relation(c"member_pkey") else { return Ok(false) };
    // SAFETY: a snapshot is active while a function runs.
    let snapshot = unsafe { pg_sys::GetActiveSnapshot() };
    scan(extension, index, (Column::Room, pg_sys::F_TEXTEQ, varlena(room)), snapshot, |tuple, layout| {
        // SAFETY: a tuple of the table, which the scan keeps until the next one.
        body(&unsafe { Row::deform(tuple, layout) }).map(|()| true)
    })?;
    Ok(true)
}

/// The rows where a column equals a value, by an index that begins with it, while the body says true.
fn scan(
    extension: &Extension,
    index: Oid,
    (column, equality, value): (Column, u32, Datum),
    snapshot: pg_sys::Snapshot,
    mut body: impl FnMut(pg_sys::HeapTuple, Layout) -> Result<bool>,
) -> Result<()> {
    // SAFETY: an index scan of our own table, ended and closed below, also after an error of the body; the lock on the
    // table stays until the transaction ends, as that of a SELECT does.
    unsafe {
        let table = pg_sys::table_open(extension.member, pg_sys::AccessShareLock as i32);
        let layout = Layout::of((*table).rd_att)?;
        let mut condition = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyEntryInitialize(
            &mut condition,
            0,
            column as i16 + 1,
            pg_sys::BTEqualStrategyNumber as u16,
            pg_sys::InvalidOid,
            // That of a text column, which orders its index; other types do not look at it.
            pg_sys::DEFAULT_COLLATION_OID,
            Oid::from(equality),
            value,
        );
        let scan = pg_sys::systable_beginscan(table, index, true, snapshot, 1, &mut condition);
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
