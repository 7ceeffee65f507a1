//! Grace before leaving: members that have announced to leave after a while, unless an upsert comes first.
//!
//! `leaves_at`, `last_word` and `leave_reason` of the row say what was said. The lease of such a member is fixed: it ends
//! when it would have anyway, or at `leaves_at` if that is earlier, and nothing moves it. So readers need not know of any
//! of this. In a slot the ttl of a fixed lease is 0; the deadline in the row is its wall time, negated, for it must hold
//! over a restart where there is no slot. When it was last seen stands in the row.

use super::column::Column;
use super::intent::{Grace, Intent};
use super::row::Row;
use super::store::Store;
use super::tries::Tries;
use super::{checks, delete, liveness, session};
use crate::access::identity::Identity;
use crate::access::ownership::may_write;
use crate::clock;
use crate::error::{Error, Result};
use crate::event::record::Reason;
use crate::extension::Extension;
use crate::lease::rule;
use crate::lease::slot::{Key, NEVER};
use crate::pg::datum::varlena;
use pgrx::pg_sys::{self, Datum};

/// The columns that describe an announced leave.
pub const COLUMNS: [Column; 3] = [Column::LeavesAt, Column::LastWord, Column::LeaveReason];

/// When the lease of a row with this deadline ends, by the boot clock, and whether it is fixed.
pub fn read_deadline(word: u64) -> (u64, bool) {
    match word as i64 {
        wall if wall < -1 => (clock::boot_of(-wall), true),
        _ => (word, false),
    }
}

/// The deadline column of a row whose lease is fixed.
pub fn fixed_until(wall: i64) -> Datum {
    Datum::from(-wall)
}

pub fn is_leaving(row: &Row) -> bool {
    row.get(Column::LeavesAt).is_some()
}

/// Whether both describe the same leave.
pub fn same(row: &Row, other: &Row) -> bool {
    row.same(other, &COLUMNS)
}

/// Check and set the columns of an announced leave.
pub fn check(identity: &Identity, old: Option<&Row>, row: &mut Row, intent: &Intent) -> Result<()> {
    if intent.grace == Grace::Over || !is_leaving(row) {
        COLUMNS.into_iter().for_each(|column| row.set(column, None));
        return Ok(());
    }
    check_moment(row)?;
    let is_new = |column| old.is_none_or(|old| !row.same(old, &[column]));
    if is_new(Column::LastWord) {
        checks::state_size(row.varlena(Column::LastWord).as_slice())?;
    }
    if is_new(Column::LeaveReason)
        && delete::reason(identity, row.text(Column::LeaveReason))? == Some(Reason::Left)
    {
        row.set(Column::LeaveReason, None);
    }
    Ok(())
}

pub fn check_moment(row: &Row) -> Result<()> {
    if is_leaving(row) && matches!(row.time(Column::LeavesAt), i64::MIN | i64::MAX) {
        return Err(Error::InvalidArgument { argument: "leaves_at", why: "It is infinite.".into() });
    }
    Ok(())
}

/// The lease of a row with an announced leave, in place of the one that the write gave it. `old`: the row before, and
/// when its lease would have ended.
pub fn fix(key: &Key, old: Option<(&Row, u64)>, row: &mut Row) {
    if !is_leaving(row) {
        return;
    }
    let (lease, seen) = match old {
        None => (row.number(Column::Deadline), row.time(Column::LastSeenAt)),
        Some((old, _)) if is_leaving(old) => (own_deadline(old), old.time(Column::LastSeenAt)),
        Some((old, deadline)) => (deadline, last_seen_at(key, old, deadline)),
    };
    let now = clock::boot();
    let deadline = match old {
        Some((old, deadline)) if row.same(old, &[Column::LeavesAt]) => deadline,
        _ => {
            let leaves_at = row.time(Column::LeavesAt).max(clock::wall_of(now));
            row.set(Column::LeavesAt, Some(Datum::from(leaves_at)));
            lease.min(clock::boot_of(leaves_at))
        }
    };
    let ends = clock::wall_of(deadline);
    row.set(Column::Deadline, Some(fixed_until(ends)));
    row.set(Column::ExpiresAt, Some(Datum::from(ends)));
    row.set(Column::LastSeenAt, Some(Datum::from(seen)));
}

