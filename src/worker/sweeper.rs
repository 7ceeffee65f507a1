//! The sweeper: deletes members whose lease has run out or whose session is over, and frees slots of the dead.
//!
//! Readers do not depend on it: an expired member is invisible from its deadline on. The sweeper makes the leave.

use super::expired_scan::{BATCH, Due, ExpiredScan};
use super::{memory, reverting};
use crate::clock;
use crate::error::Result;
use crate::event::record::size_of_record;
use crate::extension::Extension;
use crate::lease::slot::{CLAIMED, Lease};
use crate::member::{self, expiry};
use crate::pg::datum::{interval_of, uuid, uuids};
use crate::pg::encoding::decode;
use crate::pg::role::as_role;
use crate::pg::rows::Rows;
use crate::pg::spi::{Connection, Statement, statement};
use crate::pg::subtransaction::attempt;
use crate::shared::leases::leases;
use pgrx::pg_sys::{self, Datum};
use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::sync::atomic::Ordering::Acquire;

/// Rows in key order, without those that are locked; with the state that their leave will show.
macro_rules! lock {
    ($state:literal, $reverts:literal) => {
        statement!(
            [pg_sys::UUIDARRAYOID],
            "select key_hash, version, generation, deadline, session, room, member_id, connection_id, user_id, status, ",
            $state,
            ", metadata, audience",
            $reverts,
            " from presence.member where key_hash operator(pg_catalog.=) any ($1) \
             order by key_hash for update skip locked"
        )
    };
}
static LOCK: Statement = lock!("coalesce(last_word, state)", ", reverts");
static LOCK_OF_OLD: Statement = lock!("state", "");

static PRESENT: Statement = Statement {
    sql: c"select key_hash from presence.member where key_hash operator(pg_catalog.=) any ($1)",
    arguments: &[pg_sys::UUIDARRAYOID],
};

static NAME: Statement = Statement {
    sql: c"select pg_catalog.format('room %s, member_id %s, connection_id %s', pg_catalog.quote_literal(room),
                                    pg_catalog.quote_literal(member_id), pg_catalog.quote_literal(connection_id))
           from presence.member where key_hash operator(pg_catalog.=) $1",
    arguments: &[pg_sys::UUIDOID],
};

/// The result for members that may have expired (or have something to revert).
#[derive(Default)]
pub struct Swept {
    pub done: Vec<u128>,
    /// They were ours to delete, and are still there: a trigger or rule keeps their rows.
    pub kept: Vec<u128>,
    /// The event buffer has no room for their events.
    pub unfit: Vec<u128>,
    /// The size of their events in the event buffer.
    pub bytes: u64,
}

impl Swept {
    /// Whether there is room for one more event.
    pub fn fits(&mut self, extension: &Extension, room: Budget, hash: u128, size: u64) -> bool {
        let fits = room.has_room(extension, self.bytes, size);
        if fits {
            self.bytes += size;
        } else {
            self.unfit.push(hash);
        }
        fits
    }
}

/// What the worker runs before it deletes: added constraints must be checked now, as the extension's owner; and a lock
/// that somebody's trigger needs may hold up the others only for a moment.
pub const BEFORE: &CStr = c"set constraints all immediate; set local lock_timeout = '20ms'";

/// How many bytes of events a transaction may make.
#[derive(Clone, Copy)]
pub struct Budget {
    together: u64,
    /// A larger event may be made alone.
    alone: u64,
}

impl Budget {
    /// For the worker: at most half of what is free, to leave the rest to others, and not too much for one transaction.
    pub fn for_worker(extension: &Extension) -> Budget {
        let ring = extension.database.ring();
        let together = (ring.free() / 2).min(ring.size() / 8).min(memory::for_leaves() as u64);
        Budget { together, alone: ring.free() }
    }

    /// Whether there is room for one more event behind others of so many bytes.
    pub fn has_room(&self, extension: &Extension, taken: u64, size: u64) -> bool {
        // One that would never have room does not wait.
        let alone = taken == 0 && (size <= self.alone || size > extension.database.ring().size());
        taken + size <= self.together || alone
    }
}

/// Do something with members that are due, as the extension's owner, after `before`.
pub fn sweeping(
    extension: &Extension,
    before: &CStr,
    body: impl FnOnce(&Connection, &mut Swept) -> Result<()>,
) -> Result<Swept> {
    as_role(extension.owner_role, || {
        let connection = Connection::open()?;
        if !before.is_empty() {
            connection.run_text(before, true)?;
        }
        let mut swept = Swept::default();
        body(&connection, &mut swept)?;
        Ok(swept)
    })
}

