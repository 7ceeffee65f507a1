//! The client rule of docs/clients.md, implemented to the letter and without a connection: what a client asks
//! next, and what it holds. The owner of a connection sends the queries when it likes, and passes in the
//! events.

use serde_json::Value;
use std::collections::{BTreeMap, VecDeque};

/// (room, member_id, connection_id, node)
pub type Key = (String, String, String, String);

#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    pub version: i64,
    pub user_id: String,
    pub status: Value,
    pub state: Value,
    pub metadata: Value,
}

/// The default page size of a list of all rooms.
const ALL_ROOMS: usize = 1000;

/// How a client reacts to a `changes` event: reading the log or, also allowed, listing again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBell {
    Read,
    List,
}

/// What a client must do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Ask {
    /// Listen to its rooms, and commit.
    Listen,
    /// Run this query, on any connection; each row is one JSON value.
    Query(String),
}

/// The current stage of the rule.
#[derive(Debug)]
enum Stage {
    Deaf,
    Listening,
    Marking,
    Listing { room: usize, after: Option<Key>, listed: BTreeMap<Key, Member> },
    Following,
    Getting { key: Key, version: i64 },
    Reading { until: i64 },
}

pub struct Rule {
    rooms: Vec<Option<String>>,
    on_bell: OnBell,
    /// Rows per page. None fetches a whole room at once; a list of all rooms then has the default page size.
    page: Option<usize>,
    stage: Stage,
    /// Received but not yet applied.
    buffer: VecDeque<Value>,
    members: BTreeMap<Key, Member>,
    /// Also keeps the versions of members who left, until the next list.
    versions: BTreeMap<Key, i64>,
    position: i64,
    boot: Option<Value>,
    pub resyncs: usize,
}

impl Rule {
    /// A client that listens to these rooms; None means all rooms.
    pub fn new(rooms: Vec<Option<String>>, on_bell: OnBell, page: Option<usize>) -> Rule {
        Rule {
            rooms,
            on_bell,
            page,
            stage: Stage::Deaf,
            buffer: VecDeque::new(),
            members: BTreeMap::new(),
            versions: BTreeMap::new(),
            position: 0,
            boot: None,
            resyncs: 0,
        }
    }

    /// Skips listening and listing: it already listens, and there are no members yet.
    pub fn where_nobody_is(self) -> Rule {
        Rule { stage: Stage::Following, ..self }
    }

    /// Called when the client has a new connection.
    pub fn connect(&mut self) {
        self.buffer.clear();
        self.boot = None;
        self.stage = Stage::Deaf;
    }

    /// Starts a new list, which replaces the members held.
    pub fn list(&mut self) {
        self.stage = match self.on_bell {
            OnBell::Read => Stage::Marking,
            OnBell::List => Stage::first_page(),
        };
    }

    pub fn hear(&mut self, event: Value) {
        self.buffer.push_back(event);
    }

    /// What the client needs next. None means that it has applied all it received.
    pub fn next(&mut self) -> Option<Ask> {
        loop {
            let sql = match &self.stage {
                Stage::Deaf => {
                    self.buffer.clear();
                    self.stage = Stage::Listening;
                    return Some(Ask::Listen);
                }
                Stage::Listening => return Some(Ask::Listen),
                Stage::Marking => "select to_jsonb(presence.seq())".to_owned(),
                Stage::Listing { room, after, .. } => {
                    let (room, page) = (&self.rooms[*room], self.rows_of_page(*room));
                    let rows = page.map_or("null".into(), |page| page.to_string());
                    let key = after.iter().flat_map(|(of, member, connection, _)| {
                        [room.is_none().then_some(of), Some(member), Some(connection)].into_iter().flatten()
                    });
                    let key: Vec<String> = key.map(|part| literal(part)).collect();
                    let after =
                        after.as_ref().map_or("null".into(), |_| format!("array[{}]", key.join(", ")));
                    let room = named(room.as_deref());
                    format!(
                        "select to_jsonb(o) from presence.list({room}, max_rows => {rows}, after => {after}) o"
                    )
                }
                Stage::Getting { key: (room, member, connection, _), .. } => {
                    let [room, member, connection] = [room, member, connection].map(|part| literal(part));
                    format!("select to_jsonb(o) from presence.get({room}, {member}, {connection}) o")
                }
                Stage::Reading { .. } => {
                    let room = if let [Some(room)] = &self.rooms[..] { literal(room) } else { "null".into() };
                    format!("select to_jsonb(e) from presence.changes({}, {room}) e", self.position)
                }
                Stage::Following => {
                    let event = self.buffer.pop_front()?;
                    self.obey(&event);
                    continue;
                }
            };
            return Some(Ask::Query(sql));
        }
    }

    fn rows_of_page(&self, room: usize) -> Option<usize> {
        self.page.or(self.rooms[room].is_none().then_some(ALL_ROOMS))
    }

    /// Called when `listen` has committed. The list covers whatever was received before, except for a signal
    /// to listen again.
    pub fn listens(&mut self) {
        self.list();
        for event in std::mem::take(&mut self.buffer) {
            if matches!(kind(&event), "relisten" | "resync" | "alive") {
                self.obey(&event);
            }
        }
    }

