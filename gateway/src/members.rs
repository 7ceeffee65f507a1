//! All members of this gateway: found by room, user and member_id, renewed together, and ended after their
//! grace period.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::distr::Alphanumeric;
use tokio::sync::Notify;

use crate::database::{Database, Trouble};
use crate::member::{Calls, Channel, Member, Told};
use crate::row::Key;

/// A third of the lease, so that two renewals may fail.
const RENEWAL: Duration = Duration::from_secs(10);
/// How much longer members from before a restart are kept: clients reconnect after 1, 2, 5, 10 s.
const ADOPTED: Duration = Duration::from_secs(10);
const BATCH: usize = 1000;

/// Room, user, member_id.
type Owner = (Arc<str>, Arc<str>, Arc<str>);

pub struct Members {
    database: Arc<Database>,
    name: String,
    held: Mutex<HashMap<Owner, Vec<Arc<Member>>>>,
    leaving: Mutex<BTreeMap<(Instant, u64), Arc<Member>>>,
    wake: Notify,
}

impl Members {
    pub fn new(database: Arc<Database>, name: String) -> Self {
        Self { database, name, held: Mutex::default(), leaving: Mutex::default(), wake: Notify::new() }
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Owner, Vec<Arc<Member>>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn count(&self) -> usize {
        self.held().values().map(Vec::len).sum()
    }

    /// Number of entries in the queue of members whose socket or channel is gone.
    pub fn count_leaving(&self) -> usize {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The member for a channel: one left behind by a closed socket of the same user, or a new one.
    pub fn claim(
        &self,
        room: &Arc<str>,
        user_id: &Arc<str>,
        member_id: &Arc<str>,
        channel: &Channel,
    ) -> Arc<Member> {
        let owner = (room.clone(), user_id.clone(), member_id.clone());
        let mut held = self.held();
        let members = held.entry(owner).or_default();
        if let Some(left) = members.iter().find(|member| member.take_over(channel)) {
            return left.clone();
        }
        let random: String = rand::rng().sample_iter(Alphanumeric).take(16).map(char::from).collect();
        let connection_id = format!("{}/{random}", self.name).into();
        let key = Key::here(member_id.clone(), connection_id);
        let member = Arc::new(Member::new(room.clone(), key, user_id.clone()));
        member.bind(channel);
        members.push(member.clone());
        member
    }

    /// Sends the member's pending write.
    pub fn write(self: &Arc<Self>, member: Arc<Member>) {
        let members = self.clone();
        tokio::spawn(async move {
            member.write(&members.database).await;
        });
    }

    /// The member's socket or channel is gone: it leaves after this time. Returns the calls that will get no
    /// answer.
    pub fn release(&self, member: &Arc<Member>, grace: Duration) -> Calls {
        let at = Instant::now() + grace;
        let calls = member.release(at);
        self.schedule(at, member.clone());
        calls
    }

    fn schedule(&self, at: Instant, member: Arc<Member>) {
        let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.insert((at, rand::random()), member);
        drop(leaving);
        self.wake.notify_one();
    }

    /// Handles a leave event. If it is about a member of this gateway that should be present, its channel is
    /// told, or the member enters again.
    pub fn heard_leave(self: &Arc<Self>, room: &str, user_id: &str, key: &Key, version: i64, reason: &str) {
        if !key.connection_id.starts_with(&*self.name) {
            return;
        }
        let owner = (Arc::from(room), Arc::from(user_id), key.member_id.clone());
        let is_it = |member: &&Arc<Member>| member.key.is_alike(key);
        let member = self.held().get(&owner).and_then(|all| all.iter().find(is_it).cloned());
        let Some(member) = member else { return };
        match reason {
            "removed" | "left" => {
                if let Some(Channel { viewer, told }) = member.was_ended(version, reason) {
                    // Dropped if the queue is full: a slow client still sees it in what it is shown.
                    let _ = told.try_send(Told::Removed { viewer, reason: reason.into() });
                }
            }
            _ => self.enter_again(&member),
        }
    }

    fn enter_again(self: &Arc<Self>, member: &Arc<Member>) {
        if member.enter_again() {
            self.write(member.clone());
        }
    }

    /// Adopts members from before a restart under the same name. Members of a gateway of that name at another
    /// server have no lease here.
    pub async fn adopt(self: &Arc<Self>) -> Result<usize, Trouble> {
        let rows = self
            .database
            .as_service(
                "select room, member_id, connection_id, user_id, version from presence.online \
                 where pg_catalog.starts_with(connection_id, $1) and expires_at is not null",
                &[&format!("{}/", self.name)],
            )
            .await?;
        let at = Instant::now() + ADOPTED;
        for row in &rows {
            let text = |n: usize| row.try_get::<_, &str>(n).map(Arc::<str>::from);
            let key = Key::here(text(1)?, text(2)?);
            let member = Arc::new(Member::new(text(0)?, key, text(3)?));
            member.adopt(row.try_get(4)?, at);
            let owner = (member.room.clone(), member.user_id.clone(), member.key.member_id.clone());
            self.held().entry(owner).or_default().push(member.clone());
            self.schedule(at, member);
        }
        Ok(rows.len())
    }

    /// Renews all members, and enters again those that the database has lost. Returns how many it has lost.
    pub async fn renew(self: &Arc<Self>) -> Result<usize, Trouble> {
        let all: Vec<_> =
            self.held().values().flatten().filter(|member| member.is_there()).cloned().collect();
        let mut lost = 0;
        for batch in all.chunks(BATCH) {
            let rooms: Vec<&str> = batch.iter().map(|member| &*member.room).collect();
            let member_ids: Vec<&str> = batch.iter().map(|member| &*member.key.member_id).collect();
            let connection_ids: Vec<&str> = batch.iter().map(|member| &*member.key.connection_id).collect();
            let missing = self
                .database
                .as_service(
                    "select room, member_id, connection_id from presence.heartbeat_many($1, $2, $3)",
                    &[&rooms, &member_ids, &connection_ids],
                )
                .await?;
            if missing.is_empty() {
                continue;
            }
            let missing: std::collections::HashSet<(&str, &str, &str)> = missing
                .iter()
                .map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))
                .collect::<Result<_, tokio_postgres::Error>>()?;
            for member in batch {
                if missing.contains(&(&*member.room, &*member.key.member_id, &*member.key.connection_id)) {
                    lost += 1;
                    self.enter_again(member);
                }
            }
        }
        Ok(lost)
    }

