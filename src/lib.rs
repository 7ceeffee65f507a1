//! presence_ext: presence as SQL.
//!
//! One way through the code: SQL verb (`member`) → row → what the triggers do (`member::before`, `after`) → the transaction's buffer
//! (`event::transaction`) → COMMIT → leases (`lease`) and ring (`event::ring`) → worker (`worker::publisher`) →
//! log and NOTIFY. docs/internals.md walks through it.

mod access;
mod clock;
mod error;
mod event;
mod extension;
mod functions;
mod injection;
mod lease;
mod member;
mod nodes;
mod pg;
mod settings;
mod shared;
mod utility;
mod validate;
mod worker;

#[cfg(any(test, feature = "pg_test"))]
mod tests;

use pgrx::{extension_sql_file, pg_guard, pg_sys};

pgrx::pg_module_magic!();

// The SQL surface, in the order of the script.
extension_sql_file!("../sql/tables.sql", name = "tables", bootstrap);
extension_sql_file!("../sql/identity.sql", name = "identity", requires = ["tables"]);
extension_sql_file!("../sql/leases.sql", name = "leases", requires = ["identity"]);
extension_sql_file!("../sql/policies.sql", name = "policies", requires = ["leases"]);
extension_sql_file!("../sql/copy.sql", name = "copy", requires = ["policies"]);
extension_sql_file!("../sql/writing.sql", name = "writing", requires = ["copy"]);
extension_sql_file!("../sql/gateways.sql", name = "gateways", requires = ["writing"]);
extension_sql_file!("../sql/reading.sql", name = "reading", requires = ["gateways"]);
extension_sql_file!("../sql/rooms.sql", name = "rooms", requires = ["reading"]);
extension_sql_file!("../sql/listening.sql", name = "listening", requires = ["rooms"]);
extension_sql_file!("../sql/history.sql", name = "history", requires = ["listening"]);
extension_sql_file!("../sql/sink.sql", name = "sink", requires = ["history"]);
extension_sql_file!("../sql/standby.sql", name = "standby", requires = ["sink"]);
extension_sql_file!("../sql/operating.sql", name = "operating", requires = ["standby"]);
extension_sql_file!("../sql/nodes.sql", name = "nodes", requires = ["operating"]);
extension_sql_file!("../sql/columns.sql", name = "columns", requires = ["nodes"]);
extension_sql_file!("../sql/kept.sql", name = "kept", requires = ["columns"]);
extension_sql_file!("../sql/grants.sql", name = "grants", finalize);

/// Called when a process loads the library: by the postmaster, if it is preloaded.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // SAFETY: plain flags. pg_upgrade starts servers that must not have workers.
    let (preloading, upgrading) =
        unsafe { (pg_sys::process_shared_preload_libraries_in_progress, pg_sys::IsBinaryUpgrade) };
    // Not preloaded: loading must not fail (pg_upgrade loads the library), so functions raise the error when they are
    // called.
    if !preloading {
        return;
    }
    quiet_backtraces();
    settings::define(access::narrowing::HOOKS);
    shared::startup::install_hooks();
    event::transaction::register_callbacks();
    event::subscriptions::register_callbacks();
    utility::install_hook();
    if !upgrading {
        worker::launcher::register();
    }
}

/// Errors that pass through Rust would have a backtrace in their DETAIL if RUST_BACKTRACE is set, which is useless to a
/// caller.
fn quiet_backtraces() {
    // SAFETY: the postmaster has one thread.
    unsafe { std::env::set_var("RUST_LIB_BACKTRACE", "0") };
}

/// `cargo pgrx test` needs this to set up its server.
#[cfg(test)]
pub mod pg_test {
    pub fn setup(_options: Vec<&str>) {}

    pub fn postgresql_conf_options() -> Vec<&'static str> {
        vec!["shared_preload_libraries = 'presence_ext'", "max_worker_processes = 16"]
    }
}
