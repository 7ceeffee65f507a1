//! What listeners here are told of members of other servers.

use super::row::{Shared, SharedRow};
use crate::clock;
use crate::event::net_effect::{Change, What};
use crate::event::record::Reason;
use crate::event::transaction::{self, issue_version};
use crate::extension::Extension;
use crate::lease::slot::{Key, Lease};

/// What decides who sees a member.
pub const VISIBILITY: [Shared; 2] = [Shared::Audience, Shared::UserId];

pub fn key_of(extension: &Extension, row: &SharedRow) -> Key {
    let text = |column| row.text(column).unwrap_or_default();
    let [node, room] = [Shared::Node, Shared::Room].map(text);
    extension.key_elsewhere(node, room, text(Shared::MemberId), text(Shared::ConnectionId))
}

pub fn entered(extension: &Extension, row: &SharedRow) {
    let at = row.number(Shared::UpdatedAt);
    push(extension, row, What::Enter { lease: lease_of(row) }, row.number(Shared::Version) as u64, at);
}

pub fn changed(extension: &Extension, old: &SharedRow, row: &SharedRow) {
    let (version, at) = (row.number(Shared::Version) as u64, row.number(Shared::UpdatedAt));
    let reason = |row: &SharedRow| {
        row.text(Shared::Reason).map(|reason| Reason::from_name(reason).unwrap_or(Reason::Left))
    };
    match (reason(old), reason(row)) {
        (None, Some(reason)) => push(extension, row, What::Leave { reason }, version, at),
        (Some(_), None) => entered(extension, row),
        (None, None) if version != old.number(Shared::Version) as u64 => {
            let hidden = !row.same(old, &VISIBILITY);
            let what = What::Update { lease: lease_of(row), old: hidden.then(|| old.image()) };
            push(extension, row, what, version, at);
        }
        _ => {}
    }
}

/// One is gone of which nothing was said before.
pub fn left(extension: &Extension, row: &SharedRow, reason: Reason) {
    let version = issue_version(&key_of(extension, row), false);
    push(extension, row, What::Leave { reason }, version, clock::now());
}

/// The server of one that was told as gone is heard again.
pub fn returned(extension: &Extension, row: &SharedRow) {
    let node = row.text(Shared::Node).unwrap_or_default();
    let own = row.number(Shared::Version) as u64;
    let version = extension.database.heard.version_here(extension.node_hash(node), own);
    push(extension, row, What::Enter { lease: lease_of(row) }, version, clock::now());
}

fn push(extension: &Extension, row: &SharedRow, what: What, version: u64, at: i64) {
    let change = Change {
        key: key_of(extension, row),
        what,
        version,
        at,
        joined_at: row.number(Shared::JoinedAt),
        seen_at: row.number(Shared::LastSeenAt),
        image: row.image(),
        node: row.text(Shared::Node).map(|node| node.into()),
        previous: None,
    };
    transaction::push(extension, change);
}

/// Of a member elsewhere only this is known of its lease, and nobody keeps it.
fn lease_of(row: &SharedRow) -> Lease {
    Lease {
        version: row.number(Shared::Version) as u64,
        generation: row.number(Shared::Generation) as u64,
        ..Lease::default()
    }
}
