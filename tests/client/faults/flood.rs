//! One client that floods does not degrade the service for others.

use crate::common::{Cluster, Event, Mirror, Over, Session, memory};
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::time::{Duration, Instant};

/// Runs the SQL repeatedly in sessions of the user while the body runs. `$n` is replaced by a counter.
fn flooding<T>(cluster: &Cluster, user: &str, sessions: usize, sql: &str, body: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _over = Over::tell(&done);
        for session in 0..sessions {
            let done = &done;
            scope.spawn(move || {
                let mut flooder = cluster.user(user);
                let sql = sql.replace("$session", &session.to_string());
                for n in 0.. {
                    if done.load(Relaxed) {
                        break;
                    }
                    flooder.run(&sql.replace("$n", &n.to_string()));
                }
            });
        }
        body()
    })
}

/// The events that the session receives during this time, each with its time of arrival.
fn hear_for(session: &mut Session, time: Duration) -> Vec<(Instant, Event)> {
    let end = Instant::now() + time;
    let mut heard = Vec::new();
    while Instant::now() < end {
        if let Some(event) = session.next_event(end.saturating_duration_since(Instant::now())) {
            heard.push((Instant::now(), event));
        }
    }
    heard
}

/// Changing audiences that exceed the buffer, so that events are lost again and again.
#[test]
fn losses_are_told_once_a_second_and_the_last_one_too() {
    let cluster = Cluster::with(&["presence.event_buffer=64kB"]);
    let mut service = cluster.service();
    service.run("select presence.listen()");
    let mut mirror = Mirror::of(&mut service);
    let wide = "select presence.upsert_many(jsonb_agg(jsonb_build_object('room', 'hall', 'connection_id', c::text,
                    'audience', (select jsonb_agg('team:' || repeat('x', 200) || k || '.$n') from generate_series(1, 64) k))))
                from generate_series(1, 20) c";
    let losses = "select events_dropped from presence.health";
    let heard = flooding(&cluster, "alice", 2, wide, || hear_for(&mut service, Duration::from_secs(4)));
    assert!(service.number(losses) > 10 * 20, "so many events are lost");
    // The delay also depends on the machine.
    let resyncs: Vec<Instant> =
        heard.iter().filter(|(_, event)| event.kind() == "resync").map(|(at, _)| *at).collect();
    assert!((2..=5).contains(&resyncs.len()), "{} in four seconds", resyncs.len());
    heard.iter().for_each(|(_, event)| mirror.apply(&mut service, event));
    // The last loss is reported soon as well.
    let ended = Instant::now();
    service.flush();
    assert!(ended.elapsed() < Duration::from_secs(3), "{:?}", ended.elapsed());
    mirror.follow(&mut service);
    mirror.assert_true(&mut service);
    // As soon as nothing is lost, nothing more is reported.
    let told = service.number("select resyncs from presence.health");
    service.run("select presence.upsert('lobby', '1')");
    std::thread::sleep(Duration::from_millis(1_200));
    assert_eq!(service.number("select resyncs from presence.health"), told);
    assert!(told <= 7, "{told}");
    cluster.assert_sound();
}

/// Rewrites large states of fifty members in each session as fast as possible, each time with different
/// numbers.
const LARGE: &str = "select presence.upsert_many(jsonb_agg(jsonb_build_object('room', 'hall', 'connection_id', '$session.' || c,
        'audience', (select jsonb_agg('room:x' || k) from generate_series(1, 64) k),
        'state', jsonb_build_object('n', $n, 'x', repeat('y', 60000))))) from generate_series(1, 50) c";

