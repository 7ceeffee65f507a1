//! Events: what happened to a member, from the trigger that saw it to the payload that a listener reads.

pub mod changes;
pub mod channel;
pub mod fold;
pub mod holding;
pub mod loss;
pub mod payload;
pub mod record;
pub mod ring;
pub mod savepoints;
pub mod share;
pub mod transaction;
