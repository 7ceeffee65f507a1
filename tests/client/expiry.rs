//! A lease that ends: the member is gone at once, with one leave.

use crate::common::{Cluster, lines, millis, until};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

#[test]
fn an_expired_member_is_gone_at_its_deadline_worker_or_not() {
    let cluster = Cluster::start();
    let (mut alice, mut bob, mut service) = (cluster.user("alice"), cluster.user("bob"), cluster.service());
    service.run("select presence.listen()");
    bob.run("select presence.upsert('lobby')");
    alice.run("select presence.upsert('lobby', '{\"a\": 1}', ttl => '1 s')");
    let joined = alice.value("select joined_at from presence.get('lobby')");
    service.hear();

    let frozen = cluster.freeze_worker();
    let alive = "select now() < expires_at from presence.online where member_id = 'alice'";
    // The clock runs on within a long transaction.
    bob.run("begin isolation level repeatable read; select presence.list('lobby')");
    assert!(bob.is(alive));
    until("the deadline is over", || alice.rows(alive).is_empty());
    assert_eq!(bob.rows(alive).len(), 0);
    bob.run("commit");
    for empty in [
        "select 1 from presence.list('lobby') where member_id = 'alice'",
        "select 1 from presence.get('lobby', 'alice')",
        "select 1 from presence.online where member_id = 'alice'",
        "select 1 where presence.state('lobby') ? 'alice'",
        "select 1 from presence.occupancy('lobby') where members > 0",
        "select 1 from presence.update('lobby', '{\"late\": true}')",
        "select 1 where presence.heartbeat('lobby')",
        "select 1 where presence.delete('lobby') > 0",
        "update presence.member set status = 'late' where member_id = 'alice' returning 1",
        "delete from presence.member where member_id = 'alice' returning 1",
    ] {
        assert_eq!(alice.rows(empty).len(), 0, "{empty}");
    }
    assert_eq!(service.number("select count(*) from presence.member"), 2, "the row waits for the sweeper");

    // A sweep or a return that is rolled back changes nothing: the member is still gone, and leaves later,
    // once.
    for undone in ["select presence.sweep()", "select presence.upsert('lobby', ttl => '1 s')"] {
        service.run(&format!("begin; {undone}"));
        assert!(!alice.is("select presence.heartbeat('lobby')"), "{undone}");
        service.run("rollback");
        assert!(!alice.is("select presence.heartbeat('lobby')"), "{undone}");
        alice.run(&format!("begin; {}; rollback", undone.replace("sweep()", "delete('lobby')")));
        assert_eq!(alice.rows("select 1 from presence.get('lobby')").len(), 0, "{undone}");
    }

    // A member who returns before the sweep leaves and enters.
    let rows = alice.rows("select state, joined_at from presence.upsert('lobby', ttl => '1 s')");
    assert_eq!(rows[0][0], "{}", "nothing is left of the old stay");
    assert_ne!(rows[0][1], joined);
    drop(frozen);
    assert_eq!(lines(&service.hear()), ["leave alice expired", "enter alice"]);

    let heard = service.hear_until("the second leave", |event| event.line() == "leave alice expired");
    let leave = heard.last().expect("it");
    let late = service.number(&format!(
        "select (extract(epoch from clock_timestamp() - '{}'::timestamptz) * 1000)::bigint",
        leave.text("at")
    ));
    assert!((0..1_100).contains(&late), "published {late} ms after its deadline");
    assert_eq!(leave["connections"], 0);
    until("nothing of alice is left", || service.is("select members + slots_used = 2 from presence.health"));
    assert_eq!(lines(&service.hear()), [""; 0]);
    cluster.assert_sound();
}

#[test]
fn a_thousand_that_expire_together_leave_once_each() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    service.run("select presence.listen()");
    service.run(
        "select presence.upsert('hall ' || n % 3, member_id => 'user ' || n, user_id => 'user ' || n, ttl => '2 s')
         from generate_series(1, 1000) n",
    );
    service.hear();
    let last = "select extract(epoch from max(expires_at) - clock_timestamp()) * 1000 from presence.member";
    let wait: f64 = service.value(last).parse().expect("milliseconds");
    let latest = Instant::now() + Duration::from_micros((wait * 1_000.0) as u64) + millis(1_100);

    let mut left: HashMap<String, usize> = HashMap::new();
    while left.len() < 1_000 {
        let timeout = (latest + millis(1_000)).saturating_duration_since(Instant::now());
        let event = service.next_event(timeout).unwrap_or_else(|| panic!("only {} leaves", left.len()));
        assert_eq!(event["reason"], "expired");
        *left.entry(event.line()).or_default() += 1;
    }
    assert!(Instant::now() < latest, "the last leave is late");
    assert_eq!(service.hear().len(), 0, "nobody leaves twice");
    assert!(left.values().all(|count| *count == 1));
    until("all slots are free", || service.is("select members + slots_used = 0 from presence.health"));
    assert_eq!(service.number("select expired from presence.health"), 1_000);
    cluster.assert_sound();
}

