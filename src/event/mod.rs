//! Events: what happened to a member, from the trigger that saw it to the payload that a listener reads. `transaction` keeps
//! what a transaction has done, and at its commit applies it: leases to their slots, events to the ring.

pub mod channel;
pub mod image;
pub mod net_effect;
pub mod overflow;
pub mod pace;
pub mod payload;
pub mod pending_changes;
pub mod reach;
pub mod record;
pub mod ring;
pub mod savepoints;
pub mod share;
pub mod subscriptions;
pub mod transaction;
