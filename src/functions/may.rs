//! `presence.may`: whether the caller could do something, without doing it.

use crate::access::authorizer::{self, Action};
use crate::access::grants::{is_executable, is_under_policies, may_call, on_all_columns, on_columns};
use crate::access::identity::{self, Identity};
use crate::access::twin::{self, Asked};
use crate::error::{Error, Result};
use crate::extension::{self, Extension};
use crate::member::{column, statements};
use crate::pg::function::Call;
use crate::validate;
use pgrx::pg_sys::{
    self, Datum, INT4OID, INT8OID, INTERVALOID, JSONBOID, Oid, TEXTARRAYOID, TEXTOID, TIMESTAMPTZOID, UUIDOID,
};
use std::ffi::CStr;

/// The columns of an existing room that `presence.set_room` changes, in the order of sql/rooms.sql.
const SET_IN_ROOM: std::ops::RangeInclusive<i16> = 2..=7;

/// Functions by name and argument types.
type Functions = &'static [(&'static CStr, &'static [Oid])];

/// The functions that `presence.list` calls, directly or through the view.
const OF_LIST: Functions = &[
    (c"_room", &[TEXTOID]),
    (c"_page", &[INT4OID]),
    (c"_start", &[TEXTARRAYOID, INT4OID]),
    (c"_is_alive", &[UUIDOID, INT8OID, INT8OID, INT8OID, INT8OID]),
    (c"_last_seen_at", &[UUIDOID, INT8OID, INT8OID, INT8OID, INT8OID, INTERVALOID, TIMESTAMPTZOID]),
    (c"_expires_at", &[UUIDOID, INT8OID, INT8OID, INT8OID, INT8OID]),
    (c"_current_status", &[TEXTOID, JSONBOID, UUIDOID, INT8OID]),
    (c"_current_state", &[JSONBOID, JSONBOID, UUIDOID, INT8OID]),
    (c"_node_name", &[]),
    (c"user_id", &[]),
    (c"is_service", &[]),
];
const OF_SET_ROOM: Functions =
    &[(c"_room", &[TEXTOID]), (c"_require_manage", &[TEXTOID]), (c"_merge_patch", &[JSONBOID, JSONBOID])];
/// The functions that the policies of `presence.room` call in addition to those of `presence.member`.
const OF_ROOM: Functions = &[(c"_default_audience", &[TEXTOID])];

fn may_call_all(functions: Functions) -> bool {
    functions.iter().all(|(name, arguments)| twin::by_name(name, arguments).is_some_and(is_executable))
}

/// Whether the caller may execute the functions of a table's policies, if these apply to it.
fn passes_policies(table: Oid) -> bool {
    !is_under_policies(table) || Asked::find().is_none_or(|asked| asked.may_be_called())
}

/// SQL `presence.may(room, action)`.
fn may(call: &Call) -> Result<Option<Datum>> {
    let room = call.text(0).ok_or(Error::MissingArgument { argument: "room" })?;
    validate::name("room", room)?;
    let action = match call.text(1).ok_or(Error::MissingArgument { argument: "action" })? {
        b"read" => Action::Read,
        b"join" => Action::Join,
        b"manage" => Action::Manage,
        _ => {
            return Err(Error::InvalidArgument {
                argument: "action",
                why: "It is read, join or manage.".into(),
            });
        }
    };
    let extension = extension::current()?;
    let identity = identity::current(&extension)?;
    let has_rights = match action {
        Action::Read => may_list(&extension),
        Action::Join => has_name(&identity) && may_upsert(&extension),
        Action::Manage => may_set_room(),
    };
    Ok(Some(Datum::from(has_rights && (identity.service || authorizer::allows(room, action)?))))
}

/// Whether there is a user_id to enter under. A service role gives one explicitly.
fn has_name(identity: &Identity) -> bool {
    let own = identity.user_id.as_deref();
    identity.service || own.is_some_and(|own| validate::name("user_id", own).is_ok())
}

/// `presence.list` reads the view, and the table with the rights of the caller.
pub fn may_list(extension: &Extension) -> bool {
    let reads_view =
        || extension::relation(c"online").is_some_and(|online| on_all_columns(online, pg_sys::ACL_SELECT));
    may_call(c"list") && may_call_all(OF_LIST) && reads_view() && reads_members(extension)
}

/// `presence.upsert` enters or changes a member.
fn may_upsert(extension: &Extension) -> bool {
    may_call(c"upsert")
        && reads_members(extension)
        && on_columns(extension.member, pg_sys::ACL_INSERT, statements::entered())
        && on_columns(extension.member, pg_sys::ACL_UPDATE, statements::changed())
}

fn reads_members(extension: &Extension) -> bool {
    on_columns(extension.member, pg_sys::ACL_SELECT, column::numbers(extension.member))
        && passes_policies(extension.member)
}

fn may_set_room() -> bool {
    may_call(c"set_room")
        && may_call_all(OF_SET_ROOM)
        && extension::relation(c"room").is_some_and(|room| {
            on_all_columns(room, pg_sys::ACL_SELECT)
                && on_all_columns(room, pg_sys::ACL_INSERT)
                && on_columns(room, pg_sys::ACL_UPDATE, SET_IN_ROOM)
                && passes_policies(room)
                && (!is_under_policies(room) || may_call_all(OF_ROOM))
        })
}

crate::sql_function!(presence_allows, pg_finfo_presence_allows, may);
