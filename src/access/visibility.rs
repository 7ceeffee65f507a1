//! Who may see whose members, for code that reads rows without the policies. One rule: users see their own and what is shared
//! with one of their tokens; service roles see everything. The policies of `presence.member` say the same in SQL
//! (sql/policies.sql).

use super::identity::Identity;
use super::{ownership, policy};
use crate::error::Result;
use crate::extension::Extension;
use crate::member::column::Column;
use crate::member::row::Row;
use crate::member::user_rooms;
use crate::pg::datum::elements;
use crate::settings;
use pgrx::pg_sys;
use std::collections::{HashMap, HashSet};

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
    /// If the tokens are without those of rooms: in which rooms the caller is, of those that were asked for.
    rooms: Option<(&'a Extension, HashMap<Vec<u8>, bool>)>,
    /// The last audience and its result, because most members of a room have the same audience.
    last: (Vec<u8>, bool),
}

impl<'a> Visibility<'a> {
    pub fn all() -> Visibility<'a> {
        Visibility { caller: None, tokens: HashSet::new(), rooms: None, last: Default::default() }
    }

    /// `tokens` are those that count: none if the authorizer says no.
    pub fn of(caller: &'a Identity, tokens: &'a [Vec<u8>]) -> Visibility<'a> {
        let tokens = tokens.iter().map(Vec::as_slice).collect();
        Visibility { caller: Some(caller), tokens, rooms: None, last: Default::default() }
    }

    /// `tokens` are those that count but for rooms: whether the caller is in one is looked up where an audience names it. So it
    /// does not matter in how many they are.
    pub fn asking(caller: &'a Identity, tokens: &'a [Vec<u8>], extension: &'a Extension) -> Visibility<'a> {
        Visibility { rooms: Some((extension, HashMap::new())), ..Visibility::of(caller, tokens) }
    }

    pub fn of_row(&mut self, row: &Row) -> Result<Sight> {
        let bytes = |column| row.text(column).unwrap_or_default();
        self.sight(bytes(Column::UserId), bytes(Column::Audience))
    }

    /// Takes a member's owner, and the bytes of its audience after their header.
    pub fn sight(&mut self, owner: &[u8], audience: &[u8]) -> Result<Sight> {
        let Some(caller) = self.caller else { return Ok(Sight::Own) };
        // Whoever may write a member may see it.
        if ownership::may_write(caller, owner) {
            return Ok(Sight::Own);
        }
        if self.last.0 != audience {
            let is_shared = self.is_shared(caller, audience)?;
            self.last.0.clear();
            self.last.0.extend_from_slice(audience);
            self.last.1 = is_shared;
        }
        Ok(if self.last.1 { Sight::Shared } else { Sight::None })
    }

    fn is_shared(&mut self, caller: &Identity, audience: &[u8]) -> Result<bool> {
        // SAFETY: the column is text[].
        let Ok(given) = (unsafe { elements(audience) }) else { return Ok(false) };
        for token in given {
            if self.tokens.contains(token) || self.is_in(caller, token)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the token is that of a room in which the caller is.
    fn is_in(&mut self, caller: &Identity, token: &[u8]) -> Result<bool> {
        let (Some((extension, known)), Some(user_id), Some(room)) =
            (&mut self.rooms, &caller.user_id, token.strip_prefix(b"room:"))
        else {
            return Ok(false);
        };
        if let Some(is_in) = known.get(room) {
            return Ok(*is_in);
        }
        let is_in = user_rooms::is_in(extension, user_id, room)?;
        known.insert(room.to_vec(), is_in);
        Ok(is_in)
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
