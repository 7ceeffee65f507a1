//! Memory for what is over soon, many times in a row.

use pgrx::pg_sys;

/// A context below the one that was current; its own is never current but inside.
pub struct Scratch(pg_sys::MemoryContext);

impl Scratch {
    pub fn new() -> Scratch {
        // SAFETY: a context of its own below the current one; an error unwinds to an abort, which deletes both.
        Scratch(unsafe {
            pg_sys::AllocSetContextCreateInternal(
                pg_sys::CurrentMemoryContext,
                c"presence_ext rows".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            )
        })
    }

    /// What is allocated in here lives until the next reset.
    pub fn inside<T>(&self, body: impl FnOnce() -> T) -> T {
        // SAFETY: the context lives as long as we do.
        let before = unsafe { pg_sys::MemoryContextSwitchTo(self.0) };
        let value = body();
        // SAFETY: what was current before; it lives longer than this call.
        unsafe { pg_sys::MemoryContextSwitchTo(before) };
        value
    }

    /// # Safety
    /// Nobody holds anything of it.
    pub unsafe fn reset(&self) {
        // SAFETY: the caller's promise.
        unsafe { pg_sys::MemoryContextReset(self.0) };
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: made in `new`, and not current.
            unsafe { pg_sys::MemoryContextDelete(self.0) };
        }
    }
}
