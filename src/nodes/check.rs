//! Whether a row that a peer sends is what we could have written ourselves.

use super::row::{Shared, SharedRow};
use crate::error::{Error, Result, printable};
use crate::pg::datum::texts_of;
use crate::validate;

const NEEDED: [(Shared, &str); 7] = [
    (Shared::UserId, "user_id"),
    (Shared::State, "state"),
    (Shared::Metadata, "metadata"),
    (Shared::Audience, "audience"),
    (Shared::JoinedAt, "joined_at"),
    (Shared::UpdatedAt, "updated_at"),
    (Shared::LastSeenAt, "last_seen_at"),
];

const TIMES: [(Shared, &str); 3] = [
    (Shared::JoinedAt, "joined_at"),
    (Shared::UpdatedAt, "updated_at"),
    (Shared::LastSeenAt, "last_seen_at"),
];

/// Sizes are the owner's business: to skip a member for its size would be a hole that nobody sees.
fn check(row: &SharedRow) -> Result<()> {
    let text = |column| row.text(column).unwrap_or_default();
    let room = text(Shared::Room);
    name(text(Shared::Node))?;
    validate::key(room, text(Shared::MemberId), text(Shared::ConnectionId))?;
    for (column, argument) in NEEDED {
        row.get(column).ok_or(Error::MissingArgument { argument })?;
    }
    for (column, argument) in TIMES {
        if matches!(row.number(column), i64::MIN | i64::MAX) {
            return Err(Error::InvalidArgument { argument, why: "It is infinite.".into() });
        }
    }
    validate::name("user_id", text(Shared::UserId))?;
    validate::status(text(Shared::Status))?;
    if let Some(audience) = row.get(Shared::Audience) {
        // SAFETY: a text[].
        let tokens = unsafe { texts_of(audience) };
        let tokens = tokens.map_err(|why| Error::InvalidAudience { why: why.into() })?;
        validate::audience(tokens.iter(), room)?;
    }
    Ok(())
}

fn name(node: &[u8]) -> Result<()> {
    if node.is_empty() {
        return Err(Error::InvalidName { argument: "node", why: "It is empty.".into() });
    }
    validate::node_name(node)
}

/// Whether that is a name that a server can have; else with a line in the log.
pub fn is_name(node: &[u8]) -> bool {
    let Err(error) = name(node) else { return true };
    pgrx::log!("presence_ext: a beat of server \"{}\" is left out: {}", printable(node), error.text());
    false
}

/// The same. What is not is left out, with a line in the log; the stream goes on.
pub fn is_sound(row: &SharedRow) -> bool {
    let Err(error) = check(row) else { return true };
    let [node, room] =
        [Shared::Node, Shared::Room].map(|column| printable(row.text(column).unwrap_or_default()));
    pgrx::log!(
        "presence_ext: a member that server \"{node}\" sends for room \"{room}\" is left out: {}",
        error.text()
    );
    false
}
