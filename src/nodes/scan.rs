//! Members of other servers by a column, without the executor and without any policy: what `member::scan` is for this
//! server's own. Where no other server was heard since the start there are none, and nothing is looked at.

use super::row::{Shared, SharedRow};
use super::unreachable;
use crate::error::Result;
use crate::extension::{self, Extension};
use crate::member::index;
use crate::pg::datum::varlena;
use crate::settings;
use crate::shared::Database;
use pgrx::pg_sys;
use std::ffi::CStr;

/// Of which other servers.
#[derive(Clone, Copy)]
pub enum Of {
    /// Those that are heard: what readers are shown.
    Heard,
    /// Those of which listeners were told: what the worker counts by.
    Told,
}

/// Whether there may be any.
pub fn are_there(database: &Database) -> bool {
    database.heard.has_peers()
}

/// Each row of a room as the active snapshot has it, while the body says true.
pub fn of_room(
    extension: &Extension,
    of: Of,
    room: &[u8],
    body: impl FnMut(&SharedRow) -> Result<bool>,
) -> Result<()> {
    each(extension, of, &[(Shared::Room, room)], body)
}

/// Those of a room with a member_id.
pub fn of_member_id(
    extension: &Extension,
    of: Of,
    room: &[u8],
    member_id: &[u8],
    body: impl FnMut(&SharedRow) -> Result<bool>,
) -> Result<()> {
    each(extension, of, &[(Shared::Room, room), (Shared::MemberId, member_id)], body)
}

/// Those of a user, in a room or in all.
pub fn of_user(
    extension: &Extension,
    of: Of,
    user_id: &[u8],
    room: Option<&[u8]>,
    body: impl FnMut(&SharedRow) -> Result<bool>,
) -> Result<()> {
    let user = (Shared::UserId, user_id);
    match room {
        Some(room) => each(extension, of, &[user, (Shared::Room, room)], body),
        None => each(extension, of, &[user], body),
    }
}

fn each(
    extension: &Extension,
    of: Of,
    conditions: &[(Shared, &[u8])],
    mut body: impl FnMut(&SharedRow) -> Result<bool>,
) -> Result<()> {
    if !are_there(extension.database) {
        return Ok(());
    }
    let own = settings::node_name();
    let mut last: Option<(Vec<u8>, Counts)> = None;
    let mut counts = |node: &[u8]| match &last {
        Some((known, answer)) if known == node => *answer,
        _ => {
            let is_own = own.as_deref() == Some(node);
            let answer = if is_own { Counts::No } else { which(extension, of, node) };
            last = Some((node.to_vec(), answer));
            answer
        }
    };
    // SAFETY: a snapshot is active while a function runs, and in a transaction of the worker.
    let snapshot = unsafe { pg_sys::GetActiveSnapshot() };
    scan(conditions, snapshot, |tuple, descriptor| {
        // SAFETY: a tuple of the table, which the scan keeps until the next one.
        let row = unsafe { SharedRow::deform(tuple, descriptor) }?;
        let counts = match counts(row.text(Shared::Node).unwrap_or_default()) {
            Counts::No => false,
            _ if row.get(Shared::Reason).is_some() => false,
            Counts::UnlessUnreachable => !unreachable::contains(extension, &row)?,
            Counts::Yes => true,
        };
        if counts { body(&row) } else { Ok(true) }
    })
}

/// Whether members of a server count.
#[derive(Clone, Copy)]
enum Counts {
    No,
    Yes,
    /// Those of which listeners were not told that they are gone.
    UnlessUnreachable,
}

fn which(extension: &Extension, of: Of, node: &[u8]) -> Counts {
    let (heard, name) = (&extension.database.heard, extension.node_hash(node));
    match of {
        Of::Heard if heard.is_heard(name) => Counts::Yes,
        Of::Told if heard.may_have_left(name) => Counts::UnlessUnreachable,
        Of::Told if heard.is_told(name) => Counts::Yes,
        _ => Counts::No,
    }
}

/// Where the row of a key lies, as the current command sees it.
pub fn place_of(key: &[(Shared, &[u8])]) -> Result<Option<pg_sys::ItemPointerData>> {
    let mut place = None;
    // SAFETY: inside a statement; registered until the scan is over.
    let snapshot = unsafe { pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot()) };
    let result = scan(key, snapshot, |tuple, _| {
        // SAFETY: a tuple of the table.
        place = Some(unsafe { (*tuple).t_self });
        Ok(false)
    });
    // SAFETY: registered above.
    unsafe { pg_sys::UnregisterSnapshot(snapshot) };
    result.map(|()| place)
}

/// The rows in which these columns have these texts, while the body says true. An index is asked by the first column: that
/// of the primary key by the room, another by the user.
fn scan(
    conditions: &[(Shared, &[u8])],
    snapshot: pg_sys::Snapshot,
    mut body: impl FnMut(pg_sys::HeapTuple, pg_sys::TupleDesc) -> Result<bool>,
) -> Result<()> {
    let Some(table) = extension::relation(c"shared") else { return Ok(()) };
    // SAFETY: a scan of our own table, ended and closed below, also after an error of the body; the lock on the table stays
    // until the transaction ends, as that of a SELECT does.
    unsafe {
        let table = pg_sys::table_open(table, pg_sys::AccessShareLock as i32);
        let index = match conditions.first() {
            Some((Shared::UserId, _)) => named(c"shared_user_id", table),
            _ => index::primary(table),
        };
        let mut keys: Vec<pg_sys::ScanKeyData> =
            conditions.iter().map(|(column, text)| condition(*column, text)).collect();
        let scan = pg_sys::systable_beginscan(
            table,
            index.unwrap_or(pg_sys::InvalidOid),
            index.is_some(),
            snapshot,
            keys.len() as i32,
            keys.as_mut_ptr(),
        );
        let mut result = Ok(true);
        while let Ok(true) = result {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            result = body(tuple, (*table).rd_att);
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(table, pg_sys::NoLock as i32);
        result.map(|_| ())
    }
}

/// An index of this name, if it is still one of the table.
///
/// # Safety
/// An open table.
unsafe fn named(name: &CStr, table: pg_sys::Relation) -> Option<pg_sys::Oid> {
    // SAFETY: the caller's promise; a look-up in the catalog.
    extension::relation(name)
        .filter(|index| unsafe { pg_sys::IndexGetRelation(*index, true) == (*table).rd_id })
}

fn condition(column: Shared, text: &[u8]) -> pg_sys::ScanKeyData {
    let mut condition = pg_sys::ScanKeyData::default();
    // SAFETY: it is filled in whole.
    unsafe {
        pg_sys::ScanKeyEntryInitialize(
            &mut condition,
            0,
            column as i16 + 1,
            pg_sys::BTEqualStrategyNumber as u16,
            pg_sys::InvalidOid,
            pg_sys::DEFAULT_COLLATION_OID,
            pg_sys::Oid::from(pg_sys::F_TEXTEQ),
            varlena(text),
        );
    }
    condition
}
