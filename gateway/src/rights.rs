//! What the database says of a user's rights: who it is, which tokens it has, whether it may read a room. Asked when a
//! channel is joined, when it gets a new token, on `relisten`, and every ten seconds where an authorizer decides.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};

use crate::database::{Database, Trouble, Verb};
use crate::identity::Identity;
use crate::mailbox::{Change, Mailbox};
use crate::room::{Rooms, ViewerId};
use crate::row::{Member, Row};

pub struct Rights {
    pub user_id: Option<Arc<str>>,
    /// Without those of rooms: who is present where is known from the rows.
    pub tokens: HashSet<Arc<str>>,
    pub read: bool,
    /// Whether members may be named otherwise than their user.
    pub any_member_id: bool,
    /// Where audiences do not tell, or name too many rooms: what the user's own list shows.
    pub listed: Option<Arc<[Arc<Row>]>>,
}

impl Rights {
    /// The same user, without any.
    pub fn none(of: &Self) -> Self {
        Self {
            user_id: of.user_id.clone(),
            tokens: HashSet::new(),
            read: false,
            any_member_id: of.any_member_id,
            listed: of.listed.as_ref().map(|_| Arc::from([])),
        }
    }
}

pub struct Answer {
    pub asked: u64,
    /// For whom: who has another token meanwhile is not meant.
    pub identity: Arc<Identity>,
    pub rights: Result<Arc<Rights>, Trouble>,
}

/// A viewer whose rights are asked for.
pub type Asking = (Arc<str>, ViewerId, Arc<Mailbox>);

/// Rooms in one question.
const MOST_ROOMS: usize = 100;

/// Who could not be asked is asked again after so long, with all others.
const SOON: Duration = Duration::from_secs(1);

pub struct Asker {
    pub database: Arc<Database>,
    pub rooms: Arc<Rooms>,
    asked: AtomicU64,
    recheck: Arc<Notify>,
    /// A recheck comes anyway.
    soon: Arc<AtomicBool>,
}

impl Asker {
    pub fn new(database: Arc<Database>, rooms: Arc<Rooms>, recheck: Arc<Notify>) -> Self {
        Self { database, rooms, asked: AtomicU64::new(1), recheck, soon: Arc::default() }
    }

    /// Ask for one user, in some rooms, and post the answers.
    pub async fn ask(&self, identity: &Arc<Identity>, viewers: &[Asking]) {
        for viewers in viewers.chunks(MOST_ROOMS) {
            // What is asked later is at least as new, whichever answer comes first.
            let asked = self.asked.fetch_add(1, Ordering::Relaxed);
            let rooms: Vec<&str> = viewers.iter().map(|(room, ..)| &**room).collect();
            for ((_, viewer, mailbox), rights) in viewers.iter().zip(self.answers(identity, &rooms).await) {
                if let Err(trouble) = &rights {
                    tracing::debug!(reason = %trouble, "could not ask for rights");
                    if !trouble.is_verdict() {
                        self.recheck_soon();
                    }
                }
                mailbox.post(*viewer, Change::Rights(Answer { asked, identity: identity.clone(), rights }));
            }
        }
    }

    /// What was asked says that something may be different, so nobody may wait for the next round.
    fn recheck_soon(&self) {
        if self.soon.swap(true, Ordering::Relaxed) {
            return;
        }
        let (soon, recheck) = (self.soon.clone(), self.recheck.clone());
        tokio::spawn(async move {
            tokio::time::sleep(SOON).await;
            soon.store(false, Ordering::Relaxed);
            recheck.notify_one();
        });
    }

    /// One for each room. An authorizer that fails for one of them fails the question: then each is asked by itself, since
    /// the others are what they were.
    async fn answers(&self, identity: &Identity, rooms: &[&str]) -> Vec<Result<Arc<Rights>, Trouble>> {
        match self.question(identity, rooms).await {
            Ok(rights) => rights.into_iter().map(Ok).collect(),
            Err(trouble) if trouble.is_verdict() && rooms.len() > 1 => {
                let mut answers = Vec::new();
                for room in rooms {
                    let rights = self.question(identity, &[room]).await;
                    answers.push(rights.and_then(|mut one| one.pop().ok_or_else(Trouble::unexpected)));
                }
                answers
            }
            Err(trouble) => vec![Err(trouble); rooms.len()],
        }
    }

    async fn question(&self, identity: &Identity, rooms: &[&str]) -> Result<Vec<Arc<Rights>>, Trouble> {
        let listing: Vec<&str> = rooms.iter().copied().filter(|room| self.rooms.is_listed(room)).collect();
        let rows = self.database.as_user(identity, Verb::Rights, &[&rooms]).await?;
        let row = rows.first().ok_or_else(Trouble::unexpected)?;
        let user_id: Option<Arc<str>> = row.try_get::<_, Option<&str>>(0)?.map(Arc::from);
        let tokens: HashSet<Arc<str>> = row
            .try_get::<_, Option<Vec<&str>>>(1)?
            .unwrap_or_default()
            .into_iter()
            .filter(|token| !token.starts_with("room:"))
            .map(Arc::from)
            .collect();
        let any_member_id = row.try_get::<_, Option<&str>>(2)? == Some("any");
        let read: Vec<Option<bool>> = row.try_get(3)?;
        if read.len() != rooms.len() {
            return Err(Trouble::unexpected());
        }
        let listed = if listing.is_empty() { HashMap::new() } else { self.list(identity, &listing).await? };
        Ok(rooms
            .iter()
            .zip(read)
            .map(|(room, read)| {
                Arc::new(Rights {
                    user_id: user_id.clone(),
                    tokens: tokens.clone(),
                    read: read == Some(true),
                    any_member_id,
                    // Two sockets of a user may look at one room.
                    listed: listing
                        .contains(room)
                        .then(|| listed.get(*room).cloned().unwrap_or_default().into()),
                })
            })
            .collect())
    }

    async fn list(
        &self,
        identity: &Identity,
        rooms: &[&str],
    ) -> Result<HashMap<String, Vec<Arc<Row>>>, Trouble> {
        let mut listed: HashMap<String, Vec<Arc<Row>>> = HashMap::new();
        for row in self.database.as_user(identity, Verb::List, &[&rooms]).await? {
            let member: Member = serde_json::from_str(row.try_get(1)?).map_err(|_| Trouble::unexpected())?;
            if let Some(member) = member.into_row() {
                listed.entry(row.try_get(0)?).or_default().push(Arc::new(member));
            }
        }
        Ok(listed)
    }

    /// Ask again for all who look at this room, or at any; a user's rooms together.
    pub async fn ask_again(self: &Arc<Self>, room: Option<&str>) {
        let mut users: HashMap<Arc<Identity>, Vec<Asking>> = HashMap::new();
        for (room, id, viewer) in self.rooms.viewers(room) {
            if !viewer.identity.is_over() {
                users.entry(viewer.identity).or_default().push((room, id, viewer.mailbox));
            }
        }
        let at_once = Arc::new(Semaphore::new(self.database.size()));
        for (identity, viewers) in users {
            let Ok(permit) = at_once.clone().acquire_owned().await else { return };
            let asker = self.clone();
            tokio::spawn(async move {
                asker.ask(&identity, &viewers).await;
                drop(permit);
            });
        }
        // Only when all have their answer may another round begin.
        let _ = at_once.acquire_many(self.database.size() as u32).await;
    }
}
