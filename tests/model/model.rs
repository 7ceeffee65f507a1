//! The expected state: rooms, leases and open transactions in memory, which behave as documented.

use crate::op::{CONNECTION_IDS, CONNECTIONS, Name, SERVICE};
use crate::reverting::Undo;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const MINUTE: i64 = 60_000_000;

/// room, member, connection
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(pub usize, pub usize, pub usize);

/// When a lease was last renewed, as far as can be told from outside: not before `from`, not after `until`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    pub from: i64,
    pub until: i64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub owner: usize,
    pub status: Option<&'static str>,
    pub state: Value,
    pub metadata: Value,
    pub audience: Vec<String>,
    /// Minutes.
    pub ttl: Option<i64>,
    pub session: Option<u32>,
    /// A new number each time the member enters.
    pub stay: u32,
    pub seen: Seen,
    /// Its announced leave.
    pub leaves: Option<Leaving>,
    pub undo: Undo,
}

/// A leave with grace: the member leaves at this time, unless it upserts before.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaving {
    pub at: Seen,
    pub reason: &'static str,
    pub last_word: Option<Value>,
}

impl Seen {
    pub fn later(self, minutes: i64) -> Seen {
        Seen { from: self.from + minutes * MINUTE, until: self.until + minutes * MINUTE }
    }
}

impl Row {
    pub fn tells_the_same(&self, other: &Row) -> bool {
        (&self.status, &self.state, &self.metadata, &self.audience, self.owner)
            == (&other.status, &other.state, &other.metadata, &other.audience, other.owner)
    }

    pub fn is_seen_alike(&self, other: &Row) -> bool {
        (&self.audience, self.owner) == (&other.audience, other.owner)
    }

    /// When it leaves, unless something happens before: by its lease, or as announced.
    pub fn ends(&self) -> Option<Seen> {
        let said = self.leaves.as_ref().map(|leaves| leaves.at);
        self.lease_ends().into_iter().chain(said).min_by_key(|end| end.until)
    }

    fn lease_ends(&self) -> Option<Seen> {
        self.ttl.map(|ttl| self.seen.later(ttl))
    }

    pub fn is_over(&self, now: i64) -> bool {
        self.ends().is_some_and(|end| end.until <= now)
    }

    /// The reason with which it leaves when its time comes, and its last row.
    fn end(&self) -> (&'static str, Row) {
        let Some(leaves) = &self.leaves else { return ("expired", self.clone()) };
        let state = leaves.last_word.clone().unwrap_or_else(|| self.state.clone());
        let is_said = self.ends() == Some(leaves.at);
        (if is_said { leaves.reason } else { "expired" }, Row { state, ..self.clone() })
    }

    /// Nothing renews a member whose leave is announced.
    pub fn renew(&mut self, seen: Seen) {
        if self.leaves.is_some() {
            return;
        }
        self.seen = Seen { from: self.seen.from.max(seen.from), until: self.seen.until.max(seen.until) };
    }
}

/// An event as the log shows it to a service role.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub kind: &'static str,
    /// Any of these may be given.
    pub reasons: Vec<&'static str>,
    pub owner: usize,
    pub status: Option<&'static str>,
    pub state: Value,
    pub metadata: Value,
    /// The alternative, where it may have ended in one of two ways.
    pub or: Option<Row>,
}

impl Event {
    pub fn of(kind: &'static str, row: &Row) -> Event {
        let (owner, status) = (row.owner, row.status);
        Event {
            kind,
            reasons: vec![],
            owner,
            status,
            state: row.state.clone(),
            metadata: row.metadata.clone(),
            or: None,
        }
    }

