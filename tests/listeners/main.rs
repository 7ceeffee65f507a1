//! Delivery rights: listeners of all kinds, with channel names of their own or from others, against a model in plain
//! Rust of who may see which member when.
//!
//! - A full notification reaches a session only if a user whose names it has may see the member at some moment since
//!   just before the event was committed; where a lease has ended, since before the worker looked.
//! - A client that may see a member and follows the rule for clients ends up with what `list` returns. It hears of each
//!   event in full, or is told to look.
//! - When nothing is left to rotate, every event is delivered in full.
//!
//! The current members are read from the view `online`, which `tests/model` verifies. PRESENCE_CASES (default 60 in
//! all), PRESENCE_SEED and PRESENCE_SOAK work as there. Leases and pauses run on a clock that the test moves.

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

/// Every update is published.
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
