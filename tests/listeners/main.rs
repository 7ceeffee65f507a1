//! Who may hear: listeners of all kinds, by names that they have of their own or from others, against a model in plain
//! Rust of who may see which member when.
//!
//! - A notification in full reaches a session only if somebody whom it has the name from may see the member: at some
//!   moment from right before the event was committed; where a lease is over, from before the worker has looked.
//! - Who may see a member, and follows the rule for clients, ends with what `list` says; and hears of each event in
//!   full, or is told to look.
//! - When nothing is left to rotate all of it is told in full.
//!
//! What is there is taken from the view `online`, as `tests/model` has it proved. PRESENCE_CASES (default 60 in all),
//! PRESENCE_SEED and PRESENCE_SOAK as there. Leases and pauses pass on a clock that is moved.

mod acts;
#[path = "../client/common/mod.rs"]
mod common;
mod ear;
mod faults;
mod follower;
mod op;
mod rest;
mod rights;
mod speaker;
mod spying;
mod world;
mod writing;

use world::World;

/// Every update is told.
#[test]
fn nobody_hears_longer_than_they_may_see() {
    run(World::new(true, false), 0);
}

/// Updates are conflated; an authorizer decides who may enter.
#[test]
fn nobody_hears_longer_than_they_may_see_with_an_authorizer() {
    run(World::new(false, true), 1);
}

fn run(mut world: World, stream: u64) {
    common::cases(common::seed(), stream, 30, op::steps(), |steps| world.run(steps));
    world.cluster.assert_sound();
}
