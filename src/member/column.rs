//! The columns of `presence.member`.

use pgrx::pg_sys::{self, Oid};
use std::ffi::CStr;

/// The columns, in the order of sql/tables.sql.
#[derive(Clone, Copy)]
#[repr(usize)]
pub enum Column {
    Room,
    MemberId,
    ConnectionId,
    UserId,
    Status,
    State,
    Metadata,
    Audience,
    Version,
    Generation,
    JoinedAt,
    UpdatedAt,
    LastSeenAt,
    ExpiresAt,
    Ttl,
    Deadline,
    Session,
    SessionPid,
    KeyHash,
    LeavesAt,
    LastWord,
    LeaveReason,
    Reverts,
}

pub const COLUMNS: usize = 23;

/// The number of columns since 0.1.0: these have the same places in every database.
pub const OLDEST: usize = 19;

/// The names of the later columns. SQL of an older version does not have them; after an update they follow columns that
/// others had added.
pub const LATER: [&CStr; COLUMNS - OLDEST] = [c"leaves_at", c"last_word", c"leave_reason", c"reverts"];

/// The attribute numbers of our columns.
pub fn numbers(member: Oid) -> impl Iterator<Item = i16> {
    (1..=OLDEST as i16).chain(LATER.into_iter().filter_map(move |name| number(member, name)))
}

fn number(member: Oid, name: &CStr) -> Option<i16> {
    // SAFETY: a look-up in the catalog.
    let number = unsafe { pg_sys::get_attnum(member, name.as_ptr()) };
    (number != pg_sys::InvalidAttrNumber as i16).then_some(number)
}

/// Whether the table has all later columns.
pub fn are_all_there(member: Oid) -> bool {
    LATER.into_iter().all(|name| number(member, name).is_some())
}

/// Their types.
pub const TYPES: [Oid; COLUMNS] = [
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::TEXTOID,
    pg_sys::JSONBOID,
    pg_sys::JSONBOID,
    pg_sys::TEXTARRAYOID,
    pg_sys::INT8OID,
    pg_sys::INT8OID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::INTERVALOID,
    pg_sys::INT8OID,
    pg_sys::INT8OID,
    pg_sys::INT4OID,
    pg_sys::UUIDOID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::JSONBOID,
    pg_sys::TEXTOID,
    pg_sys::JSONBOID,
];

/// The layout of the oldest columns in a tuple, by those types: length and alignment.
pub const SHAPES: [(usize, usize); OLDEST] = [
    (VARLENA, 4),
    (VARLENA, 4),
    (VARLENA, 4),
    (VARLENA, 4),
    (VARLENA, 4),
    (VARLENA, 4),
    (VARLENA, 4),
    (VARLENA, 4),
    (8, 8),
    (8, 8),
    (8, 8),
    (8, 8),
    (8, 8),
    (8, 8),
    (16, 8),
    (8, 8),
    (8, 8),
    (4, 4),
    (16, 1),
];

/// In place of a length.
pub const VARLENA: usize = 0;
