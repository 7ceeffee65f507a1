//! What a client sends: joins, leaves, presence calls, tokens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{End, OFFENCE, Socket};
use crate::channel::{self, Call, Channel, Join};
use crate::identity::Identity;
use crate::member::Channel as MemberChannel;
use crate::protocol::{self, Frame};
use crate::room::Viewer;
use crate::view::View;

impl Socket {
    pub(super) fn read(&mut self, frame: Result<Frame, &'static str>) {
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
        // Joining a topic again ends the first channel, before the second join is answered.
        if let Some(old) = self.take(&frame.topic) {
            self.release(&frame.topic, &old, self.app.config.leave_grace);
            self.send(&old.join_ref, &old.join_ref, &frame.topic, "phx_close", "{}");
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
        // A late leave of an earlier join ends nothing.
        let is_current = self
            .channels
            .get(&*frame.topic)
            .is_some_and(|channel| frame.join_ref.is_null() || channel.join_ref == frame.join_ref);
        let left = if is_current { self.take(&frame.topic) } else { None };
        if let Some(channel) = &left {
            self.release(&frame.topic, channel, Duration::ZERO);
        }
        self.reply(frame, protocol::OK);
        if let Some(channel) = left {
            self.send(&channel.join_ref, &channel.join_ref, &frame.topic, "phx_close", "{}");
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
            // The same identity, such as an anonymous user that stays anonymous.
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
}
