//! Status and state that revert by themselves: for readers exactly at their time, with one event, whatever
//! happens to the worker, the server or the clock.

use crate::common::{Cluster, Event, Mirror, Session, lines, millis, until};
use serde_json::json;
use std::time::Duration;

/// The time of the next revert of alice's status in the lobby, in seconds since 1970.
const MOMENT: &str = "(select extract(epoch from timestamptz '2000-01-01 00:00+00')
    + ((reverts -> 'status' ->> 'at')::bigint + (reverts ->> 'offset')::bigint) / 1000000.0
    from presence.member where room = 'lobby' and member_id = 'alice')";

/// Alice and bob are in the lobby, and the service listens.
fn lobby(cluster: &Cluster) -> (Session, Session, Session) {
    let (mut alice, mut bob, mut service) = (cluster.user("alice"), cluster.user("bob"), cluster.service());
    service.run("select presence.listen()");
    bob.run("select presence.upsert('lobby')");
    alice.run("select presence.upsert('lobby', '{\"x\": 1}', status => 'online')");
    service.hear();
    (alice, bob, service)
}

fn typing(alice: &mut Session, revert_after: &str) {
    alice.run(&format!(
        "select presence.update('lobby', '{{\"typing\": true}}', status => 'typing', revert_after => '{revert_after}')"
    ));
}

fn is_typing(session: &mut Session) -> bool {
    session.is("select status = 'typing' from presence.get('lobby', 'alice')")
}

fn told(event: &Event) -> (String, serde_json::Value, serde_json::Value) {
    (event.line(), event["status"].clone(), event["state"].clone())
}

#[test]
fn all_readers_see_it_at_its_moment_worker_or_not() {
    let cluster = Cluster::start();
    let (mut alice, mut bob, mut service) = lobby(&cluster);
    let frozen = cluster.freeze_worker();
    typing(&mut alice, "0.7 s");
    let moment = service.value(&format!("select {MOMENT}"));
    // The clock runs on within a long transaction.
    bob.run("begin isolation level repeatable read");
    let look = "select o.status, o.state ? 'typing', u.status, presence.state('lobby') @? '$.alice[*] ? (@.typing == true)'
         from presence.list('lobby') o join presence.users('lobby') u using (user_id) where o.member_id = 'alice'";
    let is_over = format!("select extract(epoch from clock_timestamp()) > {moment}");
    let (mut before, mut after) = (0, 0);
    while after < 3 {
        // The time is read in separate queries: within one query the plan decides whether functions run
        // before or after the clock is read.
        let (began, row, ended) = (bob.is(&is_over), &bob.rows(look)[0], bob.is(&is_over));
        match (began, ended) {
            (true, true) => {
                assert_eq!(row[..], ["online", "f", "online", "f"]);
                after += 1;
            }
            (false, false) => {
                assert_eq!(row[..], ["typing", "t", "typing", "t"]);
                before += 1;
            }
            // The revert happened between the queries.
            _ => {}
        }
        std::thread::sleep(millis(20));
    }
    assert!(before > 3, "looked {before} times before it");
    bob.run("commit");
    assert!(service.is(
        "select status = 'typing' and reverts is not null from presence.member where member_id = 'alice'"
    ));
    assert!(alice.is("select presence.heartbeat('lobby')"));

    drop(frozen);
    let heard = service.hear_until("the revert", |event| event["status"] == "online");
    assert_eq!(lines(&heard), ["update alice", "update alice"]);
    assert_eq!(heard[1]["state"], json!({"x": 1}));
    // The event has the time of the revert, does not count as a sign of life, and is the last one.
    let at =
        format!("select abs(extract(epoch from '{}'::timestamptz) - {moment}) < 0.001", heard[1].text("at"));
    assert!(service.is(&at), "{}", heard[1].text("at"));
    assert!(service.is("select reverts is null from presence.member where member_id = 'alice'"));
    assert_eq!(lines(&service.hear()), [""; 0]);
    cluster.assert_sound();
}

