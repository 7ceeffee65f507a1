//! The listening connection, and the handling of its notifications. It follows the rule for clients of
//! presence: listen; buffer events; list completely; replace the rows; apply newer events; repeat after each
//! gap.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::connect::Heard;
use crate::database::{Database, PATIENCE, Trouble};
use crate::doorbell::Doorbell;
use crate::members::Members;
use crate::rights::Asker;
use crate::room::Rooms;
use crate::row::Member;

/// Capacity of the notification queue. When it overflows, all rooms are listed again.
const WAITING: usize = 16_384;
/// How often the connection is checked.
const PULSE: Duration = Duration::from_secs(5);

pub struct Listener {
    pub database: Arc<Database>,
    pub rooms: Arc<Rooms>,
    pub members: Arc<Members>,
    pub asker: Arc<Asker>,
    pub doorbell: Arc<Doorbell>,
    /// Signals that all rights must be queried again.
    pub recheck: Arc<Notify>,
    pub state: std::sync::Mutex<Hearing>,
}

/// Whether the gateway listens to the database: for /healthz, the metrics and the loader.
#[derive(Clone, Copy, PartialEq)]
pub enum Hearing {
    Nothing,
    All,
}

#[derive(Deserialize)]
struct Event<'a> {
    event: &'a str,
    #[serde(default)]
    seq: i64,
    room: Option<String>,
    reason: Option<&'a str>,
    boot: Option<String>,
}

struct Session {
    client: Client,
    channels: Vec<String>,
    worker: Option<i32>,
    boot: Option<String>,
    seq: i64,
}

impl Listener {
    /// Listens, and reconnects whenever the session ends.
    pub async fn run(self: Arc<Self>) {
        let mut wait = Duration::from_millis(100);
        let mut seq: Option<i64> = None;
        loop {
            let began = Instant::now();
            let ended = self.session(&mut seq).await;
            self.set(Hearing::Nothing);
            let reason = ended.err().map(|trouble| trouble.to_string()).unwrap_or_default();
            tracing::warn!(reason, "not listening to the database; trying again");
            metrics::counter!("presence_gateway_reconnects_total").increment(1);
            if began.elapsed() > Duration::from_secs(10) {
                wait = Duration::from_millis(100);
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(2));
        }
    }

    fn set(&self, hearing: Hearing) {
        *self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = hearing;
    }

    async fn session(self: &Arc<Self>, known: &mut Option<i64>) -> Result<(), Trouble> {
        let (heard, mut hears) = mpsc::channel(WAITING);
        let client = within(self.database.connector().connect_to_listen(heard)).await?;
        let mut session = Session { client, channels: Vec::new(), worker: None, boot: None, seq: 0 };
        self.listen(&mut session).await?;
        self.look_at_mode().await?;

        // After a reconnect: first renew this gateway's members; after a crash, give other gateways a moment
        // to do the same; then list all rooms.
        if let Some(seq) = *known {
            self.database.renew_sessions();
            let crashed = self.hear_reasons(seq).await?;
            let lost = self.members.renew().await?;
            if crashed {
                tracing::info!(lost, "the database was restarted; waiting for others to enter again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            self.recheck.notify_one();
        }
        *known = Some(session.seq);
        self.rooms.want_all();
        self.set(Hearing::All);
        tracing::info!(channels = session.channels.len(), "listening");

        let mut pulse = tokio::time::interval(PULSE);
        pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                heard = hears.recv() => match heard {
                    Some(Heard::Notification(notification)) => {
                        self.hear(&mut session, notification.process_id(), notification.payload()).await?;
                        *known = Some(session.seq);
                    }
                    Some(Heard::Lost) => self.rooms.want_all(),
                    None => return Err(Trouble::late()),
                },
                _ = pulse.tick() => {
                    within(async { Ok(session.client.simple_query("select 1").await?) }).await?;
                }
            }
        }
    }

    /// Listens to a service role's channels for all rooms; their names may have changed.
    async fn listen(&self, session: &mut Session) -> Result<(), Trouble> {
        within(async {
            let client = &session.client;
            let row = client
                .query_one(
                    "select array(select presence.channels()), presence.worker_pid(), presence.seq()",
                    &[],
                )
                .await?;
            let channels: Vec<String> = row.try_get(0)?;
            let mut statements = String::new();
            for channel in channels.iter().filter(|channel| !session.channels.contains(channel)) {
                statements.push_str(&format!("listen \"{}\";", channel.replace('"', "\"\"")));
            }
            for channel in session.channels.iter().filter(|channel| !channels.contains(channel)) {
                statements.push_str(&format!("unlisten \"{}\";", channel.replace('"', "\"\"")));
            }
            client.batch_execute(&statements).await?;
            session.worker = row.try_get(1)?;
            session.seq = session.seq.max(row.try_get(2)?);
            session.channels = channels;
            Ok(())
        })
        .await
    }

