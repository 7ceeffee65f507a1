//! The publisher: from the ring to the log and to the listeners, in one transaction a batch.
//!
//! 1. Take a snapshot. A record is ready if its transaction is over by that snapshot.
//! 2. Wait for the cells of transactions that are over but not through with their COMMIT callback (the commit
//!    gap): then the ring has every record that is ready, so no version of a member is missing before another.
//! 3. Read the ring, take the oldest of the ready records, in the order of their versions, conflate, count, number.
//! 4. Write the log and NOTIFY, until there are no more, or notifications take as much memory as they may. Commit.
//!    The COMMIT callback (`batch_commit`) marks the records as done.

use super::batch_commit::Committed;
use super::commit_gap::{Batch, Ready, Window};
use super::conflation::conflate;
use super::connections::Connections;
use super::copy::Copy;
use super::copy::batch::Batch as CopyBatch;
use super::last_seen::LastSeen;
use super::log::Log;
use super::occupancy::change::{self, Change};
use super::occupancy::published::Published;
use super::occupancy::rooms::Rooms;
use super::process::transaction;
use super::resync::{Owed, Resync};
use super::retry::Stuck;
use super::revocation::Rights;
use super::rotation::Rotation;
use super::writer::Writer;
use super::{lean, memory, tenancy};
use crate::error::{Error, Result};
use crate::event::record::Kind;
use crate::extension::Extension;
use crate::pg::memory::Scratch;
use crate::pg::role::as_role;
use crate::pg::spi::Connection;
use crate::pg::subtransaction::{Failure, attempt};
use crate::shared::Database;
use crate::shared::error_status::Part;
use crate::{clock, settings};
use std::sync::atomic::Ordering::*;

/// At most this many records are published in one transaction, so that the NOTIFY lock is not held for a whole flood.
const BATCH: usize = 5_000;

/// An event that waits is dropped when others have overtaken it for this long, or when the ring has no other room.
const PATIENCE: u64 = 60_000_000;
/// A transaction ends after this time, so that new events need not wait for a whole flood.
const LONGEST: u64 = 50_000;
const NEARLY_FULL: u64 = 8;

pub struct Publisher {
    /// Discarded whenever a batch fails or records are lost.
    connections: Connections,
    /// Members with an event that cannot be written yet.
    waiting: Stuck,
    resync: Resync,
    /// Every other time owners with little in the ring come first.
    others_first: bool,
    /// The ring was read up to here, and everything found is to be published, or waits.
    looked: u64,
    obeys_cancel: bool,
    log: Option<Log>,
    pub(super) rotation: Rotation,
    pub(super) rights: Rights,
    /// With their counts as published.
    pub(super) rooms: Rooms,
    last_seen: LastSeen,
    pub(super) copy: Option<Copy>,
}

/// How a batch is published: the first mode that works.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum PublishMode {
    Together,
    /// Each event in a subtransaction. An event that fails is dropped and answered with `resync`; or, if the error may
    /// pass, it waits together with later events of the same member.
    OneByOne,
    /// The NOTIFY queue is full: only the log is written, and listeners get a `resync` when there is room.
    LogOnly,
}

impl Publisher {
    pub fn new(database: &'static Database) -> Publisher {
        Publisher {
            connections: Connections::default(),
            waiting: Stuck::new(100_000, 5_000_000),
            resync: Resync::default(),
            others_first: false,
            looked: u64::MAX,
            obeys_cancel: true,
            log: None,
            rotation: Rotation::default(),
            rights: Rights::default(),
            rooms: Rooms::new(Published::of(database)),
            last_seen: LastSeen::new(),
            copy: Copy::of_this_server(),
        }
    }

    /// Whether there is something new to publish.
    pub fn has_events(&self, extension: &Extension) -> bool {
        let database = extension.database;
        let ring = database.ring();
        clock::boot() >= self.next_resync(database)
            || self.rotation.is_due(extension)
            || self.rights.may_have_changed()
            || (ring.used() > 0 && ring.head.load(Acquire) != self.looked)
            || clock::boot() >= self.waiting.next()
    }

