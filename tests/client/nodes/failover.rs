//! One of several servers dies, and its standby is promoted.

use super::{Node, until_heard, until_together};
use crate::common::{Mirror, Session, Standby, until};

const ALL: &str = "select room, member_id, connection_id, node, user_id, state, audience from presence.list(max_rows => 10000) order by 1, 2, 3, 4";

/// The steps that docs/cluster.md prescribes for each of the other servers.
fn follow_anew(node: &Node, standby: &Standby) {
    let mut service = node.service();
    service.run("alter subscription presence_from_a disable");
    service.run("alter subscription presence_from_a set (slot_name = none)");
    service.run("drop subscription presence_from_a");
    let host = AsRef::<std::path::Path>::as_ref(standby).display();
    service.run(&format!(
        "create subscription presence_from_a connection 'host={host} dbname=app user=presence_peer'
             publication presence_a with (streaming = on, slot_name = 'presence_from_a_{}')",
        node.name
    ));
}

fn until_all_show(sessions: &mut [&mut Session], members: usize) {
    until("all show the same", || {
        let shown: Vec<_> = sessions.iter_mut().map(|session| session.rows(ALL)).collect();
        shown.iter().all(|rows| rows.len() == members && *rows == shown[0])
    });
}

#[test]
fn others_follow_a_standby_that_was_promoted() {
    let nodes = ["a", "b", "c"].map(Node::start);
    let [a, b, c] = &nodes;
    for here in &nodes {
        nodes.iter().filter(|there| there.name != here.name).for_each(|there| here.follow(there));
    }
    for node in &nodes {
        until_heard(node, 2);
        node.service().run(
            "select count(presence.upsert('lobby', to_jsonb(n), user_id => 'u' || n, audience => '{any}', ttl => '1 h'))
             from generate_series(1, 50) n",
        );
    }
    until_together(&[a, b, c]);
    let (mut on_b, mut on_c) = (b.service(), c.service());
    until_all_show(&mut [&mut a.service(), &mut on_b, &mut on_c], 150);
    let mut ear = b.service();
    ear.run("select presence.listen()");
    let mut mirror = Mirror::of(&mut ear);
    let standby = Standby::of(a);
    standby.until_caught_up(&mut a.service());

    a.stop("immediate");
    until("its members are hidden", || on_b.number("select count(*) from presence.list('lobby')") == 100);
    standby.promote();
    let mut on_a = standby.service();
    // All members are still present.
    let renewed = "select count(*) from unnest(array(select 'u' || n from generate_series(1, 50) n)) u where presence.heartbeat('lobby', u)";
    assert_eq!(on_a.number(renewed), 50);
    follow_anew(b, &standby);
    follow_anew(c, &standby);
    until_all_show(&mut [&mut on_a, &mut on_b, &mut on_c], 150);
    on_a.run("select presence.upsert('lobby', '\"new\"', 'u1', user_id => 'u1')");
    on_a.run("select presence.delete('lobby', 'u2')");
    on_b.run("select presence.delete('lobby', 'u3')");
    on_c.run("select presence.upsert('lobby', '\"more\"', 'u4')");
    until_all_show(&mut [&mut on_a, &mut on_b, &mut on_c], 148);
    until("the listener has it all", || {
        mirror.follow(&mut ear);
        mirror.members().len() == 148 && ear.number("select count(*) from presence.list('lobby')") == 148
    });
    ear.flush();
    mirror.follow(&mut ear);
    mirror.assert_true(&mut ear);
    // Each member left once before it entered again, or before everybody had to list again.
    let twice = "select count(*) from (
        select event, seq, lag(event) over turn as before, lag(seq) over turn as since
        from presence.event where event in ('enter', 'leave')
        window turn as (partition by room, member_id, node order by seq)) e
        where event = 'leave' and before = 'leave'
          and not exists (select from presence.event r where r.event = 'resync' and r.seq between e.since and e.seq)";
    assert_eq!(on_b.number(twice), 0);
    assert_eq!(
        on_b.rows("select node, state from presence.cluster() order by 1"),
        [["a", "up"], ["b", "up"], ["c", "up"]]
    );
    b.assert_sound();
    c.assert_sound();
}
