//! The full counts of a large room need no scan, and are right: shortly afterwards, or at once where they
//! must be.

use crate::common::{Cluster, Session, millis, signal, until};
use std::time::Instant;

const OCCUPANCY: &str = "select members || ' ' || users from presence.occupancy('stage')";
const ROWS: &str =
    "select count(*) || ' ' || count(distinct user_id) from presence.member where room = 'stage'";

/// A room with 2000 members of 1000 users.
fn stage(cluster: &Cluster) -> Session {
    let mut service = cluster.service();
    service.run(
        "select presence.set_room('stage', audience => '{}', count_audience => '{user:bob}');
         select count(presence.upsert('stage', user_id => 'u' || n % 1000, connection_id => n::text))
         from generate_series(1, 2000) n",
    );
    service
}

/// The answer, and whether rows were counted for it.
fn ask(session: &mut Session) -> (String, bool) {
    let rows = "select coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) from pg_stat_xact_user_tables
                where relid = 'presence.member'::regclass";
    session.run("begin");
    let before = session.number(rows);
    let answer = session.value(OCCUPANCY);
    let after = session.number(rows);
    session.run("commit");
    (answer, after - before > 100)
}

/// Waits until the worker keeps the counts, so that no scan is needed.
fn until_kept(session: &mut Session) {
    session.flush();
    until("numbers without a scan", || !ask(session).1);
}

#[test]
fn they_are_kept_for_those_who_may_have_them() {
    let cluster = Cluster::with(&["presence.max_per_user=0"]);
    let (mut service, mut bob, mut alice) = (stage(&cluster), cluster.user("bob"), cluster.user("alice"));
    assert_eq!(ask(&mut service), ("2000 1000".into(), true));
    for session in [&mut service, &mut bob] {
        until_kept(session);
        assert_eq!(ask(session).0, "2000 1000");
    }
    assert_eq!(alice.value(OCCUPANCY), "0 0");
    alice.run("select presence.upsert('stage')");
    assert_eq!(alice.value(OCCUPANCY), "1 1");
    // A second tab, a last tab, a changed owner: each user counts once.
    for (what, members, users) in [
        ("select presence.upsert('stage', user_id => 'u1', connection_id => 'x')", 2002, 1001),
        ("select presence.delete('stage', 'u1', null)", 1999, 1000),
        (
            "update presence.member set user_id = 'u2' where room = 'stage' and user_id in ('u3', 'u4')",
            1999,
            998,
        ),
        ("select presence.delete_all('alice')", 1998, 997),
        ("select presence.upsert('stage', '{\"x\": 1}', user_id => 'u5', connection_id => '5')", 1998, 997),
    ] {
        service.run(what);
        bob.flush();
        let right = format!("{members} {users}");
        assert_eq!((ask(&mut bob), service.value(ROWS)), ((right.clone(), false), right), "{what}");
    }
    // The right to the counts is checked on each call.
    service.run("update presence.room set count_audience = null where room = 'stage'");
    assert_eq!(bob.value(OCCUPANCY), "0 0");
    cluster.assert_sound();
}

#[test]
fn ones_own_changes_and_what_a_snapshot_sees_count_at_once() {
    let cluster = Cluster::with(&["presence.max_per_user=0"]);
    let (mut service, mut old) = (stage(&cluster), cluster.service());
    until_kept(&mut service);
    service.run("begin; select presence.upsert('stage', user_id => 'x')");
    assert_eq!(service.value(OCCUPANCY), "2001 1001");
    service.run("rollback");
    assert_eq!(service.value(OCCUPANCY), "2000 1000");
    old.run("begin isolation level repeatable read");
    assert_eq!(old.value(OCCUPANCY), "2000 1000");
    let frozen = cluster.freeze_worker();
    for turn in 1..=5 {
        service.run(&format!("select presence.upsert('stage', user_id => 'x{turn}')"));
        assert_eq!(service.value(OCCUPANCY), format!("{} {}", 2000 + turn, 1000 + turn));
    }
    drop(frozen);
    service.flush();
    assert_eq!(ask(&mut service), ("2005 1005".into(), false));
    assert_eq!(old.value(OCCUPANCY), "2000 1000");
    old.run("commit; set presence.fast_path = off");
    assert_eq!(ask(&mut old), ("2005 1005".into(), true));
}

