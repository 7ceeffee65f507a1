//! Pushed counts: listeners to a room with the right to its full counts are notified when the counts change.

use crate::common::{Cluster, Event, Session, millis};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Counts are published at most once a second.
const PAUSE: Duration = Duration::from_secs(1);

fn numbers(event: &Event) -> (i64, i64) {
    (event.number("members"), event.number("users"))
}

/// The counts that a listener received.
fn told(events: &[Event]) -> Vec<(i64, i64)> {
    events.iter().filter(|event| event.kind() == "occupancy").map(numbers).collect()
}

fn hear_numbers(session: &mut Session, members: i64, users: i64) -> Event {
    let wanted = |event: &Event| event.kind() == "occupancy" && numbers(event) == (members, users);
    session.hear_until(&format!("{members} members, {users} users"), wanted).pop().expect("the last one")
}

/// Waits until all pending counts have been published.
fn rest(session: &mut Session) -> Vec<Event> {
    session.flush();
    std::thread::sleep(PAUSE + millis(200));
    session.heard()
}

fn stage(cluster: &Cluster, count_audience: &str) -> Session {
    let mut service = cluster.service();
    service.run(&format!(
        "select presence.set_room('stage', audience => '{{}}', count_audience => '{count_audience}')"
    ));
    service
}

fn enter(service: &mut Session, user: &str, connection: &str) {
    service.run(&format!(
        "select presence.upsert('stage', user_id => '{user}', connection_id => '{connection}')"
    ));
}

