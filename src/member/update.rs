//! `presence.update`: change what is there by JSON merge patch. A late update does not bring back a member that has left: it
//! returns no row.

use super::request::Request;
use super::{checks, revert, upsert};
use crate::access::identity;
use crate::error::{Error, Result};
use crate::extension::Extension;
use crate::nodes;
use crate::pg::datum::varlena;
use crate::pg::function::Call;
use crate::shared::leases::awaited_key;
use crate::validate;
use pgrx::pg_sys::Datum;

/// SQL `presence.update(room, patch, member_id, connection_id, status, metadata, audience, ttl, revert_after)`.
fn update(call: &Call, extension: Extension) -> Result<Option<Datum>> {
    let identity = identity::current(&extension)?;
    let room = call.text(0).ok_or(Error::MissingArgument { argument: "room" })?;
    let member_id = match call.text(2) {
        Some(given) => given,
        None => identity.writer()?,
    };
    let connection_id = call.text(3).unwrap_or_default();
    validate::key(room, member_id, connection_id)?;
    let patch = call.datum(1);
    // SAFETY: declared jsonb in SQL.
    if patch.is_some_and(|patch| !unsafe { crate::pg::jsonb::is_object(patch) }) {
        return Err(Error::InvalidPatch);
    }
    checks::state_size(call.varlena(1).as_slice())?;
    if let Some(ttl) = call.interval(7) {
        validate::given_ttl(ttl)?;
    }
    let request = Request {
        verb: c"presence.update()",
        key: awaited_key(&extension, room, member_id, connection_id),
        extension,
        room: varlena(room),
        member_id: varlena(member_id),
        connection_id: varlena(connection_id),
        state: None,
        patch,
        status: call.datum(4),
        metadata: call.datum(5),
        ttl: call.datum(7),
        audience: call.datum(6),
        session: None,
        revert_after: call.interval(8).map(revert::check_interval).transpose()?,
        new_owner: None,
        owner: None,
        caller: identity.clone(),
    };
    let updated = upsert::run(&request)?;
    if updated.is_none() {
        nodes::notice::nobody_here(&request.extension, &identity, room, member_id, Some(connection_id))?;
    }
    call.at_most_one_row(updated)
}

/// SQL `_presence._merge_patch(target jsonb, patch jsonb)`.
fn merge_patch(call: &Call) -> Result<Option<Datum>> {
    let (Some(target), Some(patch)) = (call.datum(0), call.datum(1)) else { return Ok(None) };
    // SAFETY: declared jsonb in SQL.
    unsafe {
        if !crate::pg::jsonb::is_object(patch) {
            return Err(Error::InvalidPatch);
        }
        checks::state_size(call.varlena(1).as_slice())?;
        Ok(Some(crate::pg::jsonb::merge_patch(target, patch)))
    }
}

crate::verb!(presence_update, pg_finfo_presence_update, "presence.update()", update);
crate::sql_function!(presence_merge_patch, pg_finfo_presence_merge_patch, merge_patch);
