//! The worker, the launcher or the server dies, and nothing that was promised is lost.

use crate::common::{Cluster, Event, Mirror, Over, Session, attempt, lines, millis, signal, until};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::time::{Duration, Instant};

#[test]
fn a_worker_that_is_killed_in_the_middle_loses_and_doubles_nothing() {
    let cluster = Cluster::with(&["presence.notify_delay=0"]);
    let mut service = cluster.service();
    service.run("select presence.listen()");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (cluster, done) = (&cluster, &done);
            scope.spawn(move || load(&mut cluster.service(), thread, done));
        }
        let _over = Over::tell(&done);
        let mut killer = cluster.service();
        let mut killed = Vec::new();
        while killed.len() < 5 {
            until("there is a worker, and it publishes", || {
                killer
                    .is("select worker_state = 'running' and events_buffered_bytes > 0 from presence.health")
            });
            killed.push(killer.number("select presence.worker_pid()"));
            killer.run("select pg_terminate_backend(presence.worker_pid())");
            let last = killed.last().expect("one").to_string();
            until("it is gone", || killer.value("select presence.worker_pid()") != last);
        }
    });

    let heard: Vec<Event> = service.hear().into_iter().filter(Event::is_of_member).collect();
    let mut enters: HashMap<String, usize> = HashMap::new();
    for event in heard.iter().filter(|event| event.kind() == "enter") {
        *enters.entry(event.text("member_id").into()).or_default() += 1;
    }
    assert!(enters.len() > 300, "only {} members", enters.len());
    assert!(enters.values().all(|count| *count == 1), "an enter was heard twice");
    assert!(heard.is_sorted_by(|a, b| a.seq() < b.seq()), "an event was heard twice or out of order");
    let mut mirror = Mirror::default();
    heard.iter().for_each(|event| mirror.apply(&mut service, event));
    mirror.assert_true(&mut service);

    assert!(service.is(
        "select max(seq) - min(seq) + 1 = count(*) and count(*) = count(distinct seq) from presence.event"
    ));
    assert!(service.is(&format!("select count(*) = {} from presence.event", heard.len())));
    let wrong = "select member_id from presence.event group by 1
                 having count(*) filter (where event = 'enter') <> 1 or count(*) filter (where event = 'leave') > 1";
    assert_eq!(service.rows(wrong), [[""; 0]; 0]);
    // `connections` stayed correct across the worker's deaths.
    assert!(heard.iter().all(|e| e["connections"] == if e.kind() == "leave" { 0 } else { 1 }));
    cluster.assert_sound();
}

#[test]
fn a_launcher_that_is_killed_comes_back() {
    let cluster = Cluster::start();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    let launcher =
        "select coalesce(max(pid), 0) from pg_stat_activity where backend_type = 'presence_ext launcher'";
    let (pid, worker) = (service.number(launcher), service.number("select presence.worker_pid()"));
    assert_eq!(
        service.number("select count(*) from pg_stat_activity where backend_type = 'presence_ext worker'"),
        1
    );
    service.run("select presence.listen()");
    service.run(&format!("select pg_terminate_backend({pid})"));
    until("another launcher runs", || ![0, pid].contains(&service.number(launcher)));

    // The worker is the same, and when it dies the new launcher replaces it.
    alice.run("select presence.upsert('lobby')");
    assert_eq!(lines(&service.hear()), ["enter alice"]);
    assert_eq!(service.number("select presence.worker_pid()"), worker);
    let mut settled = service.number(launcher);
    for round in 0..3 {
        service.run("select pg_terminate_backend(presence.worker_pid())");
        alice.run(&format!("select presence.upsert('lobby', '{round}')"));
        let began = Instant::now();
        assert_eq!(lines(&service.hear()), ["update alice"]);
        assert!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
        // Both at once.
        service.run(
            "select pg_terminate_backend(pid) from pg_stat_activity where backend_type like 'presence%'",
        );
        alice.run("select presence.upsert('lobby', '{}')");
        assert_eq!(lines(&service.hear()), ["update alice"]);
        until("another launcher runs", || ![0, settled].contains(&service.number(launcher)));
        settled = service.number(launcher);
    }
    assert_eq!(
        service.number("select count(*) from pg_stat_activity where backend_type = 'presence_ext worker'"),
        1
    );
    cluster.assert_sound();
}

