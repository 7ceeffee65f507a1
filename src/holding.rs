//! Which of our channels this session listens to, counted for each name in shared memory: a name that nobody holds is
//! not notified. However the session listens (`presence.listen`, LISTEN) and however it ends that.
//!
//! LISTEN and UNLISTEN take effect with the commit, and count from then on: a listener lists after it. What a savepoint
//! or a transaction takes back has never counted.

use crate::event::savepoints::Savepoints;
use crate::shared::Database;
use crate::shared::held::{LENGTH, place_of};
use pgrx::{pg_guard, pg_sys};
use std::cell::{Cell, RefCell};
use std::collections::HashSet;

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Name {
    /// With zeroes behind it.
    text: [u8; LENGTH],
    place: usize,
}

impl Name {
    /// Of a channel of ours.
    fn of(channel: &[u8]) -> Option<Name> {
        let place = place_of(channel)?;
        let mut text = [0; LENGTH];
        text[..channel.len()].copy_from_slice(channel);
        Some(Name { text, place })
    }
}

enum Change {
    Listen(Name),
    Unlisten(Name),
    UnlistenAll,
}

#[derive(Default)]
struct Holding {
    database: Option<&'static Database>,
    names: HashSet<Name>,
    /// What this transaction has done so far.
    changes: Vec<Change>,
    savepoints: Savepoints,
}

thread_local! {
    static HOLDING: RefCell<Holding> = RefCell::default();
    static AT_EXIT: Cell<bool> = const { Cell::new(false) };
}

/// Once for each process.
pub fn register_callbacks() {
    // SAFETY: the callbacks have the right signatures and live as long as the library.
    unsafe {
        pg_sys::RegisterXactCallback(Some(at_transaction_end), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(at_subtransaction_end), std::ptr::null_mut());
    }
}

/// This transaction listens to a channel. Those of others are no concern of ours.
pub fn listen(channel: &[u8]) {
    change(channel, Change::Listen);
}

pub fn unlisten(channel: &[u8]) {
    change(channel, Change::Unlisten);
}

pub fn unlisten_all() {
    HOLDING.with_borrow_mut(|holding| {
        if !holding.names.is_empty() || !holding.changes.is_empty() {
            holding.push(Change::UnlistenAll);
        }
    });
}

fn change(channel: &[u8], change: impl FnOnce(Name) -> Change) {
    if let Some(name) = Name::of(channel) {
        HOLDING.with_borrow_mut(|holding| holding.push(change(name)));
    }
}

impl Holding {
    fn push(&mut self, change: Change) {
        // SAFETY: plain read of this process's state.
        self.savepoints.note(unsafe { pg_sys::GetCurrentTransactionNestLevel() }, self.changes.len());
        self.changes.push(change);
    }

    /// All that can fail, while it may.
    fn prepare(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        self.names.reserve(self.changes.len());
        if self.database.is_none() {
            // SAFETY: set when the process connected to its database.
            self.database = Database::find(unsafe { pg_sys::MyDatabaseId });
        }
        if !AT_EXIT.replace(true) {
            // SAFETY: the callback has the right signature; registered once a process.
            unsafe { pg_sys::before_shmem_exit(Some(at_exit), pg_sys::Datum::from(0)) };
        }
    }

    fn commit(&mut self) {
        self.savepoints.clear();
        let Some(database) = self.database else { return self.changes.clear() };
        for change in self.changes.drain(..) {
            match change {
                Change::Listen(name) => {
                    if self.names.insert(name) {
                        database.held.add(name.place);
                    }
                    database.retired.ask(&name.text);
                }
                Change::Unlisten(name) => {
                    if self.names.remove(&name) {
                        database.held.remove(name.place);
                    }
                }
                Change::UnlistenAll => self.names.drain().for_each(|name| database.held.remove(name.place)),
            }
        }
    }

    fn forget_changes(&mut self) {
        self.changes.clear();
        self.savepoints.clear();
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_transaction_end(
    event: pg_sys::XactEvent::Type,
    _argument: *mut std::ffi::c_void,
) {
    use pg_sys::XactEvent::*;
    HOLDING.with_borrow_mut(|holding| match event {
        XACT_EVENT_PRE_COMMIT => holding.prepare(),
        XACT_EVENT_COMMIT => holding.commit(),
        XACT_EVENT_ABORT | XACT_EVENT_PREPARE => holding.forget_changes(),
        _ => {}
    });
}

#[pg_guard]
unsafe extern "C-unwind" fn at_subtransaction_end(
    event: pg_sys::SubXactEvent::Type,
    _mine: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _argument: *mut std::ffi::c_void,
) {
    // SAFETY: plain read of this process's state.
    let level = unsafe { pg_sys::GetCurrentTransactionNestLevel() };
    HOLDING.with_borrow_mut(|holding| match event {
        pg_sys::SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => holding.savepoints.release(level),
        pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => {
            if let Some(length) = holding.savepoints.roll_back(level) {
                holding.changes.truncate(length);
            }
        }
        _ => {}
    });
}

#[pg_guard]
unsafe extern "C-unwind" fn at_exit(_code: i32, _argument: pg_sys::Datum) {
    let holding = HOLDING.take();
    if let Some(database) = holding.database {
        holding.names.iter().for_each(|name| database.held.remove(name.place));
    }
}
