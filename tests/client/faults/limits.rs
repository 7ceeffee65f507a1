//! Full buffers, full tables, and a server without the library preloaded.

use crate::common::{Cluster, Mirror, Over, Session, lines, millis, until};
use std::sync::atomic::{AtomicBool, Ordering::*};

#[test]
fn a_full_event_buffer_fails_no_commit_and_is_told() {
    let cluster = Cluster::with(&["presence.event_buffer=64kB"]);
    let mut service = cluster.service();
    service.run("select presence.listen()");
    let mut alice = cluster.user("alice");
    alice.run("select presence.upsert('lobby', '0'); select presence.upsert('side', '0')");
    alice.run("select presence.listen('lobby')"); // every listener receives resync, whatever it listens to
    alice.hear();
    let mut mirror = Mirror::of(&mut service);

    let frozen = cluster.freeze_worker();
    let mut writer = cluster.service();
    for turn in 1..=600 {
        writer.run(&format!(
            "select presence.upsert('lobby', '{turn}', member_id => 'm{turn}', user_id => 'u')"
        ));
        writer.run(&format!("select presence.delete('lobby', 'm{}')", turn / 2));
    }
    alice.run("select presence.delete('side')");
    assert!(writer.is("select events_dropped > 0 from presence.health"));
    assert!(writer.is("select presence.heartbeat('lobby', 'm600')"), "leases do not go through the buffer");
    drop(frozen);
    until("resync is heard", || follow(&mut mirror, &mut service) > 0);
    mirror.assert_true(&mut service);
    alice.hear_until("resync", |event| event.kind() == "resync");

    // A single transaction that is larger than the buffer.
    writer.run("begin; select presence.delete('lobby', member_id) from presence.list('lobby', 1000);
                select presence.upsert('lobby', '1', 'm' || n, user_id => 'u') from generate_series(1, 3000) n; commit");
    let before = mirror.resyncs();
    until("resync is heard again", || follow(&mut mirror, &mut service) > before);
    mirror.assert_true(&mut service);
    assert_eq!(writer.number("select members from presence.occupancy('lobby')"), 3_000);

    // Afterwards everything is as before, including counts: alice's leave was among the dropped events.
    alice.run("select presence.upsert('lobby', '1', connection_id => 'phone')");
    let heard = service.hear();
    let event = heard.iter().find(|event| event.is_of_member()).expect("an enter");
    assert_eq!((event.line(), &event["connections"]), ("enter alice/phone".into(), &1.into()));
    heard.iter().for_each(|event| mirror.apply(&mut service, event));

    // More members than the buffer holds expire at once: the batches fit, and there is no resync.
    let resyncs = mirror.resyncs();
    for from in (1..=2_000).step_by(50) {
        writer.run(&format!(
            "select presence.upsert('hall', member_id => 'x' || n, user_id => 'u', ttl => '2 s')
             from generate_series({from}, {from} + 49) n"
        ));
        writer.flush();
    }
    until("all have expired", || service.is("select count(*) = 0 from presence.member where room = 'hall'"));
    mirror.follow(&mut service);
    assert_eq!(mirror.resyncs(), resyncs);
    mirror.assert_true(&mut service);
    cluster.assert_sound();
}

/// Applies the events, and returns the number of resyncs so far.
fn follow(mirror: &mut Mirror, session: &mut Session) -> usize {
    mirror.follow(session);
    mirror.resyncs()
}

#[test]
fn a_mirror_converges_though_the_buffer_overflows_again_and_again() {
    let cluster = Cluster::with(&["presence.event_buffer=64kB"]);
    let mut service = cluster.service();
    service.run("select presence.listen()");
    let mut mirror = Mirror::of(&mut service);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (cluster, done) = (&cluster, &done);
            scope.spawn(move || {
                let mut session = cluster.service();
                let mut turn = 0;
                while !done.load(Relaxed) {
                    turn += 1;
                    session.run(&format!(
                        "select presence.upsert('lobby', '{turn}', '{thread}/' || n, user_id => 'u')
                         from generate_series({turn} % 7, {turn} % 7 + 50) n"
                    ));
                    session.run(&format!(
                        "delete from presence.member where member_id like '{thread}/%{}'",
                        turn % 10
                    ));
                }
            });
        }
        let _over = Over::tell(&done);
        for _ in 0..4 {
            let frozen = cluster.freeze_worker();
            std::thread::sleep(millis(300));
            drop(frozen);
            mirror.follow(&mut service);
        }
    });
    mirror.follow(&mut service);
    mirror.assert_true(&mut service);
    assert!(mirror.resyncs() > 0);
    cluster.assert_sound();
}

