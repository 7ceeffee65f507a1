//! Which lease counts: that of the slot or that of the row. One rule, for readers, writers and the sweeper.
//!
//! ```text
//!   slot                       what counts
//!   none, row from before      the grace after a start: the file of saved leases did not have it; but the row, if
//!     the server's start       its lease is fixed
//!   none, row newer than that  the row: the slots were full, or the commit is on its way to the slot
//!   older than the row         the row: our own uncommitted change, or a commit on its way to the slot
//!   of the row's version       the slot
//!   newer, same generation     the slot, if we read with a snapshot from before that change: the member is still there
//!                              (else gone: whoever knows a row from the past learns nothing of what it became)
//!   newer, other generation    gone: we read with an old snapshot
//! ```

use super::slot::{CLAIMED, Lease, NEVER, TOMBSTONE, alive};

/// The lease as stored in the row. Times are microseconds of the boot clock.
#[derive(Clone, Copy, Debug)]
pub struct RowLease {
    /// The time of the reader's snapshot.
    pub read_since: u64,
    pub version: u64,
    pub generation: u64,
    pub deadline: u64,
    /// An announced leave: nothing moves the deadline.
    pub is_fixed: bool,
    pub ttl: u64,
    /// 0 is none.
    pub session: u64,
}

/// How the server's start affects leases without a slot.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// Lower versions were issued before the start.
    pub version: u64,
    /// Their members are kept until then.
    pub grace_until: u64,
}

/// The valid deadline, by the boot clock; None if the member is gone.
pub fn deadline(slot: Option<&Lease>, row: &RowLease, start: &Start, now: u64) -> Option<u64> {
    let word = match slot {
        None if row.version >= start.version => row.deadline,
        None if row.session != 0 => CLAIMED,
        None if row.is_fixed => row.deadline,
        None => start.grace_until,
        Some(slot) if slot.version < row.version => row.deadline,
        Some(slot) if slot.version == row.version => slot.deadline,
        Some(slot) if slot.generation == row.generation && row.read_since <= slot.changed_at => slot.deadline,
        Some(_) => TOMBSTONE,
    };
    alive(word, now).then_some(word)
}

/// When the member was last seen, for a valid deadline. None: as in the row.
pub fn last_seen(slot: Option<&Lease>, deadline: u64, row: &RowLease) -> Option<u64> {
    match (deadline, slot) {
        (NEVER, Some(slot)) => Some(slot.last_seen),
        (NEVER, None) => None,
        (deadline, Some(slot)) if slot.deadline == deadline && slot.last_seen > 0 => Some(slot.last_seen),
        _ if row.is_fixed => None,
        (deadline, _) => Some(deadline.saturating_sub(row.ttl)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Start = Start { version: 100, grace_until: 5_000 };

    fn slot(version: u64, generation: u64, deadline: u64) -> Lease {
        Lease {
            deadline,
            last_seen: 0,
            ttl: 10,
            version,
            generation,
            owner: 0,
            session: 0,
            reverts_at: 0,
            changed_at: 50,
            pins: 0,
        }
    }

    fn row(version: u64, generation: u64, deadline: u64) -> RowLease {
        RowLease { read_since: 50, version, generation, deadline, is_fixed: false, ttl: 10, session: 0 }
    }

    #[test]
    fn equal_versions_read_the_slot() {
        assert_eq!(deadline(Some(&slot(200, 200, 900)), &row(200, 200, 500), &START, 600), Some(900));
        assert_eq!(deadline(Some(&slot(200, 200, CLAIMED)), &row(200, 200, 900), &START, 600), None);
    }

    #[test]
    fn a_newer_row_reads_the_row() {
        assert_eq!(deadline(Some(&slot(200, 200, 300)), &row(201, 200, 900), &START, 600), Some(900));
        assert_eq!(deadline(Some(&slot(200, 200, 900)), &row(201, 200, 500), &START, 600), None);
    }

    #[test]
    fn an_older_row_lives_on_only_in_its_own_generation() {
        assert_eq!(deadline(Some(&slot(202, 200, 900)), &row(201, 200, 500), &START, 600), Some(900));
        assert_eq!(deadline(Some(&slot(202, 202, 900)), &row(201, 200, 900), &START, 600), None);
        assert_eq!(deadline(Some(&slot(202, 202, TOMBSTONE)), &row(201, 200, 900), &START, 600), None);
    }

    #[test]
    fn a_row_from_the_past_says_nothing_to_a_new_snapshot() {
        let late = RowLease { read_since: 51, ..row(201, 200, 500) };
        assert_eq!(deadline(Some(&slot(202, 200, 900)), &late, &START, 600), None);
    }

    #[test]
    fn rows_from_before_the_start_get_the_grace_unless_bound_to_a_session() {
        assert_eq!(deadline(None, &row(99, 99, 10), &START, 600), Some(5_000));
        assert_eq!(deadline(None, &row(99, 99, 10), &START, 5_000), None);
        assert_eq!(deadline(None, &RowLease { session: 7, ..row(99, 99, NEVER) }, &START, 600), None);
    }

    #[test]
    fn a_fixed_lease_gets_no_grace() {
        let fixed = RowLease { is_fixed: true, ..row(99, 99, 700) };
        assert_eq!(deadline(None, &fixed, &START, 600), Some(700));
        assert_eq!(deadline(None, &fixed, &START, 700), None);
        assert_eq!(deadline(None, &RowLease { session: 7, ..fixed }, &START, 600), None);
    }

    #[test]
    fn the_row_says_when_the_member_was_seen_last_where_the_slot_does_not() {
        let fixed = RowLease { is_fixed: true, ..row(200, 200, 700) };
        assert_eq!(last_seen(None, 700, &fixed), None);
        assert_eq!(last_seen(Some(&slot(200, 200, 700)), 700, &fixed), None);
        assert_eq!(last_seen(Some(&Lease { last_seen: 5, ..slot(200, 200, 700) }), 700, &fixed), Some(5));
        assert_eq!(last_seen(None, 700, &row(200, 200, 700)), Some(690));
    }

    #[test]
    fn no_slot_reads_the_row() {
        assert_eq!(deadline(None, &row(150, 150, 601), &START, 600), Some(601));
        assert_eq!(deadline(None, &row(150, 150, 600), &START, 600), None);
    }
}
