//! The problems that a set-up reports, and the handling of servers that are gone.

use super::{Node, two, until_heard, until_together};
use crate::common::{PATIENCE, Session, Standby, until};
use std::time::{Duration, Instant};

fn problems(session: &mut Session, node: &str) -> String {
    session.value(&format!(
        "select array_to_string(problems, '; ') from presence.cluster() where coalesce(node, '') = '{node}'"
    ))
}

fn state(session: &mut Session, node: &str) -> String {
    session.value(&format!("select state from presence.cluster() where node = '{node}'"))
}

#[test]
fn a_set_up_that_works_is_said_to() {
    let (a, b) = two();
    b.user("bob").run("select presence.upsert('lobby')");
    let mut service = a.service();
    service.run("alter system set max_slot_wal_keep_size = '1GB'");
    service.run("select pg_reload_conf()");
    until("bob is there", || {
        service.is("select members = 1 and state = 'up' and beat_age < '2 s' from presence.cluster() where node = 'b'")
    });
    until("nothing is wrong", || problems(&mut service, "a").is_empty());
    assert_eq!(problems(&mut service, "b"), "");
    // A monitoring role needs no other right.
    service.run("create role watcher login; grant pg_monitor to watcher");
    assert_eq!(a.user("watcher").number("select count(*) from presence.cluster()"), 2);
    assert_eq!(a.user("alice").fails("select presence.cluster()").code, "42501");
    // Its standby receives the same beats, and has no subscription of its own to check.
    let standby = Standby::of(&a);
    let mut there = standby.user("watcher");
    until("the standby says the same", || {
        there.rows("select node, state, problems from presence.cluster()")
            == [["a", "up", "{}"], ["b", "up", "{}"]]
    });
}

#[test]
fn what_is_missing_is_said() {
    let a = Node::start("a");
    let mut service = a.service();
    let mut says = |sql: &str, words: &str| {
        service.run(sql);
        until(words, || problems(&mut service, "a").contains(words));
    };
    says("select 1", "this server follows nobody");
    says("drop publication presence_a", "presence.shared is in no publication");
    says("create publication p for table presence.shared", "sends TRUNCATE");
    says("select 1", "sends presence.shared of all servers");
    says("select 1", "presence.node is in no publication");
    says(
        "drop publication p; create publication p for table presence.shared where (node = 'x'), presence.node where (node = 'a')",
        "sends presence.shared where (node = 'x'::text), and this server is called 'a'",
    );
}

#[test]
fn subscriptions_that_do_nothing_are_named() {
    let (a, b) = two();
    let mut service = a.service();
    a.hear(&b, false);
    until("it is disabled", || {
        problems(&mut service, "a").contains("subscription presence_from_b is disabled")
    });
    until("b is silent", || state(&mut service, "b") == "silent");
    assert!(problems(&mut service, "b").starts_with("nothing was heard of it for"));
    let mut there = b.service();
    until("nobody reads", || problems(&mut there, "b").contains("nobody reads slot presence_from_b_a"));
    assert!(there.is("select kept_wal > 0 from presence.health"));
    a.hear(&b, true);
    until("all is well", || state(&mut service, "b") == "up");
    until("it is read", || there.number("select kept_wal from presence.health") == 0);
    service.run("alter subscription presence_from_b set (streaming = off)");
    until("it waits", || problems(&mut service, "a").contains("waits for large transactions"));
}

/// Two servers: bob is on b, which may be silent for a minute, and alice sees him from a.
fn two_and_bob() -> (Node, Node, Session) {
    let (a, b) = two();
    b.user("bob").run("select presence.upsert('lobby', audience => '{any}')");
    let mut alice = a.user("alice");
    until("bob is there", || alice.number("select count(*) from presence.list('lobby')") == 1);
    a.service().run("alter system set presence.node_timeout = '60s'");
    a.service().run("select pg_reload_conf()");
    (a, b, alice)
}

#[test]
fn who_stops_is_gone_at_once() {
    let (a, b, mut alice) = two_and_bob();
    b.stop("fast");
    let since = Instant::now();
    until("bob is gone", || alice.number("select count(*) from presence.list('lobby')") == 0);
    assert!(since.elapsed() < Duration::from_secs(10).min(PATIENCE));
    assert_eq!(state(&mut a.service(), "b"), "down");
    b.start_again();
    until_heard(&a, 1);
    until("bob is back", || alice.number("select count(*) from presence.list('lobby')") == 1);
    // Terminating only the worker does not count as stopping the server.
    let pid = b.service().number("select presence.worker_pid()");
    b.service().run(&format!("select pg_terminate_backend({pid})"));
    b.until_worker("app");
    assert_eq!(alice.number("select count(*) from presence.list('lobby')"), 1);
    a.assert_sound();
    b.assert_sound();
}

