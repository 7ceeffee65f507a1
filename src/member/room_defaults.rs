//! What a room's row says about those who enter, and about who may know how many they are. Read past the executor and its
//! policies, as the owner of the tables would read it.

use super::index;
use crate::error::{Error, Result};
use crate::extension;
use crate::pg::datum::{attribute, begins_with, interval_of, texts_of, varlena};
use pgrx::pg_sys::{self, Datum, Oid};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// The defaults of a room for members that enter.
#[derive(Default)]
pub struct Defaults {
    /// Microseconds.
    pub ttl: Option<u64>,
    pub audience: Option<Vec<Vec<u8>>>,
    /// The largest number of members.
    pub max_members: Option<i32>,
}

/// The rooms of a statement: each is read once, when needed.
#[derive(Default)]
pub struct Rooms {
    known: RefCell<HashMap<Vec<u8>, Rc<Defaults>>>,
}

impl Rooms {
    /// Empty if the room has no row.
    pub fn defaults(&self, room: &[u8]) -> Result<Rc<Defaults>> {
        if let Some(known) = self.known.borrow().get(room) {
            return Ok(known.clone());
        }
        let found = Rc::new(defaults(room)?);
        self.known.borrow_mut().insert(room.to_vec(), found.clone());
        Ok(found)
    }
}

/// The columns, in the order of sql/rooms.sql, up to the last one that is read here. Others follow.
const TYPES: [Oid; 6] = [
    pg_sys::TEXTOID,
    pg_sys::JSONBOID,
    pg_sys::TEXTARRAYOID,
    pg_sys::TEXTARRAYOID,
    pg_sys::INTERVALOID,
    pg_sys::INT4OID,
];
const AUDIENCE: usize = 2;
const COUNT_AUDIENCE: usize = 3;
const TTL: usize = 4;
const MAX_MEMBERS: usize = 5;

/// The defaults in a room's row.
fn defaults(room: &[u8]) -> Result<Defaults> {
    let found = of_row(room, |value| Defaults {
        // SAFETY: an interval.
        ttl: value(TTL).map(|ttl| unsafe { interval_of(ttl) } as u64),
        audience: value(AUDIENCE).and_then(tokens),
        max_members: value(MAX_MEMBERS).map(|most| most.value() as i32),
    })?;
    Ok(found.unwrap_or_default())
}

/// Who may have the full counts of a room without seeing its members; None if not set.
pub fn count_audience(room: &[u8]) -> Result<Option<Vec<Vec<u8>>>> {
    Ok(of_row(room, |value| value(COUNT_AUDIENCE).and_then(tokens))?.flatten())
}

fn tokens(array: Datum) -> Option<Vec<Vec<u8>>> {
    // SAFETY: callers name columns that are text arrays.
    let tokens = unsafe { texts_of(array) }.ok()?;
    Some(tokens.iter().map(<[u8]>::to_vec).collect())
}

/// Read from the row of a room in the active snapshot; None if there is no row.
fn of_row<T>(room: &[u8], body: impl FnOnce(&dyn Fn(usize) -> Option<Datum>) -> T) -> Result<Option<T>> {
    let table = extension::relation(c"room").ok_or(Error::NotInstalled)?;
    // SAFETY: a scan of our own table, ended and closed below; the lock stays until the transaction ends, as that of a
    // SELECT does. No more columns are read than were found to be there, and their values are copied by the body.
    unsafe {
        let table = pg_sys::table_open(table, pg_sys::AccessShareLock as i32);
        let descriptor = (*table).rd_att;
        if !begins_with(descriptor, &TYPES) {
            return Err(Error::TooManyColumns);
        }
        let mut condition = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyEntryInitialize(
            &mut condition,
            0,
            1,
            pg_sys::BTEqualStrategyNumber as u16,
            pg_sys::InvalidOid,
            (*attribute(descriptor, 0)).attcollation,
            Oid::from(pg_sys::F_TEXTEQ),
            varlena(room),
        );
        let (index, snapshot) = (index::primary(table), pg_sys::GetActiveSnapshot());
        let by_index = index.is_some();
        let index = index.unwrap_or(pg_sys::InvalidOid);
        let scan = pg_sys::systable_beginscan(table, index, by_index, snapshot, 1, &mut condition);
        let tuple = pg_sys::systable_getnext(scan);
        let found = (!tuple.is_null()).then(|| {
            body(&|column| {
                let mut null = false;
                let value = pg_sys::heap_getattr(tuple, column as i32 + 1, descriptor, &mut null);
                (!null).then_some(value)
            })
        });
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(table, pg_sys::NoLock as i32);
        Ok(found)
    }
}
