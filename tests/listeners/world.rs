//! The server, its writers and its listeners, and what is known about them between two steps.

use crate::common::rule::OnBell::{List, Read};
use crate::common::{Cluster, Frozen, Session, attempt, until};
use crate::ear::Ear;
use crate::faults::Lock;
use crate::follower::Pace::{AtOnce, Slow};
use crate::follower::{Follower, Kind, Scene};
use crate::op::{MATE, Op, Place, RITA, USERS};
use crate::rights::{Grant, Key, Model, Moment, SERVICE, key};
use crate::speaker::{LOGINS, role_of};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub type Check = Result<(), String>;

/// One without any rights, who gets names from others; a superuser, who becomes others; a login that takes their roles;
/// a shared login.
const SPY_LOGINS: [&str; SPIES] = ["mallory", "postgres", "pool", "authenticator"];
pub const SPIES: usize = 4;
pub const MALLORY: usize = 0;
pub const BECOMES: usize = 1;
pub const TAKES_ROLES: usize = 2;

pub const FOLLOWERS: [Kind; 11] = [
    Kind { user: 0, room: None, on_bell: List, pace: AtOnce, has_two: false, page: None },
    Kind { user: 0, room: Some(0), on_bell: Read, pace: Slow, has_two: true, page: Some(1) },
    Kind { user: 1, room: None, on_bell: Read, pace: AtOnce, has_two: true, page: None },
    Kind { user: 1, room: Some(1), on_bell: Read, pace: Slow, has_two: true, page: Some(1) },
    Kind { user: 2, room: Some(0), on_bell: List, pace: AtOnce, has_two: false, page: Some(2) },
    Kind { user: RITA, room: None, on_bell: Read, pace: Slow, has_two: true, page: Some(3) },
    Kind { user: RITA, room: Some(0), on_bell: Read, pace: AtOnce, has_two: false, page: None },
    Kind { user: MATE, room: None, on_bell: List, pace: AtOnce, has_two: true, page: None },
    Kind { user: MATE, room: Some(1), on_bell: Read, pace: Slow, has_two: true, page: Some(1) },
    Kind { user: SERVICE, room: None, on_bell: Read, pace: AtOnce, has_two: false, page: None },
    Kind { user: SERVICE, room: Some(0), on_bell: List, pace: Slow, has_two: true, page: Some(2) },
];
pub const LISTENERS: usize = FOLLOWERS.len() + SPIES;

const ROLES: &str = "
    create role red;
    create role rita login in role red;
    create role mallory login;
    create role authenticator login noinherit;
    create role authenticated;
    grant authenticated to authenticator;
    create role pool login noinherit in role alice, bob, carol, rita;
    select presence.grant_access('rita'), presence.grant_access('authenticated')";

/// Banned users may not join, but may still read.
const AUTHORIZER: &str = "
    create table public.banned (who text, room text);
    grant select on public.banned to public;
    create function public.authorize(room text, action text) returns boolean language sql stable as $$
        select action = 'read' or action = 'join' and not exists
            (select from public.banned b where b.who = presence.user_id() and b.room = authorize.room) $$;";

pub struct World {
    pub cluster: Cluster,
    pub writers: Vec<Session>,
    pub watcher: Session,
    pub followers: Vec<Follower>,
    pub spies: Vec<Ear>,
    cases: usize,
    pub rings_only: bool,
    /// An authorizer decides room by room who may read.
    pub by_room_only: bool,
    /// No update is conflated.
    pub is_exact: bool,
    /// The last case did not finish.
    is_dirty: bool,
}

impl World {
    pub fn new(is_exact: bool, by_room_only: bool) -> World {
        let mut options = vec![
            "presence.sweep_interval=100ms",
            "presence.event_buffer=64kB",
            "presence.default_ttl=10h",
            "presence.history_retention=30d",
        ];
        if is_exact {
            options.push("presence.notify_delay=0");
        }
        let cluster = Cluster::with_clock(&options);
        cluster.sql("app", ROLES);
        if by_room_only {
            cluster.sql("app", AUTHORIZER);
            cluster.sql("app", "alter database app set presence.authorizer = 'public.authorize'");
        }
        let followers = FOLLOWERS.map(|kind| Follower::new(&cluster, kind));
        World {
            writers: LOGINS.iter().map(|login| cluster.user(login)).collect(),
            watcher: cluster.service(),
            followers: followers.into(),
            spies: SPY_LOGINS.iter().map(|login| Ear::open(&cluster, login)).collect(),
            cases: 0,
            rings_only: false,
            by_room_only,
            is_exact,
            is_dirty: false,
            cluster,
        }
    }

