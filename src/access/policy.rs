//! What others have added to `presence.member`.
//!
//! As soon as its SELECT policies are not the built-in ones, events cannot be routed by audience alone:
//! notifications become doorbells, and the log shows ordinary roles nothing until it gets policies of its own.
//! While nothing at all was added, verbs know by themselves what the policies would say (`member::store`).

use super::identity::role_epoch;
use super::twin::{self, Asked, Likeness};
use crate::error::{Error, Result};
use crate::extension::{self, Extension};
use crate::pg::cached::Cached;
use crate::pg::function::Call;
use crate::pg::role::as_role;
use crate::pg::spi::{Connection, Statement};
use pgrx::pg_guard;
use pgrx::pg_sys::{self, Datum, Oid};
use std::cell::Cell;

thread_local! {
    /// Valid until the definition of either table, or any function, changes.
    static KNOWN: Cached<Oid, u64, Likeness> = const { Cached::new(1) };
    static EPOCH: Cell<u64> = const { Cell::new(0) };
    /// The tables of the latest answer: a change of either starts a new epoch.
    static WATCHED: Cell<Option<[Oid; 2]>> = const { Cell::new(None) };
    static WATCHING: Cell<bool> = const { Cell::new(false) };
    /// Whether a role has all rights that writing needs, until any right may have changed.
    static RIGHTS: Cached<Oid, RightsEpoch, bool> = const { Cached::new(REMEMBERED) };
    static SCHEMA_EPOCH: Cell<u64> = const { Cell::new(0) };
}

/// How many roles a session caches: a pooled session alternates between a few.
const REMEMBERED: usize = 8;

/// Whether the SELECT policies are the extension's own.
pub fn is_builtin(extension: &Extension) -> Result<bool> {
    Ok(!has_hooks() && likeness(extension, pg_sys::AccessShareLock)?.of_reading)
}

/// The same, and also the functions that they call, and no table inherits from `member`.
pub fn is_read_as_made(extension: &Extension) -> Result<bool> {
    let likeness = likeness(extension, pg_sys::AccessShareLock)?;
    Ok(!has_hooks() && likeness.of_reading && likeness.is_alone && likeness.asked.is_some())
}

/// Whether a write, and the SELECT before it, would meet only the extension's own objects, and the current role has all
/// rights that they need. The table is locked as by an UPDATE from here to the end of the transaction, so the answer
/// stays true.
pub fn is_as_made(extension: &Extension) -> Result<bool> {
    if has_hooks() {
        return Ok(false);
    }
    match likeness(extension, pg_sys::RowExclusiveLock)? {
        Likeness { of_writing: true, asked: Some(asked), .. } => has_rights(extension, &asked),
        _ => Ok(false),
    }
}

/// Whether the current role has the rights on the schema and the table, and may execute the functions of the policies.
fn has_rights(extension: &Extension, asked: &Asked) -> Result<bool> {
    // SAFETY: a plain read of this process's state.
    let role = unsafe { pg_sys::GetUserId() };
    let epoch = rights_epoch();
    let look_up = |_: &Oid| Ok(extension.may_do_all() && extension.may_use_schema() && asked.may_be_called());
    RIGHTS.with(|rights| rights.get(role, epoch, look_up))
}

/// Whether other libraries may check rights, or add policies, in the executor and the planner.
fn has_hooks() -> bool {
    // SAFETY: plain reads of pointers that libraries set when they are loaded.
    unsafe {
        let (rights, permissive, restrictive) = (
            pg_sys::ExecutorCheckPerms_hook,
            pg_sys::row_security_policy_hook_permissive,
            pg_sys::row_security_policy_hook_restrictive,
        );
        rights.is_some() || permissive.is_some() || restrictive.is_some()
    }
}

