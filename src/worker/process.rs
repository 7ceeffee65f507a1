//! What launcher and workers share: signals, waiting, transactions that survive errors.

use crate::clock;
use crate::error::Error;
use crate::pg::subtransaction::{Failure, catch};
use pgrx::pg_sys;
use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Handle signals like the rest of the server: SIGTERM ends the process wherever it is (`die`, not a flag: it may be
/// waiting for a lock; but see `finish_before_stopping`), SIGHUP makes it read the settings again.
pub fn install_signals() {
    // SAFETY: handlers of the server itself, installed before signals are let in.
    unsafe {
        set_signal(libc::SIGTERM, on_term);
        set_signal(libc::SIGHUP, on_hup);
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

#[cfg(not(feature = "pg18"))]
unsafe fn set_signal(signal: i32, handler: unsafe extern "C-unwind" fn(i32)) {
    // SAFETY: the caller's promise.
    unsafe { pg_sys::pqsignal(signal, Some(handler)) };
}

#[cfg(feature = "pg18")]
unsafe fn set_signal(signal: i32, handler: unsafe extern "C-unwind" fn(i32)) {
    // SAFETY: the caller's promise.
    unsafe { pg_sys::pqsignal_be(signal, Some(handler)) };
}

/// How long a process that has something to do before it exits may take for that, and for what it is doing.
const GRACE: libc::time_t = 1;

static HAS_GRACE: AtomicBool = AtomicBool::new(false);
/// The timer that ends the grace. Its number may be 0.
static END_OF_GRACE: AtomicPtr<libc::c_void> = AtomicPtr::new(std::ptr::null_mut());
/// When SIGTERM came, by the boot clock; 0: it has not.
static STOPS_SINCE: AtomicU64 = AtomicU64::new(0);
/// The postmaster signals a process and then its process group, so that one SIGTERM may come twice.
const SAME_SIGNAL: u64 = 100_000;

/// From now on SIGTERM lets this process finish what it is doing: it calls `is_to_stop` soon, and then `stop`. When the
/// grace is over, or at another SIGTERM, it ends wherever it is.
pub fn finish_before_stopping() {
    let mut timer: libc::timer_t = std::ptr::null_mut();
    // SAFETY: plain data, for a timer of this process that sends it SIGTERM.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGTERM;
        if libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) == 0 {
            END_OF_GRACE.store(timer, Relaxed);
            HAS_GRACE.store(true, Relaxed);
        }
    }
}

unsafe extern "C-unwind" fn on_term(signal: i32) {
    let (now, since) = (clock::boot(), STOPS_SINCE.load(Relaxed));
    if since != 0 && now.saturating_sub(since) < SAME_SIGNAL {
        return;
    }
    if !HAS_GRACE.load(Relaxed) || since != 0 {
        // SAFETY: what every backend does on SIGTERM.
        return unsafe { pg_sys::die(signal) };
    }
    STOPS_SINCE.store(now.max(1), Relaxed);
    // SAFETY: a timer of this process and its own latch; a signal handler may set both.
    unsafe {
        let mut once: libc::itimerspec = std::mem::zeroed();
        once.it_value.tv_sec = GRACE;
        libc::timer_settime(END_OF_GRACE.load(Relaxed), 0, &once, std::ptr::null_mut());
        pg_sys::SetLatch(pg_sys::MyLatch);
    }
}

pub fn is_to_stop() -> bool {
    STOPS_SINCE.load(Relaxed) != 0
}

/// Stop as SIGTERM does.
pub fn stop() {
    // SAFETY: what every backend does on SIGTERM.
    unsafe { pg_sys::die(libc::SIGTERM) };
    interrupts();
}

/// Whether the whole server stops, which the postmaster writes to its file before it signals anybody; otherwise only
/// this process was ended.
pub fn is_server_stopping() -> bool {
    let file = std::fs::read("postmaster.pid").unwrap_or_default();
    file.split(|byte| *byte == b'\n').any(|line| line.starts_with(b"stopping"))
}

unsafe extern "C-unwind" fn on_hup(signal: i32) {
    // SAFETY: what every process does on SIGHUP.
    unsafe { pg_sys::SignalHandlerForConfigReload(signal) }
}

/// Sleep until woken (`deaf`: ignore wake-ups) or the time is up; then handle interrupts.
pub fn wait(timeout: Duration, deaf: bool) {
    let events =
        pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH | if deaf { 0 } else { pg_sys::WL_LATCH_SET };
    let milliseconds = timeout.as_micros().div_ceil(1_000) as std::ffi::c_long;
    // SAFETY: this process's own latch.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, milliseconds, wait_event(c"PresenceWorkerMain"));
        if !deaf {
            pg_sys::ResetLatch(pg_sys::MyLatch);
        }
        interrupts();
        if pg_sys::ConfigReloadPending != 0 {
            read_configuration();
        }
    }
}

/// Outside a transaction.
pub fn read_configuration() {
    // SAFETY: what every process does after SIGHUP.
    unsafe {
        pg_sys::ConfigReloadPending = 0;
        pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
    }
}

/// The wait event of our processes in pg_stat_activity: with a name of its own if the server supports that.
pub fn wait_event(_name: &CStr) -> u32 {
    #[cfg(any(feature = "pg15", feature = "pg16"))]
    return pg_sys::PG_WAIT_EXTENSION;
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    // SAFETY: the server copies the name, and gives the same number for the same name.
    unsafe {
        pg_sys::WaitEventExtensionNew(_name.as_ptr())
    }
}

pub fn interrupts() {
    pgrx::check_for_interrupts!();
}

/// Run a transaction. An error rolls it back and is returned; the process continues.
pub fn transaction<T>(activity: &CStr, body: impl FnOnce() -> Result<T, Error>) -> Result<T, Failure> {
    let result = catch(|| {
        begin(activity);
        let value = body()?;
        commit();
        Ok(value)
    });
    if result.is_err() {
        // SAFETY: rolls back whatever the body had open; the error was taken out by the catch above.
        unsafe {
            pg_sys::AbortCurrentTransaction();
            pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
        }
    }
    result
}

fn begin(activity: &CStr) {
    // SAFETY: no transaction is open in this process.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, activity.as_ptr());
    }
}

fn commit() {
    // SAFETY: opened by `begin`. Without pgstat_report_stat autovacuum would never see what the worker deletes.
    unsafe {
        pg_sys::PopActiveSnapshot();
        pg_sys::CommitTransactionCommand();
        pg_sys::pgstat_report_stat(false);
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
    }
}

/// Connect to the database without a particular role.
pub fn connect(oid: pg_sys::Oid, name: &CStr) {
    // SAFETY: once, at the start of this process.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(oid, pg_sys::InvalidOid, 0);
        pg_sys::pgstat_report_appname(name.as_ptr());
    }
}
