//! The logged copy of the members (`worker::copy`): what stands of it in shared memory.

use super::{control, next_version, wake};
use pgrx::pg_sys;
use std::sync::atomic::{AtomicU64, Ordering::*};

/// Positions in the WAL. Commits of the copy wait for no disk, and what is not on disk reaches no standby and no peer: so
/// the launcher, which has nothing else to do, flushes behind them.
#[repr(C)]
pub struct Copied {
    written: AtomicU64,
    flushed: AtomicU64,
}

impl Copied {
    /// A worker has committed something of the copy.
    pub fn note_commit(&self) {
        // SAFETY: a plain read of this process's state: the end of its last commit.
        let end = unsafe { pg_sys::XactLastCommitEnd };
        let before = self.written.fetch_max(end, AcqRel);
        if before <= self.flushed.load(Acquire) {
            wake(&control().launcher);
        }
    }

    /// In the launcher: flush what was written. Whether there was something.
    pub fn flush(&self) -> bool {
        let written = self.written.load(Acquire);
        if written <= self.flushed.load(Acquire) {
            return false;
        }
        // SAFETY: the end of a commit, which is not beyond what is written.
        unsafe { pg_sys::XLogFlush(written) };
        self.flushed.fetch_max(written, AcqRel);
        true
    }
}

/// Of one database.
#[repr(C)]
pub struct CopyStatus {
    /// A number for this run of the server under its name; 0 is none yet.
    epoch: AtomicU64,
}

impl CopyStatus {
    /// Newer than that of any run before.
    pub fn epoch(&self) -> u64 {
        if self.epoch.load(Acquire) == 0 {
            let _ = self.epoch.compare_exchange(0, next_version(), AcqRel, Relaxed);
        }
        self.epoch.load(Acquire)
    }

    /// The database is gone.
    pub fn forget(&self) {
        self.epoch.store(0, Release);
    }
}