/// The worker of a server that stops is rarely idle: it finishes what it is doing, and then says that it stops.
#[test]
fn who_stops_while_it_writes_is_gone_at_once() {
    let (_a, b, mut alice) = two_and_bob();
    let mut service = b.service();
    service.run(
        "create function public.slow() returns trigger language plpgsql as
             $$ begin perform pg_sleep(0.2); return new; end $$;
         create trigger slow before insert on presence.node for each row execute function public.slow()",
    );
    until("a beat is being written", || {
        service.is("select wait_event = 'PgSleep' from pg_stat_activity where pid = presence.worker_pid()")
    });
    b.stop("fast");
    let since = Instant::now();
    until("bob is gone", || alice.number("select count(*) from presence.list('lobby')") == 0);
    assert!(since.elapsed() < Duration::from_secs(10).min(PATIENCE));
}

#[test]
fn two_servers_of_one_name_are_noticed() {
    let (a, b) = two();
    let other = Node::start("a");
    other.service().run("select pg_sleep(1)");
    b.service().run(&format!(
        "create subscription from_other connection 'host={} dbname=app user=postgres' publication presence_a
             with (streaming = on, slot_name = 'from_other')",
        other.display()
    ));
    let mut service = b.service();
    until("it is noticed", || state(&mut service, "a") == "conflict");
    assert!(problems(&mut service, "a").contains("two servers have the name 'a'"));
    until("the log says it", || b.log().contains("two servers have the name \"a\""));
    assert_eq!(state(&mut a.service(), "b"), "up");
}

#[test]
fn a_server_that_is_being_copied_is_said_to_be() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    b.user("bob").run("select presence.upsert('lobby')");
    b.service().flush();
    // The lock prevents the initial copy from being written here.
    let mut holds = a.service();
    holds.run("begin; lock table presence.shared in exclusive mode");
    a.follow(&b);
    let mut service = a.service();
    until("its beats are here", || {
        service.number("select count(*) from presence.node where node = 'b'") == 1
    });
    assert_eq!(state(&mut service, "b"), "copying");
    assert!(problems(&mut service, "a").contains("is copying presence.shared"));
    holds.run("commit");
    until("it is there", || state(&mut service, "b") == "up");
    until("bob is there", || service.number("select count(*) from presence.list('lobby')") == 1);
    a.assert_sound();
}

#[test]
fn a_server_that_is_gone_is_forgotten() {
    let (a, b) = two();
    b.user("bob").run("select presence.upsert('lobby')");
    let mut service = a.service();
    let rows = "select count(*) from presence.shared";
    until("bob is there", || service.number(rows) == 1);
    for node in ["a", "b"] {
        assert_eq!(service.fails(&format!("select presence.forget_node('{node}')")).code, "22023", "{node}");
    }
    assert_eq!(a.user("alice").fails("select presence.forget_node('b')").code, "42501");
    service.run("drop subscription presence_from_b");
    until("b is silent", || state(&mut service, "b") == "silent");
    assert_eq!(service.number("select presence.forget_node('b')"), 1);
    assert_eq!(service.number(rows), 0);
    assert_eq!(service.rows("select node from presence.cluster()"), [["a"]]);
}

#[test]
fn moderators_are_told_where_a_member_is() {
    let (a, b) = two();
    b.user("bob").run("select presence.upsert('lobby')");
    let mut service = a.service();
    until("bob is there", || service.number("select count(*) from presence.get('lobby', 'bob')") == 1);
    service.run("set client_min_messages = 'error'; set log_min_messages = 'notice'");
    for verb in ["delete('lobby', 'bob')", "update('lobby', '{}', 'bob')", "delete('lobby', 'bob', null)"] {
        let said = || a.log().matches("this member is on server \"b\"").count();
        let before = said();
        service.rows(&format!("select presence.{verb}"));
        until(verb, || said() == before + 1);
    }
    // A member that is nowhere causes no notice, and ordinary users are told nothing.
    let before = a.log().len();
    service.run("select presence.delete('lobby', 'nobody')");
    let mut bob = a.user("bob");
    bob.run("select presence.delete('lobby')");
    assert!(!a.log()[before..].contains("this member is on server"));
    assert_eq!(service.number("select count(*) from presence.get('lobby', 'bob')"), 1);
}

#[test]
fn a_sink_has_its_own_servers_events() {
    let (a, b) = two();
    let mut service = a.service();
    service.run(
        "create table public.got (member_id text, node text);
         create function public.take(events presence.event[]) returns void language sql
             as $$ insert into public.got select e.member_id, e.node from unnest(events) e where e.event = 'enter' $$;
         alter database app set presence.sink = 'public.take'",
    );
    let got = "select member_id, node from public.got order by 1";
    until("the sink has begun", || service.is("select sink_position is not null from presence.health"));
    let enter = |alice: &str, bob: &str| {
        b.user("bob").run(&format!("select presence.upsert('{bob}')"));
        until_together(&[&a, &b]);
        a.user("alice").run(&format!("select presence.upsert('{alice}')"));
    };
    enter("r1", "r1");
    until("its own", || !service.rows(got).is_empty());
    assert_eq!(service.rows(got), [["alice", "a"]]);
    service.run("alter database app set presence.sink_scope = 'all'");
    until("the worker knows", || {
        service.run("truncate public.got");
        enter("r2", "r2");
        service.run("select presence.delete_all('alice')");
        b.service().run("select presence.delete_all('bob')");
        std::thread::sleep(Duration::from_millis(300));
        service.rows(got) == [["alice", "a"], ["bob", "b"]]
    });
}
