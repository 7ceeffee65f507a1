//! Members that were here before a crash, or on the server whose place this one takes, come back (`worker::copy`): as they
//! were, with their versions, a new lease and no event. What they were let in by is not asked again.

use super::after::lease_of;
use super::column::Column;
use super::grace;
use super::intent::{self, Guard, Intent};
use super::trigger_call::TriggerCall;
use crate::error::Result;
use crate::event::net_effect::{Change, What};
use crate::event::transaction;
use crate::lease::slot::CLAIMED;
use crate::pg::datum::uuid;
use crate::{clock, settings};
use pgrx::pg_sys::Datum;

/// The session of former session members: no session has this number.
pub const OVER: u64 = 1;

/// While the guard lives, an INSERT of these members restores them.
pub fn set(members: Vec<u128>) -> Guard {
    intent::set(members, Intent { restoring: true, ..Intent::default() })
}

/// The lease starts anew, with at least the grace of a restart; a fixed one ends when it would have.
pub fn before(firing: &TriggerCall) -> Result<Option<Datum>> {
    let mut row = firing.first.clone();
    let key = row.make_key(&firing.extension);
    transaction::pin(&key);
    row.set(Column::KeyHash, Some(uuid(key.hash)));
    let now = clock::boot();
    if grace::is_leaving(&row) {
        row.set(Column::Deadline, Some(grace::fixed_until(row.time(Column::ExpiresAt))));
    } else {
        let ttl = row.ttl().unwrap_or(0) as u64;
        let deadline = now.saturating_add(ttl.max(settings::restart_grace()).max(1));
        row.set(Column::Deadline, Some(Datum::from(deadline as i64)));
        row.set(Column::ExpiresAt, Some(Datum::from(clock::wall_of(deadline))));
    }
    firing.proceed(row)
}

/// Only the lease is recorded.
pub fn after(firing: &TriggerCall) -> Result<()> {
    let row = &firing.first;
    let mut lease = lease_of(&firing.extension, row);
    if lease.session != 0 {
        lease.deadline = CLAIMED;
    }
    let change = Change {
        key: row.key(&firing.extension),
        what: What::Quiet { lease, copied: false },
        version: lease.version,
        at: row.time(Column::UpdatedAt),
        joined_at: row.time(Column::JoinedAt),
        seen_at: row.time(Column::LastSeenAt),
        image: Default::default(),
        node: None,
        previous: None,
    };
    transaction::push(&firing.extension, change);
    Ok(())
}
