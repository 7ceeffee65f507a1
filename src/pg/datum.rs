//! Values as PostgreSQL passes them, and as Rust has them.

use pgrx::pg_sys::{self, Datum, Oid};
use std::ffi::CStr;

/// The bytes of a text, or of another varlena, without header. They borrow from the holder of the value.
///
/// # Safety
/// `datum` is a varlena. It, and what is allocated in `memory`, lives as long as the holder.
pub unsafe fn text_in<H>(_holder: &H, memory: pg_sys::MemoryContext, datum: Datum) -> &[u8] {
    // SAFETY: the caller's promise. Where it is packed, it is unpacked into `memory`.
    unsafe {
        let given = datum.cast_mut_ptr();
        if is_plain(given) {
            return content(given);
        }
        let before = pg_sys::MemoryContextSwitchTo(memory);
        let plain = pg_sys::pg_detoast_datum_packed(given);
        pg_sys::MemoryContextSwitchTo(before);
        content(plain)
    }
}

/// The same with a full header, so that the bytes are aligned (jsonb, arrays).
///
/// # Safety
/// As above.
pub unsafe fn bytes_in<H>(_holder: &H, memory: pg_sys::MemoryContext, datum: Datum) -> &[u8] {
    // SAFETY: as above.
    unsafe {
        let given = datum.cast_mut_ptr();
        if pgrx::varatt_is_4b_u(given) {
            return content(given);
        }
        let before = pg_sys::MemoryContextSwitchTo(memory);
        let plain = pg_sys::pg_detoast_datum(given);
        pg_sys::MemoryContextSwitchTo(before);
        content(plain)
    }
}

/// A copy of the bytes of a varlena without header, if nothing holds it.
///
/// # Safety
/// `datum` is a text or another varlena.
pub unsafe fn bytes_of(datum: Datum) -> Vec<u8> {
    let mut bytes = Vec::new();
    // SAFETY: the caller's promise.
    unsafe { append(&mut bytes, datum) };
    bytes
}

/// # Safety
/// As above.
unsafe fn append(bytes: &mut Vec<u8>, datum: Datum) {
    // SAFETY: the caller's promise; what it was unpacked to is ours.
    unsafe {
        let given = datum.cast_mut_ptr();
        if is_plain(given) {
            return bytes.extend_from_slice(content(given));
        }
        let plain = pg_sys::pg_detoast_datum_packed(given);
        bytes.extend_from_slice(content(plain));
        if plain != given {
            pg_sys::pfree(plain.cast());
        }
    }
}

/// Whether it is neither compressed nor stored out of line, which can be seen without asking the server.
///
/// # Safety
/// `varlena` is one.
unsafe fn is_plain(varlena: *const pg_sys::varlena) -> bool {
    // SAFETY: the caller's promise; only the header is looked at.
    unsafe {
        pgrx::varatt_is_4b_u(varlena) || (pgrx::varatt_is_1b(varlena) && !pgrx::varatt_is_1b_e(varlena))
    }
}

/// # Safety
/// `varlena` is one in plain memory, which lives as long as the result is used.
unsafe fn content<'a>(varlena: *const pg_sys::varlena) -> &'a [u8] {
    // SAFETY: the caller's promise.
    unsafe {
        std::slice::from_raw_parts(pgrx::vardata_any(varlena) as *const u8, pgrx::varsize_any_exhdr(varlena))
    }
}

/// # Safety
/// `datum` is a uuid.
pub unsafe fn hash_of(datum: Datum) -> u128 {
    // SAFETY: the caller's promise: 16 bytes.
    let bytes = unsafe { *datum.cast_mut_ptr::<[u8; 16]>() };
    u128::from_be_bytes(bytes)
}

/// # Safety
/// `datum` is an interval.
pub unsafe fn interval_of(datum: Datum) -> i128 {
    // SAFETY: the caller's promise.
    let interval = unsafe { *datum.cast_mut_ptr::<pg_sys::Interval>() };
    const DAY: i128 = 86_400_000_000;
    interval.time as i128 + (interval.day as i128 + interval.month as i128 * 30) * DAY
}

