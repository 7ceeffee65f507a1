//! A WebSocket: one task that reads the client's frames and writes frames to it. Slow work runs in other
//! tasks, whose results arrive through the mailbox (rights, rows) or as `Told` (writes).

mod answers;
mod calls;

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use futures_util::{SinkExt, StreamExt};
use rand::Rng;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::App;
use crate::channel::{Channel, JOINING};
use crate::database::Trouble;
use crate::limits::{Rate, Seat};
use crate::mailbox::Mailbox;
use crate::member::Told;
use crate::protocol::{self, Frame, Version};
use crate::room::ViewerId;

const PING: Duration = Duration::from_secs(25);
/// A socket that is silent for this long is closed. Browsers slow the timers of hidden tabs to one a minute.
const IDLE: Duration = Duration::from_secs(100);
/// A client that does not read for this long is disconnected.
const STUCK: Duration = Duration::from_secs(20);
/// All clients reconnect after this code, at once or after a second. Never 1000, after which some do not.
const RESTART: u16 = 1012;
const OFFENCE: u16 = 1008;
const TOO_LARGE: u16 = 1009;
const NO_TEXT: u16 = 1007;
/// A channel that was ended because of its token is joined again after 1 or 3 s: its member stays at least
/// this long.
const NEW_TOKEN: Duration = Duration::from_secs(5);

/// How long to wait when there is no deadline.
const FAR: Duration = Duration::from_secs(300);

struct Socket {
    app: Arc<App>,
    version: Version,
    /// The user id if no token is needed.
    made_up: String,
    /// The token of the upgrade request.
    token: Option<Arc<str>>,
    channels: HashMap<Arc<str>, Channel>,
    topics: HashMap<ViewerId, Arc<str>>,
    mailbox: Arc<Mailbox>,
    told: mpsc::Sender<Told>,
    out: Vec<String>,
    rate: Rate,
    seats: Vec<Seat>,
    close: Option<(u16, &'static str)>,
    close_at: Option<Instant>,
}

enum End {
    /// The client can recover: it joins again with its newest token.
    Mendable(String),
    /// The same, but the member leaves at once.
    AnotherUser,
}

pub async fn serve(app: Arc<App>, socket: WebSocket, version: Version, token: Option<String>, seat: Seat) {
    let (told, mut is_told) = mpsc::channel(64);
    let mut state = Socket {
        version,
        made_up: app.made_up_id(),
        token: token.map(Into::into),
        channels: HashMap::new(),
        topics: HashMap::new(),
        mailbox: Arc::default(),
        told,
        out: Vec::new(),
        rate: Rate::new(app.config.max_calls),
        seats: vec![seat],
        close: None,
        close_at: None,
        app,
    };
    let (mut writer, mut reader) = socket.split();
    let mut draining = state.app.draining.subscribe();
    let (mut heard, mut pinged) = (Instant::now(), Instant::now());

    loop {
        let next = state.next_deadline().min(pinged + PING).min(heard + IDLE);
        tokio::select! {
            message = reader.next() => {
                heard = Instant::now();
                match message {
                    Some(Ok(Message::Text(text))) => state.read(protocol::read_text(state.version, &text)),
                    Some(Ok(Message::Binary(bytes))) => state.read(match state.version {
                        Version::Two => protocol::read_binary(&bytes),
                        Version::One => Err("binary frames are of vsn 2.0.0"),
                    }),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Err(error)) => match unreadable(&error) {
                        Some(offence) => state.close = Some(offence),
                        None => break,
                    },
                    Some(Ok(Message::Close(_))) | None => break,
                }
            }
            () = state.mailbox.arrived() => state.look(),
            Some(told) = is_told.recv() => state.take_told(told),
            () = tokio::time::sleep_until(next.into()) => state.tick(),
            Ok(()) = draining.changed() => {
                let spread = rand::rng().random_range(0.0..=1.0);
                state.close_at = Some(Instant::now() + state.app.config.drain.mul_f64(spread));
            }
        }

        let now = Instant::now();
        if now >= heard + IDLE {
            state.close = state.close.or(Some((OFFENCE, "idle")));
        }
        let is_last = state.close.is_some();
        let sent = async {
            if now >= pinged + PING {
                pinged = now;
                writer.feed(Message::Ping(Default::default())).await?;
            }
            for frame in state.out.drain(..) {
                metrics::counter!("presence_gateway_frames_sent_total").increment(1);
                writer.feed(Message::Text(frame.into())).await?;
            }
            if let Some((code, reason)) = state.close {
                writer.feed(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await?;
            }
            writer.flush().await
        };
        if !matches!(tokio::time::timeout(STUCK, sent).await, Ok(Ok(()))) || is_last {
            break;
        }
        // Do not keep the capacity that a burst needed.
        if state.out.capacity() > 16 {
            state.out = Vec::new();
        }
    }
    let close = state.close;
    state.end();
    // If data were left unread at the close, the client would see a broken connection instead of the reason.
    if let Some((code, _)) = close {
        let unread = async {
            while let Some(Ok(_)) = reader.next().await {}
            if matches!(code, TOO_LARGE | NO_TEXT) {
                std::future::pending::<()>().await; // nothing more can be read
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), unread).await;
    }
}

/// The close code and reason for a frame that could not be read; None: the connection is broken.
fn unreadable(error: &axum::Error) -> Option<(u16, &'static str)> {
    match error.source()?.downcast_ref()? {
        tungstenite::Error::Capacity(_) => Some((TOO_LARGE, "the frame is too large (--max-frame)")),
        tungstenite::Error::Utf8(_) => Some((NO_TEXT, "a text frame must be UTF-8")),
        _ => None,
    }
}

impl Socket {
    fn send(&mut self, join_ref: &Value, reference: &Value, topic: &str, event: &str, payload: &str) {
        self.out.push(protocol::write(self.version, join_ref, reference, topic, event, payload));
    }