    /// Runs a case from an empty start to the final comparison.
    pub fn run(&mut self, steps: &[Op]) -> Check {
        self.cases += 1;
        if std::mem::replace(&mut self.is_dirty, true) {
            self.connect();
        }
        self.reset();
        let rooms = [format!("{}a", self.cases), format!("{}b", self.cases)];
        let mut case = Case::new(self, rooms);
        case.start()?;
        for (number, op) in steps.iter().enumerate() {
            case.step(op).map_err(|why| format!("step {number}, {op:?}: {why}"))?;
        }
        case.come_to_rest().map_err(|why| format!("at the end: {why}"))?;
        drop(case);
        self.is_dirty = false;
        Ok(())
    }

    /// Opens all sessions again.
    pub fn connect(&mut self) {
        let World { cluster, writers, watcher, followers, spies, .. } = self;
        *watcher = cluster.service();
        *writers = LOGINS.iter().map(|login| cluster.user(login)).collect();
        spies.iter_mut().for_each(|ear| ear.reconnect(cluster));
        followers.iter_mut().for_each(|follower| follower.reconnect(cluster));
    }

    fn reset(&mut self) {
        if std::mem::take(&mut self.rings_only) {
            self.watcher.run("alter database app reset presence.notify_payload");
        }
        let grants: String = (0..USERS.len())
            .map(|user| format!("select presence.grant_access('{}');", role_of(user)))
            .collect();
        let banned = if self.by_room_only { "delete from public.banned;" } else { "" };
        self.watcher.run(&format!(
            "{grants} {banned} alter role rita inherit; grant red to rita;
             delete from presence.member; delete from presence.room"
        ));
        self.cluster.clock().pass(Duration::from_secs(6));
        self.poke();
        self.watcher.flush();
        for spy in &mut self.spies {
            spy.session.run("discard all");
            spy.session.heard();
            spy.begin();
        }
        self.followers.iter_mut().for_each(Follower::begin);
    }

    /// Wakes the worker with an event that only service roles see.
    pub fn poke(&mut self) {
        self.watcher
            .run("select presence.upsert('elsewhere', to_jsonb(gen_random_uuid()), audience => '{}')");
    }

    pub fn end_session(&mut self, pid: i64) {
        self.watcher.run(&format!("select pg_terminate_backend({pid})"));
        let gone = format!("select count(*) = 0 from pg_stat_activity where pid = {pid}");
        until("the session is over", || self.watcher.is(&gone));
    }
}

pub struct Case<'a> {
    pub world: &'a mut World,
    pub model: Model,
    /// The rights after the step that is being taken.
    pub access: [bool; USERS.len()],
    pub red: bool,
    pub team: bool,
    pub lock: Option<Lock>,
    pub frozen: Option<Frozen>,
    /// All names that were given to anybody, with their grants.
    pub learnt: Vec<(Vec<String>, Grant)>,
    /// The last step after which every listener was up to date.
    pub settled: usize,
    number: usize,
}

