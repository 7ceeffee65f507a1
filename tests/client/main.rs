//! Tests with real clients on private servers. `tests/README.md` says what each kind of test is for.

mod cancel;
mod catalog;
mod common;
mod copy;
mod drivers;
mod events;
mod expiry;
mod faults;
mod full_numbers;
mod grace;
mod install;
mod memory;
mod monitoring;
mod nodes;
mod occupancy;
mod pace;
mod protocols;
mod revert;
mod sessions;
mod sink;
mod transactions;
mod visibility;
