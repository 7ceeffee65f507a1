//! The server and its clients: each step is run on a real connection and in the model, and the answers are compared.

use crate::check::unwritten;
use crate::common::{Cluster, Session, attempt, until};
use crate::follower::Follower;
use crate::mallory::{self, Mallory};
use crate::model::{Answer, Key, Model, Row, Seen, all_connections};
use crate::op::{CONNECTION_IDS, CONNECTIONS, Op, SERVICE, Step, USERS};
use crate::sql;
use std::collections::BTreeMap;
use std::time::Duration;

pub type Check = Result<(), String>;

const ROLES: &str = "
    create role red;
    create role dana login;
    create role rita login in role red;
    create role authenticator login noinherit;
    create role authenticated;
    grant authenticated to authenticator;
    select presence.grant_access('dana'), presence.grant_access('rita'), presence.grant_access('authenticated')";

/// A server whose clock the test moves.
pub fn cluster(options: &[&str]) -> Cluster {
    let always = [
        "presence.default_ttl=1h",
        "presence.history_retention=30d",
        "lock_timeout=5s",
        "max_prepared_transactions=5",
    ];
    let cluster = Cluster::with_clock(&[&always[..], options].concat());
    cluster.sql("app", ROLES);
    cluster
}

pub struct World {
    mallory: Mallory,
    cluster: Cluster,
    pub connections: Vec<Session>,
    pids: Vec<i64>,
    pub watcher: Session,
    pub followers: Vec<Follower>,
    cases: usize,
    /// No update is conflated: the log contains all of them.
    pub exact: bool,
}

impl World {
    pub fn new(options: &[&str], seed: u64) -> World {
        let cluster = cluster(options);
        let mut connections: Vec<Session> =
            CONNECTIONS.iter().map(|user| cluster.user(USERS[*user])).collect();
        World {
            pids: connections.iter_mut().map(Session::pid).collect(),
            connections,
            watcher: cluster.service(),
            followers: followers(&cluster),
            mallory: Mallory::start(&cluster, |number| crate::random(seed, number)),
            cases: 0,
            exact: options.contains(&"presence.notify_delay=0"),
            cluster,
        }
    }

    /// Runs a case from an empty start to the final comparison.
    pub fn run(&mut self, steps: &[Step]) -> Check {
        self.cases += 1;
        self.reset();
        let rooms = [format!("{}a", self.cases), format!("{}b", self.cases)];
        let mut case = Case {
            model: Model::new(rooms.clone()),
            version: BTreeMap::new(),
            seq: self.watcher.number("select presence.seq()"),
            rooms,
            world: self,
        };
        for (number, (at, op)) in steps.iter().enumerate() {
            case.step(*at, op).map_err(|why| format!("step {number}, connection {at}, {op:?}: {why}"))?;
        }
        for at in 0..CONNECTIONS.len() {
            case.step(at, if at % 2 == 0 { &Op::Commit } else { &Op::Rollback })?;
        }
        case.settle().map_err(|why| format!("at the end: {why}"))?;
        case.check_log()
    }

    fn reset(&mut self) {
        for at in 0..CONNECTIONS.len() {
            if self.connections[at].try_run("rollback").is_err() {
                self.connect(at);
            }
        }
        self.watcher.run(&format!("delete from presence.member where user_id <> '{}'", mallory::NAME));
        self.watcher.run("select presence.sweep()");
        self.watcher.flush();
        self.followers.iter_mut().for_each(Follower::start);
    }

    fn connect(&mut self, at: usize) {
        self.connections[at] = self.cluster.user(USERS[CONNECTIONS[at]]);
        self.pids[at] = self.connections[at].pid();
    }

    pub fn assert_sound(&mut self) {
        self.mallory.end();
        self.cluster.assert_sound();
        self.cluster.assert_way();
    }
}

pub struct Case<'a> {
    pub world: &'a mut World,
    pub model: Model,
    pub rooms: [String; 2],
    /// The newest version seen of each member.
    pub version: BTreeMap<Key, i64>,
    pub seq: i64,
}

