//! The lease table under loom, which runs each test in every interleaving of its threads, and with every value that the
//! memory model lets a load see. `src/lease/table_tests.rs` can only sample these.
//!
//! `scripts/loom` runs them. The table's locks are not under test here: in the server PostgreSQL provides them.

#![cfg(test)]

#[allow(dead_code)]
#[path = "../../../src/lease/slot.rs"]
mod slot;
#[allow(dead_code)]
#[path = "../../../src/lease/table.rs"]
mod table;

mod atomic {
    pub use loom::sync::atomic::*;
}

use loom::sync::{Arc, RwLock};
use loom::thread;
use slot::*;
use table::*;

struct LoomLocks(Vec<RwLock<()>>);

/// The number of partitions that have a lock. The tests use only keys in these.
const LOCKS: usize = 4;

impl Locks for LoomLocks {
    fn shared<T>(&self, partition: usize, body: impl FnOnce() -> T) -> T {
        let _guard = self.0[partition].read().unwrap();
        body()
    }

    fn exclusive<T>(&self, partition: usize, body: impl FnOnce() -> T) -> T {
        let _guard = self.0[partition].write().unwrap();
        body()
    }
}

type Table = Arc<LeaseTable<LoomLocks>>;

const OWNER: u64 = 7;
const TTL: u64 = 100;

fn leaked<T: Default>(count: usize) -> &'static [T] {
    Box::leak((0..count).map(|_| T::default()).collect::<Vec<T>>().into_boxed_slice())
}

fn table(slots: usize) -> Table {
    let table = LeaseTable {
        header: Box::leak(Box::default()),
        buckets: leaked(bucket_count(slots)),
        slots: leaked(slots),
        earliest: leaked(PARTITIONS),
        locks: LoomLocks((0..LOCKS).map(|_| RwLock::new(())).collect()),
    };
    table.initialize();
    Arc::new(table)
}

/// Each number is a key in another partition, so the threads of different keys share only the free list.
fn key(number: usize) -> Key {
    assert!(number < LOCKS);
    Key { database: 0, relation: 1, hash: number as u128 }
}

fn entered(version: u64, now: u64) -> Lease {
    Lease {
        deadline: now + TTL,
        last_seen: now,
        ttl: TTL,
        version,
        generation: version,
        owner: OWNER,
        session: 0,
        reverts_at: 0,
        changed_at: 0,
        pins: 0,
    }
}

/// Every interleaving with at most this many preemptions: bugs need few, and without a bound it takes hours.
fn in_every_order(preemptions: usize, test: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.max_branches = 100_000;
    model.check(test);
}

/// Enter, and leave at once.
fn come_and_go(table: &Table, member: usize) {
    if table.apply_present(&key(member), &entered(1, 1_000)) == Applied::Done {
        assert_eq!(table.read(&key(member)).unwrap().version, 1);
        assert_eq!(table.apply_gone(&key(member), 2), Applied::Done);
        assert!(table.free(&key(member), 2));
    }
}

/// Each present member has a slot of its own, and all other slots are free.
fn assert_whole(table: &Table, present: &[usize]) {
    for member in present {
        assert_eq!(table.read(&key(*member)), Some(entered(1, 1_000)), "another took the slot of {member}");
    }
    assert_eq!(table.used(), present.len() as u64);
    let absent: Vec<usize> = (0..LOCKS).filter(|member| !present.contains(member)).collect();
    let left = table.capacity() - present.len();
    for (nth, member) in absent.iter().enumerate() {
        let expected = if nth < left { Applied::Done } else { Applied::Full };
        assert_eq!(table.apply_present(&key(*member), &entered(1, 1_000)), expected, "slot {nth} of {left}");
    }
    for member in present {
        assert_eq!(table.read(&key(*member)), Some(entered(1, 1_000)), "a slot was handed out twice");
    }
}

/// One thread takes the first slot of the free list, while another takes the first two and returns the first. Without
/// the tag, the first thread's compare-and-swap would put the second slot, which is in use, at the head of the list.
#[test]
fn the_free_list_survives_a_b_a() {
    in_every_order(2, || {
        let table = table(3);
        let other = {
            let table = table.clone();
            thread::spawn(move || {
                assert_eq!(table.apply_present(&key(1), &entered(1, 1_000)), Applied::Done);
                assert_eq!(table.apply_present(&key(2), &entered(1, 1_000)), Applied::Done);
                assert_eq!(table.apply_gone(&key(1), 2), Applied::Done);
                assert!(table.free(&key(1), 2));
            })
        };
        assert_eq!(table.apply_present(&key(0), &entered(1, 1_000)), Applied::Done);
        other.join().unwrap();
        assert_whole(&table, &[0, 2]);
    });
}

