//! How it is installed, dumped, upgraded, pooled and dropped.

mod drop_extension;
mod dump;
mod introspection;
mod pg_upgrade;
mod pgbouncer;
mod upgrade;
mod wrapper;