    pub async fn keep_renewing(self: Arc<Self>) {
        loop {
            tokio::time::sleep(RENEWAL).await;
            if let Err(trouble) = self.renew().await {
                tracing::warn!(reason = %trouble, "could not renew");
            }
        }
    }

    pub async fn keep_ending(self: Arc<Self>) {
        loop {
            let next = self.next_leave();
            tokio::select! {
                () = tokio::time::sleep_until(next.into()) => {}
                () = self.wake.notified() => continue,
            }
            self.end_due().await;
        }
    }

    fn next_leave(&self) -> Instant {
        let leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.keys().next().map_or_else(|| Instant::now() + Duration::from_secs(3600), |(at, _)| *at)
    }

    /// The gateway shuts down: all members leave soon, unless their clients return before to a gateway of the
    /// same name.
    pub async fn leave_soon(&self) {
        let all: Vec<_> =
            self.held().values().flatten().filter(|member| member.is_there()).cloned().collect();
        let after = format!("{} s", ADOPTED.as_secs());
        for batch in all.chunks(BATCH) {
            if let Err(trouble) = self.delete(batch, &after).await {
                tracing::warn!(reason = %trouble, "members stay until their lease ends");
                return;
            }
        }
    }

    async fn delete(&self, members: &[Arc<Member>], after: &str) -> Result<(), Trouble> {
        let members: Vec<_> = members
            .iter()
            .map(|member| {
                serde_json::json!({
                    "room": member.room, "member_id": member.key.member_id,
                    "connection_id": member.key.connection_id, "reason": "left", "after": after,
                })
            })
            .collect();
        let members = serde_json::Value::Array(members).to_string();
        self.database.as_service("select presence.delete_many($1::text::jsonb)", &[&members]).await?;
        Ok(())
    }

    async fn end_due(&self) {
        let now = Instant::now();
        let mut due = Vec::new();
        {
            let mut leaving = self.leaving.lock().unwrap_or_else(PoisonError::into_inner);
            while due.len() < BATCH
                && let Some(first) = leaving.first_entry()
                && first.key().0 <= now
            {
                due.push(first.remove());
            }
        }
        let mut ending = Vec::new();
        for member in due {
            // Takeovers hold the same lock, so none can happen between this check and the removal.
            let mut held = self.held();
            let due = member.is_due(now);
            if due.is_ok() {
                forget(&mut held, &member);
            }
            drop(held);
            match due {
                Ok(()) if member.is_there() => ending.push(member),
                Err(Some(later)) => self.schedule(later, member),
                _ => {}
            }
        }
        if ending.is_empty() {
            return;
        }
        let members: Vec<_> = ending
            .iter()
            .map(|member| {
                serde_json::json!({
                    "room": member.room, "member_id": member.key.member_id,
                    "connection_id": member.key.connection_id, "reason": "left",
                })
            })
            .collect();
        let members = serde_json::Value::Array(members).to_string();
        let ended =
            self.database.as_service("select presence.delete_many($1::text::jsonb)", &[&members]).await;
        if let Err(trouble) = ended {
            tracing::warn!(
                reason = %trouble,
                members = ending.len(),
                "could not end members; trying again"
            );
            let again = Instant::now() + Duration::from_secs(1);
            ending.into_iter().for_each(|member| self.schedule(again, member));
        }
    }
}

fn forget(held: &mut HashMap<Owner, Vec<Arc<Member>>>, member: &Arc<Member>) {
    let owner = (member.room.clone(), member.user_id.clone(), member.key.member_id.clone());
    if let Some(members) = held.get_mut(&owner) {
        members.retain(|other| !Arc::ptr_eq(other, member));
        if members.is_empty() {
            held.remove(&owner);
        }
    }
}
