//! The copy: members in a logged table, `presence.shared`, where `presence.node_name` gives the server a name.
//!
//! `presence.member` is unlogged: callers wait for no disk, and a crash empties it. The copy is logged and has one writer,
//! the worker, which nobody waits for: it writes what it publishes, in the transaction in which it publishes it, as the rows
//! are by then. What it may have missed (events were lost, the copy could not be written, a worker begins) it finds by
//! comparing the two tables, a page at a time. A beat in `presence.node` says that everything before it is written.

pub mod batch;
mod beat;
mod compare;
mod restore;

use super::publisher::Publisher;
use super::step::Step;
use super::tenancy::guarded;
use crate::error::Result;
use crate::extension::{self, Extension};
use crate::pg::role::as_role;
use crate::pg::spi::Connection;
use crate::pg::subtransaction::{Failure, attempt};
use crate::shared::error_status::Part;
use crate::shared::{Database, control};
use crate::{clock, settings};
use batch::Batch;
use compare::Comparison;
use restore::{Next, Restore};
use std::ffi::CStr;
use std::sync::atomic::Ordering::*;

/// The longest turn of comparing, because events wait meanwhile.
const LONGEST: u64 = 20_000;

/// The worker's knowledge of its copy.
pub struct Copy {
    /// This server's name.
    name: Vec<u8>,
    /// The number of our rows, counted by the last comparison and updated since.
    members: i64,
    /// The copy may be incomplete: the progress of the comparison.
    comparison: Option<Comparison>,
    /// Writing failed: batches are not copied until the comparison makes progress.
    fails: bool,
    /// The number of losses of events, as of the last comparison.
    losses: u64,
}

impl Copy {
    /// None: the server has no name.
    pub fn of_this_server() -> Option<Copy> {
        let comparison = Some(Comparison::default());
        settings::node_name().map(|name| Copy { name, members: 0, comparison, fails: false, losses: 0 })
    }

    /// How many rows there are; None while the comparison adds and deletes some.
    fn counted(&self) -> Option<i64> {
        self.comparison.is_none().then_some(self.members)
    }

    /// Copy the members of a batch of events, in its transaction. A failure does not hold up the events.
    pub fn write(&self, batch: &Batch) -> Option<std::result::Result<i64, Failure>> {
        if self.fails || batch.is_empty() || !is_there() {
            return None;
        }
        Some(attempt(|| batch.write(&self.name)))
    }

    /// That transaction has committed.
    pub fn written(&mut self, extension: &Extension, written: std::result::Result<i64, Failure>) {
        match written {
            Ok(more) => {
                self.members += more;
                control().copied.note_commit();
            }
            Err(failure) => {
                extension.database.trouble.failed(Part::Copying, &failure.message);
                self.fails = true;
                self.comparison = Some(Comparison::default());
            }
        }
    }
}

/// Whether this database has the tables: its SQL may be older.
pub fn is_there() -> bool {
    extension::relation(c"shared").is_some()
}

/// The worker's other tasks for its copy.
pub struct Copying {
    restore: Restore,
    restoring: Step,
    comparing: Step,
    beating: Step,
    next_beat: u64,
    /// The tables did not exist: when to look again.
    not_before: u64,
}

/// If the SQL of this database is too old to have the tables.
const ABSENT_PAUSE: u64 = 1_000_000;

impl Copying {
    pub fn new() -> Copying {
        Copying {
            restore: Restore::default(),
            restoring: Step::new(Part::Restoring, "putting members back"),
            comparing: Step::new(Part::Copying, "copying members to presence.shared"),
            beating: Step::new(Part::Beating, "saying that this server is alive"),
            next_beat: 0,
            not_before: 0,
        }
    }

    pub fn next(&self, database: &Database, publisher: &Publisher) -> u64 {
        let Some(copy) = &publisher.copy else { return u64::MAX };
        if !database.copy.is_whole() {
            return self.restoring.not_before().max(self.not_before);
        }
        let comparison = if copy.comparison.is_some() { self.comparing.not_before() } else { u64::MAX };
        let beat = if copy.fails { u64::MAX } else { self.next_beat.max(self.beating.not_before()) };
        comparison.min(beat).max(self.not_before)
    }

    /// False: the extension is not the one that we know any more.
    pub fn turn(&mut self, extension: &Extension, publisher: &mut Publisher) -> bool {
        let Some(copy) = &mut publisher.copy else { return true };
        if clock::boot() < self.not_before {
            return true;
        }
        if !extension.database.copy.is_whole() {
            return self.restore(extension, copy);
        }
        let losses = extension.database.losses();
        if losses != copy.losses {
            copy.losses = losses;
            copy.comparison = Some(Comparison::default());
        }
        self.compare(extension, copy) && self.beat(extension, copy)
    }

