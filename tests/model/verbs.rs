//! What the verbs do to the model, and what they answer.

use crate::model::{Answer, Event, Key, Leaving, Model, Row, Seen, all_connections};
use crate::op::{CONNECTIONS, Given, Name, Removal, SERVICE};
use crate::reverting::Undo;
use crate::values;
use serde_json::json;
use std::collections::BTreeMap;

const NOT_ALLOWED: &str = "42501";

impl Model {
    pub fn upsert(&mut self, at: usize, name: &Name, given: &Given, seen: Seen) -> Answer<()> {
        self.within(at, seen, |model| {
            model.check_name(at, name)?;
            model.upsert_one(at, name, given, seen)
        })
    }

    fn check_name(&self, at: usize, name: &Name) -> Answer<()> {
        let who = CONNECTIONS[at];
        if who == SERVICE || name.member.is_none_or(|member| member == who) {
            Ok(())
        } else {
            Err(NOT_ALLOWED)
        }
    }

    fn upsert_one(&mut self, at: usize, name: &Name, given: &Given, seen: Seen) -> Answer<()> {
        let (who, key) = (CONNECTIONS[at], self.key(at, name, given.owner));
        let Some(held) = self.row(at, &key).cloned() else {
            return self.enter(at, key, given, seen);
        };
        if held.owner != who && who != SERVICE {
            return Err(NOT_ALLOWED);
        }
        let ttl_kept = if given.session == Some(true) { None } else { held.ttl };
        let mut row = self.changed(at, &key, &held, given, ttl_kept, seen);
        row.leaves = None;
        let same_ttl = given.ttl.is_none() || row.ttl == held.ttl;
        let same_session = match given.session {
            None => true,
            Some(false) => held.session.is_none(),
            Some(true) => row.session == held.session && (given.ttl.is_some() || held.ttl.is_none()),
        };
        let same_notes = held.leaves.is_none() && row.undo == held.undo;
        if row.tells_the_same(&held) && same_ttl && same_session && same_notes {
            self.renew(at, key, seen);
        } else {
            self.write(at, key, &held, row, seen);
        }
        Ok(())
    }

    fn renew(&mut self, at: usize, key: Key, seen: Seen) {
        // If the slot is pinned, the row is written after all, and locked.
        let pinned = self.transactions.iter().flatten().any(|open| open.touched.contains(&key));
        let pending = self.touch(at, key);
        match &mut pending.row {
            Some(row) if pending.written => row.renew(seen),
            _ => {
                pending.renews = true;
                pending.locked |= pinned;
            }
        }
    }

    fn changed(
        &self,
        at: usize,
        key: &Key,
        held: &Row,
        given: &Given,
        ttl_kept: Option<i64>,
        seen: Seen,
    ) -> Row {
        let mut row = held.clone();
        if let Some(state) = given.state {
            row.state = values::state(state);
        } else if let Some(patch) = given.patch {
            row.state = values::merge_patch(&row.state, &values::patch(patch));
        }
        if let Some(status) = given.status {
            row.status = Some(values::status(status)).filter(|status| !status.is_empty());
        }
        if let Some(metadata) = given.metadata {
            row.metadata = values::metadata(metadata);
        }
        if let Some(audience) = given.audience {
            row.audience = values::stored_audience(values::audience(audience), &self.rooms[key.0]);
        }
        if let Some(owner) = given.owner {
            row.owner = owner;
        }
        match given.session {
            Some(true) => row.session = Some(self.sessions[at]),
            Some(false) => row.session = None,
            None => {}
        }
        row.ttl = given.ttl.map_or(ttl_kept, |ttl| Some(values::ttl(ttl)).filter(|ttl| *ttl > 0));
        if row.ttl.is_none() && row.session.is_none() {
            row.ttl = Some(60);
        }
        row.note(held, given, seen.until);
        row
    }

    fn enter(&mut self, at: usize, key: Key, given: &Given, seen: Seen) -> Answer<()> {
        let nobody = Row {
            owner: CONNECTIONS[at],
            status: None,
            state: json!({}),
            metadata: json!({}),
            audience: values::stored_audience(&["room"], &self.rooms[key.0]),
            ttl: None,
            session: None,
            stay: self.fresh(),
            seen,
            leaves: None,
            undo: Undo::new(),
        };
        let row = self.changed(at, &key, &nobody, given, None, seen);
        let pending = self.touch(at, key);
        pending.row = Some(row);
        (pending.entered, pending.written, pending.told) = (true, true, false);
        pending.old = None;
        Ok(())
    }