#[test]
fn leases_without_a_slot_are_slower_and_right() {
    let cluster = Cluster::with(&["presence.max_members=10"]);
    let (mut service, mut alice) = (cluster.service(), cluster.user("alice"));
    service.run("select presence.listen()");
    service.run("select presence.upsert('lobby', member_id => 'm' || n, user_id => 'u', ttl => '1 h') from generate_series(1, 10) n");
    alice.run("select presence.upsert('lobby', '1', ttl => '2 s')");
    alice.run("select presence.upsert('side', '1', ttl => '1 h')");
    assert_eq!(lines(&service.hear()).len(), 12);
    assert_eq!(service.rows("select members, slots_used from presence.health")[0], ["12", "10"]);

    let lease = "select expires_at from presence.get('lobby', 'alice')";
    let before = service.value(lease);
    assert!(alice.is("select presence.heartbeat('lobby')"));
    assert!(service.is(&format!("select expires_at > '{before}' from presence.get('lobby', 'alice')")));
    assert_eq!(
        alice.rows("select * from presence.heartbeat_many('{lobby,side,else}')"),
        [["else", "alice", ""]]
    );
    alice.run("select presence.upsert('lobby', '1')"); // identical
    let failure = alice.fails("begin read only; select presence.heartbeat('lobby')");
    assert_eq!((failure.code.as_str(), failure.hint.is_empty()), ("25006", false));
    alice.run("rollback");
    assert!(!alice.is("begin read only; select presence.heartbeat('else')"), "absent is absent");
    alice.run("commit");
    let mut bob = cluster.user("bob");
    assert!(!bob.is("select presence.heartbeat('lobby', 'alice')"), "another's");
    assert_eq!(bob.fails("select presence.upsert('lobby', member_id => 'alice')").code, "42501");
    assert_eq!(lines(&service.hear()), [""; 0]);
    // A member with the caller's own name that belongs to another user.
    service.run("select presence.upsert('lobby', member_id => 'bob', user_id => 'u')");
    for call in ["upsert('lobby')", "update('lobby', '{}')", "delete('lobby')"] {
        assert_eq!(bob.fails(&format!("select presence.{call}")).code, "42501", "{call}");
    }
    service.run("select presence.delete('lobby', 'bob')");
    assert_eq!(lines(&service.hear()), ["enter bob", "leave bob removed"]);
    alice.run("select presence.update('lobby', '{\"n\": 2}')");
    assert_eq!(lines(&service.hear()), ["update alice"]);

    // It expires like any other member, and immediately for readers.
    let frozen = cluster.freeze_worker();
    until("its time is over", || alice.rows("select 1 from presence.get('lobby')").is_empty());
    assert!(!alice.is("select presence.heartbeat('lobby')"));
    drop(frozen);
    let heard = service.hear_until("an expiry", |event| event.kind() == "leave");
    assert_eq!(lines(&heard), ["leave alice expired"]);
    alice.run("select presence.upsert('lobby', session => true)");
    drop(alice);
    let heard = service.hear_until("a leave", |event| event.kind() == "leave");
    assert_eq!(lines(&heard), ["enter alice", "leave alice disconnected"]);

    // A slot is free: the next heartbeat or the worker assigns it.
    let mut alice = cluster.user("alice");
    service.run("select presence.delete('lobby', 'm1')");
    assert_eq!(lines(&service.hear()), ["leave m1 removed"]);
    alice.run("select presence.heartbeat('side')");
    until("it has a slot", || {
        alice.run("select presence.heartbeat('side')");
        service.is("select slots_used = 10 and members = 10 from presence.health")
    });
    assert!(alice.is("begin read only; select presence.heartbeat('side')"));
    alice.run("commit");
    service.run("delete from presence.member");
    assert_eq!(lines(&service.hear()).len(), 10);
    until("all slots are free", || service.is("select members + slots_used = 0 from presence.health"));
    cluster.assert_sound();
}