#[test]
fn who_may_have_the_numbers_and_listens_is_told() {
    let cluster = Cluster::start();
    let mut service = stage(&cluster, "{user:bob,role:carol}");
    let (mut alice, mut bob, mut carol) = (cluster.user("alice"), cluster.user("bob"), cluster.user("carol"));
    let mut other = cluster.service();
    for listener in [&mut alice, &mut bob, &mut carol, &mut other] {
        listener.listen("stage");
    }
    let mut everywhere = cluster.user("bob");
    everywhere.run("select presence.listen(), presence.listen('elsewhere')");
    enter(&mut service, "u1", "");
    for listener in [&mut bob, &mut carol, &mut other] {
        let event = hear_numbers(listener, 1, 1);
        assert_eq!(event.payload, r#"{"event":"occupancy","room":"stage","members":1,"users":1}"#);
        assert_eq!(event.sender, service.number("select presence.worker_pid()"));
    }
    // A user counts once, however many tabs are open.
    enter(&mut service, "u1", "2");
    hear_numbers(&mut bob, 2, 1);
    service.run("select presence.delete('stage', 'u1', null)");
    hear_numbers(&mut bob, 0, 0);
    for listener in [&mut alice, &mut everywhere] {
        assert_eq!(told(&rest(listener)), []);
    }
    cluster.assert_sound();
}

#[test]
fn each_kind_of_token_has_a_way() {
    let cluster = Cluster::start();
    for (token, hears) in [
        ("any", true),
        ("users", true),
        ("user:bob", true),
        ("role:bob", true),
        ("room", true),
        ("user:alice", false),
    ] {
        let (mut service, mut bob) = (cluster.service(), cluster.user("bob"));
        service.run(&format!(
            "select presence.set_room('{token}', audience => '{{}}', count_audience => '{{{token}}}')"
        ));
        bob.run(&format!("select presence.upsert('{token}')"));
        bob.listen(token);
        service.run(&format!("select presence.upsert('{token}', user_id => 'u1')"));
        if hears {
            hear_numbers(&mut bob, 2, 2);
        } else {
            assert_eq!(told(&rest(&mut bob)), [], "{token}");
        }
    }
    // Members of another room have no channel here: they get a doorbell instead.
    let (mut service, mut bob) = (stage(&cluster, "{room:backstage}"), cluster.user("bob"));
    bob.run("select presence.upsert('backstage')");
    bob.listen("stage");
    bob.hear();
    enter(&mut service, "u1", "");
    bob.hear_until("a doorbell", |event| event.kind() == "changes");
    assert_eq!(told(&rest(&mut bob)), []);
}

#[test]
fn at_most_once_a_second_and_the_last_change_always() {
    let cluster = Cluster::start();
    let (mut service, mut anybody) = (stage(&cluster, "{any}"), cluster.user("bob"));
    anybody.listen("stage");
    enter(&mut service, "u0", "");
    hear_numbers(&mut anybody, 1, 1);
    let began = Instant::now();
    let mut count = 1;
    while began.elapsed() < 3 * PAUSE {
        enter(&mut service, &format!("u{count}"), "");
        count += 1;
        std::thread::sleep(millis(20));
    }
    let heard = anybody
        .hear_until("the last", |event| event.kind() == "occupancy" && event.number("members") == count);
    assert!((3..=4).contains(&told(&heard).len()), "{heard:#?}");
    // Neither changes that affect no count nor changes that cancel out are published.
    service.run(
        "select presence.upsert('stage', '{\"x\": 1}', user_id => 'u1', audience => '{any}');
         select presence.upsert('stage', '{\"x\": 2}', user_id => 'u1', audience => '{}');
         select presence.heartbeat('stage', 'u1');
         select presence.set_room('stage', '{\"topic\": 1}');
         begin; select presence.upsert('stage', user_id => 'x'); rollback;
         begin; select presence.upsert('stage', user_id => 'x'), presence.delete('stage', 'x'); commit;",
    );
    assert_eq!(told(&rest(&mut anybody)), []);
    // Unless somebody has queried the count in between.
    enter(&mut service, "a", "");
    hear_numbers(&mut anybody, count + 1, count + 1);
    enter(&mut service, "b", "");
    assert_eq!(anybody.number("select members from presence.occupancy('stage')"), count + 2);
    service.run("select presence.delete('stage', 'b')");
    hear_numbers(&mut anybody, count + 1, count + 1);
}

#[test]
fn who_may_have_the_numbers_is_asked_each_time() {
    let cluster = Cluster::start();
    let (mut service, mut bob, mut carol) =
        (stage(&cluster, "{users}"), cluster.user("bob"), cluster.user("carol"));
    bob.listen("stage");
    carol.listen("stage");
    enter(&mut service, "u1", "");
    hear_numbers(&mut bob, 1, 1);
    hear_numbers(&mut carol, 1, 1);
    // A pending change is published to those who have the right at that time.
    enter(&mut service, "u2", "");
    service.run("select presence.set_room('stage', count_audience => '{user:carol}')");
    hear_numbers(&mut carol, 2, 2);
    assert_eq!(told(&rest(&mut bob)), []);
    service.run("update presence.room set count_audience = null where room = 'stage'");
    enter(&mut service, "u3", "");
    assert_eq!(told(&rest(&mut carol)), []);
    service.run("select presence.set_room('stage', count_audience => '{users}')");
    enter(&mut service, "u4", "");
    hear_numbers(&mut bob, 4, 4);
}

#[test]
fn who_left_hears_no_numbers_of_those_present() {
    let cluster = Cluster::start();
    let mut service = stage(&cluster, "{room}");
    let (mut alice, mut bob) = (cluster.user("alice"), cluster.user("bob"));
    for member in [&mut alice, &mut bob] {
        member.run("select presence.upsert('stage')");
        member.listen("stage");
    }
    hear_numbers(&mut alice, 2, 2);
    rest(&mut bob);
    bob.run("select presence.delete('stage')");
    // Those who stay listen again, as they are told to, and then receive the counts.
    alice.hear_until("relisten", |event| event.kind() == "relisten");
    alice.listen("stage");
    hear_numbers(&mut alice, 1, 1);
    enter(&mut service, "u1", "");
    hear_numbers(&mut alice, 2, 2);
    assert_eq!(told(&rest(&mut bob)), []);
}

#[test]
fn new_names_carry_what_the_old_ones_must_not() {
    let cluster = Cluster::start();
    let (mut service, mut bob, mut deaf) =
        (stage(&cluster, "{any}"), cluster.user("bob"), cluster.user("carol"));
    bob.listen("stage");
    deaf.listen("stage");
    service.run("begin; select presence.rotate_channels('stage'); select presence.upsert('stage', user_id => 'u1'); commit");
    bob.hear_until("relisten", |event| event.kind() == "relisten");
    bob.listen("stage");
    hear_numbers(&mut bob, 1, 1);
    assert_eq!(told(&rest(&mut deaf)), []);
}

#[test]
fn in_doorbell_mode_there_are_none() {
    let cluster = Cluster::start();
    let (mut service, mut bob) = (stage(&cluster, "{any}"), cluster.user("bob"));
    bob.listen("stage");
    service.run("create policy others on presence.member as restrictive for select using (true)");
    enter(&mut service, "u1", "");
    assert_eq!(told(&rest(&mut bob)), []);
    service.run("drop policy others on presence.member");
    enter(&mut service, "u2", "");
    hear_numbers(&mut bob, 2, 2);
    service.run("alter database app set presence.notify_payload = 'doorbell'");
    let mut newer = cluster.service();
    enter(&mut newer, "u3", "");
    assert_eq!(told(&rest(&mut bob)), []);
}

#[test]
fn a_room_that_nobody_may_count_costs_no_notification() {
    let cluster = Cluster::start();
    let mut service = stage(&cluster, "{user:alice}");
    let sent = "select notifications_sent from presence.health";
    let before = service.number(sent);
    let mut bob = cluster.user("bob");
    // First nobody listens; then only a listener without the right to the counts, or to a room without
    // count_audience.
    enter(&mut service, "u1", "");
    bob.run("select presence.listen('stage'), presence.listen('plain')");
    enter(&mut service, "u2", "");
    service.run("select presence.upsert('plain', user_id => 'u2', audience => '{}')");
    rest(&mut service);
    assert_eq!(service.number(sent), before);
}

/// The counts that a listener derives from the events that it has received.
#[derive(Default)]
struct Counted(HashMap<(String, String), String>);

impl Counted {
    fn apply(&mut self, event: &Event) {
        let key = (event.text("member_id").to_owned(), event.text("connection_id").to_owned());
        match event.kind() {
            "leave" => drop(self.0.remove(&key)),
            "enter" | "update" => drop(self.0.insert(key, event.text("user_id").to_owned())),
            _ => {}
        }
    }

    fn numbers(&self) -> (i64, i64) {
        let users: std::collections::HashSet<&String> = self.0.values().collect();
        (self.0.len() as i64, users.len() as i64)
    }
}

/// Each published count matches the events published before it, even during a flood, after lost events and
/// with a new worker.
#[test]
fn numbers_are_those_of_what_was_published() {
    let cluster = Cluster::with(&["presence.event_buffer=8MB", "presence.max_per_user=0"]);
    let mut service = stage(&cluster, "{any}");
    let mut listener = cluster.service();
    listener.listen("stage");
    let mut counted = Counted::default();
    let mut check = |listener: &mut Session, (members, users): (i64, i64)| {
        let heard = listener.hear_until(&format!("{members} members, {users} users"), |event| {
            event.kind() == "occupancy" && numbers(event) == (members, users)
        });
        for event in &heard {
            counted.apply(event);
            if event.kind() == "occupancy" {
                assert_eq!(numbers(event), counted.numbers());
            }
        }
        heard.iter().filter(|event| event.kind() == "occupancy").count()
    };
    // More than one batch, so that the room is counted in the middle.
    let frozen = cluster.freeze_worker();
    service.run(
        "select count(presence.upsert('stage', user_id => 'u' || n % 4000, member_id => 'm' || n)) from generate_series(1, 9000) n",
    );
    service.run("select count(presence.delete('stage', 'm' || n)) from generate_series(1, 3000) n");
    service.run("update presence.member set user_id = 'one' where room = 'stage' and member_id < 'm5'");
    drop(frozen);
    let right = "select count(*), count(distinct user_id) from presence.member where room = 'stage'";
    let now = move |service: &mut Session| {
        let row = &service.rows(right)[0];
        let number = |at: usize| row[at].parse().expect("a number");
        (number(0), number(1))
    };
    let all = now(&mut service);
    let times = check(&mut listener, all);
    assert!(times > 1, "counted when there was no more to come");
    // Leases that end.
    service.run("select count(presence.upsert('stage', user_id => 'guest', connection_id => n::text, ttl => '1 s')) from generate_series(1, 5) n");
    check(&mut listener, (all.0 + 5, all.1 + 1));
    check(&mut listener, all);
    // Another worker counts again.
    let worker = service.number("select presence.worker_pid()");
    service.run(&format!("select pg_terminate_backend({worker})"));
    crate::common::until("another worker", || {
        !["", &worker.to_string()].contains(&service.value("select presence.worker_pid()").as_str())
    });
    service.run("select presence.delete('stage', 'm8999')");
    let fewer = now(&mut service);
    check(&mut listener, fewer);
    cluster.assert_sound();
}

#[test]
fn after_lost_events_the_numbers_are_told_anew() {
    let cluster = Cluster::with(&["presence.event_buffer=64kB", "presence.max_per_user=0"]);
    let (mut service, mut bob) = (stage(&cluster, "{any}"), cluster.user("bob"));
    bob.listen("stage");
    enter(&mut service, "u1", "");
    hear_numbers(&mut bob, 1, 1);
    let frozen = cluster.freeze_worker();
    service
        .run("select count(presence.upsert('stage', user_id => 'u' || n)) from generate_series(1, 2000) n");
    drop(frozen);
    bob.hear_until("resync", |event| event.kind() == "resync");
    bob.listen("stage");
    hear_numbers(&mut bob, 2000, 2000);
    enter(&mut service, "u1", "2");
    hear_numbers(&mut bob, 2001, 2000);
    cluster.assert_sound();
}

#[test]
fn a_locked_table_of_rooms_holds_up_no_event() {
    let cluster = Cluster::start();
    let (mut service, mut other) = (stage(&cluster, "{any}"), cluster.service());
    let mut listener = cluster.service();
    listener.listen("stage");
    service.run("select count(presence.upsert('stage', user_id => 'u' || n)) from generate_series(1, 20) n");
    hear_numbers(&mut listener, 20, 20);
    other.run("begin; lock table presence.room in access exclusive mode");
    for turn in 1..=15 {
        // (Entering waits, because the room may have a limit.)
        service.run(&format!("select presence.delete('stage', 'u{turn}')"));
        listener.hear_until("a leave", |event| event.kind() == "leave");
        std::thread::sleep(millis(100));
        // Nor does waiting for the lock count as a failure.
        assert!(service.is("select failing_since is null from presence.health"));
    }
    other.run("commit");
    hear_numbers(&mut listener, 5, 5);
}