    pub fn leave(row: &Row, reasons: &[&'static str]) -> Event {
        Event { reasons: reasons.to_vec(), ..Event::of("leave", row) }
    }
}

/// What a transaction has done to a member.
#[derive(Clone, Debug, Default)]
pub struct Pending {
    /// As this transaction sees it.
    pub row: Option<Row>,
    pub left: Option<Event>,
    pub entered: bool,
    /// There is an update that others should hear of.
    pub told: bool,
    /// What others saw before it changed who may see it.
    pub old: Option<Row>,
    /// The row was written.
    pub written: bool,
    /// It is renewed at commit.
    pub renews: bool,
    /// The row is locked, though nothing was changed.
    pub locked: bool,
}

#[derive(Clone, Debug, Default)]
pub struct Transaction {
    pub pending: BTreeMap<Key, Pending>,
    pub saved: Vec<BTreeMap<Key, Pending>>,
    /// Including members whose changes have been undone since.
    pub touched: BTreeSet<Key>,
    pub failed: bool,
}

pub type Answer<T> = Result<T, &'static str>;

pub struct Model {
    pub rooms: [String; 2],
    pub members: BTreeMap<Key, Row>,
    pub events: BTreeMap<Key, Vec<Event>>,
    pub transactions: Vec<Option<Transaction>>,
    /// The number of each connection's session.
    pub sessions: Vec<u32>,
    pub ended: BTreeSet<u32>,
    /// Members whose state is uncertain until everything is settled: their time came while a transaction held them.
    pub unsure: BTreeSet<Key>,
    /// Members whose time has come, and which the sweeper may not have deleted yet.
    pub stale: BTreeSet<Key>,
    pub next: u32,
}

impl Model {
    pub fn new(rooms: [String; 2]) -> Model {
        Model {
            rooms,
            members: BTreeMap::new(),
            events: BTreeMap::new(),
            transactions: vec![None; CONNECTIONS.len()],
            sessions: (0..CONNECTIONS.len() as u32).collect(),
            ended: BTreeSet::new(),
            unsure: BTreeSet::new(),
            stale: BTreeSet::new(),
            next: 100,
        }
    }

    pub fn key(&self, at: usize, name: &Name, owner: Option<usize>) -> Key {
        Key(name.room, name.member.unwrap_or(owner.unwrap_or(CONNECTIONS[at])), name.connection)
    }

    pub fn is_in_transaction(&self, at: usize) -> bool {
        self.transactions[at].is_some()
    }

    pub fn has_failed(&self, at: usize) -> bool {
        self.transactions[at].as_ref().is_some_and(|open| open.failed)
    }

    pub fn savepoints(&self, at: usize) -> usize {
        self.transactions[at].as_ref().map_or(0, |open| open.saved.len())
    }

    /// Whether this connection would not have to wait for another, and what it would find is certain.
    pub fn is_free(&self, at: usize, keys: &[Key]) -> bool {
        keys.iter().all(|key| {
            !self.unsure.contains(key)
                && self.transactions.iter().enumerate().all(|(other, open)| {
                    other == at || open.as_ref().is_none_or(|open| !open.pending.contains_key(key))
                })
        })
    }

    /// Whether the sweeper is done with this member: neither is its state uncertain nor may its row be left over.
    pub fn is_swept(&self, key: &Key) -> bool {
        !self.unsure.contains(key) && !self.stale.contains(key)
    }

    pub fn is_sure(&self, keys: &[Key]) -> bool {
        keys.iter().all(|key| !self.unsure.contains(key))
    }

    /// The member as the connection sees it.
    pub fn row(&self, at: usize, key: &Key) -> Option<&Row> {
        match self.pending(at, key).filter(|pending| pending.written) {
            Some(pending) => pending.row.as_ref(),
            None => self.members.get(key),
        }
    }

    /// All members as the connection sees them.
    pub fn rows(&self, at: usize) -> BTreeMap<Key, Row> {
        self.keys().into_iter().filter_map(|key| Some((key, self.row(at, &key)?.clone()))).collect()
    }

    /// Members that are committed, or pending in an open transaction.
    pub fn keys(&self) -> BTreeSet<Key> {
        let open = self.transactions.iter().flatten().flat_map(|open| open.pending.keys());
        self.members.keys().chain(open).copied().collect()
    }