/// Counts older than allowed are never returned: the rows are counted instead.
#[test]
fn a_worker_that_is_behind_is_not_believed() {
    let cluster = Cluster::with(&["presence.max_per_user=0"]);
    let (mut service, mut other) = (stage(&cluster), cluster.service());
    until_kept(&mut service);
    let frozen = cluster.freeze_worker();
    other.run("select presence.upsert('stage', user_id => 'x')");
    let began = Instant::now();
    until("the right number", || service.value(OCCUPANCY) == "2001 1001");
    assert!(began.elapsed() < millis(1_500), "{:?}", began.elapsed());
    // A lease that ends.
    other.run("select presence.upsert('stage', user_id => 'y', ttl => '1 s')");
    std::thread::sleep(millis(1_000));
    until("nobody is a ghost", || service.value(OCCUPANCY) == "2001 1001");
    drop(frozen);
    service.flush();
    // An expired member may still be counted until a sweep.
    until("all is right again", || ask(&mut service) == ("2001 1001".into(), false));
    assert_eq!(service.value(ROWS), "2001 1001");
}

#[test]
fn whoever_leaves_by_lease_or_session_is_not_counted_for_long() {
    let cluster = Cluster::with(&["presence.max_per_user=0"]);
    let (mut service, mut guest) = (stage(&cluster), cluster.service());
    until_kept(&mut service);
    guest.run("select presence.upsert('stage', user_id => 'guest', session => true)");
    service.run("select presence.upsert('stage', user_id => 'x', ttl => '1 s')");
    service.flush();
    assert_eq!(ask(&mut service), ("2002 1002".into(), false));
    drop(guest);
    let began = Instant::now();
    until("both are gone", || ask(&mut service) == ("2000 1000".into(), false));
    assert!(began.elapsed() < millis(2_500), "{:?}", began.elapsed());
}

#[test]
fn they_are_counted_anew_after_all_that_loses_count() {
    let cluster = Cluster::with(&["presence.max_per_user=0", "presence.event_buffer=64kB"]);
    let mut service = cluster.service();
    service.run("select presence.set_room('stage', audience => '{}')");
    let enter = |service: &mut Session, from: i64, to: i64| {
        service.run(&format!(
            "select count(presence.upsert('stage', user_id => 'u' || n % 1000, connection_id => n::text))
             from generate_series({from}, {to}) n"
        ));
    };
    let check = |service: &mut Session| {
        until_kept(service);
        let (answer, rows) = (ask(service).0, service.value(ROWS));
        assert_eq!(answer, rows);
        assert!(answer.starts_with(|digit: char| digit > '0'), "{answer}");
    };
    // More events than the buffer holds, all at once.
    enter(&mut service, 1, 2000);
    check(&mut service);
    enter(&mut service, 2001, 4000);
    assert_eq!(service.value(OCCUPANCY), "4000 1000");
    check(&mut service);
    let worker = service.number("select presence.worker_pid()");
    signal("TERM", worker);
    enter(&mut service, 4001, 4100);
    assert_eq!(service.value(OCCUPANCY), "4100 1000");
    until("another worker", || {
        let pid = service.value("select presence.worker_pid()");
        !pid.is_empty() && pid != worker.to_string()
    });
    check(&mut service);
    service.run("begin; drop extension presence_ext cascade; create extension presence_ext; commit");
    assert_eq!(service.value(OCCUPANCY), "0 0");
    service.run("select presence.set_room('stage', audience => '{}')");
    enter(&mut service, 1, 600);
    check(&mut service);
    cluster.restart();
    let mut service = cluster.service();
    cluster.until_worker("app");
    assert_eq!(service.value(OCCUPANCY), "600 600");
    check(&mut service);
    cluster.assert_sound();
}

