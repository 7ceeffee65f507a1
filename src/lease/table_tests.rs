//! The lease table with threads, standard locks and leaked memory: what must be true of it without a server.

use super::slot::*;
use super::table::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*};

/// Standard locks, one a partition.
struct StdLocks(&'static [RwLock<()>]);

impl Locks for StdLocks {
    fn shared<T>(&self, partition: usize, body: impl FnOnce() -> T) -> T {
        let _guard = self.0[partition].read().unwrap();
        body()
    }

    fn exclusive<T>(&self, partition: usize, body: impl FnOnce() -> T) -> T {
        let _guard = self.0[partition].write().unwrap();
        body()
    }
}

type Table = LeaseTable<StdLocks>;

const DATABASES: usize = 2;
const TTL: u64 = 100;

fn leaked<T: Default>(count: usize) -> &'static [T] {
    Box::leak((0..count).map(|_| T::default()).collect::<Vec<T>>().into_boxed_slice())
}

fn table(slots: usize) -> Table {
    let table = LeaseTable {
        header: Box::leak(Box::default()),
        buckets: leaked::<AtomicU32>(bucket_count(slots)),
        slots: leaked::<Slot>(slots),
        earliest: leaked::<AtomicU64>(DATABASES * PARTITIONS),
        locks: StdLocks(leaked(PARTITIONS)),
    };
    table.initialize();
    table
}

fn key(hash: u128) -> Key {
    Key { database: 0, relation: 1, hash }
}

/// Keys that share a bucket, whatever the size of the table.
fn colliding(number: u128) -> Key {
    key(number << 64)
}

fn lease(version: u64, generation: u64, now: u64) -> Lease {
    Lease {
        deadline: now + TTL,
        last_seen: now,
        ttl: TTL,
        version,
        generation,
        owner: 7,
        session: 0,
        reverts_at: 0,
        changed_at: 0,
        pins: 0,
    }
}

fn entered(version: u64, now: u64) -> Lease {
    lease(version, version, now)
}

fn bound(version: u64, session: u64, now: u64) -> Lease {
    Lease { deadline: NEVER, ttl: 0, session, ..entered(version, now) }
}

/// How many slots the free list has.
fn free_slots(table: &Table) -> usize {
    let mut taken = Vec::new();
    for number in 0.. {
        let key = Key { database: 1, relation: 9, hash: 1_000_000 + number };
        if table.apply_present(&key, &entered(1, 1_000)) == Applied::Full {
            break;
        }
        taken.push(key);
        assert!(taken.len() <= table.capacity(), "a slot was handed out twice");
    }
    for key in &taken {
        assert_eq!(table.apply_gone(key, 2), Applied::Done);
        assert!(table.free(key, 2));
    }
    taken.len()
}

#[test]
fn a_slot_is_small_enough() {
    // The documented limit: at most 104 bytes a member, with its share of the buckets.
    for members in [1_000, 65_537, 87_381, 87_382, 100_000, 1_000_000] {
        let bytes = members * size_of::<Slot>() + bucket_count(members) * size_of::<AtomicU32>();
        assert!(bytes <= members * 104, "{} bytes for {members} members", bytes);
    }
}

/// They share words: each keeps its largest value, whatever happens to the other.
#[test]
fn numbers_that_share_a_word_leave_each_other_alone() {
    const LONGEST: u64 = 30 * 86_400_000_000;
    const NEWEST: u64 = (1 << 53) - 1;
    const PROCESSES: u32 = 1 << 18;
    let table = Table { earliest: leaked(1_000 * PARTITIONS), ..table(1) };
    let last = Key { database: 999, ..key(1) };
    let long = |version, generation| Lease {
        ttl: LONGEST,
        deadline: 1_000 + LONGEST,
        ..lease(version, generation, 1_000)
    };
    assert_eq!(table.apply_present(&last, &long(NEWEST - 2, NEWEST - 2)), Applied::Done);
    let pinned = table.pin(&last).unwrap();
    (1..PROCESSES).for_each(|_| assert_eq!(table.pin(&last), Some(pinned)));
    assert_eq!(table.apply_present(&last, &long(NEWEST - 1, NEWEST)), Applied::Done);
    assert_eq!(table.read(&last), Some(Lease { pins: PROCESSES, ..long(NEWEST - 1, NEWEST) }));
    assert_eq!(table.apply_gone(&last, NEWEST), Applied::Done);
    (0..PROCESSES).for_each(|left| {
        assert_eq!(table.read(&last).unwrap().pins, PROCESSES - left);
        assert!(!table.free(&last, NEWEST));
        table.unpin(pinned);
    });
    assert!(table.free(&last, NEWEST));
    assert_eq!(table.apply_present(&key(1), &entered(1, 1_000)), Applied::Done);
    assert_eq!(table.read(&key(1)), Some(entered(1, 1_000)));
}