    /// Members of which this may be true in the view of some connection.
    pub fn keys_where(&self, wanted: impl Fn(&Key, &Row) -> bool) -> Vec<Key> {
        let is_wanted = |key: &Key| {
            let pending =
                self.transactions.iter().flatten().filter_map(|open| open.pending.get(key)?.row.as_ref());
            self.members.get(key).into_iter().chain(pending).any(|row| wanted(key, row))
        };
        self.keys().into_iter().filter(is_wanted).collect()
    }

    pub fn pending(&self, at: usize, key: &Key) -> Option<&Pending> {
        self.transactions[at].as_ref()?.pending.get(key)
    }

    pub fn begin(&mut self, at: usize) {
        self.transactions[at] = Some(Transaction::default());
    }

    pub fn savepoint(&mut self, at: usize) {
        if let Some(open) = &mut self.transactions[at] {
            open.saved.push(open.pending.clone());
        }
    }

    pub fn rollback_to(&mut self, at: usize) {
        if let Some(open) = &mut self.transactions[at]
            && let Some(saved) = open.saved.last()
        {
            open.pending = saved.clone();
            open.failed = false;
        }
    }

    pub fn release(&mut self, at: usize) {
        if let Some(open) = &mut self.transactions[at] {
            open.saved.pop();
        }
    }

    pub fn fail(&mut self, at: usize) {
        if let Some(open) = &mut self.transactions[at] {
            open.failed = true;
        }
    }

    pub fn rollback(&mut self, at: usize, now: i64) {
        let Some(open) = self.transactions[at].take() else { return };
        open.touched.iter().for_each(|key| self.time_tells(*key, now));
    }

    pub fn commit(&mut self, at: usize, seen: Seen) {
        let Some(open) = self.transactions[at].take() else { return };
        if !open.failed {
            for (key, pending) in open.pending {
                self.apply(key, pending, seen);
            }
        }
        open.touched.iter().for_each(|key| self.time_tells(*key, seen.until));
    }

    pub fn apply(&mut self, key: Key, pending: Pending, seen: Seen) {
        if !pending.written {
            if pending.renews
                && let Some(row) = self.members.get_mut(&key)
                && !row.is_over(seen.until)
            {
                row.renew(seen);
            }
            return;
        }
        let held = self.members.remove(&key);
        let events = self.events.entry(key).or_default();
        events.extend(pending.left);
        let Some(mut row) = pending.row else { return };
        let held = held.filter(|held| held.stay == row.stay);
        // Nobody saw the member any more: whatever was changed, it comes back.
        let back = held.as_ref().is_some_and(|held| held.is_over(seen.until)) && !row.is_over(seen.until);
        if pending.entered {
            events.push(Event::of("enter", &row));
        } else if pending.told || back {
            events.push(Event::of("update", &row));
        }
        if let Some(held) = held {
            row.renew(held.seen);
        }
        self.members.insert(key, row);
    }

    /// Handles a member whose time may have come, to leave or to revert.
    pub fn time_tells(&mut self, key: Key, now: i64) {
        let Some(row) = self.members.get(&key) else { return };
        let over = row.is_over(now);
        let disconnected = row.session.is_some_and(|session| self.ended.contains(&session));
        // A transaction may have locked whatever it touched, even if only to find it unchanged.
        let held = self.transactions.iter().flatten().any(|open| open.touched.contains(&key));
        if !over && !disconnected && !row.reverts_by(now) {
            return;
        }
        if held {
            self.unsure.insert(key);
            return;
        }
        if !over && !disconnected {
            let row = row.at(now);
            self.events.entry(key).or_default().push(Event::of("update", &row));
            self.members.insert(key, row);
            return;
        }
        // A member that ran out leaves as it was then, one that is disconnected as it is now.
        let end = row.ends().map_or(now, |end| end.until.min(now));
        let (reason, last) = row.at(if over { end } else { now }).end();
        let or = over.then(|| row.at(now).end().1);
        let reasons: &[&str] = match (over, row.session.is_some()) {
            (true, true) => &[reason, "disconnected"],
            (true, false) => &[reason],
            _ => &["disconnected"],
        };
        let event = Event { or, ..Event::leave(&last, reasons) };
        self.events.entry(key).or_default().push(event);
        self.members.remove(&key);
        self.stale.insert(key);
        for open in self.transactions.iter_mut().flatten() {
            open.pending.remove(&key);
            open.saved.iter_mut().for_each(|saved| {
                saved.remove(&key);
            });
        }
    }