impl Case<'_> {
    fn step(&mut self, at: usize, op: &Op) -> Check {
        if self.model.has_failed(at)
            && !matches!(op, Op::Commit | Op::Rollback | Op::RollbackTo | Op::End { .. } | Op::Pass)
        {
            return Ok(());
        }
        self.act(at, op)?;
        self.check_view(at)
    }

    fn act(&mut self, at: usize, op: &Op) -> Check {
        let op = op.rightful(CONNECTIONS[at] == SERVICE);
        if !self.is_possible(at, &op) {
            return Ok(());
        }
        let Case { world, model, rooms, .. } = self;
        let World { cluster, connections, watcher, .. } = &mut **world;
        // The wall clock by which leases are shown may be half a millisecond off.
        let from = cluster.clock().wall() - 2_000;
        let sql = sql::statement(rooms, CONNECTIONS[at], &op);
        let got = if sql.is_empty() { Ok(vec![]) } else { ask(&mut connections[at], &sql) };
        let seen = Seen { from, until: cluster.clock().wall() + 2_000 };
        let number = |rows: &Vec<Vec<String>>| rows[0][0].parse().unwrap_or(usize::MAX);
        match &op {
            Op::Begin => model.begin(at),
            Op::Commit => model.commit(at, seen),
            Op::Rollback => model.rollback(at, seen.until),
            Op::Savepoint => model.savepoint(at),
            Op::RollbackTo => model.rollback_to(at),
            Op::Release => model.release(at),
            Op::Upsert(name, given) => compare(&got, |_| (), model.upsert(at, name, given, seen))?,
            Op::Update(name, given) => {
                compare(&got, |rows| !rows.is_empty(), model.update(at, name, given, seen))?
            }
            Op::Heartbeat(name) => {
                let key = model.key(at, name, None);
                compare(&got, |rows| rows[0][0] == "t", Ok(model.heartbeat(at, &key, seen)))?;
            }
            Op::HeartbeatMany(names) => {
                let mut missing: Vec<Key> = names.iter().map(|name| model.key(at, name, None)).collect();
                missing.retain(|key| !model.heartbeat(at, key, seen));
                let named =
                    |key: &Key| vec![rooms[key.0].clone(), USERS[key.1].into(), CONNECTION_IDS[key.2].into()];
                compare(&got, Vec::clone, Ok(missing.iter().map(named).collect()))?;
            }
            Op::Delete(removal) => compare(&got, number, model.delete(at, removal, seen))?,
            Op::DeleteAll { connection } => {
                compare(&got, number, Ok(model.delete_all(at, *connection, seen)))?
            }
            Op::UpsertMany(list) => compare(&got, number, model.upsert_many(at, list, seen))?,
            Op::UpdateMany(list) => compare(&got, number, model.update_many(at, list, seen))?,
            Op::DeleteMany(list) => compare(&got, number, model.delete_many(at, list, seen))?,
            Op::Insert(name, given) => compare(&got, |_| (), model.insert(at, name, given, seen))?,
            Op::Change { room, status, audience } => {
                compare(&got, Vec::len, Ok(model.change(at, *room, *status, *audience, seen)))?;
            }
            Op::Remove { room } => compare(&got, Vec::len, Ok(model.remove(at, *room, seen)))?,
            Op::End { kill } => {
                let pid = world.pids[at];
                if *kill {
                    world.watcher.run(&format!("select pg_terminate_backend({pid})"));
                }
                world.connect(at);
                let gone = format!("select count(*) = 0 from pg_stat_activity where pid = {pid}");
                until("the session is over", || world.watcher.is(&gone));
                model.end(at, world.cluster.clock().wall());
            }
            Op::Pass => {
                cluster.clock().pass(Duration::from_secs(40 * 60));
                model.pass(cluster.clock().wall());
                // Wait for the reverts to be written, so that the next step is a change of its own.
                if !attempt(|| unwritten(watcher, rooms).is_subset(&model.unsure)) {
                    return Err("what has reverted is not written".into());
                }
            }
            Op::Sweep { rollback } => {
                let end = if *rollback { "rollback" } else { "commit" };
                watcher.run(&format!("begin; select presence.sweep(); {end}"));
            }
            Op::Settle => self.settle()?,
        }
        self.note_locks(at, &op);
        Ok(())
    }

    /// Notes members that a transaction has looked for in vain and may have locked.
    fn note_locks(&mut self, at: usize, op: &Op) {
        let model = &mut self.model;
        if !model.is_in_transaction(at) || model.has_failed(at) {
            return;
        }
        let keys: Vec<Key> = match op {
            Op::Update(name, _) => vec![model.key(at, name, None)],
            Op::UpdateMany(list) => list.iter().map(|(name, _)| model.key(at, name, None)).collect(),
            Op::Delete(removal) => all_connections(&model.key(at, &removal.name, None)),
            Op::DeleteMany(list) => list.iter().map(|removal| model.key(at, &removal.name, None)).collect(),
            Op::DeleteAll { .. } => model.stale.iter().copied().collect(),
            Op::Change { room, .. } | Op::Remove { room } => {
                model.stale.iter().filter(|key| key.0 == *room).copied().collect()
            }
            _ => vec![],
        };
        model.may_have_locked(at, &keys);
    }

    /// Whether the step makes sense here, and would not have to wait for another connection.
    fn is_possible(&self, at: usize, op: &Op) -> bool {
        let (model, who) = (&self.model, CONNECTIONS[at]);
        let (open, savepoints) = (model.is_in_transaction(at), model.savepoints(at));
        let own = |row: &Row| who == SERVICE || row.owner == who;
        match op {
            Op::Begin => !open,
            Op::Commit | Op::Rollback => open,
            Op::Savepoint => open && savepoints < 3,
            Op::RollbackTo | Op::Release => savepoints > 0,
            Op::Heartbeat(name) => model.is_sure(&[model.key(at, name, None)]),
            Op::HeartbeatMany(names) => names.iter().all(|name| model.is_sure(&[model.key(at, name, None)])),
            Op::Upsert(name, given) => model.is_free(at, &[model.key(at, name, given.owner)]),
            Op::Update(name, _) | Op::Insert(name, _) => model.is_free(at, &[model.key(at, name, None)]),
            Op::UpsertMany(list) => {
                list.iter().all(|(name, given)| model.is_free(at, &[model.key(at, name, given.owner)]))
            }
            Op::UpdateMany(list) => {
                list.iter().all(|(name, _)| model.is_free(at, &[model.key(at, name, None)]))
            }
            Op::Delete(removal) if removal.all_connections => {
                model.is_free(at, &all_connections(&model.key(at, &removal.name, None)))
            }
            Op::Delete(removal) => model.is_free(at, &[model.key(at, &removal.name, None)]),
            Op::DeleteMany(list) => {
                list.iter().all(|removal| model.is_free(at, &[model.key(at, &removal.name, None)]))
            }
            Op::DeleteAll { connection } => {
                let is_wanted = |key: &Key| connection.is_none_or(|connection| connection == key.2);
                model.unsure.is_empty()
                    && model.is_free(at, &model.keys_where(|key, row| row.owner == who && is_wanted(key)))
            }
            Op::Change { room, .. } | Op::Remove { room } => {
                !model.unsure.iter().any(|key| key.0 == *room)
                    && model.is_free(at, &model.keys_where(|key, row| key.0 == *room && own(row)))
            }
            Op::End { .. } | Op::Pass | Op::Sweep { .. } | Op::Settle => true,
        }
    }
}

