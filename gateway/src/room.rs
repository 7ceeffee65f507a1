//! The rows of the rooms that somebody looks at, as a service role sees them, and who looks. What a socket shows is a
//! function of these rows and of its rights (`view`), so nothing here depends on how a change came about.
//!
//! A room is held while somebody looks at it, and while the audience of a member that somebody may look at names it
//! (`room:X`): who is present there is asked here, too.

mod loading;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use self::loading::Loading;
use crate::identity::Identity;
use crate::mailbox::{Change, Mailbox};
use crate::row::{Key, Row};

pub type ViewerId = u64;

/// Who looks at a room. Kept here to be told of changes, and to be asked for when rights may have changed.
#[derive(Clone)]
pub struct Viewer {
    pub identity: Arc<Identity>,
    pub mailbox: Arc<Mailbox>,
    /// As the database says; None until it has said it, and for nobody.
    pub user_id: Option<Arc<str>>,
}

#[derive(Default)]
pub struct Rooms {
    state: Mutex<State>,
    /// There are rooms or rows to be loaded.
    pub wanted: Notify,
    /// Users must be shown what their own list says: audiences do not tell.
    doorbell: AtomicBool,
}

#[derive(Default)]
pub struct State {
    rooms: HashMap<Arc<str>, Room>,
    wanted: HashSet<Arc<str>>,
    wanted_rows: HashSet<(Arc<str>, Arc<Key>)>,
    next_viewer: ViewerId,
}

#[derive(Default)]
struct Room {
    rows: BTreeMap<Arc<Key>, Arc<Row>>,
    /// How many rows each user has here.
    users: HashMap<Arc<str>, usize>,
    /// How many rows name each other room in their audience.
    names: HashMap<Arc<str>, usize>,
    /// Rooms with viewers whose rows name this one.
    named_by: HashSet<Arc<str>>,
    viewers: HashMap<ViewerId, Viewer>,
    loaded: bool,
    loading: Option<Loading>,
    /// Events up to this one are in the rows.
    seq: i64,
}

impl Rooms {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_doorbell(&self) -> bool {
        self.doorbell.load(Ordering::Relaxed)
    }

    /// Returns whether that is another than before.
    pub fn set_doorbell(&self, doorbell: bool) -> bool {
        self.doorbell.swap(doorbell, Ordering::Relaxed) != doorbell
    }

    pub fn look(&self, room: &Arc<str>, viewer: Viewer) -> ViewerId {
        let mut state = self.lock();
        state.next_viewer += 1;
        let id = state.next_viewer;
        state.hold(room).viewers.insert(id, viewer);
        if state.hold(room).viewers.len() == 1 {
            state.follow(room);
        }
        self.wake_loader(&state);
        id
    }

    pub fn look_away(&self, room: &Arc<str>, viewer: ViewerId) {
        let mut state = self.lock();
        let Some(held) = state.rooms.get_mut(room) else { return };
        if held.viewers.remove(&viewer).is_some() && held.viewers.is_empty() {
            state.unfollow(room);
            state.drop_if_unused(room);
        }
    }

    /// What the database says of who looks: from now on the viewer is found by its user.
    pub fn know(&self, room: &Arc<str>, viewer: ViewerId, user_id: Option<&Arc<str>>) {
        if let Some(viewer) = self.lock().rooms.get_mut(room).and_then(|room| room.viewers.get_mut(&viewer)) {
            viewer.user_id = user_id.cloned();
        }
    }

    /// The viewer has another token.
    pub fn identify(&self, room: &Arc<str>, viewer: ViewerId, identity: &Arc<Identity>) {
        if let Some(viewer) = self.lock().rooms.get_mut(room).and_then(|room| room.viewers.get_mut(&viewer)) {
            viewer.identity = identity.clone();
        }
    }

    /// Everybody who looks at this room, or at any.
    pub fn viewers(&self, room: Option<&str>) -> Vec<(Arc<str>, ViewerId, Viewer)> {
        let state = self.lock();
        let of = |(name, room): (&Arc<str>, &Room)| {
            let name = name.clone();
            room.viewers
                .iter()
                .map(move |(id, viewer)| (name.clone(), *id, viewer.clone()))
                .collect::<Vec<_>>()
        };
        match room {
            Some(room) => state.rooms.get_key_value(room).map(of).unwrap_or_default(),
            None => state.rooms.iter().flat_map(of).collect(),
        }
    }

    pub fn count(&self) -> (usize, usize) {
        let state = self.lock();
        (state.rooms.len(), state.rooms.values().map(|room| room.rows.len()).sum())
    }

    // Events

    /// A member entered or changed. `loaded` rows come from a list and not from an event.
    pub fn put(&self, room: &str, row: Row, seq: Option<i64>) {
        let mut state = self.lock();
        let Some((name, held)) = state.rooms.get_key_value(room) else { return };
        let (name, old_news) = (name.clone(), seq.is_some_and(|seq| seq <= held.seq));
        if !old_news {
            state.put(&name, Arc::new(row));
            self.wake_loader(&state);
        }
    }

    /// A member left, with this version.
    pub fn remove(&self, room: &str, key: &Key, version: i64, seq: i64) {
        let mut state = self.lock();
        let Some((name, held)) = state.rooms.get_key_value(room) else { return };
        let (name, old_news) = (name.clone(), seq <= held.seq);
        if !old_news {
            state.remove(&name, key, version);
        }
    }

