//! `presence.heartbeat`: proof of life. One compare-and-swap in shared memory; no table, no
//! transaction id. Where no slot is free the lease is in the row, and renewed there.

use super::intent::{self, Intent};
use super::{holder, liveness};
use crate::access::identity::{self, Identity};
use crate::access::ownership;
use crate::error::{Error, Result};
use crate::event::transaction::{self, Pending};
use crate::extension::Extension;
use crate::lease::rule::RowLease;
use crate::lease::slot::{Key, Lease, NEVER, alive};
use crate::lease::table::{Applied, Heartbeat};
use crate::pg::datum::{self, uuid};
use crate::pg::function::Call;
use crate::pg::role::as_role;
use crate::pg::rows::Rows;
use crate::pg::spi::{Connection, Statement};
use crate::shared::leases::{awaited_key, leases};
use crate::{clock, validate};
use pgrx::pg_sys::{self, Datum};

/// How many members ahead a slot is prefetched.
const AHEAD: usize = 12;

/// Who renews, and whose members.
struct Heartbeats<'a> {
    extension: &'a Extension,
    identity: &'a Identity,
    owner: Option<u64>,
}

impl<'a> Heartbeats<'a> {
    fn new(extension: &'a Extension, identity: &'a Identity) -> Result<Heartbeats<'a>> {
        Ok(Heartbeats { extension, identity, owner: ownership::slots_of(extension, identity)? })
    }

    fn beat(&self, key: Key, now: u64) -> Result<bool> {
        match transaction::pending(&key) {
            Pending::Gone => return Ok(false),
            Pending::Present { owner } if self.owner.is_some_and(|own| own != owner) => return Ok(false),
            Pending::Present { .. } => {
                let own = liveness::pending(&key);
                if own.is_some_and(|own| !alive(own.deadline, now)) {
                    return Ok(false);
                }
                transaction::renew_pending(&key, now, true);
                // The slot may be of a stay that this transaction has ended; the heartbeat is not about that.
                if let Some(own) = own {
                    leases().renew_stay(&key, &own.stay(), now);
                }
                return Ok(true);
            }
            Pending::Untouched => {}
        }
        match leases().heartbeat(&key, self.owner, now) {
            Heartbeat::Renewed => Ok(true),
            Heartbeat::NoSlot if holder::may_be_slotless(self.extension) => self.beat_row(&key),
            _ => Ok(false),
        }
    }

    /// The lease is in the row: move it to a slot if one is free by now, otherwise renew it there.
    fn beat_row(&self, key: &Key) -> Result<bool> {
        as_role(self.extension.owner_role, || {
            let connection = Connection::open()?;
            // SAFETY: a plain flag of this process.
            let read_only = unsafe { pg_sys::XactReadOnly };
            // Another user's row is not even locked.
            let own = if self.owner.is_some() { self.identity.user_id.as_deref() } else { None };
            let values = [Some(uuid(key.hash)), own.map(datum::varlena)];
            let found = connection.run(if read_only { &FIND } else { &LOCK }, &values, !read_only)?;
            let row = liveness::lease_of_query(&found, 0, [2, 3, 4, 5]);
            if found.count == 0 || liveness::deadline(key, &row).is_none() {
                return Ok(false);
            }
            if row.is_fixed {
                return Ok(true);
            }
            if read_only {
                return Err(Error::ReadOnlyWithoutSlot);
            }
            let lease = self.renewed(&found, &row);
            if leases().apply_present(key, &lease) == Applied::Full {
                let _intent =
                    intent::set(vec![key.hash], Intent { system_columns_only: true, ..Intent::default() });
                let wall = clock::wall_of(lease.last_seen);
                let values = [
                    Some(uuid(key.hash)),
                    Some(Datum::from(lease.deadline as i64)),
                    Some(Datum::from(wall)),
                    liveness::expires_at(lease.deadline),
                ];
                connection.run(&RENEW_ROW, &values, true)?;
            }
            Ok(true)
        })
    }

    fn renewed(&self, found: &Rows, row: &RowLease) -> Lease {
        let now = clock::boot();
        let owner = self.extension.owner_hash(found.text(0, 0).unwrap_or_default());
        // SAFETY: an interval.
        let ttl = found.get(0, 1).map(|ttl| unsafe { datum::interval_of(ttl) } as u64);
        Lease {
            deadline: ttl.map_or(NEVER, |ttl| now + ttl),
            last_seen: now,
            ttl: ttl.unwrap_or(0),
            version: row.version,
            generation: row.generation,
            owner,
            session: row.session,
            reverts_at: 0,
            changed_at: now,
            pins: 0,
        }
    }
}