#[test]
fn enter_read_leave_free() {
    let table = table(4);
    assert_eq!((table.read(&key(1)), table.used(), table.capacity()), (None, 0, 4));
    assert_eq!(table.apply_present(&key(1), &entered(10, 1_000)), Applied::Done);
    assert_eq!(table.read(&key(1)), Some(entered(10, 1_000)));
    assert_eq!(table.used(), 1);

    assert!(!table.free(&key(1), 10), "it is alive");
    assert_eq!(table.apply_gone(&key(1), 11), Applied::Done);
    let tombstone = table.read(&key(1)).unwrap();
    assert_eq!((tombstone.deadline, tombstone.version), (TOMBSTONE, 11));

    assert!(!table.free(&key(1), 10), "another version");
    assert!(table.free(&key(1), 11));
    assert!(!table.free(&key(1), 11), "once");
    assert_eq!((table.read(&key(1)), table.used()), (None, 0));
}

#[test]
fn database_relation_and_all_bits_of_the_hash_tell_members_apart() {
    let table = table(8);
    let keys = [
        key(5),
        Key { database: 1, ..key(5) },
        Key { relation: 2, ..key(5) },
        key(5 | 1 << 127),
        key(5 | 1 << 64),
        key(5 | 1 << 63),
    ];
    for (index, key) in keys.iter().enumerate() {
        assert_eq!(table.apply_present(key, &entered(10 + index as u64, 1_000)), Applied::Done);
    }
    for (index, key) in keys.iter().enumerate() {
        assert_eq!(table.read(key).unwrap().version, 10 + index as u64);
    }
    assert_eq!(table.used(), keys.len() as u64);
}

#[test]
fn a_chain_loses_only_the_one_that_is_freed() {
    for freed in 0..4 {
        let table = table(4);
        for number in 0..4 {
            table.apply_present(&colliding(number), &entered(10, 1_000));
        }
        table.apply_gone(&colliding(freed), 11);
        assert!(table.free(&colliding(freed), 11));
        for number in 0..4 {
            assert_eq!(table.read(&colliding(number)).is_some(), number != freed);
        }
        assert_eq!(table.apply_present(&colliding(9), &entered(12, 1_000)), Applied::Done);
        assert_eq!(table.used(), 4);
    }
}

#[test]
fn a_full_table_refuses_only_new_members() {
    let table = table(2);
    assert_eq!(table.apply_present(&key(1), &entered(10, 1_000)), Applied::Done);
    assert_eq!(table.apply_present(&key(2), &entered(11, 1_000)), Applied::Done);
    assert_eq!(table.apply_present(&key(3), &entered(12, 1_000)), Applied::Full);
    assert_eq!(table.apply_gone(&key(3), 13), Applied::Full);
    assert_eq!(table.heartbeat(&key(3), Some(7), 1_050), Heartbeat::NoSlot);
    assert_eq!(table.used(), 2);

    assert_eq!(table.apply_present(&key(1), &lease(14, 10, 1_050)), Applied::Done);
    table.apply_gone(&key(2), 15);
    assert_eq!(table.apply_present(&key(3), &entered(16, 1_000)), Applied::Full, "tombstones count");
    table.free(&key(2), 15);
    assert_eq!(table.apply_present(&key(3), &entered(16, 1_000)), Applied::Done);
}

#[test]
fn a_table_of_no_slots_is_always_full() {
    let table = table(0);
    assert_eq!(table.apply_present(&key(1), &entered(10, 1_000)), Applied::Full);
    assert_eq!(table.used(), 0);
}

#[test]
fn a_heartbeat_renews_until_the_deadline_and_not_at_it() {
    let table = table(4);
    table.apply_present(&key(1), &entered(10, 1_000));
    assert_eq!(table.heartbeat(&key(1), Some(7), 1_099), Heartbeat::Renewed);
    let renewed = table.read(&key(1)).unwrap();
    assert_eq!((renewed.deadline, renewed.last_seen, renewed.version), (1_199, 1_099, 10));
    assert_eq!(table.heartbeat(&key(1), Some(7), 1_199), Heartbeat::Gone);
    assert_eq!(table.heartbeat(&key(1), None, 1_500), Heartbeat::Gone);
    assert_eq!(table.read(&key(1)), Some(renewed), "a refusal changes nothing");
}

#[test]
fn a_heartbeat_from_before_never_shortens() {
    let table = table(4);
    table.apply_present(&key(1), &entered(10, 1_000));
    assert_eq!(table.heartbeat(&key(1), Some(7), 1_050), Heartbeat::Renewed);
    assert_eq!(table.heartbeat(&key(1), Some(7), 1_020), Heartbeat::Renewed);
    assert_eq!(table.read(&key(1)).unwrap().deadline, 1_150);
}

#[test]
fn only_the_owner_or_a_service_renews() {
    let table = table(4);
    table.apply_present(&key(1), &entered(10, 1_000));
    assert_eq!(table.heartbeat(&key(1), Some(8), 1_050), Heartbeat::Foreign);
    assert_eq!(table.read(&key(1)).unwrap().deadline, 1_100);
    assert_eq!(table.heartbeat(&key(1), None, 1_050), Heartbeat::Renewed);
}