    fn write(&mut self, at: usize, key: Key, held: &Row, mut row: Row, seen: Seen) {
        let same_notes = row.leaves == held.leaves && row.undo == held.undo;
        let quiet = row.ttl != held.ttl || row.session != held.session || !same_notes;
        let told = !row.tells_the_same(held);
        row.renew(seen);
        let pending = self.touch(at, key);
        pending.locked = true;
        if !told && !quiet {
            if pending.written {
                pending.row = Some(row);
            } else {
                pending.renews = true;
            }
            return;
        }
        if !row.is_seen_alike(held) && pending.old.is_none() && !pending.entered {
            pending.old = Some(held.clone());
        }
        pending.told |= told;
        pending.written = true;
        pending.row = Some(row);
    }

    /// Whether there was such a member.
    pub fn update(&mut self, at: usize, name: &Name, given: &Given, seen: Seen) -> Answer<bool> {
        self.within(at, seen, |model| model.update_one(at, name, given, seen))
    }

    fn update_one(&mut self, at: usize, name: &Name, given: &Given, seen: Seen) -> Answer<bool> {
        let (who, key) = (CONNECTIONS[at], self.key(at, name, None));
        let held = self.row(at, &key).filter(|row| who == SERVICE || row.owner == who).cloned();
        let Some(held) = held else {
            self.refuse_anothers(at, &key)?;
            return Ok(false);
        };
        let given = Given { session: None, owner: None, ..*given };
        let row = self.changed(at, &key, &held, &given, held.ttl, seen);
        self.write(at, key, &held, row, seen);
        Ok(true)
    }

    /// The user has no such member: it is an error if the key is another user's.
    fn refuse_anothers(&self, at: usize, key: &Key) -> Answer<()> {
        let who = CONNECTIONS[at];
        let anothers = key.1 != who || self.row(at, key).is_some_and(|row| row.owner != who);
        if who != SERVICE && anothers { Err(NOT_ALLOWED) } else { Ok(()) }
    }

    pub fn heartbeat(&mut self, at: usize, key: &Key, seen: Seen) -> bool {
        let who = CONNECTIONS[at];
        let Some(row) = self.row(at, key).filter(|row| who == SERVICE || row.owner == who) else {
            return false;
        };
        let stay = row.stay;
        // A heartbeat counts even if the transaction or a savepoint is rolled back.
        if let Some(row) = self.members.get_mut(key).filter(|row| row.stay == stay) {
            row.renew(seen);
        }
        if let Some(open) = &mut self.transactions[at] {
            for pending in open.saved.iter_mut().chain([&mut open.pending]) {
                let row = pending.get_mut(key).and_then(|pending| pending.row.as_mut());
                if let Some(row) = row.filter(|row| row.stay == stay) {
                    row.renew(seen);
                }
            }
        }
        true
    }

    pub fn delete(&mut self, at: usize, removal: &Removal, seen: Seen) -> Answer<usize> {
        self.within(at, seen, |model| {
            let who = CONNECTIONS[at];
            if who != SERVICE && removal.reason.is_some_and(|reason| reason != "left") {
                return Err(NOT_ALLOWED);
            }
            model.delete_named(at, removal, seen)
        })
    }

    fn delete_named(&mut self, at: usize, removal: &Removal, seen: Seen) -> Answer<usize> {
        let key = self.key(at, &removal.name, None);
        let keys = if removal.all_connections { all_connections(&key) } else { vec![key] };
        let reason = removal.reason.or(removal.after.map(|_| "left"));
        let after = removal.after.map_or(0, values::after);
        let deleted = keys.iter().filter(|key| match after {
            0 => self.delete_one(at, key, reason, removal.last_word),
            after => {
                let reason = reason.unwrap_or("left");
                let last_word = removal.last_word.map(values::state);
                self.announce_one(at, key, Leaving { at: seen.later(after), reason, last_word }, seen)
            }
        });
        let deleted = deleted.count();
        if deleted == 0 {
            let first = if removal.all_connections { keys[0] } else { key };
            self.refuse_anothers(at, &first)?;
        }
        Ok(deleted)
    }

    fn announce_one(&mut self, at: usize, key: &Key, leaving: Leaving, seen: Seen) -> bool {
        let who = CONNECTIONS[at];
        let held = self.row(at, key).filter(|row| who == SERVICE || row.owner == who).cloned();
        let Some(held) = held else { return false };
        let row = Row { leaves: Some(leaving), ..held.clone() };
        self.write(at, *key, &held, row, seen);
        true
    }

