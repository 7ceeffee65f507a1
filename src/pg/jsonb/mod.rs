//! jsonb without a detour over text: RFC 7396 merge patch, and JSON text for payloads.

pub mod fields;
mod text_len;

pub use text_len::text_len;

use super::encoding::decode;
use pgrx::pg_sys::{self, Datum};
use std::ffi::CStr;

const SCALAR: u32 = 0x1000_0000;
const OBJECT: u32 = 0x2000_0000;

/// Whether a jsonb is an object.
///
/// # Safety
/// `jsonb` is a jsonb datum.
pub unsafe fn is_object(jsonb: Datum) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let jsonb = pg_sys::pg_detoast_datum(jsonb.cast_mut_ptr()) as *mut pg_sys::Jsonb;
        (*jsonb).root.header & OBJECT != 0
    }
}

/// JSON text, in UTF-8, of the bytes of a jsonb after its header.
pub fn to_text(bytes: &[u8]) -> String {
    // A copy, because a container must be aligned to 4, and bytes from a buffer may not be.
    let datum = crate::pg::datum::varlena(bytes);
    // SAFETY: the bytes are a jsonb container; the result is a new, zero-terminated string.
    unsafe {
        let jsonb = datum.cast_mut_ptr::<pg_sys::Jsonb>();
        let text = pg_sys::JsonbToCString(std::ptr::null_mut(), &raw mut (*jsonb).root, bytes.len() as i32);
        decode(CStr::from_ptr(text).to_bytes())
    }
}

/// JSON text, in UTF-8, if it has at most `limit` bytes. Longer text is not generated: a jsonb of some kilobytes can
/// contain numbers of hundreds of thousands of digits each.
pub fn to_text_within(bytes: &[u8], limit: usize) -> Option<String> {
    (least_length(bytes, limit) <= limit).then(|| to_text(bytes))
}

/// A lower bound of the length of the JSON text; counting stops beyond `limit`.
fn least_length(bytes: &[u8], limit: usize) -> usize {
    use pg_sys::JsonbIteratorToken::*;
    let datum = crate::pg::datum::varlena(bytes);
    let mut length = 0;
    // SAFETY: the bytes are a jsonb container; a scalar of the iterator is what its type says.
    unsafe {
        let jsonb = datum.cast_mut_ptr::<pg_sys::Jsonb>();
        let mut iterator = pg_sys::JsonbIteratorInit(&raw mut (*jsonb).root);
        let mut value: pg_sys::JsonbValue = std::mem::zeroed();
        while length <= limit {
            match pg_sys::JsonbIteratorNext(&mut iterator, &mut value, false) {
                WJB_DONE => break,
                WJB_KEY | WJB_VALUE | WJB_ELEM => {
                    length += match value.type_ {
                        pg_sys::jbvType::jbvString => value.val.string.len as usize + 2,
                        pg_sys::jbvType::jbvNumeric => least_digits(Datum::from(value.val.numeric)),
                        _ => 4,
                    }
                }
                _ => {}
            }
        }
        pg_sys::pfree(datum.cast_mut_ptr());
    }
    length
}

/// A lower bound of the digits of a number, as stored: its display scale, and four decimal digits for each unit of its
/// weight (src/backend/utils/adt/numeric.c).
///
/// # Safety
/// `number` is a numeric of a jsonb, neither compressed nor toasted.
unsafe fn least_digits(number: Datum) -> usize {
    // SAFETY: the caller's promise.
    let bytes = unsafe {
        let number = number.cast_mut_ptr::<pg_sys::varlena>();
        std::slice::from_raw_parts(pgrx::vardata_any(number) as *const u8, pgrx::varsize_any_exhdr(number))
    };
    let word =
        |at: usize| bytes.get(at..at + 2).and_then(|two| two.try_into().ok()).map_or(0, u16::from_ne_bytes);
    let header = word(0);
    let (scale, weight) = if header & 0x8000 != 0 {
        let magnitude = i32::from(header & 0x3f);
        (header >> 7 & 0x3f, if header & 0x40 != 0 { magnitude - 0x40 } else { magnitude })
    } else {
        (header & 0x3fff, i32::from(word(2) as i16))
    };
    usize::from(scale) + 4 * weight.max(0) as usize + 1
}

