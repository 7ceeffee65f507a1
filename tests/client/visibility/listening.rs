//! What a session listens to: few channels, however old the session is and wherever its user is; and the
//! effects of rollbacks.

use crate::common::{Cluster, Event, Session, lines, until};
use std::collections::HashSet;

fn listening(session: &mut Session) -> HashSet<String> {
    session.rows("select pg_listening_channels()").into_iter().map(|row| row[0].clone()).collect()
}

/// The channel that announces new names for the room and for those in the same cell.
fn cell(session: &mut Session, room: &str) -> String {
    session.rows(&format!("select presence.channels('{room}')")).remove(2).remove(0)
}

/// What the listener receives for a change by alice in the room now: the event, or a doorbell.
fn hears(listener: &mut Session, alice: &mut Session, room: &str) -> Vec<String> {
    listener.hear();
    alice.run(&format!("select presence.update('{room}', jsonb_build_object('n', gen_random_uuid()))"));
    let heard = listener.hear();
    let mut seen = HashSet::new();
    let news = |event: &&Event| event.is_of_member() || event.kind() == "changes";
    heard.iter().filter(news).filter(|event| seen.insert(event.seq())).map(Event::line).collect()
}

const IN_FULL: [&str; 1] = ["update alice"];
const RUNG: [&str; 1] = ["changes "];

fn enter(session: &mut Session, rooms: std::ops::RangeInclusive<u32>) {
    let (first, last) = rooms.into_inner();
    session.run(&format!(
        "select presence.upsert_many(jsonb_agg(jsonb_build_object('room', 'room ' || n, 'ttl', '1 hour')))
         from generate_series({first}, {last}) n"
    ));
}

/// However many rooms the user is in, their events arrive in full, and none of other rooms.
#[test]
fn all_rooms_cost_few_channels() {
    let cluster = Cluster::start();
    let (mut alice, mut bob) = (cluster.user("alice"), cluster.user("bob"));
    enter(&mut alice, 1..=302);
    let mut ear = cluster.user("bob");
    for rooms in [0, 1, 2, 20, 99, 100, 101, 150, 300] {
        if rooms > 0 {
            let there = bob.number("select count(*) from presence.online where user_id = 'bob'") as u32;
            enter(&mut bob, there + 1..=rooms);
        }
        ear.hear();
        ear.run("select presence.listen()");
        let channels = listening(&mut ear).len();
        let most = if rooms <= 100 { 16.max(16 * rooms) } else { 16 };
        assert!(channels as u32 <= most, "{channels} for {rooms}");
        for room in [1, rooms] {
            let heard = hears(&mut ear, &mut alice, &format!("room {room}"));
            assert_eq!(heard, if room > 0 && rooms > 0 { &IN_FULL[..] } else { &[] }, "{room} of {rooms}");
        }
        assert!(hears(&mut ear, &mut alice, "room 302").is_empty(), "{rooms}");
    }
    // Events arrive through a shared room, wherever they happen.
    let told = |ear: &mut Session, alice: &mut Session, audience: &str| {
        alice.run(&format!("select presence.upsert('elsewhere', audience => '{audience}')"));
        hears(ear, alice, "elsewhere") == IN_FULL
    };
    assert!(told(&mut ear, &mut alice, "{\"room:room 7\"}"));
    assert!(!told(&mut ear, &mut alice, "{\"room:room 302\"}"));
    assert!(told(&mut ear, &mut alice, "{\"room:room 302\",\"room:room 300\"}"));
    // The current rights apply: nothing has to be renamed, and nobody has to listen again.
    assert!(hears(&mut ear, &mut alice, "room 301").is_empty());
    bob.run("begin; select presence.upsert('room 301')");
    assert!(hears(&mut ear, &mut alice, "room 301").is_empty(), "not yet");
    bob.run("rollback");
    assert!(hears(&mut ear, &mut alice, "room 301").is_empty(), "never");
    bob.run("select presence.upsert('room 301', ttl => '1 s')");
    assert_eq!(hears(&mut ear, &mut alice, "room 301"), IN_FULL);
    let mut holder = cluster.user("bob");
    holder.run("begin; select from presence.member where user_id = 'bob' and room = 'room 301' for update");
    until("the lease is over", || alice.is("select count(*) = 1 from presence.list('room 301')"));
    assert!(hears(&mut ear, &mut alice, "room 301").is_empty(), "the row is still there");
    holder.run("commit");
    bob.run("select presence.delete('room 5')");
    assert!(hears(&mut ear, &mut alice, "room 5").is_empty());
    assert_eq!(hears(&mut ear, &mut alice, "room 6"), IN_FULL);
    // Few rooms again.
    bob.run("select presence.delete('room ' || n) from generate_series(50, 400) n");
    ear.run("select presence.listen()");
    assert_eq!(hears(&mut ear, &mut alice, "room 6"), IN_FULL);
    assert!(hears(&mut ear, &mut alice, "room 60").is_empty());
    ear.run("select presence.unlisten()");
    assert_eq!(listening(&mut ear).len(), 2);
    cluster.assert_sound();
}

