//! How many are in a room. The full numbers of a large room are those that the worker keeps, at most sweep_interval and
//! notify_delay behind; else they are counted in one pass over its rows, because a room may have a hundred thousand.

use crate::access::authorizer::{self, Action};
use crate::access::identity;
use crate::access::visibility::{self, Visibility};
use crate::error::Result;
use crate::event::transaction;
use crate::extension::{self, Extension};
use crate::functions::copy;
use crate::lease::rule::RowLease;
use crate::lease::slot::Key;
use crate::member::column::Column;
use crate::member::{liveness, room_defaults, scan, user_rooms};
use crate::pg::datum::{hash_of, varlena};
use crate::pg::function::Call;
use crate::pg::role::as_role;
use crate::pg::spi::{Connection, Statement};
use crate::shared::leases::leases;
use crate::shared::occupancy::Numbers;
use crate::worker::occupancy::change::key;
use crate::{clock, settings, shared, validate};
use pgrx::pg_sys::{self, Datum};
use std::sync::atomic::Ordering::*;

/// SQL `_presence._full_occupancy(room)`: the numbers of all members, if the room's count_audience lets the caller
/// have them; else of those whom the built-in policies show. No row where SQL must count, under other policies.
fn sql_full_occupancy(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let Some(room) = call.text(0) else { return call.rows([]) };
    validate::name("room", room)?;
    let identity = identity::current(&extension)?;
    let tokens = identity.tokens(&user_rooms::all_rooms(&identity, &extension)?)?;
    let may_read = identity.service || authorizer::allows(room, Action::Read)?;
    let all = may_read && may_count(room, &tokens)?;
    if copy::is_read()? {
        return if all { call.rows([copied(&extension, room)?]) } else { call.rows([]) };
    }
    if !(all || visibility::is_by_built_in_policies(&extension, &identity)?) {
        return call.rows([]);
    }
    let answer =
        |[members, users]: [i64; 2]| call.rows([vec![Some(Datum::from(members)), Some(Datum::from(users))]]);
    if !(all || identity.service) {
        let visibility = Visibility::of(&identity, if may_read { &tokens } else { &[] });
        return answer(count(&extension, room, visibility)?);
    }
    let kept = kept(&extension, room);
    if let Some(numbers) = kept.filter(|_| are_kept_true(&extension)) {
        return answer([numbers.members.into(), numbers.users.into()]);
    }
    let numbers = count(&extension, room, Visibility::all())?;
    if kept.is_none() && numbers[0] >= LARGE && settings::fast_path() {
        let database = extension.database;
        database.change_numbers(|table| table.wish(room));
        shared::wake(&database.worker.process);
    }
    answer(numbers)
}

static COPIED: Statement = Statement {
    sql: c"select pg_catalog.count(*), pg_catalog.count(distinct user_id) from presence.shared
           where room operator(pg_catalog.=) $1 and _presence._is_heard(node)",
    arguments: &[pg_sys::TEXTOID],
};

/// All members and users that the copy has.
fn copied(extension: &Extension, room: &[u8]) -> Result<Vec<Option<Datum>>> {
    as_role(extension.owner_role, || {
        let connection = Connection::open()?;
        let rows = connection.run(&COPIED, &[Some(varlena(room))], false)?;
        Ok([0, 1].map(|column| rows.get(0, column)).to_vec())
    })
}

/// A room with fewer members is counted as fast as its numbers are kept.
const LARGE: i64 = 500;
/// An idle worker wakes at least this often.
const IDLE_WORKER: u64 = 1_000_000;

/// The numbers that the worker keeps for those who ask.
fn kept(extension: &Extension, room: &[u8]) -> Option<Numbers> {
    let (database, room, now) = (extension.database, key(extension, room), clock::boot());
    database.numbers().note_asked(room, now);
    database.read_numbers(|table| table.get(room, now))
}

/// Whether they are what they should be: the worker is not behind, and they are not to be those of a snapshot from before
/// or of this session's own changes.
fn are_kept_true(extension: &Extension) -> bool {
    let database = extension.database;
    let now = clock::boot();
    let behind = settings::sweep_interval() + settings::notify_delay();
    let idle = if database.ring().used() == 0 { IDLE_WORKER } else { 0 };
    // SAFETY: a plain read of this process's state.
    let sees_the_past = unsafe { pg_sys::XactIsoLevel } >= pg_sys::XACT_REPEATABLE_READ as i32;
    settings::fast_path()
        && !sees_the_past
        && database.worker.pid.load(Acquire) != 0
        && database.owed_resync().is_none()
        && now <= database.numbers().current() + behind + idle
        && now <= leases().earliest(extension.database_index).saturating_add(behind)
        && transaction::is_all_published(database)
}

/// Whether the room's count_audience lets somebody with these tokens have the numbers.
fn may_count(room: &[u8], tokens: &[Vec<u8>]) -> Result<bool> {
    let audience = room_defaults::count_audience(room)?.unwrap_or_default();
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
        let slot = liveness::slot(&candidate.key, &candidate.lease);
        liveness::effective_deadline(&candidate.key, slot.as_ref(), &candidate.lease, now)
            .map(|_| candidate.user)
    }));
}

crate::sql_function!(presence_full_occupancy, pg_finfo_presence_full_occupancy, sql_full_occupancy);