    /// An event had no room for the state: read the row.
    pub fn want_row(&self, room: &str, key: Key) {
        let mut state = self.lock();
        if let Some((name, _)) = state.rooms.get_key_value(room) {
            let name = name.clone();
            state.wanted_rows.insert((name, Arc::new(key)));
            self.wake_loader(&state);
        }
    }
}

impl State {
    pub fn is_loaded(&self, room: &str) -> bool {
        self.rooms.get(room).is_some_and(|room| room.loaded)
    }

    pub fn row(&self, room: &str, key: &Key) -> Option<&Arc<Row>> {
        self.rooms.get(room)?.rows.get(key)
    }

    pub fn rows(&self, room: &str) -> impl Iterator<Item = &Arc<Row>> {
        self.rooms.get(room).into_iter().flat_map(|room| room.rows.values())
    }

    pub fn is_present(&self, room: &str, user_id: &str) -> bool {
        self.rooms.get(room).is_some_and(|room| room.users.contains_key(user_id))
    }

    fn hold(&mut self, name: &Arc<str>) -> &mut Room {
        let room = self.rooms.entry(name.clone()).or_default();
        if !room.loaded && room.loading.is_none() {
            self.wanted.insert(name.clone());
        }
        room
    }

    fn drop_if_unused(&mut self, name: &Arc<str>) {
        if self.rooms.get(name).is_some_and(|room| room.viewers.is_empty() && room.named_by.is_empty()) {
            self.rooms.remove(name);
            self.wanted.remove(name);
        }
    }

    /// Hold the rooms that this one's rows name.
    fn follow(&mut self, name: &Arc<str>) {
        let Some(room) = self.rooms.get(name) else { return };
        for named in room.names.keys().cloned().collect::<Vec<_>>() {
            self.hold(&named).named_by.insert(name.clone());
        }
    }

    fn unfollow(&mut self, name: &Arc<str>) {
        let Some(room) = self.rooms.get(name) else { return };
        for named in room.names.keys().cloned().collect::<Vec<_>>() {
            if let Some(other) = self.rooms.get_mut(&named) {
                other.named_by.remove(name);
            }
            self.drop_if_unused(&named);
        }
    }

    fn put(&mut self, name: &Arc<str>, row: Arc<Row>) {
        let Some(room) = self.rooms.get_mut(name) else { return };
        if let Some(loading) = &mut room.loading {
            loading.put(&row);
        }
        let old = room.rows.get(&row.key).cloned();
        if old.as_ref().is_some_and(|old| old.version >= row.version) {
            return;
        }
        room.rows.insert(row.key.clone(), row.clone());
        self.changed(name, old, Some(row));
    }

    fn remove(&mut self, name: &Arc<str>, key: &Key, version: i64) {
        let Some(room) = self.rooms.get_mut(name) else { return };
        if let Some(loading) = &mut room.loading {
            loading.remove(key, version);
        }
        if room.rows.get(key).is_some_and(|row| row.version <= version) {
            let old = room.rows.remove(key);
            self.changed(name, old, None);
        }
    }

    /// A row of the room is another now: who is present and which rooms are named, and tell whom it may concern.
    fn changed(&mut self, name: &Arc<str>, old: Option<Arc<Row>>, new: Option<Arc<Row>>) {
        let Some(room) = self.rooms.get_mut(name) else { return };
        let Some(key) = new.as_ref().or(old.as_ref()).map(|row| row.key.clone()) else { return };

        // Who came or went here: what is for those present is another question for them.
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

        let has_viewers = !room.viewers.is_empty();
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
        if has_viewers {
            for other in named {
                self.hold(&other).named_by.insert(name.clone());
            }
            for other in not_named {
                if let Some(room) = self.rooms.get_mut(&other) {
                    room.named_by.remove(name);
                }
                self.drop_if_unused(&other);
            }
        }
    }

    fn tell_users(&self, name: &str, users: &[Arc<str>]) {
        let Some(room) = self.rooms.get(name) else { return };
        for (id, viewer) in &room.viewers {
            if viewer.user_id.as_ref().is_some_and(|user| users.contains(user)) {
                viewer.mailbox.post(*id, Change::All);
            }
        }
    }

    fn replace(&mut self, name: &Arc<str>, rows: BTreeMap<Arc<Key>, Arc<Row>>) {
        let Some(room) = self.rooms.get_mut(name) else { return };
        let had: Vec<_> = room.names.keys().cloned().collect();
        room.rows = rows;
        room.users.clear();
        room.names.clear();
        for row in room.rows.values() {
            count_up(&mut room.users, &row.user_id);
            for other in row.rooms_named(name) {
                count_up(&mut room.names, &other);
            }
        }
        for (id, viewer) in &room.viewers {
            viewer.mailbox.post(*id, Change::All);
        }
        let (has_viewers, names) = (!room.viewers.is_empty(), room.names.clone());
        for other in room.named_by.iter().cloned().collect::<Vec<_>>() {
            if let Some(other) = self.rooms.get(&other) {
                for (id, viewer) in &other.viewers {
                    viewer.mailbox.post(*id, Change::All);
                }
            }
        }
        if has_viewers {
            self.follow(name);
            for other in had.into_iter().filter(|other| !names.contains_key(other)) {
                if let Some(room) = self.rooms.get_mut(&other) {
                    room.named_by.remove(name);
                }
                self.drop_if_unused(&other);
            }
        }
    }
}

/// Whether it is the first.
fn count_up(counts: &mut HashMap<Arc<str>, usize>, what: &Arc<str>) -> bool {
    let count = counts.entry(what.clone()).or_default();
    *count += 1;
    *count == 1
}

/// Whether it was the last.
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
