//! Random sequences of steps, shrunk on failure. PRESENCE_CASES sets the number of cases, PRESENCE_SEED
//! selects them; PRESENCE_SOAK=minutes runs for that long instead.

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use std::cell::RefCell;
use std::fmt::Debug;
use std::time::{Duration, Instant};

/// A numeric environment variable.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

pub fn seed() -> u64 {
    number("PRESENCE_SEED")
        .unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_micros() as u64)
}

/// Runs `default` cases, or half of PRESENCE_CASES if that is set, because two tests share it. Each stream
/// generates its own cases.
pub fn cases<S: Debug>(
    mut seed: u64,
    stream: u64,
    default: u64,
    steps: impl Strategy<Value = Vec<S>>,
    run: impl FnMut(&[S]) -> Result<(), String>,
) {
    let soak = number("PRESENCE_SOAK").map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let cases = number("PRESENCE_CASES").map_or(default, |cases| cases / 2);
    let run = RefCell::new(run);
    loop {
        println!("PRESENCE_SEED={seed} PRESENCE_CASES={}", cases * 2);
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        bytes[8..16].copy_from_slice(&stream.to_le_bytes());
        let config = Config {
            cases: cases as u32,
            max_shrink_iters: 2_000,
            max_shrink_time: 60_000,
            failure_persistence: None,
            ..Config::default()
        };
        let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
        let result = runner.run(&steps, |steps| run.borrow_mut()(&steps).map_err(TestCaseError::fail));
        if let Err(TestError::Fail(why, steps)) = &result {
            let steps: Vec<String> = steps.iter().map(|step| format!("    {step:?},\n")).collect();
            panic!("PRESENCE_SEED={seed}: {why}\n{}", steps.concat());
        }
        result.unwrap_or_else(|error| panic!("{error}"));
        if soak.is_none_or(|end| Instant::now() > end) {
            break;
        }
        seed += 1;
    }
}