/// A new text (or jsonb, or array: any varlena) of these bytes.
pub fn varlena(bytes: &[u8]) -> Datum {
    // SAFETY: copies the bytes into the current memory context, with a header.
    unsafe { Datum::from(pg_sys::cstring_to_text_with_len(bytes.as_ptr().cast(), bytes.len() as i32)) }
}

/// A new uuid from a hash.
pub fn uuid(hash: u128) -> Datum {
    // SAFETY: palloc gives room for 16 bytes or raises.
    unsafe {
        let place = pg_sys::palloc(16) as *mut [u8; 16];
        *place = hash.to_be_bytes();
        Datum::from(place)
    }
}

pub fn interval(microseconds: i64) -> Datum {
    // SAFETY: palloc gives room for an interval or raises.
    unsafe {
        let place = pg_sys::palloc(size_of::<pg_sys::Interval>()) as *mut pg_sys::Interval;
        *place = pg_sys::Interval { time: microseconds, day: 0, month: 0 };
        Datum::from(place)
    }
}

/// A new array of values of one type.
pub fn array(values: &[Datum], element: Oid) -> Datum {
    let (length, by_value, align) = layout(element);
    // SAFETY: the values are of the element's type; construct_array copies them.
    unsafe {
        Datum::from(pg_sys::construct_array(
            values.as_ptr().cast_mut(),
            values.len() as i32,
            element,
            length,
            by_value,
            align as _,
        ))
    }
}

/// The same with possible NULLs.
pub fn nullable_array(values: &[Option<Datum>], element: Oid) -> Datum {
    let mut datums: Vec<Datum> = values.iter().map(|value| value.unwrap_or(Datum::from(0))).collect();
    let mut nulls: Vec<bool> = values.iter().map(Option::is_none).collect();
    let (length, by_value, align) = layout(element);
    // SAFETY: the values are of the element's type; construct_md_array copies them.
    unsafe {
        Datum::from(pg_sys::construct_md_array(
            datums.as_mut_ptr(),
            nulls.as_mut_ptr(),
            1,
            [values.len() as i32].as_mut_ptr(),
            [1].as_mut_ptr(),
            element,
            length,
            by_value,
            align as _,
        ))
    }
}

/// The layout of a type's elements in an array: length, by-value, alignment.
fn layout(element: Oid) -> (i32, bool, u8) {
    match element {
        pg_sys::UUIDOID => (16, false, b'c'),
        pg_sys::INT8OID | pg_sys::TIMESTAMPTZOID => (8, true, b'd'),
        _ => (-1, false, b'i'),
    }
}

/// A new uuid array from hashes.
pub fn uuids(hashes: &[u128]) -> Datum {
    let values: Vec<Datum> = hashes.iter().map(|hash| uuid(*hash)).collect();
    array(&values, pg_sys::UUIDOID)
}

pub fn text_array<T: AsRef<[u8]>>(texts: impl IntoIterator<Item = T>) -> Datum {
    let values: Vec<Datum> = texts.into_iter().map(|text| varlena(text.as_ref())).collect();
    array(&values, pg_sys::TEXTOID)
}

/// Copies of the elements of a text array.
#[derive(Default, PartialEq, Eq)]
pub struct Texts {
    /// Concatenated.
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Texts {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|at| &self[at])
    }
}

impl std::ops::Index<usize> for Texts {
    type Output = [u8];

    fn index(&self, at: usize) -> &[u8] {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.bytes[start..self.ends[at]]
    }
}