/// Set in one call, status and state revert at the same time for each row of a query, in whatever order it
/// evaluates them.
#[test]
fn status_and_state_are_of_one_moment() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    let frozen = cluster.freeze_worker();
    service.run(
        "create table people as select n::text as user_id from generate_series(1, 2000) n; analyze people;
         select presence.upsert('r', '{\"typing\": true}', user_id => n::text, status => 'typing',
                                revert_after => n * interval '0.5 ms' + interval '0.2 s')
         from generate_series(1, 2000) n",
    );
    let torn = "count(*) filter (where (o.status is not null) <> (o.state ? 'typing')),
                count(*) filter (where o.status is not null)";
    let queries = [
        format!("select {torn} from presence.online o"),
        format!("select {torn} from (select state, status from presence.list('r') order by joined_at) o"),
        format!(
            "set enable_nestloop = off; set enable_mergejoin = off;
                 select {torn} from presence.online o join people using (user_id)"
        ),
        format!("select {torn} from people p left join presence.online o using (user_id)"),
    ];
    let mut seen_between = 0;
    'over: loop {
        for query in &queries {
            let row = service.rows(query).pop().expect("a row");
            assert_eq!(row[0], "0", "{query}");
            match row[1].as_str() {
                "0" => break 'over,
                "2000" => {}
                _ => seen_between += 1,
            }
        }
    }
    assert!(seen_between > 4, "{seen_between} looks while they reverted");
    drop(frozen);
    until("all rows are as they are seen", || service.is("select count(reverts) = 0 from presence.member"));
    service.flush();
    assert_eq!(service.number("select count(*) from presence.event where event = 'update'"), 2000);
    cluster.assert_sound();
}

#[test]
fn what_comes_between_moment_and_sweep_starts_from_what_it_reverted_to() {
    let cluster = Cluster::start();
    let (mut alice, mut bob, mut service) = lobby(&cluster);
    let revert = |alice: &mut Session, bob: &mut Session| {
        alice.run("select presence.upsert('lobby', '{\"x\": 1}', status => 'online')");
        let frozen = cluster.freeze_worker();
        typing(alice, "0.2 s");
        until("it has reverted", || !is_typing(bob));
        frozen
    };
    let last = |service: &mut Session| {
        let events = service.hear();
        (events.len(), events.last().map(told).expect("one"))
    };
    for (write, status, state) in [
        // Only a renewal; it returns the current values.
        (
            "select status = 'online' and state = '{\"x\": 1}' from presence.upsert('lobby')",
            "online",
            json!({"x": 1}),
        ),
        (
            "select state = '{\"x\": 1, \"y\": 2}' from presence.update('lobby', '{\"y\": 2}')",
            "online",
            json!({"x": 1, "y": 2}),
        ),
        // The values it reverted to, which listeners know.
        (
            "select status = 'online' from presence.upsert('lobby', '{\"x\": 1}', status => 'online')",
            "online",
            json!({"x": 1}),
        ),
        // The values from before the revert, which some readers have already seen reverted.
        (
            "select true from presence.update('lobby', '{\"typing\": true}', status => 'typing')",
            "typing",
            json!({"x": 1, "typing": true}),
        ),
        (
            "update presence.member set metadata = '{\"name\": \"A\"}' where member_id = 'alice' returning status = 'online'",
            "online",
            json!({"x": 1}),
        ),
        (
            "update presence.member set status = 'dml' where member_id = 'alice' returning state = '{\"x\": 1}'",
            "dml",
            json!({"x": 1}),
        ),
    ] {
        let frozen = revert(&mut alice, &mut bob);
        assert!(alice.is(write), "{write}");
        drop(frozen);
        let (_, (line, told_status, told_state)) = last(&mut service);
        assert_eq!(
            (line.as_str(), told_status, told_state),
            ("update alice", json!(status), state),
            "{write}"
        );
        assert!(service.is("select bool_and(reverts is null) from presence.member"), "{write}");
        alice.run("select presence.delete('lobby')");
        service.hear();
    }
    // Two typing events and one for the write that follows: in a single batch only the last, otherwise all of
    // them.
    for leave in ["select presence.delete('lobby')", "delete from presence.member where member_id = 'alice'"]
    {
        let frozen = revert(&mut alice, &mut bob);
        alice.run(leave);
        drop(frozen);
        assert_eq!(
            last(&mut service).1,
            ("leave alice left".into(), json!("online"), json!({"x": 1})),
            "{leave}"
        );
    }
    // A member expires with the values of that time.
    for (revert_after, status) in [("0.5 s", "online"), ("1.5 s", "typing")] {
        alice.run("select presence.upsert('lobby', '{\"x\": 1}', status => 'online', ttl => '1 s')");
        let frozen = cluster.freeze_worker();
        typing(&mut alice, revert_after);
        std::thread::sleep(millis(1_600));
        drop(frozen);
        let heard = service.hear_until("the leave", |event| event.kind() == "leave");
        assert_eq!(heard.last().expect("it")["status"], status);
    }
    cluster.assert_sound();
}