    /// Until this is done only rows of members that leave may be deleted from the copy.
    fn restore(&mut self, extension: &Extension, copy: &Copy) -> bool {
        let database = extension.database;
        let end = clock::boot() + LONGEST;
        let obeys_cancel = self.restoring.obeys_cancel();
        while self.restoring.may_start() && clock::boot() < end {
            let step = as_owner(extension, c"putting members back", || {
                let next = self.restore.step(extension, &copy.name, obeys_cancel)?;
                if clock::boot() >= self.next_beat && !matches!(self.restore, Restore::Look) {
                    beat::write(extension, &copy.name, copy.counted(), "restoring")?;
                }
                Ok(next)
            });
            match self.restoring.note(database, step) {
                Some(Done::Is(next)) => {
                    control().copied.note_commit();
                    if clock::boot() >= self.next_beat {
                        self.next_beat = clock::boot() + settings::node_beat();
                    }
                    match next {
                        Next::Page(restore) => {
                            database.copy.goes_on();
                            self.restore = restore;
                        }
                        Next::Whole(count) => {
                            self.next_beat = 0;
                            return whole(database, count);
                        }
                    }
                }
                Some(Done::Absent) => return whole(database, 0),
                Some(Done::NotOurs) => return false,
                None => break,
            }
        }
        true
    }

    fn compare(&mut self, extension: &Extension, copy: &mut Copy) -> bool {
        let end = clock::boot() + LONGEST;
        while let Some(comparison) = copy.comparison.clone()
            && self.comparing.may_start()
            && clock::boot() < end
        {
            let page =
                as_owner(extension, c"comparing members with their copy", || comparison.page(&copy.name));
            match self.comparing.note(extension.database, page) {
                Some(Done::Is(page)) => {
                    copy.fails = false;
                    copy.comparison = page.next;
                    copy.members = page.members.unwrap_or(copy.members);
                    control().copied.note_commit();
                }
                Some(Done::Absent) => {
                    self.not_before = clock::boot() + ABSENT_PAUSE;
                    return true;
                }
                Some(Done::NotOurs) => return false,
                None => break,
            }
        }
        true
    }

    /// The server stops: announce it, so that others need not wait for the timeout.
    pub fn stop(&self, extension: &Extension, publisher: &Publisher) {
        let Some(copy) = publisher.copy.as_ref().filter(|copy| !copy.fails) else { return };
        if !extension.database.copy.is_whole() {
            return;
        }
        let said = as_owner(extension, c"saying that this server stops", || {
            beat::write(extension, &copy.name, copy.counted(), "down")
        });
        if let Ok(Done::Is(())) = said {
            // The launcher is stopping, too.
            control().copied.note_commit();
            control().copied.flush();
        }
    }

    /// Only between batches and only by this process, so that the beat does not overtake what precedes it. None while
    /// the copy cannot be written.
    fn beat(&mut self, extension: &Extension, copy: &mut Copy) -> bool {
        let now = clock::boot();
        if now < self.next_beat.max(self.not_before) || copy.fails || !self.beating.may_start() {
            return true;
        }
        let beat = as_owner(extension, c"saying that this server is alive", || {
            beat::write(extension, &copy.name, copy.counted(), "up")
        });
        match self.beating.note(extension.database, beat) {
            Some(Done::Is(_)) => {
                self.next_beat = now + settings::node_beat();
                control().copied.note_commit();
            }
            Some(Done::NotOurs) => return false,
            // The table was renamed: what is published meanwhile is missing when it comes back.
            Some(Done::Absent) => copy.comparison = Some(Comparison::default()),
            None => {}
        }
        true
    }
}

/// The restore is finished.
fn whole(database: &'static Database, count: u64) -> bool {
    crate::injection::stall("whole");
    if count > 0 {
        pgrx::log!("presence_ext: put back {count} members");
        // Session members must leave; and whoever has listed meanwhile must list again.
        database.ended_sessions.fetch_add(1, AcqRel);
        database.ask_resync();
    }
    database.copy.is_whole_now();
    true
}

/// A worker starts without a node name: nothing is restored, and former names are forgotten.
pub fn begin_without_a_name(extension: &Extension) -> std::result::Result<(), Failure> {
    if settings::node_name().is_none() {
        as_owner(extension, c"forgetting the copy", || {
            restore::plan_anew();
            restore::forget_other_names(&Connection::open()?, b"")
        })?;
        control().copied.note_commit();
        extension.database.copy.is_whole_now();
    }
    Ok(())
}

enum Done<T> {
    Is(T),
    /// This database does not have the tables.
    Absent,
    /// The extension is not the one that we know any more.
    NotOurs,
}

/// Run a transaction on the tables.
fn as_owner<T>(
    extension: &Extension,
    activity: &CStr,
    body: impl FnOnce() -> Result<T>,
) -> std::result::Result<Done<T>, Failure> {
    let done = guarded(extension, activity, || {
        if !is_there() {
            return Ok(Done::Absent);
        }
        as_role(extension.owner_role, body).map(Done::Is)
    })?;
    Ok(done.unwrap_or(Done::NotOurs))
}
