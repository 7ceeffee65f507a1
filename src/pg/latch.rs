//! Waiting for what others do, where nobody wakes us.

use crate::worker::process::wait_event;
use pgrx::pg_sys;
use std::ffi::CStr;

/// Sleep for this many milliseconds, under this name in pg_stat_activity; then handle a cancel.
pub fn pause(milliseconds: u32, name: &CStr) {
    let events = pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    // SAFETY: this process's own latch.
    unsafe { pg_sys::WaitLatch(pg_sys::MyLatch, events as i32, milliseconds.into(), wait_event(name)) };
    pgrx::check_for_interrupts!();
}
