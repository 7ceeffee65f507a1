//! Makes rows what readers see them to be already: those of which something has reverted by now, with an event each.

use super::sweeper::{Budget, Swept, size_of_event, sweeping};
use crate::clock;
use crate::error::Result;
use crate::extension::Extension;
use crate::lease::rule::RowLease;
use crate::member::intent::{self, Intent};
use crate::member::liveness;
use crate::member::revert::{self, Given, Set, Wish};
use crate::pg::datum::{bytes_of, uuids};
use crate::pg::rows::Rows;
use crate::pg::spi::{Connection, Statement};
use crate::shared::leases::leases;
use pgrx::pg_sys;
use std::collections::HashSet;
use std::ffi::CStr;
use std::rc::Rc;

/// In the common lock order; rows that are locked are left for the next time.
static LOCK: Statement = Statement {
    sql: c"select key_hash, version, generation, deadline, session,
                  room, member_id, connection_id, user_id, status, state, metadata, audience, reverts
           from presence.member where key_hash operator(pg_catalog.=) any ($1) and reverts is not null
           order by key_hash for no key update skip locked",
    arguments: &[pg_sys::UUIDARRAYOID],
};

/// The values are set by the statement, so that other people's triggers see them.
static REVERT: Statement = Statement {
    sql: c"update presence.member
           set status = _presence._current_status(status, reverts, key_hash, version),
               state = _presence._current_state(state, reverts, key_hash, version)
           where key_hash operator(pg_catalog.=) any ($1) returning key_hash",
    arguments: &[pg_sys::UUIDARRAYOID],
};

/// When something in a row reverts next, by the boot clock; 0 is never.
pub fn moment(rows: &Rows, row: usize, column: usize) -> u64 {
    // SAFETY: a jsonb.
    rows.get(row, column).map_or(0, |reverts| revert::next_of(&unsafe { bytes_of(reverts) }))
}

/// Revert these members, if it is time and there is room for their events.
pub fn revert(extension: &Extension, keys: &[u128], room: Budget, before: &CStr) -> Result<Swept> {
    sweeping(extension, before, |connection, swept| {
        let as_of = clock::boot();
        let due = lock(extension, connection, keys, room, as_of, swept)?;
        if due.is_empty() {
            return Ok(());
        }
        let members: Vec<u128> = due.iter().map(|(hash, _)| *hash).collect();
        let set = Set { status: false, state: Given::Nothing };
        let wish = Some(Rc::new(Wish { as_of, set, revert_after: None }));
        let _intent = intent::set(members.clone(), Intent { reverting: true, wish, ..Intent::default() });
        swept.done = connection.run(&REVERT, &[Some(uuids(&members))], true)?.uuids(0);
        let done: HashSet<&u128> = swept.done.iter().collect();
        // A member whose lease has run out meanwhile leaves as it is.
        let is_kept = |(hash, lease): &(u128, RowLease)| {
            !done.contains(hash) && liveness::deadline(&extension.key_of(*hash), lease).is_some()
        };
        swept.kept = due.iter().filter(|row| is_kept(row)).map(|(hash, _)| *hash).collect();
        Ok(())
    })
}

/// Lock the rows that are due, as far as their events fit.
fn lock(
    extension: &Extension,
    connection: &Connection,
    keys: &[u128],
    room: Budget,
    now: u64,
    swept: &mut Swept,
) -> Result<Vec<(u128, RowLease)>> {
    let rows = connection.run(&LOCK, &[Some(uuids(keys))], true)?;
    let mut due = Vec::new();
    for row in 0..rows.count {
        let Some(hash) = rows.uuid(row, 0) else { continue };
        let (key, lease) = (extension.key_of(hash), liveness::lease_of_query(&rows, row, [1, 2, 3, 4]));
        let at = moment(&rows, row, 13);
        if at == 0 || at > now {
            // Recorded before the server was started, and the wall clock was set since.
            leases().note_revert(&key, lease.version, at);
        } else if liveness::deadline(&key, &lease).is_some()
            && swept.fits(extension, room, hash, size_of_event(&rows, row))
        {
            due.push((hash, lease));
        }
    }
    Ok(due)
}
