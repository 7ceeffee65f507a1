//! Functions that SQL calls: the door between PostgreSQL's calling convention and ours.
//!
//! The SQL side of every function (names, defaults, comment) is written in `sql/*.sql`; here is its body. We take
//! arguments as PostgreSQL has them, because names may be in any encoding and jsonb should pass through untouched.

use crate::error::{Error, Result};
use pgrx::PgMemoryContexts;
use pgrx::pg_sys::{self, Datum, Oid};
use std::ffi::CStr;

/// Define a C function for SQL: `sql_function!(presence_heartbeat, presence_heartbeat_info, heartbeat);`
#[macro_export]
macro_rules! sql_function {
    ($symbol:ident, $info:ident, $body:path) => {
        #[doc(hidden)]
        #[unsafe(no_mangle)]
        pub extern "C" fn $info() -> &'static pgrx::pg_sys::Pg_finfo_record {
            static INFO: pgrx::pg_sys::Pg_finfo_record = pgrx::pg_sys::Pg_finfo_record { api_version: 1 };
            &INFO
        }

        #[doc(hidden)]
        #[pgrx::pg_guard]
        #[unsafe(no_mangle)]
        pub unsafe extern "C-unwind" fn $symbol(call: pgrx::pg_sys::FunctionCallInfo) -> pgrx::pg_sys::Datum {
            let body: fn(&$crate::sqlfn::Call) -> _ = $body;
            // SAFETY: PostgreSQL calls this with a valid call.
            unsafe { $crate::sqlfn::enter(call, body) }
        }
    };
}

/// One call of a function.
pub struct Call {
    info: pg_sys::FunctionCallInfo,
    /// What was current when it was called, and lives until it returns: for what arguments are unpacked to.
    memory: pg_sys::MemoryContext,
}

/// Run the body; None is SQL NULL.
///
/// # Safety
/// `call` is what PostgreSQL passed to a function of call convention 1.
pub unsafe fn enter(call: pg_sys::FunctionCallInfo, body: fn(&Call) -> Result<Option<Datum>>) -> Datum {
    // SAFETY: plain read of this process's state.
    let memory = unsafe { pg_sys::CurrentMemoryContext };
    let result = if crate::shared::is_available() {
        body(&Call { info: call, memory })
    } else {
        Err(Error::NotPreloaded)
    };
    match result {
        Ok(Some(datum)) => datum,
        Ok(None) => {
            // SAFETY: the caller's promise.
            unsafe { (*call).isnull = true };
            Datum::from(0)
        }
        Err(error) => error.raise(),
    }
}

/// A query that is running, told from others by its memory. (PL/pgSQL computes what is no query in memory of the
/// transaction's.)
#[derive(Clone, Copy, PartialEq)]
pub struct Query {
    memory: pg_sys::MemoryContext,
    started: i64,
}

struct AtEnd<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        if let Some(body) = self.0.take() {
            body();
        }
    }
}

impl Call {
    /// An argument as PostgreSQL passed it; None is NULL.
    pub fn datum(&self, index: usize) -> Option<Datum> {
        // SAFETY: the SQL definitions declare as many arguments as the bodies read.
        unsafe {
            debug_assert!(index < (*self.info).nargs as usize);
            let arguments = (*self.info).args.as_slice((*self.info).nargs as usize);
            let argument = arguments.get(index)?;
            (!argument.isnull).then_some(argument.value)
        }
    }

    pub fn text(&self, index: usize) -> Option<&[u8]> {
        // SAFETY: declared text in SQL; arguments and memory live as long as the call.
        self.datum(index).map(|datum| unsafe { text_in(self, self.memory, datum) })
    }

