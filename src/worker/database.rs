//! The worker of one database: publishes, sweeps, keeps house.
//!
//! ```text
//!             ┌──────── woken by a commit, or by the clock ────────┐
//!             ▼                                                    │
//!   events? publish ──▶ a deadline passed? sweep, publish ──▶ a second over? keep house ──▶ sleep
//!                                                                  │
//!                                    extension gone ───────────────┼──▶ ABSENT, exit
//!                                    somebody waits for the database └─▶ YIELDED, exit; the launcher comes back
//! ```

use super::house::{self, guarded};
use super::process::{self, transaction};
use super::publisher::{self, Outcome, Publisher};
use super::{dropped, log, sink, sweeper};
use crate::clock;
use crate::extension::{self, Extension};
use crate::lease::shared::leases;
use crate::lease::table::TOMBSTONE;
use crate::settings;
use crate::shared::database::WorkerState;
use crate::shared::trouble::Part;
use crate::shared::{self, Database};
use crate::spi;
use crate::subtransaction::Failure;
use pgrx::{pg_guard, pg_sys};
use std::cell::Cell;
use std::sync::atomic::Ordering::*;
use std::time::Duration;

const HOUSEKEEPING: u64 = 1_000_000;
/// Tombstones whose leave was never published (events were lost) are looked for this often.
const TOMBSTONES: u64 = 60_000_000;
/// While the NOTIFY queue is full, listeners are tried again this often.
const QUEUE_PAUSE: u64 = 200_000;
/// Sweeps do not follow each other faster, however the deadlines lie.
const SWEEP_PAUSE: u64 = 50_000;

thread_local! {
    static MINE: Cell<Option<&'static Database>> = const { Cell::new(None) };
    /// It goes of its own accord, and has left a state that says why.
    static DEPARTING: Cell<bool> = const { Cell::new(false) };
}

/// The process's entry point; the argument is the database's oid.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn presence_database_worker(argument: pg_sys::Datum) {
    process::install_signals();
    let oid = pg_sys::Oid::from(argument.value() as u32);
    house::connect(oid, c"presence_ext worker");
    house::pin_settings(c"off", c"1s");
    let found = transaction(c"starting", || match extension::member_table() {
        Some(_) => {
            let extension = extension::current()?;
            spi::as_role(extension.owner, || log::continue_numbers(&extension))?;
            compare_versions(&extension::sql_version()?);
            Ok(Some(extension))
        }
        None => Ok(None),
    });
    let extension = match found {
        Ok(Some(extension)) => extension,
        Ok(None) => return absent(oid),
        Err(failure) => {
            pgrx::warning!("presence_ext: the worker could not start: {}", failure.message);
            return;
        }
    };
    let database = extension.database;
    if !take_place(database) {
        return;
    }
    database.flushed.store(database.tail.load(Acquire), Release);
    publisher::register_callback();
    crate::event::transaction::register_callbacks();
    dropped::free_leases(database);
    Worker::new(extension).run();
}

/// An old version of the SQL is served, but not all of the library is to be had.
fn compare_versions(sql: &str) {
    let library = extension::LIBRARY_VERSION;
    if sql != library {
        pgrx::warning!(
            "presence_ext: this database has version {sql}, the library is version {library}: \
             run ALTER EXTENSION presence_ext UPDATE"
        );
    }
}

fn absent(oid: pg_sys::Oid) {
    if let Some(database) = Database::find(oid) {
        forget(database);
    }
}

/// The database has no extension any more.
fn forget(database: &'static Database) {
    dropped::free_leases(database);
    database.sink.position.store(0, Release);
    database.worker.set_state(WorkerState::Absent);
}

/// One worker a database: who finds the place taken goes away.
fn take_place(database: &'static Database) -> bool {
    // SAFETY: plain reads of this process's state; the callback has the right signature.
    unsafe {
        if database.worker.pid.compare_exchange(0, pg_sys::MyProcPid, AcqRel, Acquire).is_err() {
            return false;
        }
        MINE.set(Some(database));
        pg_sys::before_shmem_exit(Some(leave_place), pg_sys::Datum::from(0));
        database.worker.process.store(pg_sys::MyProc, Release);
    }
    database.worker.set_state(WorkerState::Running);
    database.trouble.is_over(Part::Start);
    true
}

