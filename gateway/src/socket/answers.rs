//! What a client is told: answers to joins, who is present, and the results of its writes.

use std::sync::Arc;

use serde_json::Value;

use super::{End, Socket};
use crate::channel;
use crate::mailbox::Changes;
use crate::member::Told;
use crate::protocol;
use crate::rights::Rights;

impl Socket {
    pub(super) fn look(&mut self) {
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
            // A query that failed for now is repeated; after a refusal, the user sees no more than a list
            // would show.
            Some(Err(trouble)) if !trouble.is_verdict() => {}
            Some(Err(_)) => {
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

    pub(super) fn answer_join(&mut self, topic: &Arc<str>, reason: Option<String>) {
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

    pub(super) fn begin(&mut self, topic: &str) {
        let Some(channel) = self.channels.get_mut(topic) else { return };
        channel.begun = true;
        let (join_ref, rows) = (channel.join_ref.clone(), channel.view.begin());
        self.send(&join_ref, &Value::Null, topic, "presence_state", &channel::metas(&rows));
    }

    pub(super) fn take_told(&mut self, told: Told) {
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
}
