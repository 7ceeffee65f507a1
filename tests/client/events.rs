//! The events that listeners receive.

use crate::common::{Cluster, Event, Mirror, lines, millis};
use serde_json::json;
use std::time::{Duration, Instant};

#[test]
fn a_listener_hears_who_comes_changes_and_goes() {
    let cluster = Cluster::start();
    let (mut alice, mut bob) = (cluster.user("alice"), cluster.user("bob"));
    bob.run("select presence.upsert('lobby')");
    bob.listen("lobby");
    bob.hear();

    let enter = r#"{"cursor": [1, 2], "тема": "naïve 🦀"}"#;
    alice.run(&format!(
        "select presence.upsert('lobby', '{enter}', status => 'schön', metadata => '{{\"name\": \"Алиса\"}}')"
    ));
    let heard = bob.hear();
    let event = the(&heard, "enter alice");
    assert!(event.payload.is_ascii(), "{}", event.payload);
    assert_eq!(event.sender, bob.number("select presence.worker_pid()"));
    assert_eq!(event["room"], "lobby");
    assert_eq!(event["user_id"], "alice");
    assert_eq!(event["connection_id"], "");
    assert_eq!(event["status"], "schön");
    assert_eq!(event["state"], json!({"cursor": [1, 2], "тема": "naïve 🦀"}));
    assert_eq!(event["metadata"], json!({"name": "Алиса"}));
    assert_eq!(event["connections"], 1);
    assert!(event["reason"].is_null());
    assert!(event.fields.get("audience").is_none(), "only services are told the audience");
    let row = "select version, to_char(joined_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')
               from presence.get('lobby', 'alice')";
    assert_eq!(bob.rows(row)[0], [event.number("version").to_string(), event.text("joined_at").into()]);

    alice.run("select presence.update('lobby', '{\"cursor\": null}', status => '')");
    let heard = bob.hear();
    let update = the(&heard, "update alice");
    assert_eq!(update["state"], json!({"тема": "naïve 🦀"}));
    assert!(update["status"].is_null());
    assert_eq!(update["joined_at"], event["joined_at"]);
    assert!(update.number("version") > event.number("version") && update.seq() > event.seq());

    alice.run("select presence.delete('lobby', state => '{\"bye\": true}')");
    let heard = bob.hear();
    let leave = the(&heard, "leave alice left");
    assert_eq!(leave["state"], json!({"bye": true}));
    assert_eq!(leave["metadata"], json!({"name": "Алиса"}), "the last data");
    assert_eq!(leave["connections"], 0);
    assert_eq!(leave["joined_at"], event["joined_at"]);
    assert!(leave.number("version") > update.number("version") && leave.seq() > update.seq());

    // Users outside the room receive no events.
    let mut carol = cluster.user("carol");
    carol.listen("lobby");
    alice.run("select presence.upsert('lobby')");
    assert_eq!(lines(&carol.hear()), [""; 0]);
    cluster.assert_sound();
}

