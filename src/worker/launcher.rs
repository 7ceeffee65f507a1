//! The launcher: connected to no database, it keeps one worker running in each database with the extension.
//!
//! ```text
//!                    new database, or wanted (somebody used presence there)
//!            ┌────────┐            ┌──────────┐  extension found   ┌─────────┐
//!      ─────▶│  None  │───────────▶│ Starting │───────────────────▶│ Running │──┐
//!            └────────┘            └──────────┘                    └─────────┘  │ killed, failed
//!                ▲                      │ no extension                  │       │ (state None)
//!                │                      ▼                               │       │
//!                │  wanted         ┌────────┐   extension dropped       │       │
//!                ├─────────────────│ Absent │◀──────────────────────────┤       │
//!                │                 └────────┘                           │       │
//!                │  a second later ┌─────────┐  somebody waits for the  │       │
//!                ├─────────────────│ Yielded │◀── database (DROP ...) ──┘       │
//!                │                 └─────────┘                                  │
//!                └──────────────────────────────────────────────────────────────┘
//! ```
//!
//! The state is in shared memory, so a launcher that is killed and comes back goes on where it was. Databases
//! without an entry in shared memory are probed once each: the worker that starts there looks for the extension
//! and ends if there is none. On a standby there are other workers (`worker::standby`), which go when it is promoted.

use super::process;
use crate::clock;
use crate::shared::database::WorkerState;
use crate::shared::error_status::Part;
use crate::shared::{Database, control, databases, persistence};
use pgrx::{pg_guard, pg_sys};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering::*;
use std::time::Duration;

/// How long a worker may take to start before that is tried again.
const START_TIME: u64 = 10_000_000;
const PAUSE: u64 = 1_000_000;
/// Interval between flushes of the WAL.
const FLUSH_PAUSE: Duration = Duration::from_millis(10);

/// Called from _PG_init in the postmaster.
pub fn register() {
    let mut worker = background_worker("presence_ext launcher", "presence_launcher", pg_sys::Datum::from(0));
    worker.bgw_restart_time = 1;
    worker.bgw_start_time = pg_sys::BgWorkerStartTime::BgWorkerStart_ConsistentState;
    // SAFETY: a complete description of a worker; the postmaster copies it.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut worker) };
}

pub fn background_worker(name: &str, function: &str, argument: pg_sys::Datum) -> pg_sys::BackgroundWorker {
    // SAFETY: zeroes are a valid, empty description.
    let mut worker: pg_sys::BackgroundWorker = unsafe { std::mem::zeroed() };
    copy(&mut worker.bgw_name, name);
    copy(&mut worker.bgw_type, name);
    copy_library(&mut worker);
    copy(&mut worker.bgw_function_name, function);
    worker.bgw_flags = (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION) as i32;
    worker.bgw_start_time = pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished;
    worker.bgw_restart_time = pg_sys::BGW_NEVER_RESTART;
    worker.bgw_main_arg = argument;
    worker
}

fn copy_library(worker: &mut pg_sys::BackgroundWorker) {
    copy(&mut worker.bgw_library_name, "presence_ext");
}

fn copy(to: &mut [std::ffi::c_char], from: &str) {
    for (to, from) in to.iter_mut().zip(from.bytes()) {
        *to = from as std::ffi::c_char;
    }
}