#[test]
fn a_later_call_moves_it_or_makes_it_stand() {
    let cluster = Cluster::start();
    let (mut alice, mut bob, mut service) = lobby(&cluster);
    for _ in 0..6 {
        typing(&mut alice, "0.6 s");
        std::thread::sleep(millis(200));
        assert!(is_typing(&mut bob));
    }
    let heard = service.hear_until("the revert", |event| event["status"] == "online");
    assert_eq!(lines(&heard), ["update alice", "update alice"], "one for each way");
    assert_eq!(heard[1]["state"], json!({"x": 1}));

    typing(&mut alice, "0.3 s");
    alice.run("select presence.update('lobby', '{\"typing\": true}')");
    let heard = service.hear_until("the revert of the status", |event| event["status"] == "online");
    assert_eq!(heard.last().expect("it")["state"], json!({"x": 1, "typing": true}));

    // A value set on enter reverts to nothing; the lease is independent of that.
    bob.run("select presence.upsert('side', '{\"call\": 1}', status => 'busy', ttl => '1 s', revert_after => '0.2 s')");
    let heard = service.hear_until("the end", |event| event.line() == "leave bob expired");
    assert_eq!(lines(&heard), ["enter bob", "update bob", "leave bob expired"]);
    assert_eq!((&heard[1]["state"], &heard[1]["status"]), (&json!({}), &json!(null)));
    // If the revert is later than the lease, the member expires first.
    bob.run("select presence.upsert('side', '{\"call\": 1}', ttl => '1 s', revert_after => '1 h')");
    let heard = service.hear_until("the end", |event| event.line() == "leave bob expired");
    assert_eq!(heard.last().expect("it")["state"], json!({"call": 1}));
    // A rollback leaves no revert.
    alice.run("begin");
    typing(&mut alice, "0.1 s");
    alice.run("rollback");
    service.run("select pg_sleep(0.3)");
    assert_eq!(lines(&service.hear()), [""; 0]);
    cluster.assert_sound();
}

/// A transaction may stay open longer than the value is to last.
#[test]
fn what_is_committed_late_reverts_at_once() {
    let cluster = Cluster::start();
    let (mut alice, mut bob, mut service) = lobby(&cluster);
    alice.run("begin");
    typing(&mut alice, "0.2 s");
    let own = "select status from presence.get('lobby')";
    assert_eq!(alice.value(own), "typing");
    until("its time is over", || alice.value(own) == "online");
    alice.run("commit");
    assert!(!is_typing(&mut bob));
    let heard = service.hear_until("the revert", |event| event["status"] == "online");
    assert!(
        heard.len() <= 2 && heard.iter().all(|event| event.line() == "update alice"),
        "{:?}",
        lines(&heard)
    );
    cluster.assert_sound();
}

#[test]
fn nobody_is_seen_by_what_reverts_alone() {
    let cluster = Cluster::start();
    let (mut alice, _bob, mut service) = lobby(&cluster);
    let mut tab = cluster.user("alice");
    tab.run("select presence.upsert('lobby', connection_id => 'tab', session => true)");
    let seen = "select connection_id, last_seen_at, expires_at from presence.get('lobby', 'alice')";
    typing(&mut alice, "0.2 s");
    tab.run("select presence.update('lobby', connection_id => 'tab', status => 'typing', revert_after => '0.2 s')");
    let before = service.rows(seen);
    until("both have reverted", || {
        service.is("select count(reverts) = 0 from presence.member where member_id = 'alice'")
    });
    assert_eq!(service.rows(seen), before);
    // A heartbeat during the revert counts.
    typing(&mut alice, "0.1 s");
    for _ in 0..20 {
        assert!(alice.is("select presence.heartbeat('lobby')"));
        std::thread::sleep(millis(10));
    }
    let late =
        "select clock_timestamp() - last_seen_at < interval '0.5 s' from presence.get('lobby', 'alice', '')";
    assert!(service.is(late));
    cluster.assert_sound();
}