/// Delete these members, if they have expired and there is room for their leaves.
pub fn delete(extension: &Extension, keys: &[u128], room: Budget, before: &CStr) -> Result<Swept> {
    sweeping(extension, before, |connection, swept| {
        let locked = lock(extension, connection, keys, room, swept)?;
        let ended = expiry::delete(extension, connection, locked)?;
        swept.done = ended.gone;
        let done: HashSet<&u128> = swept.done.iter().collect();
        swept.kept = ended.claimed.into_iter().filter(|hash| !done.contains(hash)).collect();
        crate::injection::stall("claimed");
        Ok(())
    })
}

/// Lock the rows, as far as their events fit.
fn lock(
    extension: &Extension,
    connection: &Connection,
    keys: &[u128],
    room: Budget,
    swept: &mut Swept,
) -> Result<Vec<(u128, crate::lease::rule::RowLease)>> {
    let statement = if extension.has_later_columns { &LOCK } else { &LOCK_OF_OLD };
    let rows = connection.run(statement, &[Some(uuids(keys))], true)?;
    let mut fitting = Vec::new();
    for row in 0..rows.count {
        let Some(hash) = rows.uuid(row, 0) else { continue };
        if swept.fits(extension, room, hash, size_of_event(&rows, row)) {
            fitting.push((hash, member::liveness::lease_of_query(&rows, row, [1, 2, 3, 4])));
        }
    }
    Ok(fitting)
}

/// The largest size that a row's event may have in the event buffer, where nothing is compressed; reverted parts are in
/// the column behind the image.
pub fn size_of_event(rows: &Rows, row: usize) -> u64 {
    // SAFETY: the eight columns of an image and one more, all of them varlena; looks at their headers.
    let length = |column| rows.get(row, column).map(|datum| unsafe { raw_length(datum) });
    (size_of_record(std::array::from_fn(|field| length(5 + field))) + length(13).unwrap_or(0)) as u64
}

/// The size of a value that is neither compressed nor out of line.
///
/// # Safety
/// `datum` is a varlena.
pub unsafe fn raw_length(datum: Datum) -> usize {
    // SAFETY: the caller's promise. The size is that with a full header.
    unsafe { pg_sys::toast_raw_datum_size(datum) as usize - pg_sys::VARHDRSZ }
}

/// A member's names, for the log.
pub fn name(hash: u128) -> Result<String> {
    let connection = Connection::open()?;
    let rows = connection.run(&NAME, &[Some(uuid(hash))], false)?;
    Ok(rows.text(0, 0).map_or_else(String::new, decode))
}

macro_rules! adoptable {
    ($reverts:literal) => {
        statement!(
            [pg_sys::UUIDARRAYOID],
            "select key_hash, user_id, ttl, version, generation, deadline, session",
            $reverts,
            " from presence.member where key_hash operator(pg_catalog.=) any ($1) and not _presence._has_slot(key_hash) \
             order by key_hash for no key update skip locked"
        )
    };
}
static ADOPTABLE: Statement = adoptable!(", reverts");
static ADOPTABLE_OF_OLD: Statement = adoptable!("");

/// Give slots to these members, who have none: after a start without saved leases, or when slots were full. Their rows
/// are locked, so what we read is the newest version. Returns how many got one.
pub fn adopt(extension: &Extension, keys: &[u128]) -> Result<u64> {
    let connection = Connection::open()?;
    let has_notes = extension.has_later_columns;
    let statement = if has_notes { &ADOPTABLE } else { &ADOPTABLE_OF_OLD };
    let rows = connection.run(statement, &[Some(uuids(keys))], true)?;
    let now = clock::boot();
    for row in 0..rows.count {
        let owner = rows.text(row, 1).map_or(0, |owner| extension.owner_hash(owner));
        let Some(hash) = rows.uuid(row, 0) else { continue };
        // SAFETY: an interval.
        let ttl = rows.get(row, 2).map_or(0, |ttl| unsafe { interval_of(ttl) } as u64);
        let lease = member::liveness::lease_of_query(&rows, row, [3, 4, 5, 6]);
        let key = extension.key_of(hash);
        let deadline = member::liveness::effective_deadline(&key, None, &lease, now).unwrap_or(CLAIMED);
        let slot = Lease {
            deadline,
            last_seen: match deadline {
                CLAIMED => now,
                // As in the row.
                _ if lease.is_fixed => 0,
                deadline => deadline.saturating_sub(ttl),
            },
            ttl: if lease.is_fixed { 0 } else { ttl },
            version: lease.version,
            generation: lease.generation,
            owner,
            session: lease.session,
            reverts_at: if has_notes { reverting::moment(&rows, row, 7) } else { 0 },
            changed_at: now,
            pins: 0,
        };
        if leases().apply_present(&key, &slot) == crate::lease::table::Applied::Full {
            return Ok(row as u64);
        }
    }
    Ok(rows.count as u64)
}

