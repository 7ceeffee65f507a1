//! Simulated peers: writes of a session that count as replicated, so that they can be delayed or reordered.

use super::live::next_of_members;
use super::{Node, until_heard};
use crate::common::{Session, lines, until};

/// A session whose changes count as those of peers.
fn peer(node: &Node) -> Session {
    let mut session = node.service();
    session.run("set session_replication_role = replica");
    session
}

/// Each beat replaces the previous one.
fn beat(node: &str, epoch: u32, state: &str) -> String {
    format!(
        "insert into presence.node (node, epoch, beat, state, members) values ('{node}', {epoch}, 1, '{state}', 1);"
    )
}

fn enter(node: &str, member: &str) -> String {
    format!(
        "insert into presence.shared (node, room, member_id, connection_id, user_id, state, metadata, audience,
             version, generation, joined_at, updated_at, last_seen_at)
         values ('{node}', 'lobby', '{member}', '', '{member}', '{{}}', '{{}}', '{{any}}', 1, 1, now(), now(), now());"
    )
}

/// Sets the time of silence after which a peer is unreachable.
fn wait_for(node: &Node, time: &str) {
    let mut service = node.service();
    service.run(&format!("alter system set presence.node_timeout = '{time}'"));
    service.run("select pg_reload_conf()");
    until("it is set", || {
        node.service().is(&format!("select current_setting('presence.node_timeout') = '{time}'"))
    });
}

/// A node without peers so far, and with a timeout long enough to add them.
fn alone() -> Node {
    let a = Node::start("a");
    wait_for(&a, "1h");
    a
}

/// A listener that has already read all events so far.
fn ear(node: &Node) -> Session {
    let mut ear = node.service();
    ear.run("select presence.listen()");
    ear.flush();
    ear.hear();
    ear
}

const NAMES: &str = "select member_id from presence.list('lobby') order by 1";

#[test]
fn a_server_of_which_much_is_applied_holds_up_no_other() {
    let a = alone();
    let (mut b, mut c) = (peer(&a), peer(&a));
    b.run(&(beat("b", 1, "up") + &enter("b", "bob")));
    c.run(&(beat("c", 1, "up") + &enter("c", "carol")));
    until_heard(&a, 2);
    let mut ear = ear(&a);
    b.run(&format!("begin; {} {}", beat("b", 1, "up"), enter("b", "late")));
    wait_for(&a, "2s");
    assert_eq!(lines(&next_of_members(&mut ear, 1)), ["leave carol unreachable"]);
    b.run("commit");
    let heard = lines(&next_of_members(&mut ear, 3));
    assert_eq!(heard, ["enter late", "leave bob unreachable", "leave late unreachable"]);
    c.run(&beat("c", 1, "up"));
    assert_eq!(lines(&next_of_members(&mut ear, 1)), ["enter carol"]);
    a.assert_sound();
}

#[test]
fn who_is_applied_last_leaves_too() {
    let a = alone();
    let mut b = peer(&a);
    b.run(&(beat("b", 1, "up") + &enter("b", "bob")));
    until_heard(&a, 1);
    let mut ear = ear(&a);
    let stall = a.stall();
    for option in stall.options("telling") {
        let (name, value) = option.split_once('=').expect("a setting");
        a.service().run(&format!("alter system set {name} = '{value}'"));
    }
    a.service().run("select pg_reload_conf()");
    b.run(&format!("begin; {} {}", beat("b", 1, "up"), enter("b", "adam")));
    wait_for(&a, "2s");
    let mut service = a.service();
    until("it is about to be told", || {
        service.is("select exists (select from pg_stat_activity where query like 'telling that members%' and state = 'active')")
    });
    b.run("commit");
    drop(stall);
    let mut heard = lines(&next_of_members(&mut ear, 3));
    heard.sort();
    assert_eq!(heard, ["enter adam", "leave adam unreachable", "leave bob unreachable"]);
    a.assert_sound();
}

