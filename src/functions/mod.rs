//! SQL functions other than the verbs for a single member; their SQL side is in `sql/`.

pub mod arguments;
pub mod bulk;
pub mod channels;
pub mod cluster;
pub mod copy;
pub mod identity;
pub mod lease;
pub mod list;
pub mod listen;
pub mod may;
pub mod monitoring;
pub mod occupancy;
pub mod revert;
pub mod room;
pub mod room_row;
pub mod status_rank;