/// Nor do they keep the worker busy: it scans the table when one of them is due, not all the time.
#[test]
fn leases_without_a_slot_are_looked_at_when_one_is_due() {
    let cluster = Cluster::with(&["presence.max_members=10", "autovacuum=off"]);
    let mut service = cluster.service();
    service.run("select presence.listen()");
    service.run("select presence.upsert('lobby', member_id => 'm' || n, user_id => 'u' || n, ttl => '1 h') from generate_series(1, 1000) n");
    service.run("select presence.upsert('lobby', member_id => 'late', user_id => 'u', ttl => '10 s')");
    assert_eq!(service.hear().len(), 1_001);
    let mut read = || -> i64 {
        service.number("select sum(idx_tup_read)::bigint from pg_stat_user_indexes where relid = 'presence.member'::regclass")
    };
    until("the worker has looked at them", || {
        let before = read();
        std::thread::sleep(std::time::Duration::from_secs(3));
        read() - before < 1_000
    });
    let heard = service.hear_until("an expiry", |event| event.kind() == "leave");
    assert_eq!(lines(&heard), ["leave late expired"]);
    cluster.assert_sound();
}

#[test]
fn without_preloading_it_says_what_to_do() {
    let cluster = Cluster::bare(&["shared_preload_libraries="]);
    let mut service = cluster.session("postgres", "postgres");
    service.run("load 'presence_ext'");
    let failure = service.fails("create extension presence_ext");
    assert_eq!(failure.code, "55000");
    assert!(failure.hint.contains("shared_preload_libraries"), "{failure:?}");
    assert_eq!(service.number("select count(*) from pg_extension where extname = 'presence_ext'"), 0);

    // The library was preloaded once, but no longer is.
    cluster.restart_with(&["shared_preload_libraries=presence_ext"]);
    cluster.sql("postgres", "create extension presence_ext");
    cluster.sql("postgres", "select presence.upsert('lobby')");
    cluster.restart_with(&["shared_preload_libraries="]);
    let mut service = cluster.session("postgres", "postgres");
    for call in [
        "select presence.upsert('lobby')",
        "select presence.update('lobby')",
        "select presence.heartbeat('lobby')",
        "select presence.heartbeat_many('{lobby}')",
        "select presence.delete('lobby')",
        "select presence.delete_all()",
        "select * from presence.list()",
        "select * from presence.online",
        "select * from presence.health",
        "select presence.listen()",
        "select presence.channels()",
        "select presence.unlisten()",
        "select presence.seq()",
        "select * from presence.changes(0)",
        "select presence.wait_for_flush('1 s')",
        "select presence.sweep()",
        "select presence.worker_pid()",
        "select presence.user_id()",
        "select presence.tokens()",
        "insert into presence.member (room) values ('lobby')",
        "update presence.member set status = 'x'",
        "delete from presence.member",
    ] {
        let failure = service.fails(call);
        assert_eq!(failure.code, "55000", "{call}: {failure:?}");
        assert!(failure.hint.contains("shared_preload_libraries"), "{call}: {failure:?}");
    }
    service.run("drop extension presence_ext");
    cluster.assert_sound();
}

