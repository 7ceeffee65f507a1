//! Objects taken apart and put together again: keys and values as bytes. A value is that of a jsonb of its own, behind
//! the header: equal values have equal bytes.

use super::{OBJECT, SCALAR, Value, for_each_pair, items, read};
use crate::pg::datum::{bytes_of, varlena};
use pgrx::pg_sys::{self, Datum};
use std::collections::BTreeSet;

/// Keys and values of the object with these bytes, in its order; None if it is not an object.
pub fn fields(bytes: &[u8]) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = Vec::new();
    // SAFETY: a value of the object, which is copied.
    each(bytes, |key, value| unsafe {
        found.push((key.to_vec(), bytes_of(Datum::from(pg_sys::JsonbValueToJsonb(value)))));
    })
    .then_some(found)
}

/// The keys of the object with these bytes.
pub fn keys(bytes: &[u8]) -> BTreeSet<Vec<u8>> {
    let mut found = BTreeSet::new();
    each(bytes, |key, _| {
        found.insert(key.to_vec());
    });
    found
}

/// False if it is not an object.
fn each(bytes: &[u8], mut body: impl FnMut(&[u8], *mut pg_sys::JsonbValue)) -> bool {
    // SAFETY: an aligned copy of the bytes of a jsonb; keys are strings.
    unsafe {
        let root = container(varlena(bytes));
        let is_object = (*root).header & OBJECT != 0;
        if is_object {
            for_each_pair(root, |key, value| {
                let key = (*key).val.string;
                body(std::slice::from_raw_parts(key.val as *const u8, key.len as usize), value);
            });
        }
        is_object
    }
}

/// The bytes of an object with these fields.
pub fn object<'a>(fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) -> Vec<u8> {
    use pg_sys::JsonbIteratorToken::*;
    let mut state = std::ptr::null_mut();
    // SAFETY: the state of the builder lives in the current memory context, as do the copies that it points to.
    unsafe {
        pg_sys::pushJsonbValue(&mut state, WJB_BEGIN_OBJECT, std::ptr::null_mut());
        for (key, value) in fields {
            pg_sys::pushJsonbValue(&mut state, WJB_KEY, &mut text(key));
            let mut nested: pg_sys::JsonbValue = std::mem::zeroed();
            nested.type_ = pg_sys::jbvType::jbvBinary;
            nested.val.binary.data = container(varlena(value));
            nested.val.binary.len = value.len() as i32;
            pg_sys::pushJsonbValue(&mut state, WJB_VALUE, &mut nested);
        }
        let whole = pg_sys::pushJsonbValue(&mut state, WJB_END_OBJECT, std::ptr::null_mut());
        bytes_of(Datum::from(pg_sys::JsonbValueToJsonb(whole)))
    }
}

/// The bytes of a string.
pub fn string(content: &[u8]) -> Vec<u8> {
    // SAFETY: a scalar, which is copied.
    unsafe { bytes_of(Datum::from(pg_sys::JsonbValueToJsonb(&mut text(content)))) }
}

/// The bytes of a number.
pub fn number(value: i64) -> Vec<u8> {
    // SAFETY: a jsonb.
    unsafe { bytes_of(super::parse(&value.to_string())) }
}

/// The value of a scalar jsonb with these bytes.
pub fn scalar(bytes: &[u8]) -> Option<Value> {
    // SAFETY: an aligned copy of the bytes of a jsonb; a scalar is a list of one.
    unsafe {
        let root = container(varlena(bytes));
        if (*root).header & SCALAR == 0 {
            return None;
        }
        items(root).into_iter().next().map(|item| read(item, 0))
    }
}

/// # Safety
/// A jsonb in plain memory.
unsafe fn container(jsonb: Datum) -> *mut pg_sys::JsonbContainer {
    // SAFETY: the caller's promise.
    unsafe { &raw mut (*jsonb.cast_mut_ptr::<pg_sys::Jsonb>()).root }
}

/// A string that borrows the text, which must live as long.
fn text(content: &[u8]) -> pg_sys::JsonbValue {
    // SAFETY: all zeroes is a value; the string is set with its type.
    unsafe {
        let mut value: pg_sys::JsonbValue = std::mem::zeroed();
        value.type_ = pg_sys::jbvType::jbvString;
        value.val.string.val = content.as_ptr().cast_mut().cast();
        value.val.string.len = content.len() as i32;
        value
    }
}
