//! When to sweep, and what with: a portion a turn. A member that cannot be deleted holds up only itself.

use super::expired_scan::{Due, ExpiredScan};
use super::overdue::Overdue;
use super::publish_schedule::Publishing;
use super::retry::{Stuck, by_halves};
use super::reverting;
use super::row_scan::RowScan;
use super::step::Step;
use super::sweeper::{self, Budget, Swept};
use super::tenancy::guarded;
use crate::extension::Extension;
use crate::pg::role::as_role;
use crate::pg::subtransaction::Failure;
use crate::shared::Database;
use crate::shared::error_status::Part;
use crate::shared::leases::leases;
use crate::{clock, settings};
use std::cell::Cell;
use std::ffi::CStr;
use std::sync::atomic::Ordering::*;

/// Minimum interval between rounds, whatever the deadlines are.
const PAUSE: u64 = 50_000;
/// Time in one turn for members that could not be deleted before.
const RETRIES: u64 = 100_000;
/// At most this many lines about such members are logged in one round.
const MOST_LINES: u32 = 10;
/// While slots are full, the rows are scanned when one of them is due, or after this many intervals, because a fixed
/// lease moves when the wall clock is set.
const SELDOM: u64 = 10;
/// This many free slots are worth a scan, if there are members for them; it may take a tenth of the time.
const WORTH_A_WALK: u64 = 1_000;
const REST: u64 = 9;

/// What to do with members that are due.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Task {
    Remove,
    Revert,
}

impl Task {
    fn doing(self) -> &'static CStr {
        match self {
            Task::Remove => c"removing expired members",
            Task::Revert => c"undoing what was for a time",
        }
    }

    fn failure(self) -> &'static str {
        match self {
            Task::Remove => "a member cannot be removed",
            Task::Revert => "a member cannot revert",
        }
    }

    fn run(self, extension: &Extension, keys: &[u128], room: Budget) -> crate::error::Result<Swept> {
        match self {
            Task::Remove => sweeper::delete(extension, keys, room, sweeper::BEFORE),
            Task::Revert => reverting::revert(extension, keys, room, sweeper::BEFORE),
        }
    }
}

pub struct Sweeping {
    step: Step,
    adopting: Step,
    freeing: Step,
    stuck: Stuck,
    overdue: Overdue,
    /// The current round.
    walk: Option<ExpiredScan>,
    /// When the last round began and ended.
    began: u64,
    last: u64,
    /// The last round deleted something: there may be more.
    progress: bool,
    /// The last round found no room in the ring.
    no_room: bool,
    /// Members of ended sessions were still there.
    sessions_left: bool,
    rows: RowWalks,
    lines: u32,
}

/// When the rows are scanned, because some have no slot.
struct RowWalks {
    /// A scan was begun. If it was given up, its result is unknown.
    is_open: bool,
    /// When the last one ended, how long it took, and how many members it left without a slot.
    last: u64,
    took: u64,
    left: u64,
}

impl Default for RowWalks {
    /// A new worker does not know of any.
    fn default() -> RowWalks {
        RowWalks { is_open: true, last: 0, took: 0, left: 0 }
    }
}

impl RowWalks {
    fn next(&self, database: &Database) -> u64 {
        if database.slotless.load(Acquire) == 0 {
            return u64::MAX;
        }
        if self.is_open {
            return self.last;
        }
        let interval = settings::sweep_interval();
        let due = database.slotless_due.load(Acquire).min(self.last + SELDOM * interval);
        let free = (leases().capacity() as u64).saturating_sub(leases().used());
        let is_worth_it = free > 0 && free >= self.left.min(WORTH_A_WALK);
        let by_slot = if is_worth_it { self.last + REST * self.took } else { u64::MAX };
        due.min(by_slot).max(self.last + interval)
    }

    fn begin(&mut self, database: &Database) {
        self.is_open = true;
        // Commits without a slot lower this from here on.
        database.slotless_due.store(u64::MAX, Release);
    }

    fn end(&mut self, extension: &Extension, walk: &RowScan, began: u64) {
        extension.database.slotless_due.fetch_min(walk.due, AcqRel);
        self.left = walk.end(extension);
        self.last = clock::boot();
        self.took = self.last - began;
        self.is_open = false;
    }
}

