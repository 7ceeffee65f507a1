//! Who holds a key: whether a newcomer may have it, and what writers are told who may not.

use super::checks::check_member_id;
use super::intent::{self, Intent};
use super::lease;
use crate::clock;
use crate::error::{Error, Result};
use crate::event::transaction;
use crate::extension::Extension;
use crate::identity::Identity;
use crate::lease::shared::leases;
use crate::lease::table::{Key, TOMBSTONE, alive};
use crate::spi::{self, Connection, Statement};
use crate::sqlfn::{text_of, uuid};
use pgrx::pg_sys;
use std::sync::atomic::Ordering::*;

/// Before a member enters: whoever holds the key must be gone, or be oneself.
pub fn make_way(extension: &Extension, identity: &Identity, key: &Key, owner: &[u8]) -> Result<()> {
    let now = clock::boot();
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
    if slot.is_none() && !identity.service && owner_of(extension, key)?.is_some_and(|other| other != owner) {
        return Err(Error::OwnedByAnother);
    }
    Ok(())
}

/// Whether there can be rows without a slot at all.
pub fn may_be_slotless(extension: &Extension) -> bool {
    extension.database.slotless.load(Acquire) > 0
}

static EXPIRE: Statement = Statement {
    sql: c"with locked as materialized (
               select key_hash, version, generation, deadline, session from presence.member
               where key_hash operator(pg_catalog.=) $1 for update),
           claimed as materialized (
               select key_hash from locked where presence._claim(key_hash, version, generation, deadline, session))
           delete from presence.member m using claimed
           where m.key_hash operator(pg_catalog.=) claimed.key_hash",
    arguments: &[pg_sys::UUIDOID],
};

static OWNER: Statement = Statement {
    sql: c"select user_id, version, generation, deadline, session from presence.member \
           where key_hash operator(pg_catalog.=) $1",
    arguments: &[pg_sys::UUIDOID],
};

/// Delete the member's row if its lease has run out: its leave (expired) comes before whatever follows.
fn expire(extension: &Extension, key: &Key) -> Result<usize> {
    spi::as_role(extension.owner, || {
        let _intent = intent::set(Intent { expiring: true, ..Intent::default() });
        Ok(Connection::open()?.run(&EXPIRE, &[Some(uuid(key.hash))], true)?.count)
    })
}

/// A write found no member of the caller's: say so if there is another's, seen or unseen alike. Where names are one's
/// own, a stranger's name is answered the same whether somebody is there or not.
pub fn refuse_anothers(
    extension: &Extension,
    identity: &Identity,
    member_id: &[u8],
    key: &Key,
) -> Result<()> {
    if identity.service {
        return Ok(());
    }
    check_member_id(identity, member_id)?;
    let there = match leases().read(key) {
        Some(slot) => alive(slot.deadline, clock::boot()),
        None => may_be_slotless(extension),
    };
    if there && owner_of(extension, key)?.is_some_and(|owner| !identity.is(&owner)) {
        return Err(Error::OwnedByAnother);
    }
    Ok(())
}

/// Who owns the member that is here, whether the caller may see it or not.
fn owner_of(extension: &Extension, key: &Key) -> Result<Option<Vec<u8>>> {
    spi::as_role(extension.owner, || {
        let connection = Connection::open()?;
        let rows = connection.run(&OWNER, &[Some(uuid(key.hash))], false)?;
        if rows.count == 0 || lease::deadline(key, &lease::found(&rows, 0, [1, 2, 3, 4])).is_none() {
            return Ok(None);
        }
        // SAFETY: a text.
        Ok(rows.get(0, 0).map(|owner| unsafe { text_of(owner) }.to_vec()))
    })
}
