//! Random steps of several connections against a model in memory: what each call answers, what is shown, what is
//! logged and what seven listeners make of what they hear must be what the model says.
//!
//! A case is a list of steps that are taken one after the other, transactions of several connections interleaved, so
//! that a failing one shrinks. PRESENCE_CASES says how many cases (default 250 in all), PRESENCE_SEED which ones;
//! PRESENCE_SOAK=minutes goes on for so long instead.
//!
//! The same steps all at once (`concurrent.rs`) have no model of each answer: only what is left at the end must agree.
//!
//! All the while a user tries to harm the others (`mallory.rs`). The model knows nothing of her.

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

/// For clients that decide for themselves, each its own.
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
