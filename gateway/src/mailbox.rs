//! How a socket is notified of changes: it receives not the changes, only where to look. A slow socket looks
//! later, and finds them all at once; however slow it is, its mailbox stays small.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::rights::Answer;
use crate::room::ViewerId;
use crate::row::Key;

/// If more rows than this have changed, all are compared.
const MOST_ROWS: usize = 256;

pub enum Change {
    Row(Arc<Key>),
    All,
    Rights(Answer),
}

/// What to look at.
#[derive(Default)]
pub struct Changes {
    pub rows: HashSet<Arc<Key>>,
    pub all: bool,
    pub rights: Option<Answer>,
}

#[derive(Default)]
pub struct Mailbox {
    changes: Mutex<HashMap<ViewerId, Changes>>,
    arrived: Notify,
}

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, HashMap<ViewerId, Changes>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn post(&self, viewer: ViewerId, change: Change) {
        let mut all = self.lock();
        let changes = all.entry(viewer).or_default();
        match change {
            Change::Row(_) if changes.all => {}
            Change::Row(key) if changes.rows.len() < MOST_ROWS => {
                changes.rows.insert(key);
            }
            Change::Row(_) | Change::All => {
                changes.all = true;
                changes.rows = HashSet::new();
            }
            Change::Rights(answer) => {
                if changes.rights.as_ref().is_none_or(|known| known.asked <= answer.asked) {
                    changes.rights = Some(answer);
                }
            }
        }
        drop(all);
        self.arrived.notify_one();
    }

    /// Waits until there are changes.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    pub fn take(&self) -> HashMap<ViewerId, Changes> {
        std::mem::take(&mut *self.lock())
    }
}
