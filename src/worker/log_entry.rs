//! One line of the log, and its payload.

use crate::event::image::{Field, Image};
use crate::event::payload::{self, Event, RoomEvent};
use crate::event::record::{Kind, Reason, Record};
use crate::pg::encoding::decode;
use crate::pg::jsonb;
use serde_json::value::RawValue;

type Tokens = Vec<Vec<u8>>;

/// One line of the log and what its listeners are sent.
pub struct LogEntry<'a> {
    pub event: &'static str,
    pub version: u64,
    pub image: &'a Image,
    pub reason: Reason,
    pub connections: u32,
    /// For whom it is.
    pub tokens: Vec<Vec<u8>>,
    /// The audience as logged.
    pub audience: Vec<Vec<u8>>,
    pub for_service: bool,
    /// For service roles: the audience before and after, if it changed.
    pub changed_audience: Option<(Tokens, Tokens)>,
}

/// The fields of a line as UTF-8 text, for payloads.
pub struct Rendered {
    room: String,
    member_id: String,
    connection_id: String,
    user_id: String,
    status: Option<String>,
    state: Option<Box<RawValue>>,
    metadata: Option<Box<RawValue>>,
    /// State or metadata are longer than any notification.
    truncated: bool,
    at: String,
    joined_at: String,
    node: Option<String>,
}

impl Rendered {
    pub fn new(record: &Record, line: &LogEntry, node: Option<&[u8]>) -> Rendered {
        let text = |field| line.image.get(field).map(decode);
        let mut truncated = record.kind != Kind::Room && line.image.is_lean();
        let mut json = |field| {
            let text = jsonb::to_text_within(line.image.get(field)?, payload::LIMIT);
            truncated |= text.is_none();
            RawValue::from_string(text?).ok()
        };
        let (state, metadata) = (json(Field::State), json(Field::Metadata));
        Rendered {
            room: text(Field::Room).unwrap_or_default(),
            member_id: text(Field::MemberId).unwrap_or_default(),
            connection_id: text(Field::ConnectionId).unwrap_or_default(),
            user_id: text(Field::UserId).unwrap_or_default(),
            status: text(Field::Status),
            state: state.filter(|_| !truncated),
            metadata: metadata.filter(|_| !truncated),
            truncated,
            at: payload::time(record.at),
            joined_at: payload::time(record.joined_at),
            node: node.map(decode),
        }
    }

    pub fn payload(
        &self,
        kind: Kind,
        seq: u64,
        line: &LogEntry,
        audiences: Option<(&[String], Option<&[String]>)>,
    ) -> String {
        if kind == Kind::Room {
            return payload::room(&RoomEvent {
                event: line.event,
                seq,
                version: line.version,
                room: &self.room,
                metadata: self.metadata.as_deref(),
                at: &self.at,
                audience: audiences.map(|(audience, _)| audience),
                old_audience: audiences.and_then(|(_, old)| old),
                truncated: self.truncated,
                node: self.node.as_deref(),
            });
        }
        payload::event(&Event {
            event: line.event,
            seq,
            version: line.version,
            room: &self.room,
            member_id: &self.member_id,
            connection_id: &self.connection_id,
            user_id: &self.user_id,
            status: self.status.as_deref(),
            state: self.state.as_deref(),
            metadata: self.metadata.as_deref(),
            connections: line.connections,
            reason: line.reason.name(),
            at: &self.at,
            joined_at: &self.joined_at,
            audience: audiences.map(|(audience, _)| audience),
            old_audience: audiences.and_then(|(_, old)| old),
            truncated: self.truncated,
            node: self.node.as_deref(),
        })
    }
}
