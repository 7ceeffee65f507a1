//! The worker's memory is bounded, whatever users write, and no event is dropped to achieve that.

use crate::common::{Cluster, Session, lines, memory, millis, peak, until};
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::time::Duration;

fn worker(service: &mut Session) -> i64 {
    service.number("select presence.worker_pid()")
}

fn assert_nothing_lost(service: &mut Session) {
    let row = service.rows("select events_dropped, resyncs from presence.health").remove(0);
    assert_eq!(row, ["0", "0"], "dropped events, resyncs");
}

/// A user who holds the channels of many rooms and names all of them causes 130 notifications per event.
#[test]
fn wide_audiences_that_are_listened_to() {
    let cluster = Cluster::start();
    let (mut service, mut mallory) = (cluster.service(), cluster.user("alice"));
    mallory.run(
        "select presence.upsert_many(jsonb_agg(jsonb_build_object('room', 'x' || i))) from generate_series(1, 64) i",
    );
    service.flush();
    mallory.run("select presence.channels('hall'); select presence.channels()");
    service.run("select presence.listen('hall')");
    let pid = worker(&mut service);
    let before = memory(pid, "VmHWM:");
    // First enter, then change the audience: a leave, an update and an enter.
    for (from, to) in [(1, 64), (65, 128)] {
        mallory.run(&format!(
            "select presence.upsert_many(jsonb_agg(jsonb_build_object('room', 'hall', 'connection_id', i::text,
                 'audience', (select jsonb_agg('room:x' || k) from generate_series({from}, {to}) k),
                 'state', jsonb_build_object('x', repeat('y', 5500))))) from generate_series(1, 300) i"
        ));
        service.flush();
    }
    let grown = memory(pid, "VmHWM:") - before;
    assert!(grown < 100, "the worker has grown by {grown} MB");
    assert_nothing_lost(&mut service);
    let heard = service.heard();
    let enters = heard.iter().filter(|event| event.kind() == "enter").count();
    let updates = heard.iter().filter(|event| event.kind() == "update").count();
    assert_eq!((enters, updates), (300, 300));
    assert!(heard.iter().all(|event| event["state"]["x"].is_string()), "all are told in full");
    assert!(service.is(
        "select max(seq) - min(seq) + 1 = count(*) and count(*) = count(distinct seq) from presence.event"
    ));
    cluster.assert_sound();
}

/// A number stored in a few bytes can have 131,072 digits as text. (Such rows predate the limit or come from
/// another server, so they bypass validation.)
#[test]
fn numbers_with_very_many_digits() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    service.run("select presence.listen(); select presence.upsert('hall', '0')");
    service.flush();
    let pid = worker(&mut service);
    let before = memory(pid, "VmHWM:");
    service.run("set session_replication_role = replica");
    for (number, row) in ["1e131071", "-1e131071", "1e-16383", "0.5e-16000"].iter().zip(1..) {
        service.run(&format!(
            "insert into presence.member (room, member_id, user_id, state, audience, version, generation, joined_at,
                                          updated_at, last_seen_at, expires_at, deadline, key_hash)
             select 'hall', 'm{row}', 'u', (select jsonb_agg({number}::numeric) from generate_series(1, 4000)), '{{any}}',
                    version + {row}, version + {row}, now(), now(), now(), now() + '1 h', 0, gen_random_uuid()
             from presence.member where member_id = 'postgres'"
        ));
    }
    service.run("reset session_replication_role");
    let heard = service.hear();
    assert_eq!(lines(&heard).len(), 5, "{:?}", lines(&heard));
    for event in heard.iter().filter(|event| event.text("member_id").starts_with('m')) {
        assert_eq!(event["truncated"], true);
        assert!(event.fields.get("state").is_none());
    }
    let grown = memory(pid, "VmHWM:") - before;
    assert!(grown < 100, "the worker has grown by {grown} MB");
    assert_nothing_lost(&mut service);
    // Such a number is published in full where it fits.
    service.run("select presence.upsert('hall', '[1e3000, 1e-3000]')");
    let heard = service.hear();
    assert!(heard[0].payload.len() > 6_000 && heard[0].payload.len() < 8_000, "{}", heard[0].payload.len());
    cluster.assert_sound();
}