#[pg_guard]
unsafe extern "C-unwind" fn leave_place(_code: i32, _argument: pg_sys::Datum) {
    let Some(database) = MINE.take() else { return };
    database.worker.process.store(std::ptr::null_mut(), Release);
    // Unless it said why it goes.
    if !DEPARTING.get() {
        database.worker.set_state(WorkerState::None);
    }
    database.worker.pid.store(0, Release);
    shared::wake(&shared::control().launcher);
}

struct Worker {
    extension: Extension,
    publisher: Publisher,
    last_publication: u64,
    last_sweep: u64,
    last_housekeeping: u64,
    last_tombstones: u64,
    /// After a failure: when to try again.
    not_before: u64,
    failures: u32,
    /// The extension was dropped, or is being dropped: look what there is now.
    is_stale: bool,
    /// Members of sessions that are over were still there at the last sweep.
    sessions_left: bool,
}

impl Worker {
    fn new(extension: Extension) -> Worker {
        Worker {
            extension,
            publisher: Publisher::new(),
            last_publication: 0,
            last_sweep: 0,
            last_housekeeping: 0,
            last_tombstones: clock::boot(),
            not_before: 0,
            failures: 0,
            is_stale: false,
            sessions_left: false,
        }
    }

    fn database(&self) -> &'static Database {
        self.extension.database
    }

    fn run(&mut self) {
        loop {
            if !self.turn() {
                return;
            }
            let now = clock::boot();
            let sleep = self.next_time().saturating_sub(now);
            // Between two publications commits need not wake us: the clock will.
            let deaf = self.has_events() && sleep > 0;
            process::wait(Duration::from_micros(sleep.min(if deaf { 20_000 } else { 1_000_000 })), deaf);
        }
    }

    /// Do what is due. False: it is time to go.
    fn turn(&mut self) -> bool {
        let now = clock::boot();
        if now >= self.last_housekeeping + HOUSEKEEPING || std::mem::take(&mut self.is_stale) {
            self.last_housekeeping = now;
            match self.keep_house() {
                Ok(true) => self.database().trouble.is_over(Part::House),
                Ok(false) => return false,
                Err(failure) => self.failed(Part::House, "housekeeping", &failure),
            }
        }
        if now < self.not_before {
            return true;
        }
        let mut result = Ok(());
        if self.publication_is_due(now) {
            result = self.publish();
        }
        if result.is_ok() && self.sweep_is_due(clock::boot()) {
            result = self.sweep();
        }
        match result {
            Ok(()) => {
                self.failures = 0;
                self.database().trouble.is_over(Part::Publishing);
            }
            Err(failure) => self.failed(Part::Publishing, "publishing or sweeping", &failure),
        }
        true
    }

    fn next_time(&self) -> u64 {
        let housekeeping = self.last_housekeeping + HOUSEKEEPING;
        let sweep = self.next_sweep();
        let publication = if self.has_events() { self.next_publication() } else { u64::MAX };
        publication.min(sweep).max(self.not_before).min(housekeeping)
    }

    fn has_events(&self) -> bool {
        self.database().ring().used() > 0
            || self.database().owed_resync().is_some()
            || self.publisher.rotation_is_due()
    }

    fn next_publication(&self) -> u64 {
        self.last_publication + settings::notify_delay()
    }

    fn publication_is_due(&self, now: u64) -> bool {
        self.has_events() && now >= self.next_publication()
    }

    /// At the earliest deadline, or within sweep_interval of it when sweeps would come too thick.
    fn next_sweep(&self) -> u64 {
        if self.database().ended_sessions.load(Acquire) > 0 {
            return self.last_sweep + SWEEP_PAUSE / 10;
        }
        let earliest = leases().earliest(self.extension.database_index);
        let by_row = match self.database().slotless.load(Acquire) {
            0 if !self.sessions_left => u64::MAX,
            _ => self.last_sweep + settings::sweep_interval(),
        };
        let pause = SWEEP_PAUSE.min(settings::sweep_interval());
        earliest.saturating_add(1).max(self.last_sweep + pause).min(by_row)
    }

    fn sweep_is_due(&self, now: u64) -> bool {
        now >= self.next_sweep()
    }

    fn publish(&mut self) -> Result<(), Failure> {
        loop {
            self.last_publication = clock::boot();
            match self.publisher.publish(&self.extension)? {
                Outcome::Published { more } => {
                    self.database().trouble.is_over(Part::NotifyQueue);
                    if !more {
                        return Ok(());
                    }
                }
                Outcome::QueueFull(failure) => {
                    // What is committed goes to the log all the while.
                    self.not_before = clock::boot() + QUEUE_PAUSE;
                    if self.database().trouble.failed(Part::NotifyQueue, &failure.message) {
                        pgrx::log!(
                            "presence_ext: listeners hear nothing until there is room again, then resync: {}",
                            failure.message
                        );
                    }
                    return house::make_room_in_notify_queue();
                }
                Outcome::Stale => {
                    self.is_stale = true;
                    return Ok(());
                }
                Outcome::Nothing | Outcome::Blocked => return Ok(()),
            }
        }
    }

    fn sweep(&mut self) -> Result<(), Failure> {
        self.is_stale = self.try_sweep()?.is_none();
        Ok(())
    }

    /// None: the extension is not the one we know any more.
    fn try_sweep(&mut self) -> Result<Option<()>, Failure> {
        let extension = self.extension;
        let database = self.database();
        let again = self.sessions_left;
        if database.slotless.load(Acquire) > 0 {
            while let Some(more) =
                guarded(&extension, c"giving leases a slot", || sweeper::adopt(&extension))?
            {
                if !more {
                    break;
                }
            }
        }
        let due = guarded(&extension, c"looking for expired members", || sweeper::due(&extension, again))?;
        let Some(due) = due else { return Ok(None) };
        self.sessions_left = due.sessions_left;
        for batch in &due.batches {
            // The ring must have room for what this makes: half of what is free, so that others have the rest.
            let room = database.ring().free() / 2;
            let deleted = guarded(&extension, c"removing expired members", || {
                sweeper::delete(&extension, batch, room)
            })?;
            let Some(deleted) = deleted else { return Ok(None) };
            database.counters.expired.fetch_add(deleted as u64, Relaxed);
            if self.publication_is_due(clock::boot()) {
                self.publish()?;
            }
        }
        if !due.batches.is_empty() {
            guarded(&extension, c"freeing leases", || sweeper::free_rowless(&due))?;
            database.counters.sweep_lag.store(due.lateness as i64, Relaxed);
        }
        self.last_sweep = clock::boot();
        database.counters.last_sweep.store(clock::wall(), Relaxed);
        Ok(Some(()))
    }

    /// Once a second. False: the worker is not wanted here any more.
    fn keep_house(&mut self) -> Result<bool, Failure> {
        let present = transaction(c"looking for the extension", || match extension::member_table() {
            Some(_) => extension::current().map(Some),
            None => Ok(None),
        })?;
        let Some(present) = present else {
            forget(self.database());
            DEPARTING.set(true);
            return Ok(false);
        };
        if present.member != self.extension.member {
            // Dropped and created again: begin anew.
            return Ok(false);
        }
        // It may have another owner.
        self.extension = present;
        if house::somebody_waits_for_the_database()? {
            self.database().worker.set_state(WorkerState::Yielded);
            DEPARTING.set(true);
            return Ok(false);
        }
        if !house::read_database_settings()? {
            return Ok(false);
        }
        sink::start_if_wanted(self.database());
        self.publisher.rotate_log(&self.extension)?;
        self.publisher.repeat_relistens(&self.extension)?;
        self.publisher.write_last_seen(&self.extension)?;
        let now = clock::boot();
        if now >= self.last_tombstones + TOMBSTONES || leases().used() * 10 > leases().capacity() as u64 * 9 {
            self.last_tombstones = now;
            dropped::free_leases(self.database());
            self.free_tombstones()?;
        }
        Ok(true)
    }

    /// Free tombstones that no event will: those that are there now, once everything now in the ring is published,
    /// cannot be needed by an older change any more.
    fn free_tombstones(&mut self) -> Result<(), Failure> {
        let index = self.extension.database_index;
        let found = leases().collect(|key, lease| key.database == index && lease.deadline == TOMBSTONE);
        if found.is_empty() {
            return Ok(());
        }
        self.publish()?;
        let oldest = shared::processes().iter().any(|process| process.committing.load(SeqCst) != 0);
        if !oldest {
            for (key, lease) in found {
                leases().free(&key, lease.version);
            }
        }
        Ok(())
    }

    fn failed(&mut self, part: Part, doing: &str, failure: &Failure) {
        self.failures = (self.failures + 1).min(7);
        self.not_before = clock::boot() + (50_000 << self.failures);
        self.database().trouble.failed(part, &failure.message);
        pgrx::log!("presence_ext: {doing} failed and will be tried again: {}", failure.message);
    }
}