/// When the row's lease would end without the leave.
fn own_deadline(row: &Row) -> u64 {
    let seen = clock::boot_of(row.time(Column::LastSeenAt));
    row.ttl().map_or(NEVER, |ttl| seen.saturating_add(ttl as u64))
}

fn last_seen_at(key: &Key, row: &Row, deadline: u64) -> i64 {
    let lease = row.lease();
    let seen = rule::last_seen(liveness::slot(key, &lease).as_ref(), deadline, &lease);
    seen.map_or_else(|| row.time(Column::LastSeenAt), clock::wall_of)
}

/// Reason and time of an announced leave whose lease is over.
pub fn end(extension: &Extension, key: &Key, row: &Row) -> (Reason, i64) {
    let (now, ends) = (clock::now(), row.time(Column::ExpiresAt));
    let session = row.number(Column::Session);
    let is_session_over = session != 0 && !session::is_live(extension.database_index, session);
    let slot = liveness::slot(key, &row.lease()).filter(|slot| slot.version == row.number(Column::Version));
    let ended = match slot {
        // By the current clock. (A slot that was saved over a restart knows the time only for members of sessions.)
        Some(slot) if slot.changed_at > 0 || is_session_over => clock::wall_of(slot.ended()),
        _ => ends,
    };
    let reason = match row.text(Column::LeaveReason) {
        _ if is_session_over && ended.min(now) < ends => return (Reason::Disconnected, now),
        _ if ends < row.time(Column::LeavesAt) => Reason::Expired,
        Some(given) => Reason::from_name(given).unwrap_or(Reason::Left),
        None => Reason::Left,
    };
    (reason, ended.min(now))
}

/// A leave to be announced.
pub struct Leave {
    /// Grace in microseconds.
    pub after: u64,
    pub reason: Option<Reason>,
    /// jsonb bytes
    pub last_word: Option<Vec<u8>>,
}

impl Leave {
    /// Announce the leave of these members of the caller, in the common lock order; `managing`: also of other users'
    /// members. Returns how many will leave.
    pub fn announce(&self, store: &Store, members: &[u128], managing: bool) -> Result<usize> {
        // SAFETY: a C string; raises in a READ ONLY transaction, also where there is nobody.
        unsafe { pg_sys::PreventCommandIfReadOnly(c"presence.delete()".as_ptr()) };
        if !store.extension().has_later_columns {
            return Err(Error::TooManyColumns);
        }
        let mut count = 0;
        for hash in members {
            let announced = || self.announce_one(store, &store.extension().key_of(*hash), managing);
            store.connection().scratch(|| {
                count += usize::from(announced()?);
                Ok(())
            })?;
        }
        Ok(count)
    }

    fn announce_one(&self, store: &Store, key: &Key, managing: bool) -> Result<bool> {
        let owner = |row: &Row| row.text(Column::UserId).unwrap_or_default().to_vec();
        let is_meant = |row: &Row| {
            liveness::deadline(key, &row.lease()).is_some()
                && (managing || may_write(store.caller(), &owner(row)))
        };
        let (mut tries, mut anew) = (Tries::new(key), false);
        loop {
            let Some(found) = store.find(key, anew)?.filter(is_meant) else { return Ok(false) };
            if let Some(held) = store.lock(&found)?.filter(is_meant) {
                let intent = Intent { grace: Grace::Announced, ..Intent::default() };
                return Ok(store.change(&held, self.said_by(&held), intent)?.is_some());
            }
            // If it is gone meanwhile somebody else may have entered.
            if !tries.again() {
                return Ok(false);
            }
            anew = true;
        }
    }

    fn said_by(&self, held: &Row) -> Row {
        let mut row = held.clone();
        let leaves_at = clock::wall_of(clock::boot().saturating_add(self.after));
        let reason = self.reason.and_then(Reason::name);
        row.set(Column::LeavesAt, Some(Datum::from(leaves_at)));
        row.set(Column::LastWord, self.last_word.as_deref().map(varlena));
        row.set(Column::LeaveReason, reason.map(|reason| varlena(reason.as_bytes())));
        row
    }
}