/// The lease of a member without a slot is stored in its row. A stranger's heartbeat does not even lock that
/// row.
#[test]
fn a_strangers_heartbeat_locks_nothing() {
    let cluster = Cluster::with(&["presence.max_members=3"]);
    let (mut alice, mut bob, mut service) = (cluster.user("alice"), cluster.user("bob"), cluster.service());
    service.run("select presence.upsert('full', member_id => 'm' || n, user_id => 'u', ttl => '1 h') from generate_series(1, 3) n");
    for audience in ["'{}'", "'{any}'"] {
        alice.run(&format!("select presence.upsert('hall', audience => {audience})"));
        assert_eq!(service.rows("select slots_used, members from presence.health")[0], ["3", "4"]);
        let mut stranger = |beat: &str| {
            bob.run(&format!("begin; {beat}"));
            alice.run("set lock_timeout = '5 s'; select presence.heartbeat('hall'); select presence.upsert('hall', '1'); \
                       select presence.delete('hall'); select presence.upsert('hall', '2')");
            bob.run("rollback");
        };
        stranger("select presence.heartbeat('hall', 'alice')");
        stranger("select presence.heartbeat_many('{hall,hall}', '{alice,bob}')");
        assert!(!bob.is("begin read only; select presence.heartbeat('hall', 'alice')"));
        bob.run("rollback");
        // Users can renew their own leases, and a service role can renew anybody's.
        let lease = "select expires_at from presence.get('hall', 'alice')";
        for session in [&mut alice, &mut service] {
            let before = session.value(lease);
            assert!(session.is("select presence.heartbeat('hall', 'alice')"));
            assert_ne!(session.value(lease), before);
        }
        alice.run("select presence.delete_all()");
    }
    cluster.assert_sound();
}

/// Two users who take one seat each in a room of two are never refused, however they come and go; and many
/// users competing for few seats never get more than these.
#[test]
fn seats_are_exact() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    service
        .run("select presence.set_room('two', max_members => 2), presence.set_room('few', max_members => 3)");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pair: Vec<_> = ["alice", "bob"]
            .map(|user| {
                let cluster = &cluster;
                scope.spawn(move || {
                    let mut session = cluster.user(user);
                    for _ in 0..1_500 {
                        session.run("select presence.upsert('two')");
                        session.run("select presence.delete('two')");
                    }
                })
            })
            .into();
        for n in 0..4 {
            let (cluster, done) = (&cluster, &done);
            scope.spawn(move || {
                let mut session = cluster.user("carol");
                let enter = format!("select presence.upsert('few', connection_id => '{n}' || i) from generate_series(1, 2) i");
                for turn in 0.. {
                    if done.load(Relaxed) {
                        return;
                    }
                    let failure = match turn % 4 {
                        0 => session.try_run(&format!("begin; savepoint a; {enter}; rollback to a; {enter}; commit")),
                        1 => session.try_run(&format!("begin; {enter}; rollback")),
                        2 => session.try_run(&format!("{enter}; select presence.delete('few', connection_id => '{n}1')")),
                        _ => session.try_run(&format!("begin; {enter}; delete from presence.member where connection_id like '{n}_'; {enter}; commit")),
                    };
                    if let Err(failure) = failure {
                        assert_eq!(failure.code, "54000", "{failure:?}");
                        session.run("rollback");
                    }
                    session.run(&format!("delete from presence.member where connection_id like '{n}_'"));
                }
            });
        }
        let _over = Over::tell(&done);
        while pair.iter().any(|thread| !thread.is_finished()) {
            assert!(service.number("select count(*) from presence.list('few')") <= 3);
            assert!(service.number("select count(*) from presence.list('two')") <= 2);
        }
        pair.into_iter().for_each(|thread| thread.join().expect("never refused"));
    });
    // All seats have been released.
    let mut alice = cluster.user("alice");
    alice.run("select presence.upsert('few', connection_id => i::text) from generate_series(1, 3) i");
    assert_eq!(alice.fails("select presence.upsert('few', connection_id => '4')").code, "54000");
    cluster.assert_sound();
}

