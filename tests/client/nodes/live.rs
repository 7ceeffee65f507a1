//! The events that listeners receive about members of other servers.

use super::{two, until_heard, until_together};
use crate::common::{Event, Mirror, Session, lines, until};

#[test]
fn listeners_hear_what_happens_elsewhere() {
    let (a, b) = two();
    let (mut alice, mut bob) = (a.user("alice"), b.user("bob"));
    alice.run("select presence.upsert('lobby')");
    alice.run("select presence.listen('lobby')");
    let mut service = a.service();
    service.run("select presence.listen()");
    until_together(&[&a, &b]);
    alice.hear();
    service.hear();
    bob.run("select presence.upsert('lobby', '{\"x\": 1}', connection_id => 'tab')");
    until_together(&[&a, &b]);
    bob.run("select presence.update('lobby', '{\"x\": 2}', connection_id => 'tab', status => 'away')");
    until_together(&[&a, &b]);
    bob.run("select presence.upsert('lobby', audience => '{user:carol}', connection_id => 'tab')");
    until_together(&[&a, &b]);
    bob.run("select presence.upsert('lobby', audience => '{any}', connection_id => 'tab')");
    until_together(&[&a, &b]);
    bob.run("select presence.delete('lobby', connection_id => 'tab', state => '\"bye\"')");
    let heard =
        alice.hear_until("the leave", |event| event.kind() == "leave" && event.text("reason") == "left");
    assert_eq!(
        lines(&heard),
        ["enter bob/tab", "update bob/tab", "leave bob/tab hidden", "enter bob/tab", "leave bob/tab left"]
    );
    for event in heard.iter().filter(|event| event.is_of_member()) {
        assert_eq!(event["node"], "b", "{}", event.payload);
    }
    let (first, last) = (&heard[0], heard.last().expect("the leave"));
    assert_eq!((first.number("connections"), last.number("connections")), (1, 0));
    assert_eq!(last["state"], "bye");
    let versions: Vec<i64> =
        heard.iter().filter(|event| event.is_of_member()).map(|event| event.number("version")).collect();
    assert!(versions.windows(2).all(|pair| pair[0] < pair[1]), "{versions:?}");
    // The owner and service roles receive changes of audience as updates; the log has all of them.
    let seen = lines(&service.hear());
    assert_eq!(
        seen,
        ["enter bob/tab", "update bob/tab", "update bob/tab", "update bob/tab", "leave bob/tab left"]
    );
    let logged =
        "select distinct event, node from presence.history('lobby') where member_id = 'bob' order by 1";
    assert_eq!(service.rows(logged), [["enter", "b"], ["leave", "b"], ["update", "b"]]);
    // Although this server publishes events of both, its copy has only its own members.
    assert_eq!(service.rows("select distinct node from presence.shared"), [["a"]]);
    a.assert_sound();
}

#[test]
fn a_silent_server_is_hidden_and_comes_back() {
    let (a, b) = two();
    let mut alice = a.user("alice");
    alice.run("select presence.upsert('lobby')");
    alice.run("select presence.listen()");
    b.user("bob").run("select presence.upsert('lobby')");
    b.user("carol").run("select presence.upsert('lobby')");
    let mut mirror = Mirror::of(&mut alice);
    until("all are there", || {
        mirror.follow(&mut alice);
        mirror.members().len() == 3
    });
    a.hear(&b, false);
    let mut other = a.user("alice");
    until("they are hidden", || other.number("select count(*) from presence.list('lobby')") == 1);
    // Readers hide them at once, by the clock; listeners are told a moment later.
    until("it is told", || {
        mirror.follow(&mut alice);
        mirror.members().len() == 1
    });
    b.user("bob").run("select presence.delete('lobby')");
    b.user("carol").run("select presence.upsert('lobby', '2')");
    a.hear(&b, true);
    until("they are back", || {
        mirror.follow(&mut alice);
        mirror.members().len() == 2
    });
    mirror.assert_true(&mut alice);
    assert_eq!(
        alice.rows("select member_id, state from presence.list('lobby')"),
        [["alice", "{}"], ["carol", "2"]]
    );
    a.assert_sound();
}

/// The next `count` member events.
pub fn next_of_members(session: &mut Session, count: usize) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    while events.len() < count {
        let heard = session.hear_until("an event of a member", Event::is_of_member);
        assert!(heard.iter().all(|event| event.kind() != "resync"), "{:?}", lines(&heard));
        events.extend(heard.into_iter().filter(Event::is_of_member));
    }
    events
}

