//! What will be undone, and when: the rule, without PostgreSQL. JSON values are bytes that are equal where the values
//! are.
//!
//! A call with `revert_after` notes what it changes, with the value from before. Each part of a member (its status, each
//! top-level key of its state; or the whole state while that, or what it will be again, is no object) has one such note at
//! most:
//!
//! | a call sets a part | there was no note | there was one |
//! |---|---|---|
//! | for good | none | none: it stands |
//! | for a time, to another value | a note, with the value from before | the new moment, the first old value |
//! | for a time, to the same value | none: nothing was changed | the new moment, the first old value |
//! | to the value that the note has | | none: there is nothing to undo |

use std::collections::{BTreeMap, BTreeSet};

pub type Json = Vec<u8>;
pub type Fields = BTreeMap<Vec<u8>, Json>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Object(Fields),
    Other(Json),
}

/// The parts of a member that can revert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    pub status: Option<Vec<u8>>,
    pub state: State,
}

/// A part has this value again from a moment of the boot clock on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undo<T> {
    pub at: u64,
    pub to: T,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parts {
    /// None: the key did not exist.
    Keys(BTreeMap<Vec<u8>, Undo<Option<Json>>>),
    Whole(Undo<State>),
}

impl Default for Parts {
    fn default() -> Parts {
        Parts::Keys(BTreeMap::new())
    }
}

/// All pending reverts of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reverts {
    pub status: Option<Undo<Option<Vec<u8>>>>,
    pub state: Parts,
}

/// Which parts of the state a call sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    Nothing,
    Keys(BTreeSet<Vec<u8>>),
    All,
}

/// Which parts a call sets, even to their current values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub status: bool,
    pub state: Given,
}

impl Reverts {
    pub fn is_empty(&self) -> bool {
        self.next().is_none()
    }

    fn moments(&self) -> impl Iterator<Item = u64> {
        let (keys, whole) = match &self.state {
            Parts::Keys(keys) => (Some(keys.values().map(|undo| undo.at)), None),
            Parts::Whole(undo) => (None, Some(undo.at)),
        };
        self.status.iter().map(|undo| undo.at).chain(keys.into_iter().flatten()).chain(whole)
    }

    /// When the next part reverts.
    pub fn next(&self) -> Option<u64> {
        self.moments().min()
    }

    /// Apply the reverts that are due, and remove them. Returns the moment of the last one.
    pub fn apply(&mut self, data: &mut Data, now: u64) -> Option<u64> {
        let last = self.moments().filter(|at| *at <= now).max()?;
        if let Some(undo) = self.status.take_if(|undo| undo.at <= now) {
            data.status = undo.to;
        }
        match &mut self.state {
            Parts::Keys(keys) => {
                let (due, rest) = std::mem::take(keys).into_iter().partition(|(_, undo)| undo.at <= now);
                *keys = rest;
                data.state.set_all(due);
            }
            Parts::Whole(undo) if undo.at <= now => {
                data.state = std::mem::replace(&mut undo.to, State::Other(Json::new()));
                self.state = Parts::default();
            }
            Parts::Whole(_) => {}
        }
        Some(last)
    }

    /// A call has changed `before` to `after`, for good or until a moment.
    pub fn record(&mut self, before: &Data, after: &Data, set: &Set, until: Option<u64>) {
        let status = self.status.take();
        self.status = noted(status, &before.status, &after.status, set.status, until);
        self.state = match (std::mem::take(&mut self.state), &before.state, &after.state) {
            (Parts::Keys(notes), State::Object(before), State::Object(after)) => {
                Parts::Keys(noted_keys(notes, before, after, &set.state, until))
            }
            (parts, _, _) => {
                let mut before = before.state.clone();
                let note = match parts {
                    Parts::Whole(undo) => Some(undo),
                    // They end with the object, as if all had reverted.
                    Parts::Keys(notes) => {
                        before.set_all(notes);
                        None
                    }
                };
                let is_set = !matches!(&set.state, Given::Nothing)
                    && !matches!(&set.state, Given::Keys(keys) if keys.is_empty());
                noted(note, &before, &after.state, is_set, until).map_or_else(Parts::default, Parts::Whole)
            }
        };
    }

    /// The state with each part at its current or later value, whichever is larger: no state in between is larger than
    /// this.
    pub fn largest(&self, state: &State, size: impl Fn(&State) -> usize) -> State {
        let mut largest = state.clone();
        match (&self.state, &mut largest) {
            (Parts::Whole(undo), _) if size(&undo.to) > size(state) => undo.to.clone(),
            (Parts::Keys(notes), State::Object(fields)) => {
                let of_value = |value: &Json| size(&State::Other(value.clone()));
                for (key, undo) in notes {
                    if let Some(to) = &undo.to
                        && fields.get(key).is_none_or(|value| of_value(to) > of_value(value))
                    {
                        fields.insert(key.clone(), to.clone());
                    }
                }
                largest
            }
            _ => largest,
        }
    }
}

impl State {
    /// If a trigger has replaced the object by another value, there are no keys to revert.
    fn set_all(&mut self, undone: BTreeMap<Vec<u8>, Undo<Option<Json>>>) {
        let State::Object(fields) = self else { return };
        for (key, undo) in undone {
            match undo.to {
                Some(value) => fields.insert(key, value),
                None => fields.remove(&key),
            };
        }
    }
}

/// The table in the module comment, for one part.
fn noted<T: Clone + PartialEq>(
    note: Option<Undo<T>>,
    before: &T,
    after: &T,
    is_set: bool,
    until: Option<u64>,
) -> Option<Undo<T>> {
    let changes = before != after;
    if !is_set && !changes {
        return note;
    }
    let at = until?;
    let to = note.map(|undo| undo.to).or_else(|| changes.then(|| before.clone()))?;
    (to != *after).then_some(Undo { at, to })
}

fn noted_keys(
    mut notes: BTreeMap<Vec<u8>, Undo<Option<Json>>>,
    before: &Fields,
    after: &Fields,
    given: &Given,
    until: Option<u64>,
) -> BTreeMap<Vec<u8>, Undo<Option<Json>>> {
    let keys: BTreeSet<Vec<u8>> = notes.keys().chain(before.keys()).chain(after.keys()).cloned().collect();
    let is_set = |key: &Vec<u8>| match given {
        Given::Nothing => false,
        Given::Keys(keys) => keys.contains(key),
        Given::All => true,
    };
    let note = |key: Vec<u8>| {
        let (old, new) = (before.get(&key).cloned(), after.get(&key).cloned());
        let note = noted(notes.remove(&key), &old, &new, is_set(&key), until);
        note.map(|note| (key, note))
    };
    keys.into_iter().filter_map(note).collect()
}

#[cfg(test)]
#[path = "rule_tests.rs"]
mod tests;