/// Free the slots without a row. Such a slot is left over from a change that lost a race, or its DELETE was ours and
/// has made it a tombstone, which goes once no older change can commit.
pub fn free_rowless(extension: &Extension, due: &Due) -> Result<()> {
    for batch in due.slots.chunks(BATCH) {
        let keys: Vec<u128> = batch.iter().map(|(key, _)| key.hash).collect();
        let connection = Connection::open()?;
        let rows = connection.run(&PRESENT, &[Some(uuids(&keys))], false)?;
        let present: HashSet<u128> = rows.uuids(0).into_iter().collect();
        for (key, lease) in batch.iter().filter(|(key, _)| !present.contains(&key.hash)) {
            if leases().claim(key, lease.generation, clock::boot(), false) {
                extension.database.free_lease(key, lease.version);
            }
        }
    }
    Ok(())
}

static CONSTRAINTS: Statement = Statement {
    sql: c"select 'set constraints ' operator(pg_catalog.||)
                  pg_catalog.string_agg(pg_catalog.format('%I.%I', n.nspname, c.conname), ', ')
                  operator(pg_catalog.||) ' immediate'
           from pg_catalog.pg_constraint c
                join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) c.connamespace
           where c.condeferrable and (c.confrelid operator(pg_catalog.=) 'presence.member'::pg_catalog.regclass
                                      or c.conrelid operator(pg_catalog.=) 'presence.member'::pg_catalog.regclass)",
    arguments: &[],
};

/// The deferred constraints of `member`, which must be checked now and not when the caller commits.
fn constraints() -> Result<CString> {
    let connection = Connection::open()?;
    let rows = connection.run(&CONSTRAINTS, &[], false)?;
    Ok(CString::new(rows.text(0, 0).unwrap_or_default()).unwrap_or_default())
}

/// SQL `presence.sweep()`: what the worker does, here and now. What does not fit into the event buffer, or fails, is
/// left to the worker. Returns how many members were removed.
pub fn sweep_now(extension: &Extension) -> Result<usize> {
    let before = constraints()?;
    let mut walk = ExpiredScan::start(extension, true, extension.database.slotless.load(Acquire) > 0);
    let mut sweep = SweepNow { free: extension.database.ring().free(), left: 0, why: String::new() };
    let mut removed = 0;
    while let Some(due) = as_role(extension.owner_role, || walk.next(extension, |_| false))? {
        removed += sweep.each(&due.keys, |part, room| delete(extension, part, room, &before));
        sweep.each(&due.reverting, |part, room| reverting::revert(extension, part, room, &before));
    }
    if sweep.left > 0 {
        pgrx::warning!("presence_ext: members that could not be removed: {}: {}", sweep.left, sweep.why);
    }
    Ok(removed)
}

struct SweepNow {
    /// Free bytes in the event buffer.
    free: u64,
    left: usize,
    why: String,
}

impl SweepNow {
    /// Returns for how many it succeeded.
    fn each(&mut self, keys: &[u128], sweep: impl Fn(&[u128], Budget) -> Result<Swept>) -> usize {
        let mut done = 0;
        let mut parts: Vec<&[u128]> = Due::batches(keys).collect();
        while let Some(part) = parts.pop() {
            let room = Budget { together: self.free, alone: self.free };
            match attempt(|| sweep(part, room)) {
                Ok(swept) => {
                    self.free = self.free.saturating_sub(swept.bytes);
                    done += swept.done.len();
                }
                Err(failure) if failure.passing => failure.raise(),
                Err(failure) if part.len() == 1 => {
                    self.left += 1;
                    self.why = failure.message;
                }
                Err(_) => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
            }
        }
        done
    }
}
