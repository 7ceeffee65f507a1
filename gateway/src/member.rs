//! A member of this gateway: the state it should have, its writes, one at a time, and when it must be renewed
//! and ended. A member outlives its socket by the grace period: the next track of the same user, room and key
//! takes it over, so that others do not notice a reloaded page.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::mpsc;

use crate::database::{Database, Trouble, Verb};
use crate::identity::Identity;
use crate::room::ViewerId;
use crate::row::Key;

/// How long a member outlives a killed gateway.
pub const LEASE: &str = "30 s";

pub struct Member {
    pub room: Arc<str>,
    pub key: Key,
    pub user_id: Arc<str>,
    wish: Mutex<Wish>,
}

/// Calls awaiting an answer: `join_ref` and `ref` of each.
pub type Calls = Vec<(Value, Value)>;

/// Messages to the channel's socket.
pub enum Told {
    Done {
        viewer: ViewerId,
        calls: Calls,
        result: Result<(), String>,
    },
    /// Somebody else ended the member.
    Removed {
        viewer: ViewerId,
        reason: String,
    },
}

#[derive(Clone)]
pub struct Channel {
    pub viewer: ViewerId,
    pub told: mpsc::Sender<Told>,
}

struct Next {
    state: Option<Arc<str>>,
    /// No client has called: the member must enter again as it was.
    again: bool,
}

#[derive(Default)]
struct Wish {
    identity: Option<Arc<Identity>>,
    /// The member's state as far as known; None: it is not present.
    state: Option<Arc<str>>,
    /// The pending write: only the latest is sent.
    next: Option<Next>,
    /// The channel's calls that the pending write will answer, and those that the write in progress will
    /// answer.
    waiting: Calls,
    asked: Calls,
    /// Some while a write is in progress: whether it ends the member.
    writing: Option<bool>,
    version: i64,
    /// The version with which somebody else ended the member.
    ended: i64,
    channel: Option<Channel>,
    leave_at: Option<Instant>,
}

impl Member {
    pub fn new(room: Arc<str>, key: Key, user_id: Arc<str>) -> Self {
        Self { room, key, user_id, wish: Mutex::default() }
    }

    fn wish(&self) -> MutexGuard<'_, Wish> {
        self.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The member was found in the database, from before a restart.
    pub fn adopt(&self, version: i64, leave_at: Instant) {
        let mut wish = self.wish();
        wish.version = version;
        wish.state = Some("{}".into());
        wish.leave_at = Some(leave_at);
    }

    /// Takes over what a closed socket has left. Returns false if the member has a channel.
    pub fn take_over(&self, channel: &Channel) -> bool {
        let mut wish = self.wish();
        let free = wish.channel.is_none() && wish.leave_at.is_some();
        if free {
            wish.channel = Some(channel.clone());
            wish.leave_at = None;
        }
        free
    }

    pub fn bind(&self, channel: &Channel) {
        self.wish().channel = Some(channel.clone());
    }

    /// The channel is gone. The member leaves at this time unless it is taken over. Returns the calls that
    /// have no answer yet: their answers would go to the next channel, whose calls may have the same numbers.
    pub fn release(&self, leave_at: Instant) -> Calls {
        let mut wish = self.wish();
        wish.channel = None;
        wish.leave_at = Some(leave_at);
        let mut calls = std::mem::take(&mut wish.asked);
        calls.append(&mut wish.waiting);
        calls
    }

    /// Whether it is time to leave: not if the member was taken over, and not while a write is in progress.
    /// The error says when to check again, if at all.
    pub fn is_due(&self, now: Instant) -> Result<(), Option<Instant>> {
        let wish = self.wish();
        match wish.leave_at {
            Some(at) if at <= now && wish.writing.is_none() => Ok(()),
            Some(at) => Err(Some(at.max(now + Duration::from_millis(20)))),
            None => Err(None),
        }
    }

    /// Whether the member is present, so that its lease must be renewed.
    pub fn is_there(&self) -> bool {
        let wish = self.wish();
        wish.state.is_some() && wish.version > 0
    }

    pub fn renew_token(&self, identity: &Arc<Identity>) {
        self.wish().identity = Some(identity.clone());
    }

    /// Track (a state) or untrack (None). Returns whether `write` must be called.
    #[must_use]
    pub fn want(&self, identity: &Arc<Identity>, state: Option<Arc<str>>, call: (Value, Value)) -> bool {
        let mut wish = self.wish();
        wish.identity = Some(identity.clone());
        wish.waiting.push(call);
        wish.next = Some(Next { state, again: false });
        wish.writing.is_none()
    }

    /// The database has lost the member. It enters again unless somebody has ended it. Returns whether
    /// `write` must be called.
    #[must_use]
    pub fn enter_again(&self) -> bool {
        let mut wish = self.wish();
        let wanted = wish.channel.is_some() && wish.next.is_none() && wish.writing.is_none();
        match wish.state.clone() {
            Some(state) if wanted && wish.ended <= wish.version => {
                wish.next = Some(Next { state: Some(state), again: true });
                true
            }
            _ => false,
        }
    }

    /// The member was ended. If somebody else did it, returns the channel to tell.
    pub fn was_ended(&self, version: i64, reason: &str) -> Option<Channel> {
        let mut wish = self.wish();
        let by_us = wish.writing == Some(true) || wish.leave_at.is_some();
        if version <= wish.version || (reason == "left" && by_us) {
            return None;
        }
        wish.ended = wish.ended.max(version);
        if wish.writing.is_some() {
            return None; // the write in progress is newer than this end, or turns out to be older
        }
        wish.state.take()?;
        wish.channel.clone()
    }

