//! A listening session: the channel names it holds, the grants they came from, and what it heard since the last settle.

use crate::common::{Cluster, Event, Session};
use crate::op::After;
use crate::rights::{Grant, Key, Model, SERVICE, Written};
use std::collections::{HashMap, HashSet};

pub struct Ear {
    pub login: &'static str,
    pub session: Session,
    /// The channel names it listens to, and the grants they came from.
    holds: HashMap<String, Vec<Grant>>,
    /// Names that it gave up, and after which step.
    gone: HashMap<String, usize>,
    /// Events heard in full since the last settle: the number of the write, and whether the event was a leave.
    pub told: HashSet<(usize, bool)>,
    pub left: HashSet<Key>,
    /// It got a doorbell, or was told to listen again or to list.
    pub was_called: bool,
}

impl Ear {
    pub fn open(cluster: &Cluster, login: &'static str) -> Ear {
        Ear {
            login,
            session: cluster.user(login),
            holds: HashMap::new(),
            gone: HashMap::new(),
            told: HashSet::new(),
            left: HashSet::new(),
            was_called: false,
        }
    }

    /// Starts a new case; it listens to nothing at this point.
    pub fn begin(&mut self) {
        (self.holds, self.gone) = Default::default();
        self.forget();
    }

    /// Clears what it has heard: every listener is up to date.
    pub fn forget(&mut self) {
        (self.told, self.left, self.was_called) = Default::default();
    }

    /// Replaces the session with a new one.
    pub fn reconnect(&mut self, cluster: &Cluster) {
        *self = Ear::open(cluster, self.login);
    }

    /// It now listens to names that the grant's user was given, perhaps some time ago.
    pub fn has(&mut self, names: &[String], grant: &Grant) {
        for name in names {
            self.gone.remove(name);
            self.holds.entry(name.clone()).or_default().push(grant.clone());
        }
    }

    /// After `presence.listen` as another user, which drops channels that this user has no right to.
    pub fn listens_as(&mut self, user: usize) {
        self.grants().filter(|grant| grant.user != user).for_each(|grant| grant.is_fresh = false);
    }

    pub fn loses_all(&mut self, step: usize) {
        self.gone.extend(self.holds.drain().map(|(name, _)| (name, step)));
    }

    /// After `presence.unlisten`: it gives up the names of this user, role and room.
    pub fn loses(&mut self, of: &Grant, step: usize) {
        let is_of = |grant: &Grant| (grant.user, grant.role, grant.room) == (of.user, of.role, of.room);
        let (gone, holds) = self.holds.drain().partition(|(_, grants)| grants.iter().any(is_of));
        self.holds = holds;
        self.gone.extend(HashMap::into_keys(gone).map(|name| (name, step)));
        // The channels that announce new names are gone, too.
        self.grants().for_each(|grant| grant.is_fresh = false);
    }

    fn grants(&mut self) -> impl Iterator<Item = &mut Grant> {
        self.holds.values_mut().flatten()
    }

    /// Runs what the session's user says last, before the next user takes the session over.
    pub fn end(&mut self, after: After, step: usize) {
        match after {
            After::Nothing | After::Unlisten => {}
            After::ResetAll => self.session.run("reset all"),
            After::ResetAuthorization => self.session.run("reset session authorization; reset role"),
            After::DiscardAll => self.session.run("discard all"),
            After::UnlistenAll => self.session.run("unlisten *"),
        }
        if matches!(after, After::DiscardAll | After::UnlistenAll) {
            self.loses_all(step);
        }
    }

    /// Reads what has arrived, and fails on any event that it must not hear.
    pub fn hear(&mut self, model: &Model) -> Result<Vec<Event>, String> {
        let events = self.session.heard();
        for event in &events {
            self.judge(model, event)
                .map_err(|why| format!("{} hears {}: {why}", self.login, event.payload))?;
        }
        Ok(events)
    }

    fn judge(&mut self, model: &Model, event: &Event) -> Result<(), String> {
        match event.kind() {
            "enter" | "update" | "leave" | "room" => {}
            "relisten" | "resync" => {
                self.was_called = true;
                self.grants().for_each(|grant| grant.is_fresh = false);
                return Ok(());
            }
            "changes" => {
                self.was_called = true;
                return Ok(());
            }
            "alive" => return Ok(()),
            _ => {}
        }
        if model.is_of_crowd(event.text("room")) {
            return Ok(());
        }
        let grants = self.holds.get(&event.channel).map_or(&[][..], Vec::as_slice);
        if grants.is_empty() {
            let (_, _, since) = model.told(event)?;
            let gone = self.gone.get(&event.channel).ok_or("by a name that it never had")?;
            return if since <= *gone {
                Ok(())
            } else {
                Err(format!("by a name that it gave up after step {gone}"))
            };
        }
        if grants.iter().any(|grant| grant.user == SERVICE)
            && !model.rooms.iter().any(|room| room == event.text("room"))
        {
            return Ok(()); // from `poke`, which wakes the worker
        }
        if event.kind() == "occupancy" {
            // No room has a count_audience, so only service roles get the full numbers.
            let is_service = grants.iter().any(|grant| grant.user == SERVICE);
            return if is_service { Ok(()) } else { Err("by the names of whoever must not know".into()) };
        }
        model.may_hear(grants, event)?;
        if event.kind() != "room" {
            let (number, written, _) = model.told(event)?;
            let leaves = event.kind() == "leave";
            self.told.insert((number, leaves));
            if leaves {
                self.left.insert(written.key.clone());
            }
        }
        Ok(())
    }

    /// Everything is published: whoever had the right throughout has heard the event, or the session was told to look.
    pub fn check(&self, model: &Model, settled: usize, is_exact: bool) -> Result<(), String> {
        if self.was_called {
            return Ok(());
        }
        for grant in self.holds.values().flatten().filter(|grant| grant.is_fresh) {
            let now = model.next() - 1;
            let sees = |written: &Written| {
                (grant.room.is_none_or(|room| room == written.key.0))
                    && model.moments[grant.since - 1..=now]
                        .iter()
                        .all(|moment| moment.shows(grant, written, &model.rooms))
            };
            for (number, written) in &model.writes {
                if !sees(written) || written.last_word {
                    continue;
                }
                let is_last = written.ended.is_none();
                if written.began > settled
                    && written.began >= grant.since
                    && (is_last || is_exact)
                    && !self.told.contains(&(*number, false))
                {
                    return Err(format!(
                        "{} ({grant:?}) did not hear of write {number}, {written:?}",
                        self.login
                    ));
                }
                let Some(ended) = written.ended.filter(|ended| *ended > settled && *ended >= grant.since)
                else {
                    continue;
                };
                let is_gone = (ended..=now).all(|at| {
                    !model.moments[at].rows.contains_key(&written.key)
                        && !model.moments[at].stale.contains(&written.key)
                });
                if is_gone && !self.left.contains(&written.key) {
                    return Err(format!("{} ({grant:?}) did not hear that {written:?} left", self.login));
                }
            }
        }
        Ok(())
    }
}
