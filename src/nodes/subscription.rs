//! How far this process's subscription has brought our tables, if it is one that applies what a peer sends.

use crate::extension;
use pgrx::pg_sys::{self, Datum, Oid};
use std::ffi::CStr;

/// Whether the table is being copied for the first time, or anew: what comes is what is there, and no news.
pub fn is_copying(table: &CStr) -> bool {
    state(table) == Some(b'd')
}

/// Whether both tables are there, and changes come in order. In a process that follows no subscription, they do.
pub fn is_ready() -> bool {
    current().is_none() || [c"shared", c"node"].into_iter().all(|table| state(table) == Some(b'r'))
}

/// As `pg_subscription_rel` has it.
fn state(table: &CStr) -> Option<u8> {
    let (subscription, table) = (current()?, extension::relation(table)?);
    const STATE: i16 = 3;
    // SAFETY: a look-up in the catalog; the tuple is released below. The column is a "char", and never NULL.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::SUBSCRIPTIONRELMAP as i32;
        let tuple = pg_sys::SearchSysCache2(cache, Datum::from(table), Datum::from(subscription));
        if tuple.is_null() {
            return None;
        }
        let mut null = false;
        let state = pg_sys::SysCacheGetAttr(cache, tuple, STATE, &mut null);
        pg_sys::ReleaseSysCache(tuple);
        (!null).then(|| state.value() as u8)
    }
}

/// The subscription for which this process works.
fn current() -> Option<Oid> {
    // SAFETY: plain reads of this process's state: null, or a description that begins with the OID.
    unsafe { server::MySubscription.as_ref().copied() }.filter(|_| {
        // SAFETY: as above.
        unsafe { pg_sys::IsLogicalWorker() }
    })
}

mod server {
    use pgrx::pg_sys::Oid;

    unsafe extern "C" {
        pub static MySubscription: *const Oid;
    }
}
