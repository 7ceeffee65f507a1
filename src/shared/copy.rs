//! The logged copy of the members (`worker::copy`): what stands of it in shared memory.

use super::{control, next_version, wake};
use crate::pg::latch::pause;
use crate::{clock, settings};
use pgrx::pg_sys;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};

/// Positions in the WAL. Commits of the copy do not wait for the disk, and WAL that is not flushed reaches no standby
/// and no peer. So the launcher flushes it.
#[repr(C)]
pub struct Copied {
    written: AtomicU64,
    flushed: AtomicU64,
}

impl Copied {
    /// A worker has committed changes of the copy.
    pub fn note_commit(&self) {
        // SAFETY: a plain read of this process's state: the end of its last commit.
        let end = unsafe { pg_sys::XactLastCommitEnd };
        let before = self.written.fetch_max(end, AcqRel);
        if before <= self.flushed.load(Acquire) {
            wake(&control().launcher);
        }
    }

    /// In the launcher, or if that is gone: flush what was written. Returns whether there was anything.
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

/// How long somebody waits for the restore of members without progress.
const PATIENCE: u64 = 10_000_000;

/// For one database.
#[repr(C)]
pub struct CopyStatus {
    /// Identifies this run of the server under its name; 0 is unknown.
    epoch: AtomicU64,
    /// The restore is finished, or not needed.
    whole: AtomicBool,
    /// The last page is restored: from here on plans read the members.
    read: AtomicBool,
    /// All rows were stored in this run of the server, so their deadlines are of its clock.
    trusted: AtomicBool,
    /// When a page of members was restored, by the boot clock, or somebody began to wait; 0 is never.
    at: AtomicU64,
}

impl CopyStatus {
    /// Greater than in any earlier run.
    pub fn epoch(&self) -> u64 {
        if self.epoch.load(Acquire) == 0 {
            let _ = self.epoch.compare_exchange(0, next_version(), AcqRel, Relaxed);
        }
        self.epoch.load(Acquire)
    }

    pub fn is_whole(&self) -> bool {
        self.whole.load(Acquire)
    }

    pub fn is_whole_now(&self) {
        self.members_are_read();
        self.whole.store(true, Release);
    }

    /// Whether readers must read the members, and no longer the copy.
    pub fn reads_members(&self) -> bool {
        self.read.load(Acquire)
    }

    /// Called before plans that read the copy are invalidated: a plan made after that must read the members.
    pub fn members_are_read(&self) {
        self.read.store(true, Release);
    }

    pub fn trusts_rows(&self) -> bool {
        self.trusted.load(Acquire)
    }

    pub fn trust_rows(&self) {
        self.trusted.store(true, Release);
    }

    /// A page was restored.
    pub fn goes_on(&self) {
        self.at.store(clock::boot(), Release);
    }

    /// Wait until all members are restored: the first caller after a crash finds everybody, and what they delete stays
    /// deleted. Only while the restore makes progress. Returns whether it has waited.
    pub fn wait(&self) -> bool {
        if self.is_whole() || settings::node_name().is_none() {
            return false;
        }
        let _ = self.at.compare_exchange(0, clock::boot(), AcqRel, Relaxed);
        while !self.is_whole() && clock::boot() < self.at.load(Acquire) + PATIENCE {
            pause(2, c"PresenceRestore");
        }
        true
    }

    /// The database was dropped.
    pub fn forget(&self) {
        self.epoch.store(0, Release);
        self.whole.store(false, Release);
        self.read.store(false, Release);
        self.trusted.store(false, Release);
        self.at.store(0, Release);
    }
}