    /// Reads from the log who was removed while the gateway did not listen. Returns true if the log does not
    /// reach back that far: the server has crashed.
    async fn hear_reasons(self: &Arc<Self>, since: i64) -> Result<bool, Trouble> {
        let mut after = since;
        loop {
            let rows = self
                .database
                .as_service(
                    "select event, seq, room, user_id, member_id, connection_id, version, reason \
                     from presence.changes($1)",
                    &[&after],
                )
                .await?;
            let count = rows.len();
            for row in rows {
                match row.try_get::<_, &str>(0)? {
                    "resync" => return Ok(true),
                    "leave" => {
                        let text =
                            |n: usize| row.try_get::<_, Option<&str>>(n).map(Option::unwrap_or_default);
                        let key = crate::row::Key::here(text(4)?.into(), text(5)?.into());
                        let reason = text(7)?;
                        // Members that expired meanwhile are entered again by the renewal that follows.
                        if matches!(reason, "removed" | "left") {
                            self.members.heard_leave(text(2)?, text(3)?, &key, row.try_get(6)?, reason);
                        }
                    }
                    "position" => after = row.try_get(1)?,
                    _ => {}
                }
            }
            if count < 1000 {
                return Ok(false);
            }
        }
    }

    async fn hear(
        self: &Arc<Self>,
        session: &mut Session,
        sender: i32,
        payload: &str,
    ) -> Result<(), Trouble> {
        // Anybody can send notifications; genuine events come only from the worker.
        if session.worker != Some(sender) {
            session.worker = within(async {
                Ok(session.client.query_one("select presence.worker_pid()", &[]).await?.try_get(0)?)
            })
            .await?;
            if session.worker != Some(sender) {
                return Ok(());
            }
        }
        let Ok(event) = serde_json::from_str::<Event>(payload) else { return Ok(()) };
        session.seq = session.seq.max(event.seq);
        match event.event {
            "enter" | "update" | "leave" => {
                if self.rooms.is_doorbell() {
                    self.recheck.notify_one(); // apparently no longer in this mode
                }
                if let (Some(room), Ok(member)) = (event.room, serde_json::from_str::<Member>(payload)) {
                    self.hear_member(event.event, event.seq, &room, member, event.reason);
                }
            }
            "changes" => {
                if self.rooms.set_doorbell(true) {
                    self.recheck.notify_one();
                }
                self.doorbell.ring(session.seq);
            }
            "resync" => {
                self.rooms.want_all();
                self.doorbell.ring_all();
            }
            "relisten" => {
                if event.boot.is_some() && event.boot == session.boot {
                    return Ok(());
                }
                session.boot = event.boot.or(session.boot.take());
                self.listen(session).await?;
                self.rooms.want_all();
                match &event.room {
                    Some(room) => {
                        let (asker, room) = (self.asker.clone(), room.clone());
                        tokio::spawn(async move { asker.ask_again(Some(&room)).await });
                    }
                    None => {
                        // The authorizer may have changed, and settings apply only to new sessions.
                        self.database.renew_sessions();
                        self.recheck.notify_one();
                    }
                }
            }
            "alive" => {
                if session.boot.is_some() && event.boot != session.boot {
                    self.listen(session).await?;
                    self.rooms.want_all();
                }
                session.boot = event.boot;
            }
            _ => {}
        }
        Ok(())
    }

    fn hear_member(
        self: &Arc<Self>,
        event: &str,
        seq: i64,
        room: &str,
        member: Member,
        reason: Option<&str>,
    ) {
        let key = member.key();
        if event != "update" {
            self.rooms.moved(room);
        }
        if event == "leave" {
            self.rooms.remove(room, &key, member.version, seq);
            self.members.heard_leave(room, &member.user_id, &key, member.version, reason.unwrap_or_default());
        } else {
            match member.into_row() {
                Some(row) => self.rooms.put(room, row, Some(seq)),
                None => self.rooms.want_row(room, key),
            }
        }
    }
}

async fn within<T>(what: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    timeout(PATIENCE, what).await.unwrap_or(Err(Trouble::late()))
}