/// Stored, these members take some kilobytes; as events they would more than fill the buffer.
#[test]
fn large_members_that_expire_together() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    let wide = "(select jsonb_agg('user:' || repeat(chr(8364), 200) || k) from generate_series(1, 60) k)";
    for (half, audience) in [("a", "'[]'"), ("b", "'[]'"), ("c", wide)] {
        service.run(&format!(
            "select presence.upsert_many(jsonb_agg(jsonb_build_object('room', 'hall', 'ttl', '5 s',
                 'connection_id', '{half}' || i, 'state', jsonb_build_object('x', repeat('y', 60000 / {size})),
                 'audience', {audience}::jsonb))) from generate_series(1, 100) i",
            size = if half == "c" { 20 } else { 1 },
        ));
        service.flush();
    }
    let renew = "select count(*) from presence.heartbeat_many(array_fill('hall'::text, array[300]), null,
        (select array_agg(half || i) from unnest('{a,b,c}'::text[]) half, generate_series(1, 100) i))";
    assert_eq!(service.number(renew), 0);
    let pid = worker(&mut service);
    let before = memory(pid, "VmHWM:");
    // Other users keep writing meanwhile.
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (cluster, done) = (&cluster, &done);
        scope.spawn(move || {
            let mut other = cluster.user("alice");
            let mut round = 0;
            while !done.load(Relaxed) {
                other.run(&format!(
                    "select presence.upsert('side', jsonb_build_object('n', {round}, 'x', repeat('z', 20000)))"
                ));
                round += 1;
                std::thread::sleep(millis(2));
            }
        });
        let _over = crate::common::Over::tell(done);
        until("they are gone", || {
            service.number("select count(*) from presence.member where room = 'hall'") == 0
        });
    });
    service.flush();
    let leaves = "select count(*), count(distinct connection_id) from presence.event
                  where room = 'hall' and event = 'leave' and reason = 'expired'";
    assert_eq!(service.rows(leaves), [["300", "300"]]);
    assert_nothing_lost(&mut service);
    let grown = memory(pid, "VmHWM:") - before;
    assert!(grown < 100, "the worker has grown by {grown} MB");
    cluster.assert_sound();
}

/// A ring many times larger than the memory that the worker may use is read piece by piece, in order.
#[test]
fn a_large_ring_that_is_full() {
    let cluster = Cluster::with(&[
        "presence.event_buffer=256MB",
        "presence.worker_memory=16MB",
        "presence.max_per_user=0",
        "presence.notify_delay=0",
    ]);
    let mut service = cluster.service();
    service.run("select presence.listen(); select presence.upsert('hall', '0')");
    service.flush();
    let pid = worker(&mut service);
    let frozen = cluster.freeze_worker();
    for round in 0..3 {
        service.run(&format!(
            "select presence.upsert_many(jsonb_agg(jsonb_build_object('room', 'hall', 'connection_id', i::text,
                 'state', jsonb_build_object('n', {round}, 'x', (select string_agg(md5(k::text || i), '')
                                                                from generate_series(1, 600) k)))))
             from generate_series(1, 1000) i; set statement_timeout = '120 s'"
        ));
    }
    assert!(service.is("select events_buffered_bytes > 50e6 from presence.health"));
    service.run("select count(presence.upsert('small ' || i % 100, connection_id => i::text)) from generate_series(1, 20000) i");
    let before = memory(pid, "RssAnon:");
    let most = peak(pid, || {
        drop(frozen);
        assert!(service.is("select presence.wait_for_flush('60 s')"));
    });
    assert!(most - before < 40, "the worker has grown by {} MB", most - before);
    assert_nothing_lost(&mut service);
    let wrong = "select connection_id from presence.event where room = 'hall' and connection_id <> ''
                 group by 1 having array_agg(event || coalesce(state ->> 'n', '') order by seq)
                                   <> '{enter0,update1,update2}'";
    assert_eq!(service.rows(wrong), [[""; 0]; 0]);
    // Connections are counted by what has been published, not by what is already in the table.
    let wrong =
        "select seq from (select seq, connections, row_number() over (partition by room order by seq) as n
                                  from presence.event where room like 'small %') e where connections <> n";
    assert_eq!(service.rows(wrong), [[""; 0]; 0]);
    cluster.assert_sound();
}

/// Two members who leave at the same time are counted one after the other, even if the worker does not know
/// them yet.
#[test]
fn who_leaves_together_is_counted_in_order() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    service.run(
        "select presence.upsert('hall', connection_id => c, user_id => 'u' || n)
         from generate_series(1, 50) n, unnest('{a,b}'::text[]) c",
    );
    service.flush();
    // A new worker starts without any state.
    service.run("select pg_terminate_backend(presence.worker_pid(), 10000)");
    cluster.until_worker("app");
    let frozen = cluster.freeze_worker();
    std::thread::scope(|scope| {
        for connection in ["a", "b"] {
            let mut session = cluster.service();
            scope.spawn(move || {
                for n in 1..=50 {
                    session.run(&format!("select presence.delete('hall', 'u{n}', '{connection}')"));
                }
            });
        }
    });
    service.run("select presence.upsert('hall', connection_id => 'c', user_id => 'u' || n) from generate_series(1, 25) n");
    std::thread::sleep(Duration::from_millis(10));
    drop(frozen);
    service.flush();
    let counts = "select array_agg(connections order by seq), count(*) from presence.event
                  where seq > (select max(seq) - 125 from presence.event) group by user_id";
    let rows =
        service.rows(&format!("select array_agg, count(*) from ({counts}) c group by 1 order by 2, 1"));
    assert_eq!(rows, [["{1,0}", "25"], ["{1,0,1}", "25"]]);
    cluster.assert_sound();
}