/// RFC 7396: keys of `patch` replace those of `target`, objects merge, null removes.
///
/// # Safety
/// Both are jsonb datums; `patch` is an object.
pub unsafe fn merge_patch(target: Datum, patch: Datum) -> Datum {
    // SAFETY: the caller's promise; the state of the builder lives in the current memory context.
    unsafe {
        let target = pg_sys::pg_detoast_datum(target.cast_mut_ptr()) as *mut pg_sys::Jsonb;
        let patch = pg_sys::pg_detoast_datum(patch.cast_mut_ptr()) as *mut pg_sys::Jsonb;
        let mut state = std::ptr::null_mut();
        let result = merge(&mut state, &raw mut (*target).root, &raw mut (*patch).root);
        Datum::from(pg_sys::JsonbValueToJsonb(result))
    }
}

/// # Safety
/// Both point to jsonb containers, `patch` to an object; `target` may be null.
unsafe fn merge(
    state: *mut *mut pg_sys::JsonbParseState,
    target: *mut pg_sys::JsonbContainer,
    patch: *mut pg_sys::JsonbContainer,
) -> *mut pg_sys::JsonbValue {
    use pg_sys::JsonbIteratorToken::*;
    // SAFETY: the caller's promise; pushJsonbValue takes keys and values as the iterator gives them.
    unsafe {
        pg_sys::check_stack_depth();
        let target =
            if !target.is_null() && (*target).header & OBJECT != 0 { target } else { std::ptr::null_mut() };
        pg_sys::pushJsonbValue(state, WJB_BEGIN_OBJECT, std::ptr::null_mut());
        if !target.is_null() {
            for_each_pair(target, |key, value| {
                if find(patch, key).is_null() {
                    pg_sys::pushJsonbValue(state, WJB_KEY, key);
                    pg_sys::pushJsonbValue(state, WJB_VALUE, value);
                }
            });
        }
        for_each_pair(patch, |key, value| {
            if (*value).type_ == pg_sys::jbvType::jbvNull {
                return;
            }
            pg_sys::pushJsonbValue(state, WJB_KEY, key);
            match object(value) {
                Some(inner) => {
                    let held = if target.is_null() { std::ptr::null_mut() } else { find(target, key) };
                    let held = if held.is_null() { None } else { object(held) };
                    merge(state, held.unwrap_or(std::ptr::null_mut()), inner);
                }
                None => {
                    pg_sys::pushJsonbValue(state, WJB_VALUE, value);
                }
            }
        });
        pg_sys::pushJsonbValue(state, WJB_END_OBJECT, std::ptr::null_mut())
    }
}

/// The container of a value, if it is an object.
unsafe fn object(value: *mut pg_sys::JsonbValue) -> Option<*mut pg_sys::JsonbContainer> {
    // SAFETY: a value of an iterator; nested containers are jbvBinary.
    unsafe {
        if (*value).type_ != pg_sys::jbvType::jbvBinary {
            return None;
        }
        let container = (*value).val.binary.data;
        ((*container).header & OBJECT != 0 && (*container).header & SCALAR == 0).then_some(container)
    }
}

unsafe fn find(
    container: *mut pg_sys::JsonbContainer,
    key: *mut pg_sys::JsonbValue,
) -> *mut pg_sys::JsonbValue {
    // SAFETY: an object container and a string key.
    unsafe { pg_sys::findJsonbValueFromContainer(container, OBJECT, key) }
}

/// Call `body` with each key and value of an object, without opening nested containers.
unsafe fn for_each_pair(
    container: *mut pg_sys::JsonbContainer,
    mut body: impl FnMut(*mut pg_sys::JsonbValue, *mut pg_sys::JsonbValue),
) {
    use pg_sys::JsonbIteratorToken::*;
    // SAFETY: an object container; key and value are zeroed before the iterator fills them, and copied nowhere.
    unsafe {
        let mut iterator = pg_sys::JsonbIteratorInit(container);
        let mut key: pg_sys::JsonbValue = std::mem::zeroed();
        let mut value: pg_sys::JsonbValue = std::mem::zeroed();
        loop {
            match pg_sys::JsonbIteratorNext(&mut iterator, &mut key, true) {
                WJB_DONE => return,
                WJB_KEY => {
                    pg_sys::JsonbIteratorNext(&mut iterator, &mut value, true);
                    body(&mut key, &mut value);
                }
                _ => {}
            }
        }
    }
}

