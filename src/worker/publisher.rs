//! The publisher: from the ring to the log and to the listeners, in one transaction a batch.
//!
//! 1. Take a snapshot. A record is ready if its transaction is over by that snapshot.
//! 2. Wait for the cells of transactions that are over but not through with their COMMIT callback (the commit
//!    gap): then the ring has every record that is ready, so no version of a member is missing before another.
//! 3. Read the ring, take the ready records in the order of their versions, conflate, count, number.
//! 4. Write the log, NOTIFY, commit. The COMMIT callback marks the records as done: a worker that dies before has
//!    published nothing, one that dies later everything.

use super::connections::Connections;
use super::gap::{Ready, conflate, ready_records};
use super::house;
use super::last_seen::LastSeen;
use super::log::Log;
use super::process::transaction;
use super::rotation::Rotation;
use super::writer::Writer;
use crate::error::{Error, Result};
use crate::event::record::{Kind, Record};
use crate::extension::Extension;
use crate::lease::shared::leases;
use crate::settings;
use crate::shared::{self, Database};
use crate::spi::{self, Connection};
use crate::subtransaction::{Failure, attempt};
use pgrx::{pg_guard, pg_sys};
use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering::*};

/// Records published in one transaction, at most: the NOTIFY lock is held for one commit, not for a flood.
const BATCH: usize = 5_000;

pub struct Publisher {
    /// None: to be built from the table, at start and whenever a batch failed or records were lost.
    connections: Option<Connections>,
    log: Option<Log>,
    rotation: Rotation,
    last_seen: LastSeen,
}

/// How a batch is published: the first way that works.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Together,
    /// Each event in a subtransaction: what fails is dropped and answered with `resync`.
    OneByOne,
    /// The NOTIFY queue is full: the log is written, listeners hear `resync` when there is room.
    LogOnly,
}

/// What the COMMIT callback does with a published batch.
struct Batch {
    database: &'static Database,
    positions: Vec<u64>,
    seq: u64,
    events: u64,
    notifications: u64,
    /// The losses that its `resync` tells of.
    resync: Option<u64>,
    /// Events that could not be published, ever.
    dropped: u64,
    /// Epochs that grow with the commit: new channel names from then on.
    epochs: Vec<&'static AtomicU32>,
}

thread_local! {
    static BATCH_TO_COMMIT: RefCell<Option<Batch>> = const { RefCell::new(None) };
}

/// Once for each worker.
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
    }
    if let Some(losses) = batch.resync {
        counters.resyncs.fetch_add(1, Relaxed);
        batch.database.resync_told(losses);
    }
    batch.epochs.iter().for_each(|epoch| {
        epoch.fetch_add(1, AcqRel);
    });
    batch.database.seq.fetch_max(batch.seq, AcqRel);
    // Who waits for the tail finds the rest done.
    ring.advance();
    shared::wake(&batch.database.sink.process);
}

impl Publisher {
    pub fn new() -> Publisher {
        Publisher {
            connections: None,
            log: None,
            rotation: Rotation::default(),
            last_seen: LastSeen::default(),
        }
    }

    /// Publish what is in the ring.
    pub fn publish(&mut self, extension: &Extension) -> std::result::Result<Outcome, Failure> {
        let mut way = Way::Together;
        loop {
            match self.try_publish(extension, way) {
                Ok(outcome) => return Ok(outcome),
                Err(failure) => {
                    self.connections = None;
                    match way {
                        // It is no event's fault: all of them wait.
                        _ if failure.passing => return Err(failure),
                        Way::Together => way = Way::OneByOne,
                        Way::OneByOne if failure.limit => {
                            return match self.try_publish(extension, Way::LogOnly)? {
                                Outcome::Published { .. } => Ok(Outcome::QueueFull(failure)),
                                outcome => Ok(outcome),
                            };
                        }
                        _ => return Err(failure),
                    }
                }
            }
        }
    }

