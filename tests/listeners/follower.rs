//! A listener that follows the rule for clients in README.md to the letter.

use crate::common::{Cluster, Event, Failure};
use crate::ear::Ear;
use crate::op::{After, MATE};
use crate::rights::{Grant, Key, Model, SERVICE};
use crate::speaker::{LOGINS, listen_to, names, prelude, room_or_null};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};

/// Version and status.
type Known = (i64, String);

pub struct Follower {
    pub user: usize,
    pub room: Option<usize>,
    pub ear: Ear,
    /// On a doorbell it reads the log; else it lists.
    reads: bool,
    /// It does at once what it is told, or when everybody is asked what they know.
    pub is_prompt: bool,
    /// It may not read: it was refused, and is no listener until somebody starts it again.
    pub is_refused: bool,
    /// It does not listen for now.
    pub is_asleep: bool,
    inbox: Vec<Event>,
    members: BTreeMap<Key, Known>,
    versions: BTreeMap<Key, i64>,
    seqs: HashSet<i64>,
    position: i64,
}

/// What a follower needs to know of the world.
pub struct Scene<'a> {
    pub model: &'a Model,
    pub team: bool,
    /// Whatever was handed out.
    pub learnt: &'a mut Vec<(Vec<String>, Grant)>,
}

impl Follower {
    pub fn new(
        cluster: &Cluster,
        user: usize,
        room: Option<usize>,
        reads: bool,
        is_prompt: bool,
    ) -> Follower {
        Follower {
            user,
            room,
            ear: Ear::open(cluster, LOGINS[user]),
            reads,
            is_prompt,
            is_refused: false,
            is_asleep: false,
            inbox: Vec::new(),
            members: BTreeMap::new(),
            versions: BTreeMap::new(),
            seqs: HashSet::new(),
            position: 0,
        }
    }

    /// What it is given after so many steps.
    pub fn grant(&self, team: bool, since: usize) -> Grant {
        let team = team && self.user == MATE;
        Grant { user: self.user, role: self.user, team, room: self.room, since, is_fresh: true }
    }

    fn forget(&mut self) {
        (self.members, self.versions, self.seqs) = Default::default();
    }

    /// Forget all, and begin as a client does.
    pub fn start(&mut self, scene: &mut Scene) -> Result<(), String> {
        self.inbox.clear();
        self.forget();
        (self.is_refused, self.is_asleep) = (false, false);
        self.listen_and_list(scene)
    }

    pub fn sleep(&mut self, scene: &mut Scene) -> Result<(), String> {
        self.is_asleep = true;
        self.ear.end(After::UnlistenAll, scene.model.next());
        Ok(())
    }

    pub fn is_idle(&self) -> bool {
        self.is_refused || self.is_asleep
    }

    /// The same in a session that has listened to other things before.
    pub fn start_anew(&mut self, scene: &mut Scene) -> Result<(), String> {
        self.ear.end(After::UnlistenAll, scene.model.next());
        self.start(scene)
    }

    fn listen_and_list(&mut self, scene: &mut Scene) -> Result<(), String> {
        let step = scene.model.next();
        let room = room_or_null(&scene.model.rooms, self.room);
        let team = scene.team && self.user == MATE;
        let session = &mut self.ear.session;
        let given = if self.user == MATE {
            session.run(&format!("begin; {}", prelude(self.user, team)));
            let given = names(session, "channels", &room);
            session.run("rollback");
            given.inspect(|given| session.run(&listen_to(given)))
        } else {
            names(session, "listen", &room)
        };
        let answer = given.and_then(|given| {
            let grant = self.grant(team, step);
            self.ear.has(&given, &grant);
            scene.learnt.push((given, grant));
            self.list(scene)
        });
        match answer {
            Ok(listed) => {
                self.members.retain(|key, _| listed.contains_key(key));
                for (key, known) in listed {
                    if self.versions.get(&key).is_none_or(|held| *held <= known.0) {
                        self.versions.insert(key.clone(), known.0);
                        self.members.insert(key, known);
                    }
                }
                Ok(())
            }
            Err(failure) => self.refused(scene, failure),
        }
    }

    /// That it may not is right only when it may not.
    fn refused(&mut self, scene: &Scene, failure: Failure) -> Result<(), String> {
        if failure.code != "42501" || self.user == SERVICE || scene.model.now().access[self.user] {
            return Err(format!("{}: {failure:?}", self.ear.login));
        }
        self.forget();
        self.is_refused = true;
        Ok(())
    }

    fn ask(&mut self, team: bool, sql: &str) -> Result<Vec<Vec<String>>, Failure> {
        let session = &mut self.ear.session;
        if self.user != MATE {
            return session.try_rows(sql);
        }
        let rows = session.try_rows(&format!("begin; {} {sql}; commit", prelude(self.user, team)));
        if rows.is_err() {
            session.run("rollback");
        }
        rows
    }

