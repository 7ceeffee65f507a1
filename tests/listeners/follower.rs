//! A listener that follows the rule for clients exactly, one step at a time. It listens on one connection, and queries
//! on the same one or on another.

use crate::common::rule::{self, Ask, OnBell, Rule};
use crate::common::{Cluster, Failure, Session};
use crate::ear::Ear;
use crate::op::{After, MATE};
use crate::rights::{Grant, Key, Model, SERVICE};
use crate::speaker::{LOGINS, listen_to, names, prelude};

/// How soon it acts on what it hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    AtOnce,
    /// One turn at a time, while others go on.
    Slow,
}

#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub user: usize,
    /// None: all rooms.
    pub room: Option<usize>,
    pub on_bell: OnBell,
    pub pace: Pace,
    /// It has a second connection for its queries.
    pub has_two: bool,
    pub page: Option<usize>,
}

pub struct Follower {
    pub kind: Kind,
    pub ear: Ear,
    asks: Option<Session>,
    /// It was refused read access, and does not listen until it is started again.
    pub is_refused: bool,
    /// It does not listen for now.
    pub is_asleep: bool,
    /// Names that it was given but does not listen to yet.
    given: Option<(Vec<String>, Grant)>,
    rule: Rule,
}

/// What a follower needs to know about the world.
pub struct Scene<'a> {
    pub cluster: &'a Cluster,
    pub model: &'a Model,
    pub team: bool,
    /// All names that were handed out, with their grants.
    pub learnt: &'a mut Vec<(Vec<String>, Grant)>,
}

impl Follower {
    pub fn new(cluster: &Cluster, kind: Kind) -> Follower {
        Follower {
            kind,
            ear: Ear::open(cluster, LOGINS[kind.user]),
            asks: None,
            is_refused: false,
            is_asleep: false,
            given: None,
            rule: Rule::new(Vec::new(), kind.on_bell, kind.page),
        }
    }

    pub fn reconnect(&mut self, cluster: &Cluster) {
        self.ear.reconnect(cluster);
        (self.asks, self.given) = (None, None);
    }

    /// Starts a new case.
    pub fn begin(&mut self) {
        self.give_up_listening();
        self.ear.session.run("discard all");
        self.ear.session.heard();
        self.ear.begin();
    }

    /// The grant that it gets in step `since`.
    pub fn grant(&self, team: bool, since: usize) -> Grant {
        let Kind { user, room, .. } = self.kind;
        Grant { user, role: user, team: team && user == MATE, room, since, is_fresh: true }
    }

    /// Starts the way a client does on a new connection.
    pub fn start(&mut self, scene: &mut Scene) -> Result<(), String> {
        self.give_up_listening();
        (self.is_refused, self.is_asleep) = (false, false);
        self.rule = Rule::new(self.rooms(scene.model), self.kind.on_bell, self.kind.page);
        if self.kind.pace == Pace::AtOnce { self.follow(scene) } else { Ok(()) }
    }

    fn give_up_listening(&mut self) {
        if self.given.take().is_some() {
            self.ear.session.run("rollback");
        }
    }

    fn rooms(&self, model: &Model) -> Vec<Option<String>> {
        vec![self.kind.room.map(|room| model.rooms[room].clone())]
    }

    pub fn sleep(&mut self, scene: &mut Scene) -> Result<(), String> {
        self.give_up_listening();
        self.is_asleep = true;
        self.ear.end(After::UnlistenAll, scene.model.next());
        Ok(())
    }

    pub fn is_idle(&self) -> bool {
        self.is_refused || self.is_asleep
    }

    /// Starts again in the same session, which gives up the channels it had.
    pub fn start_anew(&mut self, scene: &mut Scene) -> Result<(), String> {
        self.give_up_listening();
        self.ear.end(After::UnlistenAll, scene.model.next());
        self.start(scene)
    }

    /// It loses the connection for its queries, and opens another for the next one.
    pub fn lose_asking(&mut self) -> Option<i64> {
        self.asks.take().map(|mut session| session.pid())
    }

    /// Takes in what has arrived, without acting on it yet.
    pub fn hear(&mut self, model: &Model) -> Result<(), String> {
        for event in self.ear.hear(model)? {
            self.rule.hear(event.fields);
        }
        Ok(())
    }

    pub fn has_news(&self) -> bool {
        !self.is_idle() && self.rule.is_busy()
    }

