//! After a crash of the server, its members come back.

use super::{named, until_copied};
use crate::common::{Cluster, Frozen, Session, Stall, millis, signal, until};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::time::Instant;

/// Kills the server and starts it again.
fn crash(cluster: &Cluster) {
    cluster.stop("immediate");
    cluster.start_again();
}

/// Starts the server so that the worker stalls while it restores members.
fn start_stalled(cluster: &Cluster, stall: &Stall, point: &str) {
    let options = stall.options(point);
    cluster.start_again_with(&options.each_ref().map(String::as_str));
}

pub fn until_restored(cluster: &Cluster) -> Session {
    cluster.until_worker("app");
    let mut service = cluster.service();
    // The heartbeat waits until all members are restored; the node's row from before the crash may still be
    // there.
    service.run("select presence.heartbeat('lobby')");
    until("the node is up", || service.rows("select state from presence.node") == [["up"]]);
    service
}

const EVENTS: &str = "select event, room, member_id, coalesce(reason, '') from presence.event
                      where event in ('enter', 'update', 'leave') order by seq";

#[test]
fn members_come_back_as_they_were() {
    let cluster = named(&["presence.restart_grace=8s"]);
    let (mut alice, mut bob, mut service) = (cluster.user("alice"), cluster.user("bob"), cluster.service());
    alice.run("select presence.upsert('lobby', '{\"x\": 1}', status => 'away', metadata => '[1]', ttl => '1 h', audience => '{any}')");
    alice.run("select presence.upsert('short', '1', ttl => '6 s')");
    bob.run("select presence.upsert('lobby', session => true)");
    bob.run("select presence.upsert('lobby', connection_id => 'tab', session => true, ttl => '1 h')");
    bob.run("select presence.upsert('going', '1', ttl => '1 h'); select presence.delete('going', after => '1 h', state => '\"bye\"'); select presence.update('going', '{\"n\": 2}')");
    bob.run("select presence.upsert('typing', '1', ttl => '1 h')");
    bob.run("select presence.upsert('typing', '2', revert_after => '500 ms')");
    service.flush();
    until_copied(&mut service);
    let seq = service.number("select presence.seq()");
    let held = "select room, member_id, state, status, metadata, ttl, version, joined_at, updated_at, node from presence.list() where room in ('lobby', 'short')";
    let mut before = service.rows(held);
    before.retain(|row| row[1] == "alice");
    assert_eq!(before.len(), 2);
    let newest = service.number("select max(version) from presence.member");

    let started = Instant::now();
    crash(&cluster);
    // The first clients to connect find all members, and heartbeats return true.
    let mut alice = cluster.user("alice");
    assert!(alice.is("select presence.heartbeat('lobby')"));
    assert_eq!(alice.number("select count(*) from presence.heartbeat_many('{lobby,short}')"), 0);
    let mut service = until_restored(&cluster);
    assert_eq!(service.rows(held), before);
    let grace = "select room, ceil(extract(epoch from expires_at - clock_timestamp())) from presence.list() order by 1";
    // Bob's session members leave; the typing status reverts, and the scheduled leave is still scheduled.
    until("bob's leaves", || {
        service.number("select count(*) from presence.member where session is not null") == 0
    });
    service.flush();
    until("what reverts", || service.rows(EVENTS).len() == 3);
    let mut events = service.rows(EVENTS);
    events.sort();
    assert_eq!(
        events,
        [
            ["leave", "lobby", "bob", "disconnected"],
            ["leave", "lobby", "bob", "disconnected"],
            ["update", "typing", "bob", ""]
        ]
    );
    assert_eq!(service.value("select state from presence.list('typing')"), "1");
    let leaving = "select last_word, leaves_at is not null from presence.member where room = 'going'";
    assert_eq!(service.rows(leaving), [["\"bye\"", "t"]]);
    let graces: BTreeMap<String, f64> = service
        .rows(grace)
        .into_iter()
        .map(|row| (row[0].clone(), row[1].parse().expect("seconds")))
        .collect();
    assert!(graces["lobby"] > 3_590.0 && graces["typing"] > 3_590.0 && graces["short"] <= 8.0, "{graces:?}");
    // A member who does not return leaves once, when the grace period ends; sequence numbers continue.
    service.run("select presence.listen()");
    let heard = service.hear_until("an expiry", |event| event.kind() == "leave");
    assert_eq!(heard.last().expect("it")["room"], "short");
    assert_eq!(heard.last().expect("it")["reason"], "expired");
    assert!(
        started.elapsed() > millis(7_900) && started.elapsed() < millis(25_000),
        "{:?}",
        started.elapsed()
    );
    assert!(service.number("select presence.seq()") > seq);
    assert!(alice.number("select version from presence.upsert('lobby', '{\"x\": 2}')") > newest);
    service.flush();
    assert_eq!(service.rows(EVENTS).len(), 5);
    until_copied(&mut service);
    cluster.assert_sound();
}