    /// The elements of a one-dimensional text array; Err tells what else it is.
    pub fn texts(&self, index: usize) -> std::result::Result<Option<Texts>, &'static str> {
        // SAFETY: declared text[] in SQL.
        self.datum(index).map(|datum| unsafe { texts_of(datum) }).transpose()
    }

    /// The bytes of a jsonb or an array, without their header.
    pub fn varlena(&self, index: usize) -> Option<&[u8]> {
        // SAFETY: declared as a varlena type in SQL; arguments and memory live as long as the call.
        self.datum(index).map(|datum| unsafe { bytes_in(self, self.memory, datum) })
    }

    pub fn int(&self, index: usize) -> Option<i32> {
        self.datum(index).map(|datum| datum.value() as i32)
    }

    pub fn bigint(&self, index: usize) -> Option<i64> {
        self.datum(index).map(|datum| datum.value() as i64)
    }

    pub fn bool(&self, index: usize) -> Option<bool> {
        self.datum(index).map(|datum| datum.value() as u8 != 0)
    }

    pub fn hash(&self, index: usize) -> Option<u128> {
        // SAFETY: declared uuid in SQL: a pointer to 16 bytes.
        self.datum(index).map(|datum| unsafe { hash_of(datum) })
    }

    /// Interval in microseconds; a month counts 30 days, as in all of PostgreSQL's arithmetic of epochs.
    pub fn interval(&self, index: usize) -> Option<i128> {
        // SAFETY: declared interval in SQL.
        self.datum(index).map(|datum| unsafe { interval_of(datum) })
    }

    /// The query that this call is part of.
    pub fn query(&self) -> Query {
        // SAFETY: the executor's description of the function, which it made in the memory of the query.
        unsafe {
            Query {
                memory: (*(*self.info).flinfo).fn_mcxt,
                started: pg_sys::GetCurrentStatementStartTimestamp(),
            }
        }
    }

    /// Do something when the query ends, however it does: once, wherever the query calls the function.
    pub fn when_query_ends(&self, body: impl FnOnce() + 'static) {
        // SAFETY: as above; `fn_extra` is ours, and null until then.
        unsafe {
            let function = (*self.info).flinfo;
            if (*function).fn_extra.is_null() {
                let end = AtEnd(Some(body));
                let kept = PgMemoryContexts::For((*function).fn_mcxt).leak_and_drop_on_delete(end);
                (*function).fn_extra = kept.cast();
            }
        }
    }

    /// For triggers.
    pub fn trigger(&self) -> Option<&pg_sys::TriggerData> {
        // SAFETY: the context of a call is null or a node, whose tag says what it is.
        unsafe {
            let context = (*self.info).context;
            let is_trigger = !context.is_null() && (*context).type_ == pg_sys::NodeTag::T_TriggerData;
            is_trigger.then(|| &*(context as *const pg_sys::TriggerData))
        }
    }

    /// For set-returning functions that return at most one row: Some is the only row, None is none.
    pub fn at_most_one_row(&self, row: Option<Datum>) -> Result<Option<Datum>> {
        // SAFETY: resultinfo of a set-returning function is a ReturnSetInfo.
        unsafe {
            let info = (*self.info).resultinfo as *mut pg_sys::ReturnSetInfo;
            if !info.is_null() && (*info).type_ == pg_sys::NodeTag::T_ReturnSetInfo {
                (*info).isDone = match row {
                    Some(_) => pg_sys::ExprDoneCond::ExprSingleResult,
                    None => pg_sys::ExprDoneCond::ExprEndResult,
                };
            }
        }
        Ok(row)
    }

    /// For set-returning functions: the rows, each with as many columns as the SQL definition declares.
    pub fn rows(&self, rows: impl IntoIterator<Item = Vec<Option<Datum>>>) -> Result<Option<Datum>> {
        // SAFETY: InitMaterializedSRF prepares the call's ReturnSetInfo or raises; the tuplestore and descriptor
        // it makes are valid until the call returns.
        unsafe {
            materialize(self.info);
            let info = (*self.info).resultinfo as *mut pg_sys::ReturnSetInfo;
            let columns = (*(*info).setDesc).natts as usize;
            for row in rows {
                if row.len() != columns {
                    return Err(Error::TooManyColumns);
                }
                let mut values: Vec<Datum> =
                    row.iter().map(|value| value.unwrap_or(Datum::from(0))).collect();
                let mut nulls: Vec<bool> = row.iter().map(Option::is_none).collect();
                pg_sys::tuplestore_putvalues(
                    (*info).setResult,
                    (*info).setDesc,
                    values.as_mut_ptr(),
                    nulls.as_mut_ptr(),
                );
            }
        }
        Ok(None)
    }
}

