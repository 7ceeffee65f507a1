//! Random calls on two servers, with partitions (`PRESENCE_PARTITIONS` says how many rounds, `PRESENCE_SEED` which), against a
//! model: who entered where, and did not leave.

use super::{Node, two, until_heard, until_together};
use crate::common::{Dice, Mirror, Session, number, seed, until};
use std::collections::BTreeMap;

const USERS: [&str; 3] = ["alice", "bob", "carol"];
const ROOMS: [&str; 3] = ["r0", "r1", "r2"];

/// (room, member_id, connection_id, node) and the state.
type Model = BTreeMap<[String; 4], String>;

/// One call of a user on a server, and what it means.
fn step(dice: &mut Dice, node: &Node, sessions: &mut [Session], model: &mut Model) {
    let at = dice.below(USERS.len());
    let (user, room) = (USERS[at], ROOMS[dice.below(ROOMS.len())]);
    // Of its own on each server: the rule for clients that follows here knows no nodes.
    let connection = format!("{}{}", node.name, dice.below(2));
    let key = [room, user, &connection, node.name].map(str::to_owned);
    let value = dice.below(1_000).to_string();
    let session = &mut sessions[at];
    match dice.below(10) {
        0..=4 => {
            session.run(&format!(
                "select presence.upsert('{room}', '{value}', connection_id => '{connection}', ttl => '1 h')"
            ));
            model.insert(key, value);
        }
        5 => {
            let audience = ["{any}", "{room}", "{users}", "{user:alice}"][dice.below(4)];
            session.run(&format!(
                "select presence.upsert('{room}', '{value}', connection_id => '{connection}', audience => '{audience}', ttl => '1 h')"
            ));
            model.insert(key, value);
        }
        6 => {
            let there = session.number(&format!(
                "select count(*) from presence.update('{room}', connection_id => '{connection}', status => '{value}')"
            ));
            assert_eq!(there == 1, model.contains_key(&key), "{key:?}");
        }
        7 => {
            // Both in one transaction.
            session.run(&format!(
                "select presence.delete('{room}', connection_id => '{connection}');
                 select presence.upsert('{room}', '{value}', connection_id => '{connection}', ttl => '1 h')"
            ));
            model.insert(key, value);
        }
        8 => {
            let left = session.number(&format!(
                "select presence.delete('{room}', connection_id => '{connection}', state => '\"bye\"')"
            ));
            assert_eq!(left == 1, model.remove(&key).is_some(), "{key:?}");
        }
        _ => {
            session.run("select presence.delete_all()");
            model.retain(|[_, member, _, at], _| member != user || at != node.name);
        }
    }
}

fn listed(session: &mut Session) -> Model {
    let rows = session
        .rows("select room, member_id, connection_id, node, state from presence.list(max_rows => 10000)");
    rows.into_iter()
        .map(|row| {
            let [room, member_id, connection_id, node, state] = row.try_into().expect("five columns");
            ([room, member_id, connection_id, node], state)
        })
        .collect()
}

#[test]
fn both_end_with_what_was_done_on_either() {
    let (a, b) = two();
    let seed = seed();
    let mut dice = Dice::new(seed);
    let mut model = Model::new();
    let mut sessions = [&a, &b].map(|node| USERS.map(|user| node.user(user)));
    // Who sees all, and who sees a part.
    let mut watching: Vec<(&Node, Session, Mirror)> = Vec::new();
    for node in [&a, &b] {
        for user in ["postgres", "carol"] {
            let mut session = node.user(user);
            session.run("select presence.listen()");
            let mirror = Mirror::of(&mut session);
            watching.push((node, session, mirror));
        }
    }
    for round in 0..number("PRESENCE_PARTITIONS").unwrap_or(4) {
        // Nobody hears, or only one; for long enough to be hidden, or not.
        let cut = dice.below(4);
        let cuts = [(&a, &b, cut & 1 != 0), (&b, &a, cut & 2 != 0)];
        for (here, there, _) in cuts.iter().filter(|(.., is_cut)| *is_cut) {
            here.hear(there, false);
        }
        for _ in 0..30 {
            let at = dice.below(2);
            step(&mut dice, [&a, &b][at], &mut sessions[at], &mut model);
        }
        if dice.percent(50) {
            for (here, ..) in cuts.iter().filter(|(.., is_cut)| *is_cut) {
                let mut service = here.service();
                let hidden = "select count(*) from presence.node where _presence._is_elsewhere(node)";
                until("the other is hidden", || service.number(hidden) == 0);
            }
        }
        for _ in 0..30 {
            let at = dice.below(2);
            step(&mut dice, [&a, &b][at], &mut sessions[at], &mut model);
        }
        for (here, there, _) in cuts.iter().filter(|(.., is_cut)| *is_cut) {
            here.hear(there, true);
        }
        for node in [&a, &b] {
            until_heard(node, 1);
        }
        until_together(&[&a, &b]);
        for (node, session, mirror) in &mut watching {
            let what = format!("seed {seed}, round {round}: {} ends with what was done", node.name);
            let mut service = node.service();
            until(&what, || listed(&mut service) == model);
            until(&format!("{what}, and its listener"), || {
                mirror.follow(session);
                let held = mirror.members().len();
                session.number("select count(*) from presence.list(max_rows => 10000)") == held as i64
            });
            mirror.assert_true(session);
        }
    }
    a.assert_sound();
    b.assert_sound();
}