    /// What the database says this one may see.
    pub fn list(&mut self, scene: &Scene) -> Result<BTreeMap<Key, Known>, Failure> {
        let room = room_or_null(&scene.model.rooms, self.room);
        if self.reads {
            self.position = self.ask(scene.team, "select presence.seq()")?[0][0].parse().expect("a seq");
        }
        let sql = format!("select to_jsonb(o) from presence.list({room}, max_rows => 1000) o");
        let rows = self.ask(scene.team, &sql)?;
        let fields = rows.iter().map(|row| serde_json::from_str::<Value>(&row[0]).expect("JSON"));
        Ok(fields.filter_map(|fields| known(&fields, &scene.model.rooms)).collect())
    }

    /// What has arrived, as far as it may. It is not acted on yet.
    pub fn hear(&mut self, model: &Model) -> Result<(), String> {
        let events = self.ear.hear(model)?;
        self.inbox.extend(events);
        Ok(())
    }

    pub fn has_news(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// It is told to look, or to listen anew.
    pub fn is_called(&self) -> bool {
        self.inbox.iter().any(|event| matches!(event.kind(), "changes" | "relisten" | "resync"))
    }

    /// Act on what was heard.
    pub fn follow(&mut self, scene: &mut Scene) -> Result<(), String> {
        for event in std::mem::take(&mut self.inbox) {
            if self.is_idle() {
                break;
            }
            match event.kind() {
                "resync" => self.start_after(scene)?,
                "relisten" => self.listen_and_list(scene)?,
                "changes" if self.reads => self.read(scene)?,
                "changes" => self.listen_and_list(scene)?,
                _ => self.apply(&event.fields, &scene.model.rooms),
            }
        }
        Ok(())
    }

    /// Forget everything, and go on with what comes.
    fn start_after(&mut self, scene: &mut Scene) -> Result<(), String> {
        self.forget();
        self.listen_and_list(scene)
    }

    fn read(&mut self, scene: &mut Scene) -> Result<(), String> {
        let room = room_or_null(&scene.model.rooms, self.room);
        loop {
            let sql = format!("select to_jsonb(e) from presence.changes({}, {room}, 1000) e", self.position);
            // Who may not read any more will be told.
            let Ok(rows) = self.ask(scene.team, &sql) else { return self.listen_and_list(scene) };
            let lines = rows.iter().map(|row| serde_json::from_str::<Value>(&row[0]).expect("JSON"));
            for line in lines {
                match line["event"].as_str() {
                    Some("resync") => return self.start_after(scene),
                    Some("position") => self.position = line["seq"].as_i64().expect("a seq"),
                    _ => self.apply(&line, &scene.model.rooms),
                }
            }
            if rows.len() < 1000 {
                return Ok(());
            }
        }
    }

    fn apply(&mut self, fields: &Value, rooms: &[String; 2]) {
        let Some("enter" | "update" | "leave") = fields["event"].as_str() else { return };
        let Some((key, known)) = known(fields, rooms) else { return };
        // One change of an audience is a leave and an enter, each with a seq.
        if !self.seqs.insert(fields["seq"].as_i64().expect("a seq"))
            || self.versions.get(&key).is_some_and(|held| *held >= known.0)
        {
            return;
        }
        self.versions.insert(key.clone(), known.0);
        if fields["event"] == "leave" {
            self.members.remove(&key);
        } else {
            self.members.insert(key, known);
        }
    }

    /// It knows what the database lists, and that is what it may see.
    pub fn check(&mut self, scene: &Scene) -> Result<(), String> {
        if self.is_idle() {
            return Ok(());
        }
        let (name, model) = (self.ear.login, scene.model);
        let listed = match self.list(scene) {
            Ok(listed) => listed,
            Err(failure) => return self.refused(scene, failure),
        };
        let grant = self.grant(scene.team, 0);
        let is_of_it = |key: &&Key| self.room.is_none_or(|room| room == key.0);
        let visible: Vec<&Key> =
            model.now().rows.keys().filter(is_of_it).filter(|key| model.may_see(&grant, key)).collect();
        if !listed.keys().eq(visible.iter().copied()) {
            return Err(format!("{name} shall see {visible:?} and is shown {listed:?}"));
        }
        // A lease that is over while somebody has the row locked is no leave yet.
        let statuses = |members: &BTreeMap<Key, Known>| -> Vec<(Key, String)> {
            let those = members.iter().filter(|(key, _)| !model.now().stale.contains(*key));
            those.map(|(key, known)| (key.clone(), known.1.clone())).collect()
        };
        let (held, listed) = (statuses(&self.members), statuses(&listed));
        if held != listed {
            return Err(format!("{name}, room {:?}, holds {held:?}, but listed is {listed:?}", self.room));
        }
        Ok(())
    }
}

fn known(fields: &Value, rooms: &[String; 2]) -> Option<(Key, Known)> {
    let text = |field: &str| fields[field].as_str().unwrap_or_default().to_owned();
    let room = rooms.iter().position(|room| *room == text("room"))?;
    let key = (room, text("member_id"), text("connection_id"));
    Some((key, (fields["version"].as_i64().expect("a version"), text("status"))))
}