    pub fn pass(&mut self, now: i64) {
        for key in self.keys() {
            self.time_tells(key, now);
            let runs_out = |open: &Transaction| {
                let rows =
                    open.saved.iter().chain([&open.pending]).filter_map(|all| all.get(&key)?.row.as_ref());
                rows.into_iter().any(|row| row.is_over(now) || row.reverts_by(now))
            };
            if self.transactions.iter().flatten().any(runs_out) {
                self.unsure.insert(key);
            }
        }
    }

    /// The connection ends, and a new one takes its place.
    pub fn end(&mut self, at: usize, now: i64) {
        self.rollback(at, now);
        self.ended.insert(self.sessions[at]);
        self.sessions[at] = self.fresh();
        for key in self.keys() {
            self.time_tells(key, now);
        }
    }

    /// What became of an unsure member is known once nobody holds it.
    pub fn settled(&mut self) {
        let held: BTreeSet<Key> =
            self.transactions.iter().flatten().flat_map(|open| open.touched.iter().copied()).collect();
        self.unsure.retain(|key| held.contains(key));
        self.stale.retain(|key| held.contains(key));
    }

    /// A statement that looks for members to change also locks those that ran out and are not swept yet, though it does
    /// not change them. The sweeper skips them until that transaction ends.
    pub fn may_have_locked(&mut self, at: usize, keys: &[Key]) {
        let Some(open) = &mut self.transactions[at] else { return };
        for key in keys.iter().filter(|key| self.stale.contains(key) && !open.pending.contains_key(key)) {
            open.touched.insert(*key);
            self.unsure.insert(*key);
        }
    }

    pub fn fresh(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    /// Runs in a transaction of its own, or as part of the one that is open.
    pub fn within<T>(
        &mut self,
        at: usize,
        seen: Seen,
        body: impl FnOnce(&mut Model) -> Answer<T>,
    ) -> Answer<T> {
        let alone = self.transactions[at].is_none();
        if alone {
            self.begin(at);
        }
        let answer = body(self);
        if answer.is_err() {
            self.fail(at);
        }
        if alone {
            self.commit(at, seen);
        }
        answer
    }

    pub fn touch(&mut self, at: usize, key: Key) -> &mut Pending {
        let held = self.members.get(&key).cloned();
        let open = self.transactions[at].get_or_insert_default();
        open.touched.insert(key);
        let fresh = Pending { row: held, ..Pending::default() };
        open.pending.entry(key).or_insert(fresh)
    }

    /// The members that a reader with these tokens sees; `room:` tokens are added here.
    pub fn visible(&self, user: Option<usize>, tokens: &[&str]) -> BTreeSet<Key> {
        let mut tokens: BTreeSet<String> = tokens.iter().map(|token| token.to_string()).collect();
        for (key, row) in &self.members {
            if Some(row.owner) == user {
                tokens.insert(format!("room:{}", self.rooms[key.0]));
            }
        }
        let sees = |row: &Row| {
            user == Some(SERVICE)
                || user == Some(row.owner)
                || row.audience.iter().any(|token| tokens.contains(token))
        };
        self.members.iter().filter(|(_, row)| sees(row)).map(|(key, _)| *key).collect()
    }
}

pub fn all_connections(key: &Key) -> Vec<Key> {
    (0..CONNECTION_IDS.len()).map(|connection| Key(key.0, key.1, connection)).collect()
}