#[test]
fn nobody_renews_the_dead() {
    let table = table(4);
    table.apply_present(&key(1), &entered(10, 1_000));
    assert!(table.claim(&key(1), 10, 1_100, false));
    assert_eq!(table.heartbeat(&key(1), Some(7), 1_050), Heartbeat::Gone, "even by an old clock");
    table.apply_gone(&key(1), 11);
    assert_eq!(table.heartbeat(&key(1), None, 1_050), Heartbeat::Gone);
    assert_eq!(table.heartbeat(&key(1), Some(7), 1_050), Heartbeat::Foreign, "a tombstone has no owner");
}

#[test]
fn a_member_without_deadline_is_seen_and_stays() {
    let table = table(4);
    table.apply_present(&key(1), &bound(10, 3, 1_000));
    assert_eq!(table.heartbeat(&key(1), Some(7), 9_000_000), Heartbeat::Renewed);
    let seen = table.read(&key(1)).unwrap();
    assert_eq!((seen.deadline, seen.last_seen), (NEVER, 9_000_000));
    assert!(!table.claim(&key(1), 10, u64::MAX - 1, false));
    assert!(table.expired(0, u64::MAX - 1).is_empty());
}

#[test]
fn the_newest_version_wins_in_any_order() {
    let table = table(4);
    assert_eq!(table.apply_present(&key(1), &lease(12, 10, 1_000)), Applied::Done);
    assert_eq!(table.apply_present(&key(1), &lease(11, 10, 1_050)), Applied::Older);
    assert_eq!(table.apply_present(&key(1), &lease(12, 10, 1_050)), Applied::Older, "the same again");
    assert_eq!(table.apply_gone(&key(1), 11), Applied::Older);
    assert_eq!(table.read(&key(1)).unwrap(), lease(12, 10, 1_000));

    // A leave, and then the change before it.
    assert_eq!(table.apply_gone(&key(2), 20), Applied::Done);
    assert_eq!(table.apply_present(&key(2), &entered(19, 1_000)), Applied::Older);
    assert_eq!(table.read(&key(2)).unwrap().deadline, TOMBSTONE);
    assert_eq!(table.apply_present(&key(2), &entered(21, 1_000)), Applied::Done);
    assert_eq!(table.heartbeat(&key(2), Some(7), 1_050), Heartbeat::Renewed);
    assert_eq!(table.used(), 2);
}

#[test]
fn a_change_keeps_what_a_heartbeat_has_proved() {
    let table = table(4);
    table.apply_present(&key(1), &entered(10, 1_000));
    table.heartbeat(&key(1), Some(7), 1_080);
    // The change was made at 1020 and commits now.
    table.apply_present(&key(1), &lease(11, 10, 1_020));
    let merged = table.read(&key(1)).unwrap();
    assert_eq!((merged.deadline, merged.last_seen, merged.version), (1_180, 1_080, 11));

    // With another ttl: from the last proof of life on.
    table.apply_present(&key(1), &Lease { ttl: 500, deadline: 1_520, ..lease(12, 10, 1_020) });
    assert_eq!(table.read(&key(1)).unwrap().deadline, 1_580);

    // A new stay starts afresh: nothing of the old one counts.
    table.apply_present(&key(1), &entered(13, 1_030));
    assert_eq!(table.read(&key(1)).unwrap(), entered(13, 1_030));
}

#[test]
fn a_claim_waits_for_the_deadline_and_is_final_for_its_generation() {
    let table = table(4);
    table.apply_present(&key(1), &entered(10, 1_000));
    assert!(!table.claim(&key(1), 10, 1_099, false));
    assert!(!table.claim(&key(1), 9, 1_100, false), "another generation");
    assert!(!table.claim(&key(2), 10, 1_100, false), "nobody");
    assert!(table.claim(&key(1), 10, 1_100, false));
    assert!(table.claim(&key(1), 10, 1_100, false), "until its row is deleted: the deletion may have failed");

    // An older change does not revive it; a new stay does.
    table.apply_present(&key(1), &lease(11, 10, 1_090));
    let claimed = table.read(&key(1)).unwrap();
    assert_eq!((claimed.deadline, claimed.version), (CLAIMED, 11));
    table.apply_present(&key(1), &entered(12, 1_200));
    assert_eq!(table.heartbeat(&key(1), Some(7), 1_210), Heartbeat::Renewed);
    assert!(!table.claim(&key(1), 10, 9_999, false), "the old stay is over");
}

#[test]
fn a_claimed_slot_remembers_when_the_member_was_last_seen() {
    let table = table(4);
    table.apply_present(&key(1), &entered(10, 1_000));
    table.heartbeat(&key(1), Some(7), 1_040);
    table.claim(&key(1), 10, 2_000, false);
    let claimed = table.read(&key(1)).unwrap();
    assert_eq!((claimed.last_seen, claimed.ttl), (1_040, TTL), "the leave is at last_seen + ttl");
}

/// A restored member's deadline is the grace, which can be closer to the boot of the machine than its ttl.
#[test]
fn a_deadline_before_one_ttl_of_the_boot_clock_can_be_claimed() {
    let table = table(4);
    table.apply_present(&key(1), &Lease { deadline: 50, last_seen: 0, ..entered(10, 0) });
    assert_eq!(table.read(&key(1)).unwrap().last_seen, 0);
    assert!(table.claim(&key(1), 10, 60, false));
    assert_eq!(table.read(&key(1)).unwrap().last_seen, 0);
}