#[test]
fn a_restart_keeps_it_and_the_time_between_counts() {
    let cluster = Cluster::with(&["presence.restart_grace=30s"]);
    let (mut alice, mut bob, _service) = lobby(&cluster);
    typing(&mut alice, "1 s");
    bob.run("select presence.update('lobby', '{\"call\": true}', revert_after => '6 s')");
    cluster.stop("fast");
    std::thread::sleep(millis(1_100));
    cluster.start_again();
    let mut service = cluster.service();
    // This holds from the first query on, with or without a worker.
    assert!(!is_typing(&mut service));
    let calls = "select state ? 'call' from presence.get('lobby', 'bob')";
    assert!(service.is(calls));
    cluster.until_worker("app");
    let told =
        "select member_id, status, state::text from presence.event where event = 'update' order by seq";
    until("alice's is told", || service.rows(told).len() == 3);
    assert_eq!(service.rows(told)[2], ["alice", "online", "{\"x\": 1}"]);
    until("bob's moment", || !service.is(calls));
    until("it is told", || service.rows(told).len() == 4);
    assert_eq!(service.rows(told)[3], ["bob", "", "{}"]);
    cluster.assert_sound();
}

#[test]
fn a_new_worker_finds_it_and_so_does_one_without_slots() {
    let cluster = Cluster::with(&["presence.max_members=2", "presence.sweep_interval=200ms"]);
    let (mut alice, mut bob, mut service) = lobby(&cluster);
    let mut carol = cluster.user("carol");
    carol.run("select presence.upsert('lobby')");
    assert!(service.is("select members > slots_used from presence.health"), "one has no slot");
    let reverted = "select count(*) = 3 from presence.online where status is null or status = 'online'";
    for round in 0..2 {
        for session in [&mut alice, &mut bob, &mut carol] {
            session.run("select presence.update('lobby', status => 'busy', revert_after => '0.4 s')");
        }
        if round == 1 {
            service.run("select pg_terminate_backend(presence.worker_pid())");
        }
        until("all have reverted", || service.is(reverted));
        until("in their rows, too", || service.is("select count(reverts) = 0 from presence.member"));
    }
    // A heartbeat that assigns a free slot keeps the revert.
    carol.run("select presence.update('lobby', status => 'busy', revert_after => '1 s')");
    bob.run("select presence.delete('lobby')");
    until("carol has a slot", || {
        carol.run("select presence.heartbeat('lobby')");
        service.is("select members = slots_used from presence.health")
    });
    until("in the row, too", || service.is("select count(reverts) = 0 from presence.member"));
    cluster.assert_sound();
}

/// Also for members without a slot, and only if its transaction commits.
#[test]
fn sweep_writes_what_has_reverted() {
    let cluster = Cluster::with(&["presence.max_members=1", "presence.sweep_interval=1h"]);
    let (mut alice, mut bob, mut service) = lobby(&cluster);
    assert!(service.is("select members > slots_used from presence.health"), "one has no slot");
    let frozen = cluster.freeze_worker();
    for session in [&mut alice, &mut bob] {
        session.run("select presence.update('lobby', status => 'busy', revert_after => '0.2 s')");
    }
    until("both have reverted", || {
        service.is("select count(*) = 0 from presence.online where status = 'busy'")
    });
    let left = "select count(reverts) from presence.member";
    service.run("begin");
    assert_eq!(service.number("select presence.sweep()"), 0, "nobody is removed");
    assert_eq!(service.number(left), 0);
    service.run("rollback");
    assert_eq!(service.number(left), 2);
    service.run("select presence.sweep()");
    assert_eq!(service.number(left), 0);
    drop(frozen);
    let told = |heard: &[Event]| {
        lines(&heard.iter().filter(|event| event["status"] != "busy").cloned().collect::<Vec<_>>())
    };
    let mut heard = told(&service.hear());
    heard.sort();
    assert_eq!(heard, ["update alice", "update bob"], "one each");
    cluster.assert_sound();
}

#[test]
fn a_stepped_wall_clock_moves_nothing() {
    let cluster = Cluster::with_clock(&[]);
    let (mut alice, mut bob, mut service) = lobby(&cluster);
    for session in [&mut alice, &mut bob] {
        session.run("select presence.upsert('lobby', ttl => '1 day')");
    }
    for step in [3_600, -7_200] {
        typing(&mut alice, "1 h");
        cluster.clock().step_wall(step);
        assert!(is_typing(&mut bob), "{step}");
        cluster.clock().pass(Duration::from_secs(3_590));
        assert!(is_typing(&mut bob), "{step}");
        cluster.clock().pass(Duration::from_secs(11));
        until("it has reverted", || !is_typing(&mut bob));
        until("in the row, too", || service.is("select count(reverts) = 0 from presence.member"));
    }
    cluster.assert_sound();
}

