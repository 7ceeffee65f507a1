//! Whether a member is here: by its row, its slot, and what this transaction has changed.

use super::{grace, scan, session};
use crate::error::Error;
use crate::event::transaction::{self, Pending};
use crate::lease::rule::{self, RowLease, Start};
use crate::lease::slot::{Key, Lease, NEVER, alive};
use crate::pg::rows::Rows;
use crate::pg::snapshot::with_catalog_snapshot;
use crate::shared::leases::leases;
use crate::shared::{control, databases};
use crate::{clock, extension, settings};
use pgrx::pg_sys::{self, Datum};
use std::sync::atomic::Ordering::*;

/// The effect of the server's start on rows of this database.
pub fn start(database: u32) -> Start {
    let control = control();
    let are_new = databases().get(database as usize).is_some_and(|database| database.copy.trusts_rows());
    Start {
        version: if are_new { 0 } else { control.started_version.load(Relaxed) },
        grace_until: control.started_at.load(Relaxed) + settings::restart_grace(),
    }
}

/// The lease of a row that a query found; `columns` are those of version, generation, deadline and session.
pub fn lease_of_query(rows: &Rows, row: usize, columns: [usize; 4]) -> RowLease {
    let [version, generation, deadline, session] = columns.map(|column| rows.number(row, column));
    let (deadline, is_fixed) = grace::read_deadline(deadline);
    RowLease { read_since: clock::read_since(), version, generation, deadline, is_fixed, ttl: 0, session }
}

/// The valid deadline of a row, by the boot clock; None if the member is gone.
pub fn deadline(key: &Key, row: &RowLease) -> Option<u64> {
    effective_deadline(key, slot(key, row).as_ref(), row, clock::boot())
}

/// By the rule; and a row without a slot is gone if its session has ended. (A copy of a database and pg_upgrade bring
/// rows of sessions that this server never had.)
pub fn effective_deadline(key: &Key, slot: Option<&Lease>, row: &RowLease, now: u64) -> Option<u64> {
    if slot.is_none() && row.session != 0 && !session::is_live(key.database, row.session) {
        return None;
    }
    let start = start(key.database);
    match slot {
        None if row.version >= start.version => {
            now_of(key, row).and_then(|row| rule::deadline(None, &row, &start, now))
        }
        _ => rule::deadline(slot, row, &start, now),
    }
}

/// Whether the row alone shows that its member is alive. If members have not changed since the row was read, a slot can
/// only have a renewed lease.
pub fn is_shown_by_row(row: &RowLease, start: &Start, now: u64) -> bool {
    row.session == 0 && row.version >= start.version && alive(row.deadline, now)
}

/// The current lease of a row without a slot. In an old snapshot the lease may have been shortened since, or the member
/// may have left, and there may be no slot left to say so. None: this stay has ended.
fn now_of(key: &Key, row: &RowLease) -> Option<RowLease> {
    let look = || {
        let extension = extension::current()?;
        let is_own = || !matches!(transaction::pending(key), Pending::Untouched);
        if !extension.database.may_be_past(row.read_since) || is_own() {
            return Ok(Some(*row));
        }
        // SAFETY: a snapshot is active: the one that was pushed.
        let newest = || scan::by_key(&extension, key, unsafe { pg_sys::GetActiveSnapshot() });
        Ok(with_catalog_snapshot(newest)?
            .map(|row| row.lease())
            .filter(|lease| lease.generation == row.generation))
    };
    look().unwrap_or_else(|error: Error| error.raise())
}

/// The slot; for a row that this transaction has written, what the slot will be.
pub fn slot(key: &Key, row: &RowLease) -> Option<Lease> {
    pending(key).filter(|lease| lease.version == row.version).or_else(|| leases().read(key))
}

/// The lease of a member that this transaction has entered or changed, as it would be if that were committed now:
/// including heartbeats since.
pub fn pending(key: &Key) -> Option<Lease> {
    let lease = transaction::pending_lease(key)?;
    Some(leases().read(key).map_or(lease, |slot| lease.on_top_of(&slot)))
}

/// What readers are shown of a live lease.
#[derive(Clone, Copy)]
pub struct Shown {
    slot: Option<Lease>,
    deadline: u64,
    /// The time of the look-up.
    pub at: u64,
}

impl Shown {
    /// None if the member is gone, by the clock.
    pub fn look(key: &Key, row: &RowLease) -> Option<Shown> {
        let (slot, at) = (slot(key, row), clock::boot());
        let deadline = effective_deadline(key, slot.as_ref(), row, at)?;
        Some(Shown { slot, deadline, at })
    }

    /// None: the lease has no end.
    pub fn expires_at(&self) -> Option<i64> {
        (self.deadline != NEVER).then(|| clock::wall_of_at(self.deadline, self.at))
    }

    /// `written`: the value in the row. The grace after a restart may be longer than the ttl, so the result is limited
    /// to now.
    pub fn last_seen_at(&self, row: &RowLease, written: Option<i64>) -> Option<i64> {
        match rule::last_seen(self.slot.as_ref(), self.deadline, row) {
            Some(seen) => Some(clock::wall_of_at(seen.min(self.at), self.at)),
            None => written.map(|seen| seen.min(clock::wall_of_at(self.at, self.at))),
        }
    }
}

/// The wall time of a deadline; NULL if the lease has no end. (Not infinity, which most drivers cannot read.)
pub fn expires_at(deadline: u64) -> Option<Datum> {
    (deadline != NEVER).then(|| Datum::from(clock::wall_of(deadline)))
}

/// Expire a row whose lease has run out, or whose session has ended: true means that the caller must delete it. The
/// caller has the row locked.
pub fn claim(key: &Key, row: &RowLease, now: u64) -> bool {
    let slot = leases().read(key);
    if let Some(own) = pending(key).filter(|own| own.version == row.version) {
        // Our own change ran out before it was committed. If the slot of that stay has run out as well, the member is
        // gone for everybody, and no renewal may come between.
        let over = !alive(own.deadline, now);
        return over
            && slot
                .filter(|slot| slot.generation == row.generation && !alive(slot.deadline, now))
                .is_none_or(|_| leases().claim(key, row.generation, now, false));
    }
    match slot {
        None => effective_deadline(key, None, row, now).is_none(),
        // The row's commit has not reached the slot yet. It will, and then the sweeper comes back.
        Some(slot) if slot.version < row.version => false,
        Some(slot) if slot.generation != row.generation => false,
        Some(slot) => leases().claim(key, row.generation, now, session_over(key, &slot)),
    }
}

fn session_over(key: &Key, slot: &Lease) -> bool {
    slot.session != 0 && !session::is_live(key.database, slot.session)
}