/// Changes of a member that cause no event are copied, too.
#[test]
fn what_no_event_told_comes_back() {
    let cluster = named(&["presence.restart_grace=1s"]);
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    let mut bound = cluster.user("alice");
    alice.run(
        "select presence.upsert('longer', '1', ttl => '3 s');
         select presence.upsert('staying', '1', ttl => '1 h');
         select presence.upsert('keeping', '1', ttl => '1 h');
         select presence.upsert('going', '1', ttl => '1 h')",
    );
    bound.run("select presence.upsert('freed', '1', session => true)");
    bound.run("select presence.upsert('bound', '1', ttl => '1 h')");
    alice.run(
        "select presence.delete('staying', after => '2 s'); select presence.update('staying', '{\"n\": 2}')",
    );
    alice.run(
        "select presence.upsert('keeping', '{\"call\": 1}', status => 'calling', revert_after => '2 s')",
    );
    until_copied(&mut service);
    let told = service.number("select count(*) from presence.event");
    // None of these causes an event.
    alice.run(
        "select presence.update('longer', ttl => '1 h');
         select presence.upsert('staying');
         select presence.upsert('keeping', '{\"call\": 1}', status => 'calling');
         select presence.delete('going', after => '1 h')",
    );
    bound.run("select presence.upsert('freed', session => false, ttl => '1 h')");
    bound.run("select presence.upsert('bound', session => true)");
    service.flush();
    assert_eq!(service.number("select count(*) from presence.event"), told);
    let held =
        "select room, status, state, ttl, leaves_at is not null, reverts is not null from presence.member
                where room <> 'bound' order by 1";
    let before = service.rows(held);
    until_copied(&mut service);
    crash(&cluster);
    let mut service = until_restored(&cluster);
    until("the session's member has left", || service.number("select count(*) from presence.member") == 5);
    std::thread::sleep(millis(4_000));
    service.flush();
    assert_eq!(service.rows(held), before);
    assert_eq!(service.rows(EVENTS), [["leave", "bound", "alice", "disconnected"]]);
    cluster.assert_sound();
}

