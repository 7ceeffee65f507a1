//! What this transaction has changed and not yet committed: the way from triggers to leases and ring.
//!
//! ```text
//!   trigger ──▶ changes ──▶ PRE_COMMIT: fold, encode, show the xid ──▶ COMMIT: leases, ring, hide the xid, wake
//!                 │  ▲
//!                 │  └── ROLLBACK TO SAVEPOINT cuts the list back
//!                 └───── ABORT, PREPARE (with nothing left to commit): forget all
//! ```
//!
//! Everything that can fail happens before the commit; the COMMIT callback only copies memory.
//!
//! The commit gap: others see a transaction's rows before its COMMIT callback has run. From PRE_COMMIT until the
//! callback is through, the transaction's id stands in this process's cell; the worker waits for cells whose
//! transaction is over before it trusts that the ring is complete.

use super::image::{Field, Image};
use super::net_effect::{Change, LeaseChange, What, fold};
use super::overflow::Loss;
use super::pace;
use super::pending_changes::Changes;
use super::record::Kind;
use super::share::{Demand, SHARES};
use crate::error::Error;
use crate::extension::{Extension, Purpose};
use crate::lease::slot::{Key, Lease, alive};
use crate::lease::table::Applied;
use crate::shared::leases::leases;
use crate::shared::seats::{Others, Taken};
use crate::shared::{self, Database, VERSION_CELLS, control, database};
use crate::{clock, settings};
use pgrx::{pg_guard, pg_sys};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering::*;

#[derive(Default)]
struct Buffer {
    changes: Changes,
    /// Seats in limited rooms, and of users.
    seats: Taken,
    /// Of this database, looked up while queries may still run, which is not at PRE_COMMIT.
    extension: Option<Extension>,
    pins: HashSet<u32>,
    /// For each version cell that we used: (our newest version, the newest that we saw of others).
    cells: HashMap<usize, (u64, u64)>,
    /// What happens if the events are lost.
    loss: Loss,
    prepared: Option<Prepared>,
    /// CREATE EXTENSION ran here: request a worker after commit.
    announced: Option<&'static Database>,
}

/// Ready for the COMMIT callback.
struct Prepared {
    database: &'static Database,
    leases: Vec<(Key, LeaseChange)>,
    records: Vec<u8>,
    demand: Demand,
    count: u64,
}

thread_local! {
    /// The end of this session's last events in the ring.
    static APPENDED: Cell<u64> = const { Cell::new(0) };
    static BUFFER: RefCell<Buffer> = RefCell::new(Buffer::default());
}

/// Once for each process.
pub fn register_callbacks() {
    // SAFETY: the callbacks have the right signatures and live as long as the library.
    unsafe {
        pg_sys::RegisterXactCallback(Some(at_transaction_end), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(at_subtransaction_end), std::ptr::null_mut());
    }
}

/// Nesting level of savepoints; 1 means none.
fn level() -> i32 {
    // SAFETY: plain read of this process's state.
    unsafe { pg_sys::GetCurrentTransactionNestLevel() }
}

/// Add a change; `previous` is filled in here.
pub fn push(extension: &Extension, change: Change) {
    BUFFER.with_borrow_mut(|buffer| {
        buffer.extension = Some(*extension);
        if let What::Leave { .. } = change.what {
            buffer.seats.leave(level(), change.key.hash);
        }
        buffer.loss.note(extension, &change);
        buffer.changes.push(change, level(), settings::event_buffer());
    });
}

/// Take a seat for a member in a limited place, until the transaction ends. Returns what other transactions have taken
/// there, and whether a lock is needed in addition.
pub fn take_seat(member: &Key, place: u64) -> (Others, bool) {
    // SAFETY: assigned when the member's row was written, which is before.
    let xid = u32::from(unsafe { pg_sys::GetTopTransactionId() });
    BUFFER.with_borrow_mut(|buffer| buffer.seats.enter(shared::seats(), xid, level(), member.hash, place))
}

/// What other transactions have taken in a place by now.
pub fn others_seats(place: u64) -> Others {
    BUFFER.with_borrow(|buffer| buffer.seats.others(shared::seats(), place))
}

/// Give up the seat that was taken last.
pub fn leave_seat() {
    BUFFER.with_borrow_mut(|buffer| buffer.seats.undo(shared::seats()));
}

/// Add an event that is not a member's change: a room's metadata, a request to rotate channels.
pub fn signal(extension: &Extension, kind: Kind, image: Image, old: Option<Image>) {
    let whose = image.get(Field::Room).or(image.get(Field::UserId)).unwrap_or_default();
    let hash = (kind as u128) << 64 | extension.hash(Purpose::Told, &[whose]) as u128;
    let key = extension.key_of(hash);
    let version = issue_version(&key, false);
    push(
        extension,
        Change {
            key,
            what: What::Signal { kind, old },
            version,
            at: clock::now(),
            joined_at: 0,
            seen_at: 0,
            image,
            node: None,
            previous: None,
        },
    );
}

