//! The settings that a worker keeps to, and those of its database, which it follows.

use super::process::transaction;
use crate::pg::spi::{Connection, Statement};
use crate::pg::subtransaction::Failure;
use pgrx::pg_sys;
use std::cell::RefCell;
use std::ffi::{CStr, CString};

thread_local! {
    static APPLIED: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Settings of ALTER DATABASE or ALTER SYSTEM that could stop the worker.
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

/// For the worker's own queries: a plan that was made while a table was small must also suit a large one.
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

/// ALTER DATABASE ... SET presence.… applies to new sessions; this process stays connected and has to look. False: a
/// setting was reset; the worker must restart.
pub fn read_database_settings() -> Result<bool, Failure> {
    let found = transaction(c"reading settings", || {
        let connection = Connection::open()?;
        let rows = connection.run(&DATABASE_SETTINGS, &[], false)?;
        let text = |row| rows.text(row, 0).map(<[u8]>::to_vec);
        Ok((0..rows.count).filter_map(text).collect::<Vec<Vec<u8>>>())
    })?;
    // The first time everything counts as new: something may have been set since we connected.
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
            // A bad value does not affect the other settings; it is logged once.
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
