//! Which members are visible on which server.

use super::{Node, shown, two, until_heard, until_together};
use crate::common::{Session, until};
use std::collections::BTreeSet;

const ROOMS: [&str; 4] = ["lobby", "side", "quiet", "secret"];

#[test]
fn everybody_is_shown_the_same_on_each_server() {
    let (a, b) = two();
    for node in [&a, &b] {
        node.service().run(
            "create function public.authorize(room text, action text) returns boolean language sql
                 as $$ select room <> 'secret' or action <> 'read' or current_user = 'carol' $$;
             alter database app set presence.authorizer = 'public.authorize';
             create role team_member; grant team_member to carol;
             select presence.set_room('quiet', count_audience => '{user:carol}')",
        );
    }
    let audiences = ["{any}", "{users}", "{room}", "{}", "{user:bob}", "{role:team_member}", "{room:side}"];
    for (node, users) in [(&a, ["alice", "bob"]), (&b, ["bob", "carol"])] {
        for user in users {
            let mut session = node.user(user);
            for (at, audience) in audiences.into_iter().enumerate() {
                for room in ROOMS.into_iter().filter(|room| *room != "side" || user != "carol") {
                    session.run(&format!(
                        "select presence.upsert('{room}', '{{\"n\": {at}}}', connection_id => 'c{at}', status => '{audience}', audience => '{audience}')"
                    ));
                }
            }
        }
    }
    until_together(&[&a, &b]);
    let mut numbers = BTreeSet::new();
    let (mut there, mut here) = (b.service(), a.service());
    until("all are there", || {
        let count = "select count(*) from presence.list()";
        here.number(count) == 7 * 15 && there.number(count) == 7 * 15
    });
    for person in ["postgres", "alice", "bob", "carol"] {
        let (there, here) = (shown(&mut b.user(person), &ROOMS), shown(&mut a.user(person), &ROOMS));
        for (here, there) in here.iter().zip(&there) {
            assert_eq!(here, there, "{person}");
        }
        numbers.insert(here[0].len());
    }
    // The users do not all see the same.
    assert_eq!(numbers.len(), 4, "{numbers:?}");
    let mut service = a.service();
    // Bob is in the lobby twice with each of his keys, once on each server, and counts as one user.
    assert_eq!(service.rows("select * from presence.occupancy('lobby')"), [["28", "3"]]);
    let twice = "select count(*), count(distinct node) from presence.get('lobby', 'bob', 'c1')";
    assert_eq!(service.rows(twice), [["2", "2"]]);
    assert_eq!(
        service.rows("select expires_at is null, last_seen_at is not null from presence.online where node = 'b' limit 1"),
        [["t", "t"]]
    );
    a.assert_sound();
    b.assert_sound();
}

/// Reads page by page, with this many rows each.
fn pages(session: &mut Session, rows: usize) -> Vec<Vec<String>> {
    let (mut all, mut after) = (Vec::new(), "null".to_owned());
    loop {
        let page = session.rows(&format!(
            "select member_id, connection_id, node from presence.list('lobby', {rows}, {after})"
        ));
        let Some(last) = page.last() else { return all };
        after = format!("array['{}', '{}']", last[0], last[1]);
        all.extend(page);
    }
}

#[test]
fn pages_have_everybody_once() {
    let (a, b) = two();
    for (node, from) in [(&a, 0), (&b, 20)] {
        node.service().run(&format!(
            "select presence.upsert('lobby', member_id => 'm' || i % 30, user_id => 'u', connection_id => 'c' || i / 30)
             from generate_series({from}, {from} + 59) i"
        ));
    }
    until_together(&[&a, &b]);
    let (mut here, mut there) = (a.service(), b.service());
    until("all are there", || here.number("select count(*) from presence.list('lobby')") == 120);
    let whole = here.rows("select member_id, connection_id, node from presence.list('lobby')");
    assert_eq!(whole.len(), 120);
    for rows in [1, 7, 1_000] {
        let mut found = pages(&mut here, rows);
        found.sort();
        let mut wanted = whole.clone();
        wanted.sort();
        assert_eq!(found, wanted, "pages of {rows}");
    }
    until("there, too", || there.number("select count(*) from presence.list('lobby')") == 120);
    assert_eq!(pages(&mut there, 7).len(), 120);
}

#[test]
fn members_elsewhere_count_where_somebody_enters() {
    let (a, b) = two();
    for node in [&a, &b] {
        node.service().run("select presence.set_room('small', max_members => 2)");
    }
    a.user("alice").run("select presence.upsert('small')");
    b.user("bob").run("select presence.upsert('small')");
    until_together(&[&a, &b]);
    let mut carol = a.user("carol");
    let failure = carol.fails("select presence.upsert('small')");
    assert_eq!(failure.code, "54000", "{failure:?}");
    // Existing members can still renew and change.
    a.user("alice").run("select presence.upsert('small', '1')");
    b.user("bob").run("select presence.delete('small')");
    until("bob is gone", || carol.try_run("select presence.upsert('small')").is_ok());
    // Limits do not apply to replicated members: the stream continues.
    b.service().run("select presence.set_room('small', max_members => 9)");
    b.user("bob").run("select presence.upsert('small', audience => '{any}')");
    until("bob is there", || carol.number("select count(*) from presence.get('small', 'bob')") == 1);
    a.assert_sound();
}

#[test]
fn who_is_here_only_elsewhere_is_here() {
    let (a, b) = two();
    b.user("bob").run("select presence.upsert('lobby')");
    a.user("alice").run("select presence.upsert('lobby', '{\"x\": 1}')");
    let mut bob = a.user("bob");
    until("bob sees who is in his room", || bob.number("select count(*) from presence.list('lobby')") == 2);
    assert_eq!(
        bob.rows("select unnest from unnest(presence.tokens()) where unnest like 'room:%'"),
        [["room:lobby"]]
    );
    // His member belongs to another server: here it behaves like an absent one.
    assert_eq!(bob.value("select presence.heartbeat('lobby')"), "f");
    assert_eq!(bob.number("select count(*) from presence.update('lobby', '{}')"), 0);
    assert_eq!(bob.value("select presence.delete('lobby')"), "0");
    // He may enter here as well.
    bob.run("select presence.upsert('lobby')");
    assert_eq!(bob.rows("select node from presence.get('lobby') order by 1"), [["a"], ["b"]]);
    assert_eq!(bob.value("select presence.delete_all()"), "1");
    assert_eq!(bob.rows("select node from presence.get('lobby') order by 1"), [["b"]]);
}

#[test]
fn a_third_joins() {
    let (a, b) = two();
    let c = Node::start("c");
    a.user("alice").run("select presence.upsert('lobby', audience => '{any}')");
    b.user("bob").run("select presence.upsert('lobby', audience => '{any}')");
    c.user("carol").run("select presence.upsert('lobby', audience => '{any}')");
    for (here, there) in [(&a, &c), (&b, &c), (&c, &a), (&c, &b)] {
        here.follow(there);
    }
    for node in [&a, &b, &c] {
        until_heard(node, 2);
        let mut alice = node.user("alice");
        until("all three", || alice.number("select count(distinct node) from presence.list('lobby')") == 3);
        assert_eq!(alice.rows("select * from presence.occupancy('lobby')"), [["3", "3"]]);
        node.assert_sound();
    }
}
