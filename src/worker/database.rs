//! The worker of one database: publishes, tells how many there are, sweeps, keeps house.
//!
//! ```text
//!             ┌───────────── woken by a commit, or by the clock ─────────────┐
//!             ▼                                                              │
//!   a second over? keep house ──▶ events? publish, tell numbers ──▶ a deadline passed? sweep ──▶ sleep
//!             │
//!             ├──▶ extension gone: ABSENT, exit
//!             └──▶ somebody waits for the database: YIELDED, exit; the launcher comes back
//! ```

use super::copy::{self, Copying};
use super::maintenance::{Maintenance, Verdict};
use super::occupancy::push::Pushing;
use super::occupancy::requests::Requests;
use super::peers::Peers;
use super::place::Place;
use super::process::{self, transaction};
use super::publish_schedule::Publishing;
use super::sweep_schedule::Sweeping;
use super::{batch_commit, dropped, log, settings as own_settings};
use crate::access::narrowing;
use crate::extension::{self, Extension};
use crate::pg::role::as_role;
use crate::shared::database::WorkerState;
use crate::shared::error_status::Part;
use crate::shared::{self, Database};
use crate::{clock, settings};
use pgrx::{pg_guard, pg_sys};
use std::cell::Cell;
use std::sync::atomic::Ordering::*;
use std::time::Duration;

thread_local! {
    /// This process exits on purpose, and has left a state that says why.
    static DEPARTING: Cell<bool> = const { Cell::new(false) };
}

/// The process's entry point; the argument is the database's oid.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn presence_database_worker(argument: pg_sys::Datum) {
    process::install_signals();
    let oid = pg_sys::Oid::from(argument.value() as u32);
    process::connect(oid, c"presence_ext worker");
    own_settings::pin_settings(c"off", c"100ms");
    own_settings::prefer_indexes();
    let found = transaction(c"starting", || match extension::member_table() {
        Some(_) => {
            let extension = extension::current()?;
            as_role(extension.owner_role, || log::continue_numbers(&extension))?;
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
            return start_again_soon(oid);
        }
    };
    let database = extension.database;
    if !take_place(database) {
        return;
    }
    database.flushed.store(database.tail.load(Acquire), Release);
    batch_commit::register_callback();
    dropped::free_leases(database);
    if let Err(failure) = copy::begin_without_a_name(&extension) {
        pgrx::log!("presence_ext: forgetting the copy failed: {}", failure.message);
    }
    process::finish_before_stopping();
    Worker::new(extension).run();
}

/// An old version of the SQL works, but without the newer features.
fn compare_versions(sql: &str) {
    let library = extension::LIBRARY_VERSION;
    if sql != library {
        pgrx::warning!(
            "presence_ext: this database has version {sql}, the library is version {library}: \
             run ALTER EXTENSION presence_ext UPDATE"
        );
    }
}

/// Most likely something was locked: retry sooner than after a start without any answer.
fn start_again_soon(oid: pg_sys::Oid) {
    if let Some(database) = Database::find(oid).filter(|database| database.worker.pid.load(Acquire) == 0) {
        database.worker.set_state(WorkerState::None);
    }
}

fn absent(oid: pg_sys::Oid) {
    if let Some(database) = Database::find(oid) {
        dropped::forget_extension(database);
    }
}

fn take_place(database: &'static Database) -> bool {
    let place = Place {
        database,
        pid: &database.worker.pid,
        process: &database.worker.process,
        leaving: |database| {
            // Unless it has left a state that says why it exits.
            if !DEPARTING.get() {
                database.worker.set_state(WorkerState::None);
            }
        },
        left: || shared::wake(&shared::control().launcher),
    };
    if !place.take() {
        return false;
    }
    narrowing::is_worker(&settings::authorizer(), settings::notify_payload() as i32);
    database.worker.set_state(WorkerState::Running);
    database.trouble.is_over(Part::Start);
    true
}

/// Independent tasks: a failure of one does not hold up the others.
struct Worker {
    extension: Extension,
    publishing: Publishing,
    pushing: Pushing,
    requests: Requests,
    sweeping: Sweeping,
    copying: Copying,
    peers: Peers,
    maintenance: Maintenance,
}

impl Worker {
    fn new(extension: Extension) -> Worker {
        Worker {
            extension,
            publishing: Publishing::new(extension.database),
            pushing: Pushing::new(),
            requests: Requests::new(),
            sweeping: Sweeping::new(),
            copying: Copying::new(),
            peers: Peers::new(),
            maintenance: Maintenance::new(),
        }
    }

    fn run(&mut self) {
        let mut is_stale = false;
        loop {
            match self.maintenance.turn(&mut self.extension, &mut self.publishing.publisher, is_stale) {
                Verdict::Stay => {}
                verdict => return DEPARTING.set(verdict == Verdict::Depart),
            }
            let is_ours = self.peers.turn(&self.extension)
                && self.copying.turn(&self.extension, &mut self.publishing.publisher)
                && self.publishing.turn(&self.extension)
                && self.pushing.turn(&self.extension, &mut self.publishing.publisher)
                && self.requests.turn(&self.extension, &mut self.publishing.publisher)
                && self.sweeping.turn(&self.extension, &mut self.publishing);
            // The extension was dropped, or is being dropped: check.
            is_stale = !is_ours;
            self.wait();
            if process::is_to_stop() {
                if process::is_server_stopping() {
                    self.copying.stop(&self.extension, &self.publishing.publisher);
                }
                process::stop();
            }
        }
    }

    fn wait(&self) {
        let publication = self.publishing.next(&self.extension);
        let next = publication
            .min(self.pushing.next(&self.extension, &self.publishing.publisher))
            .min(self.requests.next(&self.extension))
            .min(self.sweeping.next(&self.extension))
            .min(self.copying.next(self.extension.database, &self.publishing.publisher))
            .min(self.peers.next(self.extension.database))
            .min(self.maintenance.next());
        let sleep = next.saturating_sub(clock::boot());
        // Between two publications commits need not wake us: the timeout will.
        let deaf = sleep > 0 && self.publishing.publisher.has_events(&self.extension);
        process::wait(Duration::from_micros(sleep.min(if deaf { 20_000 } else { 1_000_000 })), deaf);
    }
}
