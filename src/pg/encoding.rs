//! Text in the encoding of the database.

use pgrx::pg_sys;
use std::ffi::CStr;

/// The number of characters of a text in the database's encoding.
pub fn characters(text: &[u8]) -> usize {
    // SAFETY: reads `len` bytes at the pointer.
    unsafe { pg_sys::pg_mbstrlen_with_len(text.as_ptr().cast(), text.len() as i32) as usize }
}

pub fn database_encoding() -> pg_sys::pg_enc::Type {
    // SAFETY: plain read of this process's state.
    unsafe { pg_sys::GetDatabaseEncoding() as pg_sys::pg_enc::Type }
}

/// UTF-8 text in the encoding of the database, with question marks for missing characters, and never an error.
pub fn encode_lossy(text: &str) -> Vec<u8> {
    let encodings = [pg_sys::pg_enc::PG_UTF8, pg_sys::pg_enc::PG_SQL_ASCII];
    if encodings.contains(&database_encoding()) {
        return text.as_bytes().to_vec();
    }
    text.chars().map(|character| if character.is_ascii() { character as u8 } else { b'?' }).collect()
}

/// UTF-8 text in the encoding of the database; 22P05 for missing characters.
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

/// Text of the database as UTF-8; invalid bytes become U+FFFD.
pub fn decode(text: &[u8]) -> String {
    // From SQL_ASCII the server converts nothing, and it would refuse invalid UTF-8.
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