#[cfg(feature = "pg15")]
unsafe fn materialize(call: pg_sys::FunctionCallInfo) {
    // SAFETY: the caller's promise. 15 knows it by its first name; a set of one-column rows needs the flag.
    unsafe { pg_sys::SetSingleFuncCall(call, scalar_flag(call)) };
}

#[cfg(not(feature = "pg15"))]
unsafe fn materialize(call: pg_sys::FunctionCallInfo) {
    // SAFETY: the caller's promise.
    unsafe { pg_sys::InitMaterializedSRF(call, scalar_flag(call)) };
}

/// A function that returns SETOF a scalar takes its descriptor from the caller: MAT_SRF_USE_EXPECTED_DESC.
unsafe fn scalar_flag(call: pg_sys::FunctionCallInfo) -> u32 {
    // SAFETY: asks the catalog about this very call.
    unsafe {
        let mut kind_type = pg_sys::InvalidOid;
        let kind = pg_sys::get_call_result_type(call, &mut kind_type, std::ptr::null_mut());
        if kind == pg_sys::TypeFuncClass::TYPEFUNC_SCALAR { 1 } else { 0 }
    }
}

/// The bytes of a text, or of another varlena, without header. They belong to what holds the value.
///
/// # Safety
/// `datum` is a varlena. It, and what is allocated in `memory`, lives as long as the holder.
pub unsafe fn text_in<H>(_holder: &H, memory: pg_sys::MemoryContext, datum: Datum) -> &[u8] {
    // SAFETY: the caller's promise. Where it is packed, it is unpacked into `memory`.
    unsafe {
        let before = pg_sys::MemoryContextSwitchTo(memory);
        let plain = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
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
        let before = pg_sys::MemoryContextSwitchTo(memory);
        let plain = pg_sys::pg_detoast_datum(datum.cast_mut_ptr());
        pg_sys::MemoryContextSwitchTo(before);
        content(plain)
    }
}

/// A copy of the bytes of a varlena without header, for where nobody holds it.
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
        let plain = pg_sys::pg_detoast_datum_packed(given);
        bytes.extend_from_slice(content(plain));
        if plain != given {
            pg_sys::pfree(plain.cast());
        }
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

/// A new uuid of a hash.
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
    let (length, by_value, align) = match element {
        pg_sys::UUIDOID => (16, false, b'c'),
        pg_sys::INT8OID => (8, true, b'd'),
        _ => (-1, false, b'i'),
    };
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

/// A new array of hashes.
pub fn uuids(hashes: &[u128]) -> Datum {
    let values: Vec<Datum> = hashes.iter().map(|hash| uuid(*hash)).collect();
    array(&values, pg_sys::UUIDOID)
}

pub fn text_array<T: AsRef<[u8]>>(texts: impl IntoIterator<Item = T>) -> Datum {
    let values: Vec<Datum> = texts.into_iter().map(|text| varlena(text.as_ref())).collect();
    array(&values, pg_sys::TEXTOID)
}

