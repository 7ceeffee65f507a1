//! Loading the rows of a room: merges a list with the changes since it was requested.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Rooms;
use crate::row::{Key, Row};

/// The changes since the list was requested; they take precedence over rows of the list that are not newer.
#[derive(Default)]
pub(super) struct Loading {
    rows: HashMap<Arc<Key>, Arc<Row>>,
    left: HashMap<Arc<Key>, i64>,
}

impl Rooms {
    /// After a gap: requests new lists of all rooms. What is shown stays until they arrive.
    pub fn want_all(&self) {
        let mut state = self.lock();
        state.wanted = state.rooms.keys().cloned().collect();
        let listed: Vec<_> = state.listed.iter().cloned().collect();
        state.to_list.extend(listed);
        self.act(state);
    }

    /// These rooms have changed in unknown ways: requests those that are held. Returns these, and the rooms
    /// whose audiences name the changed ones, so that what their users see there may have changed.
    pub fn want_also(&self, rooms: HashSet<String>) -> HashSet<String> {
        let mut state = self.lock();
        let mut concerned = HashSet::new();
        for room in rooms {
            concerned.extend(state.listed_naming(&room).map(|other| other.to_string()));
            if let Some((name, held)) = state.rooms.get_key_value(&*room) {
                concerned.extend(held.named_by.iter().map(|other| other.to_string()));
                let name = name.clone();
                state.wanted.insert(name);
                concerned.insert(room);
            }
        }
        self.act(state);
        concerned
    }

    /// Takes up to `at_most` of the wanted rooms. From here on their events are kept for `install`.
    pub fn begin_loading(&self, at_most: usize) -> Vec<Arc<str>> {
        let mut state = self.lock();
        let rooms: Vec<_> = state.wanted.iter().take(at_most).cloned().collect();
        for room in &rooms {
            state.wanted.remove(room);
            if let Some(room) = state.rooms.get_mut(room) {
                room.loading = Some(Loading::default());
            }
        }
        rooms
    }

    pub fn begin_loading_rows(&self, at_most: usize) -> Vec<(Arc<str>, Arc<Key>)> {
        let mut state = self.lock();
        let rows: Vec<_> = state.wanted_rows.iter().take(at_most).cloned().collect();
        rows.iter().for_each(|row| {
            state.wanted_rows.remove(row);
        });
        rows
    }

    pub fn loading_failed(&self, rooms: Vec<Arc<str>>, rows: Vec<(Arc<str>, Arc<Key>)>) {
        let mut state = self.lock();
        let held: Vec<_> = rooms.into_iter().filter(|room| state.rooms.contains_key(room)).collect();
        state.wanted.extend(held);
        state.wanted_rows.extend(rows);
    }

    /// Replaces the rows of a room by those of a list and the changes since. `seq`: events up to it are in
    /// the list.
    pub fn install(&self, room: &Arc<str>, listed: Vec<Row>, seq: i64) {
        let mut state = self.lock();
        let Some(held) = state.rooms.get_mut(room) else { return };
        let Some(Loading { rows: mut newer, left }) = held.loading.take() else { return };
        for mut row in listed {
            if left.get(&row.key).is_some_and(|version| *version >= row.version)
                || newer.get(&row.key).is_some_and(|event| event.version >= row.version)
            {
                continue;
            }
            held.share_key(&mut row);
            newer.insert(row.key.clone(), Arc::new(row));
        }
        held.loaded = true;
        held.seq = held.seq.max(seq);
        state.replace(room, newer.into_iter().collect());
        self.act(state);
    }
}

impl Loading {
    pub(super) fn put(&mut self, row: &Arc<Row>) {
        let newest = self.rows.get(&row.key).is_none_or(|known| known.version < row.version)
            && self.left.get(&row.key).is_none_or(|left| *left < row.version);
        if newest {
            self.left.remove(&row.key);
            self.rows.insert(row.key.clone(), row.clone());
        }
    }

    pub(super) fn remove(&mut self, key: &Key, version: i64) {
        if self.rows.get(key).is_some_and(|row| row.version <= version) {
            self.rows.remove(key);
        }
        let left = self.left.entry(Arc::new(key.clone())).or_insert(version);
        *left = version.max(*left);
    }
}