#[test]
fn members_of_a_silent_server_leave_and_enter_again() {
    let (a, b) = two();
    b.user("bob").run("select presence.upsert('lobby')");
    b.user("carol").run("select presence.upsert('lobby')");
    b.service().run("select presence.upsert('lobby', member_id => 'dora', user_id => 'dora')");
    a.user("carol").run("select presence.upsert('lobby', connection_id => 'here')");
    until_together(&[&a, &b]);
    let mut ear = a.service();
    ear.run("select presence.listen()");
    until("all are there", || ear.number("select count(*) from presence.list()") == 4);
    ear.flush();
    ear.hear();
    // No beat may be in transit when replication resumes: the first one would show the previous members.
    b.service().run("alter system set presence.node_beat = '60s'");
    b.service().run("select pg_reload_conf()");
    let left = next_of_members(&mut ear, 3);
    let said = |event: &Event| (event.text("member_id").to_owned(), event.number("connections"));
    assert_eq!(lines(&left), ["leave bob unreachable", "leave carol unreachable", "leave dora unreachable"]);
    assert!(left.iter().all(|event| event["node"] == "b"));
    // She is still here with another connection.
    assert_eq!(left.iter().map(said).map(|(_, count)| count).collect::<Vec<_>>(), [0, 1, 0]);
    assert_eq!(ear.rows("select * from presence.occupancy('lobby')"), [["1", "1"]]);
    a.hear(&b, false);
    // A member who leaves during the silence has already left; one who changes does not return before its
    // server does.
    b.user("bob").run("select presence.delete('lobby')");
    b.user("carol").run("select presence.upsert('lobby', '2')");
    b.service().run("select presence.upsert('lobby', member_id => 'eve', user_id => 'eve')");
    b.service().flush();
    b.service().run("alter system reset presence.node_beat");
    b.service().run("select pg_reload_conf(), pg_terminate_backend(presence.worker_pid())");
    b.until_worker("app");
    a.hear(&b, true);
    let mut back = next_of_members(&mut ear, 3);
    back.sort_by_key(|event| event.text("member_id").to_owned());
    assert_eq!(lines(&back), ["enter carol", "enter dora", "enter eve"]);
    assert_eq!(back.iter().map(|event| event.number("connections")).collect::<Vec<_>>(), [2, 1, 1]);
    assert_eq!(back[0]["state"], 2);
    // The version is newer than that of the leave, and equals the listed one.
    for (event, leave) in [(&back[0], &left[1]), (&back[1], &left[2])] {
        assert!(event.number("version") > leave.number("version"));
        let listed = format!(
            "select version from presence.get('lobby', '{}') where node = 'b'",
            event.text("member_id")
        );
        assert_eq!(ear.number(&listed), event.number("version"));
    }
    b.service().run("select presence.upsert('lobby', '3', member_id => 'dora')");
    let update = next_of_members(&mut ear, 1);
    assert_eq!(lines(&update), ["update dora"]);
    assert!(update[0].number("version") > back[1].number("version"));
    until("the marks are gone", || ear.number("select count(*) from _presence._unreachable") == 0);
    a.assert_sound();
}

#[test]
fn members_of_a_server_that_stops_leave_at_once() {
    let (a, b) = two();
    b.user("bob").run("select presence.upsert('lobby')");
    let mut ear = a.service();
    ear.run("select presence.listen()");
    until("he is there", || ear.number("select count(*) from presence.list()") == 1);
    ear.flush();
    ear.hear();
    b.stop("fast");
    assert_eq!(lines(&next_of_members(&mut ear, 1)), ["leave bob unreachable"]);
    b.start_again();
    assert_eq!(lines(&next_of_members(&mut ear, 1)), ["enter bob"]);
    a.assert_sound();
}

#[test]
fn many_leave_and_enter_once_while_they_change() {
    const MEMBERS: i64 = 4_000;
    let (a, b) = two();
    let mut there = b.service();
    there.run(&format!(
        "select count(*) from presence.upsert_many((select jsonb_agg(jsonb_build_object('room', 'r' || i % 50, 'member_id', 'm' || i,
            'user_id', 'u' || i % 700, 'state', repeat('x', 500))) from generate_series(1, {MEMBERS}) i))"
    ));
    until_together(&[&a, &b]);
    let mut alice = a.service();
    let count = "select count(*) from presence.list(max_rows => 10000)";
    until("all are there", || alice.number(count) == MEMBERS);
    alice.run("select presence.listen()");
    let mut mirror = Mirror::of(&mut alice);
    let resyncs = mirror.resyncs();
    for round in 0..3 {
        a.hear(&b, false);
        until("they are told", || {
            mirror.follow(&mut alice);
            mirror.members().is_empty()
        });
        // Some members change or leave before their server is back, others while the return is being
        // published.
        there.run(&format!("delete from presence.member where member_id like 'm{round}7%'"));
        there.run("update presence.member set status = status || 'a' where member_id like 'm%3'");
        a.hear(&b, true);
        there.run(&format!("delete from presence.member where member_id like 'm{round}1%'"));
        there.run("update presence.member set status = status || 'b' where member_id like 'm%5'");
        there.flush();
        let left = there.number("select count(*) from presence.member");
        until("those who are left are back", || {
            mirror.follow(&mut alice);
            mirror.members().len() as i64 == left
        });
        alice.flush();
        mirror.follow(&mut alice);
        mirror.assert_true(&mut alice);
    }
    assert_eq!(mirror.resyncs(), resyncs);
    // Each member's events in the log begin with an enter, and enters and leaves alternate.
    let out_of_turn = "select count(*) from (
        select event, lag(event) over (partition by room, member_id order by seq) as before
        from presence.event where node = 'b' and event in ('enter', 'leave')) e
        where event = before or (before is null and event = 'leave')";
    assert_eq!(alice.number(out_of_turn), 0);
    assert!(alice.number("select count(*) from presence.event where reason = 'unreachable'") > 2 * MEMBERS);
    a.assert_sound();
}

#[test]
fn a_restart_shows_nobody_who_is_not_heard() {
    let (a, b) = two();
    b.user("bob").run("select presence.upsert('lobby', audience => '{any}')");
    let mut alice = a.user("alice");
    until("bob is there", || alice.number("select count(*) from presence.list('lobby')") == 1);
    drop(alice);
    b.stop("immediate");
    a.restart();
    a.until_worker("app");
    let mut alice = a.user("alice");
    assert_eq!(alice.number("select count(*) from presence.shared"), 1);
    assert_eq!(alice.number("select count(*) from presence.list('lobby')"), 0);
    assert_eq!(alice.rows("select * from presence.occupancy('lobby')"), [["0", "0"]]);
    b.start_again();
    until_heard(&a, 1);
    until("bob is back", || alice.number("select count(*) from presence.list('lobby')") == 1);
    a.assert_sound();
}
