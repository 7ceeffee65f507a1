//! Rooms without viewers, whose members may see a member of a viewed room because its audience names them
//! (`room:X`). Only who is present there is held.
//!
//! Anybody may name rooms, so there is a bound. When it is exceeded, the room whose audiences name the most
//! is listed as each user instead, at most once a second (`doorbell`), until its audiences no longer name any
//! room or it has no viewers.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Room, Rooms, State};

impl Rooms {
    /// Whether users are shown their own lists of the room.
    pub fn is_listed(&self, room: &str) -> bool {
        self.is_doorbell() || self.lock().is_listed(room)
    }

    /// Takes the rooms whose viewers' rights must be queried again.
    pub fn take_to_list(&self) -> HashSet<Arc<str>> {
        std::mem::take(&mut self.lock().to_list)
    }

    /// Somebody entered or left a room, held or not: the lists of listed rooms that name it may have changed.
    pub fn moved(&self, room: &str) {
        let mut state = self.lock();
        let naming: Vec<_> = state.listed_naming(room).cloned().collect();
        if !naming.is_empty() {
            state.to_list.extend(naming);
            self.act(state);
        }
    }
}

impl State {
    pub fn is_listed(&self, room: &str) -> bool {
        self.listed.contains(room)
    }

    pub(super) fn listed_naming(&self, room: &str) -> impl Iterator<Item = &Arc<str>> {
        self.listed
            .iter()
            .filter(move |other| self.rooms.get(*other).is_some_and(|other| other.names.contains_key(room)))
    }

    pub(super) fn hold(&mut self, name: &Arc<str>) -> &mut Room {
        let room = self.rooms.entry(name.clone()).or_default();
        if !room.loaded && room.loading.is_none() {
            self.wanted.insert(name.clone());
        }
        room
    }

    /// Drops a room that has no viewers and that no audience names. Returns whether it did.
    pub(super) fn drop_if_unused(&mut self, name: &Arc<str>) -> bool {
        let unused =
            self.rooms.get(name).is_some_and(|room| room.viewers.is_empty() && room.named_by.is_empty());
        if unused && let Some(room) = self.rooms.remove(name) {
            self.weight -= room.weight;
            self.wanted.remove(name);
        }
        unused
    }

    /// The rows of a room now name the rooms in `named`, and no longer those in `not_named`.
    pub(super) fn name_others(&mut self, name: &Arc<str>, named: &[Arc<str>], not_named: &[Arc<str>]) {
        let Some(room) = self.rooms.get(name).filter(|room| !room.viewers.is_empty()) else { return };
        if self.listed.contains(name) {
            if room.names.is_empty() {
                self.listed.remove(name);
            }
            self.to_list.insert(name.clone());
            return;
        }
        for other in named {
            self.hold(other).named_by.insert(name.clone());
            self.weigh(other);
        }
        not_named.iter().for_each(|other| self.forget(name, other));
    }

    pub(super) fn unfollow(&mut self, name: &Arc<str>) {
        let Some(room) = self.rooms.get(name) else { return };
        for named in room.names.keys().cloned().collect::<Vec<_>>() {
            self.forget(name, &named);
        }
    }

    fn forget(&mut self, name: &Arc<str>, named: &Arc<str>) {
        if let Some(other) = self.rooms.get_mut(named) {
            other.named_by.remove(name);
        }
        self.drop_if_unused(named);
    }

    /// Updates the weight of a room after a change of its viewers or rows.
    pub(super) fn weigh(&mut self, name: &str) {
        let Some(room) = self.rooms.get_mut(name) else { return };
        let weight = if room.viewers.is_empty() { 1 + room.rows.len() } else { 0 };
        self.weight = self.weight - room.weight + weight;
        room.weight = weight;
    }

    /// Lists rooms as each user until the rest is within the bound.
    pub(super) fn shed(&mut self) {
        while self.weight > self.most_named {
            let weight = |named: &Arc<str>| self.rooms.get(named).map_or(0, |room| room.weight);
            let heaviest = self
                .rooms
                .iter()
                .filter(|(name, room)| !room.viewers.is_empty() && !self.listed.contains(*name))
                .map(|(name, room)| (room.names.keys().map(weight).sum::<usize>(), name.clone()))
                .max();
            let Some((1.., name)) = heaviest else { return };
            tracing::warn!(
                room = &*name,
                "audiences name more rooms than may be held: this room is listed as each user"
            );
            self.unfollow(&name);
            self.to_list.insert(name.clone());
            self.listed.insert(name);
        }
    }
}
