//! A WebSocket: one task that reads what the client says, and writes what there is to say to it. Whatever takes time is
//! done elsewhere and comes back through the mailbox (rights, rows) or as `Told` (writes).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use futures_util::{SinkExt, StreamExt};
use rand::Rng;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::App;
use crate::channel::{self, Call, Channel, JOINING, Join};
use crate::database::Trouble;
use crate::identity::Identity;
use crate::limits::{Rate, Seat};
use crate::mailbox::{Changes, Mailbox};
use crate::member::{Channel as MemberChannel, Told};
use crate::protocol::{self, Frame, Version};
use crate::rights::Rights;
use crate::room::{Viewer, ViewerId};
use crate::view::View;

const PING: Duration = Duration::from_secs(25);
/// Browsers slow the timers of hidden tabs to one a minute.
const IDLE: Duration = Duration::from_secs(100);
/// Who does not read for this long is gone.
const STUCK: Duration = Duration::from_secs(20);
/// Come back: all clients do, at once or after a second. Never 1000, after which some do not.
const RESTART: u16 = 1012;
const OFFENCE: u16 = 1008;
/// A channel that was ended for its token comes back after 1 or 3 s: so long its member stays.
const NEW_TOKEN: Duration = Duration::from_secs(5);

struct Socket {
    app: Arc<App>,
    version: Version,
    /// Who it is where it needs no token.
    made_up: String,
    /// The token in the address.
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
    /// The client can mend it: it joins again with its newest token.
    Mendable(String),
    /// The same, and the member goes at once.
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
                    Some(Ok(Message::Close(_)) | Err(_)) | None => break,
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
        // What a burst has needed is not kept.
        if state.out.capacity() > 16 {
            state.out = Vec::new();
        }
    }
    let closing = state.close.is_some();
    state.end();
    // Closed with something unread, the client would hear a broken connection instead of the reason.
    if closing {
        let unread = async { while let Some(Ok(_)) = reader.next().await {} };
        let _ = tokio::time::timeout(Duration::from_secs(2), unread).await;
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

    // What the client says

    fn read(&mut self, frame: Result<Frame, &'static str>) {
        metrics::counter!("presence_gateway_frames_received_total").increment(1);
        let frame = match frame {
            Ok(frame) => frame,
            Err(reason) => {
                let frame = Frame { topic: "phoenix".into(), ..Frame::default() };
                self.spend(1.0);
                return self.refuse(&frame, reason);
            }
        };
        if frame.topic == "phoenix" && frame.event == "heartbeat" {
            return self.reply(&frame, protocol::OK);
        }
        if !self.spend(if frame.event == "phx_join" { 5.0 } else { 1.0 }) {
            return self.refuse(&frame, "ClientJoinRateLimitReached: too many calls; wait before the next");
        }
        match frame.event.as_str() {
            "phx_join" => self.join(&frame),
            "phx_leave" => self.leave(&frame),
            "presence" => self.presence(&frame),
            "access_token" => self.access_token(&frame),
            "heartbeat" => self.reply(&frame, protocol::OK),
            "broadcast" | "postgres_changes" => {
                let reason = format!("{}: this server carries presence only", frame.event);
                self.refuse(&frame, &reason);
            }
            _ if !self.channels.contains_key(&*frame.topic) => self.refuse(&frame, "unmatched topic"),
            _ => self.refuse(&frame, "unknown event: join, leave, presence and access_token are known"),
        }
    }

    fn spend(&mut self, calls: f64) -> bool {
        match self.rate.spend(calls) {
            Ok(()) => true,
            Err(seconds) => {
                if seconds > 5.0 {
                    self.close = Some((OFFENCE, "too many calls"));
                }
                false
            }
        }
    }

    fn join(&mut self, frame: &Frame) {
        metrics::counter!("presence_gateway_joins_total").increment(1);
        let room = protocol::room_of(&frame.topic);
        let asked = Join::read(frame.payload.as_deref());
        // The same topic again ends the first, before the answer to the second.
        if let Some(old) = self.take(&frame.topic) {
            self.send(&old.join_ref, &old.join_ref, &frame.topic, "phx_close", "{}");
            self.release(&old, self.app.config.leave_grace);
        }
        if let Err(reason) = protocol::check_room(room) {
            return self.refuse(frame, reason);
        }
        if let Err(reason) = channel::check_key(asked.key.as_deref()) {
            return self.refuse(frame, &reason);
        }
        if asked.changes {
            return self.refuse(frame, "postgres_changes: this server carries presence only");
        }
        if self.channels.len() >= self.app.config.max_channels {
            return self.refuse(frame, "ChannelRateLimitReached: too many channels on one connection");
        }
        let token = asked.token.or_else(|| self.token.clone());
        let identity = match self.app.keys.identify(token.as_deref(), &self.made_up) {
            Ok(identity) => Arc::new(identity),
            Err(refusal) => return self.refuse(frame, &refusal.to_string()),
        };
        let viewer = Viewer { identity: identity.clone(), mailbox: self.mailbox.clone(), user_id: None };
        let view = View::open(&self.app.rooms, room.into(), viewer);
        let topic: Arc<str> = frame.topic.as_str().into();
        self.topics.insert(view.id, topic.clone());
        self.ask(&identity, &view);
        self.channels.insert(
            topic,
            Channel {
                join_ref: frame.join_ref.clone(),
                view,
                token,
                key: asked.key,
                presence: asked.presence,
                joining: Some((Instant::now(), frame.reference.clone())),
                begun: false,
                member: None,
            },
        );
    }

    fn ask(&self, identity: &Arc<Identity>, view: &View) {
        let (asker, identity) = (self.app.asker.clone(), identity.clone());
        let asking = [(view.room.clone(), view.id, self.mailbox.clone())];
        tokio::spawn(async move { asker.ask(&identity, &asking).await });
    }

    fn leave(&mut self, frame: &Frame) {
        self.reply(frame, protocol::OK);
        // A late one of an earlier join ends nothing.
        let is_current = self
            .channels
            .get(&*frame.topic)
            .is_some_and(|channel| frame.join_ref.is_null() || channel.join_ref == frame.join_ref);
        if is_current && let Some(channel) = self.take(&frame.topic) {
            self.send(&channel.join_ref, &channel.join_ref, &frame.topic, "phx_close", "{}");
            self.release(&channel, Duration::ZERO);
        }
    }

    fn presence(&mut self, frame: &Frame) {
        let Some(channel) = self.channels.get_mut(&*frame.topic) else {
            return self.refuse(frame, "unmatched topic");
        };
        if channel.joining.is_some() || !(frame.join_ref.is_null() || frame.join_ref == channel.join_ref) {
            return self.refuse(frame, "the channel is not joined");
        }
        let call = match Call::read(frame.payload.as_deref()) {
            Ok(call) => call,
            Err(reason) => return self.refuse(frame, reason),
        };
        let (user_id, member_id) = match channel::member_id(channel) {
            Ok(ids) => ids,
            Err(reason) => return self.refuse(frame, &reason),
        };
        let member = match (&call, &channel.member) {
            (_, Some(member)) => member.clone(),
            (Call::Untrack, None) => return self.reply(frame, protocol::OK),
            (Call::Track(_), None) => {
                let bound = MemberChannel { viewer: channel.view.id, told: self.told.clone() };
                let member = self.app.members.claim(&channel.view.room, &user_id, &member_id, &bound);
                channel.member = Some(member.clone());
                member
            }
        };
        let state = match call {
            Call::Track(state) => Some(state),
            Call::Untrack => None,
        };
        let begins = state.is_some() && !channel.presence;
        channel.presence |= begins;
        let identity = channel.view.identity.clone();
        if member.want(&identity, state, (frame.join_ref.clone(), frame.reference.clone())) {
            self.app.members.write(member);
        }
        if begins {
            self.begin(&frame.topic);
        }
    }

    fn access_token(&mut self, frame: &Frame) {
        #[derive(serde::Deserialize)]
        struct Given {
            access_token: Option<String>,
        }
        let Some(channel) = self.channels.get_mut(&*frame.topic) else { return };
        let Some(Given { access_token: Some(token) }) = frame.fields() else { return };
        if channel.token.as_deref() == Some(&*token) {
            return;
        }
        match self.app.keys.identify(Some(&token), &self.made_up) {
            // Anonymous it was, anonymous it is.
            Ok(identity) if identity == *channel.view.identity => channel.token = Some(token.into()),
            Ok(identity) => {
                let identity = Arc::new(identity);
                channel.token = Some(token.into());
                channel.view.identify(identity.clone());
                let view = &self.channels[&*frame.topic].view;
                self.ask(&identity, view);
            }
            Err(refusal) => self.end_channel(&frame.topic, End::Mendable(refusal.to_string())),
        }
    }

    // What the database says

    fn look(&mut self) {
        for (viewer, changes) in self.mailbox.take() {
            if let Some(topic) = self.topics.get(&viewer).cloned() {
                self.look_at(&topic, changes);
            }
        }
    }

    fn look_at(&mut self, topic: &Arc<str>, mut changes: Changes) {
        let Some(channel) = self.channels.get_mut(topic) else { return };
        if let Some(answer) = changes.rights.take_if(|answer| !channel.view.is_news(answer)) {
            drop(answer);
        }
        match changes.rights.as_ref().map(|answer| &answer.rights) {
            None => {}
            Some(Ok(rights)) => {
                let known = channel.view.rights.as_ref().map(|rights| rights.user_id.clone());
                if known.is_some_and(|known| known != rights.user_id) {
                    return self.end_channel(topic, End::AnotherUser);
                }
                channel.view.take_rights(rights.clone());
                if let Some(member) = &channel.member {
                    member.renew_token(&channel.view.identity);
                }
            }
            Some(Err(trouble)) if channel.joining.is_some() => {
                let reason = trouble.reason();
                return self.answer_join(topic, Some(reason));
            }
            // Who cannot be asked now is asked again; whom the database refuses sees no more than a list would show.
            Some(Err(Trouble::Away)) => {}
            Some(Err(Trouble::Refused { .. })) => {
                if let Some(rights) = channel.view.rights.clone() {
                    channel.view.take_rights(Arc::new(Rights::none(&rights)));
                }
            }
        }
        if channel.joining.is_some() {
            if channel.view.is_ready() {
                let reason = channel::refusal(channel);
                self.answer_join(topic, reason);
            }
        } else if channel.begun {
            let diff = channel.view.diff(&changes);
            if !diff.is_empty() {
                metrics::counter!("presence_gateway_diffs_total").increment(1);
                self.send(&Value::Null, &Value::Null, topic, "presence_diff", &channel::diff(&diff));
            }
        }
    }

    fn answer_join(&mut self, topic: &Arc<str>, reason: Option<String>) {
        let Some(channel) = self.channels.get_mut(topic) else { return };
        let Some((began, reference)) = channel.joining.take() else { return };
        let (join_ref, user_id) = (
            channel.join_ref.clone(),
            channel.view.rights.as_ref().and_then(|rights| rights.user_id.clone()),
        );
        let mut reason = reason;
        if let Some(user_id) = user_id
            && reason.is_none()
            && !self.seats.iter().any(|seat| seat.is_for(&user_id))
        {
            match self.app.seats.take_for(&user_id) {
                Some(seat) => self.seats.push(seat),
                None => reason = Some("ConnectionRateLimitReached: too many connections of this user".into()),
            }
        }
        metrics::histogram!("presence_gateway_join_seconds").record(began.elapsed().as_secs_f64());
        match reason {
            Some(reason) => {
                self.send(&join_ref, &reference, topic, "phx_reply", &protocol::error(&reason));
                self.take(topic);
            }
            None => {
                self.send(&join_ref, &reference, topic, "phx_reply", protocol::JOINED);
                if self.channels.get(topic).is_some_and(|channel| channel.presence) {
                    self.begin(topic);
                }
            }
        }
    }

    fn begin(&mut self, topic: &str) {
        let Some(channel) = self.channels.get_mut(topic) else { return };
        channel.begun = true;
        let (join_ref, rows) = (channel.join_ref.clone(), channel.view.begin());
        self.send(&join_ref, &Value::Null, topic, "presence_state", &channel::metas(&rows));
    }

    fn take_told(&mut self, told: Told) {
        match told {
            Told::Done { viewer, calls, result } => {
                let Some(topic) = self.topics.get(&viewer).cloned() else { return };
                let payload = match result {
                    Ok(()) => protocol::OK.to_owned(),
                    Err(reason) => protocol::error(&reason),
                };
                for (join_ref, reference) in calls {
                    self.send(&join_ref, &reference, &topic, "phx_reply", &payload);
                }
            }
            Told::Removed { viewer, reason } => {
                if let Some(topic) = self.topics.get(&viewer).cloned() {
                    let message = format!("your presence was ended: {reason}");
                    self.system(&topic, "ok", &message);
                }
            }
        }
    }

    // Time

    fn next_deadline(&self) -> Instant {
        let now = Instant::now();
        let far = now + Duration::from_secs(300);
        let of_channels = self.channels.values().flat_map(|channel| {
            let over = channel.view.identity.time_left().map(|left| now + left);
            let joined = channel.joining.as_ref().map(|(began, _)| *began + JOINING);
            [over, joined]
        });
        of_channels.flatten().chain(self.close_at).min().unwrap_or(far).min(far)
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
                self.answer_join(&topic, Some(Trouble::Away.reason()));
            }
        }
    }

    // Ends

    fn take(&mut self, topic: &str) -> Option<Channel> {
        let channel = self.channels.remove(topic)?;
        self.topics.remove(&channel.view.id);
        Some(channel)
    }

    fn release(&self, channel: &Channel, grace: Duration) {
        if let Some(member) = &channel.member {
            self.app.members.release(member, grace);
        }
    }

    fn end_channel(&mut self, topic: &str, why: End) {
        let (message, grace) = match why {
            End::Mendable(message) => (message, self.app.config.leave_grace.max(NEW_TOKEN)),
            End::AnotherUser => ("the token is another user's".into(), Duration::ZERO),
        };
        self.system(topic, "error", &message);
        if let Some(channel) = self.take(topic) {
            self.release(&channel, grace);
            self.send(&channel.join_ref, &channel.join_ref, topic, "phx_error", "{}");
        }
    }

    fn end(mut self) {
        for (_, channel) in std::mem::take(&mut self.channels) {
            self.release(&channel, self.app.config.leave_grace);
        }
    }
}
