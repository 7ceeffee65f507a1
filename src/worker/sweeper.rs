//! The sweeper: deletes members whose lease has run out or whose session is over, and frees slots of the dead.
//!
//! Readers do not depend on it: an expired member is invisible from its deadline on. The sweeper makes the leave.

use crate::clock;
use crate::error::Result;
use crate::extension::Extension;
use crate::lease::shared::leases;
use crate::lease::table::{CLAIMED, Key, Lease, TOMBSTONE};
use crate::member::intent::{self, Intent};
use crate::member::{self, session};
use crate::spi::{self, Connection, Statement};
use crate::sqlfn::{hash_of, uuids};
use pgrx::pg_sys::{self, Datum};
use std::collections::HashSet;
use std::sync::atomic::Ordering::*;

/// Rows deleted in one transaction, at most.
const BATCH: usize = 1_000;

/// Rows in key order, those that somebody has locked left for the next time; of these as many as fit into
/// $2 bytes of events. The claim looks at the rows as locked: before the lock somebody may be renewing them.
static DELETE: Statement = Statement {
    sql: c"with locked as materialized (
               select key_hash, version, generation, deadline, session,
                      pg_catalog.pg_column_size(state) operator(pg_catalog.+) pg_catalog.pg_column_size(metadata)
                          as size
               from presence.member where key_hash operator(pg_catalog.=) any ($1)
               order by key_hash for update skip locked),
           fitting as materialized (
               select l.*, pg_catalog.sum(size operator(pg_catalog.+) 400) over (order by key_hash) as total
               from locked l),
           claimed as materialized (
               select key_hash from fitting
               where total operator(pg_catalog.<=) $2
                 and presence._claim(key_hash, version, generation, deadline, session))
           delete from presence.member m using claimed
           where m.key_hash operator(pg_catalog.=) claimed.key_hash",
    arguments: &[pg_sys::UUIDARRAYOID, pg_sys::INT8OID],
};

static PRESENT: Statement = Statement {
    sql: c"select key_hash from presence.member where key_hash operator(pg_catalog.=) any ($1)",
    arguments: &[pg_sys::UUIDARRAYOID],
};

static SLOTLESS: Statement = Statement {
    sql: c"select key_hash from presence.member where not presence._has_slot(key_hash)",
    arguments: &[],
};

/// Delete these members, if their time is over. Returns how many were. Runs as the extension's owner.
pub fn delete(extension: &Extension, keys: &[u128], bytes: u64) -> Result<usize> {
    if keys.is_empty() {
        return Ok(0);
    }
    spi::as_role(extension.owner, || {
        let _intent = intent::set(keys.to_vec(), Intent { expiring: true, ..Intent::default() });
        let values = [Some(uuids(keys)), Some(Datum::from(bytes as i64))];
        let deleted = Connection::open()?.run(&DELETE, &values, true)?.count;
        crate::injection::stall("claimed");
        Ok(deleted)
    })
}

/// What is due for deletion now, in batches in key order.
pub struct Due {
    pub batches: Vec<Vec<u128>>,
    /// Members of sessions that are over were found: look again whether all are gone.
    pub sessions_left: bool,
    /// How late the oldest of them is, in microseconds.
    pub lateness: u64,
    /// The slots among them, to free where no row is left.
    slots: Vec<(Key, Lease)>,
}

/// Look through the leases, and for rows without one; `again`: also for members of sessions that are over, though no
/// other session ended since.
pub fn due(extension: &Extension, again: bool) -> Result<Due> {
    let database = extension.database;
    let now = clock::boot();
    let relation = u32::from(extension.member);
    let mut slots = leases().expired(extension.database_index, now);
    slots.retain(|(key, _)| key.relation == relation);
    let sessions = database.ended_sessions.swap(0, AcqRel) > 0 || again;
    let mut sessions_left = false;
    if sessions {
        let live = session::live(extension);
        let over = leases().collect(|key, lease| {
            key.database == extension.database_index
                && key.relation == relation
                && lease.session != 0
                && lease.deadline != TOMBSTONE
                && !live.contains(&lease.session)
        });
        // Some may be locked, by a change that is about to commit or fail: look again until none is left.
        sessions_left = !over.is_empty();
        slots.extend(over);
    }
    let mut keys: Vec<u128> = slots.iter().map(|(key, _)| key.hash).collect();
    keys.extend(slotless(extension)?);
    keys.sort_unstable();
    keys.dedup();
    let ended = |lease: &Lease| lease.last_seen.saturating_add(lease.ttl);
    let lateness = slots.iter().map(|(_, lease)| now.saturating_sub(ended(lease))).max().unwrap_or(0);
    Ok(Due { sessions_left, lateness, batches: keys.chunks(BATCH).map(<[u128]>::to_vec).collect(), slots })
}

