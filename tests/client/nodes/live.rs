//! What listeners hear of members of other servers.

use super::{two, until_heard, until_together};
use crate::common::{Mirror, lines, until};

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
    // The owner and service roles see the changes of audience as they are; the log has all of it.
    let seen = lines(&service.hear());
    assert_eq!(
        seen,
        ["enter bob/tab", "update bob/tab", "update bob/tab", "update bob/tab", "leave bob/tab left"]
    );
    let logged =
        "select distinct event, node from presence.history('lobby') where member_id = 'bob' order by 1";
    assert_eq!(service.rows(logged), [["enter", "b"], ["leave", "b"], ["update", "b"]]);
    // Whatever is told here, the copy here is of this server alone.
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
    // By the clock, at once; listeners a moment later.
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