    fn delete_one(
        &mut self,
        at: usize,
        key: &Key,
        reason: Option<&'static str>,
        last_word: Option<usize>,
    ) -> bool {
        let who = CONNECTIONS[at];
        let held = self.row(at, key).filter(|row| who == SERVICE || row.owner == who).cloned();
        let Some(held) = held else { return false };
        let reason = reason.unwrap_or(if held.owner == who { "left" } else { "removed" });
        let pending = self.touch(at, *key);
        let mut last = held;
        if let Some(word) = last_word {
            last.state = values::state(word);
        }
        if !pending.entered && pending.left.is_none() {
            // If this transaction changed who may see the member, the leave shows what others saw before.
            pending.left = Some(Event::leave(pending.old.as_ref().unwrap_or(&last), &[reason]));
        }
        (pending.row, pending.old) = (None, None);
        (pending.entered, pending.told, pending.renews) = (false, false, false);
        pending.written = true;
        true
    }

    pub fn delete_all(&mut self, at: usize, connection: Option<usize>, seen: Seen) -> usize {
        let who = CONNECTIONS[at];
        let wanted: Vec<Key> = self
            .rows(at)
            .into_iter()
            .filter(|(key, row)| row.owner == who && connection.is_none_or(|connection| key.2 == connection))
            .map(|(key, _)| key)
            .collect();
        self.delete_keys(at, &wanted, Some("left"), seen)
    }

    fn delete_keys(&mut self, at: usize, keys: &[Key], reason: Option<&'static str>, seen: Seen) -> usize {
        let body =
            |model: &mut Model| Ok(keys.iter().filter(|key| model.delete_one(at, key, reason, None)).count());
        self.within(at, seen, body).unwrap_or_default()
    }

    pub fn upsert_many(&mut self, at: usize, list: &[(Name, Given)], seen: Seen) -> Answer<usize> {
        self.within(at, seen, |model| {
            list.iter().try_for_each(|(name, _)| model.check_name(at, name))?;
            let last: BTreeMap<Key, &(Name, Given)> =
                list.iter().map(|one| (model.key(at, &one.0, one.1.owner), one)).collect();
            last.values().try_for_each(|(name, given)| model.upsert_one(at, name, given, seen))?;
            Ok(last.len())
        })
    }

    pub fn update_many(&mut self, at: usize, list: &[(Name, Given)], seen: Seen) -> Answer<usize> {
        self.within(at, seen, |model| {
            let last: BTreeMap<Key, &(Name, Given)> =
                list.iter().map(|one| (model.key(at, &one.0, None), one)).collect();
            last.values().try_fold(0, |updated, (name, given)| {
                Ok(updated + model.update_one(at, name, given, seen)? as usize)
            })
        })
    }

    pub fn delete_many(&mut self, at: usize, list: &[Removal], seen: Seen) -> Answer<usize> {
        self.within(at, seen, |model| {
            let is_allowed = |reason| CONNECTIONS[at] == SERVICE || reason == "left";
            if !list.iter().filter_map(|removal| removal.reason).all(is_allowed) {
                return Err(NOT_ALLOWED);
            }
            let last: BTreeMap<Key, &Removal> =
                list.iter().map(|removal| (model.key(at, &removal.name, None), removal)).collect();
            last.values().try_fold(0, |deleted, removal| Ok(deleted + model.delete_named(at, removal, seen)?))
        })
    }

    pub fn insert(&mut self, at: usize, name: &Name, given: &Given, seen: Seen) -> Answer<()> {
        self.within(at, seen, |model| {
            model.check_name(at, name)?;
            let (who, key) = (CONNECTIONS[at], model.key(at, name, None));
            match model.row(at, &key) {
                Some(row) if row.owner != who && who != SERVICE => Err(NOT_ALLOWED),
                Some(_) => Err("23505"),
                None => {
                    let given =
                        Given { session: None, owner: None, patch: None, revert_after: None, ..*given };
                    model.enter(at, key, &given, seen)
                }
            }
        })
    }

    fn own_in_room(&self, at: usize, room: usize) -> Vec<Key> {
        let who = CONNECTIONS[at];
        let is_own = |(key, row): &(Key, Row)| key.0 == room && (who == SERVICE || row.owner == who);
        self.rows(at).into_iter().filter(is_own).map(|(key, _)| key).collect()
    }

    pub fn change(
        &mut self,
        at: usize,
        room: usize,
        status: usize,
        audience: Option<usize>,
        seen: Seen,
    ) -> usize {
        let keys = self.own_in_room(at, room);
        let given = Given { status: Some(status), audience, ..Given::default() };
        let body = |model: &mut Model| {
            for key in &keys {
                let Some(held) = model.row(at, key).cloned() else { continue };
                let row = model.changed(at, key, &held, &given, held.ttl, seen);
                model.write(at, *key, &held, row, seen);
            }
            Ok(keys.len())
        };
        self.within(at, seen, body).unwrap_or_default()
    }

    pub fn remove(&mut self, at: usize, room: usize, seen: Seen) -> usize {
        let keys = self.own_in_room(at, room);
        self.delete_keys(at, &keys, None, seen)
    }
}