/// Members whose lease lives in the row. When there are none left, nobody need look for them.
fn slotless(extension: &Extension) -> Result<Vec<u128>> {
    let known = extension.database.slotless.load(Acquire);
    if known == 0 {
        return Ok(Vec::new());
    }
    let connection = Connection::open()?;
    let rows = connection.run(&SLOTLESS, &[], false)?;
    if rows.count == 0 {
        let _ = extension.database.slotless.compare_exchange(known, 0, AcqRel, Relaxed);
    }
    // SAFETY: a uuid.
    Ok((0..rows.count).filter_map(|row| rows.get(row, 0)).map(|hash| unsafe { hash_of(hash) }).collect())
}

static ADOPTABLE: Statement = Statement {
    sql: c"select key_hash, user_id, ttl, version, generation, deadline, session from presence.member \
           where not presence._has_slot(key_hash) limit 10000 for no key update skip locked",
    arguments: &[],
};

/// Give slots to members that have none: after a start without saved leases, and when slots were all taken. Their
/// rows are locked, so what we read of them is the newest. Returns whether there may be more.
pub fn adopt(extension: &Extension) -> Result<bool> {
    let connection = Connection::open()?;
    let rows = connection.run(&ADOPTABLE, &[], true)?;
    let now = clock::boot();
    for row in 0..rows.count {
        let owner = rows.text(row, 1).map_or(0, |owner| extension.owner_hash(owner));
        // SAFETY: a uuid and an interval.
        let (Some(hash), ttl) = (unsafe {
            (
                rows.get(row, 0).map(|hash| hash_of(hash)),
                rows.get(row, 2).map_or(0, |ttl| crate::sqlfn::interval_of(ttl) as u64),
            )
        }) else {
            continue;
        };
        let lease = member::lease::found(&rows, row, [3, 4, 5, 6]);
        let key = extension.key_of(hash);
        let deadline = member::lease::counting(&key, None, &lease, now).unwrap_or(CLAIMED);
        let slot = Lease {
            deadline,
            last_seen: if deadline == CLAIMED { now } else { deadline.saturating_sub(ttl) },
            ttl,
            version: lease.version,
            generation: lease.generation,
            owner,
            session: lease.session,
            changed_at: now,
            pins: 0,
        };
        if leases().apply_present(&key, &slot) == crate::lease::table::Applied::Full {
            return Ok(false);
        }
    }
    Ok(rows.count == 10_000)
}

/// Free the slots whose rows are gone. A slot without a row is left over from a change that lost a race, or its
/// DELETE was ours and has made it a tombstone, which goes once nothing older can commit.
pub fn free_rowless(due: &Due) -> Result<()> {
    let claimed: Vec<&(Key, Lease)> = due.slots.iter().collect();
    for batch in claimed.chunks(BATCH) {
        let keys: Vec<u128> = batch.iter().map(|(key, _)| key.hash).collect();
        let connection = Connection::open()?;
        let rows = connection.run(&PRESENT, &[Some(uuids(&keys))], false)?;
        // SAFETY: a uuid.
        let present: HashSet<u128> =
            (0..rows.count).filter_map(|row| rows.get(row, 0)).map(|hash| unsafe { hash_of(hash) }).collect();
        for (key, lease) in batch.iter().filter(|(key, _)| !present.contains(&key.hash)) {
            if leases().claim(key, lease.generation, clock::boot(), false) {
                leases().free(key, lease.version);
            }
        }
    }
    Ok(())
}

/// SQL `presence.sweep()`: what the worker does, here and now.
pub fn sweep_now(extension: &Extension) -> Result<usize> {
    let due = spi::as_role(extension.owner, || due(extension, true))?;
    let mut deleted = 0;
    for batch in &due.batches {
        deleted += delete(extension, batch, i64::MAX as u64)?;
    }
    Ok(deleted)
}
