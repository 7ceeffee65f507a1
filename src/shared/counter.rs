//! A number that many sessions raise at the same moment, each in a cache line of its own as far as there are.

use super::my_proc_number;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

const STRIPES: usize = 16;

#[repr(C)]
pub struct Counter {
    stripes: [Stripe; STRIPES],
}

/// The length of a cache line, so that no two counters share one.
#[repr(C)]
struct Stripe {
    number: AtomicU64,
    rest: [u64; 7],
}

impl Counter {
    pub fn add(&self, number: u64) {
        let stripe = my_proc_number().unwrap_or(0) % STRIPES;
        self.stripes[stripe].number.fetch_add(number, Relaxed);
    }

    pub fn total(&self) -> u64 {
        self.stripes.iter().map(|stripe| stripe.number.load(Relaxed)).sum()
    }
}