/// Even a plan made at the very end of the restore reads the members afterwards.
#[test]
fn no_plan_goes_on_reading_the_copy() {
    let cluster = named(&[]);
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    alice.run("select presence.upsert('lobby', '1', ttl => '1 h')");
    until_copied(&mut service);
    let stall = cluster.stall();
    cluster.stop("immediate");
    start_stalled(&cluster, &stall, "whole");
    let mut service = cluster.service();
    until("everybody is back", || service.number("select count(*) from _presence._whole") == 1);
    // Only the member table has leases, the copy has none.
    let lease = "execute lease";
    service.run("set plan_cache_mode = force_generic_plan;
                 prepare lease as select count(*) from presence.list('lobby') l where l.expires_at is not null");
    service.number(lease);
    drop(stall);
    assert!(cluster.user("alice").is("select presence.heartbeat('lobby')"));
    assert_eq!(service.number(lease), 1);
    cluster.assert_sound();
}

/// A client that listed before all members were restored is told to list again.
#[test]
fn who_comes_too_early_lists_again() {
    let cluster = named(&[]);
    let mut service = cluster.service();
    service.run("select count(presence.upsert('r' || n % 10, to_jsonb(n), user_id => 'u' || n)) from generate_series(1, 900) n");
    until_copied(&mut service);
    let stall = cluster.stall();
    cluster.stop("immediate");
    start_stalled(&cluster, &stall, "restoring");
    let mut service = cluster.service();
    service.run("select presence.listen()");
    until("some are back", || service.rows("select state from presence.node") == [["restoring"]]);
    // The table does not have all of them yet; functions read the copy.
    assert!(service.number("select count(*) from presence.online") < 900);
    assert_eq!(service.number("select count(*) from presence.list(max_rows => 10000)"), 900);
    drop(stall);
    service.hear_until("resync", |event| event.kind() == "resync");
    assert_eq!(service.number("select count(*) from presence.list(max_rows => 10000)"), 900);
    let mut service = until_restored(&cluster);
    until_copied(&mut service);
    cluster.assert_sound();
}

/// A member that is deleted during the restore stays deleted.
#[test]
fn verbs_wait_for_those_who_come_back() {
    let cluster = named(&[]);
    let mut service = cluster.service();
    service.run("select count(presence.upsert('lobby', to_jsonb(n), user_id => 'u' || n)) from generate_series(1, 900) n");
    cluster
        .user("alice")
        .run("select presence.upsert('zoo', '1'), presence.upsert('zoo', '1', connection_id => 'b'), presence.upsert('zone')");
    until_copied(&mut service);
    let stall = cluster.stall();
    cluster.stop("immediate");
    start_stalled(&cluster, &stall, "restoring");
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let verbs: [(&str, &str); 6] = [
            ("select presence.delete('zoo')", "1"),
            ("select count(*) from presence.update('zoo', '{\"x\": 2}', connection_id => 'b')", "1"),
            ("select presence.heartbeat('zoo', connection_id => 'b')", "t"),
            (
                "select joined_at < pg_postmaster_start_time() from presence.upsert('zoo', '3', connection_id => 'b')",
                "t",
            ),
            ("select count(*) from presence.heartbeat_many('{zoo}', null, '{b}')", "0"),
            (
                "select presence.update_many('[{\"room\": \"zoo\", \"connection_id\": \"b\", \"patch\": {\"y\": 2}}]')",
                "1",
            ),
        ];
        let removing = ("postgres", "select presence.delete_room('zone')", "1");
        for (user, verb, answer) in
            verbs.map(|(verb, answer)| ("alice", verb, answer)).into_iter().chain([removing])
        {
            let (cluster, done) = (&cluster, &done);
            scope.spawn(move || {
                assert_eq!(cluster.user(user).value(verb), answer, "{verb}");
                done.fetch_add(1, AcqRel);
            });
        }
        std::thread::sleep(millis(300));
        assert_eq!(done.load(Acquire), 0);
        drop(stall);
    });
    let mut service = until_restored(&cluster);
    service.flush();
    assert_eq!(service.rows("select member_id, connection_id from presence.list('zoo')"), [["alice", "b"]]);
    assert_eq!(service.number("select count(*) from presence.list('zone')"), 0);
    until_copied(&mut service);
    cluster.assert_sound();
}

/// Crashes at each point of the restore, repeatedly: no member is duplicated, none is lost.
#[test]
fn a_crash_while_members_are_put_back() {
    let cluster = named(&["presence.max_per_user=0"]);
    let mut service = cluster.service();
    service.run("select count(presence.upsert('r' || n % 10, to_jsonb(n), user_id => 'u' || n, ttl => '1 h')) from generate_series(1, 1300) n");
    until_copied(&mut service);
    let all = "select room, member_id, state, version, generation from presence.member order by 1, 2";
    let before = service.rows(all);
    for point in ["restoring", "restored", "restoring", "restored"] {
        let stall = cluster.stall();
        cluster.stop("immediate");
        start_stalled(&cluster, &stall, point);
        let mut service = cluster.service();
        let waits = "select count(*) from pg_stat_activity where backend_type = 'presence_ext worker' and query = 'putting members back'";
        until("it is stalled", || service.number(waits) == 1);
        std::thread::sleep(millis(100));
        cluster.stop("immediate");
        drop(stall);
        cluster.start_again();
        if point == "restored" {
            // And also kill a worker in between.
            cluster.until_worker("app");
            signal("TERM", cluster.service().number("select presence.worker_pid()"));
        }
        let mut service = until_restored(&cluster);
        assert_eq!(service.rows(all), before, "after a crash at {point}");
        assert_eq!(service.rows(EVENTS), [[""; 4]; 0], "after a crash at {point}");
        until_copied(&mut service);
    }
    cluster.assert_sound();
}