#[test]
fn that_an_older_start_stops_hides_nobody() {
    let a = alone();
    let mut b = peer(&a);
    b.run(&(beat("b", 2, "up") + &enter("b", "bob")));
    until_heard(&a, 1);
    b.run(&beat("b", 1, "down"));
    assert_eq!(b.rows(NAMES), [["bob"]]);
    assert_eq!(b.rows("select state from presence.cluster() where node = 'b'"), [["conflict"]]);
    b.run(&beat("b", 2, "down"));
    assert!(b.rows(NAMES).is_empty());
    a.assert_sound();
}

#[test]
fn the_copy_shows_the_versions_that_members_have_here() {
    let a = alone();
    let mut b = peer(&a);
    b.run(&(beat("b", 1, "up") + &enter("b", "bob")));
    until_heard(&a, 1);
    let mut ear = ear(&a);
    wait_for(&a, "2s");
    assert_eq!(lines(&next_of_members(&mut ear, 1)), ["leave bob unreachable"]);
    wait_for(&a, "1h");
    b.run(&beat("b", 1, "up"));
    let back = next_of_members(&mut ear, 1);
    for view in ["online", "shared_online"] {
        let version = b.number(&format!("select version from presence.{view} where node = 'b'"));
        assert_eq!(version, back[0].number("version"), "{view}");
    }
    a.assert_sound();
}

/// Phoenix clients tell two connections of a member apart by their versions.
#[test]
fn who_come_back_together_have_different_versions() {
    let a = alone();
    let mut b = peer(&a);
    b.run(&(beat("b", 1, "up") + &enter("b", "bob") + &enter("b", "bea")));
    until_heard(&a, 1);
    let mut ear = ear(&a);
    wait_for(&a, "2s");
    let left = next_of_members(&mut ear, 2);
    wait_for(&a, "1h");
    b.run(&beat("b", 1, "up"));
    let back = next_of_members(&mut ear, 2);
    let versions = [&back[0], &back[1]].map(|event| event.number("version"));
    assert_ne!(versions[0], versions[1]);
    assert!(versions.iter().all(|version| left.iter().all(|event| event.number("version") < *version)));
    for event in &back {
        let shown = format!(
            "select version from presence.list('lobby') where member_id = '{}'",
            event.text("member_id")
        );
        assert_eq!(a.service().number(&shown), event.number("version"));
    }
    a.assert_sound();
}

#[test]
fn who_is_forgotten_here_leaves() {
    let a = alone();
    let mut b = peer(&a);
    b.run(&(beat("b", 1, "up") + &enter("b", "bob") + &enter("b", "carol")));
    until_heard(&a, 1);
    let mut ear = ear(&a);
    a.service().run("select presence.forget('bob')");
    assert_eq!(lines(&next_of_members(&mut ear, 1)), ["leave bob left"]);
    // A later delete by the member's server causes no further event.
    b.run("delete from presence.shared where member_id = 'bob'");
    wait_for(&a, "2s");
    assert_eq!(lines(&next_of_members(&mut ear, 1)), ["leave carol unreachable"]);
    let marks = "select count(*) from _presence._unreachable";
    assert_eq!(b.number(marks), 1);
    a.service().run("select presence.forget('carol')");
    assert_eq!(b.number(marks), 0);
    b.run(&(beat("b", 1, "up") + &enter("b", "dora")));
    assert_eq!(lines(&next_of_members(&mut ear, 1)), ["enter dora"]);
    a.assert_sound();
}

#[test]
fn a_server_whose_name_is_none_is_left_out() {
    let a = alone();
    let mut b = peer(&a);
    for name in ["", "b\u{1}", "é", &"b".repeat(64)] {
        b.run(&(beat(name, 1, "up") + &enter(name, "bob")));
    }
    b.run(&(beat("b", 1, "up") + &enter("b", "carol")));
    assert_eq!(b.rows("select node from presence.shared"), [["b"]]);
    assert_eq!(b.rows("select node from presence.node where node <> 'a'"), [["b"]]);
    assert_eq!(a.log().matches("is left out").count(), 8);
    a.assert_sound();
}
