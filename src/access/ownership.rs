//! Whose member may be written by whom. One rule: everybody their own, service roles everybody's. The policies of
//! `presence.member` say the same in SQL (sql/policies.sql).

use super::identity::Identity;
use crate::clock;
use crate::error::{Error, Result};
use crate::extension::Extension;
use crate::lease::table::{Key, alive};
use crate::member::checks::check_member_id;
use crate::member::lease;
use crate::pg::datum::uuid;
use crate::pg::spi::{self, Connection, Statement};
use crate::shared::leases::leases;
use pgrx::pg_sys;
use std::sync::atomic::Ordering::*;

/// Whether the caller may write a member of this owner.
pub fn may_write(caller: &Identity, owner: &[u8]) -> bool {
    caller.service || caller.is(owner)
}

/// The same by the keyed hash that slots have of their owner. None: any.
pub fn slots_of(extension: &Extension, caller: &Identity) -> Result<Option<u64>> {
    if caller.service {
        return Ok(None);
    }
    caller.writer().map(|own| Some(extension.owner_hash(own)))
}

pub fn require(caller: &Identity, owner: &[u8]) -> Result<()> {
    if may_write(caller, owner) { Ok(()) } else { Err(Error::OwnedByAnother) }
}

/// A write found no member of the caller's: say so if there is another's, seen or unseen alike. Where names are one's
/// own, a stranger's name is answered the same whether somebody is there or not.
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

/// Whether there can be rows without a slot at all.
pub fn may_be_slotless(extension: &Extension) -> bool {
    extension.database.slotless.load(Acquire) > 0
}

static HOLDER: Statement = Statement {
    sql: c"select user_id, version, generation, deadline, session from presence.member \
           where key_hash operator(pg_catalog.=) $1",
    arguments: &[pg_sys::UUIDOID],
};

/// The member that has a key.
pub struct Holder {
    pub owner: Vec<u8>,
    pub version: u64,
}

/// Who is here under this key, whether the caller may see it or not.
pub fn holder(extension: &Extension, key: &Key) -> Result<Option<Holder>> {
    spi::as_role(extension.owner, || {
        let connection = Connection::open()?;
        let rows = connection.run(&HOLDER, &[Some(uuid(key.hash))], false)?;
        if rows.count == 0 || lease::deadline(key, &lease::found(&rows, 0, [1, 2, 3, 4])).is_none() {
            return Ok(None);
        }
        let owner = rows.text(0, 0).map(<[u8]>::to_vec);
        Ok(owner.map(|owner| Holder { owner, version: rows.number(0, 1) }))
    })
}
