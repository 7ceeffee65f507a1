//! A listener that follows the rule for clients on one connection, at once.

use super::rule::{self, Ask, Key, Member, OnBell, Rule};
use super::{Event, Session};
use std::collections::BTreeMap;

pub struct Mirror {
    rule: Rule,
}

impl Default for Mirror {
    /// It holds nothing, and listens already.
    fn default() -> Mirror {
        Mirror { rule: Rule::new(vec![None], OnBell::Read, None).where_nobody_is() }
    }
}

impl Mirror {
    /// As a client starts, having listened before.
    pub fn of(session: &mut Session) -> Mirror {
        let mut mirror = Mirror::default();
        mirror.list(session);
        mirror
    }

    pub fn list(&mut self, session: &mut Session) {
        self.rule.list();
        self.act(session);
    }

    /// Follow what the session has heard.
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

    /// What it has heard is what is.
    pub fn assert_true(&self, session: &mut Session) {
        let listed = listed(session);
        assert!(rule::is_listed(self.members(), &listed), "held: {:#?}\nlisted: {listed:#?}", self.members());
    }
}

/// Everything that the session may see, page by page.
pub fn listed(session: &mut Session) -> BTreeMap<Key, Member> {
    rule::listed(vec![None], |sql| session.try_rows(sql)).unwrap_or_else(|failure| panic!("{failure:?}"))
}
