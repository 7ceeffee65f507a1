//! Session members: bound to this database session, and gone with it.
//!
//! A session has a number that is never used again, in its process's cell. When it ends, its members are claimed
//! on the spot (nobody lists them from then on), the cell is cleared and the worker deletes the rows. A session
//! that cannot clean up was killed the hard way: then the whole server starts over, with empty tables.
//! DISCARD ALL, with which a pooler hands the session on, ends it for its members too; the next one has a new number.

use crate::access::client;
use crate::access::identity::Identity;
use crate::error::{Error, Result};
use crate::event::transaction::{self, Pending};
use crate::extension::{self, Extension};
use crate::lease::slot::Key;
use crate::shared::leases::leases;
use crate::shared::{self, Database, Process, my_process, next_version, processes};
use crate::{clock, settings};
use pgrx::{pg_guard, pg_sys};
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::sync::atomic::Ordering::*;

#[derive(Default)]
struct Bound {
    session: u64,
    database: Option<&'static Database>,
    /// At least those with a slot.
    members: HashSet<Key>,
    /// The number of members left after the last clean-up.
    looked_at: usize,
}

thread_local! {
    static BOUND: RefCell<Bound> = RefCell::new(Bound::default());
    static AT_EXIT: Cell<bool> = const { Cell::new(false) };
}

/// Refuse a feature of sessions to shared ones.
pub fn require(identity: &Identity, what: &'static str) -> Result<()> {
    client::require_own_session(what)?;
    let why = if identity.trusted_login {
        "The login role is in presence.trusted_login_roles: its sessions are shared by many users."
    } else if !settings::session_features() {
        "presence.session_features is off for this role or database."
    } else {
        return Ok(());
    };
    Err(Error::NoSessionFeatures { what, why })
}

/// The number of this session, for a member that is about to be bound to it.
pub fn bind(key: &Key) -> Result<u64> {
    if !client::is_own_session() {
        client::require_own_session("a session member")?;
    }
    let extension: Extension = extension::current()?;
    let Some(process) = my_process() else { return Err(Error::NotPreloaded) };
    if !AT_EXIT.replace(true) {
        // SAFETY: the callback has the right signature; registered once a process.
        unsafe { pg_sys::before_shmem_exit(Some(at_exit), pg_sys::Datum::from(0)) };
    }
    Ok(BOUND.with_borrow_mut(|bound| {
        if bound.session == 0 {
            bound.session = next_version();
            bound.database = Some(extension.database);
            process.database.store(extension.database_index, Release);
            process.session.store(bound.session, Release);
        }
        bound.forget_those_gone();
        bound.members.insert(*key);
        bound.session
    }))
}

impl Bound {
    /// Each time their number has doubled, so that a session that binds and deletes for weeks keeps few.
    fn forget_those_gone(&mut self) {
        if self.members.len() <= (2 * self.looked_at).max(64) {
            return;
        }
        let session = self.session;
        self.members.retain(|key| {
            // What this transaction has bound has no slot until it is committed.
            !matches!(transaction::pending(key), Pending::Untouched)
                || leases().read(key).is_some_and(|slot| slot.session == session)
        });
        self.looked_at = self.members.len();
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn at_exit(_code: i32, _argument: pg_sys::Datum) {
    // Open transactions never commit, so their pins do not matter.
    if BOUND.with_borrow(|bound| bound.session != 0) {
        transaction::unpin();
    }
    end();
}

/// The session has ended for its members, which are gone. It may bind others, under a new number.
pub fn end() {
    let bound = BOUND.take();
    let (Some(process), Some(database)) = (my_process(), bound.database) else { return };
    process.session.store(0, SeqCst);
    database.ended_sessions.fetch_add(1, SeqCst);
    let now = clock::boot();
    for key in &bound.members {
        leases().end_session(key, bound.session, now);
    }
    shared::wake(&database.worker.process);
}

/// Whether a session to which members of this database are bound still exists. (A copy of a database has members bound
/// to sessions of the original.)
pub fn is_live(database_index: u32, session: u64) -> bool {
    in_database(database_index).any(|process| process.session.load(Acquire) == session)
}

/// The live sessions of this database that have members.
pub fn live(extension: &Extension) -> HashSet<u64> {
    in_database(extension.database_index)
        .map(|process| process.session.load(Acquire))
        .filter(|session| *session != 0)
        .collect()
}

fn in_database(database: u32) -> impl Iterator<Item = &'static Process> {
    processes().iter().filter(move |process| process.database.load(Acquire) == database)
}
