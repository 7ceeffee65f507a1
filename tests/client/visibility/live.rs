//! Listeners on real connections, while audiences change, members leave, channels rotate, and policies and
//! the authorizer come and go: what each of them receives, and what the log shows them.

use super::people::{self, Hear, Reader};
use crate::common::{Cluster, Event, Session, millis, until};
use std::time::Instant;

/// `leave hidden v0`, `update v1`, `enter v1`: versions are relative to the first.
fn story(events: &[Event], first: i64) -> Vec<String> {
    let mut events: Vec<&Event> = events.iter().filter(|event| event.is_of_member()).collect();
    events.sort_by_key(|event| event.seq());
    events.dedup_by_key(|event| event.seq());
    let tell = |event: &&Event| {
        let reason = if event.text("reason").is_empty() {
            String::new()
        } else {
            format!(" {}", event.text("reason"))
        };
        format!("{}{reason} {} v{}", event.kind(), event["state"]["n"], event.number("version") - first)
    };
    events.iter().map(tell).collect()
}

fn seqs(events: &[Event], kind: &str) -> Vec<i64> {
    events.iter().filter(|event| event.kind() == kind).map(Event::seq).collect()
}

fn payloads(events: &[Event]) -> Vec<&Event> {
    events.iter().filter(|event| event.is_of_member() || event.kind() == "room").collect()
}

/// A listener of each kind, to one room or to all.
fn listeners(cluster: &Cluster, room: &'static str) -> Vec<Reader> {
    let red = r#"{"sub":"u2","app_metadata":{"teams":["red"]}}"#;
    let mut all = vec![
        Reader::web(cluster, "anonymous", "anon", "{}"),
        Reader::signed_in(cluster, "signed-in", "u1"),
        Reader::web(cluster, "team", "authenticated", red),
        Reader::signed_in(cluster, "named", "u3"),
        Reader::login(cluster, "owner", "olga"),
        Reader::login(cluster, "service", "gateway"),
        Reader::login(cluster, "inheriting", "rita"),
    ];
    all.iter_mut().for_each(|reader| reader.listen(&[room]));
    all
}

