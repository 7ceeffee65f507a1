//! One channel of a socket: its identity, what it is shown, and its member.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::member::Member;
use crate::protocol;
use crate::row::Row;
use crate::view::{Diff, View};

/// How long a join may take; clients wait ten seconds for the answer.
pub const JOINING: Duration = Duration::from_secs(8);

/// Maximum nesting of a state. Clients copy states recursively: at a few thousand levels, this fails for good
/// in the clients of everybody else.
const DEEPEST: usize = 100;

pub struct Channel {
    pub join_ref: Value,
    pub view: View,
    /// The token that the channel was joined or last renewed with.
    pub token: Option<Arc<str>>,
    /// The presence key that the client asked for.
    pub key: Option<Arc<str>>,
    /// Whether the client is shown who is present.
    pub presence: bool,
    /// When the join began, and its `ref`, while it waits for rights and rows; None once it is answered.
    pub joining: Option<(Instant, Value)>,
    /// The first presence_state has been sent.
    pub begun: bool,
    pub member: Option<Arc<Member>>,
}

/// What a join asks for. Clients differ: a key may be a number, a boolean may be a string.
#[derive(Default)]
pub struct Join {
    pub key: Option<Arc<str>>,
    pub presence: bool,
    pub token: Option<Arc<str>>,
    pub changes: bool,
}

impl Join {
    pub fn read(payload: Option<&RawValue>) -> Self {
        let payload: Value = payload.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
        let config = &payload["config"];
        let text = |value: &Value| match value {
            Value::String(text) if !text.is_empty() => Some(Arc::from(text.as_str())),
            Value::Number(number) => Some(Arc::from(number.to_string())),
            _ => None,
        };
        let off = [Value::Bool(false), Value::from("false")];
        Self {
            key: text(&config["presence"]["key"]),
            presence: !off.contains(&config["presence"]["enabled"]),
            token: text(&payload["access_token"]).or_else(|| text(&payload["user_token"])),
            changes: config["postgres_changes"].as_array().is_some_and(|asked| !asked.is_empty()),
        }
    }
}

/// The call in a `presence` message.
pub enum Call {
    Track(Arc<str>),
    Untrack,
}

impl Call {
    pub fn read(payload: Option<&RawValue>) -> Result<Self, &'static str> {
        #[derive(Deserialize)]
        struct Presence<'a> {
            event: String,
            #[serde(borrow)]
            payload: Option<&'a RawValue>,
        }
        let call: Presence = payload
            .and_then(|raw| serde_json::from_str(raw.get()).ok())
            .ok_or("a presence message is {\"event\": \"track\" or \"untrack\", \"payload\"}")?;
        match call.event.to_ascii_lowercase().as_str() {
            "track" => match call.payload.map(RawValue::get) {
                Some(state) if protocol::depth(state) > DEEPEST => {
                    Err("Presence track payload is nested more than 100 levels deep")
                }
                Some(state) if state.starts_with('{') => Ok(Call::Track(state.into())),
                None => Ok(Call::Track("{}".into())),
                Some(_) => Err("Presence track payload must be a map"),
            },
            "untrack" => Ok(Call::Untrack),
            _ => Err("a presence event is track or untrack"),
        }
    }
}

/// The user_id and member_id that the channel's member gets, or why it cannot have a member. They are known
/// once the database has said who the user is.
pub fn member_id(channel: &Channel) -> Result<(Arc<str>, Arc<str>), String> {
    let Some(rights) = &channel.view.rights else { return Err("the channel is not joined".into()) };
    let Some(user_id) = &rights.user_id else {
        return Err(
            "Unauthorized: the token has no `sub`: who is nobody can see others, and not be present".into()
        );
    };
    let key = channel.key.as_ref().unwrap_or(user_id);
    check_key(Some(key))?;
    Ok((user_id.clone(), key.clone()))
}

/// Why the channel's rights do not suffice for a join.
pub fn refusal(channel: &Channel) -> Option<String> {
    let rights = channel.view.rights.as_ref()?;
    if !rights.read {
        return Some("Unauthorized: you may not read this room".into());
    }
    match (&channel.key, &rights.user_id) {
        (Some(key), Some(user_id)) if key != user_id && !rights.any_member_id => Some(
            "Unauthorized: the presence key is another user's; leave it out, or use your own user id".into(),
        ),
        _ => None,
    }
}

/// Keys with their metas, as one JSON object. The rows may come in any order.
pub fn metas(rows: &[Arc<Row>]) -> String {
    let mut rows: Vec<_> = rows.iter().collect();
    rows.sort_by(|a, b| a.key.cmp(&b.key));
    let mut text = String::from("{");
    for of_key in rows.chunk_by(|a, b| a.key.member_id == b.key.member_id) {
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&Value::from(&*of_key[0].key.member_id).to_string());
        text.push_str(r#":{"metas":["#);
        for (n, row) in of_key.iter().enumerate() {
            if n > 0 {
                text.push(',');
            }
            text.push_str(&row.meta);
        }
        text.push_str("]}");
    }
    text.push('}');
    text
}

pub fn diff(diff: &Diff) -> String {
    format!(r#"{{"joins":{},"leaves":{}}}"#, metas(&diff.joins), metas(&diff.leaves))
}

/// A key that a client chooses must not be a property that every JavaScript object has.
pub fn check_key(key: Option<&str>) -> Result<(), String> {
    match key {
        Some(key) if protocol::is_name_of_object(key) => {
            Err(format!("the presence key {key:?} is not allowed"))
        }
        Some(key) if key.chars().count() > 255 || key.chars().any(char::is_control) => {
            Err("a presence key is at most 255 characters, without control characters".into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.into()).unwrap()
    }

    #[test]
    fn joins_are_read_leniently() {
        let join = Join::read(Some(&raw(
            r#"{"config":{"presence":{"key":7,"enabled":"false"},"postgres_changes":[{}]},"user_token":"t"}"#,
        )));
        assert_eq!(join.key.as_deref(), Some("7"));
        assert_eq!(join.token.as_deref(), Some("t"));
        assert!(!join.presence && join.changes);
        for payload in ["{}", "null", "[]", r#"{"config":{"presence":{"key":""}}}"#] {
            let join = Join::read(Some(&raw(payload)));
            assert!(join.presence && join.key.is_none() && !join.changes, "{payload}");
        }
    }

    #[test]
    fn calls_are_read() {
        let call = |text: &str| Call::read(Some(&raw(text)));
        assert!(
            matches!(call(r#"{"event":"TRACK","payload":{"x":1}}"#), Ok(Call::Track(s)) if &*s == r#"{"x":1}"#)
        );
        assert!(matches!(call(r#"{"event":"untrack","payload":{}}"#), Ok(Call::Untrack)));
        for bad in [r#"{"event":"track","payload":[1]}"#, r#"{"event":"dance"}"#, "[]", r#"{"event":1}"#] {
            assert!(call(bad).is_err(), "{bad}");
        }
        assert!(Call::read(None).is_err());
        let nested = |levels: usize| {
            let (open, close) = ("[".repeat(levels - 1), "]".repeat(levels - 1));
            format!(r#"{{"event":"track","payload":{{"[\"[":{open}{close}}}}}"#)
        };
        assert!(call(&nested(100)).is_ok() && call(&nested(101)).is_err());
    }

    #[test]
    fn names_of_objects_are_no_keys() {
        assert!(check_key(Some("__proto__")).is_err() && check_key(Some("constructor")).is_err());
        assert!(check_key(Some("a\nb")).is_err() && check_key(Some("alice")).is_ok());
    }
}