#[test]
fn others_are_told_all_and_soon() {
    let cluster = Cluster::start();
    let (mut service, mut bob, mut carol) = (cluster.service(), cluster.user("bob"), cluster.user("carol"));
    bob.run("select presence.upsert('calm')");
    bob.run("select presence.listen('calm')");
    let pid = service.number("select presence.worker_pid()");
    let before = memory(pid, "RssAnon:");
    let (sent, heard, most) = flooding(&cluster, "alice", 3, LARGE, || {
        let (mut sent, mut heard, mut most) = (Vec::new(), Vec::new(), 0);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            carol.run(&format!("select presence.upsert('calm', connection_id => '{}')", sent.len()));
            sent.push(Instant::now());
            heard.extend(hear_for(&mut bob, Duration::from_millis(20)));
            most = most.max(memory(pid, "RssAnon:"));
        }
        heard.extend(hear_for(&mut bob, Duration::from_secs(2)));
        (sent, heard, most)
    });
    let enters: Vec<_> = heard.iter().filter(|(_, event)| event.line().starts_with("enter carol")).collect();
    assert_eq!(enters.len(), sent.len(), "each is told in full");
    let late = enters.iter().map(|(at, event)| {
        let number: usize = event.text("connection_id").parse().expect("a number");
        at.saturating_duration_since(sent[number])
    });
    let late = late.max().expect("some");
    assert!(late < Duration::from_secs(2), "{late:?}");
    assert!(heard.iter().all(|(_, event)| event.kind() != "resync"));
    assert!(most - before < 64, "the worker has grown by {} MB", most - before);
    service.flush();
    assert_eq!(service.number("select resyncs from presence.health"), 0);
    cluster.assert_sound();
}

/// Events that do not fit in the buffer are stored without data, which is read from the row, also for the
/// log.
#[test]
fn a_flood_is_told_as_it_ends() {
    let cluster = Cluster::with(&["presence.event_buffer=256kB"]);
    let mut service = cluster.service();
    service.run("select presence.listen()");
    let mut mirror = Mirror::of(&mut service);
    for n in 0..3 {
        // More than the buffer: in one transaction, at three quarters of the buffer, and while the worker is
        // suspended.
        let frozen = (n > 0).then(|| cluster.freeze_worker());
        let sql = "select presence.upsert_many(jsonb_agg(jsonb_build_object('room', 'hall', 'connection_id', c::text,
                       'status', 's$n', 'state', jsonb_build_object('n', $n, 'x', repeat(md5(c::text), 100)))))
                   from generate_series($from, $from + 19) c";
        let sql = sql.replace("$n", &n.to_string());
        let mut alice = cluster.user("alice");
        for from in [1, 21, 41, 61, 81, 101] {
            alice.run(&sql.replace("$from", &from.to_string()));
        }
        alice.run("begin; update presence.member set state = state || '{\"all\": true}', metadata = '{\"m\": 1}'; commit");
        if n == 2 {
            alice.run("select presence.delete('hall', connection_id => '7'); update presence.member set audience = '{any}' where connection_id = '8'");
            alice.run("select presence.upsert('hall', jsonb_build_object('new', repeat('z', 3000)), connection_id => '7')");
        }
        drop(frozen);
        mirror.follow(&mut service);
        mirror.assert_true(&mut service);
    }
    assert_eq!(mirror.members().len(), 120);
    assert_eq!(service.rows("select events_dropped, resyncs from presence.health"), [["0", "0"]]);
    let wrong = "select m.connection_id from presence.member m, lateral (select * from presence.event e
                     where e.connection_id = m.connection_id order by seq desc limit 1) e
                 where e.state is distinct from m.state or e.metadata is distinct from m.metadata
                    or e.status is distinct from m.status";
    assert_eq!(service.rows(wrong), [[""; 0]; 0]);
    cluster.assert_sound();
}

/// Every listener reads the notifications of all channels, so a flood is not published in full on sixty-four
/// of them.
#[test]
fn a_wide_flood_is_told_whole_on_few_channels() {
    let cluster = Cluster::start();
    let (mut service, mut alice) = (cluster.service(), cluster.user("alice"));
    alice.run(
        "select presence.upsert_many(jsonb_agg(jsonb_build_object('room', 'x' || i))) from generate_series(1, 64) i",
    );
    service.flush();
    alice.run("select presence.listen(); select presence.listen('hall')");
    let mut notified = |members: usize| {
        service.flush();
        let sent = "select notifications_sent from presence.health";
        let before = service.number(sent);
        let frozen = cluster.freeze_worker();
        cluster.user("alice").run(&format!(
            "select presence.upsert_many(jsonb_agg(jsonb_build_object('room', 'hall', 'connection_id', i::text,
                'audience', (select jsonb_agg('room:x' || k) from generate_series(1, 64) k),
                'state', jsonb_build_object('n', {members}, 'x', repeat('y', 5500))))) from generate_series(1, {members}) i"
        ));
        drop(frozen);
        service.flush();
        service.number(sent) - before
    };
    assert!(notified(5) >= 5 * 60, "whole on each");
    let flood = notified(200);
    assert!(flood < 200 * 20, "{flood}");
    cluster.assert_sound();
}
