//! The server and its clients: each step is taken on a real connection and by the model, and what they say compared.

use crate::common::{Cluster, Session, until};
use crate::follower::Follower;
use crate::model::{Answer, Key, Model, Seen, all_connections};
use crate::op::{CONNECTION_IDS, CONNECTIONS, Given, Name, Op, Removal, SERVICE, Step, USERS};
use crate::sql::{delete, delete_json, json_text, key, text, tokens, upsert, upsert_json};
use crate::values;
use serde_json::{Value, json};
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

pub struct World {
    cluster: Cluster,
    pub connections: Vec<Session>,
    pids: Vec<i64>,
    pub watcher: Session,
    pub followers: Vec<Follower>,
    cases: usize,
    /// No update is conflated: the log has all.
    pub exact: bool,
}

impl World {
    pub fn new(options: &[&str]) -> World {
        // Much time passes in a case.
        let always = ["presence.default_ttl=1h", "presence.history_retention=30d"];
        let cluster = Cluster::with_clock(&[&always[..], options].concat());
        cluster.sql("app", ROLES);
        let team = r#"{"sub": "u1", "app_metadata": {"teams": ["blue"]}}"#;
        let followers = vec![
            Follower::login(&cluster, "alice", &["any", "users", "user:alice"]),
            Follower::login(&cluster, "bob", &["any", "users", "user:bob"]),
            Follower::login(&cluster, "carol", &["any", "users", "user:carol"]),
            Follower::login(&cluster, "postgres", &[]),
            Follower::login(&cluster, "dana", &["any", "users"]),
            Follower::login(&cluster, "rita", &["any", "users", "role:red"]),
            Follower::web(&cluster, "teammate", team, &["any", "users", "team:blue"]),
        ];
        let mut connections: Vec<Session> =
            CONNECTIONS.iter().map(|user| cluster.user(USERS[*user])).collect();
        World {
            pids: connections.iter_mut().map(Session::pid).collect(),
            connections,
            watcher: cluster.service(),
            followers,
            cases: 0,
            exact: options.contains(&"presence.notify_delay=0"),
            cluster,
        }
    }

    /// Run a case from nothing to the comparison of everything.
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
        self.watcher.run("delete from presence.member");
        self.watcher.run("select presence.sweep()");
        self.watcher.flush();
        self.followers.iter_mut().for_each(Follower::start);
    }

    fn connect(&mut self, at: usize) {
        self.connections[at] = self.cluster.user(USERS[CONNECTIONS[at]]);
        self.pids[at] = self.connections[at].pid();
    }

    pub fn assert_sound(&self) {
        self.cluster.assert_sound();
    }
}

pub struct Case<'a> {
    pub world: &'a mut World,
    pub model: Model,
    pub rooms: [String; 2],
    /// The newest that was seen of each member.
    pub version: BTreeMap<Key, i64>,
    pub seq: i64,
}

