//! The extension's functions that policies and triggers of `member` call: whether they are still this library's, since their
//! owner may replace them, and whether the current role may execute those that policies call.

use crate::access::grants::is_executable;
use crate::extension;
use crate::pg::datum::bytes_of;
use pgrx::pg_sys::{self, Datum, Oid};
use std::ffi::CStr;

/// Names as policies call them, argument types, and symbols in the library.
const ASKED: [(&CStr, &[Oid], &str); 4] = [
    (c"user_id", &[], "presence_user_id"),
    (c"is_service", &[], "presence_is_service"),
    (c"tokens", &[], "presence_tokens"),
    (c"_may", &[pg_sys::TEXTOID, pg_sys::TEXTOID], "presence_may"),
];

const OF_TRIGGERS: [&str; 2] = ["presence_member_before", "presence_member_after"];

/// The language C in pg_language has this fixed OID.
const C_LANGUAGE: u32 = 13;

/// The functions that the policies call with the rights of the reader or writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked([Oid; ASKED.len()]);

impl Asked {
    /// None if one of them is not ours any more.
    pub fn find() -> Option<Asked> {
        let mut found = [pg_sys::InvalidOid; ASKED.len()];
        for (place, (name, arguments, symbol)) in found.iter_mut().zip(ASKED) {
            *place = by_name(name, arguments).filter(|found| is(*found, &[symbol]))?;
        }
        Some(Asked(found))
    }

    /// Whether the current role may execute them.
    pub fn may_be_called(&self) -> bool {
        self.0.iter().all(|function| is_executable(*function))
    }
}

pub fn is_of_member_triggers(function: Oid) -> bool {
    is(function, &OF_TRIGGERS)
}

/// Whether a call leads directly to one of these symbols, without a SET clause or SECURITY DEFINER.
fn is(function: Oid, symbols: &[&str]) -> bool {
    use pg_sys::SysCacheIdentifier::PROCOID;
    // SAFETY: a look-up in the catalog; the tuple is released after what was read of it was copied.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(PROCOID as i32, Datum::from(function));
        if tuple.is_null() {
            return false;
        }
        let column = |number: u32| {
            let mut null = false;
            let value = pg_sys::SysCacheGetAttr(PROCOID as i32, tuple, number as i16, &mut null);
            (!null).then_some(value)
        };
        let facts = &*(pg_sys::GETSTRUCT(tuple) as pg_sys::Form_pg_proc);
        let symbol = column(pg_sys::Anum_pg_proc_prosrc).map(|symbol| bytes_of(symbol)).unwrap_or_default();
        let is_one = u32::from(facts.prolang) == C_LANGUAGE
            && !facts.prosecdef
            && column(pg_sys::Anum_pg_proc_proconfig).is_none()
            && symbols.iter().any(|known| known.as_bytes() == symbol);
        pg_sys::ReleaseSysCache(tuple);
        is_one
    }
}

/// Find a function of ours, whether or not the caller may execute it.
pub fn by_name(name: &CStr, arguments: &[Oid]) -> Option<Oid> {
    let is_internal = name.to_bytes().starts_with(b"_");
    let schema = if is_internal { extension::internals() } else { extension::schema(c"presence") };
    // SAFETY: a look-up in the catalog, by a C string and a vector of as many types as we say.
    let found = unsafe {
        let arguments = pg_sys::buildoidvector(arguments.as_ptr(), arguments.len() as i32);
        pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::PROCNAMEARGSNSP as i32,
            pg_sys::Anum_pg_proc_oid as i16,
            Datum::from(name.as_ptr()),
            Datum::from(arguments),
            Datum::from(schema),
            Datum::from(0),
        )
    };
    (found != pg_sys::InvalidOid).then_some(found)
}
