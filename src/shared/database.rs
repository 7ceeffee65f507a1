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
    /// 0 means that this entry is free.
    pub oid: AtomicU32,
    pub worker: Worker,
    pub sink: Sink,
    pub head: AtomicU64,
    pub tail: AtomicU64,
    /// Bytes between head and tail, for each share.
    pub shares: [AtomicU64; SHARES],
    /// The tail up to which listeners were notified: set a moment after the commit that moved the tail.
    pub flushed: AtomicU64,
    /// The last published seq.
    pub seq: AtomicU64,
    /// The log contains every event after this one.
    pub log_floor: AtomicU64,
    /// At least the number of members whose lease is in the row, as of the last sweep.
    pub slotless: AtomicU64,
    /// A lower bound of their deadlines, by the boot clock.
    pub slotless_due: AtomicU64,
    /// Time of the last commit that changed members, by the boot clock.
    changed_at: AtomicU64,
    /// Time of the last change or leave that no slot shows any more.
    unslotted_at: AtomicU64,
    /// Number of ended sessions whose members the sweeper has not looked for yet.
    pub ended_sessions: AtomicU64,
    /// How often events were lost, and how often before the last `resync` that announced it.
    losses: AtomicU64,
    losses_told: AtomicU64,
    pub copy: CopyStatus,
    pub heard: Heard,
    pub names: ChannelEpochs,
    pub retired: Retired,
    pub rights: Rights,
    pub beacon: Beacon,
    pub narrowing: Narrowing,
    /// The channels with listeners.
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
    /// Somebody used presence here while there was no worker.
    pub wanted: AtomicBool,
}

/// The process that feeds `presence.sink`.
#[repr(C)]
pub struct Sink {
    pub pid: AtomicI32,
    pub process: AtomicPtr<pg_sys::PGPROC>,
    /// The seq up to which the sink has processed everything; 0 means none.
    pub position: AtomicU64,
    /// When it was last started, by the boot clock.
    pub started: AtomicU64,
}

/// The last announcement on the channel `presence` (`worker::beacon`).
#[repr(C)]
pub struct Beacon {
    /// The announced generation of names (`channel::boot`): when it changes everybody must listen again.
    pub told: AtomicU64,
    /// Until when clients reconnect after a crash and are told with each beacon. By the boot clock.
    pub until: AtomicU64,
}

impl Beacon {
    /// Nobody was given a name yet.
    pub const NONE: u64 = 0;
    /// Somebody may have names that we do not know of.
    pub const LOST: u64 = 1;

    /// The extension is new in this database.
    pub fn is_first(&self) {
        let _ = self.told.compare_exchange(Self::LOST, Self::NONE, AcqRel, Relaxed);
    }

    /// Somebody is given these names.
    pub fn knows(&self, boot: u64) {
        let _ = self.told.compare_exchange(Self::NONE, boot, AcqRel, Relaxed);
    }
}

/// Settings that narrow what listeners hear. New sessions have them at once; the worker has to be told.
#[repr(C)]
pub struct Narrowing {
    /// The values that the worker uses, as hashes; 0 is unknown.
    applied: [AtomicU64; 2],
    /// How often a session was found to have others.
    differences: AtomicU64,
}

/// One of them.
#[derive(Clone, Copy)]
pub enum Narrows {
    Authorizer = 0,
    NotifyPayload = 1,
}

impl Narrowing {
    /// The hash of an empty authorizer.
    pub const NOBODY: u64 = 1;

    /// The worker uses this value from now on. True: another one was used before, or this is the first.
    pub fn applies(&self, setting: Narrows, value: u64) -> bool {
        let before = self.applied[setting as usize].swap(value, AcqRel);
        let decides = matches!(setting, Narrows::Authorizer) && value != Self::NOBODY;
        decides && before != value && before != 0
    }

    /// The authorizer that the worker used last, for the next start.
    pub fn authorizer(&self) -> u64 {
        self.applied[Narrows::Authorizer as usize].load(Acquire)
    }

    /// A session has this value. True: the worker uses another.
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
    /// Members written on the fast path (`member::store`).
    pub fast_writes: Counter,
    pub expired: AtomicU64,
    pub resyncs: AtomicU64,
    /// timestamptz
    pub last_sweep: AtomicI64,
    /// How late the latest leave by expiry was, in microseconds.
    pub sweep_lag: AtomicI64,
}

/// The state of the database's worker; drawn in `worker::launcher`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum WorkerState {
    /// No worker has been started yet.
    None = 0,
    Starting = 1,
    Running = 2,
    /// It stepped aside for DROP DATABASE and the like; the launcher brings it back.
    Yielded = 3,
    /// The database has no extension.
    Absent = 4,
    /// This server is a standby: the process only looks for beats.
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
            // There may be rows from before; make the sweeper look.
            entry.slotless_due.store(0, Release);
            entry.slotless.store(1, Release);
            entry.begin_names();
            entry.oid.store(u32::from(oid), Release);
            Ok(entry)
        })
    }

    /// Give all channels names that they never had.
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

    /// The database was dropped: free the entry. The seq stays, because it must only grow.
    pub fn release(&'static self) {
        locks::exclusive(DATABASES_LOCK, || {
            leases().purge(self.index() as u32, |_| true);
            locks::exclusive(self.ring_lock(), || {
                self.ring().clear();
                self.flushed.store(self.tail.load(Acquire), Release);
            });
            self.losses_told.store(self.losses.load(Acquire), Release);
            self.slotless.store(0, Release);
            // Its sessions have ended, and with them everybody who knew a name.
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

    /// Counts of rooms that somebody asks for; without the lock only its atomic fields may be used.
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

    /// Whether this process is the worker, or the postmaster.
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

    /// Members have changed; others may have seen that already.
    pub fn note_change(&self, now: u64) {
        self.changed_at.fetch_max(now, AcqRel);
    }

    /// Whether members may have changed since a snapshot taken at that time or later.
    pub fn may_have_changed(&self, read_since: u64) -> bool {
        read_since <= self.changed_at.load(Acquire)
    }

    /// Changes until now may be in no slot.
    pub fn note_unslotted(&self, now: u64) {
        self.unslotted_at.fetch_max(now, AcqRel);
    }

    /// Whether a row without a slot, read with a snapshot taken at that time or later, may have changed since.
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

    /// The number of losses so far, if listeners were not told of some.
    pub fn owed_resync(&self) -> Option<u64> {
        let losses = self.losses.load(Acquire);
        (losses > self.losses_told.load(Acquire)).then_some(losses)
    }

    pub fn resync_told(&self, losses: u64) {
        self.losses_told.fetch_max(losses, AcqRel);
    }
}

/// After CREATE EXTENSION. Also if a worker runs, which may be about to exit because the old extension was dropped.
pub fn request_new_worker(database: &Database) {
    database.worker.wanted.store(true, Release);
    wake(&control().launcher);
}

/// Request a worker for this database, which has none.
pub fn request_worker(database: &Database) {
    if database.worker.pid.load(Relaxed) == 0 && !database.worker.wanted.swap(true, AcqRel) {
        wake(&control().launcher);
    }
}
