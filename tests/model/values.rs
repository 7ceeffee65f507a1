//! The values that are written, as in SQL and in the model.

use serde_json::{Map, Value, json};

pub fn state(index: usize) -> Value {
    [json!({"a": 0}), json!({"a": 1, "b": {"c": 1}}), json!({"b": 2}), json!(3)][index].clone()
}

pub fn patch(index: usize) -> Value {
    [json!({"a": 5}), json!({"b": null}), json!({"b": {"c": null, "d": 1}}), json!({})][index].clone()
}

pub fn metadata(index: usize) -> Value {
    [json!({"m": 1}), json!({"m": 2})][index].clone()
}

/// The empty string clears the status.
pub fn status(index: usize) -> &'static str {
    ["", "away", "busy"][index]
}

/// Minutes; 0 is the default. Time passes 40 minutes at a time, so no lease ends just when something else happens.
pub fn ttl(index: usize) -> i64 {
    [60, 130, 0][index]
}

/// Minutes until a leave; 0 is now.
pub fn after(index: usize) -> i64 {
    [0, 25, 55, 100][index]
}

/// Minutes, chosen so that nothing reverts just when a lease ends, a member leaves or a pause is over.
pub fn revert_after(index: usize) -> i64 {
    [30, 108][index]
}

pub fn audience(index: usize) -> &'static [&'static str] {
    const LISTS: [&[&str]; 8] = [
        &[],
        &["any"],
        &["users"],
        &["room"],
        &["user:bob"],
        &["role:red"],
        &["team:blue"],
        &["role:red", "user:carol", "room"],
    ];
    LISTS[index]
}

/// As it is stored.
pub fn stored_audience(tokens: &[&str], room: &str) -> Vec<String> {
    let write_out = |token: &&str| if *token == "room" { format!("room:{room}") } else { token.to_string() };
    let mut list: Vec<String> = tokens.iter().map(write_out).collect();
    list.sort();
    list
}

/// RFC 7396.
pub fn merge_patch(target: &Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut merged = target.as_object().cloned().unwrap_or_else(Map::new);
    for (name, value) in patch {
        if value.is_null() {
            merged.remove(name);
        } else {
            let held = merged.get(name).cloned().unwrap_or(Value::Null);
            merged.insert(name.clone(), merge_patch(&held, value));
        }
    }
    Value::Object(merged)
}
