//! A clean restart keeps the members; numbers never go back.

use crate::common::{Cluster, Session, lines, millis, until};
use std::time::{Duration, Instant};

#[test]
fn members_survive_a_restart_with_a_grace() {
    let cluster = Cluster::with(&["presence.restart_grace=3s"]);
    let mut alice = cluster.user("alice");
    alice.run("select presence.upsert('lobby', '{\"n\": 1}', ttl => '2 s')");
    alice.run("select presence.upsert('side', ttl => '1 h')");
    let mut bob = cluster.user("bob");
    bob.run("select presence.upsert('lobby', session => true)");
    bob.run("select presence.upsert('side', session => true, ttl => '1 h')");
    let mut service = cluster.service();
    service.flush();
    let (seq, version) = numbers(&mut service);
    let before = "select room, state, joined_at, version from presence.list() where user_id = 'alice'";
    let held = service.rows(before);

    // The downtime is longer than alice's ttl: nobody is evicted because of the server.
    cluster.stop("fast");
    std::thread::sleep(millis(2_100));
    let started = Instant::now();
    cluster.start_again();
    let mut service = cluster.service();
    // This holds from the first query on, with or without a worker.
    assert_eq!(service.rows(before), held);
    assert_eq!(service.rows("select * from presence.online where user_id = 'bob'").len(), 0);
    cluster.until_worker("app");
    let grace =
        "select extract(epoch from expires_at - clock_timestamp()) from presence.get('lobby', 'alice')";
    let grace: f64 = service.value(grace).parse().expect("seconds");
    assert!((0.0..=3.1).contains(&grace), "{grace} s left");

    // Bob's sessions have ended.
    let left =
        format!("select event, member_id, reason from presence.changes({seq}) where event <> 'position'");
    until("bob's leaves are published", || service.rows(&left).len() >= 2);
    assert_eq!(service.rows(&left), [["leave", "bob", "disconnected"], ["leave", "bob", "disconnected"]]);
    service.run("select presence.listen()");

    // Alice returns to one room, but not to the other.
    let mut alice = cluster.user("alice");
    assert!(alice.is("select presence.heartbeat('side')"));
    let heard = service.hear_until("an expiry", |event| event.line() == "leave alice expired");
    assert!(started.elapsed() < Duration::from_millis(3_000 + 1_100 + 500), "{:?}", started.elapsed());
    assert_eq!(heard.iter().filter(|event| event.kind() == "leave").count(), 1);
    assert_eq!(heard.last().expect("it")["room"], "lobby");
    assert_eq!(heard.last().expect("it")["state"]["n"], 1);
    assert!(alice.is("select presence.heartbeat('side')"));

    let row = alice.number("select version from presence.upsert('side', '{\"n\": 2}')");
    assert!(row > version);
    assert!(numbers(&mut service).0 > seq);
    assert_eq!(service.rows("select members, slots_used from presence.health")[0], ["1", "1"]);
    cluster.assert_sound();
}

#[test]
fn what_was_not_published_before_is_published_after() {
    // The first event is published at once, the others wait.
    let cluster = Cluster::with(&["presence.notify_delay=10s"]);
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    alice.run("select presence.upsert('lobby', '0')");
    until("the first is published", || service.number("select count(*) from presence.event") == 1);
    let (mut seq, mut version) = numbers(&mut service);

    for round in 1..=3 {
        alice.run(&format!("select presence.upsert('lobby', '{round}')"));
        alice.run("select presence.upsert('side')");
        alice.run("select presence.delete('side')");
        assert_eq!(service.number("select presence.seq()"), seq);
        cluster.restart();
        cluster.until_worker("app");
        (alice, service) = (cluster.user("alice"), cluster.service());
        service.flush();
        let changes =
            format!("select event, member_id, room, coalesce(state::text, '') from presence.changes({seq})");
        let heard = service.rows(&changes);
        let round = round.to_string();
        assert_eq!(heard.len(), 4, "{heard:?}");
        assert_eq!(heard[0], ["update", "alice", "lobby", &round]);
        assert_eq!(heard[1][..3], ["enter", "alice", "side"]);
        assert_eq!(heard[2][..3], ["leave", "alice", "side"]);
        assert_eq!(heard[3][0], "position");
        let (newer, newer_version) = numbers(&mut service);
        assert!(newer >= seq + 3 && newer_version > version);
        (seq, version) = (newer, newer_version);
        assert_eq!(service.rows("select members, slots_used from presence.health")[0], ["1", "1"]);
    }
    // Clean restarts and crashes, mixed: numbers only increase.
    for mode in ["immediate", "fast", "immediate", "immediate", "fast"] {
        alice.run("select presence.upsert('lobby')");
        service.flush();
        let (newer, newer_version) = numbers(&mut service);
        assert!(newer >= seq && newer_version >= version, "before {mode}");
        cluster.stop(mode);
        cluster.start_again();
        cluster.until_worker("app");
        (alice, service) = (cluster.user("alice"), cluster.service());
        if mode == "immediate" {
            assert!(!alice.is("select presence.heartbeat('lobby')"));
        }
        assert!(service.number("select presence.seq()") >= newer, "after {mode}");
        assert!(
            alice.number("select version from presence.upsert('lobby', to_jsonb(random()))") > newer_version
        );
        service.flush();
        (seq, version) = numbers(&mut service);
        assert!(seq > newer);
        assert!(version < 1 << 53, "JavaScript can count that far");
    }
    cluster.assert_sound();
}

