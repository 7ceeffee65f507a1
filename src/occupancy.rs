//! How many are in a room: counted in one pass over its rows, because a room may have a hundred thousand.

use crate::authorizer::{self, Action};
use crate::clock;
use crate::error::Result;
use crate::extension::{self, Extension};
use crate::identity::{self, Identity};
use crate::lease::rule::RowLease;
use crate::lease::shared::leases;
use crate::lease::table::Key;
use crate::member::row::{Column, Row};
use crate::member::{lease, scan, validate};
use crate::policy;
use crate::settings;
use crate::spi::{self, Connection, Statement};
use crate::sqlfn::{Call, hash_of, text_array, texts_of, varlena};
use pgrx::pg_sys::{self, Datum};

static MAY_COUNT: Statement = Statement {
    sql: c"select count_audience operator(pg_catalog.&&) $2 from presence.room where room operator(pg_catalog.=) $1",
    arguments: &[pg_sys::TEXTOID, pg_sys::TEXTARRAYOID],
};

/// SQL `presence._full_occupancy(room)`: the numbers of all members, if the room's count_audience lets the caller
/// have them; else of those whom the built-in policies show. No row where SQL must count, under other policies.
fn sql_full_occupancy(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let Some(room) = call.text(0) else { return call.rows([]) };
    validate::name("room", room)?;
    let identity = identity::current(&extension)?;
    let tokens = identity.tokens(&identity.rooms(&extension)?)?;
    let may_read = authorizer::allows(room, Action::Read);
    let all = may_read && may_count(&extension, room, &tokens)?;
    // SAFETY: a look-up in shared memory. On a standby SQL says best that unlogged tables cannot be read.
    let standby = unsafe { pg_sys::RecoveryInProgress() };
    if standby || !(all || may_scan(&extension)?) {
        return call.rows([]);
    }
    let sight = if all || identity.service {
        Sight::All
    } else {
        Sight::Some { caller: &identity, tokens: if may_read { &tokens } else { &[] }, last: None }
    };
    let numbers = count(&extension, room, sight)?;
    call.rows(numbers.map(|[members, users]| vec![Some(Datum::from(members)), Some(Datum::from(users))]))
}

/// Whether SQL would show the caller what the built-in policies say, and no less.
fn may_scan(extension: &Extension) -> Result<bool> {
    // SAFETY: a plain setting; where it is off, SQL refuses.
    let row_security = unsafe { pg_sys::row_security };
    Ok(settings::fast_path() && row_security && extension.may_read() && policy::is_builtin(extension)?)
}

fn may_count(extension: &Extension, room: &[u8], tokens: &[Vec<u8>]) -> Result<bool> {
    spi::as_role(extension.owner, || {
        let connection = Connection::open()?;
        let values = [Some(varlena(room)), Some(text_array(tokens))];
        Ok(connection.run(&MAY_COUNT, &values, false)?.get(0, 0).is_some_and(|may| may.value() as u8 != 0))
    })
}

/// Whom the caller may see.
enum Sight<'a> {
    All,
    /// One's own, and those shared with one of the tokens.
    Some {
        caller: &'a Identity,
        tokens: &'a [Vec<u8>],
        last: Option<(Vec<u8>, bool)>,
    },
}

impl Sight<'_> {
    fn sees(&mut self, row: &Row) -> bool {
        let Sight::Some { caller, tokens, last } = self else { return true };
        if row.text(Column::UserId).is_some_and(|owner| caller.is(owner)) {
            return true;
        }
        // Most members of a room have the same audience.
        let audience = row.varlena(Column::Audience).unwrap_or_default();
        match last {
            Some((known, answer)) if known == audience => *answer,
            _ => {
                let shared = row.get(Column::Audience).is_some_and(|audience| shares(audience, tokens));
                *last = Some((audience.to_vec(), shared));
                shared
            }
        }
    }
}

fn shares(audience: Datum, tokens: &[Vec<u8>]) -> bool {
    // SAFETY: the column is text[].
    let audience = unsafe { texts_of(audience) }.unwrap_or_default();
    audience.iter().any(|given| tokens.iter().any(|token| token == given))
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

/// Members and users. None where SQL must count.
fn count(extension: &Extension, room: &[u8], mut sight: Sight) -> Result<Option<[i64; 2]>> {
    let read_since = clock::read_since();
    let mut candidates = Vec::with_capacity(TOGETHER);
    let mut users = Vec::new();
    let scanned = scan::of_room(extension, room, |row| {
        if sight.sees(row) {
            let Some(hash) = row.get(Column::KeyHash) else { return Ok(()) };
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
        Ok(())
    })?;
    take_living(&mut candidates, &mut users);
    let members = users.len();
    users.sort_unstable();
    users.dedup();
    Ok(scanned.then_some([members as i64, users.len() as i64]))
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
