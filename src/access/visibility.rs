//! Who may see whose members, for code that reads rows without the policies. One rule: users see their own and what is shared
//! with one of their tokens; service roles see everything. The policies of `presence.member` say the same in SQL
//! (sql/policies.sql).

use super::identity::Identity;
use super::{ownership, policy};
use crate::error::Result;
use crate::extension::Extension;
use crate::member::column::Column;
use crate::member::row::Row;
use crate::pg::datum::elements;
use crate::settings;
use pgrx::pg_sys;
use std::collections::HashSet;

/// Whether SQL would show the caller exactly what the built-in policies say.
pub fn is_by_built_in_policies(extension: &Extension, caller: &Identity) -> Result<bool> {
    Ok(settings::fast_path()
        && shows_as_we_do(extension, caller)
        && extension.may_read()
        && policy::is_read_as_made(extension)?)
}

/// With row_security off SQL raises an error for callers to whom policies apply. To others, such as members of the
/// owner's role, it shows everything.
fn shows_as_we_do(extension: &Extension, caller: &Identity) -> bool {
    use pg_sys::CheckEnableRlsResult::RLS_ENABLED;
    // SAFETY: a plain setting, and a look-up in the catalog for the current role.
    unsafe {
        let bound =
            pg_sys::check_enable_rls(extension.member, pg_sys::InvalidOid, true) == RLS_ENABLED as i32;
        if bound { pg_sys::row_security } else { caller.service }
    }
}

/// The members that a caller may see.
pub struct Visibility<'a> {
    /// None: all members.
    caller: Option<&'a Identity>,
    tokens: HashSet<&'a [u8]>,
    /// The last audience and its result, because most members of a room have the same audience.
    last: (Vec<u8>, bool),
}

impl<'a> Visibility<'a> {
    pub fn all() -> Visibility<'a> {
        Visibility { caller: None, tokens: HashSet::new(), last: Default::default() }
    }

    /// `tokens` are those that count: none if the authorizer says no.
    pub fn of(caller: &'a Identity, tokens: &'a [Vec<u8>]) -> Visibility<'a> {
        let tokens = tokens.iter().map(Vec::as_slice).collect();
        Visibility { caller: Some(caller), tokens, last: Default::default() }
    }

    pub fn of_row(&mut self, row: &Row) -> Sight {
        let bytes = |column| row.text(column).unwrap_or_default();
        self.sight(bytes(Column::UserId), bytes(Column::Audience))
    }

    /// Takes a member's owner, and the bytes of its audience after their header.
    pub fn sight(&mut self, owner: &[u8], audience: &[u8]) -> Sight {
        let Some(caller) = self.caller else { return Sight::Own };
        // Whoever may write a member may see it.
        if ownership::may_write(caller, owner) {
            return Sight::Own;
        }
        if self.last.0 != audience {
            self.last.0.clear();
            self.last.0.extend_from_slice(audience);
            self.last.1 = shares(audience, &self.tokens);
        }
        if self.last.1 { Sight::Shared } else { Sight::None }
    }
}

/// Why a caller sees a member.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    None,
    /// By its audience, if the authorizer lets the caller read the room.
    Shared,
    /// The caller may write it.
    Own,
}

fn shares(audience: &[u8], tokens: &HashSet<&[u8]>) -> bool {
    // SAFETY: the column is text[].
    let given = unsafe { elements(audience) };
    given.is_ok_and(|mut given| given.any(|given| tokens.contains(given)))
}
