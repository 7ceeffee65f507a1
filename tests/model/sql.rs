//! The calls as SQL.

use crate::op::{CONNECTION_IDS, Given, Name, Removal, USERS};
use crate::values;
use serde_json::{Value, json};

pub fn text(value: Option<impl std::fmt::Display>) -> String {
    value.map_or("null".into(), |value| format!("'{value}'"))
}

pub fn json_text(value: Option<Value>) -> String {
    text(value)
}

pub fn tokens(audience: Option<usize>) -> String {
    text(audience.map(|audience| format!("{{{}}}", values::audience(audience).join(","))))
}

pub fn key(rooms: &[String; 2], name: &Name) -> String {
    let member = text(name.member.map(|member| USERS[member]));
    format!(
        "'{}', member_id => {member}, connection_id => '{}'",
        rooms[name.room], CONNECTION_IDS[name.connection]
    )
}

pub fn upsert(rooms: &[String; 2], name: &Name, given: &Given) -> String {
    format!(
        "upsert({}, state => {}, status => {}, metadata => {}, ttl => {}, audience => {}, session => {}, user_id => {})",
        key(rooms, name),
        json_text(given.state.map(values::state)),
        text(given.status.map(values::status)),
        json_text(given.metadata.map(values::metadata)),
        text(given.ttl.map(|ttl| format!("{} min", values::ttl(ttl)))),
        tokens(given.audience),
        text(given.session),
        text(given.owner.map(|owner| USERS[owner])),
    )
}

pub fn delete(rooms: &[String; 2], removal: &Removal) -> String {
    let name = &removal.name;
    let connection =
        if removal.all_connections { "null".into() } else { text(Some(CONNECTION_IDS[name.connection])) };
    format!(
        "delete('{}', {}, {connection}, state => {}, reason => {})",
        rooms[name.room],
        text(name.member.map(|member| USERS[member])),
        json_text(removal.last_word.map(values::state)),
        text(removal.reason),
    )
}

pub fn upsert_json(rooms: &[String; 2], name: &Name, given: &Given) -> Value {
    json!({
        "room": rooms[name.room],
        "member_id": name.member.map(|member| USERS[member]),
        "connection_id": CONNECTION_IDS[name.connection],
        "state": given.state.map(values::state),
        "patch": given.patch.map(values::patch),
        "status": given.status.map(values::status),
        "metadata": given.metadata.map(values::metadata),
        "ttl": given.ttl.map(|ttl| format!("{} min", values::ttl(ttl))),
        "audience": given.audience.map(values::audience),
        "session": given.session,
        "user_id": given.owner.map(|owner| USERS[owner]),
    })
}

pub fn delete_json(rooms: &[String; 2], removal: &Removal) -> Value {
    json!({
        "room": rooms[removal.name.room],
        "member_id": removal.name.member.map(|member| USERS[member]),
        "connection_id": CONNECTION_IDS[removal.name.connection],
        "state": removal.last_word.map(values::state),
        "reason": removal.reason,
    })
}
