//! Background workers: one launcher for the cluster, one worker for each database with the extension.

pub mod beacon;
pub mod connections;
pub mod database;
pub mod dropped;
pub mod gap;
pub mod house;
pub mod housekeeping;
pub mod last_seen;
pub mod launcher;
pub mod line;
pub mod log;
pub mod memory;
pub mod overdue;
pub mod place;
pub mod process;
pub mod publisher;
pub mod publishing;
pub mod rights;
pub mod rotation;
pub mod sink;
pub mod step;
pub mod stuck;
pub mod sweeper;
pub mod sweeping;
pub mod walk;
pub mod writer;