#[test]
fn one_that_cannot_revert_or_is_locked_holds_up_no_other() {
    let cluster = Cluster::with(&["presence.sweep_interval=200ms"]);
    let mut service = cluster.service();
    service.run(
        "create function public.never() returns trigger language plpgsql as $$ begin
             if new.member_id = 'bad' and not new.state ? 'typing' then raise 'never'; end if;
             return new; end $$;
         create trigger never before update on presence.member for each row execute function public.never();
         select presence.upsert('r', user_id => m, member_id => m, status => 'busy')
         from unnest(array['bad', 'locked', 'a', 'b', 'c']) m;
         select presence.update('r', '{\"typing\": true}', m, status => 'typing', revert_after => '1 s')
         from unnest(array['bad', 'locked', 'a', 'b', 'c']) m",
    );
    let mut holder = cluster.service();
    holder.run("begin; select from presence.member where member_id = 'locked' for update");
    let left =
        "select array_agg(member_id order by member_id) from presence.member where reverts is not null";
    until("the others have reverted", || service.value(left) == "{bad,locked}");
    assert!(
        service.is("select count(*) = 0 from presence.online where state ? 'typing'"),
        "for who reads, all have"
    );
    until("health says so", || service.is("select last_error like '%cannot revert%' from presence.health"));
    holder.run("rollback");
    until("what was locked has reverted", || service.value(left) == "{bad}");
    service.run("drop trigger never on presence.member");
    until("the last one has", || service.value(left).is_empty());
    cluster.assert_sound();
}

#[test]
fn only_who_sees_the_member_hears_it_and_ends_as_who_lists() {
    let cluster = Cluster::start();
    let (mut alice, mut bob, mut service) = lobby(&cluster);
    let mut carol = cluster.user("carol");
    bob.listen("lobby");
    carol.listen("lobby");
    bob.hear();
    carol.hear();
    let mut mirror = Mirror::of(&mut bob);
    alice.run("select presence.update('lobby', audience => '{user:bob}')");
    typing(&mut alice, "0.2 s");
    until("it has reverted", || service.is("select count(reverts) = 0 from presence.member"));
    mirror.follow(&mut bob);
    mirror.assert_true(&mut bob);
    assert!(!is_typing(&mut bob));
    assert_eq!(lines(&carol.hear()), [""; 0]);
    // A user who gains sight in between first receives the current state, and then the reverted one.
    typing(&mut alice, "0.5 s");
    alice.run("select presence.update('lobby', audience => '{any}')");
    let heard = carol.hear_until("the revert", |event| event["status"] == "online");
    assert_eq!(lines(&heard), ["enter alice", "update alice"]);
    assert_eq!(heard[0]["status"], "typing");
    // A user who loses sight after the time of the revert receives the reverted values, not those still in
    // the row.
    let frozen = cluster.freeze_worker();
    typing(&mut alice, "0.2 s");
    until("it has reverted", || !is_typing(&mut carol));
    alice.run("select presence.update('lobby', audience => '{user:bob}')");
    drop(frozen);
    let heard = carol.hear_until("the leave", |event| event.kind() == "leave");
    let last = heard.last().expect("it");
    assert_eq!((&last["status"], &last["state"]), (&json!("online"), &json!({"x": 1})));
    cluster.assert_sound();
}

/// Verbs still use the fast path, and updates remain HOT, including those with a revert.
#[test]
fn it_takes_no_index_and_no_other_way() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    service.run("select presence.upsert('r', user_id => n::text) from generate_series(1, 20) n");
    let fast = "select fast_writes from presence.health";
    let before = service.number(fast);
    for turn in 0..20 {
        service.run(&format!(
            "select presence.upsert('r', '{{\"turn\": {turn}}}', user_id => n::text, revert_after => '1 h')
             from generate_series(1, 20) n"
        ));
    }
    let is_off = std::env::var("PRESENCE_FAST_PATH").is_ok_and(|way| way == "off");
    assert_eq!(service.number(fast), before + if is_off { 0 } else { 400 });
    service.run("select pg_stat_force_next_flush()");
    let of_member = "from pg_stat_all_tables where relid = 'presence.member'::regclass";
    until("the statistics are there", || service.is(&format!("select n_tup_upd >= 400 {of_member}")));
    assert!(service.is(&format!("select n_tup_hot_upd > n_tup_upd * 0.8 {of_member}")));
    cluster.assert_sound();
}