    /// When to retry events that could not be written, or to send a `resync`.
    pub fn next_attempt(&self, extension: &Extension) -> u64 {
        self.waiting.next().min(self.next_resync(extension.database))
    }

    /// Not while an event waits, which is older.
    fn next_resync(&self, database: &Database) -> u64 {
        if self.waiting.is_empty() { self.resync.next(database) } else { u64::MAX }
    }

    /// Publish a batch from the ring. `obeys_cancel`: a cancel does not count as the failure of an event.
    pub fn publish(
        &mut self,
        extension: &Extension,
        obeys_cancel: bool,
    ) -> std::result::Result<Outcome, Failure> {
        self.obeys_cancel = obeys_cancel;
        match self.try_publish(extension, PublishMode::Together) {
            Err(failure) if !(failure.cancelled && obeys_cancel) => {}
            result => return result,
        }
        let failure = match self.try_publish(extension, PublishMode::OneByOne) {
            Err(failure) if failure.limit => failure,
            result => return result,
        };
        match self.try_publish(extension, PublishMode::LogOnly)? {
            Outcome::Published { .. } => Ok(Outcome::QueueFull(failure)),
            outcome => Ok(outcome),
        }
    }

    fn try_publish(
        &mut self,
        extension: &Extension,
        way: PublishMode,
    ) -> std::result::Result<Outcome, Failure> {
        // Before the snapshot.
        if self.resync.look(extension.database) {
            // Records are missing: the counts are wrong.
            self.connections = Connections::default();
            self.rooms.forget_numbers(clock::boot());
        }
        let resync = self.resync.owed();
        let rotation = self.rotation.clone();
        let mut done = Done { looked: u64::MAX, ..Done::default() };
        let began = clock::boot();
        let result = transaction(c"publishing events", || {
            if !tenancy::is_still_ours(extension)? {
                return Ok(Outcome::Stale);
            }
            let Some(window) = Window::open(extension)? else { return Ok(Outcome::Blocked) };
            let now = clock::boot();
            if settings::notify_delay() > 0 {
                window.thin_out();
            }
            self.others_first = !self.others_first;
            let skip = |hash| self.waiting.waits(hash, now);
            let most = if self.rooms.make_room(now) { BATCH } else { 0 };
            let batch = window.take(most, memory::for_records(), self.others_first, skip);
            // Everything that was committed before these events must be known by now.
            self.rights.look(extension)?;
            self.rotation
                .will_be_told(extension, batch.leaves.iter().filter_map(|place| window.record(*place)));
            if batch.ready.is_empty() && resync.is_none() && !self.rotation.is_due(extension) {
                done.looked = if batch.more { u64::MAX } else { window.looked() };
                return Ok(Outcome::Nothing);
            }
            let outcome = as_role(extension.owner_role, || {
                self.write(extension, &window, batch, way, resync, &mut done)
            })?;
            if way != PublishMode::LogOnly {
                crate::injection::fill_notify_queue();
            }
            crate::injection::stall("publishing");
            Ok(outcome)
        });
        let outcome = match result {
            Ok(outcome) => {
                let is_all = done.looked != u64::MAX && done.waiting.is_empty();
                self.finish(extension, done);
                if is_all && self.waiting.is_empty() {
                    extension.database.numbers().set_current(began);
                }
                if way == PublishMode::LogOnly && matches!(outcome, Outcome::Published { .. }) {
                    extension.database.ask_resync();
                }
                Ok(outcome)
            }
            Err(failure) => {
                // The transaction was rolled back.
                self.connections = Connections::default();
                self.looked = u64::MAX;
                self.rotation = rotation;
                Err(failure)
            }
        };
        // Now the counts are those of the published events, too.
        extension.database.flushed.store(extension.database.tail.load(Acquire), Release);
        outcome
    }