/// Request a worker in this database after commit.
pub fn want_worker(database: &'static Database) {
    BUFFER.with_borrow_mut(|buffer| buffer.announced = Some(database));
}

/// Whether all of this session's changes are published.
pub fn is_all_published(database: &Database) -> bool {
    let is_changing = BUFFER.with_borrow(|buffer| !buffer.changes.is_empty());
    !is_changing && database.flushed.load(Acquire) >= APPENDED.get()
}

/// This transaction's current state of a member.
pub enum Pending {
    Untouched,
    Present {
        /// Keyed hash of the owner's user_id.
        owner: u64,
    },
    Gone,
}

pub fn pending(key: &Key) -> Pending {
    BUFFER.with_borrow(|buffer| {
        let changes = buffer.changes.of(key.hash);
        let mut decisive = changes.filter(|change| !matches!(change.what, What::Renew { .. }));
        match decisive.next().map(|change| change.what.lease()) {
            None => Pending::Untouched,
            Some(None) => Pending::Gone,
            Some(Some(lease)) => Pending::Present { owner: lease.owner },
        }
    })
}

/// The lease of a member that this transaction has entered or changed.
pub fn pending_lease(key: &Key) -> Option<Lease> {
    BUFFER.with_borrow(|buffer| buffer.changes.of(key.hash).next()?.what.lease().copied())
}

/// Renew a member that this transaction has entered or changed. `beat`: also its state at each savepoint, because a
/// heartbeat survives a rollback; but not for another owner's stay from before.
pub fn renew_pending(key: &Key, now: u64, beat: bool) {
    BUFFER.with_borrow_mut(|buffer| {
        let mut stay = None;
        buffer.changes.each_lease(key.hash, |lease| {
            let same = *stay.get_or_insert(lease.stay()) == lease.stay();
            if same {
                lease.renew(now);
            }
            same && beat
        });
    });
}

/// Pin the member's slot until this transaction ends. Returns whether it has one.
pub fn pin(key: &Key) -> bool {
    let Some(index) = leases().pin(key) else { return false };
    let new = BUFFER.with_borrow_mut(|buffer| buffer.pins.insert(index));
    if !new {
        leases().unpin(index);
    }
    true
}

/// A new version for a change of this member. With `hidden` it is the second of two: version - 1 is the leave for those
/// who no longer see the member.
pub fn issue_version(key: &Key, hidden: bool) -> u64 {
    let version =
        if hidden { control().next_version.fetch_add(2, AcqRel) + 1 } else { shared::next_version() };
    let cell = cell_of(key);
    let before = control().version_cells[cell].fetch_max(version, AcqRel);
    BUFFER.with_borrow_mut(|buffer| {
        let (own, foreign) = buffer.cells.entry(cell).or_insert((0, 0));
        if before != *own {
            *foreign = before.max(*foreign);
        }
        *own = version;
    });
    version
}

/// Whether others may have been issued a newer version for this member than the one that our BEFORE INSERT took,
/// because they changed it while we waited for its key.
pub fn is_outdated(key: &Key, version: u64) -> bool {
    newest_of_others(key) > version
}

/// The newest version that others may have been issued for this member; it grows with each of their changes.
pub fn newest_of_others(key: &Key) -> u64 {
    let cell = cell_of(key);
    let newest = control().version_cells[cell].load(Acquire);
    BUFFER.with_borrow(|buffer| {
        let (own, foreign) = buffer.cells.get(&cell).copied().unwrap_or((0, 0));
        if newest == own { foreign } else { newest }
    })
}

fn cell_of(key: &Key) -> usize {
    (key.hash >> 64) as usize % VERSION_CELLS
}

