//! A listener: it holds what the rule for clients in README.md makes of what it hears, and nothing else.

use crate::common::{Cluster, Event, Session};
use crate::mallory;
use crate::model::Key;
use crate::op::{CONNECTION_IDS, USERS};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// What it knows of a member: version, owner, status, state, metadata.
pub type Known = (i64, String, Value, Value, Value);

pub struct Follower {
    pub name: &'static str,
    /// Index of the user, if it is one who writes, too.
    pub user: Option<usize>,
    /// Besides those for rooms.
    pub tokens: Vec<&'static str>,
    session: Session,
    /// Said at the start of each transaction, by those whose login is shared.
    prelude: Option<String>,
    members: BTreeMap<(String, String, String), Known>,
    versions: BTreeMap<(String, String, String), i64>,
    seqs: HashSet<i64>,
}

impl Follower {
    pub fn login(cluster: &Cluster, role: &'static str, tokens: &[&'static str]) -> Follower {
        Follower {
            name: role,
            user: USERS.iter().position(|user| *user == role),
            tokens: tokens.to_vec(),
            session: cluster.user(role),
            prelude: None,
            members: BTreeMap::new(),
            versions: BTreeMap::new(),
            seqs: HashSet::new(),
        }
    }

    /// Over a login that many users share, as drivers come that send LISTEN themselves.
    pub fn web(cluster: &Cluster, name: &'static str, claims: &str, tokens: &[&'static str]) -> Follower {
        let prelude = format!("set local role authenticated; set local request.jwt.claims = '{claims}';");
        Follower { name, prelude: Some(prelude), ..Follower::login(cluster, "authenticator", tokens) }
    }

    /// Where time flies, no statement of it fails for having taken long.
    pub fn patient(mut self) -> Follower {
        self.session.run("set statement_timeout = 0; set lock_timeout = 0");
        self
    }

    /// Forget all of it, and start as a client does.
    pub fn start(&mut self) {
        self.session.heard();
        (self.members, self.versions, self.seqs) = Default::default();
        self.listen_and_list();
    }

    fn listen_and_list(&mut self) {
        match &self.prelude {
            None => self.session.run("select presence.listen()"),
            Some(prelude) => {
                self.session.run(&format!("begin; {prelude}"));
                let channels = self.session.rows("select presence.channels()");
                let listen: String = channels.iter().map(|row| format!("listen {};", row[0])).collect();
                self.session.run(&format!("commit; {listen}"));
            }
        }
        let listed = self.listed();
        self.members.retain(|key, _| listed.contains_key(key));
        for (key, known) in listed {
            if self.versions.get(&key).is_none_or(|held| *held <= known.0) {
                self.versions.insert(key.clone(), known.0);
                self.members.insert(key, known);
            }
        }
    }

    /// What the database says this one may see.
    fn listed(&mut self) -> BTreeMap<(String, String, String), Known> {
        if let Some(prelude) = &self.prelude {
            self.session.run(&format!("begin; {prelude}"));
        }
        let rows = self.session.rows(&format!(
            "select to_jsonb(o) from presence.list(max_rows => 1000) o where o.user_id <> '{}'",
            mallory::NAME
        ));
        if self.prelude.is_some() {
            self.session.run("commit");
        }
        let fields = rows.iter().map(|row| serde_json::from_str::<Value>(&row[0]).expect("JSON"));
        fields.map(|fields| (key_of(&fields), known(&fields))).collect()
    }

    /// Everything that was published by now.
    pub fn follow(&mut self) {
        // What the worker has committed is heard at the latest with a notification of one's own that comes after it.
        self.session.run("listen presence_test_barrier");
        self.session.run("notify presence_test_barrier, '{\"event\": \"barrier\"}'");
        for event in self.session.heard() {
            self.apply(&event);
        }
    }

    fn apply(&mut self, event: &Event) {
        match event.kind() {
            _ if event.text("user_id") == mallory::NAME => {}
            "resync" => self.start(),
            "relisten" => self.listen_and_list(),
            // A doorbell: something happened that only a look can tell.
            "changes" => self.listen_and_list(),
            "enter" | "update" | "leave" if self.seqs.insert(event.seq()) => {
                let (key, known) = (key_of(&event.fields), known(&event.fields));
                if self.versions.get(&key).is_some_and(|held| *held >= known.0) {
                    return;
                }
                self.versions.insert(key.clone(), known.0);
                if event.kind() == "leave" {
                    self.members.remove(&key);
                } else {
                    self.members.insert(key, known);
                }
            }
            _ => {}
        }
    }

    /// What it has heard is what the database lists, and that is what it shall see.
    pub fn check(&mut self, rooms: &[String; 2], visible: &BTreeSet<Key>) -> Result<(), String> {
        let (name, listed) = (self.name, self.listed());
        let visible: BTreeSet<_> = visible
            .iter()
            .map(|key| (rooms[key.0].clone(), USERS[key.1].to_owned(), CONNECTION_IDS[key.2].to_owned()))
            .collect();
        let keys: BTreeSet<_> = listed.keys().cloned().collect();
        if keys != visible {
            return Err(format!("{name} shall see {visible:?} and is shown {keys:?}"));
        }
        self.agrees(&listed)
    }

    /// What it has heard is what the database lists.
    pub fn check_against_list(&mut self) -> Result<(), String> {
        let listed = self.listed();
        self.agrees(&listed)
    }

    fn agrees(&self, listed: &BTreeMap<(String, String, String), Known>) -> Result<(), String> {
        // A change of ttl or session has a version and no event.
        let same = |held: &Known, listed: &Known| {
            held.0 <= listed.0
                && (&held.1, &held.2, &held.3, &held.4) == (&listed.1, &listed.2, &listed.3, &listed.4)
        };
        let agree = self.members.len() == listed.len()
            && self
                .members
                .iter()
                .all(|(key, held)| listed.get(key).is_some_and(|listed| same(held, listed)));
        if !agree {
            return Err(format!("{} holds {:?}, but listed is {listed:?}", self.name, self.members));
        }
        Ok(())
    }
}

fn key_of(fields: &Value) -> (String, String, String) {
    let text = |field: &str| fields[field].as_str().unwrap_or_default().to_owned();
    (text("room"), text("member_id"), text("connection_id"))
}

fn known(fields: &Value) -> Known {
    let owner = fields["user_id"].as_str().unwrap_or_default().to_owned();
    let version = fields["version"].as_i64().expect("a version");
    (version, owner, fields["status"].clone(), fields["state"].clone(), fields["metadata"].clone())
}
