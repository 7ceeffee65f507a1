//! Leaving with a delay: `presence.delete` with `after`.

use crate::common::{Cluster, Mirror, Session, lines, millis, until};
use std::time::{Duration, Instant};

const HERE: &str = "select count(*) from presence.list('lobby') where member_id = 'alice'";

/// The time at which alice leaves, as text.
fn ends(session: &mut Session) -> String {
    session.value("select expires_at from presence.get('lobby', 'alice')")
}

#[test]
fn who_leaves_is_gone_at_that_moment_worker_or_not() {
    let cluster = Cluster::start();
    let (mut alice, mut bob, mut service) = (cluster.user("alice"), cluster.user("bob"), cluster.service());
    bob.run("select presence.upsert('lobby', ttl => '1 h')");
    alice.run("select presence.upsert('lobby', '{\"n\": 1}', ttl => '1 h')");
    service.flush();
    service.run("select presence.listen()");
    service.hear();
    let frozen = cluster.freeze_worker();
    assert_eq!(alice.number("select presence.delete('lobby', state => '\"bye\"', after => '1 s')"), 1);
    let leaves = ends(&mut alice);
    bob.run("begin isolation level repeatable read; select presence.list('lobby')");
    let past = format!("select clock_timestamp() >= '{leaves}'");
    // Leases run on another clock than the wall clock, which may be half a millisecond apart.
    let not_yet = format!("clock_timestamp() < timestamptz '{leaves}' - interval '1 ms'");
    let maybe = format!("clock_timestamp() < timestamptz '{leaves}' + interval '1 ms'");
    // Without a worker, and with heartbeats that do not move the deadline: everybody sees her until then, and
    // nobody afterwards.
    let (mut beats, mut sessions) = (0, [bob, cluster.service()]);
    loop {
        let [before, here, after] = <[String; 3]>::try_from(
            alice.rows(&format!("select {maybe}, presence.heartbeat('lobby'), {not_yet}")).remove(0),
        )
        .expect("three");
        if before == "f" {
            assert_eq!(here, "f", "her heartbeat after that");
            break;
        }
        assert!(here == "t" || after == "f", "her heartbeat before that");
        beats += 1;
        for session in &mut sessions {
            let row = &session.rows(&format!(
                "with m as materialized (select expires_at = '{leaves}' as same from presence.get('lobby', 'alice'))
                 select (select same from m), {not_yet}"
            ))[0];
            assert!(row[0] == "t" || row[1] == "f", "{row:?}");
        }
    }
    assert!(beats > 10, "only {beats} heartbeats");
    let [bob, other] = &mut sessions;
    for session in [bob, other] {
        assert!(session.is(&past));
        for empty in [
            "select 1 from presence.list('lobby') where member_id = 'alice'",
            "select 1 from presence.get('lobby', 'alice')",
            "select 1 from presence.online where member_id = 'alice'",
            "select 1 where presence.state('lobby') ? 'alice'",
            "select 1 from presence.users('lobby') where user_id = 'alice'",
            "select 1 from presence.occupancy('lobby') where members <> 1",
            "select 1 from presence.rooms() where members <> 1",
        ] {
            assert_eq!(session.rows(empty).len(), 0, "{empty}");
        }
    }
    for empty in [
        "select 1 from presence.update('lobby', '{\"late\": true}')",
        "select 1 where presence.delete('lobby', after => '1 min') > 0",
        "update presence.member set leaves_at = null where member_id = 'alice' returning 1",
    ] {
        assert_eq!(alice.rows(empty).len(), 0, "{empty}");
    }
    assert_eq!(service.number("select count(*) from presence.member"), 2, "the row waits for the sweeper");
    drop(frozen);
    let heard = service.hear_until("the leave", |event| event.kind() == "leave");
    assert_eq!(lines(&heard), ["leave alice left"]);
    let leave = heard.last().expect("it");
    assert_eq!((&leave["state"], &leave["connections"]), (&"bye".into(), &0.into()));
    assert!(service.is(&format!("select '{}'::timestamptz = '{leaves}'", leave.text("at"))));
    let history = "select event, state, reason from presence.history('lobby', member_id => 'alice')";
    assert_eq!(service.rows(history), [["leave", "\"bye\"", "left"], ["enter", "{\"n\": 1}", ""]]);
    assert_eq!(lines(&service.hear()), [""; 0]);
    until("nothing of alice is left", || service.is("select members + slots_used = 2 from presence.health"));
    let lag = service.value("select extract(epoch from sweep_lag) from presence.health");
    assert!(lag.parse::<f64>().expect("seconds") < 5.0, "she had an hour, and is {lag} s late");
    cluster.assert_sound();
}

