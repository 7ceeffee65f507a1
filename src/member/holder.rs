//! Who holds a key, when a newcomer wants it.

use super::{expiry, liveness};
use crate::access::identity::Identity;
use crate::access::ownership::{check_member_id, may_write, require};
use crate::clock;
use crate::error::{Error, Result};
use crate::event::transaction;
use crate::extension::Extension;
use crate::lease::slot::{Key, TOMBSTONE, alive};
use crate::pg::datum::uuid;
use crate::pg::role::as_role;
use crate::pg::spi::{Connection, Statement};
use crate::shared::leases::leases;
use pgrx::pg_sys;
use std::sync::atomic::Ordering::*;

/// Before a member enters: the key's holder must be gone, or be the caller.
pub fn evict_expired_holder(
    extension: &Extension,
    identity: &Identity,
    key: &Key,
    owner: &[u8],
) -> Result<()> {
    let now = clock::boot();
    if let Some(held) = liveness::pending(key) {
        // Our own change in this transaction, not committed.
        if !alive(held.deadline, now) {
            return expire(extension, key);
        }
        let own = held.owner == extension.owner_hash(owner);
        return if own || identity.service { Ok(()) } else { Err(Error::OwnedByAnother) };
    }
    let slot = leases().read(key);
    if let Some(slot) = &slot
        && alive(slot.deadline, now)
    {
        let own = slot.owner == extension.owner_hash(owner);
        let pending_leave = matches!(transaction::pending(key), transaction::Pending::Gone);
        return if own || identity.service || pending_leave { Ok(()) } else { Err(Error::OwnedByAnother) };
    }
    if slot.is_some_and(|slot| slot.deadline == TOMBSTONE) || (slot.is_none() && !may_be_slotless(extension))
    {
        return Ok(());
    }
    // A row whose lease has run out, or that has no slot.
    expire(extension, key)?;
    match if slot.is_none() { holder(extension, key)? } else { None } {
        Some(other) if other.owner != owner && !may_write(identity, &other.owner) => {
            Err(Error::OwnedByAnother)
        }
        _ => Ok(()),
    }
}

static LOCK: Statement = Statement {
    sql: c"select key_hash, version, generation, deadline, session from presence.member \
           where key_hash operator(pg_catalog.=) $1 for update",
    arguments: &[pg_sys::UUIDOID],
};

/// Delete the member's row if its lease has run out, so that its leave (expired) precedes what follows. Unlike the
/// worker this waits for whoever has locked the row.
fn expire(extension: &Extension, key: &Key) -> Result<()> {
    as_role(extension.owner_role, || {
        let connection = Connection::open()?;
        let rows = connection.run(&LOCK, &[Some(uuid(key.hash))], true)?;
        let lease = (rows.count > 0).then(|| liveness::lease_of_query(&rows, 0, [1, 2, 3, 4]));
        expiry::delete(extension, &connection, lease.map(|lease| (key.hash, lease)))?;
        Ok(())
    })
}

/// A write found no member of the caller: raise an error if there is another user's, whether the caller may see it or
/// not. If users may only use their own names, another name gets the same error whether or not somebody is present.
pub fn require_none_of_anothers(
    extension: &Extension,
    caller: &Identity,
    member_id: &[u8],
    key: &Key,
) -> Result<()> {
    if caller.service {
        return Ok(());
    }
    check_member_id(caller, member_id)?;
    let there = match leases().read(key) {
        Some(slot) => alive(slot.deadline, clock::boot()),
        None => may_be_slotless(extension),
    };
    match if there { holder(extension, key)? } else { None } {
        Some(holder) => require(caller, &holder.owner),
        None => Ok(()),
    }
}

/// Whether there may be rows without a slot.
pub fn may_be_slotless(extension: &Extension) -> bool {
    extension.database.slotless.load(Acquire) > 0
}

static HOLDER: Statement = Statement {
    sql: c"select user_id, version, generation, deadline, session from presence.member \
           where key_hash operator(pg_catalog.=) $1",
    arguments: &[pg_sys::UUIDOID],
};

/// The member that holds a key.
pub struct Holder {
    pub owner: Vec<u8>,
    pub version: u64,
}

/// The live member with this key, whether the caller may see it or not.
pub fn holder(extension: &Extension, key: &Key) -> Result<Option<Holder>> {
    as_role(extension.owner_role, || {
        let connection = Connection::open()?;
        let rows = connection.run(&HOLDER, &[Some(uuid(key.hash))], false)?;
        if rows.count == 0
            || liveness::deadline(key, &liveness::lease_of_query(&rows, 0, [1, 2, 3, 4])).is_none()
        {
            return Ok(None);
        }
        let owner = rows.text(0, 0).map(<[u8]>::to_vec);
        Ok(owner.map(|owner| Holder { owner, version: rows.number(0, 1) }))
    })
}
