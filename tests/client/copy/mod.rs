//! The logged copy of the members, which exists if `presence.node_name` is set.

mod crash;
mod faults;
mod rows;
mod standby;

use crate::common::{Cluster, Session, until};

/// A server named `a`, with a short beat interval.
pub fn named(options: &[&str]) -> Cluster {
    let name = ["presence.node_name=a", "presence.node_beat=200ms"];
    Cluster::with(&[&name[..], options].concat())
}

/// The columns that a restore needs, from the member table or from its copy.
fn rows(session: &mut Session, table: &str, is_bound: &str) -> Vec<Vec<String>> {
    session.rows(&format!(
        "select room, member_id, connection_id, user_id, status, state, metadata, audience, version, generation, joined_at,
                updated_at, ttl, {is_bound}
         from {table} order by 1, 2, 3"
    ))
}

/// Waits until the copy matches the table exactly.
pub fn until_copied(service: &mut Session) {
    until("the copy has what the table has", || {
        rows(service, "presence.member", "session is not null") == rows(service, "presence.shared", "session")
    });
}
