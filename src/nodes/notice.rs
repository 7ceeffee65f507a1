//! Only the server where a member is can change it. A moderator who finds nobody here is told where to ask.

use super::row::Shared;
use super::scan::{self, Of};
use crate::access::identity::Identity;
use crate::error::{Result, printable};
use crate::extension::Extension;
use std::collections::BTreeSet;

/// A service role has found no such member.
pub fn nobody_here(
    extension: &Extension,
    caller: &Identity,
    room: &[u8],
    member_id: &[u8],
    connection_id: Option<&[u8]>,
) -> Result<()> {
    if !caller.service || !scan::are_there(extension.database) {
        return Ok(());
    }
    let mut nodes = BTreeSet::new();
    scan::of_member_id(extension, Of::Heard, room, member_id, |row| {
        if connection_id.is_none_or(|wanted| row.text(Shared::ConnectionId) == Some(wanted)) {
            nodes.extend(row.text(Shared::Node).map(printable));
        }
        Ok(true)
    })?;
    for node in nodes {
        pgrx::notice!("this member is on server \"{node}\": only there it can be changed");
    }
    Ok(())
}