#[test]
fn the_size_of_a_payload_and_the_number_of_tabs() {
    let cluster = Cluster::start();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    service.listen("lobby");

    // Connections are counted: 1 on enter means that the user arrived, 0 on leave that the user is gone.
    for (call, line, connections) in [
        ("upsert('lobby')", "enter alice", 1),
        ("upsert('lobby', connection_id => 'phone')", "enter alice/phone", 2),
        ("upsert('lobby', '{\"x\": 1}', connection_id => 'phone')", "update alice/phone", 2),
        ("delete('lobby')", "leave alice left", 1),
        ("delete('lobby', connection_id => 'phone')", "leave alice/phone left", 0),
    ] {
        alice.run(&format!("select presence.{call}"));
        let heard = service.hear();
        assert_eq!(the(&heard, line)["connections"], connections, "{line}");
    }

    // Payloads are complete up to the limit of NOTIFY, escapes included; above it they omit the data.
    for length in [10, 1_200, 1_300, 1_400, 7_000, 7_400, 7_700, 8_200, 15_000] {
        for character in ['x', 'é', '🦀'] {
            alice.run(&format!("select presence.upsert('lobby', to_jsonb(repeat('{character}', {length})))"));
            let heard = service.hear();
            let event = heard.iter().find(|event| event.is_of_member()).expect("an event");
            assert!(event.payload.len() <= 7_999 && event.payload.is_ascii());
            let data =
                length * if character == 'x' { 1 } else { 6 * character.encode_utf16(&mut [0; 2]).len() };
            if event["truncated"] == true {
                assert!(event.fields.get("state").is_none() && event.fields.get("metadata").is_none());
                assert!(event.payload.len() + data > 7_980, "{length} of {character} would have fitted");
            } else {
                assert_eq!(event.text("state").chars().count(), length);
            }
        }
    }
    assert_eq!(service.number("select length(state #>> '{}') from presence.get('lobby', 'alice')"), 15_000);

    // Control characters and quotes arrive intact; the longest names still fit.
    let mut bob = cluster.user("bob");
    bob.run("select presence.upsert(repeat('р', 255), '\"a\\\"\\\\\\u0001\\u007f\\n\"', connection_id => repeat('є', 255))");
    service.run("select presence.listen()");
    bob.run("select presence.upsert(repeat('р', 255), '2', connection_id => repeat('є', 255))");
    let heard = service.hear();
    let event = heard.iter().find(|event| event.is_of_member()).expect("an event");
    assert_eq!(event.text("room").chars().count(), 255);
    assert_eq!(event.text("connection_id").chars().count(), 255);
    cluster.assert_sound();
}

#[test]
fn fast_updates_are_conflated_and_nothing_else_is() {
    let cluster = Cluster::with(&["presence.notify_delay=100ms"]);
    let (mut alice, mut bob, mut service) = (cluster.user("alice"), cluster.user("bob"), cluster.service());
    service.listen("lobby");

    alice.run("select presence.upsert('lobby')");
    for turn in 1..=400 {
        alice.run(&format!("select presence.update('lobby', '{{\"turn\": {turn}}}')"));
        if turn % 10 == 0 {
            bob.run("select presence.upsert('lobby')");
            bob.run("select presence.delete('lobby')");
        }
    }
    let heard = service.hear();
    let updates: Vec<&Event> = heard.iter().filter(|event| event.kind() == "update").collect();
    assert!((1..200).contains(&updates.len()), "{} updates", updates.len());
    assert_eq!(updates.last().expect("one")["state"], json!({"turn": 400}), "the newest arrives");
    assert!(updates.is_sorted_by_key(|event| event.number("version")));

    // Every enter and leave is published, alternately.
    let bobs: Vec<String> = lines(&heard).into_iter().filter(|line| line.contains("bob")).collect();
    assert_eq!(bobs.len(), 80);
    assert!(bobs.chunks(2).all(|pair| pair == ["enter bob", "leave bob left"]), "{bobs:?}");
    let seqs: Vec<i64> = heard.iter().filter(|event| event.is_of_member()).map(Event::seq).collect();
    assert!(seqs.is_sorted_by(|a, b| a < b));

    // Update and leave in one flush: the update may be omitted, and the leave comes last.
    alice.run("select presence.update('lobby', '{\"turn\": 0}')");
    alice.run("select presence.delete('lobby')");
    assert_eq!(lines(&service.hear()).last().expect("a leave"), "leave alice left");

    // Identical and empty changes cause no event.
    alice.run("select presence.upsert('lobby', '{\"a\": 1}', ttl => '50 s')");
    service.hear();
    alice.run("select presence.upsert('lobby', '{\"a\": 1}')");
    alice.run("select presence.update('lobby', '{\"a\": 1}')");
    alice.run("select presence.upsert('lobby', ttl => '40 s')");
    alice.run("select presence.heartbeat('lobby')");
    assert_eq!(lines(&service.hear()), [""; 0]);
}

