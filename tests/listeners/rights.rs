//! Who may see which member when: the state after each step, as a service role sees it, and the rule of
//! docs/visibility.md in plain Rust.

use crate::common::Event;
use crate::common::rule::{self, Member};
use crate::op::{Place, RITA, USERS};
use std::collections::{BTreeMap, BTreeSet};

/// A service role: the index after those of the users.
pub const SERVICE: usize = USERS.len();

pub const AUDIENCES: [&[&str]; 9] = [
    &[],
    &["any"],
    &["users"],
    &["room"],
    &["room"],
    &["room:other"],
    &["user:bob"],
    &["role:red"],
    &["team:blue", "user:carol"],
];

/// The tokens as they are stored; `room:other` is the other one of the case's rooms.
pub fn audience(index: usize, room: usize, rooms: &[String; 2]) -> Vec<String> {
    let write_out = |token: &&str| match *token {
        "room" => format!("room:{}", rooms[room]),
        "room:other" => format!("room:{}", rooms[1 - room]),
        token => token.to_owned(),
    };
    AUDIENCES[index].iter().map(write_out).collect()
}

/// (room, member_id, connection_id)
pub type Key = (usize, String, String);

/// One write, identified by the number in its status.
#[derive(Clone, Debug)]
pub struct Written {
    pub key: Key,
    pub owner: usize,
    pub audience: Vec<String>,
    /// The step after which it was first there, and the one after which it no longer was.
    pub began: usize,
    pub ended: Option<usize>,
    /// The step in which the statement ran. Events that are published together are in this order.
    pub said: usize,
    /// Deleted before its transaction ended: it can appear at most in the leave of a member that was there before.
    pub last_word: bool,
}

/// The state after a step.
#[derive(Clone, Default)]
pub struct Moment {
    /// The members that are there, each with its write.
    pub rows: BTreeMap<Key, usize>,
    /// Members whose lease has ended but whose row is still there.
    pub stale: BTreeSet<Key>,
    /// Which users are in which rooms: (user, room).
    pub present: BTreeSet<(usize, usize)>,
    /// Whether the role of each user may read.
    pub access: [bool; USERS.len()],
    /// Whether rita has the role.
    pub red: bool,
}

/// Channel names that were given to this user, who logged in or acted as this role.
#[derive(Clone, Debug)]
pub struct Grant {
    pub user: usize,
    pub role: usize,
    /// The claims contained the team. That right lasts until the names are asked for again.
    pub team: bool,
    pub room: Option<usize>,
    /// The step in which they were given.
    pub since: usize,
    /// The session listened at once, and has not been told to listen again since.
    pub is_fresh: bool,
}

impl Moment {
    pub fn shows(&self, grant: &Grant, written: &Written, rooms: &[String; 2]) -> bool {
        if grant.user == SERVICE {
            return true;
        }
        let has = |token: &String| match token.split_once(':') {
            None => true,
            Some(("user", user)) => user == USERS[grant.user],
            Some(("room", room)) => rooms
                .iter()
                .position(|known| known == room)
                .is_some_and(|room| self.present.contains(&(grant.user, room))),
            Some(("role", _)) => grant.role == RITA && self.red,
            Some(("team", _)) => grant.team,
            Some(_) => false,
        };
        self.access[grant.role] && (written.owner == grant.user || written.audience.iter().any(has))
    }
}

pub struct Model {
    pub rooms: [String; 2],
    pub moments: Vec<Moment>,
    pub writes: BTreeMap<usize, Written>,
    /// The step in which a write was made, if it is committed later.
    pub said_before: BTreeMap<usize, usize>,
    /// Like `writes`, for the settings of rooms.
    pub settings: BTreeMap<usize, Written>,
    /// The steps that asked for new names, of all rooms or of one.
    pub rotations: Vec<(usize, Option<usize>)>,
    /// An authorizer decides room by room, so listeners to all rooms get doorbells.
    pub by_room_only: bool,
}

impl Model {
    pub fn now(&self) -> &Moment {
        self.moments.last().expect("the start")
    }

    /// The number of the step that is being taken.
    pub fn next(&self) -> usize {
        self.moments.len()
    }

    pub fn may_see(&self, grant: &Grant, key: &Key) -> bool {
        let written = self.now().rows.get(key).and_then(|number| self.writes.get(number));
        written.is_some_and(|written| self.now().shows(grant, written, &self.rooms))
    }