/// The members of a room are checked as long as that is cheap; in a larger room a doorbell rings.
#[test]
fn in_a_large_room_it_rings_for_whoever_is_in_too_many() {
    let cluster = Cluster::start();
    let (mut alice, mut bob, mut service) = (cluster.user("alice"), cluster.user("bob"), cluster.service());
    enter(&mut bob, 1..=150);
    alice.run("select presence.upsert('room 1', ttl => '1 hour')");
    let mut ear = cluster.user("bob");
    ear.run("select presence.listen()");
    service.run(
        "select presence.upsert_many(jsonb_agg(jsonb_build_object('room', 'room 1', 'user_id', 'user ' || n)))
         from generate_series(1, 990) n",
    );
    assert_eq!(hears(&mut ear, &mut alice, "room 1"), IN_FULL);
    service.run(
        "select presence.upsert_many(jsonb_agg(jsonb_build_object('room', 'room 1', 'user_id', 'user ' || n)))
         from generate_series(991, 1100) n",
    );
    assert_eq!(hears(&mut ear, &mut alice, "room 1"), RUNG);
    assert!(ear.is("select count(*) > 0 from presence.changes(0, 'room 1') where member_id = 'alice'"));
    // Also where too many listeners would have to be notified individually.
    service.run("select presence.delete('room 1', 'user ' || n) from generate_series(1, 1100) n");
    assert_eq!(hears(&mut ear, &mut alice, "room 1"), IN_FULL);
    let mut ears = Vec::new();
    for n in 1..=65 {
        service.run(&format!(
            "create role many{n} login; select presence.grant_access('many{n}');
             select presence.upsert_many(jsonb_agg(jsonb_build_object('room', 'room ' || r, 'user_id', 'many{n}')))
             from generate_series(1, 101) r"
        ));
        let mut ear = cluster.user(&format!("many{n}"));
        ear.run("select presence.listen()");
        ears.push(ear);
    }
    assert_eq!(hears(&mut ear, &mut alice, "room 1"), RUNG);
    assert_eq!(hears(&mut ears[0], &mut alice, "room 1"), RUNG);
    drop(ears.split_off(3));
    until("few are left", || hears(&mut ear, &mut alice, "room 1") == IN_FULL);
    assert_eq!(hears(&mut ears[0], &mut alice, "room 1"), IN_FULL);
}

/// After listening again, repeatedly, a session holds only the channels currently open to it, as documented.
#[test]
fn old_names_are_let_go() {
    let cluster = Cluster::start();
    let (mut service, mut alice, mut bob) = (cluster.service(), cluster.user("alice"), cluster.user("bob"));
    for user in [&mut alice, &mut bob] {
        user.run("select presence.upsert('hall', ttl => '1 hour')");
    }
    let listen = "select presence.listen('hall'), presence.listen('side'), presence.listen()";
    bob.run(listen);
    let (count, before) = (listening(&mut bob).len(), listening(&mut bob));
    for turn in 0..4 {
        let room = if turn % 2 == 0 { "'hall'" } else { "" };
        service.run(&format!("select presence.rotate_channels({room})"));
        service.flush();
        bob.hear_until("relisten", |event| event.kind() == "relisten");
        bob.run(listen);
        assert_eq!(listening(&mut bob).len(), count, "{turn}");
        assert_eq!(hears(&mut bob, &mut alice, "hall"), IN_FULL);
    }
    assert_eq!(listening(&mut bob).intersection(&before).count(), 1, "the one for resync");
    // The channels of a lost role are released as well.
    service.run("create role staff; grant staff to bob");
    bob.run(listen);
    assert_eq!(listening(&mut bob).len(), count + 3);
    service.run("revoke staff from bob");
    service.flush();
    bob.run(listen);
    assert_eq!(listening(&mut bob).len(), count);
    for (room, left) in [("'hall'", "'side'"), ("", "'hall'"), ("'side'", "")] {
        bob.run(&format!("select presence.listen({left}), presence.unlisten({room})"));
        let open = format!("select presence.channels({left}) except select pg_listening_channels()");
        assert!(bob.rows(&open).is_empty(), "{room}");
    }
    bob.run("select presence.unlisten(), presence.unlisten('hall')");
    let rest = "select pg_listening_channels() except select presence.channels('side')";
    assert_eq!(bob.rows(rest).len(), 0);
}

