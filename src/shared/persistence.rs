//! What outlives the server: a floor for versions and seqs (always), leases and unpublished events (clean stop).
//!
//! pg_stat_statements keeps its numbers the same way: the postmaster writes a file as it exits and reads and
//! unlinks it as it starts. The file counts only if pg_control says that the stop was clean, and the server starts neither as a
//! standby nor from a backup: after anything else the unlogged tables are empty, and a lease without a row would be a ghost.
//!
//! The names of channels are kept only if nothing ran between that stop and this start, not even without the library:
//! who may hear, and who left, would be unknown. Otherwise all are new, and old ones never come back to life.

use super::database::{Database, Narrows};
use super::leases::leases;
use super::state_format::{Saved, SavedChannels, SavedDatabase, SavedLease, SavedNames};
use super::{control, databases};
use crate::event::record::Record;
use crate::event::share::Demand;
use crate::lease::slot::{CLAIMED, Key, Lease, NEVER, TOMBSTONE, alive};
use crate::{clock, settings};
use pgrx::{pg_guard, pg_sys};
use siphasher::sip::SipHasher13;
use std::hash::Hasher;
use std::io::Write;
use std::sync::atomic::Ordering::*;

const SAVED: &str = "pg_stat/presence_ext.saved";
const FLOOR: &str = "pg_stat/presence_ext.floor";
/// Versions and seqs stay below this, for JavaScript.
const LAST: u64 = 1 << 53;
/// How far ahead the floor is written: when half of it is used up the next one is written.
const FLOOR_STEP: u64 = 1 << 30;

/// In the postmaster, at start: load the saved state into the fresh shared memory.
pub fn load() {
    let control = control();
    let now = clock::boot();
    control.started_at.store(now, Relaxed);
    control.wall_offset.store(clock::wall() - now as i64, Relaxed);

    let bytes = std::fs::read(SAVED).ok();
    let _ = std::fs::remove_file(SAVED);
    let bytes = bytes.filter(|_| was_clean_stop() && !is_recovery_asked_for());
    let saved = bytes.as_deref().and_then(Saved::decode);
    if bytes.is_some() && saved.is_none() {
        pgrx::log!(
            "presence_ext cannot read {SAVED}: starting without leases; members get the grace period of a restart"
        );
    }
    let last = saved.as_ref().map_or_else(read_floor, |saved| plausible(saved.next_version));
    if let Some(saved) = saved {
        restore(saved, now);
    }

    let start = clock::unix().max(last + 1);
    control.started_version.store(start, Relaxed);
    control.next_version.store(start, Relaxed);
    raise_floor();
}

/// In the postmaster: write the state when it exits for good.
pub fn register() {
    // SAFETY: the callback has the right signature; registered once a start, in the postmaster.
    unsafe { pg_sys::on_shmem_exit(Some(save), pg_sys::Datum::from(0)) };
}

#[pg_guard]
unsafe extern "C-unwind" fn save(code: i32, _argument: pg_sys::Datum) {
    // After a crash the postmaster comes through here, too, before it makes new shared memory.
    // SAFETY: a plain flag of this process.
    if code != 0 || unsafe { pg_sys::IsUnderPostmaster } || !was_clean_stop() {
        return;
    }
    if let Err(error) = write_durably(SAVED, &state().encode()) {
        pgrx::log!("presence_ext could not save its leases: {error}");
    }
}

/// Keep the floor on disk above every number issued. Called at start and by the launcher.
pub fn raise_floor() {
    let control = control();
    let newest = databases()
        .iter()
        .map(|database| database.seq.load(Acquire))
        .chain([control.next_version.load(Acquire)])
        .max()
        .unwrap_or(0);
    if newest + FLOOR_STEP / 2 < control.floor.load(Acquire) {
        return;
    }
    let floor = newest + FLOOR_STEP;
    match write_durably(FLOOR, &floor.to_le_bytes()) {
        Ok(()) => control.floor.store(floor, Release),
        Err(error) => pgrx::warning!("presence_ext could not write {FLOOR}: {error}"),
    }
}

fn read_floor() -> u64 {
    let bytes = std::fs::read(FLOOR).unwrap_or_default();
    plausible(bytes.try_into().map_or(0, u64::from_le_bytes))
}

/// 0 for a version or seq that cannot have been issued.
fn plausible(number: u64) -> u64 {
    if number < LAST { number } else { 0 }
}

/// pg_control: system identifier, two version numbers, then the state; 1 is DB_SHUTDOWNED.
fn was_clean_stop() -> bool {
    std::fs::read("global/pg_control").is_ok_and(|bytes| bytes.get(16..20) == Some(&1u32.to_le_bytes()[..]))
}

/// A standby, or a backup: unlogged tables are emptied even after a clean stop.
fn is_recovery_asked_for() -> bool {
    ["standby.signal", "recovery.signal"].iter().any(|file| std::path::Path::new(file).exists())
}

/// Identifies this stop: pg_control contains its time, and changes with every start.
fn stop() -> Option<u64> {
    let mut hasher = SipHasher13::new();
    hasher.write(&std::fs::read("global/pg_control").ok()?);
    Some(hasher.finish())
}

fn write_durably(path: &str, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = format!("{path}.tmp");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    std::fs::File::open("pg_stat")?.sync_all()
}

