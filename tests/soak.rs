//! Minutes of load during which nothing may grow: no process's memory, no table, and not the number of slots. The first
//! part kills workers, the launcher and sessions; the second leaves them alone and measures. `make soak MINUTES=30`.

#[path = "client/common/mod.rs"]
mod common;

use common::{Cluster, Failure, Mirror, Over, Session, listed, millis, signal, until};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::time::{Duration, Instant};

/// Members that come and go in each room.
const MEMBERS: u64 = 200;

/// What is measured, by name: kilobytes, or slots.
type Sample = BTreeMap<String, u64>;

#[test]
#[ignore = "takes minutes: make soak"]
fn nothing_grows() {
    let minutes: f64 =
        std::env::var("PRESENCE_SOAK").map_or(2.0, |minutes| minutes.parse().expect("minutes"));
    let seconds = |share: f64| Duration::from_secs_f64(60.0 * minutes * share);
    // The log keeps five minutes at least: only a longer run shows that it stops growing.
    let cluster = Cluster::with(&["autovacuum_naptime=5s", "presence.history_retention=0"]);
    let mut service = cluster.service();
    let mut listener = cluster.service();
    listener.run("select presence.listen()");
    let mut mirror = Mirror::of(&mut listener);
    let (done, calls, may_fail) = (AtomicBool::new(false), AtomicU64::new(0), AtomicBool::new(true));
    let pids = Mutex::new(BTreeMap::new());
    let mut samples: Vec<Sample> = Vec::new();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (cluster, done, calls, may_fail, pids) = (&cluster, &done, &calls, &may_fail, &pids);
            scope.spawn(move || load(cluster, thread, done, calls, may_fail, pids));
        }
        let _over = Over::tell(&done);

        let end = Instant::now() + seconds(0.4);
        for turn in 0.. {
            if Instant::now() > end {
                break;
            }
            let victim = match turn % 3 {
                0 => service.value("select presence.worker_pid()"),
                1 => service
                    .value("select pid from pg_stat_activity where backend_type = 'presence_ext launcher'"),
                _ => pids.lock().expect("pids").values().next().map_or(String::new(), i64::to_string),
            };
            if let Ok(pid) = victim.parse() {
                signal("TERM", pid);
            }
            cluster.until_worker("app");
            mirror.follow(&mut listener);
            std::thread::sleep(seconds(0.4).min(millis(3_000)));
        }

        may_fail.store(false, SeqCst);
        let end = Instant::now() + seconds(0.6);
        while Instant::now() < end {
            mirror.follow(&mut listener);
            let pids = pids.lock().expect("pids").clone();
            samples.push(sample(&mut service, &pids));
            std::thread::sleep(seconds(0.6 / 60.0));
        }
    });
    // Otherwise they expire between what is heard and what is listed.
    until("the short ones are gone", || {
        service.is("select count(*) = 0 from presence.member where connection_id = 'short'")
    });
    // Leases keep ending: a member whose lease has just ended is no longer listed, but its leave has not been heard yet.
    until("the listener holds what is listed", || {
        mirror.follow(&mut listener);
        mirror.members() == &listed(&mut listener)
    });
    println!("{} calls; first {:?}, last {:?}", calls.load(Relaxed), samples[0], samples[samples.len() - 1]);
    assert!(calls.load(Relaxed) as f64 > 60.0 * minutes, "that was no load");
    let growing = growing(&samples);
    assert!(growing.is_empty(), "{growing:#?}");

    // Everything is freed afterwards.
    service.run("delete from presence.member");
    service.flush();
    let deadline = Instant::now() + Duration::from_secs(150);
    while service.number("select slots_used from presence.health") > 0 {
        assert!(Instant::now() < deadline, "{}", service.value("select to_jsonb(h) from presence.health h"));
        std::thread::sleep(millis(500));
    }
    until("there is room in the buffer", || {
        service.is("select events_buffered_bytes = 0 from presence.health")
    });
    assert_eq!(service.rows("select events_dropped, resyncs from presence.health")[0], ["0", "0"]);
    cluster.assert_sound();
}

