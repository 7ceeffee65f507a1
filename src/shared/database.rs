//! What the cluster's shared memory holds for one database: its ring, its worker, its numbers.

use super::channel_epochs::ChannelEpochs;
use super::copy::CopyStatus;
use super::counter::Counter;
use super::error_status::ErrorStatus;
use super::heard::Heard;
use super::leases::leases;
use super::locks::{self, DATABASES_LOCK};
use super::occupancy::OccupancyTable;
use super::retired::Retired;
use super::rights::Rights;
use super::subscriber_counts::Held;
use super::{control, databases, wake};
use crate::clock;
use crate::error::{Error, Result};
use crate::event::record::make_all_lean;
use crate::event::ring::Ring;
use crate::event::share::{Demand, LEAN, SHARES, UNBOUNDED, WHOLE};
use crate::lease::slot::Key;
use pgrx::pg_sys;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering::*};

#[repr(C)]
pub struct Database {
    /// 0: this entry is free.
    pub oid: AtomicU32,
    pub worker: Worker,
    pub sink: Sink,
    pub head: AtomicU64,
    pub tail: AtomicU64,
    /// Bytes between them, of each share.
    pub shares: [AtomicU64; SHARES],
    /// The tail of which listeners were told, too: a moment after the commit that moved it.
    pub flushed: AtomicU64,
    /// The last published seq.
    pub seq: AtomicU64,
    /// The log has every event after this one.
    pub log_floor: AtomicU64,
    /// Members whose lease lives in the row, at least since the sweeper last looked: never too few.
    pub slotless: AtomicU64,
    /// None of these is due before, by the boot clock.
    pub slotless_due: AtomicU64,
    /// When something about members was committed last, by the boot clock.
    changed_at: AtomicU64,
    /// When a change was made last, or a leave, of which no slot tells any more.
    unslotted_at: AtomicU64,
    /// Sessions that ended and whose members the sweeper has not looked for yet.
    pub ended_sessions: AtomicU64,
    /// How often events were lost, and how often before the last `resync` that told of it.
    losses: AtomicU64,
    losses_told: AtomicU64,
    pub copy: CopyStatus,
    pub heard: Heard,
    pub names: ChannelEpochs,
    pub retired: Retired,
    pub rights: Rights,
    pub beacon: Beacon,
    pub narrowing: Narrowing,
    /// Who listens.
    pub held: Held,
    numbers: OccupancyTable,
    pub counters: Counters,
    pub trouble: ErrorStatus,
}

#[repr(C)]
pub struct Worker {
    pub pid: AtomicI32,
    pub process: AtomicPtr<pg_sys::PGPROC>,
    pub state: AtomicU32,
    /// Somebody used presence here and there was no worker.
    pub wanted: AtomicBool,
}

/// The process that feeds `presence.sink`.
#[repr(C)]
pub struct Sink {
    pub pid: AtomicI32,
    pub process: AtomicPtr<pg_sys::PGPROC>,
    /// The seq up to which the sink has had everything; 0 is none yet.
    pub position: AtomicU64,
    /// When it was last started, by the boot clock.
    pub started: AtomicU64,
}

/// What was told on the channel that everybody knows (`worker::beacon`).
#[repr(C)]
pub struct Beacon {
    /// Which names there are (`channel::boot`): where it is another all must listen anew.
    pub told: AtomicU64,
    /// Clients come back after a crash: until then they are told with each beacon. By the boot clock.
    pub until: AtomicU64,
}

impl Beacon {
    /// Nobody was given a name yet.
    pub const NONE: u64 = 0;
    /// Somebody may have names of which we do not know.
    pub const LOST: u64 = 1;

    /// The extension is new here.
    pub fn is_first(&self) {
        let _ = self.told.compare_exchange(Self::LOST, Self::NONE, AcqRel, Relaxed);
    }

    /// Somebody is given names: these.
    pub fn knows(&self, boot: u64) {
        let _ = self.told.compare_exchange(Self::NONE, boot, AcqRel, Relaxed);
    }
}

/// Settings that take away what listeners hear. Sessions that begin have them at once; the worker has to be told.
#[repr(C)]
pub struct Narrowing {
    /// Those that the worker goes by, as hashes; 0 is not known yet.
    applied: [AtomicU64; 2],
    /// How often somebody was found to have others.
    differences: AtomicU64,
}

/// One of them.
#[derive(Clone, Copy)]
pub enum Narrows {
    Authorizer = 0,
    NotifyPayload = 1,
}

impl Narrowing {
    /// An authorizer that there is not.
    pub const NOBODY: u64 = 1;

