//! Long-running transactions: PostgreSQL keeps old rows for them, and that is the only effect. Expiry,
//! delivery and the rotation of the log continue, and none of the extension's data grows.
//!
//! PRESENCE_SOAK=minutes runs for that long.

use crate::common::{Cluster, Event, Session, kilobytes, lines, until};
use std::time::{Duration, Instant};

#[test]
fn an_old_snapshot_holds_up_nothing_of_ours() {
    // The load would fill more than these limits.
    let cluster = Cluster::with_clock(&["presence.event_buffer=256kB", "presence.max_members=300"]);
    let mut service = cluster.service();
    service.run("select presence.listen()");
    service.run(
        "select presence.upsert('hall', member_id => 'm' || n, user_id => 'u', ttl => '1 d')
         from generate_series(1, 50) n",
    );

    // A snapshot, a transaction id, an uncommitted change, and a change rolled back to a savepoint.
    let (mut reader, mut idle) = (cluster.service(), cluster.service());
    let (mut writer, mut undone) = (cluster.user("bob"), cluster.user("carol"));
    reader.run("begin isolation level repeatable read; select presence.list()");
    idle.run("begin; select pg_current_xact_id()");
    writer.run("begin; select presence.upsert('hall', ttl => '1 d')");
    undone.run("begin; savepoint s; select presence.upsert('hall'); rollback to s; select presence.list()");
    assert_eq!(reader.number("select count(*) from presence.list('hall')"), 50);

    let worker = service.number("select presence.worker_pid()");
    let mut load = cluster.service();
    let turns = |load: &mut Session, service: &mut Session, rounds: usize| {
        for round in 0..rounds {
            turn(&cluster, load, service, round);
        }
    };
    // Memory use reaches its maximum in the first rounds.
    turns(&mut load, &mut service, 40);
    let before = (kilobytes(worker, "RssAnon:"), allocated(&mut load), seq(&mut service));
    let minutes = std::env::var("PRESENCE_SOAK").map_or(0, |minutes| minutes.parse().expect("minutes"));
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    loop {
        turns(&mut load, &mut service, 80);
        if Instant::now() > end {
            break;
        }
    }
    let after = (kilobytes(worker, "RssAnon:"), allocated(&mut load), seq(&mut service));
    assert!(after.2 > before.2 + 1_000, "{} events", after.2 - before.2);
    assert!(after.0 < before.0 + 4_096, "the worker has grown from {} kB to {} kB", before.0, after.0);
    assert!(after.1 < before.1 + 1_000_000, "a backend has grown from {} to {} bytes", before.1, after.1);
    until("tombstones are freed", || {
        service.is("select slots_used <= members + 1 and events_buffered_bytes = 0 from presence.health")
    });
    assert!(service.is("select events_dropped = 0 and resyncs = 0 from presence.health"));

    // The tables of the log rotate: events older than about an hour and a half are gone.
    let old = "select count(*) from presence.event where at < clock_timestamp() - interval '100 min'";
    for _ in 0..6 {
        cluster.clock().pass(Duration::from_secs(20 * 60));
        turn(&cluster, &mut load, &mut service, 0);
    }
    until("the log is rotated", || service.number(old) == 0);

    // The open transactions still have their snapshots and their changes.
    assert_eq!(reader.number("select count(*) from presence.list('hall')"), 50);
    writer.run("commit");
    let heard = service.hear_until("an enter", |event| event.line() == "enter bob");
    assert!(heard.iter().all(|event| event.kind() != "resync"));
    for mut session in [reader, idle, undone] {
        session.run("commit");
    }
    assert_eq!(service.number("select count(*) from presence.list('hall')"), 51);
    cluster.assert_sound();
}

/// Twenty members enter, change and go: half of them leave, and half expire.
fn turn(cluster: &Cluster, load: &mut Session, service: &mut Session, round: usize) {
    load.run(
        "select presence.upsert('load', jsonb_build_object('text', repeat('x', 100)), member_id => 'l' || n,
                                user_id => 'l' || n, ttl => '30 s')
         from generate_series(1, 20) n",
    );
    load.run(&format!(
        "select presence.update('load', '{{\"round\": {round}}}', member_id => 'l' || n) from generate_series(1, 20) n"
    ));
    load.run("select presence.heartbeat('load', member_id => 'l' || n) from generate_series(1, 20) n");
    load.run("select presence.delete('load', member_id => 'l' || n) from generate_series(1, 10) n");
    cluster.clock().pass(Duration::from_secs(31));
    load.run("select presence.sweep()");
    let mut left = 0;
    while left < 20 {
        let heard = service.hear();
        let leaves: Vec<&Event> = heard.iter().filter(|event| event.kind() == "leave").collect();
        left += leaves.len();
        assert!(left <= 20, "round {round}: {:?}", lines(&heard));
    }
    assert_eq!(service.number("select count(*) from presence.list('load')"), 0);
}

fn seq(service: &mut Session) -> i64 {
    service.number("select presence.seq()")
}

/// The bytes that a session has allocated in PostgreSQL's memory contexts.
fn allocated(session: &mut Session) -> i64 {
    session.number("select sum(total_bytes)::bigint from pg_backend_memory_contexts")
}

/// An old snapshot contains the rows of earlier members, but shows only those who are still present. After a
/// while nothing in memory records how a stay ended; when all slots are taken, nothing ever recorded it.
#[test]
fn an_old_snapshot_shows_nobody_who_is_gone_since() {
    for slots in ["100", "10"] {
        let cluster = Cluster::with(&[&format!("presence.max_members={slots}")]);
        let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
        service.run("select presence.upsert('hall', member_id => 'm' || n, user_id => 'u') from generate_series(1, 10) n");
        for connection in ["stays", "left", "leaves", "shortened", "back"] {
            alice.run(&format!(
                "select presence.upsert('lobby', connection_id => '{connection}', audience => '{{any}}', ttl => '1 h')"
            ));
        }
        let mut readers = ["repeatable read", "serializable"].map(|level| {
            let mut reader = cluster.user("bob");
            reader.run(&format!("begin isolation level {level}; select presence.list('lobby')"));
            reader
        });
        alice.run(
            "select presence.delete('lobby', connection_id => 'left');
             select presence.delete('lobby', connection_id => 'leaves', after => '200 ms');
             select presence.upsert('lobby', connection_id => 'shortened', ttl => '1 s');
             select presence.delete('lobby', connection_id => 'back');
             select presence.upsert('lobby', connection_id => 'back', audience => '{any}')",
        );
        until("nothing is left of them", || {
            service.is("select count(*) = 2 from presence.member where room = 'lobby'")
                && service.is("select slots_used <= 12 from presence.health")
        });
        service.flush();
        for reader in &mut readers {
            assert!(
                reader.is("select count(*) = 5 from presence.member where room = 'lobby'"),
                "an old snapshot"
            );
            let rows = reader.rows("select connection_id from presence.list('lobby')");
            assert_eq!(rows, [["stays"]], "{slots} slots");
            assert_eq!(
                reader.rows("select * from presence.occupancy('lobby')"),
                [["1", "1"]],
                "{slots} slots"
            );
        }
        cluster.assert_sound();
    }
}
