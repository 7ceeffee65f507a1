//! Who may write whose members. One rule: users write their own, service roles anybody's. The policies of
//! `presence.member` say the same in SQL (sql/policies.sql).

use super::identity::Identity;
use crate::error::{Error, Result};
use crate::extension::Extension;
use crate::settings::{self, MemberIds};

/// Whether the caller may write a member of this owner.
pub fn may_write(caller: &Identity, owner: &[u8]) -> bool {
    caller.service || caller.is(owner)
}

/// The same by the keyed hash of the owner in a slot. None: any owner.
pub fn slots_of(extension: &Extension, caller: &Identity) -> Result<Option<u64>> {
    if caller.service {
        return Ok(None);
    }
    caller.writer().map(|own| Some(extension.owner_hash(own)))
}

pub fn require(caller: &Identity, owner: &[u8]) -> Result<()> {
    if may_write(caller, owner) { Ok(()) } else { Err(Error::OwnedByAnother) }
}

/// Others may not take the member_id "bob".
pub fn check_member_id(identity: &Identity, member_id: &[u8]) -> Result<()> {
    if identity.service || settings::member_ids() == MemberIds::Any || identity.is(member_id) {
        return Ok(());
    }
    let own = identity.user_id.as_deref().unwrap_or_default();
    Err(Error::NotYourName { member_id: crate::error::printable(own) })
}
