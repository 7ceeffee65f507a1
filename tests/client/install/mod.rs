//! Installing, dumping, upgrading, pooling and dropping the extension.

mod drop_extension;
mod dump;
mod introspection;
mod pg_upgrade;
mod pgbouncer;
mod upgrade;
mod wrapper;