/// A table of one slot: a thread that does not get it is told so, and afterwards the slot is free again.
#[test]
fn the_last_slot_goes_to_one() {
    in_every_order(3, || {
        let table = table(1);
        let other = {
            let table = table.clone();
            thread::spawn(move || come_and_go(&table, 1))
        };
        come_and_go(&table, 0);
        other.join().unwrap();
        assert_whole(&table, &[]);
    });
}

/// A renewal before the deadline races with an expiry after it: exactly one of them wins.
#[test]
fn a_lease_is_renewed_or_claimed() {
    in_every_order(4, || {
        let table = table(2);
        table.apply_present(&key(0), &entered(1, 1_000));
        let sweepers: Vec<_> = (0..2)
            .map(|_| {
                let table = table.clone();
                thread::spawn(move || table.claim(&key(0), 1, 1_100, false))
            })
            .collect();
        let renewed = table.heartbeat(&key(0), Some(OWNER), 1_050) == Heartbeat::Renewed;
        let claims: Vec<bool> = sweepers.into_iter().map(|sweeper| sweeper.join().unwrap()).collect();
        let lease = table.read(&key(0)).unwrap();
        if renewed {
            assert_eq!(claims, [false, false], "claimed after it was told that it lives");
            assert_eq!(lease.deadline, 1_150);
        } else {
            assert!(claims.contains(&true), "neither renewed nor claimed");
            assert_eq!((lease.deadline, lease.last_seen), (CLAIMED, 1_000));
        }
    });
}

/// Heartbeats of several devices: the latest time counts, whichever arrives last.
#[test]
fn no_heartbeat_is_lost() {
    in_every_order(4, || {
        let table = table(2);
        table.apply_present(&key(0), &entered(1, 1_000));
        let other = {
            let table = table.clone();
            thread::spawn(move || table.heartbeat(&key(0), Some(OWNER), 1_070))
        };
        assert_eq!(table.heartbeat(&key(0), Some(OWNER), 1_050), Heartbeat::Renewed);
        assert_eq!(other.join().unwrap(), Heartbeat::Renewed);
        assert_eq!(table.read(&key(0)).unwrap().deadline, 1_170);
    });
}

/// A change is committed while the member renews: both the renewal and the change stand.
#[test]
fn a_change_keeps_the_renewal() {
    in_every_order(4, || {
        let table = table(2);
        table.apply_present(&key(0), &entered(1, 1_000));
        let other = {
            let table = table.clone();
            thread::spawn(move || table.heartbeat(&key(0), Some(OWNER), 1_070))
        };
        let change = Lease { version: 2, generation: 1, ..entered(2, 1_020) };
        assert_eq!(table.apply_present(&key(0), &change), Applied::Done);
        assert_eq!(other.join().unwrap(), Heartbeat::Renewed);
        let lease = table.read(&key(0)).unwrap();
        assert_eq!((lease.version, lease.deadline), (2, 1_170));
    });
}

/// The slot of a member that is being changed is not freed: it is the pinner's until it is unpinned.
#[test]
fn a_pinned_slot_is_not_freed() {
    in_every_order(4, || {
        let table = table(2);
        table.apply_present(&key(0), &entered(1, 1_000));
        assert!(table.claim(&key(0), 1, 1_100, false));
        let worker = {
            let table = table.clone();
            thread::spawn(move || table.free(&key(0), 1))
        };
        let pin = table.pin(&key(0));
        if let Some(index) = pin {
            // The slot is still this member's, so the pinner does not read another member's lease.
            assert_eq!(table.read(&key(0)).unwrap().version, 1, "freed while it was pinned");
            table.unpin(index);
        }
        let freed = worker.join().unwrap();
        assert!(freed || pin.is_some(), "neither pinned nor freed");
        assert_eq!(table.used(), !freed as u64);
    });
}

/// A leave and a newer enter reach the slot in any order: the member is there.
#[test]
fn an_old_leave_removes_nobody() {
    in_every_order(4, || {
        let table = table(2);
        let other = {
            let table = table.clone();
            thread::spawn(move || table.apply_gone(&key(0), 2))
        };
        assert_eq!(table.apply_present(&key(0), &entered(3, 1_000)), Applied::Done);
        other.join().unwrap();
        assert_eq!(table.read(&key(0)), Some(entered(3, 1_000)));
        assert_eq!(table.used(), 1);
    });
}

/// An old change and a newer leave reach the slot in any order: the leave stands.
#[test]
fn the_newest_version_wins() {
    in_every_order(4, || {
        let table = table(2);
        let other = {
            let table = table.clone();
            thread::spawn(move || table.apply_gone(&key(0), 2))
        };
        table.apply_present(&key(0), &entered(1, 1_000));
        assert_eq!(other.join().unwrap(), Applied::Done);
        let lease = table.read(&key(0)).unwrap();
        assert_eq!((lease.deadline, lease.version), (TOMBSTONE, 2));
        assert_eq!(table.used(), 1);
    });
}
