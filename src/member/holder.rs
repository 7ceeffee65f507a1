//! Who holds a key, when a newcomer wants it.

use super::intent::{self, Intent};
use super::lease;
use crate::access::identity::Identity;
use crate::access::ownership::{holder, may_be_slotless, may_write};
use crate::clock;
use crate::error::{Error, Result};
use crate::event::transaction;
use crate::extension::Extension;
use crate::lease::table::{Key, TOMBSTONE, alive};
use crate::pg::datum::uuid;
use crate::pg::spi::{self, Connection, Statement};
use crate::shared::leases::leases;
use pgrx::pg_sys;

/// Before a member enters: whoever holds the key must be gone, or be oneself.
pub fn make_way(extension: &Extension, identity: &Identity, key: &Key, owner: &[u8]) -> Result<()> {
    let now = clock::boot();
    if let Some(held) = lease::pending(key) {
        // Of our own making, in this transaction, and not committed.
        if !alive(held.deadline, now) {
            return expire(extension, key).map(|_| ());
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
    // A row whose lease has run out, or one that has no slot.
    expire(extension, key)?;
    match if slot.is_none() { holder(extension, key)? } else { None } {
        Some(other) if other.owner != owner && !may_write(identity, &other.owner) => {
            Err(Error::OwnedByAnother)
        }
        _ => Ok(()),
    }
}

static EXPIRE: Statement = Statement {
    sql: c"with locked as materialized (
               select key_hash, version, generation, deadline, session from presence.member
               where key_hash operator(pg_catalog.=) $1 for update),
           claimed as materialized (
               select key_hash from locked where _presence._claim(key_hash, version, generation, deadline, session))
           delete from presence.member m using claimed
           where m.key_hash operator(pg_catalog.=) claimed.key_hash",
    arguments: &[pg_sys::UUIDOID],
};

/// Delete the member's row if its lease has run out: its leave (expired) comes before whatever follows.
fn expire(extension: &Extension, key: &Key) -> Result<usize> {
    spi::as_role(extension.owner, || {
        let _intent = intent::set(vec![key.hash], Intent { expiring: true, ..Intent::default() });
        Ok(Connection::open()?.run(&EXPIRE, &[Some(uuid(key.hash))], true)?.count)
    })
}
