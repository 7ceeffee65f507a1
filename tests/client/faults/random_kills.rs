//! Workers, clients and whole servers die while clients write: the server always recovers by itself, numbers
//! only grow, nobody leaves twice, surviving clients keep their leases, and the others do not stay behind as
//! ghosts.
//!
//! PRESENCE_SOAK=minutes runs for that long.

use crate::common::{Cluster, Over, Session, attempt, millis, signal, until};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering::*};
use std::time::{Duration, Instant};

const RESIDENTS: usize = 50;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Death {
    Terminated(Victim),
    /// As the kernel does when memory is short: the server reinitializes, and its unlogged tables are empty.
    Killed(Victim),
    Fast,
    Immediate,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    Worker,
    Launcher,
    Client,
}

impl Victim {
    /// A query for the victim's pids.
    fn pids(self) -> &'static str {
        match self {
            Victim::Worker => "select pid from pg_stat_activity where backend_type = 'presence_ext worker'",
            Victim::Launcher => {
                "select pid from pg_stat_activity where backend_type = 'presence_ext launcher'"
            }
            Victim::Client => "select pid from pg_stat_activity where application_name = 'load'",
        }
    }
}

impl Death {
    fn is_crash(self) -> bool {
        matches!(self, Death::Killed(_) | Death::Immediate)
    }
}

#[test]
fn whoever_dies_under_load_the_rest_goes_on() {
    use Victim::*;
    let deaths = [Worker, Launcher, Client].map(Death::Terminated);
    let crashes = [Worker, Launcher, Client].map(Death::Killed);
    under_load(&[&deaths[..], &[Death::Fast], &deaths[..], &crashes[..], &[Death::Immediate]].concat());
}

#[test]
fn twenty_restarts_under_load() {
    let deaths: Vec<Death> =
        (0..20).map(|round| if round % 3 == 2 { Death::Immediate } else { Death::Fast }).collect();
    under_load(&deaths);
}

fn under_load(deaths: &[Death]) {
    let minutes = std::env::var("PRESENCE_SOAK").ok().and_then(|minutes| minutes.parse::<u64>().ok());
    let end = Instant::now() + Duration::from_secs(60 * minutes.unwrap_or(0));
    let cluster = Cluster::with(&["presence.restart_grace=3s", "restart_after_crash=on"]);
    let (done, newest, changes) = (AtomicBool::new(false), AtomicI64::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let _over = Over::tell(&done);
        for thread in 0..3 {
            let load = Load { cluster: &cluster, thread, done: &done, newest: &newest, changes: &changes };
            scope.spawn(move || load.run());
        }
        let mut seq = 0;
        let mut round = 0;
        residents(&mut cluster.service());
        for death in deaths.iter().cycle() {
            if round >= deaths.len() && Instant::now() > end {
                break;
            }
            round += 1;
            let before = changes.load(Relaxed);
            until("the load goes on", || changes.load(Relaxed) > before + 100);
            seq = seq.max(die(&cluster, *death));
            until("the server takes connections", || cluster.try_session("postgres", "app").is_some());
            cluster.until_worker("app");
            let mut service = cluster.service();
            let now = service.number("select presence.seq()");
            assert!(now >= seq, "round {round}, {death:?}: seq went back from {seq} to {now}");
            seq = now;
            if death.is_crash() {
                residents(&mut service);
            }
            let gone = "select count(*) from presence.heartbeat_many(array_fill('home'::text, '{50}'),
                        (select array_agg('resident ' || n) from generate_series(1, 50) n))";
            assert_eq!(service.number(gone), 0, "round {round}, {death:?}: leases were lost");
            assert_history(&mut service, &format!("round {round}, {death:?}"));
        }
    });

    // A member without heartbeats is gone after its ttl or the grace period, and the residents are still
    // present.
    let mut service = cluster.service();
    let stopped = Instant::now();
    let mut left = String::new();
    let gone = attempt(|| {
        left = service.value("select count(*) from presence.member where room <> 'home'");
        left == "0"
    });
    assert!(gone, "{left} ghosts after {:?}", stopped.elapsed());
    assert_eq!(service.number("select count(*) from presence.list('home', 1000)"), RESIDENTS as i64);
    service.flush();
    assert_history(&mut service, "at the end");
    until("no slot leaks", || service.is("select members = 50 and slots_used = 50 from presence.health"));
    let log = cluster.log();
    for bad in ["PANIC", "TRAP:", "panicked", "could not publish"] {
        assert!(!log.contains(bad), "the server's log says {bad}");
    }
}

