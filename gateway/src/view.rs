//! What one viewer is shown of a room: differences between what it was shown and what it may see now.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::identity::Identity;
use crate::mailbox::Changes;
use crate::rights::{Answer, Rights};
use crate::room::{Rooms, State, Viewer, ViewerId};
use crate::row::{Key, Row};

pub struct View {
    rooms: Arc<Rooms>,
    pub room: Arc<str>,
    pub id: ViewerId,
    pub identity: Arc<Identity>,
    pub rights: Option<Arc<Rights>>,
    /// The query that the rights come from: a late answer to an earlier one is ignored.
    asked: u64,
    shown: HashMap<Arc<Key>, Arc<Row>>,
}

#[derive(Default)]
pub struct Diff {
    pub joins: Vec<Arc<Row>>,
    pub leaves: Vec<Arc<Row>>,
}

impl Diff {
    pub fn is_empty(&self) -> bool {
        self.joins.is_empty() && self.leaves.is_empty()
    }
}

impl View {
    pub fn open(rooms: &Arc<Rooms>, room: Arc<str>, viewer: Viewer) -> Self {
        let identity = viewer.identity.clone();
        let id = rooms.look(&room, viewer);
        Self { rooms: rooms.clone(), room, id, identity, rights: None, asked: 0, shown: HashMap::new() }
    }

    /// Switches to another token; answers to queries for the previous one are ignored.
    pub fn identify(&mut self, identity: Arc<Identity>) {
        self.rooms.identify(&self.room, self.id, &identity);
        self.identity = identity;
    }

    /// Whether this is the newest answer so far, and for the current token.
    pub fn is_news(&mut self, answer: &Answer) -> bool {
        let news = answer.asked >= self.asked && answer.identity == self.identity;
        if news {
            self.asked = answer.asked;
        }
        news
    }

    pub fn take_rights(&mut self, rights: Arc<Rights>) {
        self.rooms.know(&self.room, self.id, rights.user_id.as_ref());
        self.rights = Some(rights);
    }

    /// Whether what is to be shown is known: rights, and rows.
    pub fn is_ready(&self) -> bool {
        self.rights.as_ref().is_some_and(|rights| {
            let state = self.rooms.lock();
            rights.listed.is_some() || self.is_by_rows(&state) && state.is_loaded(&self.room)
        })
    }

    /// Whether the rows of the room determine what is shown; otherwise the user's own list does.
    fn is_by_rows(&self, state: &State) -> bool {
        !self.rooms.is_doorbell() && !state.is_listed(&self.room)
    }

    /// Everything that is visible now, as the client's initial state.
    pub fn begin(&mut self) -> Vec<Arc<Row>> {
        self.shown.clear();
        let mut rows = self.compare_all().joins;
        rows.sort_by(|a, b| a.key.cmp(&b.key));
        rows
    }

    pub fn diff(&mut self, changes: &Changes) -> Diff {
        let listed = self.rights.as_ref().is_some_and(|rights| rights.listed.is_some());
        if changes.all || changes.rights.is_some() || listed {
            return self.compare_all();
        }
        let Some(rights) = self.rights.clone() else { return Diff::default() };
        let rooms = self.rooms.clone();
        let state = rooms.lock();
        if !self.is_by_rows(&state) {
            return Diff::default(); // the user's own list is on its way
        }
        let mut diff = Diff::default();
        for key in &changes.rows {
            let now = state.row(&self.room, key).filter(|row| sees(&state, &rights, row)).cloned();
            self.compare(&mut diff, key, now);
        }
        diff
    }

    fn compare(&mut self, diff: &mut Diff, key: &Arc<Key>, now: Option<Arc<Row>>) {
        let before = match &now {
            Some(row) => self.shown.insert(key.clone(), row.clone()),
            None => self.shown.remove(key),
        };
        let is_same = match (&before, &now) {
            (Some(before), Some(now)) => before.is_same(now),
            (None, None) => true,
            _ => false,
        };
        if !is_same {
            diff.leaves.extend(before);
            diff.joins.extend(now);
        }
    }

    fn compare_all(&mut self) -> Diff {
        let Some(rights) = self.rights.clone() else { return Diff::default() };
        let now: Vec<Arc<Row>> = match &rights.listed {
            Some(listed) => listed.to_vec(),
            None => {
                let state = self.rooms.lock();
                // What is shown stays until the rows, or the user's own list, have arrived.
                if !self.is_by_rows(&state) || !state.is_loaded(&self.room) {
                    return Diff::default();
                }
                state.rows(&self.room).filter(|row| sees(&state, &rights, row)).cloned().collect()
            }
        };
        let keys: HashSet<_> = now.iter().map(|row| row.key.clone()).collect();
        let gone: Vec<_> = self.shown.keys().filter(|key| !keys.contains(*key)).cloned().collect();
        let mut diff = Diff::default();
        for key in gone {
            self.compare(&mut diff, &key, None);
        }
        for row in now {
            self.compare(&mut diff, &row.key.clone(), Some(row));
        }
        diff
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.rooms.look_away(&self.room, self.id);
    }
}

/// The visibility rule: users see their own rows and, in rooms that they may read, rows whose audience names
/// a token that they have.
fn sees(state: &State, rights: &Rights, row: &Row) -> bool {
    if rights.user_id.as_ref() == Some(&row.user_id) {
        return true;
    }
    rights.read
        && row.audience.iter().any(|token| match token.strip_prefix("room:") {
            Some(room) => rights.user_id.as_ref().is_some_and(|user| state.is_present(room, user)),
            None => rights.tokens.contains(token),
        })
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