/// Rooms in the same cell share a channel: it stays while one of them needs it, whatever was rolled back.
#[test]
fn what_is_rolled_back_was_neither_opened_nor_closed() {
    let cluster = Cluster::start();
    let mut bob = cluster.user("bob");
    let shared = cell(&mut bob, "hall");
    let mate = bob.value(&format!(
        "select 'mate ' || n from generate_series(1, 200000) n
         where exists (select from presence.channels('mate ' || n) c where c = '{shared}') limit 1"
    ));
    for (script, mate_is_open) in [
        ("begin; select presence.unlisten('mate'); rollback", true),
        ("begin; savepoint s; select presence.unlisten('mate'); rollback to s; commit", true),
        ("begin; savepoint s; select presence.unlisten('mate'); release s; rollback", true),
        ("begin; select presence.unlisten('mate'); select presence.listen('mate'); commit", true),
        ("begin; unlisten *; rollback", true),
        ("begin; savepoint s; select presence.unlisten('mate'); release s; commit", false),
        ("begin; savepoint s; unlisten *; rollback to s; select presence.unlisten('mate'); commit", false),
        ("select presence.unlisten('mate'); begin; select presence.listen('mate'); rollback", false),
        (
            "select presence.unlisten('mate'); begin; savepoint s; select presence.listen('mate'); rollback to s; commit",
            false,
        ),
        ("select presence.unlisten('mate'); begin; select presence.listen('mate'), 1/0", false),
    ] {
        bob.run(&format!("unlisten *; select presence.listen('hall'); select presence.listen('{mate}')"));
        let script = script.replace("'mate'", &format!("'{mate}'"));
        script.split("; begin").enumerate().for_each(|(at, part)| {
            let _ = bob.try_run(&format!("{}{part}", if at > 0 { "begin" } else { "" }));
        });
        let _ = bob.try_run("rollback");
        let missing = format!("select presence.channels('{mate}') except select pg_listening_channels()");
        assert_eq!(bob.rows(&missing).is_empty(), mate_is_open, "{script}");
        bob.run("select presence.unlisten('hall')");
        assert_eq!(listening(&mut bob).contains(&shared), mate_is_open, "{script}");
        bob.run(&format!("select presence.unlisten('{mate}')"));
        assert!(listening(&mut bob).len() <= 2, "{script}: {:?}", listening(&mut bob));
    }
}

