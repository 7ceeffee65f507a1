//! Members of other servers (docs/cluster.md). They are in `presence.shared`, which PostgreSQL's logical replication brings
//! here, beside this server's own copy, and are read from there: without slot or lease, for as long as their server is heard.
//! Triggers that fire where replicated rows are applied check what comes, give it versions of this server, and make its
//! events.

mod beats;
mod check;
pub mod events;
pub mod notice;
pub mod remains;
pub mod row;
pub mod scan;
mod subscription;
mod trigger_call;
mod triggers;
pub mod unreachable;
