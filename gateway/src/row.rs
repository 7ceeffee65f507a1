//! A member as the gateway holds it: what determines who sees it, and what they are shown.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::protocol;

#[derive(PartialEq, Eq, Hash, PartialOrd, Ord, Clone, Debug)]
pub struct Key {
    pub member_id: Arc<str>,
    pub connection_id: Arc<str>,
    /// With several servers, the one where the member is. None for keys that this gateway writes: those
    /// members are at the server that it writes to.
    pub node: Option<Arc<str>>,
}

impl Key {
    /// The key of a member that this gateway writes.
    pub fn here(member_id: Arc<str>, connection_id: Arc<str>) -> Self {
        Self { member_id, connection_id, node: None }
    }

    /// Whether the keys are the same, apart from the server.
    pub fn is_alike(&self, other: &Self) -> bool {
        self.member_id == other.member_id && self.connection_id == other.connection_id
    }
}

pub struct Row {
    pub key: Arc<Key>,
    pub user_id: Arc<str>,
    pub audience: Box<[Arc<str>]>,
    pub version: i64,
    /// For Phoenix: the state with `phx_ref`.
    pub meta: Box<str>,
    /// For server-sent events: everything except the key.
    pub details: Box<str>,
}

/// The fields of an event, or of a row as JSON, that describe the member.
#[derive(Deserialize)]
pub struct Member {
    pub member_id: Arc<str>,
    pub connection_id: Arc<str>,
    pub user_id: Arc<str>,
    pub version: i64,
    pub status: Option<String>,
    pub state: Option<Box<RawValue>>,
    pub metadata: Option<Box<RawValue>>,
    pub joined_at: Option<String>,
    pub node: Option<Arc<str>>,
    pub audience: Option<Box<[Arc<str>]>>,
}

impl Member {
    pub fn key(&self) -> Key {
        let node = self.node.clone();
        Key { member_id: self.member_id.clone(), connection_id: self.connection_id.clone(), node }
    }

    /// None if the event was too long to carry everything.
    pub fn into_row(self) -> Option<Row> {
        let (state, metadata) = (self.state.as_ref()?, self.metadata.as_ref()?);
        let phx_ref = match &self.node {
            Some(node) => format!("{node}.{}", self.version),
            None => self.version.to_string(),
        };
        let details = serde_json::json!({
            "user_id": self.user_id, "status": self.status, "joined_at": self.joined_at, "version": self.version,
        })
        .to_string();
        let details = format!(
            r#"{},"state":{},"metadata":{}"#,
            details[1..].trim_end_matches('}'),
            state.get(),
            metadata.get()
        );
        Some(Row {
            meta: protocol::meta(&phx_ref, state),
            details: details.into(),
            key: Arc::new(self.key()),
            user_id: self.user_id,
            audience: self.audience.unwrap_or_default(),
            version: self.version,
        })
    }
}

impl Row {
    /// Keeps only who is present.
    pub fn stripped(&self) -> Arc<Self> {
        Arc::new(Self {
            key: self.key.clone(),
            user_id: self.user_id.clone(),
            audience: Box::default(),
            version: self.version,
            meta: Box::default(),
            details: Box::default(),
        })
    }

    /// Whether both are the same state of the same member.
    pub fn is_same(&self, other: &Self) -> bool {
        self.version == other.version && self.key == other.key
    }

    /// The rooms other than its own that its audience names.
    pub fn rooms_named<'a>(&'a self, own: &'a str) -> impl Iterator<Item = Arc<str>> + 'a {
        self.audience
            .iter()
            .filter_map(move |token| token.strip_prefix("room:").filter(|room| *room != own).map(Arc::from))
    }

    /// The row as one JSON object.
    pub fn json(&self) -> String {
        let mut key = serde_json::json!({
            "member_id": self.key.member_id, "connection_id": self.key.connection_id,
        });
        if let Some(node) = &self.key.node {
            key["node"] = (&**node).into();
        }
        let key = key.to_string();
        format!("{},{}}}", key.trim_end_matches('}'), self.details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_of_a_version_of_a_server() {
        let row = |node: Option<&str>| {
            let text = serde_json::json!({
                "member_id": "a", "connection_id": "c", "user_id": "a", "version": 7, "status": null, "state": {"x": 1},
                "metadata": {}, "joined_at": null, "node": node, "audience": [],
            });
            serde_json::from_str::<Member>(&text.to_string()).ok().and_then(Member::into_row)
        };
        let (none, one, two) = (row(None), row(Some("one")), row(Some("two")));
        let (Some(none), Some(one), Some(two)) = (none, one, two) else { panic!("they are rows") };
        assert_eq!(&*none.meta, r#"{"phx_ref":"7","x":1}"#);
        assert_eq!(&*one.meta, r#"{"phx_ref":"one.7","x":1}"#);
        assert!(one.is_same(&one) && !one.is_same(&two) && !one.is_same(&none));
    }
}