    /// Takes the rows of the query.
    pub fn answered(&mut self, rows: &[Vec<String>]) {
        let rows: Vec<Value> =
            rows.iter().map(|row| serde_json::from_str(&row[0]).expect("what is no JSON")).collect();
        match std::mem::replace(&mut self.stage, Stage::Following) {
            Stage::Marking => {
                self.position = rows[0].as_i64().expect("a seq");
                self.stage = Stage::first_page();
            }
            Stage::Listing { room, after, mut listed } => {
                let page = self.rows_of_page(room);
                let is_last = page.is_none_or(|page| rows.len() < page);
                let after = rows.last().map(key_of).or(after).filter(|_| !is_last);
                listed.extend(rows.iter().map(|row| (key_of(row), member_of(row))));
                let room = if is_last { room + 1 } else { room };
                if room < self.rooms.len() {
                    self.stage = Stage::Listing { room, after, listed };
                } else {
                    self.versions =
                        listed.iter().map(|(key, member)| (key.clone(), member.version)).collect();
                    self.members = listed;
                }
            }
            Stage::Getting { key, version } => {
                match rows.iter().find(|row| key_of(row) == key).map(member_of) {
                    Some(member) => self.hold(key, member.version, Some(member)),
                    None => self.hold(key, version, None),
                }
            }
            Stage::Reading { until } => self.read(rows, until),
            stage => panic!("nothing was asked: {stage:?}"),
        }
    }

    /// Rows of the log are handled like other events.
    fn read(&mut self, mut rows: Vec<Value>, until: i64) {
        let position = rows.pop().expect("a position");
        assert_eq!(kind(&position), "position", "at the end of what `changes` says");
        self.position = number(&position, "seq");
        if !rows.is_empty() && self.position < until {
            self.stage = Stage::Reading { until };
        }
        for row in rows.into_iter().rev() {
            self.buffer.push_front(row);
        }
    }

    fn obey(&mut self, event: &Value) {
        match kind(event) {
            "resync" => {
                self.resyncs += 1;
                self.stage = Stage::Deaf;
            }
            "relisten" | "alive" => {
                let boot = event.get("boot").cloned();
                let is_known = boot.is_some() && boot == self.boot;
                let is_first = kind(event) == "alive" && self.boot.is_none();
                self.boot = boot.or_else(|| self.boot.take());
                if !is_known && !is_first {
                    self.stage = Stage::Deaf;
                }
            }
            "changes" => match self.on_bell {
                OnBell::List => self.stage = Stage::first_page(),
                OnBell::Read if number(event, "seq") > self.position => {
                    self.stage = Stage::Reading { until: number(event, "seq") };
                }
                OnBell::Read => {}
            },
            "enter" | "update" | "leave" => self.apply(event),
            _ => {}
        }
    }

    fn apply(&mut self, event: &Value) {
        let (key, version) = (key_of(event), number(event, "version"));
        let is_ours = |room: &Option<String>| room.as_ref().is_none_or(|room| *room == key.0);
        if !self.rooms.iter().any(is_ours) || self.versions.get(&key).is_some_and(|held| *held >= version) {
            return;
        }
        if kind(event) == "leave" {
            self.hold(key, version, None);
        } else if event["metadata"].is_null() {
            self.stage = Stage::Getting { key, version };
        } else {
            self.hold(key, version, Some(member_of(event)));
        }
    }

    fn hold(&mut self, key: Key, version: i64, member: Option<Member>) {
        self.versions.insert(key.clone(), version);
        match member {
            Some(member) => self.members.insert(key, member),
            None => self.members.remove(&key),
        };
    }

    pub fn members(&self) -> &BTreeMap<Key, Member> {
        &self.members
    }

    /// Whether it has more work to do.
    pub fn is_busy(&self) -> bool {
        !matches!(self.stage, Stage::Following) || !self.buffer.is_empty()
    }

    /// Whether it has been told to read changes, or to listen again.
    pub fn is_called(&self) -> bool {
        !matches!(self.stage, Stage::Following)
            || self.buffer.iter().any(|event| matches!(kind(event), "changes" | "relisten" | "resync"))
    }
}

/// Whether the members held are the ones listed. A change of ttl or session raises the version without an
/// event.
pub fn is_listed(held: &BTreeMap<Key, Member>, listed: &BTreeMap<Key, Member>) -> bool {
    let same = |(held, listed): (&Member, &Member)| {
        held.version <= listed.version && *held == Member { version: held.version, ..listed.clone() }
    };
    held.keys().eq(listed.keys()) && held.values().zip(listed.values()).all(same)
}

impl Stage {
    fn first_page() -> Stage {
        Stage::Listing { room: 0, after: None, listed: BTreeMap::new() }
    }
}

/// Everything that the database lists for the caller; `rows` runs a query whose rows are one JSON value each.
pub fn listed<E>(
    rooms: Vec<Option<String>>,
    mut rows: impl FnMut(&str) -> Result<Vec<Vec<String>>, E>,
) -> Result<BTreeMap<Key, Member>, E> {
    let mut rule = Rule::new(rooms, OnBell::List, None);
    rule.list();
    while let Some(Ask::Query(sql)) = rule.next() {
        rule.answered(&rows(&sql)?);
    }
    Ok(rule.members)
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

pub fn named(room: Option<&str>) -> String {
    room.map_or("null".into(), literal)
}

fn kind(event: &Value) -> &str {
    event["event"].as_str().unwrap_or_default()
}

fn number(fields: &Value, field: &str) -> i64 {
    fields[field].as_i64().unwrap_or_else(|| panic!("no number {field}: {fields}"))
}

fn key_of(fields: &Value) -> Key {
    let text = |field: &str| fields[field].as_str().unwrap_or_default().to_owned();
    (text("room"), text("member_id"), text("connection_id"), text("node"))
}

fn member_of(fields: &Value) -> Member {
    Member {
        version: number(fields, "version"),
        user_id: fields["user_id"].as_str().unwrap_or_default().into(),
        status: fields["status"].clone(),
        state: fields["state"].clone(),
        metadata: fields["metadata"].clone(),
    }
}