impl<'a> Case<'a> {
    fn new(world: &'a mut World, rooms: [String; 2]) -> Case<'a> {
        let moment = Moment { access: [true; USERS.len()], red: true, ..Moment::default() };
        let model = Model {
            rooms,
            moments: vec![moment],
            writes: BTreeMap::new(),
            said_before: BTreeMap::new(),
            settings: BTreeMap::new(),
            rotations: Vec::new(),
            by_room_only: world.by_room_only,
        };
        Case {
            world,
            model,
            access: [true; USERS.len()],
            red: true,
            team: true,
            lock: None,
            frozen: None,
            learnt: Vec::new(),
            settled: 0,
            number: 0,
        }
    }

    fn start(&mut self) -> Check {
        self.each_follower(|_| true, Follower::start)
    }

    fn step(&mut self, op: &Op) -> Check {
        self.act(op)?;
        self.observe();
        self.hear()?;
        self.each_follower(|follower| follower.kind.pace == AtOnce, Follower::follow)
    }

    pub fn each_follower(
        &mut self,
        mut which: impl FnMut(&Follower) -> bool,
        mut body: impl FnMut(&mut Follower, &mut Scene) -> Check,
    ) -> Check {
        let Case { world, model, learnt, team, .. } = self;
        let World { cluster, followers, .. } = &mut **world;
        let mut scene = Scene { cluster, model, team: *team, learnt };
        let mut those = followers.iter_mut().filter(|follower| which(follower));
        those.try_for_each(|follower| body(follower, &mut scene))
    }

    pub fn follower(&mut self, at: usize, mut body: impl FnMut(&mut Follower, &mut Scene) -> Check) -> Check {
        let mut number = 0..;
        self.each_follower(|_| number.next() == Some(at), &mut body)
    }

    /// The number of a new write.
    pub fn new_number(&mut self) -> usize {
        self.number += 1;
        self.number
    }

    pub fn is_locked(&self, place: &Place) -> bool {
        self.lock.as_ref().is_some_and(|lock| key(&lock.place) == key(place))
    }

    /// Records what is there now as the model's next moment.
    pub fn observe(&mut self) {
        let rooms = &self.model.rooms;
        let sql = format!(
            "select m.room, m.member_id, m.connection_id, o.user_id, o.status, to_json(o.audience)
             from presence.member m left join presence.online o using (room, member_id, connection_id)
             where m.room in ('{}', '{}')",
            rooms[0], rooms[1]
        );
        let (mut there, mut stale) = (Vec::new(), BTreeSet::new());
        for row in self.world.watcher.rows(&sql) {
            let room = rooms.iter().position(|room| *room == row[0]).expect("a room of ours");
            let key: Key = (room, row[1].clone(), row[2].clone());
            let Some(owner) = USERS.iter().position(|user| *user == row[3]) else {
                stale.insert(key);
                continue;
            };
            let number = row[4].trim_start_matches('w').parse().expect("a status of ours");
            let audience = serde_json::from_str::<Value>(&row[5]).expect("JSON");
            let tokens = audience.as_array().expect("a list").iter();
            let audience = tokens.map(|token| token.as_str().expect("a token").to_owned()).collect();
            there.push((key, number, owner, audience));
        }
        self.model.observe(there, stale);
        let moment = self.model.moments.last_mut().expect("the new one");
        (moment.access, moment.red) = (self.access, self.red);
    }

    /// Reads what has arrived at all listeners, and fails on anything that one must not hear.
    pub fn hear(&mut self) -> Check {
        let Case { world, model, .. } = self;
        world.spies.iter_mut().try_for_each(|spy| spy.hear(model).map(|_| ()))?;
        world.followers.iter_mut().try_for_each(|follower| follower.hear(model))
    }

    pub fn thaw(&mut self) {
        self.frozen = None;
    }

    /// Waits until all expired members have left. A locked one may stay, once the worker has looked at it.
    pub fn sweep(&mut self) -> Check {
        self.thaw();
        let locked = self.lock.as_ref().map(|lock| key(&lock.place));
        let swept = attempt(|| {
            self.world.poke();
            self.observe();
            self.model.now().stale.iter().all(|key| Some(key) == locked.as_ref())
        });
        if !swept {
            return Err(format!("these stay: {:?}", self.model.now().stale));
        }
        if !self.model.now().stale.is_empty() {
            // Two sweeps, because the first may have begun before.
            for _ in 0..2 {
                let last = "select last_sweep_at from presence.health";
                let before = self.world.watcher.value(last);
                until("the worker has looked", || {
                    self.world.poke();
                    self.world.watcher.value(last) != before
                });
            }
        }
        self.world.watcher.flush();
        Ok(())
    }
}

impl Drop for Case<'_> {
    fn drop(&mut self) {
        self.thaw();
    }
}
