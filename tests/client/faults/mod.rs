//! What breaks: processes, disks, clocks, memory, other people.

mod bad_input;
mod clock;
mod databases;
mod flood;
mod full;
mod hostile;
mod kills;
mod limits;
mod long_transactions;
mod resilience;
mod restart;
mod worker;
mod worker_memory;
