//! The extension's shared memory: what lies where, and how a process reaches it.
//!
//! Sized when the server starts, from settings that only a restart changes:
//! `presence_ext leases` (the lease table), `presence_ext` (everything of fixed size), `presence_ext events`
//! (the rings). After a crash the postmaster makes it anew, empty.

pub mod channel_epochs;
pub mod copy;
pub mod counter;
pub mod database;
pub mod error_status;
pub mod heard;
pub mod leases;
pub mod locks;
pub mod occupancy;
pub mod persistence;
pub mod retired;
pub mod rights;
pub mod seats;
pub mod startup;
pub mod state_format;
pub mod subscriber_counts;

use pgrx::pg_sys;
use std::sync::atomic::{AtomicI32, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering::*};

pub use database::Database;

/// The number of cells that keep, each for a share of all keys, the newest version issued (`issue_version` in
/// `event::transaction`).
pub const VERSION_CELLS: usize = 1 << 16;

/// There is one for the server.
#[repr(C)]
pub struct Control {
    /// Lower versions were issued before the server's start.
    pub started_version: AtomicU64,
    /// Time of the start, by the boot clock.
    pub started_at: AtomicU64,
    /// The next version.
    pub next_version: AtomicU64,
    /// As on disk: every version or seq ever issued is below it.
    pub floor: AtomicU64,
    /// Wall clock minus boot clock.
    pub wall_offset: AtomicI64,
    /// How far the copies of members are written, and how far that is flushed.
    pub copied: copy::Copied,
    pub launcher_pid: AtomicI32,
    pub launcher: AtomicPtr<pg_sys::PGPROC>,
    /// For each cell the newest version issued for any of its keys.
    pub version_cells: [AtomicU64; VERSION_CELLS],
}

/// One for each process of the server.
#[repr(C)]
pub struct Process {
    /// The transaction that is committing changes of presence, from PRE_COMMIT until they are in the ring.
    pub committing: AtomicU32,
    /// Its database (index in shared memory).
    pub database: AtomicU32,
    /// Identifies the session for its session members, 0 if it has none.
    pub session: AtomicU64,
}

#[derive(Clone, Copy)]
struct Places {
    control: &'static Control,
    databases: &'static [Database],
    processes: &'static [Process],
}

struct Cell(std::cell::UnsafeCell<Option<Places>>);
// SAFETY: PostgreSQL processes have one thread; the cell is written in the postmaster, before any fork.
unsafe impl Sync for Cell {}
static PLACES: Cell = Cell(std::cell::UnsafeCell::new(None));

fn places() -> Option<&'static Places> {
    // SAFETY: see Cell.
    unsafe { (*PLACES.0.get()).as_ref() }
}

/// Whether the library was preloaded, so that there is shared memory at all.
pub fn is_available() -> bool {
    places().is_some()
}

/// The control block. Only after `is_available`; every SQL function checks that (`Error::NotPreloaded`).
pub fn control() -> &'static Control {
    match places() {
        Some(places) => places.control,
        None => crate::error::Error::NotPreloaded.raise(),
    }
}

pub fn databases() -> &'static [Database] {
    places().map_or(&[], |places| places.databases)
}

pub fn processes() -> &'static [Process] {
    places().map_or(&[], |places| places.processes)
}

/// This process's cell; None in processes without one.
pub fn my_process() -> Option<&'static Process> {
    my_proc_number().and_then(|number| processes().get(number))
}

#[cfg(any(feature = "pg15", feature = "pg16"))]
fn my_proc_number() -> Option<usize> {
    // SAFETY: MyProc is null or this process's entry.
    unsafe { pg_sys::MyProc.as_ref().map(|process| process.pgprocno as usize) }
}

#[cfg(any(feature = "pg17", feature = "pg18"))]
fn my_proc_number() -> Option<usize> {
    // SAFETY: a plain number of this process.
    usize::try_from(unsafe { pg_sys::MyProcNumber }).ok()
}

/// The seats of open transactions.
pub fn seats() -> &'static seats::Seats<startup::SeatsLock> {
    match startup::seat_table() {
        Some(table) => table,
        None => crate::error::Error::NotPreloaded.raise(),
    }
}

/// A new version, greater than all before in any database.
pub fn next_version() -> u64 {
    next_versions(1)
}

/// The first of so many.
pub fn next_versions(many: u64) -> u64 {
    control().next_version.fetch_add(many, AcqRel)
}

/// Wake the process whose PGPROC a worker left in shared memory.
pub fn wake(process: &AtomicPtr<pg_sys::PGPROC>) {
    let process = process.load(Acquire);
    if !process.is_null() {
        // SAFETY: PGPROC entries live in shared memory as long as the server; setting the latch of a slot that
        // was reused meanwhile is a spurious wake-up, which every latch loop allows.
        unsafe { pg_sys::SetLatch(&raw mut (*process).procLatch) };
    }
}
