//! How many are in a room. The full numbers of a large room are those that the worker keeps, at most sweep_interval and
//! notify_delay behind; otherwise they are counted in one pass over its rows, as a room may have a hundred thousand.

use crate::access::authorizer::{self, Action};
use crate::access::identity;
use crate::access::visibility::{self, Sight, Visibility};
use crate::error::Result;
use crate::event::transaction;
use crate::extension::{self, Extension};
use crate::functions::copy;
use crate::member::{liveness, pages, room_defaults, user_rooms};
use crate::nodes;
use crate::pg::datum::varlena;
use crate::pg::function::Call;
use crate::pg::role::as_role;
use crate::pg::snapshot::is_one_for_all;
use crate::pg::spi::{Connection, Statement};
use crate::shared::leases::leases;
use crate::shared::occupancy::Numbers;
use crate::worker::occupancy::change::key;
use crate::{clock, settings, shared, validate};
use pgrx::pg_sys::{self, Datum};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::Ordering::*;

/// SQL `_presence._full_occupancy(room)`: counts all members if the room's count_audience lets the caller know,
/// otherwise those that the built-in policies show. No row if SQL must count, under other policies.
fn sql_full_occupancy(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let Some(room) = call.text(0) else { return call.rows([]) };
    validate::name("room", room)?;
    let identity = identity::current(&extension)?;
    let tokens = identity.tokens(&user_rooms::all_rooms(&identity, &extension)?)?;
    let may_read = identity.service || authorizer::allows(room, Action::Read)?;
    let all = may_read && may_count(room, &tokens)?;
    if copy::is_read()? {
        return if all { call.rows([counted(&COPIED, &extension, room)?]) } else { call.rows([]) };
    }
    if !(all || visibility::is_by_built_in_policies(&extension, &identity)?) {
        return call.rows([]);
    }
    // Members of several servers are counted by SQL: all, or those that the policies show.
    if nodes::scan::are_there(extension.database) {
        let is_all = all || identity.service;
        return if is_all { call.rows([counted(&ANYWHERE, &extension, room)?]) } else { call.rows([]) };
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

/// Members of all servers.
static ANYWHERE: Statement = Statement {
    sql: c"select pg_catalog.count(*), pg_catalog.count(distinct here.user_id)
           from (select user_id from presence.member
                 where room operator(pg_catalog.=) $1
                   and _presence._is_alive(key_hash, version, generation, deadline, session)
                 union all
                 select user_id from presence.shared
                 where room operator(pg_catalog.=) $1 and _presence._is_elsewhere(node)) here",
    arguments: &[pg_sys::TEXTOID],
};

/// The number of members and users, by one of these statements.
fn counted(statement: &'static Statement, extension: &Extension, room: &[u8]) -> Result<Vec<Option<Datum>>> {
    as_role(extension.owner_role, || {
        let connection = Connection::open()?;
        let rows = connection.run(statement, &[Some(varlena(room))], false)?;
        Ok([0, 1].map(|column| rows.get(0, column)).to_vec())
    })
}

/// A room with fewer members is counted as fast as its counts are looked up.
const LARGE: i64 = 500;
/// An idle worker wakes at least this often.
const IDLE_WORKER: u64 = 1_000_000;

/// The counts that the worker keeps for rooms that are asked for.
fn kept(extension: &Extension, room: &[u8]) -> Option<Numbers> {
    let (database, room, now) = (extension.database, key(extension, room), clock::boot());
    database.numbers().note_asked(room, now);
    database.read_numbers(|table| table.get(room, now))
}

/// Whether they are what a count would give: the worker is not behind, and the caller has no older snapshot and no
/// changes of its own.
fn are_kept_true(extension: &Extension) -> bool {
    let database = extension.database;
    let now = clock::boot();
    let behind = settings::sweep_interval() + settings::notify_delay();
    let idle = if database.ring().used() == 0 { IDLE_WORKER } else { 0 };
    settings::fast_path()
        && !is_one_for_all()
        && database.worker.pid.load(Acquire) != 0
        && database.owed_resync().is_none()
        && now <= database.numbers().current() + behind + idle
        && now <= leases().earliest(extension.database_index).saturating_add(behind)
        && transaction::is_all_published(database)
}

/// Whether the room's count_audience gives the numbers to a caller with these tokens.
fn may_count(room: &[u8], tokens: &[Vec<u8>]) -> Result<bool> {
    let audience = room_defaults::count_audience(room)?.unwrap_or_default();
    Ok(audience.iter().any(|token| tokens.contains(token)))
}

/// The number of members and users.
fn count(extension: &Extension, room: &[u8], mut visibility: Visibility) -> Result<[i64; 2]> {
    let read_since = clock::read_since();
    let start = liveness::start(extension.database_index);
    let is_calm = !is_one_for_all() && !extension.database.may_have_changed(read_since);
    // A keyed hash: among a million users two collide in one of ten million rooms.
    let hasher = RandomState::new();
    let (mut users, mut failure) = (Vec::new(), None);
    pages::of_room(extension, room, |rows| {
        let now = clock::boot();
        rows.retain(|row| {
            let sight = visibility.sight(row.user_id, row.audience);
            let is_seen = sight.unwrap_or_else(|error| {
                failure = Some(error);
                Sight::None
            }) != Sight::None;
            let is_here = is_calm && liveness::is_shown_by_row(&row.lease_read(read_since), &start, now);
            if is_seen && is_here {
                users.push(hasher.hash_one(row.user_id));
            }
            is_seen && !is_here
        });
        if let Some(error) = failure.take() {
            return Err(error);
        }
        // Slots are prefetched while others are looked up.
        for has_bucket in [false, true] {
            rows.iter().for_each(|row| leases().prefetch(&extension.key_of(row.hash), has_bucket));
        }
        for row in rows {
            let (key, lease) = (extension.key_of(row.hash), row.lease_read(read_since));
            let slot = liveness::slot(&key, &lease);
            if liveness::effective_deadline(&key, slot.as_ref(), &lease, now).is_some() {
                users.push(hasher.hash_one(row.user_id));
            }
        }
        Ok(())
    })?;
    Ok([users.len() as i64, distinct(&users) as i64])
}

/// The number of distinct hashes. (Sorting them would take as long as everything else.)
fn distinct(hashes: &[u64]) -> usize {
    const NONE: u64 = 0;
    let mut places = vec![NONE; (2 * hashes.len()).next_power_of_two()];
    let last = places.len() - 1;
    let mut count = 0;
    for hash in hashes {
        let hash = *hash.max(&1);
        let mut at = hash as usize & last;
        while places[at] != NONE && places[at] != hash {
            at = (at + 1) & last;
        }
        count += usize::from(places[at] == NONE);
        places[at] = hash;
    }
    count
}

crate::sql_function!(presence_full_occupancy, pg_finfo_presence_full_occupancy, sql_full_occupancy);