    /// Sends pending writes, one after the other.
    pub async fn write(&self, database: &Database) {
        loop {
            let (identity, state, again) = {
                let mut wish = self.wish();
                if wish.writing.is_some() {
                    return;
                }
                let Some(Next { state, again }) = wish.next.take() else { return };
                wish.asked = std::mem::take(&mut wish.waiting);
                wish.writing = Some(state.is_none());
                (wish.identity.clone(), state, again)
            };
            let result = match identity {
                Some(identity) if !identity.is_over() => {
                    self.send(database, &identity, state.as_deref()).await
                }
                _ => Err(Trouble::Refused {
                    code: "28000".into(),
                    message: "the token has expired".into(),
                    hint: None,
                }),
            };
            let (channel, calls, result, removed) = {
                let mut wish = self.wish();
                wish.writing = None;
                let mut removed = None;
                let result = match result {
                    Ok(Some(version)) => {
                        wish.version = version;
                        wish.state = state;
                        if wish.ended > version {
                            wish.state = None;
                            removed = Some("removed".to_owned());
                        }
                        Ok(())
                    }
                    Ok(None) => {
                        wish.state = None;
                        Ok(())
                    }
                    Err(trouble) => {
                        // The member was to enter again, and the database refuses it.
                        if again && trouble.is_verdict() {
                            wish.state = None;
                            removed = Some(trouble.reason());
                        }
                        Err(trouble.reason())
                    }
                };
                (wish.channel.clone(), std::mem::take(&mut wish.asked), result, removed)
            };
            if let Some(channel) = channel {
                let viewer = channel.viewer;
                if !calls.is_empty() {
                    let _ = channel.told.send(Told::Done { viewer, calls, result }).await;
                }
                if let Some(reason) = removed {
                    let _ = channel.told.send(Told::Removed { viewer, reason }).await;
                }
            }
        }
    }

    async fn send(
        &self,
        database: &Database,
        identity: &Identity,
        state: Option<&str>,
    ) -> Result<Option<i64>, Trouble> {
        let (room, member_id, connection_id) = (&*self.room, &*self.key.member_id, &*self.key.connection_id);
        match state {
            Some(state) => {
                let rows = database
                    .as_user(identity, Verb::Track, &[&room, &state, &member_id, &connection_id, &LEASE])
                    .await;
                rows.and_then(|rows| match rows.first() {
                    Some(row) => Ok(Some(row.try_get(0)?)),
                    None => Err(Trouble::unexpected()),
                })
            }
            None => {
                let rows =
                    database.as_user(identity, Verb::Untrack, &[&room, &member_id, &connection_id]).await;
                rows.map(|_| None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> (Member, Channel) {
        let key = Key::here("ann".into(), "g/1".into());
        let (told, _) = mpsc::channel(1);
        let channel = Channel { viewer: 1, told };
        (Member::new("r".into(), key, "ann".into()), channel)
    }

    #[test]
    fn who_comes_back_takes_over_and_only_once() {
        let (member, channel) = member();
        member.bind(&channel);
        assert!(!member.take_over(&channel));
        let now = Instant::now();
        member.release(now);
        assert!(member.is_due(now).is_ok());
        assert!(member.take_over(&channel) && !member.take_over(&channel));
        assert_eq!(member.is_due(now), Err(None));
    }

    #[test]
    fn what_was_ended_by_somebody_is_not_entered_again() {
        let (member, channel) = member();
        member.bind(&channel);
        member.wish().state = Some("{}".into());
        member.wish().version = 5;
        assert!(member.was_ended(4, "removed").is_none()); // of an earlier stay
        assert!(member.enter_again());
        member.wish().next = None;
        assert!(member.was_ended(6, "removed").is_some());
        assert!(member.was_ended(6, "removed").is_none());
        assert!(!member.enter_again() && !member.is_there());
    }

    #[test]
    fn our_own_leave_is_nobody_elses() {
        let (member, channel) = member();
        member.bind(&channel);
        member.wish().state = Some("{}".into());
        member.wish().writing = Some(true);
        assert!(member.was_ended(6, "left").is_none());
        member.wish().writing = None;
        assert!(member.was_ended(7, "left").is_some());
    }

    #[test]
    fn of_writes_that_wait_the_last_is_sent_with_all_calls() {
        let (member, _) = member();
        let identity = Arc::new(Identity { role: "r".into(), claims: "{}".into(), expires: None });
        let call = |n: i64| (Value::Null, Value::from(n));
        assert!(member.want(&identity, Some("1".into()), call(1)));
        member.wish().writing = Some(false);
        assert!(!member.want(&identity, None, call(2)));
        assert!(!member.want(&identity, Some("3".into()), call(3)));
        let wish = member.wish();
        assert_eq!(wish.next.as_ref().unwrap().state.as_deref(), Some("3"));
        assert_eq!(wish.waiting.len(), 3);
    }

    #[test]
    fn who_takes_over_gets_no_answers_of_another() {
        let (member, channel) = member();
        member.bind(&channel);
        let identity = Arc::new(Identity { role: "r".into(), claims: "{}".into(), expires: None });
        let call = |n: i64| (Value::Null, Value::from(n));
        assert!(member.want(&identity, Some("1".into()), call(1)));
        assert_eq!(member.release(Instant::now()), [call(1)]);
        assert!(member.take_over(&channel) && member.wish().waiting.is_empty());
    }
}
