//! A listener: it holds exactly what the rule for clients derives from what it hears.

use crate::common::rule::{self, Ask, Key, Member, OnBell, Rule};
use crate::common::{Cluster, Session};
use crate::mallory;
use crate::model;
use crate::op::{CONNECTION_IDS, USERS};
use std::collections::{BTreeMap, BTreeSet};

pub struct Follower {
    pub name: &'static str,
    /// Index of the user, if that user also writes.
    pub user: Option<usize>,
    /// The tokens of its audience, except those for rooms.
    pub tokens: Vec<&'static str>,
    session: Session,
    /// Run at the start of each transaction, if the login is shared.
    prelude: Option<String>,
    rule: Rule,
}

impl Follower {
    pub fn login(cluster: &Cluster, role: &'static str, tokens: &[&'static str]) -> Follower {
        Follower {
            name: role,
            user: USERS.iter().position(|user| *user == role),
            tokens: tokens.to_vec(),
            session: cluster.user(role),
            prelude: None,
            rule: Rule::new(vec![None], OnBell::List, None),
        }
    }

    /// Over a login that many users share, like drivers that send LISTEN themselves.
    pub fn web(cluster: &Cluster, name: &'static str, claims: &str, tokens: &[&'static str]) -> Follower {
        let prelude = format!("set local role authenticated; set local request.jwt.claims = '{claims}';");
        Follower { name, prelude: Some(prelude), ..Follower::login(cluster, "authenticator", tokens) }
    }

    /// Without timeouts, which a moved clock would trigger.
    pub fn patient(mut self) -> Follower {
        self.session.run("set statement_timeout = 0; set lock_timeout = 0");
        self
    }

    /// Forgets everything, and starts the way a client does.
    pub fn start(&mut self) {
        self.session.heard();
        self.rule.connect();
        self.act();
    }

    fn act(&mut self) {
        while let Some(ask) = self.rule.next() {
            match ask {
                Ask::Listen => {
                    self.listen();
                    self.rule.listens();
                }
                Ask::Query(sql) => {
                    let rows = self.ask(&sql);
                    self.rule.answered(&rows);
                }
            }
        }
    }

    fn listen(&mut self) {
        match &self.prelude {
            None => self.session.run("select presence.listen()"),
            Some(prelude) => {
                self.session.run(&format!("begin; {prelude}"));
                let channels = self.session.rows("select presence.channels()");
                let listen: String = channels.iter().map(|row| format!("listen {};", row[0])).collect();
                self.session.run(&format!("commit; {listen}"));
            }
        }
    }

    fn ask(&mut self, sql: &str) -> Vec<Vec<String>> {
        let Some(prelude) = &self.prelude else { return self.session.rows(sql) };
        self.session.rows(&format!("begin; {prelude} {sql}; commit"))
    }

    /// What the database lists for this listener.
    fn listed(&mut self) -> BTreeMap<Key, Member> {
        let listed = rule::listed(vec![None], |sql| Ok::<_, ()>(self.ask(sql)));
        listed.unwrap_or_default()
    }

    /// Takes in everything that has been published by now.
    pub fn follow(&mut self) {
        // Whatever the worker has committed arrives no later than a notification of one's own that is sent after it.
        self.session.run("listen presence_test_barrier");
        self.session.run("notify presence_test_barrier, '{\"event\": \"barrier\"}'");
        for event in self.session.heard() {
            self.rule.hear(event.fields);
        }
        self.act();
    }

    /// What it holds is what the database lists, and that is what it should see.
    pub fn check(&mut self, rooms: &[String; 2], visible: &BTreeSet<model::Key>) -> Result<(), String> {
        let (name, listed) = (self.name, without_mallory(self.listed()));
        let visible: BTreeSet<_> = visible
            .iter()
            .map(|key| {
                (
                    rooms[key.0].clone(),
                    USERS[key.1].to_owned(),
                    CONNECTION_IDS[key.2].to_owned(),
                    String::new(),
                )
            })
            .collect();
        let keys: BTreeSet<_> = listed.keys().cloned().collect();
        if keys != visible {
            return Err(format!("{name} shall see {visible:?} and is shown {keys:?}"));
        }
        self.agrees(&listed)
    }

    /// What it holds is what the database lists.
    pub fn check_against_list(&mut self) -> Result<(), String> {
        let listed = without_mallory(self.listed());
        self.agrees(&listed)
    }

    fn agrees(&self, listed: &BTreeMap<Key, Member>) -> Result<(), String> {
        let held = without_mallory(self.rule.members().clone());
        if rule::is_listed(&held, listed) {
            return Ok(());
        }
        Err(format!("{} holds {held:?}, but listed is {listed:?}", self.name))
    }
}

/// Mallory goes on while the others are compared.
fn without_mallory(mut members: BTreeMap<Key, Member>) -> BTreeMap<Key, Member> {
    members.retain(|_, member| member.user_id != mallory::NAME);
    members
}
