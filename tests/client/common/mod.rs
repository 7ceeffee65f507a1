//! Shared by all client tests: a private server, sessions of real users on it, the events they receive, and a
//! model of a listener.

#![allow(dead_code, unused_imports)] // no single test uses all of it

mod cases;
mod clock;
mod cluster;
mod dice;
mod everything;
mod memory;
mod mirror;
pub mod rule;
mod session;
mod small_disk;
mod standby;

pub use cases::{cases, number, seed};
pub use clock::Clock;
pub use cluster::{Cluster, Frozen, Stall, node, shell, signal, try_shell};
pub use dice::Dice;
pub use everything::use_everything;
pub use memory::{kilobytes, memory, peak};
pub use mirror::{Mirror, listed};
pub use session::{Event, Failure, Session, lines};
pub use small_disk::SmallDisk;
pub use standby::Standby;

use std::sync::atomic::{AtomicBool, Ordering::*};
use std::time::{Duration, Instant};

/// On a working machine nothing in these tests takes longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Polls until the condition holds, and panics after PATIENCE.
pub fn until(what: &str, condition: impl FnMut() -> bool) {
    assert!(attempt(condition), "not within {PATIENCE:?}: {what}");
}

/// Polls until the condition holds or PATIENCE has passed; returns whether it holds.
pub fn attempt(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if condition() {
            return true;
        }
        std::thread::sleep(millis(5));
    }
    false
}

/// All grants on the extension's objects to roles other than their owners.
pub const GRANTS: &str = "
    select name, grantee::regrole, string_agg(privilege_type, ' ' order by privilege_type)
    from (select oid::regclass::text as name, relacl as acl, relowner as owner from pg_class
          where relnamespace in ('presence'::regnamespace, '_presence'::regnamespace)
          union all
          select oid::regprocedure::text, proacl, proowner from pg_proc
          where pronamespace in ('presence'::regnamespace, '_presence'::regnamespace)) o, aclexplode(acl)
    where grantee <> owner group by 1, 2 order by 1, 2";

/// Sets a flag when it is dropped, also during a panic, so that threads waiting for the flag end.
pub struct Over<'a>(&'a AtomicBool);

impl Over<'_> {
    pub fn tell(flag: &AtomicBool) -> Over<'_> {
        Over(flag)
    }
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