/// Like a page reload: nobody notices.
#[test]
fn who_comes_back_in_time_never_left() {
    let cluster = Cluster::start();
    let (mut alice, mut again, mut service) =
        (cluster.user("alice"), cluster.user("alice"), cluster.service());
    alice.run("select presence.upsert('lobby', '1'); select presence.upsert('side', '1')");
    service.run("select presence.listen()");
    service.hear();
    for back in [
        "select presence.upsert('lobby', '1'); select presence.upsert('side')",
        r#"select presence.upsert_many('[{"room": "lobby"}, {"room": "side", "state": 1}]')"#,
        "update presence.member set leaves_at = null",
    ] {
        // Requested by the user or by a service role, for one room or for several.
        alice.run("select presence.delete('lobby', state => '\"bye\"', after => '1 s')");
        service.run(r#"select presence.delete_many('[{"room": "side", "member_id": "alice", "after": "1 s", "reason": "removed"}]')"#);
        let leaves = ends(&mut alice);
        again.run(back);
        until("that time is over", || service.is(&format!("select clock_timestamp() > '{leaves}'")));
        assert_eq!(lines(&service.hear()), [""; 0], "{back}");
        assert_eq!(
            service.number(
                "select count(*) from presence.list() where expires_at > last_seen_at + interval '1 min'"
            ),
            2,
            "{back}"
        );
        assert_eq!(
            service.number(
                "select num_nonnulls(leaves_at, last_word, leave_reason) from presence.member limit 1"
            ),
            0
        );
    }
    // An upsert that is still uncommitted at the deadline: nobody else sees the member meanwhile; after the
    // commit it is back, and published.
    alice.run("select presence.delete('lobby', after => '500 ms')");
    again.run("begin; select presence.upsert('lobby')");
    until("that time is over", || service.number(HERE) == 0);
    assert_eq!(again.number(HERE), 1);
    again.run("commit");
    assert_eq!(service.number(HERE), 1);
    assert_eq!(lines(&service.hear()), ["update alice"]);
    cluster.assert_sound();
}

#[test]
fn a_transaction_that_says_so_is_one_that_may_fail() {
    let cluster = Cluster::start();
    let (mut alice, mut other, mut service) =
        (cluster.user("alice"), cluster.user("alice"), cluster.service());
    alice.run("select presence.upsert('lobby', ttl => '2 s')");
    service.run("select presence.listen()");
    service.hear();

    // A heartbeat sent before the delayed leave commits is an ordinary heartbeat.
    let whole = "select extract(epoch from expires_at - clock_timestamp()) > 1.9 from presence.get('lobby')";
    alice.run("begin; select presence.delete('lobby', after => '1 s')");
    other.run("select pg_sleep(0.2), presence.heartbeat('lobby')");
    assert!(other.is(whole), "to others she stays");
    assert!(!alice.is(whole), "to herself she leaves");
    assert!(alice.is("select presence.heartbeat('lobby')"));
    alice.run("rollback");
    assert!(alice.is(whole));
    // Rolling back to a savepoint undoes the delayed leave, but keeps the heartbeats made after it.
    alice.run("begin; select presence.upsert('lobby', '1'), pg_sleep(0.2); savepoint s; select presence.delete('lobby', after => '1 s'), presence.heartbeat('lobby'); rollback to s; commit");
    assert!(alice.is(whole));
    assert_eq!(lines(&service.hear()), ["update alice"]);

    // A concurrent upsert waits, and the member stays; a later delayed leave takes precedence.
    alice.run("begin; select presence.delete('lobby', after => '1 s')");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| other.run("select presence.upsert('lobby', ttl => '1 h')"));
        until("it waits", || {
            service.is("select exists (select from pg_stat_activity where wait_event_type = 'Lock')")
        });
        alice.run("commit");
        waiting.join().expect("the upsert");
    });
    assert_eq!(alice.value("select expires_at - last_seen_at from presence.get('lobby')"), "01:00:00");
    other.run("begin; select presence.upsert('lobby', '3')");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| alice.run("select presence.delete('lobby', after => '1 s')"));
        until("it waits", || {
            service.is("select exists (select from pg_stat_activity where wait_event_type = 'Lock')")
        });
        other.run("commit");
        waiting.join().expect("the delete");
    });
    let heard = service.hear_until("the leave", |event| event.kind() == "leave");
    assert_eq!(lines(&heard), ["update alice", "leave alice left"]);

    // In a transaction with a snapshot, a concurrent change is an error, as for any write.
    alice.run("select presence.upsert('lobby')");
    alice.run("begin isolation level repeatable read; select 1");
    other.run("select presence.upsert('lobby', '2')");
    assert_eq!(alice.fails("select presence.delete('lobby', after => '1 s')").code, "40001");
    alice.run("rollback; begin isolation level repeatable read");
    assert_eq!(alice.number("select presence.delete('lobby', after => '1 s')"), 1);
    alice.run("commit");
    service.hear_until("the leave", |event| event.line() == "leave alice left");

    // Requested in time, but committed after the lease and the delay ended: one leave, and nothing before it.
    alice.run("select presence.upsert('lobby', ttl => '1 s')");
    service.hear();
    alice.run("begin; select presence.delete('lobby', state => '\"late\"', after => '1 h'), pg_sleep(1.1)");
    assert_eq!(service.number(HERE), 0);
    alice.run("commit");
    let heard = service.hear_until("the leave", |event| event.kind() == "leave");
    assert_eq!(lines(&heard), ["leave alice expired"]);
    assert_eq!(heard.last().expect("it")["state"], "late");
    cluster.assert_sound();
}

