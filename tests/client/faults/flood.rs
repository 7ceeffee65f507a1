//! One who floods does not spoil it for others.

use crate::common::{Cluster, Event, Mirror, Over, Session};
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::time::{Duration, Instant};

/// Runs this again and again, in sessions of the user, for as long as the body takes. `$n` is a number that grows.
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

/// What the session hears meanwhile, with the time at which it came.
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

/// Audiences that change, and are too much for the buffer: the events are lost, again and again.
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
    // How soon they are heard depends on the machine, too.
    let resyncs: Vec<Instant> =
        heard.iter().filter(|(_, event)| event.kind() == "resync").map(|(at, _)| *at).collect();
    assert!((2..=5).contains(&resyncs.len()), "{} in four seconds", resyncs.len());
    heard.iter().for_each(|(_, event)| mirror.apply(&mut service, event));
    // The last loss is told as well, soon.
    let ended = Instant::now();
    service.flush();
    assert!(ended.elapsed() < Duration::from_secs(3), "{:?}", ended.elapsed());
    mirror.follow(&mut service);
    mirror.assert_true(&mut service);
    // With nothing lost there is nothing more to tell.
    let told = service.number("select resyncs from presence.health");
    service.run("select presence.upsert('lobby', '1')");
    std::thread::sleep(Duration::from_millis(1_200));
    assert_eq!(service.number("select resyncs from presence.health"), told);
    assert!(told <= 7, "{told}");
    cluster.assert_sound();
}
