//! Random steps of several connections against a model in memory: what each call answers, what is shown, what is
//! logged and what seven listeners derive from what they hear must match the model.
//!
//! A case is a list of steps that run one after the other, with the transactions of several connections interleaved, so
//! that a failing case shrinks. PRESENCE_CASES sets how many cases are run (default 250 in all), PRESENCE_SEED which
//! ones; PRESENCE_SOAK=minutes runs for that long instead.
//!
//! When the same steps run concurrently (`concurrent.rs`) there is no model of each answer: only the final states must
//! agree.
//!
//! Throughout, a user tries to harm the others (`mallory.rs`). The model knows nothing of her.

mod check;
#[path = "../client/common/mod.rs"]
mod common;
mod concurrent;
mod follower;
mod mallory;
mod model;
mod op;
mod reverting;
mod sql;
mod values;
mod verbs;
mod world;

use common::{number, seed};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::time::Duration;
use world::World;

/// Every update is logged and heard.
#[test]
fn what_happens_is_what_the_model_says() {
    cases(&["presence.notify_delay=0"], 0);
}

/// Updates are conflated as they come.
#[test]
fn what_happens_is_what_the_model_says_with_conflation() {
    cases(&[], 1);
}

/// 15 seconds, or PRESENCE_SOAK=minutes.
#[test]
fn whatever_happens_at_once_all_agree_in_the_end() {
    let time = number("PRESENCE_SOAK").map_or(15, |minutes| 60 * minutes);
    concurrent::run(Duration::from_secs(time), seed());
}

/// The random source of a client that chooses its own steps; each client has another.
fn random(seed: u64, at: usize) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8] = 100 + at as u8;
    TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

fn cases(options: &[&str], stream: u64) {
    let seed = seed();
    let mut world = World::new(options, seed);
    common::cases(seed, stream, 125, op::steps(), |steps| world.run(steps));
    world.assert_sound();
}
