//! What the current role was granted, checked as the executor does: a privilege on a table, or on each column that a statement
//! names.

use crate::extension::{self, is_granted};
use pgrx::pg_sys::{self, AclMode, AclResult, Oid};
use std::ffi::CStr;

/// Whether the current role has the right on these columns, numbered from 1.
pub fn on_columns(relation: Oid, right: u32, columns: impl IntoIterator<Item = i16>) -> bool {
    // SAFETY: a look-up in the catalog, as is the next one.
    let may = |column| unsafe {
        pg_sys::pg_attribute_aclcheck(relation, column, pg_sys::GetUserId(), right as AclMode)
            == AclResult::ACLCHECK_OK
    };
    on_table(relation, right) || columns.into_iter().all(may)
}

/// The same for all existing columns.
pub fn on_all_columns(relation: Oid, right: u32) -> bool {
    let all = pg_sys::AclMaskHow::ACLMASK_ALL;
    // SAFETY: a look-up in the catalog.
    let may = || unsafe {
        pg_sys::pg_attribute_aclcheck_all(relation, pg_sys::GetUserId(), right as AclMode, all)
            == AclResult::ACLCHECK_OK
    };
    on_table(relation, right) || may()
}

fn on_table(relation: Oid, right: u32) -> bool {
    // SAFETY: a look-up in the catalog.
    unsafe {
        pg_sys::pg_class_aclcheck(relation, pg_sys::GetUserId(), right as AclMode) == AclResult::ACLCHECK_OK
    }
}

/// Whether the policies of the table apply to the current role.
pub fn is_under_policies(relation: Oid) -> bool {
    // SAFETY: a look-up in the catalog, which raises nothing.
    let state = unsafe { pg_sys::check_enable_rls(relation, pg_sys::InvalidOid, true) };
    state == pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32
}

/// Whether the current role may call the function of this name in the schema `presence`, where it is not overloaded.
pub fn may_call(name: &CStr) -> bool {
    let schema = c"presence";
    if !is_granted(pg_sys::NamespaceRelationId, extension::schema(schema), pg_sys::ACL_USAGE) {
        return false;
    }
    // SAFETY: a list of two new String nodes; a look-up in the catalog, whose answer is null or a candidate.
    unsafe {
        let part = |part: &CStr| pg_sys::makeString(pg_sys::pstrdup(part.as_ptr()));
        let names = pg_sys::lappend(std::ptr::null_mut(), part(schema).cast());
        let names = pg_sys::lappend(names, part(name).cast());
        let found = pg_sys::FuncnameGetCandidates(names, -1, std::ptr::null_mut(), false, false, false, true);
        found.as_ref().is_some_and(|found| is_executable(found.oid))
    }
}

/// Whether the current role may execute this function.
pub fn is_executable(function: Oid) -> bool {
    is_granted(pg_sys::ProcedureRelationId, function, pg_sys::ACL_EXECUTE)
}
