//! Which parts of a member will revert, and when: `revert_after`.

use crate::model::Row;
use crate::op::Given;
use crate::values;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The status, a key of the state, or the whole state where that is not, or was not, an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Status,
    Key(String),
    Whole,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Was {
    Status(Option<&'static str>),
    /// None: there was no such key.
    Json(Option<Value>),
}

/// When each part reverts, and to what.
pub type Undo = BTreeMap<Part, (i64, Was)>;

impl Row {
    fn part(&self, part: &Part) -> Was {
        match part {
            Part::Status => Was::Status(self.status),
            Part::Key(key) => Was::Json(self.state.get(key).cloned()),
            Part::Whole => Was::Json(Some(self.state.clone())),
        }
    }

    fn put(&mut self, part: &Part, was: Was) {
        match (part, was) {
            (Part::Status, Was::Status(status)) => self.status = status,
            (Part::Whole, Was::Json(Some(state))) => self.state = state,
            (Part::Key(key), Was::Json(value)) => {
                let Some(object) = self.state.as_object_mut() else { return };
                match value {
                    Some(value) => object.insert(key.clone(), value),
                    None => object.remove(key),
                };
            }
            _ => unreachable!("a part is what it was noted as"),
        }
    }

    pub fn reverts_by(&self, now: i64) -> bool {
        self.undo.values().any(|(at, _)| *at <= now)
    }

    /// The row as it is at that time.
    pub fn at(&self, now: i64) -> Row {
        let mut row = self.clone();
        for (part, (_, was)) in self.undo.iter().filter(|(_, (at, _))| *at <= now) {
            row.undo.remove(part);
            row.put(part, was.clone());
        }
        row
    }

    /// Notes what will revert, after a call with these arguments has turned `held` into this row.
    pub fn note(&mut self, held: &Row, given: &Given, now: i64) {
        let until = given.revert_after.map(|after| now + values::revert_after(after) * 60_000_000);
        if given.status.is_some() {
            self.note_part(Part::Status, held, until);
        }
        let keys = |state: &Value| -> BTreeSet<String> {
            state.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect()
        };
        let set = match (given.state, given.patch) {
            (Some(_), _) => {
                let noted = held.undo.keys().filter_map(|part| match part {
                    Part::Key(key) => Some(key.clone()),
                    _ => None,
                });
                keys(&held.state).into_iter().chain(keys(&self.state)).chain(noted).collect()
            }
            (None, Some(patch)) => keys(&values::patch(patch)),
            (None, None) => return,
        };
        if held.undo.contains_key(&Part::Whole) || !held.state.is_object() || !self.state.is_object() {
            if given.state.is_none() && set.is_empty() && held.state == self.state {
                return;
            }
            let mut before = held.clone();
            for (part, (_, was)) in held.undo.iter().filter(|(part, _)| matches!(part, Part::Key(_))) {
                before.put(part, was.clone());
                self.undo.remove(part);
            }
            self.note_part(Part::Whole, &before, until);
        } else {
            set.into_iter().for_each(|key| self.note_part(Part::Key(key), held, until));
        }
    }

    /// A part reverts to the value that was noted first, as long as every change to it is temporary.
    fn note_part(&mut self, part: Part, held: &Row, until: Option<i64>) {
        let (noted, old, new) = (self.undo.remove(&part), held.part(&part), self.part(&part));
        let Some(at) = until else { return };
        let was = match noted {
            Some((_, was)) => was,
            None if old != new => old,
            None => return,
        };
        if was != new {
            self.undo.insert(part, (at, was));
        }
    }
}