/// Sweeps, deletes, heartbeats and expiry itself all act on the same members at their deadlines.
#[test]
fn one_leave_however_many_race_for_it() {
    const MEMBERS: usize = 60;
    let cluster = Cluster::start();
    let mut service = cluster.service();
    service.run("create table beat (member_id text, at timestamptz)");
    service.run("select presence.listen()");
    // Three rounds, and on a busy machine more until a heartbeat has come in time.
    let mut round = 0;
    while round < 3 || (round < 20 && service.is("select count(*) = 0 from beat")) {
        round += 1;
        service.run(&format!(
            "select presence.upsert('race', member_id => '{round}/' || n, user_id => 'u', ttl => '1 s')
             from generate_series(1, {MEMBERS}) n"
        ));
        // A member whose lease is about to end.
        let one =
            "select member_id from presence.online where expires_at < clock_timestamp() + interval '3 ms'
                   order by random() limit 1";
        let sweep = "select presence.sweep()".to_owned();
        let delete = format!("select presence.delete('race', member_id) from ({one}) m");
        // Only some members, or none would ever expire. The time is taken before the heartbeat.
        let beat = format!(
            "with one as materialized (select member_id, clock_timestamp() as at from ({one}) m
                                       where member_id like '%3' or member_id like '%7')
             insert into beat select member_id, at from one where presence.heartbeat('race', member_id)"
        );
        let end = Instant::now() + millis(1_800);
        std::thread::scope(|scope| {
            for statement in [&sweep, &delete, &beat, &beat] {
                let mut session = cluster.service();
                scope.spawn(move || {
                    while Instant::now() < end {
                        session.run(statement);
                    }
                });
            }
        });
        until("all are gone", || service.is("select members = 0 from presence.health"));
        let heard = lines(&service.hear());
        let leaves: HashSet<&String> = heard.iter().filter(|line| line.starts_with("leave")).collect();
        assert_eq!((leaves.len(), heard.len()), (MEMBERS, 2 * MEMBERS), "each enters once and leaves once");
    }
    assert!(service.is("select count(*) > 0 from beat"));
    let early = "select beat.*, event.at from beat join presence.event using (member_id)
                 where reason = 'expired' and event.at < beat.at + interval '1 s'";
    assert_eq!(service.rows(early), [[""; 0]; 0], "a heartbeat said true and did not renew");
    until("all slots are free", || service.is("select slots_used = 0 from presence.health"));
    cluster.assert_sound();
}

/// The functions behind `online` share one lookup per row within a query, but not across queries.
#[test]
fn a_query_is_not_answered_with_what_an_earlier_one_saw() {
    let cluster = Cluster::start();
    let mut alice = cluster.service();
    alice.run("select presence.upsert('lobby', ttl => '1 hour')");
    // `count(*)` only checks whether the row is alive.
    let look = "select count(*) from presence.online";
    let seen =
        "select _presence._last_seen_at(key_hash, version, generation, deadline, session, ttl, last_seen_at)
                from presence.member";
    let expires = "select _presence._expires_at(key_hash, version, generation, deadline, session)
                   from presence.member";
    for ask in [seen, expires] {
        let before = alice.value(ask);
        for client in [
            format!("{look}; select pg_sleep(0.02); select presence.heartbeat('lobby'); {ask}"),
            format!(
                "begin; {look}; select pg_sleep(0.02); select presence.heartbeat('lobby'); commit; {look}; {ask}"
            ),
        ] {
            assert_ne!(alice.value(&client), before, "{client}");
        }
        // Within one client statement, whose timestamp and command number stay the same throughout.
        alice.run(&format!(
            "create or replace function public.ask() returns boolean language plpgsql as $$
             declare before timestamptz; after timestamptz; here bigint; begin
                 before := ({ask}); {into};
                 perform pg_sleep(0.02), presence.heartbeat('lobby');
                 after := ({ask});
                 return after > before; end $$",
            into = look.replace("count(*)", "count(*) into here"),
        ));
        assert!(alice.is("select public.ask()"), "{ask}");
    }
    cluster.assert_sound();
}
