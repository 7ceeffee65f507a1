//! The functions of ours that policies and triggers of `member` call: whether they are still this library's, for their
//! owner may replace them, and whether the current role may call what policies call.

use crate::authorizer::presence_may;
use crate::extension::is_granted;
use crate::identity::{presence_is_service, presence_tokens, presence_user_id};
use crate::member::trigger::{presence_member_after, presence_member_before};
use pgrx::pg_sys::{self, Datum, Oid};
use std::ffi::CStr;

type Function = unsafe extern "C-unwind" fn(pg_sys::FunctionCallInfo) -> Datum;

const ASKED: [(&CStr, &[Oid], Function); 4] = [
    (c"user_id", &[], presence_user_id),
    (c"is_service", &[], presence_is_service),
    (c"tokens", &[], presence_tokens),
    (c"_may", &[pg_sys::TEXTOID, pg_sys::TEXTOID], presence_may),
];

/// What the policies ask, with the rights of whoever reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked([Oid; ASKED.len()]);

impl Asked {
    /// None if one of them is not ours any more.
    pub fn find() -> Option<Asked> {
        let mut found = [pg_sys::InvalidOid; ASKED.len()];
        for (place, (name, arguments, function)) in found.iter_mut().zip(ASKED) {
            *place = by_name(name, arguments).filter(|found| is(*found, &[function]))?;
        }
        Some(Asked(found))
    }

    /// Whether the current role may.
    pub fn may_be_called(&self) -> bool {
        self.0.iter().all(|function| is_granted(pg_sys::ProcedureRelationId, *function, pg_sys::ACL_EXECUTE))
    }
}

pub fn is_of_member_triggers(function: Oid) -> bool {
    is(function, &[presence_member_before, presence_member_after])
}

/// Whether a call comes to one of these, and at once: not by way of a SET clause or SECURITY DEFINER.
fn is(function: Oid, of: &[Function]) -> bool {
    // SAFETY: a function that exists; what is looked up is not called.
    let called = unsafe {
        let mut info = pg_sys::FmgrInfo::default();
        pg_sys::fmgr_info(function, &mut info);
        info.fn_addr
    };
    called.is_some_and(|called| of.iter().any(|function| std::ptr::fn_addr_eq(called, *function)))
}

/// Whoever asks: this is no question of rights.
fn by_name(name: &CStr, arguments: &[Oid]) -> Option<Oid> {
    // SAFETY: a look-up in the catalog, by a C string and a vector of as many types as we say.
    let found = unsafe {
        let arguments = pg_sys::buildoidvector(arguments.as_ptr(), arguments.len() as i32);
        pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::PROCNAMEARGSNSP as i32,
            pg_sys::Anum_pg_proc_oid as i16,
            Datum::from(name.as_ptr()),
            Datum::from(arguments),
            Datum::from(pg_sys::get_namespace_oid(c"presence".as_ptr(), true)),
            Datum::from(0),
        )
    };
    (found != pg_sys::InvalidOid).then_some(found)
}