#[test]
fn without_a_delay_every_update_is_heard() {
    let cluster = Cluster::with(&["presence.notify_delay=0"]);
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    service.listen("lobby");
    alice.run("select presence.upsert('lobby')");
    let frozen = cluster.freeze_worker();
    for turn in 1..=3 {
        alice.run(&format!("select presence.update('lobby', '{{\"turn\": {turn}}}')"));
    }
    drop(frozen);
    let heard = service.hear();
    let turns: Vec<i64> = heard.iter().filter_map(|event| event["state"]["turn"].as_i64()).collect();
    assert_eq!(turns, [1, 2, 3]);
    cluster.assert_sound();
}

#[test]
fn a_listener_that_saw_only_events_ends_with_what_list_says() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    service.run("select presence.listen()");
    let mut member = cluster.user("bob");
    member.run("select presence.upsert('room 1'); select presence.listen()");
    let (mut mirror, mut guest) = (Mirror::of(&mut service), Mirror::of(&mut member));

    let end = Instant::now() + Duration::from_secs(4);
    std::thread::scope(|scope| {
        for (number, user) in ["alice", "alice", "carol", "carol"].into_iter().enumerate() {
            let mut session = cluster.user(user);
            scope.spawn(move || {
                let mut random = Random(number as u64 + 1);
                while Instant::now() < end {
                    if session.try_run(&random.change()).is_err() {
                        session.run("rollback"); // a deadlock, because they lock members in any order
                    }
                }
            });
        }
        // One mirror reads continuously, as clients do; the other reads everything at the end.
        while Instant::now() < end {
            if let Some(event) = service.next_event(millis(20)) {
                mirror.apply(&mut service, &event);
            }
        }
    });
    mirror.follow(&mut service);
    mirror.assert_true(&mut service);
    guest.follow(&mut member);
    guest.assert_true(&mut member);
    assert!(!mirror.members().is_empty());
    assert_eq!(mirror.resyncs(), 0);

    // The log is complete and in order, and its final state matches the list.
    assert!(service.is("select max(seq) - min(seq) + 1 = count(*) from presence.event"));
    assert_eq!(service.value(
        "select count(*) from (select event, lag(event) over (partition by room, member_id, connection_id order by seq)
         as before from presence.event) e
         where (event = 'enter') is distinct from (before is null or before = 'leave')"), "0", "enter, updates, leave");
    let ends =
        "select count(*) from (select distinct on (room, member_id, connection_id) * from presence.event
                order by room, member_id, connection_id, version desc) e
                full join presence.online o using (room, member_id, connection_id)
                where (e.event <> 'leave') is distinct from (o.room is not null)
                   or (e.event <> 'leave' and (e.version, e.state) is distinct from (o.version, o.state))";
    assert_eq!(service.value(ends), "0");
    cluster.assert_sound();
}

/// The event with this line. It must be the only member event, although several channels may deliver it.
fn the<'a>(heard: &'a [Event], line: &str) -> &'a Event {
    let found: Vec<&Event> = heard.iter().filter(|event| event.is_of_member()).collect();
    assert!(!found.is_empty() && found.iter().all(|event| event.line() == line), "{line}: {heard:#?}");
    assert!(found.iter().all(|event| event.payload == found[0].payload));
    found[0]
}

/// xorshift: the writers make the same choices in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// A random transaction on a few members: one or more statements, possibly rolled back.
    fn change(&mut self) -> String {
        let statements: Vec<String> = (0..1 + self.below(3)).map(|_| self.statement()).collect();
        let end = if self.below(6) == 0 { "rollback" } else { "commit" };
        format!("begin; {}; {end}", statements.join("; "))
    }

    fn statement(&mut self) -> String {
        let key = format!("'room {}', connection_id => '{}'", self.below(2), self.below(3));
        let value = self.below(1_000_000);
        match self.below(10) {
            0..=3 => format!("select presence.upsert({key}, state => '{{\"n\": {value}}}')"),
            4..=5 => {
                format!("select presence.update({key}, patch => '{{\"u\": {value}}}', status => '{value}')")
            }
            6..=7 => format!("select presence.delete({key})"),
            8 => format!("savepoint s; select presence.delete({key}); rollback to s"),
            _ => format!("select presence.upsert({key})"),
        }
    }
}