static FIND: Statement = Statement {
    sql: c"select user_id, ttl, version, generation, deadline, session from presence.member \
           where key_hash operator(pg_catalog.=) $1 and ($2 is null or user_id operator(pg_catalog.=) $2)",
    arguments: &[pg_sys::UUIDOID, pg_sys::TEXTOID],
};

static LOCK: Statement = Statement {
    sql: c"select user_id, ttl, version, generation, deadline, session from presence.member \
           where key_hash operator(pg_catalog.=) $1 and ($2 is null or user_id operator(pg_catalog.=) $2) \
           for no key update",
    arguments: &[pg_sys::UUIDOID, pg_sys::TEXTOID],
};

static RENEW_ROW: Statement = Statement {
    sql: c"update presence.member set deadline = $2, last_seen_at = $3, expires_at = $4 where key_hash operator(pg_catalog.=) $1",
    arguments: &[pg_sys::UUIDOID, pg_sys::INT8OID, pg_sys::TIMESTAMPTZOID, pg_sys::TIMESTAMPTZOID],
};

/// SQL `presence.heartbeat(room, member_id, connection_id)`.
fn heartbeat(call: &Call, extension: Extension) -> Result<Option<Datum>> {
    let identity = identity::current(&extension)?;
    let room = call.text(0).ok_or(Error::MissingArgument { argument: "room" })?;
    let member_id = match call.text(1) {
        Some(given) => given,
        None => identity.writer()?,
    };
    let connection_id = call.text(2).unwrap_or_default();
    validate::key(room, member_id, connection_id)?;
    let key = awaited_key(&extension, room, member_id, connection_id);
    extension.database.counters.heartbeats.add(1);
    let renewed = Heartbeats::new(&extension, &identity)?.beat(key, clock::boot())?;
    Ok(Some(Datum::from(renewed)))
}

/// SQL `presence.heartbeat_many(rooms, member_ids, connection_ids)`: returns the absent ones.
fn heartbeat_many(call: &Call, extension: Extension) -> Result<Option<Datum>> {
    let identity = identity::current(&extension)?;
    let beater = Heartbeats::new(&extension, &identity)?;
    let list = |index, argument| {
        call.texts(index).map_err(|why| Error::InvalidArgument { argument, why: why.into() })
    };
    let rooms = list(0, "rooms")?.ok_or(Error::MissingArgument { argument: "rooms" })?;
    let member_ids = list(1, "member_ids")?;
    let connection_ids = list(2, "connection_ids")?;
    for (given, argument) in [(&member_ids, "member_ids"), (&connection_ids, "connection_ids")] {
        if given.as_ref().is_some_and(|given| given.len() != rooms.len()) {
            let why = "It must have as many elements as rooms.".into();
            return Err(Error::InvalidArgument { argument, why });
        }
    }
    let own = if member_ids.is_none() { identity.writer()? } else { b"" };
    let member = |at: usize| {
        let member_id = member_ids.as_ref().map_or(own, |list| &list[at]);
        [&rooms[at], member_id, connection_ids.as_ref().map_or(&b""[..], |list| &list[at])]
    };
    // Slots are scattered over the memory: prefetch them.
    let mut keys = Vec::with_capacity(rooms.len());
    for at in 0..rooms.len() {
        let [room, member_id, connection_id] = member(at);
        validate::key(room, member_id, connection_id)?;
        let key = extension.key(room, member_id, connection_id);
        leases().prefetch(&key, false);
        keys.push(key);
    }
    let now = clock::boot();
    let mut missing = Vec::new();
    for (at, key) in keys.iter().enumerate() {
        if let Some(ahead) = keys.get(at + AHEAD) {
            leases().prefetch(ahead, true);
        }
        if !beater.beat(*key, now)? {
            missing.push(member(at));
        }
    }
    extension.database.counters.heartbeats.add(rooms.len() as u64);
    call.rows(missing.iter().map(|key| key.iter().map(|part| Some(datum::varlena(part))).collect()))
}

crate::verb!(presence_heartbeat, pg_finfo_presence_heartbeat, "presence.heartbeat()", heartbeat);
crate::verb!(
    presence_heartbeat_many,
    pg_finfo_presence_heartbeat_many,
    "presence.heartbeat_many()",
    heartbeat_many
);