/// The elements of a text array: a copy of them.
#[derive(Default, PartialEq, Eq)]
pub struct Texts {
    /// One after the other.
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

/// The elements of a one-dimensional text array; Err tells what else it is.
///
/// # Safety
/// `datum` is a text[].
pub unsafe fn texts_of(datum: Datum) -> std::result::Result<Texts, &'static str> {
    // SAFETY: the caller's promise; what is allocated for it is freed.
    unsafe {
        let given = datum.cast_mut_ptr();
        let plain = pg_sys::pg_detoast_datum(given);
        let texts = elements(plain as *mut pg_sys::ArrayType);
        if plain != given {
            pg_sys::pfree(plain.cast());
        }
        texts
    }
}

/// # Safety
/// `array` is a text[] in plain memory.
unsafe fn elements(array: *mut pg_sys::ArrayType) -> std::result::Result<Texts, &'static str> {
    // SAFETY: the caller's promise; what is allocated for the elements is freed.
    unsafe {
        if (*array).ndim > 1 {
            return Err("The array has more than one dimension.");
        }
        let (mut values, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        pg_sys::deconstruct_array(
            array,
            pg_sys::TEXTOID,
            -1,
            false,
            b'i' as _,
            &mut values,
            &mut nulls,
            &mut count,
        );
        let mut texts = Texts::default();
        for at in 0..count as usize {
            if *nulls.add(at) {
                return Err("An element is null.");
            }
            append(&mut texts.bytes, *values.add(at));
            texts.ends.push(texts.bytes.len());
        }
        pg_sys::pfree(values.cast());
        pg_sys::pfree(nulls.cast());
        Ok(texts)
    }
}

/// Characters of a text in the database's encoding.
pub fn characters(text: &[u8]) -> usize {
    // SAFETY: reads `len` bytes at the pointer.
    unsafe { pg_sys::pg_mbstrlen_with_len(text.as_ptr().cast(), text.len() as i32) as usize }
}

pub fn database_encoding() -> pg_sys::pg_enc::Type {
    // SAFETY: plain read of this process's state.
    unsafe { pg_sys::GetDatabaseEncoding() as pg_sys::pg_enc::Type }
}

/// UTF-8 text in the encoding of the database, with question marks for what it does not have, and never an error.
pub fn encode_lossy(text: &str) -> Vec<u8> {
    let encodings = [pg_sys::pg_enc::PG_UTF8, pg_sys::pg_enc::PG_SQL_ASCII];
    if encodings.contains(&database_encoding()) {
        return text.as_bytes().to_vec();
    }
    text.chars().map(|character| if character.is_ascii() { character as u8 } else { b'?' }).collect()
}

/// UTF-8 text in the encoding of the database; 22P05 if it does not have a character.
pub fn encode(text: &str) -> Vec<u8> {
    if text.is_ascii() {
        return text.as_bytes().to_vec();
    }
    // SAFETY: the bytes are valid UTF-8; the result is the same pointer or a new, zero-terminated string.
    unsafe {
        let given = text.as_ptr().cast_mut().cast();
        let converted = pg_sys::pg_any_to_server(given, text.len() as i32, pg_sys::pg_enc::PG_UTF8 as i32);
        if converted == given {
            text.as_bytes().to_vec()
        } else {
            CStr::from_ptr(converted).to_bytes().to_vec()
        }
    }
}

/// Text of the database as UTF-8; bytes that no encoding explains become U+FFFD.
pub fn decode(text: &[u8]) -> String {
    // Of SQL_ASCII the server converts nothing, and would refuse what is no UTF-8.
    if text.is_ascii() || database_encoding() == pg_sys::pg_enc::PG_SQL_ASCII {
        return String::from_utf8_lossy(text).into_owned();
    }
    // SAFETY: text of the database; the result is the same pointer or a new, zero-terminated string.
    unsafe {
        let given = text.as_ptr().cast_mut().cast();
        let converted = pg_sys::pg_server_to_any(given, text.len() as i32, pg_sys::pg_enc::PG_UTF8 as i32);
        let bytes = if converted == given { text } else { CStr::from_ptr(converted).to_bytes() };
        String::from_utf8_lossy(bytes).into_owned()
    }
}