    fn try_publish(&mut self, extension: &Extension, way: Way) -> std::result::Result<Outcome, Failure> {
        // Looked at before the snapshot: whatever was lost by now is over by then.
        let resync = extension.database.owed_resync();
        if resync.is_some() {
            // Records are missing: what we counted is wrong.
            self.connections = None;
        }
        let rotation = self.rotation.clone();
        let mut gone = Vec::new();
        let result = transaction(c"publishing events", || {
            if !house::is_still_ours(extension)? {
                return Ok(Outcome::Stale);
            }
            let Some(ready) = ready_records(extension)? else { return Ok(Outcome::Blocked) };
            if ready.records.is_empty() && resync.is_none() && !self.rotation.is_due() {
                return Ok(Outcome::Nothing);
            }
            gone = leaves(&ready.records);
            let outcome = spi::as_role(extension.owner, || self.write(extension, ready, way, resync))?;
            if way != Way::LogOnly {
                crate::injection::fill_notify_queue();
            }
            crate::injection::stall("publishing");
            Ok(outcome)
        });
        extension.database.flushed.store(extension.database.tail.load(Acquire), Release);
        match result {
            Ok(Outcome::Published { more }) => {
                // Those of later batches do not match yet, or are done there.
                for (hash, version) in gone {
                    leases().free(&extension.key_of(hash), version);
                }
                if way == Way::LogOnly {
                    extension.database.ask_resync();
                }
                Ok(Outcome::Published { more })
            }
            Ok(outcome) => Ok(outcome),
            Err(failure) => {
                // Nothing of it happened.
                self.rotation = rotation;
                Err(failure)
            }
        }
    }

    fn write(
        &mut self,
        extension: &Extension,
        ready: Ready,
        way: Way,
        resync: Option<u64>,
    ) -> Result<Outcome> {
        let Ready { mut records, mut positions } = ready;
        if self.log.is_none() {
            self.log = Some(Log::open()?);
        }
        let mut connections = match self.connections.take() {
            Some(connections) => connections,
            None => Connections::build(&records)?,
        };
        let more = records.len() > BATCH;
        records.truncate(BATCH);
        positions.truncate(BATCH);
        self.last_seen.note(&records);
        let connection = Connection::open()?;
        let Some(log) = &mut self.log else { return Err(Error::NotInstalled) };
        let mut writer = Writer::new(extension, &connection, log, &mut self.rotation, way == Way::LogOnly)?;
        let mut dropped = 0;
        let records = if settings::notify_delay() > 0 { conflate(records) } else { records };
        for record in &records {
            let counted = connections.count(record);
            if way != Way::OneByOne {
                writer.event(record, &counted)?;
            } else if let Err(failure) = writer.attempt(|writer| attempt(|| writer.event(record, &counted))) {
                if failure.passing {
                    // All of them wait; the next attempt says why.
                    return Err(Error::Spi { code: pg_sys::SPI_ERROR_TRANSACTION });
                }
                pgrx::warning!(
                    "presence_ext dropped an event that it could not publish: {}",
                    failure.message
                );
                dropped += 1;
            }
        }
        // Last, when nothing older is left in the ring: whoever lists now hears only what is newer.
        let resync = resync.filter(|_| !more && way != Way::LogOnly);
        if resync.is_some() {
            writer.resync()?;
        }
        let written = writer.finish()?;
        if written.events > 0 {
            log.is_fresh = false;
        }
        BATCH_TO_COMMIT.set(Some(Batch {
            database: extension.database,
            positions,
            seq: written.seq,
            events: written.events,
            notifications: written.notifications,
            resync,
            dropped,
            epochs: written.epochs,
        }));
        self.connections = (dropped == 0).then_some(connections);
        Ok(Outcome::Published { more })
    }

    /// Write down who was seen when, if it is time.
    pub fn write_last_seen(&mut self, extension: &Extension) -> std::result::Result<(), Failure> {
        self.last_seen.write(extension)
    }

    /// Say `relisten` again on channels that were rotated a while ago.
    pub fn repeat_relistens(&mut self, extension: &Extension) -> std::result::Result<(), Failure> {
        self.rotation.repeat(extension)
    }

    /// Rooms whose rotation had to wait: now is the time.
    pub fn rotation_is_due(&self) -> bool {
        self.rotation.is_due()
    }

    /// Rotate the log when it is time. Somebody who reads the part makes us try again later.
    pub fn rotate_log(&mut self, extension: &Extension) -> std::result::Result<(), Failure> {
        let Some(log) = self.log.as_ref().filter(|log| log.is_due()) else { return Ok(()) };
        let (next, lost) =
            transaction(c"rotating the event log", || spi::as_role(extension.owner, || log.rotate()))?;
        extension.database.log_floor.fetch_max(lost, AcqRel);
        self.log = Some(next);
        Ok(())
    }
}

pub enum Outcome {
    Nothing,
    /// Not now: some backend is in the commit gap and does not come out.
    Blocked,
    /// The log has it; nobody was notified.
    QueueFull(Failure),
    /// The extension is not the one we know any more.
    Stale,
    Published {
        /// There is more to do at once.
        more: bool,
    },
}

/// The members that leave in these records, with the versions of their tombstones, to free these afterwards.
fn leaves(records: &[Record]) -> Vec<(u128, u64)> {
    records
        .iter()
        .filter(|record| record.kind == Kind::Leave)
        .map(|record| (record.hash, record.hidden_version))
        .collect()
}