/// Lock first: this processes the invalidations of everything that was committed before.
fn likeness(extension: &Extension, lock: u32) -> Result<Likeness> {
    watch();
    // SAFETY: a table that exists, or existed when its oid was looked up; the lock stays until the transaction ends.
    unsafe { pg_sys::LockRelationOid(extension.member, lock as i32) };
    KNOWN.with(|known| {
        known.get(extension.member, EPOCH.get(), |_| {
            loop {
                if let Some(twin) = twin() {
                    WATCHED.set(Some([extension.member, twin]));
                    return Ok(twin::compare(extension.member, twin));
                }
                if let Some(of_reading) = has_policies_of_old(extension)? {
                    return Ok(Likeness { of_reading, is_alone: false, of_writing: false, asked: None });
                }
            }
        })
    })
}

/// Changes when the definition of `member` does. For callers that have locked it.
pub fn table_epoch() -> u64 {
    watch();
    EPOCH.get()
}

/// Of tables, functions and schemas, and roles.
pub type RightsEpoch = (u64, u64, u64);

/// Changes when anything changes on which a role's rights on the extension's functions and tables depend, except rights
/// on the view (`Extension::epoch`).
pub fn rights_epoch() -> RightsEpoch {
    watch();
    (EPOCH.get(), SCHEMA_EPOCH.get(), role_epoch())
}

fn watch() {
    if WATCHING.replace(true) {
        return;
    }
    // SAFETY: registered once a process; the callbacks only count.
    unsafe {
        use pg_sys::SysCacheIdentifier::{NAMESPACEOID, PROCOID};
        pg_sys::CacheRegisterRelcacheCallback(Some(forget), Datum::from(0));
        pg_sys::CacheRegisterSyscacheCallback(PROCOID as i32, Some(forget_functions), Datum::from(0));
        pg_sys::CacheRegisterSyscacheCallback(NAMESPACEOID as i32, Some(forget_schemas), Datum::from(0));
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn forget_functions(_argument: Datum, _cache: i32, _hash: u32) {
    EPOCH.set(EPOCH.get() + 1);
}

#[pg_guard]
unsafe extern "C-unwind" fn forget_schemas(_argument: Datum, _cache: i32, _hash: u32) {
    SCHEMA_EPOCH.set(SCHEMA_EPOCH.get() + 1);
}

#[pg_guard]
unsafe extern "C-unwind" fn forget(_argument: Datum, relation: Oid) {
    let is_watched = WATCHED.get().is_none_or(|watched| watched.contains(&relation));
    if relation == pg_sys::InvalidOid || is_watched {
        EPOCH.set(EPOCH.get() + 1);
    }
}

/// Before 0.3.0 there is no twin; the second column of `secret` has the text of the policies.
static TEXT: Statement =
    Statement { sql: c"select presence._policies('presence.member'::pg_catalog.regclass)", arguments: &[] };

/// None if the extension was updated while we waited.
fn has_policies_of_old(extension: &Extension) -> Result<Option<bool>> {
    let Some(secret) = extension::internal_relation(c"secret") else { return Err(Error::NotInstalled) };
    // SAFETY: ALTER EXTENSION UPDATE changes this table, so what we look at stays for as long as we hold the lock; and
    // it waits for no open transaction, as we give the lock back. An ERROR does so by the abort.
    unsafe { pg_sys::LockRelationOid(secret, pg_sys::AccessShareLock as i32) };
    let answer = if twin().is_some() {
        None
    } else {
        let made = extension::secret_column(2)?;
        let now = as_role(extension.owner_role, || {
            let connection = Connection::open()?;
            let rows = connection.run(&TEXT, &[], false)?;
            Ok(rows.text(0, 0).map(<[u8]>::to_vec))
        })?;
        Some(now == Some(made))
    };
    // SAFETY: locked above.
    unsafe { pg_sys::UnlockRelationOid(secret, pg_sys::AccessShareLock as i32) };
    Ok(answer)
}

fn twin() -> Option<Oid> {
    extension::internal_relation(c"member_twin")
}

/// SQL `_presence._has_builtin_policies()`.
fn has_builtin_policies(_call: &Call) -> Result<Option<Datum>> {
    Ok(Some(Datum::from(is_builtin(&extension::current()?)?)))
}

crate::sql_function!(
    presence_has_builtin_policies,
    pg_finfo_presence_has_builtin_policies,
    has_builtin_policies
);