    /// Converts a key of the database, if it is in one of the case's rooms.
    pub fn key(&self, (room, member, connection, _): &rule::Key) -> Option<Key> {
        let room = self.rooms.iter().position(|known| known == room)?;
        Some((room, member.clone(), connection.clone()))
    }

    /// Whether the room exists only to put a user in many rooms.
    pub fn is_of_crowd(&self, room: &str) -> bool {
        room.strip_prefix(&self.rooms[0]).is_some_and(|rest| rest.starts_with("crowd"))
    }

    /// The members of this case, without stale ones: a lease that ended while the row is locked has no leave yet.
    pub fn settled(&self, members: &BTreeMap<rule::Key, Member>) -> BTreeMap<rule::Key, Member> {
        let mut members = members.clone();
        members.retain(|key, _| match self.key(key) {
            Some(key) => !self.now().stale.contains(&key),
            None => self.is_of_crowd(&key.0),
        });
        members
    }

    /// Records the members after a step as the next moment.
    pub fn observe(&mut self, rows: Vec<(Key, usize, usize, Vec<String>)>, stale: BTreeSet<Key>) {
        let step = self.next();
        let mut moment = Moment { stale, ..self.now().clone() };
        (moment.rows, moment.present) = Default::default();
        for (key, number, owner, audience) in rows {
            moment.present.insert((owner, key.0));
            moment.rows.insert(key.clone(), number);
            let said = self.said_before.get(&number).copied().unwrap_or(step);
            let new = Written { key, owner, audience, began: step, ended: None, said, last_word: false };
            let written = self.writes.entry(number).or_insert(new);
            if written.last_word {
                (written.last_word, written.ended) = (false, None);
            }
        }
        for number in self.moments.last().into_iter().flat_map(|before| before.rows.values()) {
            if let Some(written) = self.writes.get_mut(number).filter(|written| written.ended.is_none())
                && moment.rows.get(&written.key) != Some(number)
            {
                written.ended = Some(step);
            }
        }
        self.moments.push(moment);
    }

    /// Whether a session with names from these grants may hear the event: the user of one of them had the right at some
    /// moment from just before the commit until now.
    pub fn may_hear(&self, grants: &[Grant], event: &Event) -> Result<(), String> {
        let (number, written, since) = self.told(event)?;
        let may = grants.iter().any(|grant| {
            let is_over = self.rotations.iter().any(|(step, room)| {
                *step >= grant.since && since > *step && (room.is_none() || grant.room == *room)
            });
            let is_of_it =
                grant.room.map_or(!self.by_room_only || grant.user == SERVICE, |room| room == written.key.0);
            !is_over
                && is_of_it
                && self.moments[since.saturating_sub(1)..]
                    .iter()
                    .any(|moment| moment.shows(grant, written, &self.rooms))
        });
        if may { Ok(()) } else { Err(format!("by names of {grants:?}: write {number}, {written:?}")) }
    }

    /// The write that the event is about, and the step that caused the event.
    pub fn told(&self, event: &Event) -> Result<(usize, &Written, usize), String> {
        let number =
            |text: Option<&str>| text.and_then(|text| text.trim_start_matches('w').parse::<usize>().ok());
        if event.kind() == "room" {
            let found = number(event["metadata"]["w"].as_str())
                .and_then(|number| Some((number, self.settings.get(&number)?)));
            return found
                .map(|(number, written)| (number, written, written.began))
                .ok_or("of no room of ours".into());
        }
        let Some(number) = number(event["status"].as_str()) else { return Err("of nobody's".into()) };
        let Some(written) = self.writes.get(&number) else { return Err("of what never was".into()) };
        let key = (self.rooms[written.key.0].as_str(), written.key.1.as_str(), written.key.2.as_str());
        if key != (event.text("room"), event.text("member_id"), event.text("connection_id")) {
            return Err(format!("of another member than {written:?}"));
        }
        match (event.kind(), written.ended) {
            ("leave", Some(ended)) => Ok((number, written, ended)),
            ("leave", None) => Err(format!("that {written:?} left, which is there")),
            _ if written.last_word => Err(format!("of {written:?}, which was only a last word")),
            _ => Ok((number, written, written.said)),
        }
    }
}

pub fn key(place: &Place) -> Key {
    (place.room, USERS[place.who].to_owned(), crate::op::CONNECTION_IDS[place.connection].to_owned())
}
