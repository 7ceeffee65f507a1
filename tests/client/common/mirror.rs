//! A listener that knows what the documentation tells clients to do, and nothing else.

use super::{Event, Session};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};

/// (room, member_id, connection_id)
type Key = (String, String, String);

#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub version: i64,
    pub user_id: String,
    pub status: Value,
    pub state: Value,
    pub metadata: Value,
}

/// Newest version wins, also over a leave; the same seq twice is once; on `resync` forget everything, listen and list.
#[derive(Default)]
pub struct Mirror {
    members: BTreeMap<Key, Member>,
    /// What it holds of each key, also of those who left.
    versions: BTreeMap<Key, i64>,
    seen: HashSet<i64>,
    pub resyncs: usize,
}

impl Mirror {
    /// As a client starts, having listened before.
    pub fn of(session: &mut Session) -> Mirror {
        let mut mirror = Mirror::default();
        mirror.list(session);
        mirror
    }

    pub fn list(&mut self, session: &mut Session) {
        for (key, member) in listed(session) {
            self.hold(key, member.version, Some(member));
        }
    }

    /// Follow what the session has heard.
    pub fn follow(&mut self, session: &mut Session) {
        for event in session.hear() {
            self.apply(session, &event);
        }
    }

    pub fn apply(&mut self, session: &mut Session, event: &Event) {
        match event.kind() {
            "resync" => {
                *self = Mirror { resyncs: self.resyncs + 1, ..Mirror::default() };
                session.run("select presence.listen()");
                self.list(session);
            }
            "relisten" => {
                session.run("select presence.listen()");
                self.list(session);
            }
            "enter" | "update" | "leave" if self.seen.insert(event.seq()) => {
                let member = Member {
                    version: event.number("version"),
                    user_id: event.text("user_id").into(),
                    status: event["status"].clone(),
                    state: event["state"].clone(),
                    metadata: event["metadata"].clone(),
                };
                let stays = event.kind() != "leave";
                self.hold(key(&event.fields), member.version, stays.then_some(member));
            }
            _ => {}
        }
    }

    fn hold(&mut self, key: Key, version: i64, member: Option<Member>) {
        if self.versions.get(&key).is_some_and(|held| *held >= version) {
            return;
        }
        match member {
            Some(member) => self.members.insert(key.clone(), member),
            None => self.members.remove(&key),
        };
        self.versions.insert(key, version);
    }

    pub fn members(&self) -> &BTreeMap<Key, Member> {
        &self.members
    }

    /// What it has heard is what is.
    pub fn assert_true(&self, session: &mut Session) {
        let listed = listed(session);
        for (key, member) in &listed {
            assert_eq!(self.members.get(key), Some(member), "{key:?}");
        }
        for key in self.members.keys() {
            assert!(listed.contains_key(key), "{key:?} is only a ghost");
        }
    }
}

fn key(fields: &Value) -> Key {
    let text = |field: &str| fields[field].as_str().unwrap_or_default().to_owned();
    (text("room"), text("member_id"), text("connection_id"))
}

/// Everything that the session may see, page by page.
pub fn listed(session: &mut Session) -> BTreeMap<Key, Member> {
    let mut members = BTreeMap::new();
    let mut after = "null".to_owned();
    loop {
        let rows = session.rows(&format!(
            "select to_jsonb(o), format('array[%L, %L, %L]', room, member_id, connection_id)
             from presence.list(max_rows => 1000, after => {after}) o"
        ));
        let Some(last) = rows.last() else { return members };
        after = last[1].clone();
        for row in &rows {
            let fields: Value = serde_json::from_str(&row[0]).expect("JSON");
            let member = Member {
                version: fields["version"].as_i64().expect("a version"),
                user_id: fields["user_id"].as_str().unwrap_or_default().into(),
                status: fields["status"].clone(),
                state: fields["state"].clone(),
                metadata: fields["metadata"].clone(),
            };
            members.insert(key(&fields), member);
        }
    }
}
