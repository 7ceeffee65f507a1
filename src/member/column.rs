//! The columns of `presence.member`.

use pgrx::pg_sys::{self, Oid};

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
}

pub const COLUMNS: usize = 19;

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
];
