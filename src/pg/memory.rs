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
