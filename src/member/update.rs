//! `presence.update`: change what is there by JSON merge patch. A late update makes no ghost: absent is no row.

use super::access::Access;
use super::holder::refuse_anothers;
use super::intent::Intent;
use super::row::Row;
use super::upsert::online_row;
use super::validate;
use crate::error::{Error, Result};
use crate::extension;
use crate::identity;
use crate::spi::{Connection, Statement};
use crate::sqlfn::{Call, uuid};
use pgrx::pg_sys::{self, Datum};

static CHANGE: Statement = Statement {
    sql: c"update presence.member m set state = case when $2 is null then m.state \
                                                     else presence._merge_patch(m.state, $2) end, \
           status = coalesce($3, m.status), metadata = coalesce($4, m.metadata), \
           audience = coalesce($5, m.audience) \
           where key_hash operator(pg_catalog.=) $1 and ($6 is null or user_id operator(pg_catalog.=) $6) \
           returning *",
    arguments: &[
        pg_sys::UUIDOID,
        pg_sys::JSONBOID,
        pg_sys::TEXTOID,
        pg_sys::JSONBOID,
        pg_sys::TEXTARRAYOID,
        pg_sys::TEXTOID,
    ],
};

/// SQL `presence.update(room, patch, member_id, connection_id, status, metadata, audience)`.
fn update(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let identity = identity::current(&extension)?;
    let room = call.text(0).ok_or(Error::MissingArgument { argument: "room" })?;
    let member_id = match call.text(2) {
        Some(given) => given,
        None => identity.writer()?,
    };
    let connection_id = call.text(3).unwrap_or_default();
    validate::key(room, member_id, connection_id)?;
    // SAFETY: declared jsonb in SQL.
    if call.datum(1).is_some_and(|patch| !unsafe { crate::jsonb::is_object(patch) }) {
        return Err(Error::InvalidPatch);
    }
    let key = extension.key(room, member_id, connection_id);
    let connection = Connection::open()?;
    let access = Access::new(&extension, &identity)?;
    let hash = Some(uuid(key.hash));
    let values = [hash, call.datum(1), call.datum(4), call.datum(5), call.datum(6), access.only_of()];
    let changed = access.write(&connection, &CHANGE, &values, Intent::default())?;
    let row = Row::of_query(&changed)?.map(|row| online_row(&connection, &row, &extension)).transpose()?;
    drop(changed);
    drop(connection);
    if row.is_none() {
        refuse_anothers(&extension, &identity, member_id, &key)?;
    }
    call.at_most_one_row(row)
}

/// SQL `presence._merge_patch(target jsonb, patch jsonb)`.
fn merge_patch(call: &Call) -> Result<Option<Datum>> {
    let (Some(target), Some(patch)) = (call.datum(0), call.datum(1)) else { return Ok(None) };
    // SAFETY: declared jsonb in SQL.
    unsafe {
        if !crate::jsonb::is_object(patch) {
            return Err(Error::InvalidPatch);
        }
        Ok(Some(crate::jsonb::merge_patch(target, patch)))
    }
}

crate::sql_function!(presence_update, pg_finfo_presence_update, update);
crate::sql_function!(presence_merge_patch, pg_finfo_presence_merge_patch, merge_patch);
