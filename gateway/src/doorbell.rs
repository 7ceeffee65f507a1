//! Doorbell mode: notifications only announce that something has changed, or custom policies decide who sees
//! what. The rooms that have changed are read from the log as the service role, and listed as each user who
//! looks at them, at most once a second. Rooms whose audiences name more than may be held (`room::named`) are
//! listed in the same way.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::database::{Database, Trouble};
use crate::rights::Asker;

const PAUSE: Duration = Duration::from_secs(1);

pub struct Doorbell {
    database: Arc<Database>,
    asker: Arc<Asker>,
    waits: Mutex<Waits>,
    rang: Notify,
}

#[derive(Default)]
struct Waits {
    /// The position up to which the log has been read; None before the first ring.
    read: Option<i64>,
    rang: bool,
    all: bool,
}

impl Doorbell {
    pub fn new(database: Arc<Database>, asker: Arc<Asker>) -> Self {
        Self { database, asker, waits: Mutex::default(), rang: Notify::new() }
    }

    fn waits(&self) -> std::sync::MutexGuard<'_, Waits> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn ring(&self, seq: i64) {
        let mut waits = self.waits();
        if waits.read.is_none() {
            waits.read = Some(seq);
            waits.all = true;
        }
        waits.rang = true;
        drop(waits);
        self.rang.notify_one();
    }

    pub fn ring_all(&self) {
        self.waits().all = true;
        self.rang.notify_one();
    }

    /// Lists the rooms that have changed, whenever some have.
    pub async fn keep_answering(self: Arc<Self>) {
        let mut dirty: HashSet<String> = HashSet::new();
        let mut listed: HashMap<String, Instant> = HashMap::new();
        loop {
            let next = dirty.iter().filter_map(|room| listed.get(room)).min().map(|at| *at + PAUSE);
            let wake = next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                () = self.rang.notified() => {}
                () = self.asker.rooms.to_list.notified() => {}
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            dirty.extend(self.asker.rooms.take_to_list().iter().map(|room| room.to_string()));
            if self.asker.rooms.is_doorbell() {
                match self.changed().await {
                    Ok(Some(rooms)) => dirty.extend(self.asker.rooms.want_also(rooms)),
                    Ok(None) => self.asker.ask_again(None).await,
                    Err(_) => {
                        tokio::time::sleep(Duration::from_millis(200)).await;
                        self.rang.notify_one();
                    }
                }
            }
            let now = Instant::now();
            listed.retain(|_, at| now < *at + PAUSE);
            let due: Vec<_> = dirty.iter().filter(|room| !listed.contains_key(*room)).cloned().collect();
            for room in due {
                dirty.remove(&room);
                listed.insert(room.clone(), now);
                self.asker.ask_again(Some(&room)).await;
            }
        }
    }

    /// The rooms that have changed since the last call; None: all of them may have.
    async fn changed(&self) -> Result<Option<HashSet<String>>, Trouble> {
        let (mut after, rang, all) = {
            let mut waits = self.waits();
            let (rang, all) = (std::mem::take(&mut waits.rang), std::mem::take(&mut waits.all));
            (waits.read.unwrap_or_default(), rang, all)
        };
        let mut rooms = HashSet::new();
        if rang {
            loop {
                let rows = self
                    .database
                    .as_service("select event, seq, room from presence.changes($1)", &[&after])
                    .await
                    .inspect_err(|_| {
                        let mut waits = self.waits();
                        waits.rang = true;
                        waits.all |= all;
                    })?;
                for row in &rows {
                    match row.try_get::<_, &str>(0)? {
                        "resync" => self.waits().all = true,
                        "position" => after = row.try_get(1)?,
                        _ => rooms.extend(row.try_get::<_, Option<String>>(2)?),
                    }
                }
                if rows.len() < 1000 {
                    break;
                }
            }
            self.waits().read = Some(after);
        }
        if all || std::mem::take(&mut self.waits().all) {
            return Ok(None);
        }
        Ok(Some(rooms))
    }
}
