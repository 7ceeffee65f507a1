//! The rows of the rooms that have viewers, as a service role sees them, and those viewers. What a socket
//! shows is a function of these rows and of its rights (`view`), so nothing here depends on how a change came
//! about.
//!
//! A room is held while it has viewers, and while the audience of a member in a viewed room names it
//! (`room:X`): who is present there then decides who sees that member (`named`).

mod loading;
mod named;
mod rows;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use self::loading::Loading;
use crate::identity::Identity;
use crate::mailbox::Mailbox;
use crate::row::{Key, Row};

pub type ViewerId = u64;

/// A viewer of a room, kept to notify it of changes, and to query its rights when they may have changed.
#[derive(Clone)]
pub struct Viewer {
    pub identity: Arc<Identity>,
    pub mailbox: Arc<Mailbox>,
    /// According to the database; None until it has answered, and for a token without a user.
    pub user_id: Option<Arc<str>>,
}

pub struct Rooms {
    state: Mutex<State>,
    /// Signals that there are rooms or rows to load.
    pub wanted: Notify,
    /// Signals that there are rooms to list as each user.
    pub to_list: Notify,
    /// Whether users must be shown their own lists, because audiences do not decide who is visible.
    doorbell: AtomicBool,
}

/// How much is held.
pub struct Counts {
    pub rooms: usize,
    pub rows: usize,
    pub viewers: usize,
    /// Number of rooms that are listed as each user.
    pub listed: usize,
}

#[derive(Default)]
pub struct State {
    rooms: HashMap<Arc<str>, Room>,
    wanted: HashSet<Arc<str>>,
    wanted_rows: HashSet<(Arc<str>, Arc<Key>)>,
    next_viewer: ViewerId,
    /// How many rooms without viewers, and members in them, are held, and how many may be.
    weight: usize,
    most_named: usize,
    /// Rooms that are listed as each user because their audiences name more than may be held.
    listed: HashSet<Arc<str>>,
    /// Rooms whose viewers' rights must be queried again: listed rooms whose lists may have changed, and
    /// rooms that have begun or ceased to be listed.
    to_list: HashSet<Arc<str>>,
}

#[derive(Default)]
struct Room {
    rows: BTreeMap<Arc<Key>, Arc<Row>>,
    /// Number of rows of each user.
    users: HashMap<Arc<str>, usize>,
    /// For each other room, the number of rows that name it in their audience.
    names: HashMap<Arc<str>, usize>,
    /// Rooms with viewers whose rows name this one.
    named_by: HashSet<Arc<str>>,
    /// If there are none, the rows are held without what clients are shown of them.
    viewers: HashMap<ViewerId, Viewer>,
    /// Its share of `State::weight`.
    weight: usize,
    loaded: bool,
    loading: Option<Loading>,
    /// Events up to this one are reflected in the rows.
    seq: i64,
}

impl Rooms {
    /// `most_named`: the maximum number of rooms and members held only because audiences name their rooms.
    pub fn new(most_named: usize) -> Self {
        Self {
            state: Mutex::new(State { most_named, ..State::default() }),
            wanted: Notify::new(),
            to_list: Notify::new(),
            doorbell: AtomicBool::new(false),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_doorbell(&self) -> bool {
        self.doorbell.load(Ordering::Relaxed)
    }

    /// Returns whether the mode has changed.
    pub fn set_doorbell(&self, doorbell: bool) -> bool {
        self.doorbell.swap(doorbell, Ordering::Relaxed) != doorbell
    }

    pub fn look(&self, room: &Arc<str>, viewer: Viewer) -> ViewerId {
        let mut state = self.lock();
        state.next_viewer += 1;
        let id = state.next_viewer;
        let held = state.hold(room);
        held.viewers.insert(id, viewer);
        if held.viewers.len() == 1 {
            // Rows held so far lack what clients are shown: load them again.
            held.loaded = false;
            state.hold(room);
            state.weigh(room);
        }
        self.act(state);
        id
    }

    pub fn look_away(&self, room: &Arc<str>, viewer: ViewerId) {
        let mut state = self.lock();
        let Some(held) = state.rooms.get_mut(room) else { return };
        if held.viewers.remove(&viewer).is_some() && held.viewers.is_empty() {
            state.unfollow(room);
            state.listed.remove(room);
            if !state.drop_if_unused(room) {
                state.strip(room);
            }
            self.act(state);
        }
    }

    /// Stores the viewer's user id according to the database: from now on the viewer is found by it.
    pub fn know(&self, room: &Arc<str>, viewer: ViewerId, user_id: Option<&Arc<str>>) {
        if let Some(viewer) = self.lock().rooms.get_mut(room).and_then(|room| room.viewers.get_mut(&viewer)) {
            viewer.user_id = user_id.cloned();
        }
    }

    /// Stores the viewer's new identity after it got another token.
    pub fn identify(&self, room: &Arc<str>, viewer: ViewerId, identity: &Arc<Identity>) {
        if let Some(viewer) = self.lock().rooms.get_mut(room).and_then(|room| room.viewers.get_mut(&viewer)) {
            viewer.identity = identity.clone();
        }
    }

    /// The viewers of this room, or of all rooms.
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

    pub fn count(&self) -> Counts {
        let state = self.lock();
        Counts {
            rooms: state.rooms.len(),
            rows: state.rooms.values().map(|room| room.rows.len()).sum(),
            viewers: state.rooms.values().map(|room| room.viewers.len()).sum(),
            listed: state.listed.len(),
        }
    }

    /// Called after each change: keeps the rooms within the bound, and signals new work.
    fn act(&self, mut state: MutexGuard<'_, State>) {
        state.shed();
        if !state.wanted.is_empty() || !state.wanted_rows.is_empty() {
            self.wanted.notify_one();
        }
        if !state.to_list.is_empty() {
            self.to_list.notify_one();
        }
    }

    // Events

    /// A member entered or changed. `seq` is None if the row comes from a list and not from an event.
    pub fn put(&self, room: &str, row: Row, seq: Option<i64>) {
        let mut state = self.lock();
        let Some((name, held)) = state.rooms.get_key_value(room) else { return };
        let (name, old_news) = (name.clone(), seq.is_some_and(|seq| seq <= held.seq));
        if !old_news {
            state.put(&name, row);
            self.act(state);
        }
    }

    /// A member left with this version.
    pub fn remove(&self, room: &str, key: &Key, version: i64, seq: i64) {
        let mut state = self.lock();
        let Some((name, held)) = state.rooms.get_key_value(room) else { return };
        let (name, old_news) = (name.clone(), seq <= held.seq);
        if !old_news {
            state.remove(&name, key, version);
            self.act(state);
        }
    }

    /// The state did not fit into the event: the row must be loaded.
    pub fn want_row(&self, room: &str, key: Key) {
        let mut state = self.lock();
        if let Some((name, _)) = state.rooms.get_key_value(room) {
            let name = name.clone();
            state.wanted_rows.insert((name, Arc::new(key)));
            self.act(state);
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
}