#[test]
fn a_restart_neither_shortens_nor_lengthens_it() {
    let cluster = Cluster::with(&["presence.restart_grace=30s"]);
    let (mut alice, mut bob, mut service) = (cluster.user("alice"), cluster.user("bob"), cluster.service());
    let mut carol = cluster.user("carol");
    alice.run("select presence.upsert('lobby', ttl => '1 h'), presence.upsert('side', ttl => '1 h')");
    alice.run("select presence.upsert('late', ttl => '1 h')");
    bob.run("select presence.upsert('lobby', ttl => '4 s')");
    carol.run("select presence.upsert('lobby', session => true)");
    service.flush();
    let seq = service.number("select presence.seq()");
    alice.run("select presence.delete('lobby', state => '\"bye\"', after => '5 s')");
    alice.run("select presence.delete('side', after => '300 ms'), presence.delete('late', after => '1 h')");
    bob.run("select presence.delete('lobby', after => '1 h')");
    carol.run("select presence.delete('lobby', after => '1 h')");
    let times = "select room, member_id, expires_at, last_seen_at from presence.list() where room <> 'side' and member_id <> 'carol'";
    let held = service.rows(times);
    assert_eq!(held.len(), 3);
    cluster.stop("fast");
    std::thread::sleep(millis(400));
    cluster.start_again();
    let (mut service, mut alice) = (cluster.service(), cluster.user("alice"));
    // This holds from the first query on, with or without a worker.
    assert_eq!(
        service.rows("select 1 from presence.online where room = 'side' or member_id = 'carol'").len(),
        0
    );
    for row in &held {
        assert!(service.is(&format!(
            "select abs(extract(epoch from expires_at - '{}')) < 0.1 from presence.get('{}', '{}')",
            row[2], row[0], row[1]
        )));
        assert_eq!(
            service.value(&format!("select last_seen_at from presence.get('{}', '{}')", row[0], row[1])),
            row[3],
            "{row:?}"
        );
    }
    assert!(alice.is("select presence.heartbeat('lobby')"));
    alice.run("select presence.upsert('late')");
    assert!(alice.is("select expires_at - last_seen_at = ttl from presence.get('late')"));
    let left = format!(
        "select room, member_id, reason, coalesce(state #>> '{{}}', '') from presence.changes({seq}) where event = 'leave'
         order by room, member_id"
    );
    until("all have left", || service.rows(&left).len() >= 4);
    assert_eq!(
        service.rows(&left),
        [
            ["lobby", "alice", "left", "bye"],
            ["lobby", "bob", "expired", "{}"],
            ["lobby", "carol", "disconnected", "{}"],
            ["side", "alice", "left", "{}"]
        ]
    );
    let at = format!(
        "select at from presence.changes({seq}) where event = 'leave' and room = 'lobby' and member_id = 'alice'"
    );
    let at = service.value(&at);
    let alices = held.iter().find(|row| row[0] == "lobby" && row[1] == "alice").expect("hers");
    assert!(
        service.is(&format!("select abs(extract(epoch from '{at}'::timestamptz - '{}')) < 0.1", alices[2]))
    );
    assert_eq!(service.rows("select members, slots_used from presence.health")[0], ["1", "1"]);
    cluster.assert_sound();
}

