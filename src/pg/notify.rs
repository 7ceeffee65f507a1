//! LISTEN, UNLISTEN and NOTIFY, as the statements do them.

use crate::error::{Error, Result};
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use std::ffi::{CStr, CString, c_char};

unsafe extern "C-unwind" {
    fn Async_Notify(channel: *const c_char, payload: *const c_char);
    fn Async_Listen(channel: *const c_char);
    fn Async_Unlisten(channel: *const c_char);
}

fn c_string(argument: &'static str, text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::InvalidArgument { argument, why: "It has a NUL.".into() })
}

/// NOTIFY in this transaction. Channel and payload are ours: short and ASCII.
pub fn notify(channel: &str, payload: &str) -> Result<()> {
    let (channel, payload) = (c_string("channel", channel)?, c_string("payload", payload)?);
    // SAFETY: C strings; the function copies them and may raise, which the boundary turns into a panic.
    unsafe { pg_guard_ffi_boundary(|| Async_Notify(channel.as_ptr(), payload.as_ptr())) };
    Ok(())
}

/// LISTEN from the commit of this transaction on.
pub fn listen(channel: &CStr) {
    // SAFETY: as above.
    unsafe { pg_guard_ffi_boundary(|| Async_Listen(channel.as_ptr())) };
}

/// UNLISTEN from the commit of this transaction on.
pub fn unlisten(channel: &CStr) {
    // SAFETY: as above.
    unsafe { pg_guard_ffi_boundary(|| Async_Unlisten(channel.as_ptr())) };
}
