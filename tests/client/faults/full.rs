//! A resource is exhausted: worker processes, the NOTIFY queue, the disk. Callers can go on, operators see
//! the error, and everything recovers when there is room again. (Lease slots and the event buffer:
//! limits.rs.)

use crate::common::{Cluster, Mirror, Session, SmallDisk, lines, until};

/// What an operator sees: the last error, and whether it persists.
fn trouble(service: &mut Session) -> (String, bool) {
    let row = service.rows("select last_error, failing_since is not null from presence.health").remove(0);
    (row[0].clone(), row[1] == "t")
}

#[test]
fn without_a_free_worker_process_calls_go_on_and_events_wait() {
    // One for the launcher, one for logical replication's launcher, one for a database.
    let cluster = Cluster::with(&["max_worker_processes=3"]);
    cluster.sql("postgres", "create database second");
    cluster.sql("second", "create extension presence_ext");
    let mut session = cluster.session("postgres", "second");
    until("health says why nothing is published", || {
        trouble(&mut session)
            == ("no free slot for a background worker: raise max_worker_processes".into(), true)
    });
    assert_eq!(session.rows("select worker_pid, worker_state from presence.health")[0], ["", "none"]);
    session.run("select presence.listen(); select presence.upsert('lobby', '1', ttl => '1 s')");
    assert!(session.is("select presence.heartbeat('lobby')"));
    assert!(!session.is("select presence.wait_for_flush('0.1 s')"));
    assert!(session.is("select events_buffered_bytes > 0 from presence.health"));
    until("it has expired for readers", || session.rows("select * from presence.list('lobby')").is_empty());
    session.run("select presence.upsert('lobby', '2')");
    assert_eq!(session.value("select state from presence.get('lobby')"), "2");

    // The log line is not repeated every second.
    let complaint = "presence_ext found no free slot for a background worker";
    assert_eq!(cluster.log().matches(complaint).count(), 1);

    cluster.sql("app", "drop extension presence_ext");
    cluster.until_worker("second");
    assert_eq!(
        lines(&session.hear()),
        ["enter postgres", "leave postgres expired", "enter postgres"],
        "what waited is published"
    );
    assert!(!trouble(&mut session).1);
    cluster.assert_sound();
}

/// With a queue of 64 pages (PostgreSQL 17), a listener in an open transaction keeps the queue full. Before
/// 17, that takes 8 GB of notifications, so there the worker is made to encounter the same error.
#[test]
fn while_the_notify_queue_is_full_the_log_is_written_and_resync_follows() {
    let limited = cfg!(any(feature = "pg17", feature = "pg18"));
    let cluster = Cluster::with(if limited { &["max_notify_queue_pages=64"] } else { &[] });
    let (mut service, mut alice, mut idle) = (cluster.service(), cluster.user("alice"), cluster.service());
    service.run("select presence.listen()");
    let mut mirror = Mirror::of(&mut service);
    alice.run("select presence.upsert('lobby', '0')");
    mirror.follow(&mut service);

    let stall = cluster.stall();
    if limited {
        idle.run("listen noise"); // committed before the transaction that stays open
        idle.run("begin");
        idle.run("select 1");
        let mut noise = cluster.service();
        until("the queue is full", || noise.try_run("select pg_notify('noise', repeat('x', 7900))").is_err());
    } else {
        let mut worker_settings = cluster.service();
        for set in stall.at("notify queue").split(';').filter(|set| !set.trim().is_empty()) {
            worker_settings.run(&format!("alter database app {set}"));
        }
    }

    let mut seq = service.number("select presence.seq()");
    until("health says it", || {
        alice.run("select presence.upsert('lobby', to_jsonb(clock_timestamp()))");
        trouble(&mut service) == ("too many notifications in the NOTIFY queue".into(), true)
    });
    // Listeners receive nothing, but readers of the log see the changes.
    for turn in 1..=3 {
        alice.run(&format!("select presence.upsert('lobby', '{turn}')"));
        until("it is in the log", || {
            let row =
                format!("select coalesce(max(seq), 0) from presence.changes({seq}) where state = '{turn}'");
            let found = service.number(&row);
            seq = seq.max(found);
            found > 0
        });
    }
    assert_eq!(alice.value("select state from presence.get('lobby')"), "3");
    assert!(alice.is("select presence.heartbeat('lobby')"));
    assert_eq!(cluster.log().matches("listeners hear nothing until there is room again").count(), 1);

    let before = mirror.resyncs();
    drop(stall);
    if limited {
        idle.run("commit");
    }
    until("resync is heard", || {
        let heard = service.heard();
        heard
            .iter()
            .filter(|event| event.channel != "noise")
            .for_each(|event| mirror.apply(&mut service, event));
        mirror.resyncs() > before
    });
    until("health is content", || !trouble(&mut service).1);
    alice.run("select presence.upsert('lobby', '4')");
    mirror.follow(&mut service);
    mirror.assert_true(&mut service);
    cluster.assert_sound();
}

#[test]
fn with_a_full_disk_under_the_log_presence_goes_on_and_the_rest_follows() {
    let Some(disk) = SmallDisk::mount("2m") else {
        println!("not tested: no file system can be mounted here");
        return;
    };
    let cluster = Cluster::with(&["presence.event_buffer=256kB", "presence.max_per_user=0"]);
    let (mut service, mut alice) = (cluster.service(), cluster.user("alice"));
    let place = disk.dir.display();
    service.run(&format!("create tablespace small location '{place}'"));
    for part in 0..3 {
        service.run(&format!("alter table _presence._event_{part} set tablespace small"));
    }
    service.run("select presence.listen()");
    alice.run("select presence.upsert('lobby', '0')");
    let mut mirror = Mirror::of(&mut service);
    mirror.follow(&mut service);

    disk.fill();
    let large = "(select jsonb_agg(md5(n::text)) from generate_series(1, 1000) n)";
    until("health says it", || {
        alice.run(&format!("select presence.upsert('lobby', {large} || to_jsonb(clock_timestamp()))"));
        let (error, failing) = trouble(&mut service);
        error.contains("No space left on device") && failing
    });
    assert!(cluster.log().contains("failed and will be tried again: could not extend file"));
    alice.run("select presence.upsert('lobby', '1'); select presence.upsert('side', '1', ttl => '1 s')");
    assert!(alice.is("select presence.heartbeat('lobby')"));
    assert_eq!(service.number("select members from presence.occupancy('lobby')"), 1);
    until("it expires for readers", || alice.rows("select * from presence.get('side')").is_empty());

    assert!(service.is("select events_dropped = 0 from presence.health"), "the buffer has room");

    // Now fill the buffer.
    until("events are lost", || {
        alice.run(
            "select count(presence.upsert('lobby', connection_id => md5(clock_timestamp()::text || n)))
             from generate_series(1, 300) n",
        );
        service.is("select events_dropped > 0 from presence.health")
    });
    alice.run("select presence.upsert('lobby', '2')");
    let before = mirror.resyncs();
    disk.free();
    until("resync is heard", || {
        mirror.follow(&mut service);
        mirror.resyncs() > before
    });
    until("health is content", || !trouble(&mut service).1);
    alice.run("select presence.upsert('lobby', '3')");
    mirror.follow(&mut service);
    mirror.assert_true(&mut service);
    assert!(service.is("select count(*) = 0 from presence.member where room = 'side'"), "it was swept");
    cluster.assert_sound();
    drop(cluster); // before its disk
}
