//! Random steps of all connections concurrently, while time passes. In the end the table, the leases, the log and every
//! listener agree.

use crate::common::{Cluster, Over, Session, attempt};
use crate::follower::Follower;
use crate::mallory::Mallory;
use crate::op::{self, CONNECTIONS, Op, SERVICE, USERS};
use crate::{random, sql, world};
use proptest::strategy::{Strategy, ValueTree};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Insufficient privilege, unique violation, deadlock, lock not available, a timeout because the clock was moved, and
/// steps that make no sense in the state of the transaction.
const EXPECTED: [&str; 8] = ["42501", "23505", "40P01", "55P03", "57014", "25P02", "25P01", "3B001"];

pub fn run(time: Duration, seed: u64) {
    println!("PRESENCE_SEED={seed}");
    let cluster = world::cluster(&["deadlock_timeout=50ms", "lock_timeout=1s"]);
    let rooms = ["a".to_owned(), "b".to_owned()];
    let mut followers: Vec<Follower> =
        world::followers(&cluster).into_iter().map(Follower::patient).collect();
    followers.iter_mut().for_each(|follower| follower.start());
    let (done, changes) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut mallory = Mallory::start(&cluster, |number| random(seed, CONNECTIONS.len() + number));
    let end = Instant::now() + time;
    // The sessions stay open until everything is compared, because members may be bound to them.
    let sessions: Vec<Session> = std::thread::scope(|scope| {
        let _over = Over::tell(&done);
        let (cluster, rooms, done, changes) = (&cluster, &rooms, &done, &changes);
        let threads: Vec<_> = (0..CONNECTIONS.len())
            .map(|at| {
                scope.spawn(move || {
                    let user = CONNECTIONS[at];
                    let mut random = random(seed, at);
                    let mut session = writer(cluster, user);
                    while !done.load(Relaxed) && Instant::now() < end {
                        let op = op::op().new_tree(&mut random).expect("an op").current();
                        match op.rightful(user == SERVICE) {
                            Op::End { .. } => session = writer(cluster, user),
                            Op::Pass => cluster.clock().pass(Duration::from_secs(60)),
                            Op::Sweep { .. } if user == SERVICE => {
                                session.try_run("select presence.sweep()").unwrap_or(())
                            }
                            op => {
                                let sql = sql::statement(rooms, user, &op);
                                match session.try_run(&sql) {
                                    Ok(()) => changes.fetch_add(1, Relaxed),
                                    Err(failure) if EXPECTED.contains(&failure.code.as_str()) => 0,
                                    Err(failure) => panic!("{sql}: {failure:?}"),
                                };
                            }
                        }
                    }
                    session.try_run("commit").unwrap_or(());
                    session
                })
            })
            .collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            followers.iter_mut().for_each(|follower| follower.follow());
        }
        threads.into_iter().map(|thread| thread.join().expect("a client")).collect()
    });
    assert!(changes.load(Relaxed) > 500, "only {} changes", changes.load(Relaxed));

    mallory.end();
    let mut service = cluster.service();
    // Once a minute the worker frees slots that were pinned when their member left.
    cluster.clock().pass(Duration::from_secs(61));
    let rest = attempt(|| {
        service.run("select presence.sweep()");
        service.is("select (select count(*) from presence.member) = (select count(*) from presence.online)
                           and members = slots_used from presence.health")
    });
    assert!(rest, "neither here nor gone: {:?}", service.rows(NEITHER));
    service.flush();
    for follower in &mut followers {
        follower.follow();
        follower.check_against_list().unwrap_or_else(|why| panic!("{why}"));
    }
    let nothing = [[""; 0]; 0];
    let missing = "
        select missing.*
        from (select array_agg(room) as rooms, array_agg(member_id) as member_ids,
                     array_agg(connection_id) as connection_ids from presence.member) k,
             presence.heartbeat_many(k.rooms, k.member_ids, k.connection_ids) missing";
    if service.is("select count(*) > 0 from presence.member") {
        assert_eq!(service.rows(missing), nothing, "listed, and without a lease");
    }
    assert_eq!(service.rows(WRONG_HISTORY), nothing, "the log has what cannot have happened");
    assert_eq!(service.rows(OTHER_THAN_LOGGED), nothing, "the log ends with something else than what is");
    assert!(service.is("select count(*) = count(distinct seq) from presence.event"));
    drop(sessions);
    cluster.assert_sound();
}

/// A session whose deadlocks are detected in time. Once the moved clock has passed the end of a statement_timeout,
/// PostgreSQL waits for the alarm of that timeout, which comes by the real clock, and sets no earlier one.
fn writer(cluster: &Cluster, user: usize) -> Session {
    let mut session = cluster.user(USERS[user]);
    session.run("set statement_timeout = 0");
    session
}

/// Members that are not listed, the open transactions that may hold them, and the counts of the leases.
const NEITHER: &str = "
    select to_jsonb(m), (select members || ' of ' || slots_used from presence.health),
           (select jsonb_agg(to_jsonb(a)) from pg_stat_activity a where a.xact_start is not null)
    from (select 1) one left join presence.member m on not exists (select from presence.online o
        where (o.room, o.member_id, o.connection_id) = (m.room, m.member_id, m.connection_id))";

/// Each member enters before it changes or leaves, and leaves once; versions grow.
const WRONG_HISTORY: &str = "
    select * from (
        select seq, version, event, reason, room, member_id, connection_id,
               lag(event) over stays as before, lag(version) over stays as version_before
        from presence.event
        where event in ('enter', 'update', 'leave') and audience[1] is distinct from '-'
        window stays as (partition by room, member_id, connection_id order by seq)) told
    where version <= version_before
       or event = 'enter' and before in ('enter', 'update')
       or event <> 'enter' and coalesce(before, 'leave') = 'leave'";

/// Differences between each member and its last event.
const OTHER_THAN_LOGGED: &str = "
    with last as (
        select distinct on (room, member_id, connection_id) *
        from presence.event
        where event in ('enter', 'update', 'leave') and audience[1] is distinct from '-'
        order by room, member_id, connection_id, seq desc),
    logged as (
        select room, member_id, connection_id, user_id, status, state, metadata from last where event <> 'leave'),
    present as (
        select room, member_id, connection_id, user_id, status, state, metadata from presence.online)
    (table logged except table present) union all (table present except table logged)";
