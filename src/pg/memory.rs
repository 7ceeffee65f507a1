//! Where PostgreSQL allocates.

use pgrx::pg_sys;

/// Do something with this memory context as the current one. It is alive.
pub fn within<T>(memory: pg_sys::MemoryContext, body: impl FnOnce() -> T) -> T {
    // SAFETY: alive, by the caller's promise; after an ERROR whoever catches it restores the context.
    let before = unsafe { pg_sys::MemoryContextSwitchTo(memory) };
    let value = body();
    // SAFETY: what was current before.
    unsafe { pg_sys::MemoryContextSwitchTo(before) };
    value
}

/// Memory of the server that is used again and again: for loops.
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

    /// Allocate here. A query ends in the memory of its connection, so what follows one asks again.
    pub fn within<T>(&self, body: impl FnOnce() -> T) -> T {
        within(self.0, body)
    }

    /// For those who allocate only where they must.
    pub fn memory(&self) -> pg_sys::MemoryContext {
        self.0
    }

    /// Free all that was allocated here. Whoever keeps values beyond a `within` lets go of them before.
    pub fn clear(&self) {
        // SAFETY: alive, and nobody holds on to what is in it.
        unsafe { pg_sys::MemoryContextReset(self.0) };
    }
}