/// Both while everybody comes and goes, and once they have stopped.
#[test]
fn in_a_crowd_they_are_right_in_the_end() {
    let cluster = Cluster::with(&["presence.max_per_user=0"]);
    let mut service = stage(&cluster);
    until_kept(&mut service);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let mut session = cluster.service();
            scope.spawn(move || {
                for turn in 0..150 {
                    let (user, other) = ((turn * 7 + thread) % 50, turn % 40);
                    session.run(&format!(
                        "select presence.upsert('stage', user_id => 'u{user}', connection_id => 'c{thread}{other}');
                         begin; select presence.delete('stage', 'u{other}', null); {};
                         update presence.member set user_id = 'u{user}' where room = 'stage' and user_id = 'u{}' and connection_id < '2'",
                        if turn % 3 == 0 { "rollback" } else { "commit" },
                        900 + turn / 2
                    ));
                }
            });
        }
        for _ in 0..50 {
            service.value(OCCUPANCY);
        }
    });
    service.flush();
    assert_eq!(ask(&mut service), (service.value(ROWS), false));
    cluster.assert_sound();
}

/// Users are counted exactly even if they do not all fit in the worker's memory at once.
#[test]
#[ignore = "takes a minute or two: make test-all"]
fn a_very_large_room_is_counted_in_parts() {
    let cluster = Cluster::with(&[
        "presence.max_per_user=0",
        "presence.max_members=200000",
        "presence.worker_memory=16MB",
        "presence.event_buffer=64MB",
    ]);
    let mut service = cluster.service();
    service.run("select presence.set_room('stage', audience => '{}')");
    service.run(
        "select count(presence.upsert('stage', user_id => 'u' || n % 140000, connection_id => (n / 140000)::text))
         from generate_series(1, 145000) n",
    );
    assert!(service.is("select presence.wait_for_flush('5 min')"));
    until_kept(&mut service);
    assert_eq!(ask(&mut service), ("145000 140000".into(), false));
    service.run(
        "select count(presence.delete('stage', 'u' || n, c)) from generate_series(1, 1000) n, unnest('{0,1}'::text[]) c",
    );
    until_kept(&mut service);
    assert_eq!(ask(&mut service), ("143000 139000".into(), false));
    cluster.assert_sound();
}

/// Counts by visibility are exact, whatever is on the room's pages.
#[test]
fn what_is_seen_is_counted_as_sql_counts_it() {
    let cluster = Cluster::with(&["presence.max_per_user=0", "presence.member_ids=any"]);
    let (mut service, mut alice) = (stage(&cluster), cluster.user("alice"));
    alice.run("select presence.upsert('stage', audience => '{user:zoe}')");
    let sql = "select count(*) || ' ' || count(distinct user_id) from presence.online where room = 'stage'";
    let agree = |session: &mut Session, what: &str| {
        for isolation in ["read committed", "repeatable read", "serializable"] {
            session.run(&format!("begin isolation level {isolation}"));
            assert_eq!(session.value(OCCUPANCY), session.value(sql), "{what}, {isolation}");
            session.run("commit");
        }
    };
    agree(&mut alice, "she alone");
    for (what, change) in [
        ("others by all kinds of tokens", "update presence.member set audience = array['user:zoe', 'user:alice', 'role:' || n]
            from generate_series(1, 300) n where room = 'stage' and connection_id = n::text"),
        ("one that is too long for its page", "update presence.member set metadata = jsonb_build_object('x', repeat(md5(random()::text), 100)),
            audience = (select array_agg(case n when 15 then 'user:alice' else 'role:' || repeat(n::text, 100) end) from generate_series(1, 16) n)
            where room = 'stage' and connection_id between '400' and '420'"),
        ("those who are present", "update presence.member set audience = '{room:stage}' where room = 'stage' and connection_id like '%5'"),
        ("some have left", "delete from presence.member where room = 'stage' and connection_id like '%7'"),
        ("some have a ttl", "update presence.member set ttl = '1 hour' where room = 'stage' and connection_id like '%4'"),
        ("some leave", "select presence.delete('stage', 'u8', after => '1 hour')"),
    ] {
        service.run(change);
        agree(&mut alice, what);
        alice.flush();
        agree(&mut alice, &format!("{what}, and all of it is published"));
        cluster.sql("app", "vacuum presence.member");
        agree(&mut alice, &format!("{what}, and what is old is gone"));
    }
    // Her own changes, which have no slot yet.
    alice
        .run("begin; select presence.upsert('stage', connection_id => n::text) from generate_series(1, 9) n");
    alice.run("select presence.delete('stage', 'alice', '3')");
    assert_eq!(alice.value(OCCUPANCY), alice.value(sql));
    alice.run("commit");
    agree(&mut alice, "her own");
    cluster.assert_sound();
}
