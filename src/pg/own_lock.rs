//! Heavyweight locks of our own, until the transaction ends: those of advisory locks, with tags that SQL cannot take.

use pgrx::pg_sys;

/// SQL uses 1 and 2 in the last field.
const OURS: u16 = 3;

/// Whether nobody else has a lock on this place; it waits for nobody.
pub fn try_exclusive(place: u64) -> bool {
    take(place, pg_sys::ExclusiveLock, true) != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
}

/// Wait until nobody has it exclusively.
pub fn share(place: u64) {
    take(place, pg_sys::ShareLock, false);
}

fn take(place: u64, mode: u32, at_once: bool) -> pg_sys::LockAcquireResult::Type {
    // SAFETY: a lock like any other, in a transaction.
    unsafe {
        let tag = pg_sys::LOCKTAG {
            locktag_field1: u32::from(pg_sys::MyDatabaseId),
            locktag_field2: (place >> 32) as u32,
            locktag_field3: place as u32,
            locktag_field4: OURS,
            locktag_type: pg_sys::LockTagType::LOCKTAG_ADVISORY as u8,
            locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
        };
        pg_sys::LockAcquire(&tag, mode as i32, false, at_once)
    }
}
