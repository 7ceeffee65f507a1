//! How many members there may be: in a room (`max_members`), and of a user (`presence.max_per_user`).
//!
//! Who enters takes a seat in shared memory (`shared::seats`) and counts. A seat is taken until the transaction ends, so
//! nobody waits for anybody; it is free again once a leave is committed. Members whose lease has run out do not count.

use super::room_defaults::Rooms;
use crate::access::identity::Identity;
use crate::error::{Error, Result};
use crate::event::transaction;
use crate::extension::{Extension, Purpose};
use crate::lease::slot::Key;
use crate::nodes;
use crate::pg::datum::varlena;
use crate::pg::own_lock;
use crate::pg::role::as_role;
use crate::pg::snapshot::with_new_snapshot;
use crate::pg::spi::{Connection, Statement};
use crate::settings;
use pgrx::pg_sys::{self, Datum};

/// $3: include members whose lease has run out, which is faster. At most $2 are counted.
static IN_ROOM: Statement = Statement {
    sql: c"select pg_catalog.count(*) from (select 1 from presence.member where room operator(pg_catalog.=) $1 \
               and ($3 or _presence._is_alive(key_hash, version, generation, deadline, session)) limit $2) here",
    arguments: &[pg_sys::TEXTOID, pg_sys::INT8OID, pg_sys::BOOLOID],
};

static OF_USER: Statement = Statement {
    sql: c"select pg_catalog.count(*) from (select 1 from presence.member where user_id operator(pg_catalog.=) $1 \
               and ($3 or _presence._is_alive(key_hash, version, generation, deadline, session)) limit $2) own",
    arguments: &[pg_sys::TEXTOID, pg_sys::INT8OID, pg_sys::BOOLOID],
};

/// The same with members of other servers, whose leases are unknown.
static IN_ROOM_ANYWHERE: Statement = Statement {
    sql: c"select pg_catalog.count(*) from ((select 1 from presence.member where room operator(pg_catalog.=) $1 \
               and ($3 or _presence._is_alive(key_hash, version, generation, deadline, session)) limit $2) union all \
               (select 1 from presence.shared where room operator(pg_catalog.=) $1 and _presence._is_elsewhere(node) limit $2)) here",
    arguments: &[pg_sys::TEXTOID, pg_sys::INT8OID, pg_sys::BOOLOID],
};

static OF_USER_ANYWHERE: Statement = Statement {
    sql: c"select pg_catalog.count(*) from ((select 1 from presence.member where user_id operator(pg_catalog.=) $1 \
               and ($3 or _presence._is_alive(key_hash, version, generation, deadline, session)) limit $2) union all \
               (select 1 from presence.shared where user_id operator(pg_catalog.=) $1 and _presence._is_elsewhere(node) limit $2)) own",
    arguments: &[pg_sys::TEXTOID, pg_sys::INT8OID, pg_sys::BOOLOID],
};

/// After a member entered: take a seat in a limited room, or refuse it. Members inside can be renewed and changed even
/// if the room is full.
pub fn check_room(extension: &Extension, rooms: &Rooms, key: &Key, room: &[u8]) -> Result<()> {
    let Some(limit) = rooms.defaults(room)?.max_members else { return Ok(()) };
    let members = if nodes::scan::are_there(extension.database) { &IN_ROOM_ANYWHERE } else { &IN_ROOM };
    as_role(extension.owner_role, || {
        let connection = Connection::open()?;
        let place = extension.hash(Purpose::RoomSeats, &[room]);
        take_seat(&connection, key, place, Limit { what: "room", limit, members, of: room })
    })
}

/// A single user must not fill all slots.
pub fn check_user(extension: &Extension, identity: &Identity, key: &Key, user_id: &[u8]) -> Result<()> {
    let limit = settings::max_per_user();
    if limit == 0 || identity.service {
        return Ok(());
    }
    let members = if nodes::scan::are_there(extension.database) { &OF_USER_ANYWHERE } else { &OF_USER };
    as_role(extension.owner_role, || {
        let connection = Connection::open()?;
        let place = extension.hash(Purpose::UserSeats, &[user_id]);
        take_seat(&connection, key, place, Limit { what: "user", limit, members, of: user_id })
    })
}

struct Limit<'a> {
    what: &'static str,
    limit: i32,
    /// Counts the members of this room or user.
    members: &'static Statement,
    of: &'a [u8],
}

/// Take a seat for the member, whose row is written, if there is one.
fn take_seat(connection: &Connection, key: &Key, place: u64, limit: Limit) -> Result<()> {
    let (mut others, crowded) = transaction::take_seat(key, place);
    if crowded {
        // Some transaction has seats without an entry, which nobody sees: it holds the lock instead.
        if !own_lock::try_exclusive(place) {
            transaction::leave_seat();
            return Err(Error::TooManySeats);
        }
        others = transaction::others_seats(place);
    }
    let within = with_new_snapshot(|| {
        let seats: i64 = others
            .iter()
            .filter(|(transaction, _)| is_in_progress(*transaction))
            .map(|(_, count)| *count as i64)
            .sum();
        let count = |expired: bool| {
            let most = Datum::from(limit.limit as i64 + 1);
            let values = [Some(varlena(limit.of)), Some(most), Some(Datum::from(expired))];
            let rows = connection.run(limit.members, &values, false)?;
            Ok(rows.number(0, 0) as i64)
        };
        let fits = |members: i64| members + seats <= limit.limit as i64;
        Ok(fits(count(true)?) || fits(count(false)?))
    })?;
    if !within {
        // At once, not only at the abort, so that it is in nobody's way.
        transaction::leave_seat();
        return Err(Error::TooManyMembers { what: limit.what, limit: limit.limit });
    }
    Ok(())
}

/// Whether the active snapshot does not see the changes of this transaction, because it is still running.
fn is_in_progress(transaction: u32) -> bool {
    // SAFETY: a snapshot is active, and of the kind that knows transactions.
    unsafe {
        pg_sys::XidInMVCCSnapshot(pg_sys::TransactionId::from(transaction), pg_sys::GetActiveSnapshot())
    }
}