pub fn random() -> u64 {
    let mut bytes = [0u8; 8];
    // SAFETY: room for 8 bytes. Without randomness the zeroes stand; the server would not have started.
    unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), bytes.len()) };
    u64::from_le_bytes(bytes)
}

/// The current state.
fn state() -> Saved {
    let now = clock::boot();
    let known = || databases().iter().filter(|database| database.oid.load(Relaxed) != 0);
    let leases = leases().collect(|_, lease| lease.deadline != TOMBSTONE);
    Saved {
        next_version: control().next_version.load(Relaxed),
        stopped_at: clock::wall(),
        databases: known().map(database).collect(),
        leases: leases.iter().map(|(key, lease)| saved_lease(key, lease, now)).collect(),
        names: stop().map(|stop| SavedNames { stop, databases: known().map(channels).collect() }),
    }
}

fn channels(database: &'static Database) -> SavedChannels {
    SavedChannels {
        names: database.names.save(),
        retired: database.retired.save(),
        rights: database.rights.save(),
        authorizer: database.narrowing.authorizer(),
        told: database.beacon.told.load(Relaxed),
    }
}

fn database(database: &'static Database) -> SavedDatabase {
    let ring = database.ring();
    let places = ring.places(ring.tail.load(Relaxed), ring.head.load(Relaxed));
    SavedDatabase {
        index: database.index() as u64,
        oid: database.oid.load(Relaxed),
        seq: database.seq.load(Relaxed),
        log_floor: database.log_floor.load(Relaxed),
        must_resync: database.owed_resync().is_some(),
        records: places.filter_map(|place| Record::decode(&ring.get(place))).collect(),
    }
}

fn saved_lease(key: &Key, lease: &Lease, now: u64) -> SavedLease {
    let left = match lease.deadline {
        NEVER => NEVER,
        deadline if alive(deadline, now) => deadline - now,
        _ => 0,
    };
    SavedLease {
        database: key.database.into(),
        relation: key.relation,
        hash: key.hash,
        left,
        ttl: lease.ttl,
        version: lease.version,
        generation: lease.generation,
        owner: lease.owner,
        session: lease.session,
    }
}

/// Restore into the fresh shared memory. If max_databases or max_members were lowered, leases that do not fit stay in
/// their rows.
fn restore(saved: Saved, now: u64) {
    let down = clock::wall().saturating_sub(saved.stopped_at).max(0) as u64;
    let grace = settings::restart_grace();
    let places: Vec<(SavedDatabase, &'static Database)> =
        saved.databases.into_iter().zip(databases()).collect();
    let names = saved.names.filter(|names| Some(names.stop) == stop());
    let mut channels = names.map(|names| names.databases).unwrap_or_default();
    channels.resize_with(places.len(), SavedChannels::default);
    for ((database, entry), channels) in places.iter().zip(&channels) {
        restore_channels(entry, channels);
        entry.oid.store(database.oid, Relaxed);
        entry.seq.store(plausible(database.seq), Relaxed);
        entry.log_floor.store(plausible(database.log_floor), Relaxed);
        entry.slotless.store(1, Relaxed);
        if database.must_resync {
            entry.ask_resync();
        }
        for record in &database.records {
            // Its transaction has ended: the worker need not wait for it.
            let mut bytes = Vec::new();
            Record { xid: 0, ..record.clone() }.encode(&mut bytes);
            let mut demand = Demand::of(&bytes);
            if !entry.append_events(&mut bytes, &mut demand, 1) {
                // It may have been a leave.
                entry.names.want_all();
            }
        }
    }
    for lease in saved.leases {
        let place = places.iter().find(|(database, _)| database.index == lease.database);
        let Some((_, entry)) = place else { continue };
        // Sessions have ended with the server; a lease that had ended stays ended; a fixed one ends when it would have;
        // all others get the grace.
        let is_fixed = lease.ttl == 0;
        let left = match lease.left.saturating_sub(down) {
            left if is_fixed => left,
            left => left.max(grace).max(1),
        };
        let deadline = match left {
            _ if lease.session != 0 || lease.left == 0 => CLAIMED,
            0 => CLAIMED,
            left => now.saturating_add(left),
        };
        let last_seen = match deadline {
            CLAIMED if is_fixed => now.saturating_sub(down),
            CLAIMED => now,
            // As in the row.
            _ if is_fixed => 0,
            deadline => deadline.saturating_sub(lease.ttl),
        };
        let key = Key { database: entry.index() as u32, relation: lease.relation, hash: lease.hash };
        let lease = Lease {
            deadline,
            last_seen,
            ttl: lease.ttl,
            version: lease.version,
            generation: lease.generation,
            owner: lease.owner,
            session: lease.session,
            reverts_at: 0,
            changed_at: 0,
            pins: 0,
        };
        leases().apply_present(&key, &lease);
    }
}

/// Restore the names, if it is known who may hear them.
fn restore_channels(entry: &Database, saved: &SavedChannels) {
    if entry.rights.restore(&saved.rights) && entry.names.restore(&saved.names) {
        entry.narrowing.applies(Narrows::Authorizer, saved.authorizer);
        entry.retired.restore(&saved.retired);
        entry.beacon.told.store(saved.told, Relaxed);
    } else {
        entry.begin_names();
    }
}