    fn reply(&mut self, frame: &Frame, payload: &str) {
        self.send(&frame.join_ref, &frame.reference, &frame.topic, "phx_reply", payload);
    }

    fn refuse(&mut self, frame: &Frame, reason: &str) {
        self.reply(frame, &protocol::error(reason));
    }

    fn system(&mut self, topic: &str, status: &str, message: &str) {
        let join_ref = self.channels.get(topic).map(|channel| channel.join_ref.clone()).unwrap_or_default();
        self.send(&join_ref, &Value::Null, topic, "system", &protocol::system(status, message, topic));
    }

    // Time

    fn next_deadline(&self) -> Instant {
        let now = Instant::now();
        let of_channels = self.channels.values().flat_map(|channel| {
            let over = channel.view.identity.time_left().map(|left| now + left.min(FAR));
            let joined = channel.joining.as_ref().map(|(began, _)| *began + JOINING);
            [over, joined]
        });
        of_channels.flatten().chain(self.close_at).min().unwrap_or(now + FAR)
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if self.close_at.is_some_and(|at| at <= now) {
            self.close = Some((RESTART, "restart"));
        }
        for topic in self.channels.keys().cloned().collect::<Vec<_>>() {
            let channel = &self.channels[&topic];
            let too_late = channel.joining.as_ref().is_some_and(|(began, _)| *began + JOINING <= now);
            if channel.view.identity.is_over() {
                self.end_channel(&topic, End::Mendable("InvalidJWTToken: Token has expired".into()));
            } else if too_late {
                self.answer_join(&topic, Some(Trouble::late().reason()));
            }
        }
    }

    // Ends

    fn take(&mut self, topic: &str) -> Option<Channel> {
        let channel = self.channels.remove(topic)?;
        self.topics.remove(&channel.view.id);
        Some(channel)
    }

    /// Releases the channel's member. Pending calls are answered before the end of the channel is reported.
    fn release(&mut self, topic: &str, channel: &Channel, grace: Duration) {
        let Some(member) = &channel.member else { return };
        let payload = protocol::error("the channel has ended before the answer");
        for (join_ref, reference) in self.app.members.release(member, grace) {
            self.send(&join_ref, &reference, topic, "phx_reply", &payload);
        }
    }

    fn end_channel(&mut self, topic: &str, why: End) {
        let (message, grace) = match why {
            End::Mendable(message) => (message, self.app.config.leave_grace.max(NEW_TOKEN)),
            End::AnotherUser => ("the token is another user's".into(), Duration::ZERO),
        };
        self.system(topic, "error", &message);
        if let Some(channel) = self.take(topic) {
            self.release(topic, &channel, grace);
            self.send(&channel.join_ref, &channel.join_ref, topic, "phx_error", "{}");
        }
    }

    fn end(mut self) {
        for (topic, channel) in std::mem::take(&mut self.channels) {
            self.release(&topic, &channel, self.app.config.leave_grace);
        }
    }
}