/// A member that has announced its leave.
fn fixed(version: u64, last_seen: u64, deadline: u64) -> Lease {
    Lease { deadline, last_seen, ttl: 0, ..lease(version, 10, 0) }
}

#[test]
fn nothing_moves_a_fixed_lease_but_a_change() {
    let table = table(4);
    table.apply_present(&key(1), &entered(10, 1_000));
    // Renewals before the leave was announced, and before that is committed.
    table.heartbeat(&key(1), None, 1_050);
    table.apply_present(&key(1), &fixed(11, 1_000, 1_090));
    let held = table.read(&key(1)).unwrap();
    assert_eq!((held.deadline, held.last_seen, held.is_fixed()), (1_090, 1_000, true));
    assert_eq!(table.heartbeat(&key(1), None, 1_089), Heartbeat::Renewed);
    table.renew_stay(&key(1), &held.stay(), 1_089);
    let mut pending = held;
    pending.renew(1_089);
    assert_eq!([table.read(&key(1)).unwrap(), pending], [held; 2]);
    assert_eq!(table.heartbeat(&key(1), None, 1_090), Heartbeat::Gone);

    // A change that was made in time.
    table.apply_present(&key(1), &Lease { generation: 10, ..lease(12, 10, 1_080) });
    assert_eq!(table.read(&key(1)).unwrap().deadline, 1_180);
    assert_eq!(table.heartbeat(&key(1), None, 1_100), Heartbeat::Renewed);
    assert_eq!(table.read(&key(1)).unwrap().deadline, 1_200);
}

#[test]
fn a_fixed_lease_remembers_when_it_ended() {
    for (now, ended, at) in
        [(500, false, None), (1_500, false, Some(1_000)), (1_500, true, Some(1_000)), (500, true, Some(500))]
    {
        let table = table(4);
        table.apply_present(&key(1), &fixed(10, 100, 1_000));
        assert_eq!(table.claim(&key(1), 10, now, ended), at.is_some());
        if let Some(at) = at {
            assert_eq!(table.read(&key(1)).unwrap().ended(), at, "at {now}, its session over: {ended}");
        }
    }
    assert_eq!(fixed(10, 100, 1_000).ended(), 1_000);
}

#[test]
fn a_pin_keeps_the_slot() {
    let table = table(4);
    assert_eq!(table.pin(&key(1)), None);
    table.apply_present(&key(1), &entered(10, 1_000));
    let index = table.pin(&key(1)).unwrap();
    assert_eq!(table.read(&key(1)).unwrap().pins, 1);

    assert!(!table.unchanged(&key(1), 10, 1_050), "somebody is changing it");
    table.end_session(&key(1), 0, 1_050);
    assert_eq!(
        table.read(&key(1)).unwrap().deadline,
        1_100,
        "it may be about to be bound to another session"
    );
    assert_eq!(table.expired(0, 2_000).len(), 1, "whether its row is locked is for the sweeper to see");
    assert!(table.claim(&key(1), 10, 2_000, false), "who claims has the row locked");

    table.apply_gone(&key(1), 11);
    assert!(!table.free(&key(1), 11));
    table.purge(0, |_| true);
    assert_eq!(table.used(), 1);
    table.unpin(index);
    assert!(table.free(&key(1), 11));
}

#[test]
fn unchanged_is_alive_and_of_that_version() {
    let table = table(4);
    assert!(!table.unchanged(&key(1), 10, 1_000));
    table.apply_present(&key(1), &entered(10, 1_000));
    assert!(table.unchanged(&key(1), 10, 1_099));
    assert!(!table.unchanged(&key(1), 10, 1_100));
    assert!(!table.unchanged(&key(1), 9, 1_050));
}

#[test]
fn the_end_of_a_session_takes_only_its_own() {
    let table = table(8);
    table.apply_present(&key(1), &bound(10, 3, 1_000));
    table.apply_present(&key(2), &bound(11, 4, 1_000));
    table.apply_present(&key(3), &Lease { session: 3, ..entered(12, 1_000) });
    for number in 1..=4 {
        table.end_session(&key(number), 3, 1_050);
    }
    let word = |number| table.read(&key(number)).unwrap().deadline;
    assert_eq!((word(1), word(2), word(3)), (CLAIMED, NEVER, CLAIMED));
    let mut due: Vec<u128> = table.expired(0, 1_001).iter().map(|(key, _)| key.hash).collect();
    due.sort();
    assert_eq!(due, [1, 3], "the sweeper finds them before any deadline");

    // A transaction that has not ended binds it to another session: it stays for the sweeper to decide.
    let index = table.pin(&key(2)).unwrap();
    table.end_session(&key(2), 4, 1_050);
    assert_eq!(word(2), NEVER);
    table.unpin(index);
}