/// What was announced before a LISTEN committed is announced again by its commit, however long that took.
#[test]
fn who_was_just_listening_is_not_deaf() {
    let cluster = Cluster::start();
    let (mut alice, mut bob, mut tab) = (cluster.user("alice"), cluster.user("bob"), cluster.user("bob"));
    let mut service = cluster.service();
    alice.run("select presence.upsert('hall', ttl => '1 hour')");
    for (change, back) in [
        ("select presence.upsert('hall', ttl => '1 hour')", "select 1"),
        ("select presence.delete('hall')", "select presence.upsert('hall', ttl => '1 hour')"),
        ("rotate", "select presence.upsert('hall', ttl => '1 hour')"),
        ("rotate all", "select presence.upsert('hall', ttl => '1 hour')"),
    ] {
        for begin in ["begin; select presence.listen('hall')", "begin; select presence.listen()"] {
            tab.run(&format!("{back}; select presence.wait_for_flush('20 s')"));
            bob.run("unlisten *");
            bob.hear();
            // Rotations are also announced again later, on other channels.
            let own = bob.rows("select presence.channels('hall')").remove(1).remove(0);
            bob.run(begin);
            match change {
                "rotate" => service.run("select presence.rotate_channels('hall')"),
                "rotate all" => service.run("select presence.rotate_channels()"),
                change => tab.run(change),
            }
            service.flush();
            bob.run("commit");
            let heard: Vec<Event> = bob.heard().into_iter().filter(|event| event.channel == own).collect();
            let worker = bob.number("select presence.worker_pid()");
            assert_eq!(heard.len(), 1, "{change}, {begin}: {heard:#?}");
            assert_eq!((heard[0].kind(), heard[0].sender), ("relisten", worker), "{change}, {begin}");
            // A session that listens again receives everything, and is not notified again.
            let listen = begin.replace("begin; ", "");
            bob.run(&listen);
            // In full, or by a doorbell: somebody may have left a moment ago.
            let is_told = !hears(&mut bob, &mut alice, "hall").is_empty();
            assert_eq!(is_told, !change.contains("delete"), "{change}, {begin}");
            let own = bob.rows("select presence.channels('hall')").remove(1).remove(0);
            bob.run(&listen);
            assert!(bob.hear().iter().all(|event| event.channel != own), "{change}, {begin}");
            tab.run("select presence.delete('hall')");
        }
    }
    // An uncommitted LISTEN is not notified.
    bob.run("unlisten *");
    bob.hear();
    bob.run("begin; select presence.listen('hall')");
    tab.run("select presence.upsert('hall'); select presence.wait_for_flush('20 s')");
    bob.run("rollback");
    assert!(bob.heard().is_empty());
}

/// A gateway checks its users' rights in a room again when it is told that they have changed.
#[test]
fn service_roles_are_told_which_room_rotates() {
    let cluster = Cluster::with(&["presence.event_buffer=256kB"]);
    let (mut service, mut one, mut all) = (cluster.service(), cluster.service(), cluster.service());
    one.run("select presence.listen('hall')");
    all.run("select presence.listen()");
    let rooms = |listener: &mut Session| {
        let heard = listener.hear();
        let relistens = heard.iter().filter(|event| event.kind() == "relisten");
        relistens
            .map(|event| event.text("room").to_owned())
            .filter(|room| !room.is_empty())
            .collect::<Vec<_>>()
    };
    for (script, told) in [
        ("select presence.rotate_channels('hall')", vec!["hall"]),
        ("select presence.rotate_channels('side')", vec!["side"]),
        (
            "begin; select presence.rotate_channels('hall'), presence.rotate_channels('hall'); commit",
            vec!["hall"],
        ),
        ("begin; savepoint s; select presence.rotate_channels('hall'); release s; commit", vec!["hall"]),
        ("begin; savepoint s; select presence.rotate_channels('hall'); rollback to s; commit", vec![]),
        ("begin; select presence.rotate_channels('hall'); rollback", vec![]),
    ] {
        one.run("select presence.listen('hall')");
        service.run(script);
        assert_eq!(rooms(&mut all), told, "{script}");
        let of_one: Vec<&str> = told.into_iter().filter(|room| *room == "hall").collect();
        assert_eq!(rooms(&mut one), of_one, "{script}");
    }
    // If the request to rotate is itself lost, everybody must check again, for all rooms.
    all.run("select presence.listen()");
    service.run(
        "begin; select presence.rotate_channels('hall');
         select count(presence.upsert('junk', connection_id => n::text)) from generate_series(1, 3000) n; commit",
    );
    all.hear_until("resync", |event| event.kind() == "resync");
    one.hear_until("relisten", |event| event.kind() == "relisten");
}

/// Rotating a room ends rights that only an external system has revoked, also for listeners to all rooms.
#[test]
fn the_rotation_of_a_room_is_one_for_listeners_to_all_rooms() {
    let cluster = Cluster::start();
    let (mut alice, mut service, mut bob) = (cluster.user("alice"), cluster.service(), cluster.user("bob"));
    alice.run("select presence.upsert('hall', audience => '{team:red,user:bob}', ttl => '1 hour')");
    let mut carol = cluster.service();
    let claims = |teams: &str| {
        format!(
            "reset role; set request.jwt.claims = '{{\"sub\": \"carol\", \"app_metadata\": {{\"teams\": [{teams}]}}}}';
             set role carol"
        )
    };
    carol.run(&claims("\"red\""));
    carol.run("select presence.listen(), presence.listen('hall')");
    bob.run("select presence.listen()");
    assert_eq!(hears(&mut carol, &mut alice, "hall"), IN_FULL);
    carol.run(&claims(""));
    service.run("select presence.rotate_channels('hall')");
    assert!(hears(&mut carol, &mut alice, "hall").is_empty());
    bob.hear_until("relisten", |event| event.kind() == "relisten");
    for listener in [&mut bob, &mut carol] {
        listener.run("select presence.listen()");
    }
    assert!(hears(&mut carol, &mut alice, "hall").is_empty());
    assert_eq!(hears(&mut bob, &mut alice, "hall"), IN_FULL);
}

