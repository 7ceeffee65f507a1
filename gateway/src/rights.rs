//! A user's rights according to the database: the user id, the audience tokens, and whether the user may read
//! a room. They are queried when a channel is joined, when it gets a new token, on `relisten`, and every ten
//! seconds if an authorizer decides.

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
    /// Without the tokens of rooms: who is present in which room is known from the rows.
    pub tokens: HashSet<Arc<str>>,
    pub read: bool,
    /// Whether a member_id may differ from the user id.
    pub any_member_id: bool,
    /// The user's own list, where audiences do not decide who is visible, or name too many rooms.
    pub listed: Option<Arc<[Arc<Row>]>>,
}

impl Rights {
    /// The same user without any rights.
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
    /// The identity that the rights were queried for: they do not apply to a viewer with another token by
    /// now.
    pub identity: Arc<Identity>,
    pub rights: Result<Arc<Rights>, Trouble>,
}

/// A viewer whose rights are queried.
pub type Asking = (Arc<str>, ViewerId, Arc<Mailbox>);

/// Maximum number of rooms in one query.
const MOST_ROOMS: usize = 100;

/// If a query fails, all rights are queried again after this time.
const SOON: Duration = Duration::from_secs(1);

pub struct Asker {
    pub database: Arc<Database>,
    pub rooms: Arc<Rooms>,
    asked: AtomicU64,
    recheck: Arc<Notify>,
    /// Whether a recheck is already scheduled.
    soon: Arc<AtomicBool>,
}

impl Asker {
    pub fn new(database: Arc<Database>, rooms: Arc<Rooms>, recheck: Arc<Notify>) -> Self {
        Self { database, rooms, asked: AtomicU64::new(1), recheck, soon: Arc::default() }
    }

    /// Queries the rights of one user in some rooms, and posts the answers.
    pub async fn ask(&self, identity: &Arc<Identity>, viewers: &[Asking]) {
        for viewers in viewers.chunks(MOST_ROOMS) {
            // The answer to a later query is at least as new, whichever answer comes first.
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

    /// A query means that something may have changed, so a failed one does not wait for the next round.
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

    /// One answer for each room. If the authorizer fails for one room, the whole query fails; then each room
    /// is queried separately, since the rights in the others are unaffected.
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
                    // Cloned, not removed: two sockets of a user may look at one room.
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

    /// Queries again the rights of all viewers of this room, or of any; all rooms of a user together.
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
        // The next round may begin only when all have their answer.
        let _ = at_once.acquire_many(self.database.size() as u32).await;
    }
}