/// Listeners of all kinds: members, a service role, a stranger, one with a role, one with a team.
pub fn followers(cluster: &Cluster) -> Vec<Follower> {
    let team = r#"{"sub": "u1", "app_metadata": {"teams": ["blue"]}}"#;
    vec![
        Follower::login(cluster, "alice", &["any", "users", "user:alice"]),
        Follower::login(cluster, "bob", &["any", "users", "user:bob"]),
        Follower::login(cluster, "carol", &["any", "users", "user:carol"]),
        Follower::login(cluster, "postgres", &[]),
        Follower::login(cluster, "dana", &["any", "users"]),
        Follower::login(cluster, "rita", &["any", "users", "role:red"]),
        Follower::web(cluster, "teammate", team, &["any", "users", "team:blue"]),
    ]
}

/// Rows, or the SQLSTATE.
fn ask(session: &mut Session, sql: &str) -> Result<Vec<Vec<String>>, String> {
    session.try_rows(sql).map_err(|failure| failure.code)
}

fn compare<T: PartialEq + std::fmt::Debug>(
    got: &Result<Vec<Vec<String>>, String>,
    read: impl FnOnce(&Vec<Vec<String>>) -> T,
    expected: Answer<T>,
) -> Check {
    let (got, expected) = (got.as_ref().map(read), expected);
    let same = match (&got, &expected) {
        (Ok(got), Ok(expected)) => got == expected,
        (Err(got), Err(expected)) => got == expected,
        _ => false,
    };
    if same { Ok(()) } else { Err(format!("answered {got:?}, not {expected:?}")) }
}