#[test]
fn the_sweeper_finds_each_that_is_due_and_looks_no_further() {
    let table = table(64);
    assert_eq!(table.earliest(0), NEVER);
    for number in 0..50 {
        table.apply_present(&key(number), &entered(10 + number as u64, 1_000 + number as u64));
    }
    table.apply_present(&Key { database: 1, ..key(1) }, &entered(99, 0));
    assert_eq!((table.earliest(0), table.earliest(1)), (1_100, 100));
    assert!(table.expired(0, 1_099).is_empty());

    let mut due: Vec<u128> = table.expired(0, 1_124).iter().map(|(key, _)| key.hash).collect();
    due.sort();
    assert_eq!(due, (0..25).collect::<Vec<u128>>());
    assert_eq!(table.expired(0, 1_124).len(), 25, "until they are freed");

    for number in 0..25 {
        assert!(table.claim(&key(number), 10 + number as u64, 1_124, false));
    }
    assert_eq!(table.expired(0, 1_124).len(), 25, "claimed ones too: their deletion may have failed");
    for number in 0..25 {
        table.apply_gone(&key(number), 1_000 + number as u64);
    }
    assert!(table.expired(0, 1_124).is_empty(), "tombstones are done");
    assert_eq!(table.earliest(0), 1_125);
    assert_eq!(table.earliest(1), 100, "another database's deadlines are its own");
}

#[test]
fn the_hint_follows_heartbeats_and_shorter_leases() {
    let table = table(4);
    table.apply_present(&key(1), &entered(10, 1_000));
    table.heartbeat(&key(1), Some(7), 1_090);
    assert!(table.earliest(0) <= 1_190);
    assert!(table.expired(0, 1_150).is_empty());
    assert_eq!(table.earliest(0), 1_190, "looked, and found a later one");
    table.apply_present(&key(1), &Lease { ttl: 10, deadline: 1_105, ..lease(11, 10, 1_095) });
    assert_eq!(table.earliest(0), 1_105);
    assert_eq!(table.expired(0, 1_105).len(), 1);
}

#[test]
fn what_reverts_is_found_at_its_moment_and_not_before() {
    let table = table(4);
    table.apply_present(&key(1), &Lease { reverts_at: 1_010, ..entered(10, 1_000) });
    table.apply_present(&key(2), &entered(11, 1_000));
    assert_eq!((table.earliest(0), table.expired(0, 1_009)), (1_010, vec![]));
    let found = table.expired(0, 1_010);
    assert_eq!(found.iter().map(|(key, _)| key.hash).collect::<Vec<_>>(), [1]);
    assert!(alive(found[0].1.deadline, 1_010) && found[0].1.is_to_revert(1_010));
    // A heartbeat does not change it; the next change does.
    table.heartbeat(&key(1), Some(7), 1_020);
    assert_eq!(table.read(&key(1)).unwrap().reverts_at, 1_010);
    table.apply_present(&key(1), &lease(12, 10, 1_020));
    assert_eq!(table.expired(0, 1_020), vec![]);
    // Set later: only for the version that it is about.
    assert!(!table.note_revert(&key(2), 10, 1_030) && !table.note_revert(&key(3), 11, 1_030));
    assert!(table.note_revert(&key(2), 11, 1_030));
    assert_eq!((table.earliest(0), table.expired(0, 1_030).len()), (1_030, 1));
}

#[test]
fn purge_takes_a_database_or_its_old_table() {
    let table = table(16);
    for relation in [1, 2] {
        for number in 0..3 {
            table.apply_present(&Key { database: 0, relation, hash: number }, &entered(10, 1_000));
            table.apply_present(&Key { database: 1, relation, hash: number }, &entered(10, 1_000));
        }
    }
    table.purge(0, |relation| relation != 2);
    assert_eq!(table.used(), 9);
    assert_eq!(table.collect(|key, _| key.database == 0 && key.relation == 1), []);
    table.purge(0, |_| true);
    assert_eq!(table.used(), 6);
    assert_eq!(table.collect(|key, _| key.database == 1).len(), 6);
}

/// The expected state of a slot, in the simplest form.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Model {
    lease: Lease,
    pinned: Option<u32>,
}

#[derive(Clone, Debug)]
enum Operation {
    Enter(u128),
    Change(u128),
    /// A change with an older version.
    Late(u128),
    Leave(u128),
    Heartbeat(u128, bool),
    Claim(u128),
    Pin(u128),
    Unpin(u128),
    Free(u128),
    Pass(u64),
}

const MEMBERS: u128 = 6;

