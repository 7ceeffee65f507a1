//! What outlives the server: a floor for versions and seqs (always), leases and unpublished events (clean stop).
//!
//! pg_stat_statements keeps its numbers the same way: the postmaster writes a file as it exits and reads and
//! unlinks it as it starts. The file counts only if pg_control says that the stop was clean: after anything
//! else the unlogged tables are empty, and a lease without a row would be a ghost.

use super::database::Database;
use super::{control, databases};
use crate::clock;
use crate::lease::shared::leases;
use crate::lease::table::{CLAIMED, Key, Lease, NEVER, TOMBSTONE, alive};
use crate::settings;
use pgrx::{pg_guard, pg_sys};
use std::io::Write;
use std::sync::atomic::Ordering::*;

const SAVED: &str = "pg_stat/presence_ext.saved";
const FLOOR: &str = "pg_stat/presence_ext.floor";
const MAGIC: u64 = 0x5052_4553_4e43_0001;
/// How far ahead the floor is written: half of it is the time to write the next one.
const FLOOR_STEP: u64 = 1 << 30;

/// In the postmaster, at start: put the saved state into the fresh shared memory.
pub fn load() {
    let control = control();
    let now = clock::boot();
    control.started_at.store(now, Relaxed);
    control.boot_id.store(random(), Relaxed);
    control.wall_offset.store(clock::wall() - now as i64, Relaxed);

    let saved = std::fs::read(SAVED).ok();
    let _ = std::fs::remove_file(SAVED);
    let saved = saved.filter(|_| was_clean_stop());
    let last = saved.as_deref().and_then(|bytes| Reader(bytes).restore(now)).unwrap_or(0);
    let floor = if last == 0 { read_floor() } else { 0 };

    let start = clock::unix().max(floor).max(last + 1);
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
    // A crash comes through here too, on its way to new shared memory.
    // SAFETY: a plain flag of this process.
    if code != 0 || unsafe { pg_sys::IsUnderPostmaster } || !was_clean_stop() {
        return;
    }
    if let Err(error) = write_durably(SAVED, &image()) {
        pgrx::log!("presence_ext could not save its leases: {error}");
    }
}

/// Keep the floor on disk ahead of every number given out. Called at start and by the launcher.
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
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

/// pg_control: system identifier, two version numbers, then the state; 1 is DB_SHUTDOWNED.
fn was_clean_stop() -> bool {
    std::fs::read("global/pg_control").is_ok_and(|bytes| bytes.get(16..20) == Some(&1u32.to_le_bytes()[..]))
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

/// The state as bytes: numbers in little endian, lists with their length in front.
fn image() -> Vec<u8> {
    let now = clock::boot();
    let mut out = Vec::new();
    let mut put = |number: u64| out.extend(number.to_le_bytes());
    put(MAGIC);
    put(control().next_version.load(Relaxed));
    put(clock::wall() as u64);
    let known: Vec<&Database> =
        databases().iter().filter(|database| database.oid.load(Relaxed) != 0).collect();
    put(known.len() as u64);
    for database in &known {
        put(database.index() as u64);
        put(database.oid.load(Relaxed) as u64);
        put(database.relation.load(Relaxed) as u64);
        put(database.seq.load(Relaxed));
        put(database.log_floor.load(Relaxed));
        put(database.owed_resync().is_some() as u64);
    }
    let live = leases().collect(|_, lease| lease.deadline != TOMBSTONE);
    put(live.len() as u64);
    for (key, lease) in live {
        let left = match lease.deadline {
            NEVER => NEVER,
            deadline if alive(deadline, now) => deadline - now,
            _ => 0,
        };
        put(key.database as u64);
        put(key.relation as u64);
        put((key.hash >> 64) as u64);
        put(key.hash as u64);
        for number in [left, lease.ttl, lease.version, lease.generation, lease.owner, lease.session] {
            put(number);
        }
    }
    for database in &known {
        let ring = database.ring();
        let records = ring.read(ring.tail.load(Relaxed), ring.head.load(Relaxed));
        out.extend((records.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() as u64).to_le_bytes());
        for (_, bytes) in records {
            out.extend(bytes);
        }
    }
    out
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn number(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*head))
    }

    /// Returns the last version given out; None if the file is not ours or stops short.
    fn restore(mut self, now: u64) -> Option<u64> {
        if self.number()? != MAGIC {
            return None;
        }
        let last = self.number()?;
        let down = clock::wall().saturating_sub(self.number()? as i64).max(0) as u64;
        let grace = settings::restart_grace();
        let mut places = Vec::new();
        for _ in 0..self.number()? {
            let (old_index, oid, relation) = (self.number()?, self.number()? as u32, self.number()? as u32);
            let (seq, log_floor, must_resync) = (self.number()?, self.number()?, self.number()? != 0);
            // max_databases may have been lowered: what does not fit lives on in its rows.
            let entry = databases().get(places.len());
            if let Some(entry) = entry {
                entry.oid.store(oid, Relaxed);
                entry.relation.store(relation, Relaxed);
                entry.seq.store(seq, Relaxed);
                entry.log_floor.store(log_floor, Relaxed);
                entry.slotless.store(1, Relaxed);
                if must_resync {
                    entry.ask_resync();
                }
            }
            places.push((old_index, entry));
        }
        for _ in 0..self.number()? {
            let (old_index, relation) = (self.number()?, self.number()? as u32);
            let hash = (self.number()? as u128) << 64 | self.number()? as u128;
            let (left, ttl, version) = (self.number()?, self.number()?, self.number()?);
            let (generation, owner, session) = (self.number()?, self.number()?, self.number()?);
            let entry = places.iter().find(|(index, _)| *index == old_index).and_then(|(_, entry)| *entry);
            let Some(entry) = entry else { continue };
            // Sessions ended with the server; a lease that had ended stays ended; all others get the grace.
            let deadline = if session != 0 || left == 0 {
                CLAIMED
            } else {
                now + left.saturating_sub(down).max(grace).max(1)
            };
            let key = Key { database: entry.index() as u32, relation, hash };
            let last_seen = if deadline == CLAIMED { now } else { deadline.saturating_sub(ttl) };
            let lease = Lease {
                deadline,
                last_seen,
                ttl,
                version,
                generation,
                owner,
                session,
                changed_at: 0,
                pins: 0,
            };
            leases().apply_present(&key, &lease);
        }
        for (_, entry) in &places {
            let length = self.number()? as usize;
            let records = self.0.get(..length)?;
            self.0 = &self.0[length..];
            if let Some(entry) = entry {
                let mut at = 0;
                while let Some(record) = records.get(at..).and_then(crate::event::record::Record::decode) {
                    // Its transaction is long over: the worker need not look for it.
                    let mut bytes = Vec::new();
                    crate::event::record::Record { xid: 0, ..record }.encode(&mut bytes);
                    at += bytes.len();
                    entry.append_events(&bytes, 1);
                    if at >= records.len() {
                        break;
                    }
                }
            }
        }
        Some(last)
    }
}
