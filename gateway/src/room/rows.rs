//! The effects of changed rows: who is present, which rooms are named, and which viewers to notify.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::{Room, State};
use crate::mailbox::Change;
use crate::row::{Key, Row};

impl Room {
    /// The row as it is held: without viewers, only who is present.
    fn keep(&self, row: &Arc<Row>) -> Arc<Row> {
        if self.viewers.is_empty() { row.stripped() } else { row.clone() }
    }

    /// Each row from the database comes with its own copy of the key. For a known member, the held copy is
    /// reused: otherwise each viewer would retain the first copy that it saw for as long as it is shown the
    /// member.
    pub(super) fn share_key(&self, row: &mut Row) {
        if let Some((key, _)) = self.rows.get_key_value(&row.key) {
            row.key = key.clone();
        }
    }

    fn tell_all(&self) {
        for (id, viewer) in &self.viewers {
            viewer.mailbox.post(*id, Change::All);
        }
    }
}

impl State {
    pub(super) fn put(&mut self, name: &Arc<str>, mut row: Row) {
        let Some(room) = self.rooms.get_mut(name) else { return };
        room.share_key(&mut row);
        let row = Arc::new(row);
        if let Some(loading) = &mut room.loading {
            loading.put(&row);
        }
        let old = room.rows.get(&row.key).cloned();
        if old.as_ref().is_some_and(|old| old.version >= row.version) {
            return;
        }
        let row = room.keep(&row);
        room.rows.insert(row.key.clone(), row.clone());
        self.changed(name, old, Some(row));
    }

    pub(super) fn remove(&mut self, name: &Arc<str>, key: &Key, version: i64) {
        let Some(room) = self.rooms.get_mut(name) else { return };
        if let Some(loading) = &mut room.loading {
            loading.remove(key, version);
        }
        if room.rows.get(key).is_some_and(|row| row.version <= version) {
            let old = room.rows.remove(key);
            self.changed(name, old, None);
        }
    }

    /// A row of the room was added, replaced or removed.
    fn changed(&mut self, name: &Arc<str>, old: Option<Arc<Row>>, new: Option<Arc<Row>>) {
        let Some(room) = self.rooms.get_mut(name) else { return };
        let Some(key) = new.as_ref().or(old.as_ref()).map(|row| row.key.clone()) else { return };

        // Users who entered or left the room: what is shared with those present may be visible to them or not
        // now.
        let (old_user, new_user) =
            (old.as_ref().map(|row| &row.user_id), new.as_ref().map(|row| &row.user_id));
        let mut moved: Vec<Arc<str>> = Vec::new();
        if old_user != new_user {
            if let Some(user) = new_user
                && count_up(&mut room.users, user)
            {
                moved.push(user.clone());
            }
            if let Some(user) = old_user
                && count_down(&mut room.users, user)
            {
                moved.push(user.clone());
            }
        }

        let (mut named, mut not_named): (Vec<Arc<str>>, Vec<Arc<str>>) = Default::default();
        for other in new.iter().flat_map(|row| row.rooms_named(name)) {
            if count_up(&mut room.names, &other) {
                named.push(other);
            }
        }
        for other in old.iter().flat_map(|row| row.rooms_named(name)) {
            if count_down(&mut room.names, &other) {
                not_named.push(other);
            }
        }

        for (id, viewer) in &room.viewers {
            let all = viewer.user_id.as_ref().is_some_and(|user| moved.contains(user));
            viewer.mailbox.post(*id, if all { Change::All } else { Change::Row(key.clone()) });
        }
        if !moved.is_empty() {
            for other in room.named_by.iter().cloned().collect::<Vec<_>>() {
                self.tell_users(&other, &moved);
            }
        }
        self.name_others(name, &named, &not_named);
        self.weigh(name);
    }

    fn tell_users(&self, name: &str, users: &[Arc<str>]) {
        let Some(room) = self.rooms.get(name) else { return };
        for (id, viewer) in &room.viewers {
            if viewer.user_id.as_ref().is_some_and(|user| users.contains(user)) {
                viewer.mailbox.post(*id, Change::All);
            }
        }
    }

    pub(super) fn replace(&mut self, name: &Arc<str>, rows: BTreeMap<Arc<Key>, Arc<Row>>) {
        let Some(room) = self.rooms.get_mut(name) else { return };
        let had = std::mem::take(&mut room.names);
        room.rows = rows.into_iter().map(|(key, row)| (key, room.keep(&row))).collect();
        room.users.clear();
        for row in room.rows.values() {
            count_up(&mut room.users, &row.user_id);
            for other in row.rooms_named(name) {
                count_up(&mut room.names, &other);
            }
        }
        let named: Vec<_> = room.names.keys().filter(|other| !had.contains_key(*other)).cloned().collect();
        let not_named: Vec<_> = had.into_keys().filter(|other| !room.names.contains_key(other)).collect();
        room.tell_all();
        for other in room.named_by.iter().cloned().collect::<Vec<_>>() {
            self.rooms.get(&other).inspect(|other| other.tell_all());
        }
        self.name_others(name, &named, &not_named);
        self.weigh(name);
    }

    /// The room has no viewers any more, but audiences name it: keeps only who is present.
    pub(super) fn strip(&mut self, name: &Arc<str>) {
        let Some(room) = self.rooms.get_mut(name) else { return };
        room.names.clear();
        room.rows.values_mut().for_each(|row| *row = row.stripped());
        self.weigh(name);
    }
}

/// Returns whether it is the first.
fn count_up(counts: &mut HashMap<Arc<str>, usize>, what: &Arc<str>) -> bool {
    let count = counts.entry(what.clone()).or_default();
    *count += 1;
    *count == 1
}

/// Returns whether it was the last.
fn count_down(counts: &mut HashMap<Arc<str>, usize>, what: &str) -> bool {
    match counts.get_mut(what) {
        Some(count) if *count > 1 => {
            *count -= 1;
            false
        }
        Some(_) => {
            counts.remove(what);
            true
        }
        None => false,
    }
}