/// The lease of a member without a slot is stored in its row.
#[test]
fn members_without_a_slot_have_it_too() {
    let cluster = Cluster::with(&["presence.max_members=10", "presence.restart_grace=30s"]);
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    service.run(
        "select presence.upsert('hall', member_id => 'm' || n, user_id => 'u', ttl => '1 day') from generate_series(1, 10) n",
    );
    alice.run("select presence.upsert('lobby', ttl => '1 h'), presence.upsert('side', ttl => '1 h')");
    assert_eq!(service.number("select slots_used from presence.health"), 10);
    let seen = alice.value("select last_seen_at from presence.get('lobby')");
    alice.run("select presence.delete('lobby', after => '1 min')");
    let leaves = ends(&mut alice);
    for beat in ["", "begin read only;"] {
        assert!(alice.is(&format!("{beat} select presence.heartbeat('lobby')")), "{beat}");
        alice.run("commit");
        assert_eq!(ends(&mut alice), leaves);
    }
    alice.run("select presence.update('lobby', '{\"n\": 1}')");
    assert_eq!(ends(&mut alice), leaves);
    assert_eq!(alice.value("select last_seen_at from presence.get('lobby')"), seen);
    alice.run("select presence.upsert('lobby')");
    assert_eq!(alice.value("select expires_at - last_seen_at from presence.get('lobby')"), "01:00:00");

    service.flush();
    let seq = service.number("select presence.seq()");
    alice.run("select presence.delete('lobby', state => '\"bye\"', after => '4 s'), presence.delete('side', after => '200 ms')");
    let leaves = ends(&mut alice);
    cluster.stop("fast");
    std::thread::sleep(millis(200));
    cluster.start_again();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    assert_eq!(service.number("select count(*) from presence.list('side')"), 0);
    assert_eq!(ends(&mut alice), leaves, "not by the grace of the restart");
    assert!(alice.is("select presence.heartbeat('lobby')"));
    let left = format!(
        "select room, reason, at = '{leaves}' from presence.changes({seq}) where event = 'leave' order by 1"
    );
    until("both have left", || service.rows(&left).len() == 2);
    assert_eq!(service.rows(&left), [["lobby", "left", "t"], ["side", "left", "f"]]);
    assert_eq!(service.number("select count(*) from presence.member"), 10);
    cluster.assert_sound();
}

#[test]
fn a_session_member_leaves_with_whichever_ends_first() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    service.run("select presence.listen()");
    let enter = |after: &str| {
        let mut alice = cluster.user("alice");
        alice.run("select presence.upsert('lobby', session => true)");
        assert_eq!(
            alice.number(&format!("select presence.delete('lobby', state => '\"bye\"', after => '{after}')")),
            1
        );
        alice
    };
    let leave = |service: &mut Session| {
        let heard = service.hear_until("the leave", |event| event.kind() == "leave");
        assert_eq!(heard.last().expect("it")["state"], "bye");
        lines(&heard).pop().expect("a line")
    };
    drop(enter("1 h"));
    assert_eq!(leave(&mut service), "leave alice disconnected");
    let alice = enter("300 ms");
    assert_eq!(leave(&mut service), "leave alice left");
    drop(alice);
    // The session ends before the sweep, but after the deadline; and the other way round.
    for (after, wait, line) in
        [("200 ms", 300, "leave alice left"), ("600 ms", 0, "leave alice disconnected")]
    {
        let mut alice = enter(after);
        let (pid, frozen) = (alice.pid(), cluster.freeze_worker());
        std::thread::sleep(millis(wait));
        drop(alice);
        let gone = format!("select count(*) = 0 from pg_stat_activity where pid = {pid}");
        let mut other = cluster.service();
        until("the session is over", || other.is(&gone));
        assert_eq!(other.number(HERE), 0);
        std::thread::sleep(millis(700 - wait));
        drop(frozen);
        assert_eq!(leave(&mut service), line);
    }
    until("nobody is here", || service.is("select members + slots_used = 0 from presence.health"));
    cluster.assert_sound();
}

