//! Whether a worker may stay: the extension is the one that it knows, and nobody waits for the database.

use super::process::transaction;
use crate::error::Error;
use crate::extension::{self, Extension};
use crate::pg::subtransaction::Failure;
use pgrx::pg_sys;
use std::ffi::CStr;

/// Whether the extension is still the one that this worker knows, with the same owner. It stays so until the
/// transaction ends, because DROP EXTENSION waits for our lock.
pub fn is_still_ours(known: &Extension) -> Result<bool, Error> {
    // SAFETY: a lock on an oid; if the table is gone, the look-up after it says so.
    if !unsafe { pg_sys::ConditionalLockRelationOid(known.member, pg_sys::AccessShareLock as i32) } {
        return Ok(false);
    }
    match extension::current() {
        Ok(found) => Ok((found.member, found.owner_role) == (known.member, known.owner_role)),
        Err(Error::NotInstalled) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A transaction on the extension's tables. None: the extension is not the one that we know any more.
pub fn guarded<T>(
    known: &Extension,
    activity: &CStr,
    body: impl FnOnce() -> Result<T, Error>,
) -> Result<Option<T>, Failure> {
    transaction(activity, || if is_still_ours(known)? { body().map(Some) } else { Ok(None) })
}

/// DROP DATABASE, ALTER DATABASE and CREATE DATABASE ... TEMPLATE hold a lock on the database and wait for
/// everybody to leave it. A lock that we cannot get at once means that one of them waits.
pub fn somebody_waits_for_the_database() -> Result<bool, Failure> {
    transaction(c"looking who waits for the database", || {
        // SAFETY: the lock tag of a database, as LockSharedObject makes it; released below.
        unsafe {
            let tag = pg_sys::LOCKTAG {
                locktag_field1: 0,
                locktag_field2: u32::from(pg_sys::Oid::from(pg_sys::BuiltinOid::DatabaseRelationId)),
                locktag_field3: u32::from(pg_sys::MyDatabaseId),
                locktag_field4: 0,
                locktag_type: pg_sys::LockTagType::LOCKTAG_OBJECT as u8,
                locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
            };
            let mode = pg_sys::RowExclusiveLock as i32;
            let got = pg_sys::LockAcquire(&tag, mode, false, true);
            if got == pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL {
                return Ok::<bool, Error>(true);
            }
            pg_sys::LockRelease(&tag, mode, false);
        }
        Ok(false)
    })
}