/// Simulates a power failure: WAL that was not flushed is lost. The member is not, and sequence numbers
/// continue.
#[test]
fn the_last_moment_may_be_missing_and_nothing_else() {
    // Sessions write hint bits, and would otherwise flush earlier WAL at their commit.
    let cluster = named(&["presence.node_beat=60s", "synchronous_commit=off"]);
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    alice.run("select presence.upsert('lobby', '1', ttl => '1 h'), presence.upsert('side', ttl => '1 h')");
    service.flush();
    until("that is on disk", || {
        service.is("select pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn()")
    });
    // Freeze every process that would flush.
    let frozen = ["presence_ext launcher", "walwriter"].map(|kind| {
        let pid = format!("select pid from pg_stat_activity where backend_type = '{kind}'");
        Frozen::new(service.number(&pid))
    });
    let lost = alice.number("select version from presence.upsert('lobby', '2')");
    alice.run("select presence.upsert('new', ttl => '1 h'), presence.delete('side')");
    service.flush();
    let seq = service.number("select presence.seq()");
    cluster.stop("immediate");
    drop(frozen);
    cluster.start_again();
    let mut service = until_restored(&cluster);
    let list = "select room, state from presence.list() order by 1";
    // A member whose leave was lost is present until the grace period ends; one whose enter was lost must
    // enter again.
    assert_eq!(service.rows(list), [["lobby", "1"], ["side", "{}"]]);
    let mut alice = cluster.user("alice");
    assert!(alice.is("select presence.heartbeat('lobby')"));
    assert!(!alice.is("select presence.heartbeat('new')"));
    assert!(alice.number("select version from presence.upsert('lobby', '3')") > lost);
    service.flush();
    assert!(service.number("select presence.seq()") > seq);
    until_copied(&mut service);
    cluster.assert_sound();
}

/// More members than slots: the leases of the rest are stored in their rows.
#[test]
fn members_come_back_without_slots() {
    let cluster =
        named(&["presence.max_members=100", "presence.max_per_user=0", "presence.restart_grace=2s"]);
    let mut service = cluster.service();
    service.run("select count(presence.upsert('lobby', to_jsonb(n), member_id => 'm' || n, user_id => 'u', ttl => '1 h')) from generate_series(1, 500) n");
    until_copied(&mut service);
    crash(&cluster);
    let mut service = until_restored(&cluster);
    std::thread::sleep(millis(2_500));
    assert_eq!(service.number("select count(*) from presence.list('lobby')"), 500);
    let missing = "select count(*) from presence.heartbeat_many(array_fill('lobby'::text, '{500}'), (select array_agg('m' || n) from generate_series(1, 500) n))";
    assert_eq!(service.number(missing), 0);
    cluster.assert_sound();
}