/// What was larger in the last quarter than in the second, by more than chance and the cycles of vacuum explain.
fn growing(samples: &[Sample]) -> Vec<String> {
    let quarter = samples.len() / 4;
    let most = |samples: &[Sample], name: &str| samples.iter().filter_map(|s| s.get(name)).max().copied();
    let mut found = Vec::new();
    for name in samples[0].keys() {
        // The log needs more than five minutes for a full cycle.
        let enough = !name.contains("_event_") || quarter * 4 >= 60 && long_enough();
        let (Some(before), Some(after)) =
            (most(&samples[quarter..2 * quarter], name), most(&samples[3 * quarter..], name))
        else {
            continue;
        };
        if enough && after > before + before / 4 + 2_048 {
            found.push(format!("{name}: {before} in the second quarter, {after} in the last"));
        }
    }
    found
}

fn long_enough() -> bool {
    std::env::var("PRESENCE_SOAK")
        .is_ok_and(|minutes| minutes.parse().is_ok_and(|minutes: f64| minutes >= 60.0))
}

fn sample(service: &mut Session, pids: &BTreeMap<u64, i64>) -> Sample {
    let mut sample = Sample::new();
    let sizes = "select c.relname, pg_total_relation_size(c.oid) / 1024 from pg_class c
                 where c.relnamespace in ('presence'::regnamespace, '_presence'::regnamespace) and c.relkind = 'r'";
    for row in service.rows(sizes) {
        sample.insert(format!("table {}", row[0]), row[1].parse().expect("kilobytes"));
    }
    let processes = "select backend_type, pid from pg_stat_activity where backend_type like 'presence_ext%'";
    for row in service.rows(processes) {
        sample.insert(row[0].clone(), private_memory(row[1].parse().expect("a pid")));
    }
    for (thread, pid) in pids {
        sample.insert(format!("session {thread}"), private_memory(*pid));
    }
    sample.insert("slots".into(), service.number("select slots_used from presence.health") as u64);
    sample
}

/// The kilobytes of private memory of a process.
fn private_memory(pid: i64) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// A session that makes all kinds of calls, a few hundred per second. If it is killed, it reconnects.
fn load(
    cluster: &Cluster,
    thread: u64,
    done: &AtomicBool,
    calls: &AtomicU64,
    may_fail: &AtomicBool,
    pids: &Mutex<BTreeMap<u64, i64>>,
) {
    let mut random = thread + 1;
    while !done.load(Relaxed) {
        let Some(mut session) = cluster.try_session("postgres", "app") else { continue };
        pids.lock().expect("pids").insert(thread, session.pid());
        while !done.load(Relaxed) {
            for _ in 0..3 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
            }
            if let Err(failure) = call(&mut session, random, thread) {
                assert!(may_fail.load(SeqCst), "{failure:?}");
                break;
            }
            calls.fetch_add(1, Relaxed);
            std::thread::sleep(millis(2));
        }
    }
}

fn call(session: &mut Session, random: u64, thread: u64) -> Result<(), Failure> {
    let member = format!("m{}", random / 16 % MEMBERS);
    let key = format!("'room {thread}', member_id => '{member}'");
    let state =
        format!("jsonb_build_object('n', {}, 'text', repeat('x', {}))", random % 1_000_000, random % 300);
    let sql = match random % 16 {
        0..6 => format!("select presence.upsert({key}, user_id => '{member}', state => {state})"),
        // Always with the same ttl, because a change of ttl alone is a new version without an event.
        6 => format!(
            "select presence.upsert({key}, user_id => '{member}', connection_id => 'short', ttl => '1 s')"
        ),
        7 => format!("select presence.upsert({key}, user_id => '{member}', connection_id => 'c{}')", random % 97),
        8..11 => format!("select presence.heartbeat({key})"),
        11 => format!("select presence.update({key}, patch => {state})"),
        12 => format!("select presence.delete({key}, connection_id => null)"),
        13 => format!(
            "begin; select presence.upsert({key}, user_id => '{member}'); savepoint s; select presence.delete({key});
             rollback to s; commit"
        ),
        14 => format!("begin; select presence.upsert({key}, user_id => '{member}', state => {state}); rollback"),
        _ => format!("select count(*) from presence.list('room {thread}', 100), presence.occupancy()"),
    };
    session.try_run(&sql)
}