/// The internal locks cannot be taken by other users, and expired members occupy no seat.
#[test]
fn a_limit_keeps_nobody_out_who_fits() {
    let cluster = Cluster::with_clock(&[]);
    let (mut alice, mut bob, mut service) = (cluster.user("alice"), cluster.user("bob"), cluster.service());
    service.run("select presence.set_room('board', max_members => 2)");
    alice.run("begin; select presence.upsert('board')");
    let locks = "select count(*) from pg_locks where locktype = 'advisory' and objsubid in (1, 2)";
    assert_eq!(service.number(locks), 0);
    bob.run("set lock_timeout = '1 s'; select presence.upsert('board')");
    assert_eq!(bob.fails("select presence.upsert('board', connection_id => 'x')").code, "54000");
    alice.run("commit");

    // A session that ends within a transaction releases its seat.
    service.run("select presence.set_room('other', max_members => 1)");
    alice.run("begin; select presence.upsert('other')");
    assert_eq!(bob.fails("select presence.upsert('other')").code, "54000");
    drop(alice);
    until("the seat is free", || bob.try_run("select presence.upsert('other')").is_ok());

    // Members that have expired but are not yet swept do not count, neither per room nor per user.
    let frozen = cluster.freeze_worker();
    cluster.clock().pass(millis(3_600_000));
    let mut carol = cluster.session("carol", "app");
    carol.run("select presence.upsert('board', connection_id => n::text) from generate_series(1, 2) n");
    assert_eq!(carol.fails("select presence.upsert('board')").code, "54000");
    service.run("alter role carol set presence.max_per_user = 3");
    let mut carol = cluster.session("carol", "app");
    carol.run("select presence.upsert('side')");
    assert_eq!(carol.fails("select presence.upsert('more')").code, "54000");
    cluster.clock().pass(millis(3_600_000));
    carol.run("select presence.upsert('more', connection_id => n::text) from generate_series(1, 3) n");
    assert_eq!(carol.fails("select presence.upsert('more')").code, "54000");
    drop(frozen);

    // One call for several rooms takes effect completely or not at all.
    service.run("select presence.delete_all('bob'), presence.delete_all('carol')");
    let many = |rooms: [&str; 3]| {
        let list = rooms
            .iter()
            .enumerate()
            .map(|(n, room)| format!(r#"{{"room": "{room}", "connection_id": "{n}"}}"#));
        format!("select presence.upsert_many('[{}]')", list.collect::<Vec<_>>().join(","))
    };
    assert_eq!(bob.fails(&many(["board", "other", "other"])).code, "54000");
    bob.run(&many(["board", "other", "board"]));
    assert_eq!(service.number("select count(*) from presence.online"), 3);
    cluster.assert_sound();
}

/// More seats than shared memory has room for: users who want the same seat then take turns without waiting,
/// and the limits still hold.
#[test]
fn more_seats_than_there_is_room_for() {
    let cluster = Cluster::with(&["max_locks_per_transaction=256"]);
    let (mut alice, mut bob, mut service) = (cluster.user("alice"), cluster.user("bob"), cluster.service());
    service.run("insert into presence.room (room, max_members) select 'room ' || n, 1 from generate_series(1, 17000) n");
    bob.run("begin; select presence.upsert('room 17000')");
    service.run(
        "begin; select presence.upsert_many((select jsonb_agg(jsonb_build_object('room', 'room ' || n))
                 from generate_series(1, 16999) n))",
    );
    for room in [1, 16_999, 17_000] {
        assert_eq!(alice.fails(&format!("select presence.upsert('room {room}')")).code, "54000", "{room}");
    }
    alice.run("select presence.upsert('unlimited')");
    service.run("rollback");
    bob.run("rollback");
    for room in [1, 16_999, 17_000] {
        alice.run(&format!("select presence.upsert('room {room}')"));
        assert_eq!(bob.fails(&format!("select presence.upsert('room {room}')")).code, "54000");
    }
    cluster.assert_sound();
}