    /// The batch is committed.
    fn finish(&mut self, extension: &Extension, done: Done) {
        self.looked = done.looked;
        if let (Some(copy), Some(written)) = (&mut self.copy, done.copied) {
            copy.written(extension, written);
        }
        if done.told_resync {
            self.resync.told();
        }
        self.rooms.apply(done.changes, clock::boot());
        for (hash, version) in done.gone {
            extension.database.free_lease(&extension.key_of(hash), version);
        }
        done.written.into_iter().for_each(|hash| self.waiting.is_over(hash));
        let now = clock::boot();
        for (hash, failure) in done.waiting {
            extension.database.trouble.failed(Part::Events, &failure.message);
            if self.waiting.failed(hash, now) {
                pgrx::log!(
                    "presence_ext: publishing an event failed and will be tried again: {}",
                    failure.message
                );
            }
        }
        self.waiting.forget_gone(now);
        if self.waiting.is_empty() {
            extension.database.trouble.is_over(Part::Events);
        }
    }

    fn write(
        &mut self,
        extension: &Extension,
        window: &Window,
        batch: Batch,
        way: PublishMode,
        resync: Option<Owed>,
        done: &mut Done,
    ) -> Result<Outcome> {
        let Batch { ready, mut more, mut left_from, .. } = batch;
        if self.log.is_none() {
            self.log = Some(Log::open()?);
        }
        self.connections.learn(extension, &ready, window)?;
        let connection = Connection::open()?;
        let Some(log) = &mut self.log else { return Err(Error::NotInstalled) };
        let mut writer =
            Writer::new(extension, &connection, log, &mut self.rotation, way == PublishMode::LogOnly)?;
        let (mut dropped, mut positions) = (0, Vec::new());
        let ready = if settings::notify_delay() > 0 { conflate(ready) } else { ready };
        let mut waiting: Vec<(Ready, Failure)> = Vec::new();
        let mut copied = CopyBatch::new(self.copy.is_some());
        let (scratch, end) = (Scratch::new(), clock::boot() + LONGEST);
        for mut event in ready {
            if writer.is_full() || (clock::boot() > end && !positions.is_empty()) {
                more = true;
                left_from = event.positions.iter().copied().fold(left_from, u64::min);
                continue;
            }
            scratch.within(|| lean::complete(extension, &mut event.record))?;
            scratch.clear();
            let record = &event.record;
            if waiting.iter().any(|(earlier, _)| earlier.record.hash == record.hash) {
                continue;
            }
            let counted = self.connections.count(record);
            writer.is_flooded = event.is_flooded;
            if way == PublishMode::Together {
                writer.event(record, &counted)?;
            } else if let Err(failure) = writer.attempt(|writer| attempt(|| writer.event(record, &counted))) {
                if failure.cancelled && self.obeys_cancel {
                    failure.raise();
                }
                if failure.passing {
                    self.connections.take_back(record);
                    waiting.push((event, failure));
                    continue;
                }
                pgrx::warning!(
                    "presence_ext dropped an event that it could not publish: {}",
                    failure.message
                );
                dropped += 1;
            }
            done.changes.extend(change::of(extension, record, &counted, |room| self.rooms.is_known(room)));
            copied.note(record);
            done.published(event, &mut self.last_seen, &mut positions);
        }
        // Events that wait while others are written are dropped in the end; while nothing can be written they are kept.
        let ring = extension.database.ring();
        let is_nearly_full = ring.free() < ring.size() / NEARLY_FULL;
        for (event, failure) in waiting {
            let since = self.waiting.since(event.record.hash);
            let too_long = since.is_some_and(|since| clock::boot() > since + PATIENCE);
            let others_wait = is_nearly_full || too_long || resync.is_some();
            if others_wait && (!done.written.is_empty() || (too_long && resync.is_some())) {
                pgrx::warning!("presence_ext dropped an event that others waited for: {}", failure.message);
                dropped += 1;
                let counted = self.connections.count(&event.record);
                done.changes
                    .extend(change::of(extension, &event.record, &counted, |room| self.rooms.is_known(room)));
                copied.note(&event.record);
                done.published(event, &mut self.last_seen, &mut positions);
            } else {
                done.waiting.push((event.record.hash, failure));
            }
        }
        if !more {
            done.looked = window.looked();
        }
        // Last, when the ring has nothing older: whoever lists now hears only newer events.
        let none_waits = done.waiting.is_empty() && self.waiting.is_empty();
        let resync =
            resync.filter(|owed| left_from >= owed.head && none_waits && way != PublishMode::LogOnly);
        if resync.is_some() {
            writer.resync()?;
            done.told_resync = true;
        }
        let written = writer.finish()?;
        done.copied = self.copy.as_ref().and_then(|copy| copy.write(&copied));
        if let Some(Err(failure)) = done.copied.take_if(|copied| is_cancel(copied) && self.obeys_cancel) {
            failure.raise();
        }
        if written.events > 0 {
            log.is_fresh = false;
        }
        Committed {
            database: extension.database,
            positions,
            seq: written.seq,
            events: written.events,
            notifications: written.notifications,
            resync: resync.map(|owed| owed.losses),
            dropped,
            renewals: written.renewals,
        }
        .await_commit();
        Ok(Outcome::Published { more })
    }

