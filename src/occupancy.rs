//! How many are in a room: counted in one pass over its rows, because a room may have a hundred thousand.

use crate::authorizer::{self, Action};
use crate::clock;
use crate::error::Result;
use crate::extension::{self, Extension};
use crate::identity;
use crate::lease::rule::RowLease;
use crate::lease::shared::leases;
use crate::lease::table::Key;
use crate::member::row::Column;
use crate::member::{lease, scan, validate};
use crate::room;
use crate::sqlfn::{Call, hash_of};
use crate::visibility::{self, Visibility};
use pgrx::pg_sys::{self, Datum};

/// SQL `_presence._full_occupancy(room)`: the numbers of all members, if the room's count_audience lets the caller
/// have them; else of those whom the built-in policies show. No row where SQL must count, under other policies.
fn sql_full_occupancy(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let Some(room) = call.text(0) else { return call.rows([]) };
    validate::name("room", room)?;
    let identity = identity::current(&extension)?;
    let tokens = identity.tokens(&identity.rooms(&extension)?)?;
    let may_read = identity.service || authorizer::allows(room, Action::Read)?;
    let all = may_read && may_count(&extension, room, &tokens)?;
    // SAFETY: a look-up in shared memory. On a standby SQL says best that unlogged tables cannot be read.
    let standby = unsafe { pg_sys::RecoveryInProgress() };
    if standby || !(all || visibility::is_by_built_in_policies(&extension, &identity)?) {
        return call.rows([]);
    }
    let visibility =
        if all { Visibility::all() } else { Visibility::of(&identity, if may_read { &tokens } else { &[] }) };
    let [members, users] = count(&extension, room, visibility)?;
    call.rows([vec![Some(Datum::from(members)), Some(Datum::from(users))]])
}

/// Whether the room's count_audience lets somebody with these tokens have the numbers.
fn may_count(extension: &Extension, room: &[u8], tokens: &[Vec<u8>]) -> Result<bool> {
    let audience = room::count_audience(extension, room)?.unwrap_or_default();
    Ok(audience.iter().any(|token| tokens.contains(token)))
}

/// A row that the caller may see, whose lease is still to be looked up.
struct Candidate {
    key: Key,
    lease: RowLease,
    /// A keyed hash: among a million users two are the same once in ten million rooms.
    user: u64,
}

/// Leases looked up together: their slots are on their way from memory while others are counted.
const TOGETHER: usize = 32;

/// Members and users.
fn count(extension: &Extension, room: &[u8], mut visibility: Visibility) -> Result<[i64; 2]> {
    let read_since = clock::read_since();
    let mut candidates = Vec::with_capacity(TOGETHER);
    let mut users = Vec::new();
    scan::of_room(extension, room, |row| {
        if visibility.shows(row) {
            let Some(hash) = row.get(Column::KeyHash) else { return Ok(true) };
            // SAFETY: a uuid.
            let key = extension.key_of(unsafe { hash_of(hash) });
            leases().prefetch(&key, false);
            let user = extension.owner_hash(row.text(Column::UserId).unwrap_or_default());
            candidates.push(Candidate { key, lease: row.lease_read(read_since), user });
            if candidates.len() == TOGETHER {
                pgrx::check_for_interrupts!();
                take_living(&mut candidates, &mut users);
            }
        }
        Ok(true)
    })?;
    take_living(&mut candidates, &mut users);
    let members = users.len();
    users.sort_unstable();
    users.dedup();
    Ok([members as i64, users.len() as i64])
}

/// Whose members are alive by the clock, of these.
fn take_living(candidates: &mut Vec<Candidate>, users: &mut Vec<u64>) {
    candidates.iter().for_each(|candidate| leases().prefetch(&candidate.key, true));
    let now = clock::boot();
    users.extend(candidates.drain(..).filter_map(|candidate| {
        let slot = lease::slot(&candidate.key, &candidate.lease);
        lease::counting(&candidate.key, slot.as_ref(), &candidate.lease, now).map(|_| candidate.user)
    }));
}

crate::sql_function!(presence_full_occupancy, pg_finfo_presence_full_occupancy, sql_full_occupancy);
