//! Settings that take away what listeners hear. A session that begins has what ALTER DATABASE or a reload has set; the
//! worker, which stays, has to look. So a session that gets another value than the worker goes by tells it, and until
//! the worker has looked it rings doorbells only: a narrower setting holds for events as soon as any session has it.

use crate::settings;
use crate::shared::database::{Narrowing, Narrows};
use crate::shared::{self, Database};
use pgrx::{pg_guard, pg_sys};
use siphasher::sip::SipHasher13;
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::hash::Hasher;

thread_local! {
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
    /// How many differences there were when the worker last read its settings. It has just connected at its start, so
    /// none.
    static LOOKED: Cell<u64> = const { Cell::new(0) };
}

/// This process is the worker of the database: its settings are the ones in use.
pub fn is_worker(authorizer: &[u8], notify_payload: i32) {
    IS_WORKER.set(true);
    compare(authorizer, notify_payload);
}

/// Called once in each process as well: the assign hooks did not see the settings that it started with.
pub fn compare(authorizer: &[u8], notify_payload: i32) {
    authorizer_is(authorizer);
    notify_payload_is(notify_payload);
}

/// For the worker: how many differences were found, if somebody may have narrower settings than the worker.
pub fn news(database: &Database) -> Option<u64> {
    let differences = database.narrowing.differences();
    (differences != LOOKED.get()).then_some(differences)
}

/// The worker has read its settings again.
pub fn looked(differences: u64) {
    LOOKED.set(differences);
}

pub const HOOKS: settings::Hooks = settings::Hooks { authorizer, notify_payload };

/// Assign hook of `presence.authorizer`.
#[pg_guard]
unsafe extern "C-unwind" fn authorizer(value: *const c_char, _extra: *mut c_void) {
    // SAFETY: the new value, a zero-terminated string or null.
    let value = unsafe { if value.is_null() { &[][..] } else { CStr::from_ptr(value).to_bytes() } };
    authorizer_is(value);
}

/// Assign hook of `presence.notify_payload`.
#[pg_guard]
unsafe extern "C-unwind" fn notify_payload(value: c_int, _extra: *mut c_void) {
    notify_payload_is(value);
}

fn authorizer_is(value: &[u8]) {
    let mut hasher = SipHasher13::new();
    hasher.write(value);
    is(Narrows::Authorizer, if value.is_empty() { Narrowing::NOBODY } else { hasher.finish() });
}

fn notify_payload_is(value: i32) {
    is(Narrows::NotifyPayload, value as u64);
}

fn is(setting: Narrows, value: u64) {
    // SAFETY: plain reads of this process's state.
    let database =
        unsafe { if pg_sys::IsUnderPostmaster { pg_sys::MyDatabaseId } else { pg_sys::InvalidOid } };
    if database == pg_sys::InvalidOid {
        return;
    }
    let Some(database) = Database::find(database) else { return };
    if IS_WORKER.get() {
        // Names were handed out by the old setting.
        if database.narrowing.applies(setting, value) {
            database.names.want_all();
        }
    } else if database.narrowing.differs(setting, value) {
        shared::wake(&database.worker.process);
    }
}