/// A user whom the authorizer no longer admits may still leave; a user who may manage a room can make others
/// leave.
#[test]
fn who_may_say_it() {
    let cluster = Cluster::with(&["presence.member_ids=any"]);
    cluster.sql(
        "app",
        "create schema app; grant usage on schema app to public;
         create table app.banned (name text); grant select on app.banned to public;
         create function app.authorize(room text, action text) returns boolean language sql stable
             as $f$ select case action when 'manage' then current_user = 'carol' when 'read' then true
                    else not exists (select from app.banned b where b.name = current_user) end $f$;
         alter database app set presence.authorizer = 'app.authorize'",
    );
    let [mut alice, mut bob, mut carol] = ["alice", "bob", "carol"].map(|user| cluster.user(user));
    let mut service = cluster.service();
    service.run("select presence.listen()");
    alice.run("select presence.upsert('lobby', connection_id => c, audience => '{}') from unnest('{1,2,3}'::text[]) c");
    cluster.sql("app", "insert into app.banned values ('alice')");
    assert_eq!(alice.fails("select presence.upsert('lobby', '1', connection_id => '1')").code, "42501");
    assert_eq!(alice.number("select presence.delete('lobby', connection_id => '1', after => '1 s')"), 1);
    assert_eq!(bob.fails("select presence.delete('lobby', 'alice', '2', after => '1 s')").code, "42501");
    assert_eq!(bob.fails("select presence.delete('lobby', 'alice', '1', after => '1 h')").code, "42501");
    let denied = bob.try_rows("update presence.member set leaves_at = now() returning 1").expect("no rows");
    assert_eq!(denied.len(), 0);
    assert_eq!(
        carol
            .fails("select presence.delete('lobby', 'alice', '2', after => '1 s', reason => 'removed')")
            .code,
        "42501"
    );
    assert_eq!(
        carol.number("select presence.delete('lobby', 'alice', null, state => '\"out\"', after => '1 s')"),
        3,
        "whom she may not see"
    );
    let mut heard = Vec::new();
    for _ in 0..3 {
        heard.extend(service.hear_until("another leave", |event| event.kind() == "leave"));
    }
    for leave in heard.iter().filter(|event| event.kind() == "leave") {
        assert_eq!((&leave["reason"], &leave["state"]), (&"left".into(), &"out".into()));
    }
    // A user without any write access cannot request it either.
    service.run("create role reader login; select presence.grant_access('reader', write => false)");
    assert_eq!(cluster.user("reader").fails("select presence.upsert('lobby')").code, "42501");
    service.run("select presence.upsert('lobby', user_id => 'reader')");
    assert_eq!(cluster.user("reader").fails("select presence.delete('lobby', after => '1 s')").code, "42501");
    cluster.assert_sound();
}

/// One leave each, whatever happens to the worker; the final states do not fill the buffer.
#[test]
fn a_thousand_that_leave_together_leave_once_each() {
    let cluster = Cluster::with(&["presence.event_buffer=1MB"]);
    let mut service = cluster.service();
    service.run("select presence.listen()");
    for from in (1..=500).step_by(50) {
        service.run(&format!(
            "select presence.upsert('hall', member_id => 'm' || n, user_id => 'u' || n % 7, ttl => '1 h')
             from generate_series({from}, {from} + 49) n"
        ));
        service.flush();
    }
    let mut mirror = Mirror::of(&mut service);
    let say = "select count(presence.delete('hall', member_id => 'm' || n, state => to_jsonb(repeat('x', 20000)), after => '2 s'))
               from generate_series(1, 500) n";
    assert_eq!(service.number(say), 500);
    let began = Instant::now();
    let mut other = cluster.service();
    while began.elapsed() < Duration::from_secs(4) && other.number("select count(*) from presence.member") > 0
    {
        other.run("select pg_terminate_backend(presence.worker_pid())");
        std::thread::sleep(millis(300));
    }
    until("all have left", || other.is("select count(*) = 0 from presence.member"));
    cluster.until_worker("app");
    mirror.follow(&mut service);
    mirror.assert_true(&mut service);
    let left = "select count(*), count(distinct member_id), min(reason), max(reason), bool_and(length(state #>> '{}') = 20000)
                from presence.event where event = 'leave'";
    assert_eq!(service.rows(left)[0], ["500", "500", "left", "left", "t"]);
    assert_eq!(service.number("select events_dropped from presence.health"), 0);
    // A crash ends everything, including the delayed leave.
    service.run("select presence.upsert('hall', '1'), presence.delete('hall', after => '1 s')");
    cluster.stop("immediate");
    cluster.start_again();
    assert_eq!(cluster.service().number("select count(*) from presence.member"), 0);
}