/// The process's entry point.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn presence_launcher(_argument: pg_sys::Datum) {
    process::install_signals();
    // SAFETY: once, at the start of this process: no database, shared catalogs only.
    unsafe {
        pg_sys::before_shmem_exit(Some(leave), pg_sys::Datum::from(0));
        pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0);
        pg_sys::pgstat_report_appname(c"presence_ext launcher".as_ptr());
        control().launcher_pid.store(pg_sys::MyProcPid, Release);
        control().launcher.store(pg_sys::MyProc, Release);
    }
    let mut launcher = Launcher::default();
    let mut looked = 0;
    loop {
        let has_flushed = control().copied.flush();
        // A commit of the copy is no reason to look for databases.
        if !has_flushed || clock::boot() >= looked + PAUSE / 10 {
            looked = clock::boot();
            launcher.turn();
            persistence::raise_floor();
        }
        process::wait(if has_flushed { FLUSH_PAUSE } else { Duration::from_micros(PAUSE) }, has_flushed);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn leave(_code: i32, _argument: pg_sys::Datum) {
    control().launcher.store(std::ptr::null_mut(), Release);
    control().launcher_pid.store(0, Release);
}

#[derive(Default)]
struct Launcher {
    /// Databases that were checked once.
    probed: HashSet<u32>,
    /// When a worker was last started, by database.
    started: HashMap<u32, u64>,
    /// A missing worker slot is logged once.
    complained: bool,
}

impl Launcher {
    fn turn(&mut self) {
        let Some(existing) = connectable_databases() else { return };
        self.release_dropped(&existing);
        let now = clock::boot();
        for oid in existing {
            if self.shall_start(oid, now) {
                self.start(oid, now);
            }
        }
    }

    fn shall_start(&mut self, oid: u32, now: u64) -> bool {
        let since = now.saturating_sub(self.started.get(&oid).copied().unwrap_or(0));
        let Some(database) = Database::find(pg_sys::Oid::from(oid)) else {
            return !self.probed.contains(&oid);
        };
        if database.worker.pid.load(Acquire) != 0 {
            return false;
        }
        match database.worker.state() {
            WorkerState::None | WorkerState::Yielded | WorkerState::Standby => since > PAUSE / 2,
            WorkerState::Starting | WorkerState::Running => since > START_TIME,
            WorkerState::Absent => database.worker.wanted.swap(false, AcqRel),
        }
    }

    fn start(&mut self, oid: u32, now: u64) {
        // SAFETY: a look-up in shared memory.
        let is_standby = unsafe { pg_sys::RecoveryInProgress() };
        let argument = pg_sys::Datum::from(oid as usize);
        let mut worker = if is_standby {
            background_worker("presence_ext standby", "presence_standby_worker", argument)
        } else {
            background_worker("presence_ext worker", "presence_database_worker", argument)
        };
        if is_standby {
            worker.bgw_start_time = pg_sys::BgWorkerStartTime::BgWorkerStart_ConsistentState;
        }
        // SAFETY: this process's own pid; it wants to hear when the worker ends.
        worker.bgw_notify_pid = unsafe { pg_sys::MyProcPid };
        let mut handle = std::ptr::null_mut();
        // Before a worker runs that could change it.
        let database = Database::find(pg_sys::Oid::from(oid));
        let before = database.map(|database| database.worker.begin_start());
        // SAFETY: a complete description; the handle is palloc'd and of no further use.
        let registered = unsafe { pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle) };
        if registered {
            self.probed.insert(oid);
            self.started.insert(oid, now);
            self.complained = false;
        } else {
            if let (Some(database), Some(before)) = (database, before) {
                database.worker.set_state(before);
                database
                    .trouble
                    .failed(Part::Start, "no free slot for a background worker: raise max_worker_processes");
            }
            if std::mem::replace(&mut self.complained, true) {
                return;
            }
            pgrx::ereport!(
                pgrx::PgLogLevel::LOG,
                pgrx::PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                "presence_ext found no free slot for a background worker",
                "Raise max_worker_processes. Until then members expire and are listed correctly, but no event is published."
            );
        }
    }

    /// Free the place of a dropped database.
    fn release_dropped(&mut self, existing: &[u32]) {
        for database in databases() {
            let oid = database.oid.load(Acquire);
            if oid != 0 && !existing.contains(&oid) && database.worker.pid.load(Acquire) == 0 && !exists(oid)
            {
                database.release();
            }
        }
        self.probed.retain(|oid| existing.contains(oid));
        self.started.retain(|oid, _| existing.contains(oid));
    }
}

/// Databases that accept connections and are not templates. None: unknown now.
fn connectable_databases() -> Option<Vec<u32>> {
    process::transaction(c"looking for databases", || {
        let mut found = Vec::new();
        // SAFETY: a scan of a shared catalog inside a transaction, closed again below.
        unsafe {
            let catalog = pg_sys::Oid::from(pg_sys::BuiltinOid::DatabaseRelationId);
            let relation = pg_sys::table_open(catalog, pg_sys::AccessShareLock as i32);
            let scan = pg_sys::table_beginscan_catalog(relation, 0, std::ptr::null_mut());
            loop {
                let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
                if tuple.is_null() {
                    break;
                }
                let form = &*(pg_sys::GETSTRUCT(tuple) as pg_sys::Form_pg_database);
                if form.datallowconn && !form.datistemplate {
                    found.push(u32::from(form.oid));
                }
            }
            pg_sys::heap_endscan(scan);
            pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
        }
        Ok(found)
    })
    .ok()
}

/// Whether the database exists: one that refuses connections keeps its place.
fn exists(oid: u32) -> bool {
    process::transaction(c"looking for a database", || {
        // SAFETY: a look-up in a shared catalog.
        let tuple = unsafe {
            pg_sys::SearchSysCache1(
                pg_sys::SysCacheIdentifier::DATABASEOID as i32,
                pg_sys::Datum::from(oid as usize),
            )
        };
        let found = !tuple.is_null();
        if found {
            // SAFETY: found above.
            unsafe { pg_sys::ReleaseSysCache(tuple) };
        }
        Ok(found)
    })
    .unwrap_or(true)
}
