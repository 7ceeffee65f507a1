//! The column `reverts`: what the rule notes, as jsonb.
//!
//! ```text
//! {"run": 1764…, "offset": 8176…, "status": {"at": 25…, "to": "online"}, "state": {"typing": {"at": 25…}}}
//! ```
//!
//! Moments are by the boot clock, like all leases. That one begins anew with the machine, so `run` says in which run of the
//! server they were noted, and `offset` how far the wall clock was ahead then: after a restart the wall time counts.
//! Without `to` there was no status, or no such key. `whole` instead of `state` is the state as one unit.

use super::rule::{Json, Parts, Reverts, State, Undo};
use crate::clock;
use crate::pg::jsonb::Value;
use crate::pg::jsonb::fields::{fields, number, object, scalar, string};
use crate::shared::control;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

/// The bytes of the column; None is NULL.
pub fn encode(reverts: &Reverts) -> Option<Json> {
    if reverts.is_empty() {
        return None;
    }
    let mut notes =
        vec![(b"run".to_vec(), number(run() as i64)), (b"offset".to_vec(), number(clock::wall_of(0)))];
    if let Some(status) = &reverts.status {
        notes.push((b"status".to_vec(), note(status.at, status.to.as_deref().map(string))));
    }
    notes.push(match &reverts.state {
        Parts::Keys(keys) => {
            let keys = keys.iter().map(|(key, undo)| (key.clone(), note(undo.at, undo.to.clone())));
            (b"state".to_vec(), of_pairs(&keys.collect::<Vec<_>>()))
        }
        Parts::Whole(undo) => (b"whole".to_vec(), note(undo.at, Some(state_to_json(&undo.to)))),
    });
    Some(of_pairs(&notes))
}

fn note(at: u64, to: Option<Json>) -> Json {
    let at = (b"at".to_vec(), number(at as i64));
    of_pairs(&[Some(at), to.map(|to| (b"to".to_vec(), to))].into_iter().flatten().collect::<Vec<_>>())
}

fn of_pairs(pairs: &[(Vec<u8>, Json)]) -> Json {
    object(pairs.iter().map(|(key, value)| (&key[..], &value[..])))
}

/// The column's contents. Foreign values (passed by a user) are treated as empty.
pub fn decode(bytes: &[u8]) -> Reverts {
    read(bytes).unwrap_or_default()
}

fn read(bytes: &[u8]) -> Option<Reverts> {
    let notes = by_key(bytes)?;
    let get = |key: &str| notes.get(key.as_bytes());
    let is_of_now = integer(get("run")?)? == run() as i64;
    let offset = integer(get("offset")?)?;
    let undo = |bytes: &Json| {
        let mut note = by_key(bytes)?;
        let at = integer(note.get(&b"at"[..])?)?;
        let at = if is_of_now { at as u64 } else { clock::boot_of(at.saturating_add(offset)).max(1) };
        Some(Undo { at, to: note.remove(&b"to"[..]) })
    };
    let status = match get("status") {
        Some(note) => {
            let Undo { at, to } = undo(note)?;
            let to = to.map(|to| match scalar(&to) {
                Some(Value::Text(text)) => Some(text),
                _ => None,
            });
            Some(Undo { at, to: to.flatten() })
        }
        None => None,
    };
    let state = match (get("whole"), get("state")) {
        (Some(note), _) => {
            let Undo { at, to } = undo(note)?;
            Parts::Whole(Undo { at, to: state_of_json(&to?) })
        }
        (None, Some(keys)) => {
            let keys = by_key(keys)?.into_iter().map(|(key, note)| Some((key, undo(&note)?)));
            Parts::Keys(keys.collect::<Option<_>>()?)
        }
        (None, None) => Parts::default(),
    };
    Some(Reverts { status, state })
}

fn by_key(bytes: &[u8]) -> Option<BTreeMap<Vec<u8>, Json>> {
    Some(fields(bytes)?.into_iter().collect())
}

fn integer(bytes: &[u8]) -> Option<i64> {
    match scalar(bytes)? {
        Value::Number(digits) => std::str::from_utf8(&digits).ok()?.parse().ok(),
        _ => None,
    }
}

/// Identifies this run of the server.
fn run() -> u64 {
    control().started_version.load(Relaxed)
}

pub fn state_of_json(bytes: &[u8]) -> State {
    by_key(bytes).map_or_else(|| State::Other(bytes.to_vec()), State::Object)
}

pub fn state_to_json(state: &State) -> Json {
    match state {
        State::Object(fields) => object(fields.iter().map(|(key, value)| (&key[..], &value[..]))),
        State::Other(json) => json.clone(),
    }
}
