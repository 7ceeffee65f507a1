//! Writers of many members at once are limited to the worker's publishing rate; nobody else waits for it.

use crate::common::{Cluster, Frozen, Session, until};
use std::time::{Duration, Instant};

/// A bulk call with 400 members, which makes about 100 kB of events.
fn many(call: u32) -> String {
    format!(
        "select presence.upsert_many(jsonb_agg(jsonb_build_object('room', 'hall', 'connection_id', m::text,
             'state', jsonb_build_object('call', {call}, 'x', repeat('y', 100))))) from generate_series(1, 400) m"
    )
}

fn time_of(session: &mut Session, sql: &str) -> Duration {
    let start = Instant::now();
    session.run(sql);
    start.elapsed()
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_bulk_verb_waits_for_the_worker_before_events_are_lost() {
    let cluster = Cluster::with(&["presence.event_buffer=512kB", "presence.max_per_user=0"]);
    let (mut alice, mut bob) = (cluster.user("alice"), cluster.user("bob"));
    let mut service = cluster.service();
    alice.run(&many(0));
    alice.run("create temp table mine (n int)");
    bob.run("select presence.upsert('hall')");
    service.run("select presence.wait_for_flush('60 s')");

    let worker = Frozen::new(service.number("select presence.worker_pid()"));
    let pid = alice.number("select pg_backend_pid()");
    // A session waits once it has more in the buffer than is free; the coming call itself does not count.
    for call in 1.. {
        assert!(call < 9, "it never waits");
        alice.run("set statement_timeout = '500 ms'");
        if let Err(failure) = alice.try_run(&many(call)) {
            assert_eq!(failure.code, "57014", "it is not to be cancelled");
            assert!(call > 1, "it has nothing in the buffer");
            break;
        }
    }
    alice.run("set statement_timeout = '60 s'");
    let used = service.number("select events_buffered_bytes from presence.health");
    assert!((100 << 10..300 << 10).contains(&used), "about half of the buffer: {used}");
    assert_eq!(service.number("select count(*) from presence.member where state -> 'call' is not null"), 400);

    // On a busy machine at least one of the attempts is quick enough; if they waited, each would take a
    // second.
    let quick = |session: &mut Session, sql: &str| (0..5).any(|_| time_of(session, sql) < SECOND);
    let few = "select presence.upsert_many('[{\"room\": \"hall\"}]'), presence.update_many('[{\"room\": \"hall\"}]')";
    assert!(quick(&mut bob, few), "others do not wait");
    assert!(
        quick(&mut alice, "select presence.upsert('hall', to_jsonb(random()), connection_id => 'one')"),
        "one member"
    );
    assert!(
        quick(&mut alice, &format!("begin; insert into mine values (1); {}; rollback", many(9))),
        "a transaction that others may wait for"
    );

    // The waiting call holds no locks, and does not wait forever.
    let waiting = std::thread::spawn(move || (time_of(&mut alice, &many(9)), alice));
    until("alice waits", || {
        let waits = "wait_event is not null and wait_event <> 'ClientRead'";
        service.is(&format!("select {waits} from pg_stat_activity where pid = {pid}"))
            || waiting.is_finished()
    });
    assert_eq!(service.number("select presence.delete('hall', 'alice', '1')"), 1);
    let (waited, mut alice) = waiting.join().expect("no panic");
    assert!(waited >= SECOND, "{waited:?}");

    // With the worker running there is room again, and nothing was lost.
    drop(worker);
    for call in 10..30 {
        alice.run(&many(call));
    }
    assert!(service.is("select presence.wait_for_flush('60 s')"));
    assert_eq!(service.number("select events_dropped + resyncs from presence.health"), 0);
    cluster.assert_sound();
}
