//! The calls as SQL.

use crate::op::{CONNECTION_IDS, Given, Name, Op, Removal, USERS};
use crate::values;
use serde_json::{Value, json};

/// This user's statement; empty for steps that are not a single statement.
pub fn statement(rooms: &[String; 2], user: usize, op: &Op) -> String {
    match op {
        Op::Begin => "begin".into(),
        Op::Commit => "commit".into(),
        Op::Rollback => "rollback".into(),
        // Savepoints may share a name: the newest one is meant.
        Op::Savepoint => "savepoint s".into(),
        Op::RollbackTo => "rollback to s".into(),
        Op::Release => "release s".into(),
        Op::Upsert(name, given) => format!("select presence.{}", upsert(rooms, name, given)),
        Op::Update(name, given) => format!(
            "select 1 from presence.update({}, patch => {}, status => {}, metadata => {}, audience => {}, ttl => {},
                revert_after => {})",
            key(rooms, name),
            json_text(given.patch.map(values::patch)),
            text(given.status.map(values::status)),
            json_text(given.metadata.map(values::metadata)),
            tokens(given.audience),
            minutes(given.ttl),
            text(revert_after(given)),
        ),
        Op::Heartbeat(name) => format!("select presence.heartbeat({})", key(rooms, name)),
        Op::HeartbeatMany(names) => {
            let list = |of: &dyn Fn(&Name) -> String| {
                format!("array[{}]", names.iter().map(|name| format!("'{}'", of(name))).collect::<Vec<_>>().join(","))
            };
            format!(
                "select * from presence.heartbeat_many({}, {}, {})",
                list(&|name| rooms[name.room].clone()),
                list(&|name| USERS[name.member.unwrap_or(user)].into()),
                list(&|name| CONNECTION_IDS[name.connection].into()),
            )
        }
        Op::Delete(removal) => format!("select presence.{}", delete(rooms, removal)),
        Op::DeleteAll { connection } => {
            format!("select presence.delete_all(connection_id => {})", text(connection.map(|c| CONNECTION_IDS[c])))
        }
        Op::UpsertMany(list) => {
            let members: Vec<Value> = list.iter().map(|(name, given)| upsert_json(rooms, name, given)).collect();
            format!("select presence.upsert_many('{}')", json!(members))
        }
        Op::UpdateMany(list) => {
            let members: Vec<Value> = list.iter().map(|(name, given)| update_json(rooms, name, given)).collect();
            format!("select presence.update_many('{}')", json!(members))
        }
        Op::DeleteMany(list) => {
            let members: Vec<Value> = list.iter().map(|removal| delete_json(rooms, removal)).collect();
            format!("select presence.delete_many('{}')", json!(members))
        }
        Op::Insert(name, given) => format!(
            "insert into presence.member (room, member_id, connection_id, state, status, metadata, audience, ttl)
             values ('{}', {}, '{}', {}, {}, {}, {}, {})",
            rooms[name.room],
            text(name.member.map(|member| USERS[member])),
            CONNECTION_IDS[name.connection],
            json_text(given.state.map(values::state)),
            text(given.status.map(values::status)),
            json_text(given.metadata.map(values::metadata)),
            tokens(given.audience),
            minutes(given.ttl),
        ),
        Op::Change { room, status, audience } => {
            let audience = audience.map(|_| format!(", audience = {}", tokens(*audience))).unwrap_or_default();
            let (status, room) = (values::status(*status), &rooms[*room]);
            format!("update presence.member set status = '{status}'{audience} where room = '{room}' returning 1")
        }
        Op::Remove { room } => format!("delete from presence.member where room = '{}' returning 1", rooms[*room]),
        Op::End { .. } | Op::Pass | Op::Sweep { .. } | Op::Settle => String::new(),
    }
}

fn text(value: Option<impl std::fmt::Display>) -> String {
    value.map_or("null".into(), |value| format!("'{value}'"))
}

fn json_text(value: Option<Value>) -> String {
    text(value)
}

fn tokens(audience: Option<usize>) -> String {
    text(audience.map(|audience| format!("{{{}}}", values::audience(audience).join(","))))
}

fn minutes(ttl: Option<usize>) -> String {
    text(ttl.map(|ttl| format!("{} min", values::ttl(ttl))))
}

fn after(index: usize) -> String {
    format!("{} min", values::after(index))
}

fn revert_after(given: &Given) -> Option<String> {
    given.revert_after.map(|after| format!("{} min", values::revert_after(after)))
}

fn key(rooms: &[String; 2], name: &Name) -> String {
    let member = text(name.member.map(|member| USERS[member]));
    format!(
        "'{}', member_id => {member}, connection_id => '{}'",
        rooms[name.room], CONNECTION_IDS[name.connection]
    )
}

fn upsert(rooms: &[String; 2], name: &Name, given: &Given) -> String {
    format!(
        "upsert({}, state => {}, status => {}, metadata => {}, ttl => {}, audience => {}, session => {}, user_id => {}, revert_after => {})",
        key(rooms, name),
        json_text(given.state.map(values::state)),
        text(given.status.map(values::status)),
        json_text(given.metadata.map(values::metadata)),
        minutes(given.ttl),
        tokens(given.audience),
        text(given.session),
        text(given.owner.map(|owner| USERS[owner])),
        text(revert_after(given)),
    )
}

fn delete(rooms: &[String; 2], removal: &Removal) -> String {
    let name = &removal.name;
    let connection =
        if removal.all_connections { "null".into() } else { text(Some(CONNECTION_IDS[name.connection])) };
    format!(
        "delete('{}', {}, {connection}, state => {}, reason => {}, after => {})",
        rooms[name.room],
        text(name.member.map(|member| USERS[member])),
        json_text(removal.last_word.map(values::state)),
        text(removal.reason),
        text(removal.after.map(after)),
    )
}

fn upsert_json(rooms: &[String; 2], name: &Name, given: &Given) -> Value {
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
        "revert_after": revert_after(given),
    })
}

fn update_json(rooms: &[String; 2], name: &Name, given: &Given) -> Value {
    json!({
        "room": rooms[name.room],
        "member_id": name.member.map(|member| USERS[member]),
        "connection_id": CONNECTION_IDS[name.connection],
        "patch": given.patch.map(values::patch),
        "status": given.status.map(values::status),
        "metadata": given.metadata.map(values::metadata),
        "ttl": given.ttl.map(|ttl| format!("{} min", values::ttl(ttl))),
        "audience": given.audience.map(values::audience),
        "revert_after": revert_after(given),
    })
}

fn delete_json(rooms: &[String; 2], removal: &Removal) -> Value {
    json!({
        "room": rooms[removal.name.room],
        "member_id": removal.name.member.map(|member| USERS[member]),
        "connection_id": CONNECTION_IDS[removal.name.connection],
        "state": removal.last_word.map(values::state),
        "reason": removal.reason,
        "after": removal.after.map(after),
    })
}
