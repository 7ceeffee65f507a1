//! What `store` does as SQL, under the rights and policies of whoever calls.

use super::column::Column;
use crate::pg::spi::{Statement, statement};
use pgrx::pg_sys;

pub const NAMES: [Column; 3] = [Column::Room, Column::MemberId, Column::ConnectionId];
/// In the order of the statements.
pub const CHOSEN: [Column; 6] =
    [Column::UserId, Column::Status, Column::State, Column::Metadata, Column::Audience, Column::Ttl];

/// The columns that are stored for a member that enters, counted from 1.
pub fn entered() -> impl Iterator<Item = i16> {
    NAMES.into_iter().chain(CHOSEN).map(|column| column as i16 + 1)
}

/// The columns that can be changed.
pub fn changed() -> impl Iterator<Item = i16> {
    CHOSEN.into_iter().map(|column| column as i16 + 1)
}

/// A statement, in two parts: up to where it lists all columns, and from there on; for the SQL of old versions, which
/// lack the later ones, and for that of this version.
macro_rules! statements {
    ($arguments:expr, $begin:expr, $end:expr) => {
        [
            statements!(@one $arguments, $begin, "", $end),
            statements!(@one $arguments, $begin, ", leaves_at, last_word, leave_reason, reverts", $end),
        ]
    };
    (@one $arguments:expr, $begin:expr, $later:expr, $end:expr) => {
        statement!(
            $arguments,
            $begin,
            " room, member_id, connection_id, user_id, status, state, metadata, audience, version, generation, joined_at, \
             updated_at, last_seen_at, expires_at, ttl, deadline, session, session_pid, key_hash",
            $later,
            $end
        )
    };
}

pub type Statements = [Statement; 2];

pub static FIND: Statements = statements!(
    [pg_sys::UUIDOID],
    "select",
    " from presence.member where key_hash operator(pg_catalog.=) $1"
);

pub static LOCK: Statements = statements!(
    [pg_sys::UUIDOID],
    "select",
    " from presence.member where key_hash operator(pg_catalog.=) $1 for no key update"
);

/// The columns that a writer may choose. The triggers fill in the rest.
pub static CHANGE: Statements = statements!(
    [
        pg_sys::UUIDOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::JSONBOID,
        pg_sys::JSONBOID,
        pg_sys::TEXTARRAYOID,
        pg_sys::INTERVALOID
    ],
    "update presence.member set user_id = $2, status = $3, state = $4, metadata = $5, audience = $6, ttl = $7 \
     where key_hash operator(pg_catalog.=) $1 returning",
    ""
);

/// The columns of an announced leave.
pub static ANNOUNCE: Statements = statements!(
    [pg_sys::UUIDOID, pg_sys::TIMESTAMPTZOID, pg_sys::JSONBOID, pg_sys::TEXTOID],
    "update presence.member set leaves_at = $2, last_word = $3, leave_reason = $4 \
     where key_hash operator(pg_catalog.=) $1 returning",
    ""
);

pub static ENTER: Statements = statements!(
    [
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::JSONBOID,
        pg_sys::JSONBOID,
        pg_sys::TEXTARRAYOID,
        pg_sys::INTERVALOID
    ],
    "insert into presence.member (room, member_id, connection_id, user_id, status, state, metadata, audience, ttl) \
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict (room, member_id, connection_id) do nothing returning",
    ""
);