impl Sweeping {
    pub fn new() -> Sweeping {
        Sweeping {
            step: Step::new(Part::Sweeping, "removing expired members"),
            adopting: Step::new(Part::Adopting, "giving leases a slot"),
            freeing: Step::new(Part::Freeing, "freeing leases"),
            stuck: Stuck::new(1_000_000, 30_000_000),
            overdue: Overdue::default(),
            walk: None,
            began: 0,
            last: 0,
            progress: true,
            no_room: false,
            sessions_left: false,
            rows: RowWalks::default(),
            lines: 0,
        }
    }

    pub fn next(&self, extension: &Extension) -> u64 {
        let next = if self.walk.is_some() { 0 } else { self.next_round(extension) };
        next.max(self.step.not_before())
    }

    /// At the earliest deadline, or within sweep_interval of it if rounds would be too frequent.
    fn next_round(&self, extension: &Extension) -> u64 {
        let database = extension.database;
        if database.ended_sessions.load(Acquire) > 0 {
            return self.last + PAUSE / 10;
        }
        let interval = settings::sweep_interval();
        let soon = self.last + PAUSE.min(interval);
        let earliest = leases().earliest(extension.database_index);
        let by_lease = if self.progress || self.no_room {
            earliest.saturating_add(1).max(soon)
        } else {
            // Members that were due the last time and are still there must wait; others must not.
            let later = leases().earliest_after(extension.database_index, self.began);
            let held = if earliest <= self.began { self.began + interval } else { u64::MAX };
            later.saturating_add(1).max(soon).min(held.max(soon))
        };
        let by_session = if self.sessions_left { self.last + interval } else { u64::MAX };
        by_lease.min(by_session).min(self.rows.next(database).max(soon))
    }

    /// Sweep a portion, if it is time. False: the extension is not the one that we know any more.
    pub fn turn(&mut self, extension: &Extension, publishing: &mut Publishing) -> bool {
        if clock::boot() < self.next(extension) {
            return true;
        }
        let swept = self.sweep(extension, publishing);
        if swept.is_err() {
            // Whatever the cause: start again.
            self.walk = None;
            self.sessions_left = true;
        }
        self.step.note(extension.database, swept).unwrap_or(true)
    }

    fn sweep(&mut self, extension: &Extension, publishing: &mut Publishing) -> Result<bool, Failure> {
        let mut walk = match self.walk.take() {
            Some(walk) => walk,
            None => self.begin(extension),
        };
        let now = clock::boot();
        let stuck = &self.stuck;
        let found = guarded(extension, c"looking for expired members", || {
            walk.next(extension, |hash| stuck.waits(hash, now))
        })?;
        let Some(found) = found else { return Ok(false) };
        let Some(due) = found else {
            self.end(extension, &walk);
            return Ok(true);
        };
        if !self.each(extension, publishing, Task::Revert, &due.reverting)? {
            return Ok(false);
        }
        if !self.each(extension, publishing, Task::Remove, &due.keys)? {
            return Ok(false);
        }
        // Also those that are locked just now: their leave may take a long time.
        if !due.keys.is_empty() {
            guarded(extension, c"looking who is overdue", || {
                as_role(extension.owner_role, || {
                    self.overdue.look(extension, &due.keys, &mut publishing.publisher.rotation)
                })
            })?;
        }
        if let Some(rows) = &mut walk.rows
            && !due.slotless.is_empty()
            && leases().used() < leases().capacity() as u64
        {
            let adopted = self.adopting.attempt(extension.database, || {
                guarded(extension, c"giving leases a slot", || sweeper::adopt(extension, &due.slotless))
            });
            rows.adopted(adopted.flatten().unwrap_or(0));
        }
        if due.has_slots() {
            self.freeing.attempt(extension.database, || {
                guarded(extension, c"freeing leases", || sweeper::free_rowless(extension, &due))
            });
        }
        self.walk = Some(walk);
        Ok(true)
    }

    fn begin(&mut self, extension: &Extension) -> ExpiredScan {
        self.began = clock::boot();
        (self.progress, self.no_room, self.lines) = (false, false, 0);
        let database = extension.database;
        let sessions = database.ended_sessions.swap(0, AcqRel) > 0 || self.sessions_left;
        let rows =
            database.slotless.load(Acquire) > 0 && (sessions || self.began >= self.rows.next(database));
        if rows {
            self.rows.begin(database);
        }
        ExpiredScan::start(extension, sessions, rows)
    }

