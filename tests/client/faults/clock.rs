//! The server's wall clock is stepped. Leases run on another clock: nobody is evicted, nobody stays forever,
//! and versions and seqs only grow.

use crate::common::{Cluster, Session, lines, millis};
use std::time::Instant;

const DAY: i64 = 86_400;
/// Forwards and backwards, by small and large amounts, and back to the original time.
const STEPS: [i64; 8] = [2, -4, 3_600, -2 * DAY, 40 * DAY, -DAY, -37 * DAY - 3_600, 2];

#[test]
fn a_stepped_wall_clock_evicts_nobody_and_keeps_nobody() {
    let cluster = Cluster::with_clock(&[]);
    let (mut alice, mut bob, mut service) = (cluster.user("alice"), cluster.user("bob"), cluster.service());
    service.run("select presence.listen()");
    alice.run("select presence.upsert('lobby', ttl => '60 s')");
    bob.run("select presence.upsert('lobby', session => true)");
    service.run(
        "select presence.upsert('hall', member_id => 'm' || n, user_id => 'u', ttl => '60 s')
                 from generate_series(1, 100) n",
    );
    service.hear();
    let (mut seq, mut version) = numbers(&mut service);

    for (round, step) in STEPS.into_iter().enumerate() {
        cluster.clock().step_wall(step);
        // All members are still present according to the new clock.
        assert_eq!(service.number("select members from presence.occupancy()"), 102, "{step} s");
        let dressed = "select count(*) from presence.online
                       where ttl is not null and not (last_seen_at <= clock_timestamp()
                             and expires_at between clock_timestamp() and clock_timestamp() + interval '60 s'
                             and expires_at - last_seen_at = ttl)";
        assert_eq!(service.number(dressed), 0, "{step} s");
        assert!(alice.is("select presence.heartbeat('lobby')"), "{step} s");
        // Changes are published, and the numbers grow.
        let changed = alice.number(&format!("select version from presence.upsert('lobby', '{round}')"));
        assert!(changed > version, "{step} s");
        assert_eq!(lines(&service.hear()), ["update alice"], "{step} s");
        let (newer, newest) = numbers(&mut service);
        assert!(newer > seq && newest >= changed, "{step} s");
        version = newest;

        // Without heartbeats a member leaves at its deadline, although the clock is stepped in between.
        alice.run("select presence.upsert('side', ttl => '1 s')");
        let began = Instant::now();
        cluster.clock().step_wall(-step);
        assert!(alice.is("select count(*) = 1 from presence.get('side')"), "{step} s");
        cluster.clock().step_wall(step);
        let heard = service.hear_until("a leave", |event| event.kind() == "leave");
        assert_eq!(lines(&heard), ["enter alice", "leave alice expired"], "{step} s");
        assert!(began.elapsed() < millis(3_500), "{step} s: {:?}", began.elapsed());
        alice.run("select presence.upsert('side'), presence.delete('side', after => '500 ms')");
        cluster.clock().step_wall(-step);
        assert!(alice.is("select count(*) = 1 from presence.get('side') where expires_at < clock_timestamp() + interval '500 ms'"), "{step} s");
        cluster.clock().step_wall(step);
        let heard = service.hear_until("a leave", |event| event.kind() == "leave");
        assert_eq!(lines(&heard), ["enter alice", "leave alice left"], "{step} s");
        assert!(
            service.is(&format!(
                "select clock_timestamp() - '{}'::timestamptz between '0' and '3 s'",
                heard.last().expect("it").text("at")
            )),
            "{step} s"
        );
        seq = heard.last().expect("it").seq();
    }
    cluster.assert_sound();
}

#[test]
fn restarts_with_another_wall_clock_keep_everybody() {
    let cluster = Cluster::with_clock(&["presence.restart_grace=5s"]);
    cluster.user("alice").run("select presence.upsert('lobby', ttl => '1 h')");
    let mut service = cluster.service();
    service.flush();
    let (mut seq, mut version) = numbers(&mut service);
    for (step, mode) in
        [(DAY, "fast"), (-2 * DAY, "fast"), (-DAY, "immediate"), (5 * DAY, "fast"), (-9 * DAY, "immediate")]
    {
        cluster.stop(mode);
        cluster.clock().step_wall(step);
        cluster.start_again();
        cluster.until_worker("app");
        let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
        assert_eq!(alice.is("select presence.heartbeat('lobby')"), mode == "fast", "{mode}, {step} s");
        let changed =
            alice.number(&format!("select version from presence.upsert('lobby', '{step}', ttl => '1 h')"));
        assert!(changed > version, "{mode}, {step} s: version {changed} after {version}");
        service.flush();
        let (newer, newest) = numbers(&mut service);
        assert!(newer > seq, "{mode}, {step} s: seq {newer} after {seq}");
        assert_eq!(service.number("select count(*) from presence.list('lobby')"), 1, "{mode}, {step} s");
        (seq, version) = (newer, newest);
    }
    cluster.assert_sound();
}

/// What an old snapshot shows stays the same, whatever the clock is set to.
#[test]
fn an_old_snapshot_keeps_its_members() {
    let cluster = Cluster::with_clock(&[]);
    let (mut alice, mut bob) = (cluster.user("alice"), cluster.user("bob"));
    bob.run("select presence.upsert('lobby')");
    for step in STEPS {
        alice.run("select presence.upsert('lobby', '0')");
        bob.run("begin isolation level repeatable read");
        let seen = "select state from presence.get('lobby', 'alice')";
        assert_eq!(bob.value(seen), "0");
        cluster.clock().step_wall(step);
        alice.run("select presence.upsert('lobby', '1')");
        assert_eq!(bob.rows(seen), [["0"]], "{step} s");
        bob.run("commit");
        assert_eq!(bob.rows(seen), [["1"]], "{step} s");
    }
    cluster.assert_sound();
}

/// The newest seq and version.
fn numbers(service: &mut Session) -> (i64, i64) {
    let rows = service.rows("select presence.seq(), (select max(version) from presence.member)");
    (rows[0][0].parse().expect("a seq"), rows[0][1].parse().expect("a version"))
}