/// A restart with fewer slots than members, and one with the extension disabled for a while.
#[test]
fn a_restart_with_other_settings_keeps_everybody() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    let enter = "select presence.upsert('lobby', member_id => 'm' || n, user_id => 'u', ttl => '1 h')
                 from generate_series(1, 50) n";
    service.run(enter);
    service.flush();
    cluster.restart_with(&[
        "presence.max_members=10",
        "presence.event_buffer=64kB",
        "presence.max_databases=2",
    ]);
    cluster.until_worker("app");
    let mut service = cluster.service();
    assert_eq!(service.number("select count(*) from presence.list('lobby', 1000)"), 50);
    let missing = "select count(*) from presence.heartbeat_many(array_fill('lobby'::text, '{50}'),
                   (select array_agg('m' || n) from generate_series(1, 50) n))";
    assert_eq!(service.number(missing), 0);

    cluster.restart_with(&["shared_preload_libraries="]);
    assert_eq!(cluster.service().fails("select presence.heartbeat('lobby')").code, "55000");
    cluster.restart_with(&["shared_preload_libraries=presence_ext", "presence.max_members=1000"]);
    cluster.until_worker("app");
    let mut service = cluster.service();
    assert_eq!(service.number(missing), 0);
    service.run(enter);
    service.run("select presence.listen()");
    service.run("delete from presence.member");
    assert_eq!(lines(&service.hear()).len(), 50);
    until("all slots are free", || service.is("select members + slots_used = 0 from presence.health"));
    cluster.assert_sound();
}

/// A damaged file neither keeps the server from starting nor resurrects what is gone.
#[test]
fn a_damaged_file_costs_the_exact_deadlines_and_nothing_else() {
    let cluster = Cluster::start();
    cluster.user("alice").run("select presence.upsert('lobby', ttl => '1 h')");
    let [saved, floor] =
        ["saved", "floor"].map(|name| cluster.join("data/pg_stat/presence_ext.").with_extension(name));
    type Damage = fn(Vec<u8>) -> Vec<u8>;
    let damages: [(&str, Damage); 5] = [
        ("empty", |_| Vec::new()),
        ("cut off", |bytes| bytes[..bytes.len() - 1].to_vec()),
        ("one bit", |mut bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            bytes
        }),
        ("ones", |bytes| vec![0xff; bytes.len()]),
        ("longer", |bytes| [bytes, vec![0; 8]].concat()),
    ];
    for (what, damage) in damages {
        let mut service = cluster.service();
        service.flush();
        let (seq, version) = numbers(&mut service);
        drop(service);
        cluster.stop("fast");
        let bytes = std::fs::read(&saved).expect("the saved leases");
        std::fs::write(&saved, damage(bytes)).expect("the damaged file");
        std::fs::write(&floor, [0xff; 8]).expect("the damaged floor");
        cluster.start_again();
        cluster.until_worker("app");
        assert!(cluster.log().contains("cannot read pg_stat/presence_ext.saved"), "{what}");
        assert!(!saved.exists(), "{what}: it is read once");
        let (mut service, mut alice) = (cluster.service(), cluster.user("alice"));
        assert_eq!(service.number("select count(*) from presence.list('lobby')"), 1, "{what}");
        assert!(alice.is("select presence.heartbeat('lobby')"), "{what}");
        alice.run("select presence.upsert('lobby', to_jsonb(random()))");
        service.flush();
        let (newer_seq, newer_version) = numbers(&mut service);
        assert!(newer_seq > seq && newer_version > version, "{what}");
        assert!(newer_seq < 1 << 53 && newer_version < 1 << 53, "{what}");
    }
    cluster.assert_sound();
}

/// The newest seq and version.
fn numbers(service: &mut Session) -> (i64, i64) {
    let rows = service.rows(
        "select presence.seq(), greatest((select max(version) from presence.event),
                                         (select max(version) from presence.member))",
    );
    (rows[0][0].parse().expect("a seq"), rows[0][1].parse().expect("a version"))
}