    /// It was told to look, or to listen again.
    pub fn is_called(&self) -> bool {
        !self.is_idle() && self.rule.is_called()
    }

    /// Takes all pending turns.
    pub fn follow(&mut self, scene: &mut Scene) -> Result<(), String> {
        while self.turn(scene)? {}
        Ok(())
    }

    /// Takes one turn. False: there is none.
    pub fn turn(&mut self, scene: &mut Scene) -> Result<bool, String> {
        if self.is_idle() {
            return Ok(false);
        }
        let Some(ask) = self.rule.next() else { return Ok(false) };
        let done = match ask {
            Ask::Listen if self.given.is_none() => self.ask_for_names(scene),
            Ask::Listen => {
                self.listen(scene.model)?;
                self.rule.listens();
                Ok(())
            }
            Ask::Query(sql) => self.ask(scene, &sql).map(|rows| self.rule.answered(&rows)),
        };
        match done {
            Ok(()) => Ok(true),
            Err(failure) => self.refused(scene, failure).map(|()| false),
        }
    }

    /// Asks for channel names: with `presence.listen` in a transaction that `listen` commits, or like a driver.
    fn ask_for_names(&mut self, scene: &mut Scene) -> Result<(), Failure> {
        let room = rule::named(self.rooms(scene.model)[0].as_deref());
        let is_driver = self.kind.user == MATE;
        let session = &mut self.ear.session;
        session.run(&format!("begin; {}", prelude(self.kind.user, scene.team)));
        let given = names(session, if is_driver { "channels" } else { "listen" }, &room);
        if is_driver || given.is_err() {
            session.run("rollback");
        }
        let (given, grant) = (given?, self.grant(scene.team, scene.model.next()));
        scene.learnt.push((given.clone(), grant.clone()));
        self.given = Some((given, grant));
        Ok(())
    }

    fn listen(&mut self, model: &Model) -> Result<(), String> {
        let Some((names, mut grant)) = self.given.take() else { return Ok(()) };
        let sql = if self.kind.user == MATE { listen_to(&names) } else { "commit".to_owned() };
        self.ear.session.run(&sql);
        grant.is_fresh = grant.since == model.next();
        self.ear.has(&names, &grant);
        self.hear(model)
    }

    /// A refusal is right only if the user has no access.
    fn refused(&mut self, scene: &Scene, failure: Failure) -> Result<(), String> {
        if failure.code != "42501" || self.kind.user == SERVICE || scene.model.now().access[self.kind.user] {
            return Err(format!("{}: {failure:?}", self.ear.login));
        }
        self.is_refused = true;
        Ok(())
    }

    fn ask(&mut self, scene: &Scene, sql: &str) -> Result<Vec<Vec<String>>, Failure> {
        let login = LOGINS[self.kind.user];
        let session = match self.kind.has_two {
            true => self.asks.get_or_insert_with(|| scene.cluster.user(login)),
            false => &mut self.ear.session,
        };
        if self.kind.user != MATE {
            return session.try_rows(sql);
        }
        let rows = session.try_rows(&format!("begin; {} {sql}; commit", prelude(MATE, scene.team)));
        if rows.is_err() {
            session.run("rollback");
        }
        rows
    }

    /// It holds what the database lists, and that is what it may see.
    pub fn check(&mut self, scene: &Scene) -> Result<(), String> {
        if self.is_idle() {
            return Ok(());
        }
        let (name, model, room) = (self.ear.login, scene.model, self.kind.room);
        let listed = match rule::listed(self.rooms(model), |sql| self.ask(scene, sql)) {
            Ok(listed) => listed,
            Err(failure) => return self.refused(scene, failure),
        };
        let grant = self.grant(scene.team, 0);
        let is_of_it = |key: &&Key| room.is_none_or(|room| room == key.0);
        let visible: Vec<&Key> =
            model.now().rows.keys().filter(is_of_it).filter(|key| model.may_see(&grant, key)).collect();
        let shown: Vec<Key> = listed.keys().filter_map(|key| model.key(key)).collect();
        if !shown.iter().eq(visible.iter().copied()) {
            return Err(format!("{name} shall see {visible:?} and is shown {listed:?}"));
        }
        let (held, listed) = (model.settled(self.rule.members()), model.settled(&listed));
        if !rule::is_listed(&held, &listed) {
            return Err(format!("{name}, room {room:?}, holds {held:?}, but listed is {listed:?}"));
        }
        Ok(())
    }
}
