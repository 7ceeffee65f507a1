//! Asking for the shared memory and laying it out, in the postmaster, at each start and after each crash.

use super::database::Database;
use super::leases::PartitionLocks;
use super::seats::{self, Seats};
use super::{Cell, Control, PLACES, Places, Process, locks};
use crate::event::ring::Ring;
use crate::lease::slot::Slot;
use crate::lease::table::{Header, LeaseTable, Locks, PARTITIONS, bucket_count};
use crate::settings;
use pgrx::{pg_guard, pg_sys};
use std::cell::UnsafeCell;
use std::ffi::CStr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering::*};

static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

/// The start of the rings; database i has `event_buffer` bytes at i times that offset.
static RINGS: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());

/// The table of seats has one lock.
pub struct SeatsLock;

impl Locks for SeatsLock {
    fn shared<T>(&self, _partition: usize, body: impl FnOnce() -> T) -> T {
        locks::shared(locks::SEATS_LOCK, body)
    }

    fn exclusive<T>(&self, _partition: usize, body: impl FnOnce() -> T) -> T {
        locks::exclusive(locks::SEATS_LOCK, body)
    }
}

struct TableCell<T>(UnsafeCell<Option<T>>);
// SAFETY: as for Cell: written in the postmaster before any fork, one thread a process.
unsafe impl<T> Sync for TableCell<T> {}
static TABLE: TableCell<LeaseTable<PartitionLocks>> = TableCell(UnsafeCell::new(None));
static SEATS: TableCell<Seats<SeatsLock>> = TableCell(UnsafeCell::new(None));

pub fn lease_table() -> Option<&'static LeaseTable<PartitionLocks>> {
    // SAFETY: see TableCell.
    unsafe { (*TABLE.0.get()).as_ref() }
}

pub fn seat_table() -> Option<&'static Seats<SeatsLock>> {
    // SAFETY: see TableCell.
    unsafe { (*SEATS.0.get()).as_ref() }
}

/// Called from _PG_init in the postmaster.
pub fn install_hooks() {
    // SAFETY: the postmaster has one thread, and hooks are chained as every library does.
    unsafe {
        PREVIOUS_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request);
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(startup);
    }
}

fn lease_bytes() -> usize {
    let slots = settings::max_members();
    slots * size_of::<Slot>() + bucket_count(slots) * size_of::<AtomicU32>()
}

fn control_bytes() -> usize {
    let databases = settings::max_databases();
    size_of::<Control>()
        + size_of::<Header>()
        + databases * (size_of::<Database>() + PARTITIONS * size_of::<AtomicU64>())
        + process_count() * size_of::<Process>()
        + size_of::<seats::Header>()
        + seats::ENTRIES * size_of::<seats::Entry>()
        + 64
}

fn ring_bytes() -> usize {
    settings::max_databases() * settings::event_buffer()
}

/// The number of processes of the server: backends of all kinds, and auxiliary processes (fewer than 128).
fn process_count() -> usize {
    // SAFETY: set before shared memory is requested.
    unsafe { pg_sys::MaxBackends as usize + 128 }
}

#[pg_guard]
unsafe extern "C-unwind" fn request() {
    // SAFETY: called by the postmaster when shared memory may be requested.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST {
            previous();
        }
        for bytes in [lease_bytes(), control_bytes(), ring_bytes()] {
            pg_sys::RequestAddinShmemSpace(bytes.next_multiple_of(128));
        }
        let locks = locks::count(settings::max_databases()) as i32;
        pg_sys::RequestNamedLWLockTranche(locks::TRANCHE.as_ptr(), locks);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn startup() {
    // SAFETY: called by the postmaster once shared memory is there, with nobody else running.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            previous();
        }
        lay_out();
    }
    super::persistence::load();
    super::persistence::register();
}

/// Zeroed memory of that name and size. Zero is a valid value of all atomics.
unsafe fn area(name: &CStr, bytes: usize) -> *mut u8 {
    let mut found = false;
    // SAFETY: requested with this size by `request`.
    let start = unsafe { pg_sys::ShmemInitStruct(name.as_ptr(), bytes, &mut found) } as *mut u8;
    // SAFETY: the area has that many bytes and nobody uses it yet.
    unsafe { start.write_bytes(0, bytes) };
    start
}

/// The next `count` values of type T at an advancing pointer. All our types have an alignment of at most 8.
unsafe fn take<T>(place: &mut *mut u8, count: usize) -> &'static [T] {
    let start = place.cast::<T>();
    // SAFETY: the sizes of the areas are sums over exactly these calls; zeroed memory is valid for T.
    unsafe {
        *place = place.add((count * size_of::<T>()).next_multiple_of(8));
        std::slice::from_raw_parts(start, count)
    }
}

unsafe fn lay_out() {
    locks::attach();
    let slots = settings::max_members();
    let databases = settings::max_databases();
    // SAFETY: areas of the sizes requested, cut up in the order in which they were summed.
    unsafe {
        let mut leases = area(c"presence_ext leases", lease_bytes());
        let slot_list = take::<Slot>(&mut leases, slots);
        let buckets = take::<AtomicU32>(&mut leases, bucket_count(slots));

        let mut rest = area(c"presence_ext", control_bytes());
        let control = &take::<Control>(&mut rest, 1)[0];
        let header = &take::<Header>(&mut rest, 1)[0];
        let database_list = take::<Database>(&mut rest, databases);
        let earliest = take::<AtomicU64>(&mut rest, databases * PARTITIONS);
        let processes = take::<Process>(&mut rest, process_count());
        let header_of_seats = &take::<seats::Header>(&mut rest, 1)[0];
        let entries = take::<seats::Entry>(&mut rest, seats::ENTRIES);

        RINGS.store(area(c"presence_ext events", ring_bytes()), Release);
        let table = LeaseTable { header, buckets, slots: slot_list, earliest, locks: PartitionLocks };
        table.initialize();
        *TABLE.0.get() = Some(table);
        let table = Seats { header: header_of_seats, entries, lock: SeatsLock };
        table.initialize();
        *SEATS.0.get() = Some(table);
        let Cell(places) = &PLACES;
        *places.get() = Some(Places { control, databases: database_list, processes });
    }
}

pub fn ring(database: &'static Database) -> Ring {
    let size = settings::event_buffer();
    // SAFETY: each database's index gives it its own part of the area, a multiple of 8 bytes.
    unsafe {
        Ring::new(
            &database.head,
            &database.tail,
            &database.shares,
            RINGS.load(Relaxed).add(database.index() * size),
            size as u64,
        )
    }
}