/// Restored members keep their seats, and are counted.
#[test]
fn limits_and_numbers_hold_for_those_who_come_back() {
    let cluster = named(&["presence.max_per_user=3"]);
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    service.run("select presence.set_room('two', max_members => 2, count_audience => '{any}')");
    service
        .run("select presence.upsert('two', user_id => 'u' || n, ttl => '1 h') from generate_series(1, 2) n");
    alice.run("select presence.upsert('lobby', connection_id => 'c' || n, ttl => '1 h') from generate_series(1, 3) n");
    service.flush();
    let numbers = "select 'two', members, users from presence.occupancy('two')
                   union all select room, members, null from presence.rooms() order by 1, 3";
    until("they are counted", || service.rows(numbers).len() == 3);
    let before = service.rows(numbers);
    until_copied(&mut service);
    crash(&cluster);
    let mut alice = cluster.user("alice");
    for refused in ["'two'", "'lobby', connection_id => 'c4'", "'side'"] {
        assert_eq!(alice.fails(&format!("select presence.upsert({refused})")).code, "54000", "{refused}");
    }
    let mut service = until_restored(&cluster);
    until("they are counted again", || service.rows(numbers) == before);
    alice.run("select presence.delete('lobby', connection_id => 'c1'); select presence.upsert('side')");
    service.run("select presence.delete('two', 'u1'); select presence.upsert('two', user_id => 'u3')");
    until_copied(&mut service);
    cluster.assert_sound();
}

/// Under a different name no member comes back, and nothing of the old name remains.
#[test]
fn another_name_is_another_server() {
    let cluster = named(&[]);
    let mut service = cluster.service();
    service.run("select presence.upsert('lobby', '1', ttl => '1 h')");
    until_copied(&mut service);
    cluster.restart_with(&["presence.node_name=b"]);
    cluster.until_worker("app");
    let mut service = cluster.service();
    until("the copy has the new name", || {
        service.rows("select distinct node from presence.shared union select node from presence.node")
            == [["b"]]
    });
    until_copied(&mut service);
    assert_eq!(service.value("select node from presence.list('lobby')"), "b");
    cluster.restart_with(&["presence.node_name="]);
    cluster.until_worker("app");
    let mut service = cluster.service();
    until("it is empty", || service.number("select count(*) from presence.shared") == 0);
    assert_eq!(service.number("select count(*) from presence.node"), 0);
    until("that is on disk", || {
        service.is("select pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn()")
    });
    assert_eq!(service.value("select node from presence.list('lobby')"), "");
    crash(&cluster);
    cluster.restart_with(&["presence.node_name=b"]);
    cluster.until_worker("app");
    assert_eq!(cluster.service().number("select count(*) from presence.list('lobby')"), 0);
    cluster.assert_sound();
}

/// Members that a foreign key or a trigger no longer accepts.
#[test]
fn who_cannot_be_put_back_keeps_nobody_else_away() {
    let cluster = named(&["presence.max_per_user=0"]);
    let mut service = cluster.service();
    service.run(
        "create table public.person (id text primary key);
         insert into public.person select 'u' || n from generate_series(1, 900) n;
         alter table presence.member add foreign key (user_id) references public.person deferrable initially deferred",
    );
    service.run("select count(presence.upsert('r' || n % 10, to_jsonb(n), user_id => 'u' || n)) from generate_series(1, 900) n");
    until_copied(&mut service);
    let minder = |what: &str| {
        format!(
            "create or replace function public.mind() returns trigger language plpgsql as $$ begin
                 if new.user_id = 'u5' then {what} end if; return new; end $$;
             create or replace trigger mind before insert on presence.member for each row execute function public.mind()"
        )
    };
    let obstacles = [
        "set session_replication_role = replica; delete from public.person where id = 'u5'; reset session_replication_role".into(),
        minder("raise 'not u5';"),
        minder("raise 'no' using errcode = '40001';"),
        minder("raise 'full' using errcode = '53100';"),
        minder("raise 'away' using errcode = '57014';"),
        minder("return null;"),
    ];
    for obstacle in obstacles {
        service.run(&obstacle);
        crash(&cluster);
        service = until_restored(&cluster);
        assert_eq!(
            service.number("select count(*) from presence.list(max_rows => 10000)"),
            899,
            "{obstacle}"
        );
        until_copied(&mut service);
        until("all is well", || service.value("select failing_since from presence.health").is_empty());
        service.run("drop trigger if exists mind on presence.member; insert into public.person values ('u5') on conflict do nothing");
        service.run("select presence.upsert('r5', '5', user_id => 'u5')");
        until_copied(&mut service);
    }
    assert!(cluster.log().contains("members that cannot be put back: 1, the first of them u5 in r5: not u5"));
}