/// The elements of a one-dimensional text array; Err says what else it is.
///
/// # Safety
/// `datum` is a text[].
pub unsafe fn texts_of(datum: Datum) -> std::result::Result<Texts, &'static str> {
    // SAFETY: the caller's promise; what is allocated for it is freed.
    unsafe {
        let given = datum.cast_mut_ptr();
        let plain = pg_sys::pg_detoast_datum_packed(given);
        let texts = elements(content(plain)).map(|elements| {
            let mut texts = Texts::default();
            for element in elements {
                texts.bytes.extend_from_slice(element);
                texts.ends.push(texts.bytes.len());
            }
            texts
        });
        if plain != given {
            pg_sys::pfree(plain.cast());
        }
        texts
    }
}

/// The elements of a one-dimensional text array in place, from its bytes after the header; Err says what else it is.
///
/// # Safety
/// They are those of a text[].
pub unsafe fn elements(array: &[u8]) -> std::result::Result<Elements<'_>, &'static str> {
    // ArrayType: ndim, dataoffset (0: no element can be null), elemtype; for each dimension its length and its lower
    // bound; then, if elements can be null, a bitmap.
    const DATA: usize = 20;
    let number = |at: usize| word(array, 4 * at).unwrap_or(0) as usize;
    let (dimensions, offset, left) = (number(0), number(1), number(3));
    let is_null = |at: usize| array.get(DATA + at / 8).is_none_or(|bits| bits & 1 << (at % 8) == 0);
    match dimensions {
        0 => Ok(Elements { array, at: 0, left: 0 }),
        1 if offset == 0 => Ok(Elements { array, at: DATA, left }),
        1 if (0..left).any(is_null) => Err("An element is null."),
        1 => Ok(Elements { array, at: offset - size_of::<u32>(), left }),
        _ => Err("The array has more than one dimension."),
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub struct Elements<'a> {
    array: &'a [u8],
    at: usize,
    left: usize,
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        // The header of a short element is not 0, and not aligned.
        if *self.array.get(self.at)? == 0 {
            self.at = self.at.next_multiple_of(4);
        }
        let first = self.array.get(self.at)?;
        // SAFETY: the header of an element, which is neither compressed nor elsewhere; an aligned copy of it where it is long.
        let (header, length) = unsafe {
            if pgrx::varatt_is_1b(std::ptr::from_ref(first).cast()) {
                (1, pgrx::varsize_1b(std::ptr::from_ref(first).cast()))
            } else {
                let long = word(self.array, self.at)?;
                (4, pgrx::varsize_4b((&raw const long).cast()))
            }
        };
        let element = self.array.get(self.at + header..self.at + length)?;
        self.at += length;
        Some(element)
    }
}

/// Whether a descriptor begins with columns of these types. Others may follow.
///
/// # Safety
/// A descriptor.
pub unsafe fn begins_with(descriptor: pg_sys::TupleDesc, types: &[Oid]) -> bool {
    // SAFETY: the caller's promise; no more attributes are looked at than there are.
    unsafe {
        (*descriptor).natts as usize >= types.len()
            && types.iter().enumerate().all(|(at, of_type)| {
                let column = &*attribute(descriptor, at as i32);
                column.atttypid == *of_type && !column.attisdropped
            })
    }
}

/// One attribute of a descriptor.
///
/// # Safety
/// The descriptor has more than `at` attributes.
pub unsafe fn attribute(descriptor: pg_sys::TupleDesc, at: i32) -> *const pg_sys::FormData_pg_attribute {
    // SAFETY: the caller's promise.
    #[cfg(feature = "pg18")]
    unsafe {
        pg_sys::TupleDescAttr(descriptor, at)
    }
    // SAFETY: the caller's promise.
    #[cfg(not(feature = "pg18"))]
    unsafe {
        (*descriptor).attrs.as_ptr().add(at as usize)
    }
}

/// Whether an attribute of a descriptor has this name.
///
/// # Safety
/// As above.
pub unsafe fn is_named(descriptor: pg_sys::TupleDesc, at: i32, name: &CStr) -> bool {
    // SAFETY: the caller's promise; the name is zero-terminated.
    unsafe { CStr::from_ptr((*attribute(descriptor, at)).attname.data.as_ptr()) == name }
}