/// A JSON value, opened as far as an object in a list; deeper values stay jsonb.
pub enum Value {
    Null,
    Text(Vec<u8>),
    /// As text.
    Number(Vec<u8>),
    Bool(bool),
    List(Vec<Value>),
    Object(Vec<(String, Value)>),
    /// An unopened object or list.
    Nested(Datum),
}

impl Value {
    /// Converted back to jsonb.
    pub fn to_jsonb(&self) -> Datum {
        match self {
            Value::Nested(jsonb) => *jsonb,
            Value::Null => parse("null"),
            Value::Bool(value) => parse(if *value { "true" } else { "false" }),
            Value::Number(text) => parse(&decode(text)),
            Value::Text(text) => parse(&serde_json::Value::String(decode(text)).to_string()),
            Value::List(_) | Value::Object(_) => parse("null"),
        }
    }
}

pub fn of_json(json: &serde_json::Value) -> Datum {
    parse(&json.to_string())
}

/// jsonb from valid JSON text.
fn parse(json: &str) -> Datum {
    let text = std::ffi::CString::new(crate::pg::encoding::encode(json)).unwrap_or_default();
    // SAFETY: jsonb_in(cstring).
    unsafe { pgrx::direct_function_call::<Datum>(pg_sys::jsonb_in, &[Some(Datum::from(text.as_ptr()))]) }
        .unwrap_or(Datum::from(0))
}

/// A list of objects, opened to the values of their fields; lists of scalars in these are opened, too. None if it is
/// not a list.
///
/// # Safety
/// `jsonb` is a jsonb datum.
pub unsafe fn read_list(jsonb: Datum) -> Option<Vec<Value>> {
    // SAFETY: the caller's promise.
    unsafe {
        let jsonb = pg_sys::pg_detoast_datum(jsonb.cast_mut_ptr()) as *mut pg_sys::Jsonb;
        let root = &raw mut (*jsonb).root;
        if (*root).header & OBJECT != 0 || (*root).header & SCALAR != 0 {
            return None;
        }
        Some(items(root).into_iter().map(|item| read(item, 2)).collect())
    }
}

/// Open a value, `depth` levels deep.
unsafe fn read(mut value: pg_sys::JsonbValue, depth: usize) -> Value {
    use pg_sys::jbvType;
    // SAFETY: a value of an iterator, whose union member its type tells.
    unsafe {
        match value.type_ {
            jbvType::jbvNull => Value::Null,
            jbvType::jbvBool => Value::Bool(value.val.boolean),
            jbvType::jbvString => {
                let text = value.val.string;
                Value::Text(std::slice::from_raw_parts(text.val as *const u8, text.len as usize).to_vec())
            }
            jbvType::jbvNumeric => {
                let numeric = Datum::from(value.val.numeric);
                let text = pgrx::direct_function_call::<&CStr>(pg_sys::numeric_out, &[Some(numeric)]);
                Value::Number(text.map(|text| text.to_bytes().to_vec()).unwrap_or_default())
            }
            _ => {
                let container = value.val.binary.data;
                let is_object = (*container).header & OBJECT != 0;
                match (is_object, depth) {
                    (true, 2) => {
                        let mut fields = Vec::new();
                        for_each_pair(container, |key, value| {
                            let name = (*key).val.string;
                            let name = std::slice::from_raw_parts(name.val as *const u8, name.len as usize);
                            let opens = decode(name) == "audience";
                            fields.push((decode(name), read(*value, if opens { 1 } else { 0 })));
                        });
                        Value::Object(fields)
                    }
                    (false, 1) => {
                        Value::List(items(container).into_iter().map(|item| read(item, 0)).collect())
                    }
                    _ => Value::Nested(Datum::from(pg_sys::JsonbValueToJsonb(&mut value))),
                }
            }
        }
    }
}

/// The elements of a list, without opening nested containers.
unsafe fn items(container: *mut pg_sys::JsonbContainer) -> Vec<pg_sys::JsonbValue> {
    use pg_sys::JsonbIteratorToken::*;
    let mut items = Vec::new();
    // SAFETY: a list container; each value is zeroed before the iterator fills it.
    unsafe {
        let mut iterator = pg_sys::JsonbIteratorInit(container);
        loop {
            let mut value: pg_sys::JsonbValue = std::mem::zeroed();
            match pg_sys::JsonbIteratorNext(&mut iterator, &mut value, true) {
                WJB_DONE => return items,
                WJB_ELEM => items.push(value),
                _ => {}
            }
        }
    }
}