    fn end(&mut self, extension: &Extension, walk: &ExpiredScan) {
        let counters = &extension.database.counters;
        if let Some(rows) = &walk.rows {
            self.rows.end(extension, rows, self.began);
        }
        self.sessions_left = walk.sessions_left;
        self.last = clock::boot();
        if self.progress {
            counters.sweep_lag.store(walk.lateness as i64, Relaxed);
        }
        counters.last_sweep.store(clock::wall(), Relaxed);
        self.stuck.forget_gone(self.last);
        self.overdue.end_round(|hash| self.stuck.since(hash).is_some());
        if self.stuck.is_empty() {
            extension.database.trouble.is_over(Part::Members);
        }
    }

    /// Do it with all of these. False: the extension is not the one that we know any more.
    fn each(
        &mut self,
        extension: &Extension,
        publishing: &mut Publishing,
        task: Task,
        keys: &[u128],
    ) -> Result<bool, Failure> {
        let start = clock::boot();
        // Those that failed before come last, and one by one.
        let (known, fresh): (Vec<u128>, Vec<u128>) =
            keys.iter().partition(|hash| self.stuck.since(**hash).is_some());
        for batch in Due::batches(&fresh) {
            if !self.some(extension, publishing, task, batch)? {
                return Ok(false);
            }
        }
        for hash in &known {
            if clock::boot() > start + RETRIES {
                break;
            }
            if !self.some(extension, publishing, task, &[*hash])? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// In as many transactions as needed.
    fn some(
        &mut self,
        extension: &Extension,
        publishing: &mut Publishing,
        task: Task,
        keys: &[u128],
    ) -> Result<bool, Failure> {
        let is_ours = Cell::new(true);
        let mut rest = keys.to_vec();
        while !rest.is_empty() && is_ours.get() {
            let (mut unfit, mut failed, mut done) = (Vec::new(), Vec::new(), Vec::new());
            let mut kept = Vec::new();
            let attempt = |part: &[u128]| {
                if !is_ours.get() || !publishing.make_room(extension) {
                    is_ours.set(false);
                    return Ok(());
                }
                let room = Budget::for_worker(extension);
                let swept = guarded(extension, task.doing(), || task.run(extension, part, room))?;
                let Some(mut swept) = swept else {
                    is_ours.set(false);
                    return Ok(());
                };
                if task == Task::Remove {
                    extension.database.counters.expired.fetch_add(swept.done.len() as u64, Relaxed);
                }
                done.append(&mut swept.done);
                kept.append(&mut swept.kept);
                unfit.append(&mut swept.unfit);
                Ok(())
            };
            let alone = |hash: &u128, failure: Failure| failed.push((*hash, failure.message));
            let ended = by_halves(&rest, self.step.obeys_cancel(), attempt, alone);
            self.progress |= !done.is_empty();
            let nothing_went = done.is_empty();
            done.into_iter().for_each(|hash| self.stuck.is_over(hash));
            kept.into_iter().for_each(|hash| failed.push((hash, "a trigger or a rule keeps its row".into())));
            for (hash, why) in failed {
                self.failed(extension, task, hash, &why);
            }
            ended?;
            // Without room for a single one there is nothing to do but wait for the publisher.
            self.no_room |= !unfit.is_empty() && nothing_went;
            rest = if nothing_went { Vec::new() } else { unfit };
        }
        Ok(is_ours.get())
    }

    /// It failed for one member.
    fn failed(&mut self, extension: &Extension, task: Task, hash: u128, why: &str) {
        let is_new = self.stuck.failed(hash, clock::boot());
        let name = guarded(extension, c"looking for a name", || sweeper::name(hash));
        let failure = task.failure();
        let what = match name {
            Ok(Some(name)) => format!("{failure} ({name}): {why}"),
            _ => format!("{failure}: {why}"),
        };
        extension.database.trouble.failed(Part::Members, &what);
        if is_new && self.lines < MOST_LINES {
            self.lines += 1;
            pgrx::log!("presence_ext: {what}; it will be tried again");
        }
    }
}
