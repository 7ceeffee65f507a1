//! Where PostgreSQL allocates.

use pgrx::pg_sys;

/// Run `body` with this memory context, which must be alive, as the current one.
pub fn within<T>(memory: pg_sys::MemoryContext, body: impl FnOnce() -> T) -> T {
    // SAFETY: alive, by the caller's promise; after an ERROR whoever catches it restores the context.
    let before = unsafe { pg_sys::MemoryContextSwitchTo(memory) };
    let value = body();
    // SAFETY: what was current before.
    unsafe { pg_sys::MemoryContextSwitchTo(before) };
    value
}

/// Memory that is reused in a loop.
pub struct Scratch(pg_sys::MemoryContext);

impl Scratch {
    /// Lives as long as the current memory context.
    pub fn new() -> Scratch {
        // SAFETY: a context of its own below the current one, which is deleted with it.
        Scratch(unsafe {
            pg_sys::AllocSetContextCreateInternal(
                pg_sys::CurrentMemoryContext,
                c"presence_ext scratch".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            )
        })
    }

    /// Allocate here. A query leaves its connection's memory context current, so call this again after one.
    pub fn within<T>(&self, body: impl FnOnce() -> T) -> T {
        within(self.0, body)
    }

    /// The context, for callers that switch to it only where they must.
    pub fn memory(&self) -> pg_sys::MemoryContext {
        self.0
    }

    /// Free everything that was allocated here. No value from an earlier `within` may be used afterwards.
    pub fn clear(&self) {
        // SAFETY: alive, and nobody holds on to what is in it.
        unsafe { pg_sys::MemoryContextReset(self.0) };
    }
}
