//! What the workers of a database have in common: how they connect, which settings they keep to, when they must go.

use super::process::transaction;
use crate::error::Error;
use crate::extension::{self, Extension};
use crate::pg::spi::{Connection, Statement};
use crate::pg::subtransaction::Failure;
use pgrx::pg_sys;
use std::cell::RefCell;
use std::ffi::{CStr, CString};

/// Connect to the database, as nobody in particular.
pub fn connect(oid: pg_sys::Oid, name: &CStr) {
    // SAFETY: once, at the start of this process.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(oid, pg_sys::InvalidOid, 0);
        pg_sys::pgstat_report_appname(name.as_ptr());
    }
}

/// What ALTER DATABASE or ALTER SYSTEM may have set must not stop us.
pub fn pin_settings(synchronous_commit: &'static CStr, lock_timeout: &'static CStr) {
    let pinned: &[(&CStr, &CStr)] = &[
        (c"default_transaction_read_only", c"off"),
        (c"default_transaction_isolation", c"read committed"),
        (c"default_transaction_deferrable", c"off"),
        (c"search_path", c"pg_catalog, pg_temp"),
        (c"statement_timeout", c"0"),
        (c"lock_timeout", lock_timeout),
        (c"idle_in_transaction_session_timeout", c"0"),
        #[cfg(any(feature = "pg17", feature = "pg18"))]
        (c"transaction_timeout", c"0"),
        (c"synchronous_commit", synchronous_commit),
        (c"session_replication_role", c"origin"),
        (c"row_security", c"on"),
        (c"enable_seqscan", c"on"),
    ];
    for (name, value) in pinned {
        set(name, value, pg_sys::GucSource::PGC_S_OVERRIDE);
    }
}

/// For the worker's own queries: a plan that was made while a table was small must do when it is large.
pub fn prefer_indexes() {
    set(c"enable_seqscan", c"off", pg_sys::GucSource::PGC_S_OVERRIDE);
    set(c"jit", c"off", pg_sys::GucSource::PGC_S_OVERRIDE);
}

fn set(name: &CStr, value: &CStr, source: pg_sys::GucSource::Type) {
    // SAFETY: C strings; a setting or value that the server does not know is an error.
    unsafe {
        pg_sys::SetConfigOption(name.as_ptr(), value.as_ptr(), pg_sys::GucContext::PGC_SUSET, source);
    }
}

static DATABASE_SETTINGS: Statement = Statement {
    sql: c"select setting from pg_catalog.pg_db_role_setting s, pg_catalog.unnest(s.setconfig) setting \
           where s.setdatabase operator(pg_catalog.=) (select d.oid from pg_catalog.pg_database d \
                                  where d.datname operator(pg_catalog.=) pg_catalog.current_database()) \
             and s.setrole operator(pg_catalog.=) 0 and pg_catalog.starts_with(setting, 'presence.') order by setting",
    arguments: &[],
};

thread_local! {
    static APPLIED: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// ALTER DATABASE ... SET presence.… reaches new sessions by itself, and us, who stay, by looking. False: a setting
/// was taken back; begin anew with what is left.
pub fn read_database_settings() -> Result<bool, Failure> {
    let found = transaction(c"reading settings", || {
        let connection = Connection::open()?;
        let rows = connection.run(&DATABASE_SETTINGS, &[], false)?;
        let text = |row| rows.text(row, 0).map(<[u8]>::to_vec);
        Ok((0..rows.count).filter_map(text).collect::<Vec<Vec<u8>>>())
    })?;
    // The first time everything is new: something may have been set since we connected.
    let before = APPLIED.replace(found.clone());
    let name = |setting: &[u8]| setting.split(|byte| *byte == b'=').next().map(<[u8]>::to_vec);
    if before.iter().any(|old| !found.iter().any(|new| name(new) == name(old))) {
        return Ok(false);
    }
    for setting in found.iter().filter(|setting| !before.contains(setting)) {
        if let Some(at) = setting.iter().position(|byte| *byte == b'=')
            && let (Ok(name), Ok(value)) = (CString::new(&setting[..at]), CString::new(&setting[at + 1..]))
        {
            let applied = transaction(c"reading settings", || {
                set(&name, &value, pg_sys::GucSource::PGC_S_DATABASE);
                Ok(())
            });
            // The others are none the worse for it; said once.
            match applied {
                Err(failure) if failure.cancelled => return Err(failure),
                Err(failure) => {
                    pgrx::log!("presence_ext: a setting of the database does not apply: {}", failure.message)
                }
                Ok(()) => {}
            }
        }
    }
    Ok(true)
}

/// Whether the extension is still the one that this worker knows, with the owner as whom it works; from then on, until the transaction ends, it is:
/// DROP EXTENSION waits for our lock.
pub fn is_still_ours(known: &Extension) -> Result<bool, Error> {
    // SAFETY: a lock on an oid; if the table is gone, the look-up after it says so.
    if !unsafe { pg_sys::ConditionalLockRelationOid(known.member, pg_sys::AccessShareLock as i32) } {
        return Ok(false);
    }
    match extension::current() {
        Ok(found) => Ok((found.member, found.owner) == (known.member, known.owner)),
        Err(Error::NotInstalled) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A transaction on the extension's tables. None: the extension is not the one we know any more.
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

/// Room in the NOTIFY queue that listeners have given back. PostgreSQL takes it back when somebody sends, which a full
/// queue refuses, and when somebody asks how full it is.
pub fn make_room_in_notify_queue() -> std::result::Result<(), Failure> {
    transaction(c"looking at the NOTIFY queue", || {
        Connection::open()?.run_text(c"select pg_catalog.pg_notification_queue_usage()", false)?;
        Ok(())
    })
}