#[test]
fn a_shutdown_waits_for_nobody() {
    let cluster = Cluster::start();
    for mode in ["fast", "smart"] {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (mut session, done) = (cluster.service(), &done);
                scope.spawn(
                    move || while !done.load(Relaxed) && session.try_run(&upsert(thread, 0)).is_ok() {},
                );
            }
            let _over = Over::tell(&done);
            std::thread::sleep(millis(500));
            if mode == "smart" {
                done.store(true, Relaxed); // a smart shutdown waits for clients, but not for the extension's workers
            }
            let began = Instant::now();
            cluster.stop(mode);
            assert!(began.elapsed() < Duration::from_secs(5), "{mode}: {:?}", began.elapsed());
        });
        cluster.start_again();
        cluster.until_worker("app");
    }
    cluster.assert_sound();
}

#[test]
fn after_a_crash_everybody_comes_back() {
    let cluster = Cluster::start();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    alice.run("select presence.upsert('lobby', '1'); select presence.upsert('side', session => true)");
    service.flush();
    let version = service.number("select max(version) from presence.online");
    let (seq, channel) = (
        service.number("select presence.seq()"),
        service.value("select name from presence.channels() name where name <> 'presence' limit 1"),
    );
    assert!(seq > 0);

    let worker = service.number("select presence.worker_pid()");
    signal("KILL", worker);
    until("the server starts over", || alice.try_run("select 1").is_err());
    until("it takes connections", || cluster.try_session("alice", "app").is_some());
    cluster.until_worker("app");

    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    assert_eq!(service.rows("select members, slots_used from presence.health")[0], ["0", "0"]);
    assert_eq!(service.number("select count(*) from presence.event"), 0);
    assert!(!alice.is("select presence.heartbeat('lobby')"), "clients enter again");
    assert!(service.number("select presence.seq()") >= seq);
    // Clients from before the crash are told to start over, by an event or by silence.
    assert_eq!(service.value(&format!("select event from presence.changes({seq}) limit 1")), "resync");

    service.run("select presence.listen()");
    assert_ne!(
        service.value("select name from presence.channels() name where name <> 'presence' limit 1"),
        channel,
        "names are of one start of the server"
    );
    assert!(alice.number("select version from presence.upsert('lobby', '2')") > version);
    let heard = service.hear();
    assert_eq!(lines(&heard), ["enter alice"]);
    assert!(heard.iter().find(|event| event.is_of_member()).expect("it").seq() > seq);
    assert!(alice.is("select presence.heartbeat('lobby')"));

    // And crash once more, immediately.
    signal("KILL", service.number("select presence.worker_pid()"));
    until("it takes connections", || {
        alice.try_run("select 1").is_err() && cluster.try_session("bob", "app").is_some()
    });
    cluster.until_worker("app");
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    alice.run("select presence.upsert('lobby')");
    service.flush();
    assert!(service.number("select presence.seq()") > seq + 1);
    assert_eq!(service.number("select slots_used from presence.health"), 1);
    assert!(!cluster.log().contains("PANIC"));
}

/// Members that enter, change and mostly leave again, each once.
fn load(session: &mut Session, thread: usize, done: &AtomicBool) {
    let mut turn = 0;
    let end = Instant::now() + Duration::from_secs(30);
    while !done.load(Relaxed) && Instant::now() < end {
        turn += 1;
        session.run(&upsert(thread, turn));
        let member = format!("{thread}/{turn}");
        session
            .run(&format!("select presence.update('load', '{{\"turn\": {turn}}}', member_id => '{member}')"));
        if turn % 3 != 0 {
            session.run(&format!("select presence.delete('load', '{member}')"));
        }
        // No more than the worker can publish after the longest pause.
        attempt(|| {
            turn % 50 != 0 || session.is("select events_buffered_bytes < 4000000 from presence.health")
        });
    }
}

fn upsert(thread: usize, turn: usize) -> String {
    format!(
        "select presence.upsert('load', member_id => '{thread}/{turn}', user_id => '{thread}/{turn}', ttl => '1 h')"
    )
}
