//! How we talk to PostgreSQL: its calling convention, its values, its executor, its caches.

pub mod cached;
pub mod datum;
pub mod encoding;
pub mod function;
pub mod jsonb;
pub mod latch;
pub mod memory;
pub mod notify;
pub mod own_lock;
pub mod role;
pub mod rows;
pub mod session_settings;
pub mod snapshot;
pub mod spi;
pub mod subtransaction;