fn operation() -> impl Strategy<Value = Operation> {
    let member = || 0..MEMBERS;
    prop_oneof![
        4 => member().prop_map(Operation::Enter),
        2 => member().prop_map(Operation::Change),
        1 => member().prop_map(Operation::Late),
        2 => member().prop_map(Operation::Leave),
        4 => (member(), any::<bool>()).prop_map(|(member, own)| Operation::Heartbeat(member, own)),
        3 => member().prop_map(Operation::Claim),
        1 => member().prop_map(Operation::Pin),
        2 => member().prop_map(Operation::Unpin),
        3 => member().prop_map(Operation::Free),
        4 => (1..80u64).prop_map(Operation::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Any sequence of operations has the same effect on the table as on a map. All members share a bucket, and there
    /// are fewer slots than members.
    #[test]
    fn like_a_map(operations in prop::collection::vec(operation(), 1..120)) {
        let table = table(4);
        let mut model: HashMap<u128, Model> = HashMap::new();
        let (mut now, mut version) = (1_000u64, 10u64);
        for operation in operations {
            version += 1;
            match operation {
                Operation::Pass(time) => now += time,
                Operation::Enter(member) | Operation::Change(member) | Operation::Late(member) => {
                    let held = model.get(&member).map(|held| held.lease);
                    let change = match (&operation, held) {
                        (Operation::Enter(_), _) => entered(version, now),
                        (_, Some(held)) if held.deadline != TOMBSTONE => lease(
                            if matches!(operation, Operation::Late(_)) { held.version } else { version },
                            held.generation,
                            now - 5,
                        ),
                        _ => continue,
                    };
                    let expected = match held {
                        None if model.len() == table.capacity() => Applied::Full,
                        Some(held) if held.version >= change.version => Applied::Older,
                        _ => Applied::Done,
                    };
                    prop_assert_eq!(table.apply_present(&colliding(member), &change), expected);
                    if expected == Applied::Done {
                        let mut lease = change;
                        if let Some(held) = held.filter(|held| held.generation == change.generation) {
                            lease.last_seen = lease.last_seen.max(held.last_seen);
                            lease.deadline = lease.last_seen + lease.ttl;
                            if held.deadline == CLAIMED {
                                lease.deadline = CLAIMED;
                                lease.last_seen = change.last_seen;
                            }
                        }
                        let pinned = model.get(&member).and_then(|held| held.pinned);
                        lease.pins = pinned.is_some() as u32;
                        model.insert(member, Model { lease, pinned });
                    }
                }
                Operation::Leave(member) => {
                    let expected = if !model.contains_key(&member) && model.len() == table.capacity() {
                        Applied::Full
                    } else {
                        Applied::Done
                    };
                    prop_assert_eq!(table.apply_gone(&colliding(member), version), expected);
                    if expected == Applied::Done {
                        let pinned = model.get(&member).and_then(|held| held.pinned);
                        let lease = Lease {
                            deadline: TOMBSTONE, last_seen: 0, ttl: 0, version, generation: version, owner: 0,
                            session: 0, pins: pinned.is_some() as u32,
                            reverts_at: 0,
                            changed_at: 0,
                        };
                        model.insert(member, Model { lease, pinned });
                    }
                }
                Operation::Heartbeat(member, own) => {
                    let owner = if own { Some(7) } else { None };
                    let got = table.heartbeat(&colliding(member), owner, now);
                    let expected = match model.get_mut(&member) {
                        None => Heartbeat::NoSlot,
                        Some(held) if own && held.lease.owner != 7 => Heartbeat::Foreign,
                        Some(held) if alive(held.lease.deadline, now) => {
                            if now + held.lease.ttl > held.lease.deadline {
                                held.lease.deadline = now + held.lease.ttl;
                                held.lease.last_seen = now;
                            }
                            Heartbeat::Renewed
                        }
                        Some(_) => Heartbeat::Gone,
                    };
                    prop_assert_eq!(got, expected);
                }
                Operation::Claim(member) => {
                    let generation = model.get(&member).map_or(0, |held| held.lease.generation);
                    let got = table.claim(&colliding(member), generation, now, false);
                    let expected = match model.get_mut(&member) {
                        Some(held) if held.lease.deadline != TOMBSTONE
                            && !alive(held.lease.deadline, now) =>
                        {
                            held.lease.deadline = CLAIMED;
                            true
                        }
                        _ => false,
                    };
                    prop_assert_eq!(got, expected);
                }
                Operation::Pin(member) => {
                    if model.get(&member).is_some_and(|held| held.pinned.is_some()) {
                        continue;
                    }
                    let index = table.pin(&colliding(member));
                    prop_assert_eq!(index.is_some(), model.contains_key(&member));
                    if let Some(held) = model.get_mut(&member) {
                        held.pinned = index;
                        held.lease.pins = 1;
                    }
                }
                Operation::Unpin(member) => {
                    if let Some(held) = model.get_mut(&member)
                        && let Some(index) = held.pinned.take()
                    {
                        table.unpin(index);
                        held.lease.pins = 0;
                    }
                }
                Operation::Free(member) => {
                    let held = model.get(&member).copied();
                    let got = table.free(&colliding(member), held.map_or(0, |held| held.lease.version));
                    let expected = held.is_some_and(|held| {
                        matches!(held.lease.deadline, TOMBSTONE | CLAIMED) && held.pinned.is_none()
                    });
                    prop_assert_eq!(got, expected);
                    if expected {
                        model.remove(&member);
                    }
                }
            }

            prop_assert_eq!(table.used(), model.len() as u64);
            for member in 0..MEMBERS {
                prop_assert_eq!(table.read(&colliding(member)), model.get(&member).map(|held| held.lease));
            }
            let due = model.values().filter(|held| {
                held.lease.deadline != TOMBSTONE && !alive(held.lease.deadline, now)
            });
            prop_assert_eq!(table.expired(0, now).len(), due.count());
            let earliest = model.values().map(|held| held.lease.deadline).filter(|word| *word != TOMBSTONE).min();
            prop_assert!(table.earliest(0) <= earliest.unwrap_or(NEVER));
        }
        prop_assert_eq!(free_slots(&table), table.capacity() - model.len());
    }
}

/// A generator for each thread, without a lock that would synchronize the threads.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// The state shared by the threads of the race below.
struct Race {
    table: Table,
    clock: AtomicU64,
    versions: AtomicU64,
    /// Row locks: a writer of a member holds its lock, as in PostgreSQL.
    rows: Vec<RwLock<Option<Stay>>>,
    /// For each member the latest deadline that a heartbeat has promised, and for which stay.
    promised: Vec<RwLock<(u64, u64)>>,
    leaves: AtomicU64,
    enters: AtomicU64,
    stop: AtomicBool,
}

#[derive(Clone, Copy, Debug)]
struct Stay {
    generation: u64,
    version: u64,
}

impl Race {
    fn version(&self) -> u64 {
        self.versions.fetch_add(1, AcqRel) + 1
    }

    fn now(&self) -> u64 {
        self.clock.load(SeqCst)
    }

    /// Enter or change as a writer does: under the row lock, with a pin, the slot at the end.
    fn write(&self, member: usize) {
        let key = colliding_by(member);
        let mut row = self.rows[member].write().unwrap();
        if let Some(stay) = *row {
            let pin = self.table.pin(&key);
            let now = self.now();
            let alive_now = self
                .table
                .read(&key)
                .is_some_and(|slot| slot.generation == stay.generation && alive(slot.deadline, now));
            if alive_now {
                let version = self.version();
                std::thread::yield_now();
                let change = lease(version, stay.generation, now);
                assert_eq!(self.table.apply_present(&key, &change), Applied::Done);
                *row = Some(Stay { version, ..stay });
                let after = self.table.read(&key).unwrap();
                assert_ne!(after.deadline, CLAIMED, "claimed while it was pinned and alive");
                assert!(after.deadline >= now + TTL);
            }
            if let Some(index) = pin {
                self.table.unpin(index);
            }
            if alive_now {
                return;
            }
            if !self.table.claim(&key, stay.generation, self.now(), false) {
                return;
            }
            self.leave(member, &mut row);
        }
        let version = self.version();
        *row = Some(Stay { generation: version, version });
        assert_eq!(self.table.apply_present(&key, &entered(version, self.now())), Applied::Done);
        self.enters.fetch_add(1, Relaxed);
    }

    /// Delete the row. The caller holds its lock.
    fn leave(&self, member: usize, row: &mut Option<Stay>) {
        let stay = row.take().expect("a row is deleted once");
        let version = self.version();
        assert!(version > stay.version);
        assert_eq!(self.table.apply_gone(&colliding_by(member), version), Applied::Done);
        self.leaves.fetch_add(1, Relaxed);
    }

    fn delete(&self, member: usize) {
        let mut row = self.rows[member].write().unwrap();
        if row.is_some() {
            self.leave(member, &mut row);
        }
    }

    /// What the worker does: claim due leases, delete their rows, free the tombstones.
    fn sweep(&self) {
        for (key, found) in self.table.expired(0, self.now()) {
            let member = member_of(&key);
            let Ok(mut row) = self.rows[member].try_write() else { continue };
            let now = self.now();
            if let Some(stay) = *row
                && self.table.claim(&key, stay.generation, now, false)
            {
                let (generation, deadline) = *self.promised[member].read().unwrap();
                assert!(
                    generation != stay.generation || deadline <= now,
                    "claimed at {now}, promised until {deadline}"
                );
                self.leave(member, &mut row);
            }
            drop(row);
            let tombstone = self.table.read(&key).map_or(found.version, |slot| slot.version);
            self.table.free(&key, tombstone);
        }
        // Tombstones of deletes.
        for (key, lease) in self.table.collect(|_, lease| lease.deadline == TOMBSTONE) {
            self.table.free(&key, lease.version);
        }
    }

    fn beat(&self, member: usize) {
        let key = colliding_by(member);
        // The promise is recorded under a lock that the sweeper's check takes too, so the two are ordered; the table
        // itself is raced.
        let before = self.table.read(&key);
        let now = self.now();
        match self.table.heartbeat(&key, Some(7), now) {
            Heartbeat::Renewed => {
                let after = self.table.read(&key);
                // Only of the same stay, and if it was not deleted meanwhile.
                if let (Some(before), Some(after)) = (before, after)
                    && before.generation == after.generation
                    && after.deadline > CLAIMED
                {
                    assert!(after.deadline >= now + TTL, "renewed, and yet {} at {now}", after.deadline);
                    let mut promised = self.promised[member].write().unwrap();
                    let (generation, deadline) = *promised;
                    if generation == before.generation {
                        promised.1 = deadline.max(now + TTL);
                    } else if generation < before.generation {
                        *promised = (before.generation, now + TTL);
                    }
                }
            }
            Heartbeat::Gone | Heartbeat::NoSlot | Heartbeat::Foreign => {}
        }
    }
}

const RACERS: usize = 24;

/// Four members share a bucket.
fn colliding_by(member: usize) -> Key {
    key((member as u128) << 64 | (member as u128 / 4))
}

fn member_of(key: &Key) -> usize {
    (key.hash >> 64) as usize
}

/// Writers, deleters, heartbeats and a sweeper at once, on a clock that passes deadlines. A heartbeat that returned
/// true is not followed by a claim before its new deadline; a row is deleted once; no slot is lost or used twice.
#[test]
fn heartbeats_claims_changes_and_frees_race() {
    let race = Race {
        table: table(RACERS),
        clock: AtomicU64::new(1_000),
        versions: AtomicU64::new(10),
        rows: (0..RACERS).map(|_| RwLock::new(None)).collect(),
        promised: (0..RACERS).map(|_| RwLock::new((0, 0))).collect(),
        leaves: AtomicU64::new(0),
        enters: AtomicU64::new(0),
        stop: AtomicBool::new(false),
    };
    let run = |seed: u64, body: fn(&Race, usize, u64)| {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        while !race.stop.load(Relaxed) {
            let (member, chance) = (random.below(RACERS as u64) as usize, random.below(100));
            body(&race, member, chance);
        }
    };
    std::thread::scope(|scope| {
        for seed in 1..=2 {
            scope.spawn(move || run(seed, |race, member, _| race.beat(member)));
            scope.spawn(move || {
                run(10 + seed, |race, member, chance| match chance {
                    0..90 => race.write(member),
                    _ => race.delete(member),
                })
            });
            scope.spawn(move || {
                run(20 + seed, |race, _, chance| {
                    race.clock.fetch_add(chance, SeqCst);
                    race.sweep();
                })
            });
        }
        // Until there were enough stays, however slow the machine.
        let began = std::time::Instant::now();
        while race.leaves.load(Relaxed) < 2_000 && began.elapsed().as_secs() < 60 {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        race.stop.store(true, Relaxed);
    });

    let (enters, leaves) = (race.enters.load(Relaxed), race.leaves.load(Relaxed));
    assert!(enters > 1_000 && leaves > 1_000, "{enters} enters and {leaves} leaves are no race");
    let rows = race.rows.iter().filter(|row| row.read().unwrap().is_some()).count() as u64;
    assert_eq!(enters, leaves + rows, "each stay ends once");

    let tombstones = race.table.collect(|_, lease| lease.deadline == TOMBSTONE).len() as u64;
    let held = race.table.collect(|_, lease| lease.deadline != TOMBSTONE).len() as u64;
    assert_eq!(held, rows, "each row has one slot");
    assert_eq!(race.table.used(), rows + tombstones);
    assert_eq!(free_slots(&race.table) as u64, RACERS as u64 - race.table.used());
}

/// Threads that take slots from the free list and return them at once, in a table that is nearly always empty or nearly
/// always full: a free list without a tag may then hand out a slot twice.
#[test]
fn the_free_list_survives_a_b_a() {
    let table = table(3);
    std::thread::scope(|scope| {
        for thread in 0..4u128 {
            let table = &table;
            scope.spawn(move || {
                let key = key(thread << 64 | thread);
                for turn in 0..50_000u64 {
                    let version = turn * 2 + 1;
                    match table.apply_present(&key, &entered(version, 1_000)) {
                        Applied::Done => {}
                        Applied::Full => continue,
                        Applied::Older => panic!("somebody else's slot"),
                    }
                    assert_eq!(table.read(&key).unwrap().version, version);
                    assert_eq!(table.apply_gone(&key, version + 1), Applied::Done);
                    assert!(table.free(&key, version + 1));
                }
            });
        }
    });
    assert_eq!(table.used(), 0);
    assert_eq!(free_slots(&table), 3);
}

/// Many claim the same stay: all that succeed agree, and freeing it succeeds once.
#[test]
fn one_claim_ends_a_stay_and_one_free_its_slot() {
    let table = table(8);
    for turn in 0..2_000u64 {
        let generation = turn * 10 + 1;
        let start = std::sync::Barrier::new(3);
        table.apply_present(&key(1), &entered(generation, 1_000));
        let (renewed, claimed, freed) = std::thread::scope(|scope| {
            let beater = scope.spawn(|| {
                start.wait();
                table.heartbeat(&key(1), Some(7), 1_099) == Heartbeat::Renewed
            });
            let sweepers: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        let claimed = table.claim(&key(1), generation, 1_100, false);
                        (claimed, claimed && table.free(&key(1), generation))
                    })
                })
                .collect();
            let sweepers: Vec<(bool, bool)> =
                sweepers.into_iter().map(|thread| thread.join().unwrap()).collect();
            let count = |which: fn(&(bool, bool)) -> bool| sweepers.iter().filter(|one| which(one)).count();
            (beater.join().unwrap(), count(|one| one.0), count(|one| one.1))
        });
        assert_eq!(renewed, claimed == 0, "either renewed or claimed, never both");
        assert_eq!(freed, (claimed > 0) as usize);
        assert_eq!(table.used(), (claimed == 0) as u64);
        if claimed == 0 {
            table.apply_gone(&key(1), generation + 1);
            table.free(&key(1), generation + 1);
        }
    }
}