    /// The worker goes by this value from now on. True: another one decides now who may hear, or the first.
    pub fn applies(&self, setting: Narrows, value: u64) -> bool {
        let before = self.applied[setting as usize].swap(value, AcqRel);
        let decides = matches!(setting, Narrows::Authorizer) && value != Self::NOBODY;
        decides && before != value && before != 0
    }

    /// By whom the worker has gone last, for the next start.
    pub fn authorizer(&self) -> u64 {
        self.applied[Narrows::Authorizer as usize].load(Acquire)
    }

    /// A session has this value. True: the worker goes by another.
    pub fn differs(&self, setting: Narrows, value: u64) -> bool {
        let differs = self.applied[setting as usize].load(Acquire) != value;
        if differs {
            self.differences.fetch_add(1, AcqRel);
        }
        differs
    }

    fn forget(&self) {
        self.applied.iter().for_each(|applied| applied.store(0, Release));
    }

    pub fn differences(&self) -> u64 {
        self.differences.load(Acquire)
    }
}

#[repr(C)]
pub struct Counters {
    pub published: AtomicU64,
    pub dropped: AtomicU64,
    pub notifications: AtomicU64,
    pub heartbeats: Counter,
    /// Members that verbs have written without the policies (`member::store`).
    pub fast_writes: Counter,
    pub expired: AtomicU64,
    pub resyncs: AtomicU64,
    /// timestamptz
    pub last_sweep: AtomicI64,
    /// How late the latest leave by expiry was, in microseconds.
    pub sweep_lag: AtomicI64,
}

/// What the database's worker is doing; drawn in `worker::launcher`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum WorkerState {
    /// No worker was started yet.
    None = 0,
    Starting = 1,
    Running = 2,
    /// It stepped aside for DROP DATABASE and the like; the launcher brings it back.
    Yielded = 3,
    /// The database has no extension.
    Absent = 4,
    /// This server is a standby: it only looks.
    Standby = 5,
}

impl Worker {
    pub fn state(&self) -> WorkerState {
        let state = self.state.load(Acquire);
        if self.pid.load(Acquire) != 0 && state != WorkerState::Standby as u32 {
            return WorkerState::Running;
        }
        match state {
            1 => WorkerState::Starting,
            2 => WorkerState::Running,
            3 => WorkerState::Yielded,
            4 => WorkerState::Absent,
            5 => WorkerState::Standby,
            _ => WorkerState::None,
        }
    }

    /// A worker is being started: returns the state from before.
    pub fn begin_start(&self) -> WorkerState {
        let before = self.state();
        self.set_state(WorkerState::Starting);
        before
    }

    pub fn set_state(&self, state: WorkerState) {
        self.state.store(state as u32, Release);
    }
}