/// A gateway routes by audience, also for room events.
#[test]
fn service_roles_hear_the_audience_of_a_room() {
    let cluster = Cluster::start();
    let (mut service, mut bob, mut gateway) = (cluster.service(), cluster.user("bob"), cluster.service());
    gateway.run("select presence.listen()");
    bob.run("select presence.listen()");
    service.run("select presence.set_room('hall', '{\"topic\": 1}', audience => '{team:red,user:bob}')");
    let audiences = |listener: &mut Session| {
        let heard = listener.hear();
        let mut rooms = heard.into_iter().filter(|event| event.kind() == "room");
        let event = rooms.next().expect("a room event");
        assert!(rooms.next().is_none());
        [event["audience"].clone(), event["old_audience"].clone()]
    };
    let (none, before) = (serde_json::Value::Null, serde_json::json!(["team:red", "user:bob"]));
    assert_eq!(audiences(&mut gateway), [before.clone(), none.clone()]);
    assert_eq!(audiences(&mut bob), [none.clone(), none.clone()]);
    service.run("select presence.set_room('hall', '{\"topic\": 2}')");
    assert_eq!(audiences(&mut gateway), [before.clone(), none.clone()]);
    bob.hear();
    // Of several changes in a transaction, the first old audience is reported: the one that the room was
    // shown to.
    service.run(
        "begin; select presence.set_room('hall', '{\"topic\": 3}', audience => '{any}');
         select presence.set_room('hall', '{\"topic\": 4}', audience => '{user:bob,room}'); commit",
    );
    assert_eq!(audiences(&mut gateway), [serde_json::json!(["room:hall", "user:bob"]), before]);
    assert_eq!(audiences(&mut bob), [none.clone(), none]);
    service.run("begin; update presence.room set audience = null, metadata = '5'; commit");
    let default = serde_json::json!(["room:hall"]);
    assert_eq!(audiences(&mut gateway), [default, serde_json::json!(["room:hall", "user:bob"])]);
    assert_eq!(lines(&bob.hear()), [""; 0]);
    assert!(service.is(
        "select bool_and(audience = '{room:hall}') from presence.changes(0, 'hall') where metadata = '5'"
    ));
}

/// A gateway that missed a live event finds the current audience in the log.
#[test]
fn service_roles_read_the_whole_audience_of_a_change() {
    let cluster = Cluster::start();
    let (mut alice, mut bob, mut gateway) = (cluster.user("alice"), cluster.user("bob"), cluster.service());
    gateway.run("select presence.listen()");
    alice.run("select presence.upsert('hall', audience => '{user:bob,team:red}')");
    gateway.hear();
    for (given, stored) in [
        ("{user:bob,user:carol}", "{user:bob,user:carol}"),
        ("{users,role:blue}", "{role:blue,users}"),
        ("{}", "{}"),
        ("{any}", "{any}"),
        ("{room,user:bob}", "{room:hall,user:bob}"),
    ] {
        let since = gateway.number("select presence.seq()");
        alice.run(&format!("select presence.update('hall', audience => '{given}')"));
        let heard = gateway.hear();
        let live = heard.iter().find(|event| event.kind() == "update").expect("an update");
        let read = "select event, seq, audience from";
        let changes = format!("{read} presence.changes({since}) where event <> 'position'");
        let expected = [["update".to_owned(), live.seq().to_string(), stored.to_owned()]];
        assert_eq!(gateway.rows(&changes), expected);
        assert_eq!(alice.rows(&changes), expected, "it is the owner's own");
        let history = format!("{read} presence.history('hall', max_rows => 1)");
        assert_eq!(gateway.rows(&history), expected);
        let told = "select count(audience) from";
        assert_eq!(bob.number(&format!("{told} presence.changes({since})")), 0);
        assert_eq!(bob.number(&format!("{told} presence.history('hall')")), 0);
    }
}
