//! Once a second: whether the worker is still wanted, and what is to be done now and then. Each of these is tried by
//! itself: one that fails, or has to wait, holds up no other.

use super::beacon::Beacon;
use super::process::{read_configuration, transaction};
use super::publisher::Publisher;
use super::step::Step;
use super::{dropped, settings as own_settings, sink, tenancy};
use crate::access::narrowing;
use crate::clock;
use crate::extension::{self, Extension};
use crate::lease::slot::{Key, TOMBSTONE};
use crate::pg::subtransaction::Failure;
use crate::shared::database::WorkerState;
use crate::shared::error_status::Part;
use crate::shared::leases::leases;
use crate::shared::processes;
use std::sync::atomic::Ordering::*;

const PAUSE: u64 = 1_000_000;
/// How often to look for tombstones whose leave was never published, because events were lost.
const TOMBSTONES: u64 = 60_000_000;
/// If few slots are left, look more often, but use at most one in this many of the time.
const LOOKING_SHARE: u64 = 50;
/// At most this many are freed at once.
const MOST_TOMBSTONES: usize = 5_000;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Stay,
    /// The worker is not needed here any more, and has left a state that says why.
    Depart,
    /// Another extension, or other settings: a new worker must start.
    BeginAnew,
}

pub struct Maintenance {
    last: u64,
    staying: Step,
    settings: Step,
    rotation: Step,
    relisten: Step,
    lighting: Step,
    beacon: Beacon,
    last_tombstones: u64,
    /// How long the last look took.
    looking: u64,
    tombstones: Tombstones,
}

impl Maintenance {
    pub fn new() -> Maintenance {
        Maintenance {
            last: 0,
            staying: Step::new(Part::Maintenance, "looking for the extension"),
            settings: Step::new(Part::Settings, "reading settings"),
            rotation: Step::new(Part::LogRotation, "rotating the event log"),
            relisten: Step::new(Part::Relisten, "telling listeners to listen again"),
            lighting: Step::new(Part::Beacon, "telling listeners that the server is alive"),
            beacon: Beacon::default(),
            last_tombstones: clock::boot(),
            looking: 0,
            tombstones: Tombstones::default(),
        }
    }

    pub fn next(&self) -> u64 {
        self.last + PAUSE
    }

    /// Do what is due. `at_once`: something was found to be different.
    pub fn turn(&mut self, extension: &mut Extension, publisher: &mut Publisher, at_once: bool) -> Verdict {
        let now = clock::boot();
        let database = extension.database;
        if let Some(differences) = narrowing::news(database) {
            // A session may have read the file before we were signalled.
            read_configuration();
            match self.settings.attempt(database, own_settings::read_database_settings) {
                Some(true) => narrowing::looked(differences),
                Some(false) => return Verdict::BeginAnew,
                None => {}
            }
        }
        if now < self.next() && !at_once {
            return Verdict::Stay;
        }
        let verdict = self.staying.attempt(database, || still_wanted(extension)).unwrap_or(Verdict::Stay);
        if verdict != Verdict::Stay || now < self.next() {
            return verdict;
        }
        self.last = now;
        if self.settings.attempt(database, own_settings::read_database_settings) == Some(false) {
            return Verdict::BeginAnew;
        }
        sink::start_if_wanted(database);
        // To wait for a reader is neither a success nor a failure.
        if self.rotation.may_start()
            && let Some(rotated) = publisher.rotate_log(extension).transpose()
        {
            self.rotation.note(database, rotated);
        }
        self.relisten.attempt(database, || publisher.repeat_relistens(extension));
        self.lighting.attempt(database, || self.beacon.turn(extension));
        publisher.write_last_seen(extension);
        let is_nearly_full = leases().used() * 10 > leases().capacity() as u64 * 9;
        let pause = if is_nearly_full { TOMBSTONES.min(self.looking * LOOKING_SHARE) } else { TOMBSTONES };
        if self.tombstones.is_empty() && now >= self.last_tombstones + pause {
            self.last_tombstones = now;
            dropped::free_leases(database);
            self.tombstones = Tombstones::find(extension);
            self.looking = clock::boot() - now;
        }
        self.tombstones.free_if_safe(extension);
        Verdict::Stay
    }
}

fn still_wanted(extension: &mut Extension) -> Result<Verdict, Failure> {
    let database = extension.database;
    let present = transaction(c"looking for the extension", || match extension::member_table() {
        Some(_) => extension::current().map(Some),
        None => Ok(None),
    })?;
    let Some(present) = present else {
        dropped::forget_extension(database);
        return Ok(Verdict::Depart);
    };
    if present.member != extension.member {
        // Dropped and created again.
        return Ok(Verdict::BeginAnew);
    }
    // It may have another owner.
    *extension = present;
    if tenancy::somebody_waits_for_the_database()? {
        database.worker.set_state(WorkerState::Yielded);
        return Ok(Verdict::Depart);
    }
    Ok(Verdict::Stay)
}

/// Tombstones that no event will free: when everything that was in the ring when they were found is published, no older
/// change can need them any more.
#[derive(Default)]
struct Tombstones {
    found: Vec<(Key, u64)>,
    head: u64,
}

impl Tombstones {
    fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    fn find(extension: &Extension) -> Tombstones {
        let index = extension.database_index;
        let mut found = Vec::new();
        for partition in 0..crate::lease::table::PARTITIONS {
            let there = leases()
                .collect_in(partition, |key, lease| key.database == index && lease.deadline == TOMBSTONE);
            found.extend(there.into_iter().map(|(key, lease)| (key, lease.version)));
            if found.len() > MOST_TOMBSTONES {
                break;
            }
        }
        Tombstones { found, head: extension.database.ring().head.load(Acquire) }
    }

    fn free_if_safe(&mut self, extension: &Extension) {
        let is_published = extension.database.ring().tail.load(Acquire) >= self.head;
        if is_published && processes().iter().all(|process| process.committing.load(SeqCst) == 0) {
            for (key, version) in std::mem::take(&mut self.found) {
                extension.database.free_lease(&key, version);
            }
        }
    }
}