impl Database {
    /// The entry of a database, made if there is none.
    pub fn get(oid: pg_sys::Oid) -> Result<&'static Database> {
        if let Some(found) = Self::find(oid) {
            return Ok(found);
        }
        locks::exclusive(DATABASES_LOCK, || {
            if let Some(found) = Self::find(oid) {
                return Ok(found);
            }
            let entry = databases().iter().find(|entry| entry.oid.load(Acquire) == 0);
            let entry = entry.ok_or(Error::TooManyDatabases { limit: databases().len() })?;
            entry.seq.fetch_max(control().started_version.load(Relaxed), AcqRel);
            entry.log_floor.store(entry.seq.load(Acquire), Release);
            // There may be rows from before; the sweeper will look.
            entry.slotless_due.store(0, Release);
            entry.slotless.store(1, Release);
            entry.begin_names();
            entry.oid.store(u32::from(oid), Release);
            Ok(entry)
        })
    }

    /// All channels have names that they never had.
    pub fn begin_names(&self) {
        self.names.begin(super::persistence::random());
        self.beacon.told.store(Beacon::LOST, Release);
        self.beacon.until.store(0, Release);
    }

    pub fn find(oid: pg_sys::Oid) -> Option<&'static Database> {
        databases().iter().find(|entry| entry.oid.load(Acquire) == u32::from(oid))
    }

    pub fn index(&self) -> usize {
        databases().iter().position(|entry| std::ptr::eq(entry, self)).unwrap_or(0)
    }

    /// The database is gone: the entry is free for another. The seq stays: it only has to grow.
    pub fn release(&'static self) {
        locks::exclusive(DATABASES_LOCK, || {
            leases().purge(self.index() as u32, |_| true);
            locks::exclusive(self.ring_lock(), || {
                self.ring().clear();
                self.flushed.store(self.tail.load(Acquire), Release);
            });
            self.losses_told.store(self.losses.load(Acquire), Release);
            self.slotless.store(0, Release);
            // Its sessions are gone, and with them everybody who knew a name.
            self.names.forget();
            self.rights.forget();
            self.narrowing.forget();
            self.change_numbers(OccupancyTable::clear);
            self.sink.position.store(0, Release);
            self.copy.forget();
            self.heard.forget();
            self.worker.set_state(WorkerState::None);
            self.worker.wanted.store(false, Release);
            self.trouble.forget();
            self.oid.store(0, Release);
        });
    }

    pub fn ring(&'static self) -> Ring {
        super::startup::ring(self)
    }

    pub fn ring_lock(&self) -> usize {
        locks::FIRST_DATABASE_LOCK + 2 * self.index()
    }

    /// Of rooms that somebody asks for, to look at; without a lock only what says so.
    pub fn numbers(&self) -> &OccupancyTable {
        &self.numbers
    }

    pub fn read_numbers<T>(&self, body: impl FnOnce(&OccupancyTable) -> T) -> T {
        locks::shared(self.ring_lock() + 1, || body(&self.numbers))
    }

    pub fn change_numbers<T>(&self, body: impl FnOnce(&OccupancyTable) -> T) -> T {
        locks::exclusive(self.ring_lock() + 1, || body(&self.numbers))
    }

    /// Put encoded records into the ring, lean if they do not fit as they are, or flag that they were lost. Neither fails
    /// nor blocks: this runs in COMMIT callbacks.
    pub fn append_events(&'static self, records: &mut Vec<u8>, demand: &mut Demand, count: u64) -> bool {
        let append = |records: &[u8], demand: &Demand, times| {
            locks::exclusive(self.ring_lock(), || self.ring().append(records, demand, times))
        };
        let (whole, lean) = if self.is_served_by_us() { (UNBOUNDED, UNBOUNDED) } else { (WHOLE, LEAN) };
        let fits = append(records, demand, whole) || {
            make_all_lean(records);
            demand.count(records);
            append(records, demand, lean)
        };
        if !fits {
            self.drop_events(count);
        }
        fits
    }

    /// This is its worker, or the postmaster.
    fn is_served_by_us(&self) -> bool {
        // SAFETY: plain reads of this process's state.
        let (pid, is_postmaster) = unsafe { (pg_sys::MyProcPid, !pg_sys::IsUnderPostmaster) };
        is_postmaster || self.worker.pid.load(Acquire) == pid
    }

    /// Free the slot of a member that is gone.
    pub fn free_lease(&self, key: &Key, version: u64) {
        self.note_unslotted(clock::boot());
        leases().free(key, version);
    }

    /// Members have changed, and others may have seen that already.
    pub fn note_change(&self, now: u64) {
        self.changed_at.fetch_max(now, AcqRel);
    }

    /// Whether members may have changed since a snapshot that is no older than that was taken.
    pub fn may_have_changed(&self, read_since: u64) -> bool {
        read_since <= self.changed_at.load(Acquire)
    }

    /// What was committed until now may have no slot that tells of it.
    pub fn note_unslotted(&self, now: u64) {
        self.unslotted_at.fetch_max(now, AcqRel);
    }

    /// Whether a row without a slot, read by a snapshot that is no older than that, may be another by now.
    pub fn may_be_past(&self, read_since: u64) -> bool {
        read_since <= self.unslotted_at.load(Acquire)
    }

    /// Events are lost.
    pub fn drop_events(&self, count: u64) {
        self.counters.dropped.fetch_add(count, Relaxed);
        self.ask_resync();
    }

    /// Listeners must be told to list again.
    pub fn ask_resync(&self) {
        self.losses.fetch_add(1, AcqRel);
    }

    /// How often events were lost.
    pub fn losses(&self) -> u64 {
        self.losses.load(Acquire)
    }

    /// Whether there are losses that listeners were not told of; how many there were so far.
    pub fn owed_resync(&self) -> Option<u64> {
        let losses = self.losses.load(Acquire);
        (losses > self.losses_told.load(Acquire)).then_some(losses)
    }

    pub fn resync_told(&self, losses: u64) {
        self.losses_told.fetch_max(losses, AcqRel);
    }
}

/// After CREATE EXTENSION. Also where a worker runs: it may be about to go, for what it knew was dropped.
pub fn request_new_worker(database: &Database) {
    database.worker.wanted.store(true, Release);
    wake(&control().launcher);
}

/// A worker is wanted in this database: somebody found that there is none.
pub fn request_worker(database: &Database) {
    if database.worker.pid.load(Relaxed) == 0 && !database.worker.wanted.swap(true, AcqRel) {
        wake(&control().launcher);
    }
}
