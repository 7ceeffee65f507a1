//! Failures of processes, disks, clocks and memory, and harm done by other users.

mod bad_input;
mod clock;
mod databases;
mod flood;
mod full;
mod hostile;
mod limits;
mod long_transactions;
mod random_kills;
mod resilience;
mod restart;
mod worker;
mod worker_memory;
