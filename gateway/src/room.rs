//! The rows of the rooms that somebody looks at, as a service role sees them, and who looks. What a socket shows is a
//! function of these rows and of its rights (`view`), so nothing here depends on how a change came about.
//!
//! A room is held while somebody looks at it, and while the audience of a member that somebody may look at names it
//! (`room:X`): who is present there is asked here, too (`named`).

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

/// Who looks at a room. Kept here to be told of changes, and to be asked for when rights may have changed.
#[derive(Clone)]
pub struct Viewer {
    pub identity: Arc<Identity>,
    pub mailbox: Arc<Mailbox>,
    /// As the database says; None until it has said it, and for nobody.
    pub user_id: Option<Arc<str>>,
}

pub struct Rooms {
    state: Mutex<State>,
    /// There are rooms or rows to be loaded.
    pub wanted: Notify,
    /// Rooms are to be listed as each user.
    pub to_list: Notify,
    /// Users must be shown what their own list says: audiences do not tell.
    doorbell: AtomicBool,
}

/// How much is held.
pub struct Counts {
    pub rooms: usize,
    pub rows: usize,
    pub viewers: usize,
    /// Rooms that are listed as each user.
    pub listed: usize,
}

#[derive(Default)]
pub struct State {
    rooms: HashMap<Arc<str>, Room>,
    wanted: HashSet<Arc<str>>,
    wanted_rows: HashSet<(Arc<str>, Arc<Key>)>,
    next_viewer: ViewerId,
    /// How much is held of rooms without viewers, and how much may be.
    weight: usize,
    most_named: usize,
    /// Rooms that are listed as each user, because their audiences name more than may be held.
    listed: HashSet<Arc<str>>,
    /// Rooms whose viewers are to be asked for again: listed ones that may show others now, and those that begin or cease
    /// to be listed.
    to_list: HashSet<Arc<str>>,
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
    /// Without any, rows are held without what a client is shown of them.
    viewers: HashMap<ViewerId, Viewer>,
    /// Its part of the state's weight.
    weight: usize,
    loaded: bool,
    loading: Option<Loading>,
    /// Events up to this one are in the rows.
    seq: i64,
}

impl Rooms {
    /// `most_named`: how many rooms and members may be held only because audiences name them.
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

    /// Returns whether that is another than before.
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
            // What was held is not all that is shown.
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

    pub fn count(&self) -> Counts {
        let state = self.lock();
        Counts {
            rooms: state.rooms.len(),
            rows: state.rooms.values().map(|room| room.rows.len()).sum(),
            viewers: state.rooms.values().map(|room| room.viewers.len()).sum(),
            listed: state.listed.len(),
        }
    }

    /// After each change: what follows from it for others.
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

    /// A member entered or changed. Without `seq` it comes from a list and not from an event.
    pub fn put(&self, room: &str, row: Row, seq: Option<i64>) {
        let mut state = self.lock();
        let Some((name, held)) = state.rooms.get_key_value(room) else { return };
        let (name, old_news) = (name.clone(), seq.is_some_and(|seq| seq <= held.seq));
        if !old_news {
            state.put(&name, row);
            self.act(state);
        }
    }

    /// A member left, with this version.
    pub fn remove(&self, room: &str, key: &Key, version: i64, seq: i64) {
        let mut state = self.lock();
        let Some((name, held)) = state.rooms.get_key_value(room) else { return };
        let (name, old_news) = (name.clone(), seq <= held.seq);
        if !old_news {
            state.remove(&name, key, version);
            self.act(state);
        }
    }

    /// An event had no room for the state: read the row.
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