/// A listener and the events it receives.
type Hears = (&'static str, &'static [&'static str]);

/// (old audience, new audience, listeners with their events): leave with the old data at the first version,
/// update and enter with the new data at the next. Listeners that are not named receive nothing.
const CHANGES: [(&str, &str, &[Hears]); 9] = [
    ("{team:red,user:u3}", "{user:u3}", &[("team", &["leave hidden 1 v0"]), ("named", &["update 2 v1"])]),
    ("{user:u3}", "{user:u3,team:red}", &[("team", &["enter 2 v1"]), ("named", &["update 2 v1"])]),
    ("{user:u3}", "{team:red}", &[("named", &["leave hidden 1 v0"]), ("team", &["enter 2 v1"])]),
    ("{}", "{role:staff}", &[("inheriting", &["enter 2 v1"])]),
    ("{role:staff}", "{}", &[("inheriting", &["leave hidden 1 v0"])]),
    // Still visible, by another token.
    (
        "{users}",
        "{team:red,user:u3}",
        &[
            ("signed-in", &["leave hidden 1 v0"]),
            ("inheriting", &["leave hidden 1 v0"]),
            ("owner", &["leave hidden 1 v0", "update 2 v1"]),
            ("team", &["leave hidden 1 v0", "update 2 v1"]),
            ("named", &["leave hidden 1 v0", "update 2 v1"]),
        ],
    ),
    (
        "{any}",
        "{users}",
        &[
            ("anonymous", &["leave hidden 1 v0"]),
            ("owner", &["leave hidden 1 v0", "update 2 v1"]),
            ("signed-in", &["leave hidden 1 v0", "update 2 v1"]),
            ("team", &["leave hidden 1 v0", "update 2 v1"]),
            ("named", &["leave hidden 1 v0", "update 2 v1"]),
            ("inheriting", &["leave hidden 1 v0", "update 2 v1"]),
        ],
    ),
    (
        "{user:u3}",
        "{any}",
        &[
            ("anonymous", &["enter 2 v1"]),
            ("owner", &["update 2 v1", "enter 2 v1"]),
            ("signed-in", &["enter 2 v1"]),
            ("team", &["enter 2 v1"]),
            ("named", &["enter 2 v1"]),
            ("inheriting", &["enter 2 v1"]),
        ],
    ),
    (
        "{users,role:anon}",
        "{any}",
        &[
            ("anonymous", &["enter 2 v1"]),
            ("owner", &["update 2 v1", "enter 2 v1"]),
            ("signed-in", &["enter 2 v1"]),
            ("team", &["enter 2 v1"]),
            ("named", &["enter 2 v1"]),
            ("inheriting", &["enter 2 v1"]),
        ],
    ),
];

/// A listener who sees the member before and after receives an `update`; if the channel that is left is wider
/// than the token it saw the member by, an `enter` at the same version says the same (the client rule).
#[test]
fn audiences_that_change() {
    let cluster = people::start();
    let mut service = cluster.service();
    let mut olga = cluster.user("olga");
    let mut everybody: Vec<(&str, Vec<Reader>)> =
        vec![("room", listeners(&cluster, "lobby")), ("all rooms", listeners(&cluster, "null"))];
    let mut wrong = Vec::new();
    for (old, new, heard) in CHANGES {
        for by in ["upsert", "table", "service"] {
            olga.run(&format!("select presence.upsert('lobby', '{{\"n\": 1}}', audience => '{old}')"));
            everybody
                .iter_mut()
                .for_each(|(_, all)| all.iter_mut().for_each(|reader| drop(reader.heard(&mut service))));
            match by {
                "upsert" => olga.run(&format!("select presence.upsert('lobby', '{{\"n\": 2}}', audience => '{new}')")),
                "table" => olga.run(&format!("update presence.member set state = '{{\"n\": 2}}', audience = '{new}'")),
                _ => service.run(&format!(
                    "select presence.upsert('lobby', '{{\"n\": 2}}', member_id => 'olga', audience => '{new}')"
                )),
            }
            let version = olga.number("select version from presence.online where user_id = 'olga'");
            for (scope, all) in &mut everybody {
                for reader in all.iter_mut() {
                    let events = reader.heard(&mut service);
                    let of_them = heard.iter().find(|(who, _)| *who == reader.name).map(|(_, story)| *story);
                    let expected: &[&str] = match reader.name {
                        // The owner shares the others' channels (any, users), and so receives their events,
                        // too.
                        "owner" | "service" if of_them.is_none() => &["update 2 v1"],
                        _ => of_them.unwrap_or_default(),
                    };
                    let story = story(&events, version - 1);
                    if story != expected {
                        wrong.push(format!(
                            "{old} to {new} by {by}: {} of {scope}: {story:?}, not {expected:?}",
                            reader.name
                        ));
                    }
                    let (leaves, others) =
                        (seqs(&events, "leave"), [seqs(&events, "update"), seqs(&events, "enter")].concat());
                    if !leaves.iter().all(|leave| others.iter().all(|other| leave < other)) {
                        wrong.push(format!(
                            "{old} to {new} by {by}: {} of {scope}: the leave comes late",
                            reader.name
                        ));
                    }
                    if reader.name == "service" {
                        let told: Vec<_> = events.iter().filter(|event| event.is_of_member()).collect();
                        let tokens = |value: &serde_json::Value| {
                            let list = value.as_array().expect("an array");
                            let mut list: Vec<String> =
                                list.iter().map(|token| token.as_str().unwrap_or_default().into()).collect();
                            list.sort();
                            list
                        };
                        let given = |text: &str| {
                            let mut list: Vec<String> = text
                                .trim_matches(['{', '}'])
                                .split(',')
                                .filter(|token| !token.is_empty())
                                .map(Into::into)
                                .collect();
                            list.sort();
                            list
                        };
                        for event in told {
                            if tokens(&event["audience"]) != given(new)
                                || tokens(&event["old_audience"]) != given(old)
                            {
                                wrong.push(format!(
                                    "{old} to {new} by {by}: the service is told {}",
                                    event.payload
                                ));
                            }
                        }
                    }
                }
            }
            // The log shows each of them the same.
            for reader in &mut everybody[0].1 {
                let expected: Vec<String> = match reader.name {
                    "owner" | "service" => vec!["update 2 v1".into()],
                    name => {
                        let story =
                            heard.iter().find(|(who, _)| *who == name).map_or(&[][..], |(_, story)| *story);
                        story.iter().map(|line| (*line).to_owned()).collect()
                    }
                };
                let story: Vec<String> = reader
                    .act(&format!(
                        "select concat_ws(' ', event, reason, state ->> 'n', 'v' || version - {}) from presence.changes(0)
                         where event not in ('position', 'resync') and version >= {} order by seq",
                        version - 1,
                        version - 1
                    ))
                    .into_iter()
                    .map(|row| row[0].clone())
                    .collect();
                if story != expected {
                    wrong.push(format!(
                        "{old} to {new} by {by}: the log tells {} {story:?}, not {expected:?}",
                        reader.name
                    ));
                }
            }
            olga.run("select presence.delete('lobby')");
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Changes faster than the worker publishes: those who saw the first state receive the leave, with the data
/// they saw.
#[test]
fn audiences_that_change_faster_than_they_are_published() {
    let cluster = people::start();
    let mut service = cluster.service();
    let mut olga = cluster.user("olga");
    let mut readers = listeners(&cluster, "lobby");
    olga.run("select presence.upsert('lobby', '{\"n\": 1}', audience => '{team:red}')");
    readers.iter_mut().for_each(|reader| drop(reader.heard(&mut service)));
    {
        let _frozen = cluster.freeze_worker();
        olga.run("select presence.upsert('lobby', '{\"n\": 2}', audience => '{any}')");
        olga.run("select presence.upsert('lobby', '{\"n\": 3}', audience => '{}')");
        olga.run("select presence.upsert('lobby', '{\"n\": 4}', audience => '{user:u3}')");
    }
    for reader in &mut readers {
        let events = reader.heard(&mut service);
        let mut held = (reader.name == "team").then_some(1);
        for event in payloads(&events) {
            match event.kind() {
                "leave" => held = None,
                _ => held = event["state"]["n"].as_i64(),
            }
        }
        let expected = ["named", "owner", "service"].contains(&reader.name).then_some(4);
        assert_eq!(held, expected, "{}: {events:#?}", reader.name);
        let secret = events.iter().filter(|event| event["state"]["n"] == 3).count();
        assert!(secret == 0 || expected.is_some(), "{} heard what was never for others", reader.name);
        if reader.name == "team" {
            let last = events.iter().rev().find(|event| event.kind() == "leave").expect("a leave");
            assert!(last["state"]["n"] == 1 || last["state"]["n"] == 2, "{}", last.payload);
        }
    }
}

/// A user who leaves a room receives nothing more from it; the others are told to listen again and miss
/// nothing.
#[test]
fn leavers_hear_no_more() {
    let cluster = people::start();
    let mut service = cluster.service();
    let (mut leaver, mut stayer, mut olga) =
        (cluster.user("dan"), cluster.user("rita"), cluster.user("olga"));
    for session in [&mut leaver, &mut stayer, &mut olga] {
        session.run("select presence.upsert('lobby')");
        session.run("select presence.listen('lobby'), presence.listen()");
    }
    service.flush();
    for session in [&mut leaver, &mut stayer] {
        session.all_heard();
    }
    leaver.run("select presence.delete('lobby')");
    leaver.hear_all();
    // The first rotation happens at once.
    stayer.hear_until("relisten", |event| event.kind() == "relisten");
    stayer.run("select presence.listen('lobby'), presence.listen()");
    for n in 1..=20 {
        olga.run(&format!("select presence.update('lobby', '{{\"n\": {n}}}')"));
    }
    let heard = leaver.hear_all();
    assert!(payloads(&heard).is_empty(), "{heard:#?}");
    let heard = stayer.hear_all();
    assert!(heard.iter().any(|event| event["state"]["n"] == 20), "{heard:#?}");
    // Another leave directly afterwards: until the channel has its next name, it carries only doorbells, for
    // everybody.
    let mut second = cluster.user("otto");
    second.run("select presence.upsert('lobby')");
    second.run("select presence.listen('lobby')");
    second.hear_all();
    second.run("select presence.delete('lobby')");
    second.hear_all();
    let before = stayer.hear_all();
    olga.run("select presence.update('lobby', '{\"n\": 21}')");
    for session in [&mut second, &mut leaver] {
        let heard = session.hear_all();
        assert!(payloads(&heard).is_empty(), "{heard:#?}");
    }
    let heard = stayer.hear_all();
    let is_called = before.iter().chain(&heard).any(|event| matches!(event.kind(), "changes" | "relisten"));
    assert!(payloads(&heard).is_empty() && is_called, "{heard:#?}");
    // The log has the changes that the doorbell announced, and after the rotation everything is as before.
    let state = "select max((state ->> 'n')::int) from presence.changes(0, 'lobby')";
    assert_eq!(stayer.number(state), 21);
    let mut n = 21;
    until("all is as before", || {
        n += 1;
        olga.run(&format!("select presence.update('lobby', '{{\"n\": {n}}}')"));
        let heard = stayer.hear_all();
        if heard.iter().any(|event| event.kind() == "relisten") {
            stayer.run("select presence.listen('lobby')");
        }
        heard.iter().any(|event| event["state"]["n"] == n)
    });
    let heard = second.hear_all();
    assert!(payloads(&heard).is_empty(), "{heard:#?}");
}

/// Expired, removed, disconnected: all of these are leaves.
#[test]
fn leavers_of_all_kinds_hear_no_more() {
    let cluster = people::start();
    let mut service = cluster.service();
    let mut olga = cluster.user("olga");
    for how in ["expired", "removed", "disconnected", "given away"] {
        let room = how.replace(' ', "_");
        olga.run(&format!("select presence.upsert('{room}')"));
        let mut listener = cluster.user("dan");
        let mut other = cluster.user("dan");
        match how {
            "expired" => other.run(&format!("select presence.upsert('{room}', ttl => '1 s')")),
            "disconnected" => other.run(&format!("select presence.upsert('{room}', session => true)")),
            "given away" => service
                .run(&format!("select presence.upsert('{room}', member_id => 'gift', user_id => 'dan')")),
            _ => other.run(&format!("select presence.upsert('{room}')")),
        }
        listener.run(&format!("select presence.listen('{room}'), presence.listen()"));
        listener.hear_all();
        match how {
            "removed" => assert_eq!(service.number(&format!("select presence.delete('{room}', 'dan')")), 1),
            "given away" => service
                .run(&format!("select presence.upsert('{room}', member_id => 'gift', user_id => 'rita')")),
            "disconnected" => drop(other),
            _ => {}
        }
        until(&format!("dan is not there: {how}"), || {
            service.number(&format!(
                "select count(*) from presence.member where room = '{room}' and user_id = 'dan'"
            )) == 0
        });
        let mut heard = listener.hear_all();
        if how != "given away" {
            assert!(
                heard.iter().any(|event| event.kind() == "leave" && event.text("reason") == how),
                "{heard:#?}"
            );
        }
        heard.clear();
        olga.run(&format!("select presence.update('{room}', '{{\"n\": 1}}')"));
        let heard = listener.hear_all();
        assert!(payloads(&heard).is_empty(), "{how}: {heard:#?}");
        assert_eq!(listener.number(&format!("select count(*) from presence.list('{room}')")), 0);
    }
}

/// A user whose member a service has given to somebody else is told that it is gone.
#[test]
fn a_member_that_is_given_away() {
    let cluster = people::start();
    let mut service = cluster.service();
    service.run("select presence.upsert('lobby', '{\"n\": 1}', member_id => 'gift', user_id => 'dan', audience => '{}')");
    let (mut dan, mut rita) = (cluster.user("dan"), cluster.user("rita"));
    dan.run("select presence.listen('lobby')");
    rita.run("select presence.listen('lobby')");
    dan.hear_all();
    rita.all_heard();
    service.run("select presence.upsert('lobby', '{\"n\": 2}', member_id => 'gift', user_id => 'rita')");
    assert_eq!(dan.number("select count(*) from presence.list('lobby')"), 0);
    assert_eq!(rita.number("select count(*) from presence.list('lobby')"), 1);
    let heard = rita.hear_all();
    assert!(heard.iter().any(|event| event["state"]["n"] == 2), "{heard:#?}");
    let heard = dan.hear_all();
    assert!(!heard.iter().any(|event| event["state"]["n"] == 2), "{heard:#?}");
    assert!(heard.iter().any(|event| event.kind() == "leave"), "dan is not told: {heard:#?}");
}

#[test]
fn channels_rotate_on_request() {
    let cluster = people::start();
    let mut service = cluster.service();
    let mut dan = cluster.user("dan");
    let mut olga = cluster.user("olga");
    olga.run(
        "select presence.upsert('lobby', audience => '{any}'), presence.upsert('hall', audience => '{any}')",
    );
    let say = |olga: &mut Session, room: &str, n: i32| {
        olga.run(&format!("select presence.update('{room}', '{{\"n\": {n}}}')"));
    };
    for (rotate, lobby_rotates, hall_rotates) in [
        ("select presence.rotate_channels('lobby')", true, false),
        ("select presence.rotate_channels()", true, true),
    ] {
        let mut deaf = cluster.user("otto");
        for session in [&mut dan, &mut deaf] {
            session
                .run("select presence.unlisten(); select presence.listen('lobby'), presence.listen('hall')");
            session.hear_all();
        }
        let before = dan.rows("select presence.channels('lobby')");
        service.run(rotate);
        service.flush();
        until("the names are new", || dan.rows("select presence.channels('lobby')") != before);
        for session in [&mut dan, &mut deaf] {
            session.hear_until("relisten", |event| event.kind() == "relisten");
        }
        dan.run("select presence.listen('lobby'), presence.listen('hall')");
        say(&mut olga, "lobby", 1);
        say(&mut olga, "hall", 2);
        let heard = dan.hear_all();
        for n in [1, 2] {
            assert!(heard.iter().any(|event| event["state"]["n"] == n), "{rotate}: {heard:#?}");
        }
        // A session that does not listen again receives only events of rooms that were not rotated.
        let heard = deaf.hear_all();
        assert_eq!(
            heard.iter().any(|event| event["state"]["n"] == 1),
            !lobby_rotates,
            "{rotate}: {heard:#?}"
        );
        assert_eq!(heard.iter().any(|event| event["state"]["n"] == 2), !hall_rotates, "{rotate}: {heard:#?}");
        olga.run("select presence.update('lobby', '{\"n\": 0}'), presence.update('hall', '{\"n\": 0}')");
    }
    // A rolled-back request rotates nothing.
    let before = dan.rows("select presence.channels('lobby')");
    service.run("begin; select presence.rotate_channels(); rollback");
    service.flush();
    assert_eq!(dan.rows("select presence.channels('lobby')"), before);
    // Another worker keeps the names, and so does a clean restart.
    let worker = service.number("select presence.worker_pid()");
    crate::common::signal("TERM", worker);
    until("another worker", || {
        ![worker, 0].contains(&service.number("select coalesce(presence.worker_pid(), 0)"))
    });
    assert_eq!(dan.rows("select presence.channels('lobby')"), before);
    say(&mut olga, "lobby", 3);
    dan.hear_until("the update", |event| event["state"]["n"] == 3);
    cluster.restart();
    cluster.until_worker("app");
    let after = cluster.user("dan").rows("select presence.channels('lobby')");
    assert_eq!(after, before);
}

/// The relisten is repeated for a LISTEN that was committing at that moment.
#[test]
fn relisten_comes_again() {
    let cluster = people::start();
    let mut dan = cluster.user("dan");
    dan.run("select presence.listen('lobby')");
    dan.hear_all();
    let began = Instant::now();
    cluster.service().run("select presence.rotate_channels('lobby')");
    let mut at = Vec::new();
    while at.len() < 3 {
        dan.hear_until("relisten", |event| event.kind() == "relisten");
        at.push(began.elapsed());
    }
    assert!(at[0] < millis(1_000) && at[1] >= millis(900) && at[1] < millis(4_000), "{at:?}");
    assert!(at[2] >= millis(4_900) && at[2] < millis(9_000), "{at:?}");
}

fn is_doorbell(event: &Event) -> bool {
    let fields: Vec<&String> = event.fields.as_object().expect("an object").keys().collect();
    event.kind() == "changes" && fields.len() == 2 && event.seq() > 0
}

fn doorbells_only(events: &[Event]) -> bool {
    events.iter().any(is_doorbell) && events.iter().all(is_doorbell)
}

#[test]
fn doorbells_by_setting() {
    let cluster = people::start();
    let mut service = cluster.service();
    let (mut dan, mut olga) = (cluster.user("dan"), cluster.user("olga"));
    for session in [&mut dan, &mut service] {
        session.run("select presence.listen('lobby'), presence.listen()");
    }
    olga.run("select presence.upsert('lobby', '{\"n\": 1}', audience => '{users}')");
    assert_eq!(payloads(&dan.hear_all()).len(), 2);
    let seq = dan.number("select presence.seq()");
    cluster.sql("app", "alter database app set presence.notify_payload = 'doorbell'");
    let mut n = 1;
    until("the worker reads the setting", || {
        n += 1;
        olga.run(&format!("select presence.update('lobby', '{{\"n\": {n}}}')"));
        service.hear_all();
        doorbells_only(&dan.hear_all())
    });
    // Immediately for the next statement, and for everybody.
    olga.run("select presence.delete('lobby')");
    assert!(doorbells_only(&dan.hear_all()));
    assert!(doorbells_only(&service.hear_all()));
    let story = "select string_agg(event, ' ' order by seq) from presence.changes($s) where event not in ('position', 'resync', 'update')";
    assert_eq!(dan.value(&story.replace("$s", &seq.to_string())), "leave");
    cluster.sql("app", "alter database app reset presence.notify_payload");
    until("the worker reads the setting", || {
        olga.run("select presence.upsert('lobby', jsonb_build_object('n', random()), audience => '{users}')");
        !payloads(&dan.hear_all()).is_empty()
    });
}

/// With custom policies payloads carry no data, and the log shows nothing until it has policies of its own.
#[test]
fn doorbells_by_policy() {
    let cluster = people::start();
    let mut service = cluster.service();
    let (mut dan, mut olga) = (cluster.user("dan"), cluster.user("olga"));
    for session in [&mut dan, &mut olga, &mut service] {
        session.run("select presence.listen('lobby'), presence.listen()");
    }
    let count = "select count(*) from presence.changes(0) where event not in ('position', 'resync')";
    let history = "select count(*) from presence.history('lobby')";
    let last_seen = "select count(*) from presence.last_seen where user_id = 'olga'";
    for (made, dropped, sees) in [
        (
            "create policy of_dan on presence.member for select using (current_user = 'dan')",
            "drop policy of_dan on presence.member",
            true,
        ),
        (
            "create policy not_dan on presence.member as restrictive for select using (current_user <> 'dan')",
            "drop policy not_dan on presence.member",
            false,
        ),
        (
            "create policy for_all on presence.member using (current_user = 'dan')",
            "drop policy for_all on presence.member",
            true,
        ),
        (
            "alter policy member_read on presence.member to olga",
            "alter policy member_read on presence.member to public",
            false,
        ),
        (
            "alter policy member_read on presence.member rename to reading",
            "alter policy reading on presence.member rename to member_read",
            true,
        ),
    ] {
        olga.run("select presence.upsert('lobby', '{\"n\": 1}', audience => '{any}')");
        assert!(!payloads(&dan.hear_all()).is_empty(), "before {made}");
        assert!(dan.number(count) > 0 && dan.number(history) > 0);
        let seq = dan.number("select presence.seq()");
        service.hear_all();
        olga.hear_all();
        cluster.sql("app", made);
        olga.run("select presence.update('lobby', '{\"n\": 2}')");
        for session in [&mut dan, &mut olga, &mut service] {
            let heard = session.hear_all();
            assert!(doorbells_only(&heard), "{made}: {heard:#?}");
        }
        assert_eq!(dan.number(count), 0, "{made}");
        assert_eq!(dan.number(history), 0, "{made}");
        assert_eq!(dan.number("select count(*) from presence.event"), 0, "{made}");
        assert!(olga.number(count) == 0, "not even one's own: {made}");
        // A user who sees nothing still gets the new position; service roles see everything.
        assert_eq!(
            dan.value(&format!("select event || ' ' || (seq > {seq}) from presence.changes({seq})")),
            "position true"
        );
        assert_eq!(
            service.number(&format!("select count(*) from presence.changes({seq}) where event = 'update'")),
            1
        );
        assert_eq!(dan.number(last_seen) > 0, sees, "{made}");
        assert_eq!(dan.number("select count(*) from presence.list('lobby')") > 0, sees, "{made}");
        // A policy on the log opens it, according to that policy.
        cluster.sql("app", "create policy of_dan on presence.event for select using (current_user = 'dan')");
        assert!(dan.number(count) > 0);
        assert_eq!(olga.number(count), 0);
        cluster.sql("app", &format!("drop policy of_dan on presence.event; {dropped}"));
        olga.run("select presence.update('lobby', '{\"n\": 3}')");
        let heard = dan.hear_all();
        assert!(heard.iter().any(|event| event["state"]["n"] == 3), "after {made}: {heard:#?}");
        assert!(dan.number(count) > 0);
        olga.run("select presence.delete('lobby')");
        dan.hear_all();
    }
    // Policies that do not affect reading change nothing.
    cluster.sql("app", "create policy writing on presence.member as restrictive for update using (true)");
    olga.run("select presence.upsert('lobby', '{\"n\": 1}', audience => '{any}')");
    assert!(!payloads(&dan.hear_all()).is_empty());
}

const AUTHORIZER: &str = "
    create schema app; grant usage on schema app to public;
    create table app.rule (who text, room text, action text);
    create function app.authorize(room text, action text) returns boolean language sql stable security definer
        set search_path = pg_catalog, pg_temp
    as $$ select exists (select from app.rule r where r.who = session_user
                         and r.room = authorize.room and r.action = authorize.action) $$;
    alter database app set presence.authorizer = 'app.authorize';";

#[test]
fn the_authorizer_reads_joins_and_manages() {
    let cluster = people::start();
    cluster.sql("app", AUTHORIZER);
    cluster.sql(
        "app",
        "insert into app.rule values ('olga', 'lobby', 'join'), ('dan', 'lobby', 'read'),
        ('rita', 'lobby', 'manage'), ('rita', 'lobby', 'join'), ('rita', 'lobby', 'read')",
    );
    let mut service = cluster.service();
    let (mut olga, mut dan, mut rita) = (cluster.user("olga"), cluster.user("dan"), cluster.user("rita"));
    // join
    olga.run("select presence.upsert('lobby', '{\"n\": 1}', audience => '{any}', ttl => '1 hour')");
    for (is_dan, sql) in [
        (true, "select presence.upsert('lobby')"),
        (true, "insert into presence.member (room) values ('lobby')"),
        (false, "select presence.upsert('hall')"),
        (false, r#"select presence.upsert_many('[{"room": "lobby"}, {"room": "hall"}]')"#),
    ] {
        let session = if is_dan { &mut dan } else { &mut olga };
        let failure = session.fails(sql);
        assert_eq!(
            (&*failure.code, &*failure.message),
            ("42501", "not authorized to join this room"),
            "{sql}"
        );
    }
    // read: a user's own members always, others' with the right
    assert_eq!(olga.number("select count(*) from presence.list('lobby')"), 1);
    assert_eq!(dan.number("select count(*) from presence.list('lobby')"), 1);
    let mut otto = cluster.user("otto");
    for way in [
        "presence.list('lobby')",
        "presence.online",
        "presence.member",
        "presence.history('lobby')",
        "presence.event",
        "presence.users('lobby')",
        "presence.rooms()",
        "presence.last_seen",
        "presence.get('lobby', 'olga')",
        "jsonb_object_keys(presence.state('lobby'))",
        "presence.changes(0) where event not in ('position', 'resync')",
    ] {
        assert_eq!(otto.number(&format!("select count(*) from {way}")), 0, "{way}");
        assert_ne!(dan.number(&format!("select count(*) from {way}")), 0, "{way}");
    }
    for call in ["listen('lobby')", "channels('lobby')"] {
        assert_eq!(otto.fails(&format!("select presence.{call}")).code, "42501");
    }
    // listen: full payloads in the room, doorbells for listeners to all rooms, except for service roles
    dan.run("select presence.listen('lobby')");
    let mut all = cluster.user("dan");
    all.run("select presence.listen()");
    otto.run("select presence.listen()");
    service.run("select presence.listen()");
    service.flush();
    olga.run("select presence.update('lobby', '{\"n\": 2}')");
    assert_eq!(payloads(&dan.hear_all()).len(), 1);
    assert_eq!(payloads(&service.hear_all()).len(), 1);
    // The worker reads the database's settings once a second.
    let mut n = 2;
    until("the worker knows of the authorizer", || {
        all.hear_all();
        n += 1;
        olga.run(&format!("select presence.update('lobby', '{{\"n\": {n}}}')"));
        doorbells_only(&all.hear_all())
    });
    otto.hear_all();
    olga.run("select presence.update('lobby', '{\"n\": 0}')");
    assert!(doorbells_only(&otto.hear_all()));
    assert!(doorbells_only(&all.hear_all()));
    // manage
    assert_eq!(dan.fails("select presence.delete('lobby', 'olga')").code, "42501");
    assert_eq!(rita.value("select room from presence.set_room('lobby', '{\"topic\": 1}')"), "lobby");
    assert_eq!(dan.fails("select presence.set_room('lobby', '{\"topic\": 2}')").code, "42501");
    dan.hear_all();
    assert_eq!(rita.number("select presence.delete('lobby', 'olga')"), 1);
    let heard = dan.hear_all();
    assert!(
        heard.iter().any(|event| event.kind() == "leave" && event.text("reason") == "removed"),
        "{heard:#?}"
    );
    // Also a member that the manager does not see; and directly in the table, one that she sees.
    olga.run("select presence.upsert('lobby', audience => '{}')");
    assert_eq!(rita.number("select count(*) from presence.list('lobby')"), 0);
    assert_eq!(rita.number("select presence.delete('lobby', 'olga')"), 1);
    olga.run("select presence.upsert('lobby', audience => '{any}')");
    rita.run("delete from presence.member where room = 'lobby' and member_id = 'olga'");
    rita.flush();
    let last = "select reason from presence.history('lobby') where event = 'leave' limit 1";
    assert_eq!(rita.value(last), "removed");
    // Deleting her own member is a leave.
    rita.run("select presence.upsert('lobby', audience => '{any}')");
    rita.run("select presence.delete('lobby')");
    rita.flush();
    assert_eq!(rita.value(last), "left");
    // A heartbeat needs no authorization; a change does.
    olga.run("select presence.upsert('lobby')");
    cluster.sql("app", "delete from app.rule where who = 'olga'");
    assert!(olga.is("select presence.heartbeat('lobby')"));
    assert_eq!(olga.fails("select presence.upsert('lobby')").code, "42501");
    assert_eq!(olga.fails("select presence.update('lobby', '{}')").code, "42501");
    assert_eq!(olga.number("select count(*) from presence.list('lobby')"), 1);
    assert_eq!(olga.number("select presence.delete('lobby')"), 1);
}

/// A manager can also remove a member that uses the manager's own name.
#[test]
fn a_manager_removes_a_squatter() {
    let cluster = people::start();
    cluster.sql("app", AUTHORIZER);
    cluster.sql(
        "app",
        "alter database app set presence.member_ids = 'any';
        insert into app.rule values ('olga', 'lobby', 'join'), ('rita', 'lobby', 'manage')",
    );
    cluster.user("olga").run("select presence.upsert('lobby', member_id => 'rita', audience => '{}')");
    assert_eq!(cluster.user("rita").number("select presence.delete('lobby', 'rita')"), 1);
}

#[test]
fn an_authorizer_that_gives_no_answer_says_no() {
    let cluster = people::start();
    cluster.sql("app", "create schema app; grant usage on schema app to public;
        create function app.fails(room text, action text) returns boolean language plpgsql as $$ begin raise 'broken: %', room; end $$;
        create function app.nothing(room text, action text) returns boolean language sql return null::boolean;
        create function app.secret(room text, action text) returns boolean language sql return true;
        revoke execute on function app.secret from public;
        create function app.number(room text, action text) returns integer[] language sql return array[1];");
    cluster.service().run("select presence.upsert('lobby', user_id => 'olga', audience => '{any}'), presence.upsert('lobby', user_id => 'dan', audience => '{any}')");
    let no_answer = "the authorizer of presence gave no answer";
    for (authorizer, code, message) in [
        ("app.fails", "P0001", "broken: "),
        ("app.nothing", "42501", no_answer),
        ("app.secret", "42501", "permission denied for function secret"),
        ("app.missing", "42501", no_answer),
        ("app.number", "42846", "cannot cast type integer[] to boolean"),
        ("missing.authorize", "42501", no_answer),
        ("not a; name", "42501", no_answer),
        ("\"", "42501", no_answer),
        ("app.fails(text", "42501", no_answer),
    ] {
        cluster.sql("app", &format!("alter database app set presence.authorizer = '{authorizer}'"));
        let mut dan = cluster.user("dan");
        let list = "select string_agg(user_id, ' ') from presence.list('lobby')";
        if authorizer == "app.nothing" {
            // NULL means no: readers see their own members, and nothing fails.
            assert_eq!(dan.value(list), "dan");
        } else {
            // Any error of the authorizer ends the statement, even one that only reads.
            let failure = dan.fails(list);
            assert_eq!(failure.code, code, "{authorizer}: {failure:?}");
        }
        for sql in [
            "select presence.upsert('lobby')",
            "select presence.upsert('hall')",
            "select presence.update('lobby', '{}')",
            "insert into presence.member (room) values ('hall')",
            "update presence.member set status = 'x' where user_id = 'dan'",
            "select presence.listen('lobby')",
            "select presence.channels('lobby')",
            "select presence.set_room('lobby', '{}')",
            "select presence.rotate_channels('lobby')",
        ] {
            let failure = dan.fails(sql);
            assert_eq!(failure.code, code, "{authorizer}: {sql}: {failure:?}");
            assert!(failure.message.starts_with(message), "{authorizer}: {sql}: {failure:?}");
            assert!(
                message != no_answer
                    || (!failure.detail.is_empty() && failure.hint.contains("presence.authorizer")),
                "{authorizer}: {failure:?}"
            );
        }
        assert!(dan.is("select presence.heartbeat('lobby')"), "{authorizer}");
        assert_eq!(dan.fails("select presence.delete('lobby', 'olga')").code, code, "{authorizer}");
        assert_eq!(
            cluster.service().number("select count(*) from presence.list('lobby')"),
            2,
            "{authorizer}"
        );
    }
    cluster.assert_sound();
}

#[test]
fn shared_sessions_neither_listen_nor_hold_members() {
    let cluster = people::start();
    cluster.sql("app", "alter role dan set presence.session_features = off");
    let mut web = Reader::signed_in(&cluster, "web", "u1");
    let mut dan = Reader::login(&cluster, "dan", "dan");
    for reader in [&mut web, &mut dan] {
        for sql in [
            "select presence.listen('lobby')",
            "select presence.listen()",
            "select presence.unlisten()",
            "select presence.upsert('lobby', session => true)",
            r#"select presence.upsert_many('[{"room": "lobby", "session": true}]')"#,
        ] {
            let failure = reader.ask(sql).expect_err(sql);
            assert_eq!(failure.code, "0A000", "{sql}");
            assert!(!failure.hint.is_empty() && !failure.detail.is_empty(), "{failure:?}");
        }
        assert_eq!(reader.act("select presence.channels('lobby')").len(), 7, "{}", reader.name);
        assert_eq!(reader.act("select room from presence.upsert('lobby', session => false)")[0][0], "lobby");
    }
}

/// A narrower audience hides what a user could see before, including the last-seen time.
#[test]
fn last_seen_follows_the_audience() {
    let cluster = people::start();
    let (mut dan, mut olga) = (cluster.user("dan"), cluster.user("olga"));
    let seen = "select count(*) from presence.last_seen where user_id = 'olga'";
    olga.run("select presence.upsert('lobby', audience => '{any}')");
    let mut service = cluster.service();
    until("last_seen is written", || {
        service.number("select count(*) from _presence._last_seen where user_id = 'olga'") == 1
    });
    assert_eq!(dan.number(seen), 1);
    olga.run("select presence.update('lobby', audience => '{}')");
    olga.flush();
    let hidden = crate::common::attempt(|| dan.number(seen) == 0);
    assert!(hidden, "dan still reads when olga was last seen");
}