    /// Write last_seen, if it is time.
    pub fn write_last_seen(&mut self, extension: &Extension) {
        self.last_seen.write(extension);
    }

    /// Repeat `relisten` on channels that were rotated a while ago.
    pub fn repeat_relistens(&mut self, extension: &Extension) -> std::result::Result<(), Failure> {
        self.rotation.repeat(extension)
    }

    /// Rotate the log when it is time. None: somebody is reading the next part.
    pub fn rotate_log(&mut self, extension: &Extension) -> std::result::Result<Option<()>, Failure> {
        let Some(log) = self.log.as_ref().filter(|log| log.is_due()) else { return Ok(Some(())) };
        let rotated = transaction(c"rotating the event log", || {
            as_role(extension.owner_role, || log.rotate(extension))
        })?;
        Ok(rotated.map(|log| self.log = Some(log)))
    }
}

/// The result of a batch, if it is committed.
#[derive(Default)]
struct Done {
    /// Members that left, with the versions of their tombstones, to be freed.
    gone: Vec<(u128, u64)>,
    /// Members with a published event.
    written: Vec<u128>,
    waiting: Vec<(u128, Failure)>,
    /// Changes of the counts of rooms.
    changes: Vec<Change>,
    /// There is nothing else in the ring up to here, except what waits.
    looked: u64,
    told_resync: bool,
    /// By how many the number of copied rows has grown, if something was copied.
    copied: Option<std::result::Result<i64, Failure>>,
}

fn is_cancel<T>(result: &std::result::Result<T, Failure>) -> bool {
    result.as_ref().is_err_and(|failure| failure.cancelled)
}

impl Done {
    fn published(&mut self, event: Ready, last_seen: &mut LastSeen, positions: &mut Vec<u64>) {
        let record = &event.record;
        if record.kind == Kind::Leave && record.node.is_none() {
            self.gone.push((record.hash, record.hidden_leave_version));
        }
        self.written.push(record.hash);
        last_seen.note(record);
        positions.extend(event.positions);
    }
}

pub enum Outcome {
    Nothing,
    /// Not now: a backend stays in the commit gap.
    Blocked,
    /// Logged, but nobody was notified.
    QueueFull(Failure),
    /// The extension is not the one that we know any more.
    Stale,
    Published {
        /// There is more to do now.
        more: bool,
    },
}
