//! Doing something as another role, and telling whether somebody else has it done.

use crate::error::Result;
use pgrx::pg_sys::{self, Oid};
use std::cell::Cell;

/// What `as_role` has lent: the role, and whether a restricted operation of somebody else was already running.
#[derive(Clone, Copy)]
struct Lent {
    role: Oid,
    restricted: bool,
}

thread_local! {
    static LENT: Cell<Option<Lent>> = const { Cell::new(None) };
}

/// Restores the previous state on drop, also when an ERROR unwinds.
struct Return(Option<Lent>);

impl Drop for Return {
    fn drop(&mut self) {
        LENT.set(self.0);
    }
}

/// Run `body` as another role, with the restrictions of a function of that role.
pub fn as_role<T>(role: Oid, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let _return = Return(LENT.replace(Some(Lent { role, restricted: in_restricted_operation() })));
    let (mut before, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: plain reads and writes of this process's state; after an ERROR the abort restores it.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut before, &mut context);
        let restricted = pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION;
        pg_sys::SetUserIdAndSecContext(role, context | restricted as i32);
    }
    let result = body();
    // SAFETY: what was before.
    unsafe { pg_sys::SetUserIdAndSecContext(before, context) };
    result
}

/// Whether PostgreSQL runs somebody's code that the session did not ask for: ANALYZE, REINDEX, REFRESH and the like.
/// The restriction that `as_role` sets does not count, as long as the role is still the lent one: that code has all
/// rights of the extension's owner anyway.
pub fn in_restricted_operation() -> bool {
    // SAFETY: plain reads of this process's state.
    let (restricted, role) = unsafe { (pg_sys::InSecurityRestrictedOperation(), pg_sys::GetUserId()) };
    restricted && LENT.get().is_none_or(|lent| lent.role != role || lent.restricted)
}