/// Enters members who stay.
fn residents(service: &mut Session) {
    service.run(
        "select presence.upsert('home', member_id => 'resident ' || n, user_id => 'resident ' || n, ttl => '1 h')
         from generate_series(1, 50) n",
    );
}

/// Causes the failure. Returns the seq from right before it.
fn die(cluster: &Cluster, death: Death) -> i64 {
    let mut service = cluster.service();
    let seq = service.number("select presence.seq()");
    match death {
        Death::Terminated(victim) => {
            let pids = service.rows(victim.pids());
            service.run(&format!("select pg_terminate_backend(pid) from ({}) victims", victim.pids()));
            until("they are gone", || {
                let now = service.rows(victim.pids());
                pids.iter().all(|pid| !now.contains(pid))
            });
        }
        Death::Killed(victim) => {
            until("there is one", || !service.rows(victim.pids()).is_empty());
            let pid = service.rows(victim.pids())[0][0].parse().expect("a pid");
            signal("KILL", pid);
            until("the server starts over", || service.try_run("select 1").is_err());
        }
        Death::Fast | Death::Immediate => {
            cluster.stop(if death == Death::Fast { "fast" } else { "immediate" });
            cluster.start_again();
        }
    }
    seq
}

/// In the log each member enters before it leaves, leaves once, and its versions only grow.
fn assert_history(service: &mut Session, when: &str) {
    let wrong = "
        select * from (
            select seq, version, event, member_id, connection_id,
                   lag(event) over stays as before, lag(version) over stays as version_before
            from presence.event where event in ('enter', 'update', 'leave')
            window stays as (partition by room, member_id, connection_id order by seq)) told
        where version <= version_before
           or event = 'enter' and before in ('enter', 'update')
           or event <> 'enter' and before = 'leave'
           or event = 'leave' and before is null
        limit 5";
    let rows = service.rows(wrong);
    assert!(rows.is_empty(), "{when}: {rows:?}");
}

/// A client that writes, and reconnects when its connection is lost.
struct Load<'a> {
    cluster: &'a Cluster,
    thread: usize,
    done: &'a AtomicBool,
    newest: &'a AtomicI64,
    changes: &'a AtomicUsize,
}

impl Load<'_> {
    fn run(&self) {
        let mut turn = 0;
        while !self.done.load(Relaxed) {
            let Some(mut session) = self.cluster.try_session("postgres", "app") else {
                std::thread::sleep(millis(20));
                continue;
            };
            if session.try_run("set application_name = 'load'").is_err() {
                continue;
            }
            // An interrupted turn may have been committed: repeating it would only renew the lease, so skip
            // it.
            while !self.done.load(Relaxed) && self.turn(&mut session, turn).is_ok() {
                turn += 1;
            }
            turn += 1;
        }
    }

    fn turn(&self, session: &mut Session, turn: usize) -> Result<(), crate::common::Failure> {
        let name = format!("member_id => '{}/{}'", self.thread, turn % 20);
        let bound = turn.is_multiple_of(4);
        let version = self.newest.load(SeqCst);
        let rows = session.try_rows(&format!(
            "select version from presence.upsert('load', to_jsonb({turn}), {name}, user_id => 'u', ttl => '2 s', session => {bound})"
        ))?;
        let given: i64 = rows[0][0].parse().expect("a version");
        assert!(given > version, "version {given} was given after {version}");
        self.newest.fetch_max(given, SeqCst);
        session.try_run(&format!("select presence.heartbeat('load', {name})"))?;
        session
            .try_run(&format!("begin; select presence.update('load', status => '{turn}', {name}); commit"))?;
        if turn.is_multiple_of(3) {
            session.try_run(&format!("select presence.delete('load', {name})"))?;
        }
        self.changes.fetch_add(1, Relaxed);
        Ok(())
    }
}