impl Case<'_> {
    fn now(&self) -> i64 {
        self.world.cluster.clock().wall()
    }

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
        let open = self.model.is_in_transaction(at);
        let from = self.now() - 2_000; // the clock that dresses leases may be half a millisecond off
        let world = &mut *self.world;
        let rooms = &self.rooms;
        let service = CONNECTIONS[at] == SERVICE;
        let seen = |cluster: &Cluster| Seen { from, until: cluster.clock().wall() + 2_000 };
        let model = &mut self.model;
        match op {
            Op::Begin if !open => {
                world.connections[at].run("begin");
                model.begin(at);
            }
            Op::Commit if open => {
                world.connections[at].run("commit");
                model.commit(at, seen(&world.cluster));
            }
            Op::Rollback if open => {
                world.connections[at].run("rollback");
                model.rollback(at, seen(&world.cluster).until);
            }
            Op::Savepoint if open && model.savepoints(at) < 3 => {
                world.connections[at].run(&format!("savepoint s{}", model.savepoints(at)));
                model.savepoint(at);
            }
            Op::RollbackTo if model.savepoints(at) > 0 => {
                world.connections[at].run(&format!("rollback to s{}", model.savepoints(at) - 1));
                model.rollback_to(at);
            }
            Op::Release if model.savepoints(at) > 0 => {
                world.connections[at].run(&format!("release s{}", model.savepoints(at) - 1));
                model.release(at);
            }
            Op::Upsert(name, given) => {
                let given = rightful(given, service);
                if model.is_free(at, &[model.key(at, name, given.owner)]) {
                    let got = ask(
                        &mut world.connections[at],
                        &format!("select presence.{}", upsert(rooms, name, &given)),
                    );
                    let expected = model.upsert(at, name, &given, seen(&world.cluster));
                    compare(got.map(|_| ()), expected)?;
                }
            }
            Op::Update(name, given) if model.is_free(at, &[model.key(at, name, None)]) => {
                let sql = format!(
                    "select 1 from presence.update({}, patch => {}, status => {}, metadata => {}, audience => {})",
                    key(rooms, name),
                    json_text(given.patch.map(values::patch)),
                    text(given.status.map(values::status)),
                    json_text(given.metadata.map(values::metadata)),
                    tokens(given.audience),
                );
                let got = ask(&mut world.connections[at], &sql);
                let expected = model.update(at, name, given, seen(&world.cluster));
                compare(got.map(|rows| !rows.is_empty()), expected)?;
            }
            Op::Heartbeat(name) => {
                let place = model.key(at, name, None);
                if model.is_sure(&[place]) {
                    let got = ask(
                        &mut world.connections[at],
                        &format!("select presence.heartbeat({})", key(rooms, name)),
                    );
                    let expected = model.heartbeat(at, &place, seen(&world.cluster));
                    compare(got.map(|rows| rows[0][0] == "t"), Ok(expected))?;
                }
            }
            Op::HeartbeatMany(names) => {
                let keys: Vec<Key> = names.iter().map(|name| model.key(at, name, None)).collect();
                if model.is_sure(&keys) {
                    let list = |of: &dyn Fn(&Key) -> String| {
                        format!(
                            "array[{}]",
                            keys.iter().map(|key| format!("'{}'", of(key))).collect::<Vec<_>>().join(",")
                        )
                    };
                    let sql = format!(
                        "select * from presence.heartbeat_many({}, {}, {})",
                        list(&|key| rooms[key.0].clone()),
                        list(&|key| USERS[key.1].into()),
                        list(&|key| CONNECTION_IDS[key.2].into()),
                    );
                    let got = ask(&mut world.connections[at], &sql);
                    let until = seen(&world.cluster);
                    let missing = keys.iter().filter(|key| !model.heartbeat(at, key, until));
                    let missing = missing.map(|key| {
                        vec![rooms[key.0].clone(), USERS[key.1].to_owned(), CONNECTION_IDS[key.2].to_owned()]
                    });
                    compare(got, Ok(missing.collect()))?;
                }
            }
            Op::Delete(removal) => {
                let removal = rightful_removal(removal, service);
                if model.is_free(at, &keys_of(model, at, &removal)) {
                    let got = ask(
                        &mut world.connections[at],
                        &format!("select presence.{}", delete(rooms, &removal)),
                    );
                    let expected = model.delete(at, &removal, seen(&world.cluster));
                    compare(got.map(|rows| rows[0][0].parse().unwrap_or(99)), expected)?;
                }
            }
            Op::DeleteAll { connection } => {
                let who = CONNECTIONS[at];
                let keys = model.keys_where(|key, row| {
                    row.owner == who && connection.is_none_or(|connection| connection == key.2)
                });
                if model.is_free(at, &keys) {
                    let sql = format!(
                        "select presence.delete_all(connection_id => {})",
                        text(connection.map(|c| CONNECTION_IDS[c]))
                    );
                    let got = ask(&mut world.connections[at], &sql);
                    let expected = model.delete_all(at, *connection, seen(&world.cluster));
                    compare(got.map(|rows| rows[0][0].parse().unwrap_or(99)), Ok(expected))?;
                }
            }
            Op::UpsertMany(list) => {
                let list: Vec<(Name, Given)> =
                    list.iter().map(|(name, given)| (*name, rightful(given, service))).collect();
                let keys: Vec<Key> =
                    list.iter().map(|(name, given)| model.key(at, name, given.owner)).collect();
                if model.is_free(at, &keys) {
                    let members: Vec<Value> =
                        list.iter().map(|(name, given)| upsert_json(rooms, name, given)).collect();
                    let got = ask(
                        &mut world.connections[at],
                        &format!("select presence.upsert_many('{}')", json!(members)),
                    );
                    let expected = model.upsert_many(at, &list, seen(&world.cluster));
                    compare(got.map(|rows| rows[0][0].parse().unwrap_or(99)), expected)?;
                }
            }
            Op::DeleteMany(list) => {
                let one = |removal: &Removal| Removal {
                    all_connections: false,
                    ..rightful_removal(removal, service)
                };
                let list: Vec<Removal> = list.iter().map(one).collect();
                let keys: Vec<Key> = list.iter().map(|removal| model.key(at, &removal.name, None)).collect();
                if model.is_free(at, &keys) {
                    let members: Vec<Value> =
                        list.iter().map(|removal| delete_json(rooms, removal)).collect();
                    let got = ask(
                        &mut world.connections[at],
                        &format!("select presence.delete_many('{}')", json!(members)),
                    );
                    let expected = model.delete_many(at, &list, seen(&world.cluster));
                    compare(got.map(|rows| rows[0][0].parse().unwrap_or(99)), expected)?;
                }
            }
            Op::Insert(name, given) if model.is_free(at, &[model.key(at, name, None)]) => {
                let sql = format!(
                        "insert into presence.member (room, member_id, connection_id, state, status, metadata, audience, ttl)
                         values ('{}', {}, '{}', {}, {}, {}, {}, {})",
                        rooms[name.room],
                        text(name.member.map(|member| USERS[member])),
                        CONNECTION_IDS[name.connection],
                        json_text(given.state.map(values::state)),
                        text(given.status.map(values::status)),
                        json_text(given.metadata.map(values::metadata)),
                        tokens(given.audience),
                        text(given.ttl.map(|ttl| format!("{} min", values::ttl(ttl)))),
                    );
                let got = ask(&mut world.connections[at], &sql);
                let expected = model.insert(at, name, given, seen(&world.cluster));
                compare(got.map(|_| ()), expected)?;
            }
            Op::Change { room, status, audience } if model.is_free(at, &in_room(model, at, *room)) => {
                let audience_sql =
                    audience.map(|_| format!(", audience = {}", tokens(*audience))).unwrap_or_default();
                let sql = format!(
                    "update presence.member set status = '{}'{audience_sql} where room = '{}' returning 1",
                    values::status(*status),
                    rooms[*room],
                );
                let got = ask(&mut world.connections[at], &sql);
                let expected = model.change(at, *room, *status, *audience, seen(&world.cluster));
                compare(got.map(|rows| rows.len()), Ok(expected))?;
            }
            Op::Remove { room } if model.is_free(at, &in_room(model, at, *room)) => {
                let sql = format!("delete from presence.member where room = '{}' returning 1", rooms[*room]);
                let got = ask(&mut world.connections[at], &sql);
                let expected = model.remove(at, *room, seen(&world.cluster));
                compare(got.map(|rows| rows.len()), Ok(expected))?;
            }
            Op::End { kill } => {
                let pid = world.pids[at];
                if *kill {
                    world.watcher.run(&format!("select pg_terminate_backend({pid})"));
                }
                world.connect(at);
                let gone = format!("select count(*) = 0 from pg_stat_activity where pid = {pid}");
                until("the session is over", || world.watcher.is(&gone));
                model.end(at, seen(&world.cluster).until);
            }
            Op::Pass => {
                world.cluster.clock().pass(Duration::from_secs(40 * 60));
                model.pass(seen(&world.cluster).until);
            }
            Op::Sweep { rollback } if !model.is_in_transaction(at) => {
                let end = if *rollback { "rollback" } else { "commit" };
                world.watcher.run(&format!("begin; select presence.sweep(); {end}"));
            }
            Op::Settle => return self.settle(),
            _ => {}
        }
        Ok(())
    }
}

/// Rows, or the SQLSTATE.
fn ask(session: &mut Session, sql: &str) -> Result<Vec<Vec<String>>, String> {
    session.try_rows(sql).map_err(|failure| failure.code)
}

fn compare<T: PartialEq + std::fmt::Debug>(got: Result<T, String>, expected: Answer<T>) -> Check {
    let expected = expected.map_err(str::to_owned);
    if got == expected { Ok(()) } else { Err(format!("answered {got:?}, not {expected:?}")) }
}

/// Without what only a service role may say.
fn rightful(given: &Given, service: bool) -> Given {
    Given { owner: given.owner.filter(|_| service), ..*given }
}

fn rightful_removal(removal: &Removal, service: bool) -> Removal {
    Removal { reason: removal.reason.filter(|reason| service || *reason == "left"), ..*removal }
}

fn keys_of(model: &Model, at: usize, removal: &Removal) -> Vec<Key> {
    let key = model.key(at, &removal.name, None);
    if removal.all_connections { all_connections(&key) } else { vec![key] }
}

fn in_room(model: &Model, at: usize, room: usize) -> Vec<Key> {
    let who = CONNECTIONS[at];
    model.keys_where(|key, row| key.0 == room && (who == SERVICE || row.owner == who))
}
