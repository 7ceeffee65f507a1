//! What a peer may send, and what must not stop the replication stream.

use super::{Node, two, until_heard, until_together};
use crate::common::{Mirror, Session, until};

const NAMES: &str = "select member_id from presence.list('lobby') order by 1";

fn until_named(session: &mut Session, names: &[&str]) {
    until(&format!("these are here: {names:?}"), || session.rows(NAMES).concat() == names);
}

#[test]
fn what_is_not_sound_is_left_out() {
    let (a, b) = two();
    let row = |member: &str, changed: &str| {
        format!(
            "insert into presence.shared
             select (jsonb_populate_record(s, '{changed}')).* from (select s from presence.shared s limit 1) s (s)
             where '{member}' <> ''"
        )
    };
    b.user("bob").run("select presence.upsert('lobby', audience => '{any}')");
    let (mut here, mut there) = (a.service(), b.service());
    until_named(&mut here, &["bob"]);
    for wrong in [
        r#"{"member_id": "m1", "room": ""}"#,
        r#"{"member_id": "m2\u0001"}"#,
        r#"{"member_id": "m3", "user_id": null}"#,
        r#"{"member_id": "m4", "state": null}"#,
        r#"{"member_id": "m5", "audience": ["everybody"]}"#,
        r#"{"member_id": "m6", "audience": [["any"], ["users"]]}"#,
        r#"{"member_id": "m7", "joined_at": null}"#,
        r#"{"member_id": "m8", "joined_at": "infinity"}"#,
        r#"{"member_id": "m9", "updated_at": "-infinity"}"#,
    ] {
        there.run(&row("m", wrong));
    }
    there.run(&row("m", r#"{"member_id": "fine"}"#));
    until_named(&mut here, &["bob", "fine"]);
    let log = a.log();
    assert_eq!(log.matches("is left out").count(), 9, "{log}");
    // An update that makes a row invalid keeps the previous row.
    there.run("update presence.shared set user_id = '' where member_id = 'fine'");
    b.user("carol").run("select presence.upsert('lobby', audience => '{any}')");
    until_named(&mut here, &["bob", "carol", "fine"]);
    assert_eq!(here.value("select user_id from presence.get('lobby', 'fine')"), "bob");
    a.assert_sound();
}

#[test]
fn rows_of_ones_own_name_do_not_come_back() {
    let (a, b) = (Node::start("a"), Node::start("b"));
    // The other server subscribes to everything.
    b.service().run("create publication everything for all tables with (publish = 'insert, update, delete')");
    b.follow(&a);
    let host = b.display();
    a.service().run(&format!(
        "create subscription everything connection 'host={host} dbname=app user=postgres' publication everything
             with (slot_name = 'presence_from_b_a')"
    ));
    until_heard(&a, 1);
    until_heard(&b, 1);
    let mut alice = a.user("alice");
    for number in 0..20 {
        alice.run(&format!("select presence.upsert('lobby', '{number}', audience => '{{any}}')"));
        b.user("bob").run(&format!("select presence.upsert('lobby', '{number}', audience => '{{any}}')"));
    }
    until_together(&[&a, &b]);
    let mut carol = b.user("carol");
    until("both end alike", || {
        let states = "select member_id, state, node from presence.list('lobby')";
        let wanted = [["alice", "19", "a"], ["bob", "19", "b"]];
        alice.rows(states) == wanted && carol.rows(states) == wanted
    });
    // What belongs to each server stays local.
    let mut service = a.service();
    assert_eq!(service.number("select count(*) from _presence.secret"), 1);
    until("users were seen", || service.number("select count(*) from presence.last_seen") == 2);
    a.assert_sound();
    b.assert_sound();
}

#[test]
fn a_copy_made_anew_has_whom_there_is() {
    let (a, b) = two();
    let (mut here, mut there) = (a.service(), b.service());
    there.run(
        "select presence.upsert('lobby', member_id => m, user_id => m) from unnest('{m1,m2,m3}'::text[]) m",
    );
    until_named(&mut here, &["m1", "m2", "m3"]);
    here.run("drop subscription presence_from_b");
    there.run(
        "select presence.delete('lobby', 'm1'), presence.upsert('lobby', '7', member_id => 'm2', user_id => 'm2'),
                presence.upsert('lobby', member_id => 'm4', user_id => 'm4')",
    );
    until("they are hidden", || here.rows(NAMES).is_empty());
    a.follow(&b);
    until_named(&mut here, &["m2", "m3", "m4"]);
    assert_eq!(here.value("select state from presence.get('lobby', 'm2')"), "7");
    assert_eq!(here.number("select count(*) from presence.shared"), 3);
    // Also if there are no members.
    here.run("select presence.listen()");
    let mut mirror = Mirror::of(&mut here);
    here.run("drop subscription presence_from_b");
    there.run("delete from presence.member");
    a.follow(&b);
    until("nobody is here", || {
        mirror.follow(&mut here);
        here.number("select count(*) from presence.shared") == 0 && mirror.members().is_empty()
    });
    until_heard(&a, 1);
    mirror.assert_true(&mut here);
    there.run("select presence.upsert('lobby', member_id => 'm5', user_id => 'm5')");
    until_named(&mut here, &["m5"]);
    a.assert_sound();
}