#[pg_guard]
unsafe extern "C-unwind" fn at_transaction_end(
    event: pg_sys::XactEvent::Type,
    _argument: *mut std::ffi::c_void,
) {
    use pg_sys::XactEvent::*;
    match event {
        XACT_EVENT_PRE_COMMIT => prepare(),
        XACT_EVENT_COMMIT => commit(),
        XACT_EVENT_ABORT => finish(),
        // Another session will commit it, but it contains nothing of ours. (A worker that CREATE EXTENSION requests
        // starts with the first change.)
        XACT_EVENT_PREPARE => finish(),
        XACT_EVENT_PRE_PREPARE if BUFFER.with_borrow(|buffer| !buffer.changes.is_empty()) => {
            Error::NoPreparedTransactions.raise()
        }
        _ => {}
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_subtransaction_end(
    event: pg_sys::SubXactEvent::Type,
    _mine: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _argument: *mut std::ffi::c_void,
) {
    BUFFER.with_borrow_mut(|buffer| match event {
        pg_sys::SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => {
            buffer.changes.release(level());
            buffer.seats.release(level());
        }
        pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => {
            buffer.changes.roll_back(level());
            if !buffer.seats.is_empty() {
                buffer.seats.roll_back(shared::seats(), level());
            }
        }
        _ => {}
    });
}

fn prepare() {
    let changed = BUFFER.with_borrow(|buffer| buffer.extension.filter(|_| !buffer.changes.is_empty()));
    let Some(extension) = changed else { return };
    // SAFETY: plain read; 0 if the transaction wrote nothing (renewals only, or a wish to rotate).
    let xid = u32::from(unsafe { pg_sys::GetTopTransactionIdIfAny() });
    BUFFER.with_borrow_mut(|buffer| {
        let now = clock::boot();
        // (A member that has left meanwhile, or should have by now, is not revived.)
        let ran_out = |key: &Key, lease: &Lease| {
            alive(lease.deadline, now)
                && leases()
                    .read(key)
                    .is_some_and(|slot| slot.generation == lease.generation && !alive(slot.deadline, now))
        };
        let (leases, records) = fold(buffer.changes.all(), xid, ran_out);
        let count = records.len() as u64;
        let mut bytes = Vec::new();
        if !buffer.changes.too_many() {
            for record in &records {
                let owner = record.image.get(Field::UserId).unwrap_or_default();
                record.encode_for((extension.owner_hash(owner) % SHARES as u64) as u16, &mut bytes);
            }
        }
        pace::prepare();
        let demand = Demand::of(&bytes);
        buffer.prepared =
            Some(Prepared { database: extension.database, leases, records: bytes, demand, count });
    });
    if let Some(process) = shared::my_process() {
        process.database.store(extension.database_index, Relaxed);
        process.committing.store(xid, SeqCst);
    }
    crate::injection::stall("pre_commit");
}

/// The transaction is committed: an error in here would take the server down.
fn commit() {
    if let Some(database) = BUFFER.with_borrow_mut(|buffer| buffer.announced.take()) {
        database.beacon.is_first();
        database::request_new_worker(database);
    }
    let Some(mut prepared) = BUFFER.with_borrow_mut(|buffer| buffer.prepared.take()) else { return finish() };
    crate::injection::stall("commit_gap");
    let now = clock::boot();
    prepared.database.note_change(now);
    for (key, change) in &prepared.leases {
        let applied = match change {
            LeaseChange::Present(lease) => leases().apply_present(key, &Lease { changed_at: now, ..*lease }),
            LeaseChange::Gone(version) => leases().apply_gone(key, *version),
            LeaseChange::Renew(stay) => {
                leases().renew_stay(key, stay, now);
                Applied::Done
            }
        };
        if applied == Applied::Full {
            prepared.database.note_unslotted(now);
            if let LeaseChange::Present(lease) = change {
                prepared.database.slotless_due.fetch_min(lease.due(), AcqRel);
                prepared.database.slotless.fetch_add(1, AcqRel);
            }
        }
    }
    BUFFER.with_borrow(|buffer| {
        let is_told = match buffer.changes.too_many() {
            true => {
                prepared.database.drop_events(prepared.count);
                false
            }
            false => {
                let Prepared { database, records, demand, count, .. } = &mut prepared;
                *count == 0 || database.append_events(records, demand, *count)
            }
        };
        if !is_told {
            buffer.loss.rotate(&prepared.database.names);
        } else if prepared.count > 0 {
            let end = prepared.database.head.load(Acquire);
            APPENDED.set(end);
            pace::appended(prepared.database, end, prepared.records.len() as u64);
        }
    });
    finish();
    // A renewal moves a deadline forward: the worker has nothing to do earlier.
    let wanted = prepared.count > 0
        || prepared.leases.iter().any(|(_, change)| !matches!(change, LeaseChange::Renew(_)));
    if wanted {
        shared::wake(&prepared.database.worker.process);
    }
    database::request_worker(prepared.database);
}

/// At the end of the transaction, whether committed or not.
pub fn unpin() {
    BUFFER.with_borrow_mut(|buffer| {
        if !buffer.pins.is_empty() {
            buffer.pins.drain().for_each(|index| leases().unpin(index));
        }
    });
}

fn finish() {
    unpin();
    BUFFER.with_borrow_mut(|buffer| {
        buffer.changes.clear();
        if !buffer.seats.is_empty() {
            buffer.seats.give_back_all(shared::seats());
        }
        buffer.extension = None;
        buffer.cells.clear();
        buffer.loss.clear();
        buffer.prepared = None;
        buffer.announced = None;
    });
    if let Some(process) = shared::my_process()
        && process.committing.load(Relaxed) != 0
    {
        process.committing.store(0, SeqCst);
    }
}
