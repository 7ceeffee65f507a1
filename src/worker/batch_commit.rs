//! What the commit of a published batch does to shared memory. Before it nothing has happened: a worker that dies
//! before has published nothing, one that dies later everything.

use crate::shared::channel_epochs::Renewal;
use crate::shared::{self, Database};
use pgrx::{pg_guard, pg_sys};
use std::cell::RefCell;
use std::sync::atomic::Ordering::*;

/// The state changes that the COMMIT callback makes for a published batch.
pub struct Committed {
    pub database: &'static Database,
    pub positions: Vec<u64>,
    pub seq: u64,
    pub events: u64,
    pub notifications: u64,
    /// The losses that its `resync` announces.
    pub resync: Option<u64>,
    /// Number of events that could not be published.
    pub dropped: u64,
    /// Channels that get new names with the commit, each with the old name on which that is announced.
    pub renewals: Vec<(String, Renewal)>,
}

impl Committed {
    /// Apply this if the transaction commits.
    pub fn await_commit(self) {
        BATCH_TO_COMMIT.set(Some(self));
    }
}

thread_local! {
    static BATCH_TO_COMMIT: RefCell<Option<Committed>> = const { RefCell::new(None) };
}

/// Called once in each worker.
pub fn register_callback() {
    // SAFETY: the callback has the right signature and lives as long as the library.
    unsafe { pg_sys::RegisterXactCallback(Some(at_transaction_end), std::ptr::null_mut()) };
}

#[pg_guard]
unsafe extern "C-unwind" fn at_transaction_end(
    event: pg_sys::XactEvent::Type,
    _argument: *mut std::ffi::c_void,
) {
    let batch = match event {
        pg_sys::XactEvent::XACT_EVENT_COMMIT => BATCH_TO_COMMIT.take(),
        pg_sys::XactEvent::XACT_EVENT_ABORT => {
            BATCH_TO_COMMIT.take();
            None
        }
        _ => None,
    };
    let Some(batch) = batch else { return };
    let ring = batch.database.ring();
    batch.positions.iter().for_each(|position| ring.mark_done(*position));
    let counters = &batch.database.counters;
    counters.published.fetch_add(batch.events, Relaxed);
    counters.notifications.fetch_add(batch.notifications, Relaxed);
    if batch.dropped > 0 {
        batch.database.drop_events(batch.dropped);
        // They may have been leaves.
        batch.database.names.want_all();
    }
    if let Some(losses) = batch.resync {
        counters.resyncs.fetch_add(1, Relaxed);
        batch.database.resync_told(losses);
    }
    for (name, renewal) in batch.renewals {
        batch.database.retired.add(&name);
        batch.database.names.renew(renewal);
    }
    batch.database.seq.fetch_max(batch.seq, AcqRel);
    // Last: whoever waits for the tail must find the rest done.
    ring.advance();
    shared::wake(&batch.database.sink.process);
}
