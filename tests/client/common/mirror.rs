//! A listener that follows the client rule on a single connection and handles each event immediately.

use super::rule::{self, Ask, Key, Member, OnBell, Rule};
use super::{Event, Session};
use std::collections::BTreeMap;

pub struct Mirror {
    rule: Rule,
}

impl Default for Mirror {
    /// Holds no members, and is already listening.
    fn default() -> Mirror {
        Mirror { rule: Rule::new(vec![None], OnBell::Read, None).where_nobody_is() }
    }
}

impl Mirror {
    /// Starts the way a client does that is already listening: with a list.
    pub fn of(session: &mut Session) -> Mirror {
        let mut mirror = Mirror::default();
        mirror.list(session);
        mirror
    }

    pub fn list(&mut self, session: &mut Session) {
        self.rule.list();
        self.act(session);
    }

    /// Applies everything that the session has received.
    pub fn follow(&mut self, session: &mut Session) {
        for event in session.hear() {
            self.apply(session, &event);
        }
    }

    pub fn apply(&mut self, session: &mut Session, event: &Event) {
        self.rule.hear(event.fields.clone());
        self.act(session);
    }

    fn act(&mut self, session: &mut Session) {
        while let Some(ask) = self.rule.next() {
            match ask {
                Ask::Listen => {
                    session.run("select presence.listen()");
                    self.rule.listens();
                }
                Ask::Query(sql) => self.rule.answered(&session.rows(&sql)),
            }
        }
    }

    pub fn resyncs(&self) -> usize {
        self.rule.resyncs
    }

    pub fn members(&self) -> &BTreeMap<Key, Member> {
        self.rule.members()
    }

    /// Asserts that the members it holds are the ones that the database lists.
    pub fn assert_true(&self, session: &mut Session) {
        let listed = listed(session);
        assert!(rule::is_listed(self.members(), &listed), "held: {:#?}\nlisted: {listed:#?}", self.members());
    }
}

/// All members that the session may see, fetched page by page.
pub fn listed(session: &mut Session) -> BTreeMap<Key, Member> {
    rule::listed(vec![None], |sql| session.try_rows(sql)).unwrap_or_else(|failure| panic!("{failure:?}"))
}
