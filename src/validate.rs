//! What is a name, a ttl, an audience: one grammar for verbs and triggers.

use crate::error::{Error, Result, printable};
use crate::pg::encoding::{characters, database_encoding};
use pgrx::pg_sys;

pub const MAX_NAME: usize = 255;
/// Bytes of room, member_id and connection_id together, limited by the size of an index entry.
const MAX_KEY: usize = 2_048;
const MAX_NODE_NAME: usize = 63;
pub const MAX_TOKENS: usize = 64;
const MAX_RANKS: usize = 64;
const MIN_TTL: i128 = 1_000_000;
const MAX_TTL: i128 = 30 * 86_400_000_000;
/// 100,000 years.
const MAX_AFTER: i128 = 36_525_000 * 86_400_000_000;

/// room, member_id, user_id: 1 to 255 characters without control characters.
pub fn name(argument: &'static str, text: &[u8]) -> Result<()> {
    if text.is_empty() {
        return Err(Error::InvalidName { argument, why: "It is empty.".into() });
    }
    connection_id(argument, text)
}

/// A connection_id may be empty, for users with a single connection.
pub fn connection_id(argument: &'static str, text: &[u8]) -> Result<()> {
    if text.len() > MAX_NAME && characters(text) > MAX_NAME {
        let why = format!("It has {} characters; the limit is {MAX_NAME}.", characters(text));
        return Err(Error::InvalidName { argument, why });
    }
    if has_control_character(text) {
        return Err(Error::InvalidName { argument, why: "It has a control character.".into() });
    }
    Ok(())
}

/// A server's name is read before there is a database, so only ASCII is allowed.
pub fn node_name(name: &[u8]) -> Result<()> {
    let why = match () {
        _ if name.len() > MAX_NODE_NAME => {
            format!("It has {} bytes; the limit is {MAX_NODE_NAME}.", name.len())
        }
        _ if !name.iter().all(|byte| matches!(byte, b' '..=b'~')) => "It is not printable ASCII.".into(),
        _ => return Ok(()),
    };
    Err(Error::InvalidName { argument: "presence.node_name", why })
}

/// The names that identify a member.
pub fn key(room: &[u8], member_id: &[u8], connection: &[u8]) -> Result<()> {
    name("room", room)?;
    name("member_id", member_id)?;
    connection_id("connection_id", connection)?;
    let size = room.len() + member_id.len() + connection.len();
    if size > MAX_KEY {
        let argument = "room, member_id and connection_id";
        return Err(Error::InvalidName {
            argument,
            why: format!("Together they take {size} bytes; the limit is {MAX_KEY}."),
        });
    }
    Ok(())
}

fn has_control_character(text: &[u8]) -> bool {
    // The C1 controls (U+0080 to U+009F) are 0xC2 0x80 to 0xC2 0x9F in UTF-8.
    let c1 = || {
        !text.is_ascii()
            && is_utf8()
            && text.windows(2).any(|pair| pair[0] == 0xC2 && (0x80..=0x9F).contains(&pair[1]))
    };
    text.iter().any(|byte| *byte < 0x20 || *byte == 0x7F) || c1()
}

fn is_utf8() -> bool {
    database_encoding() == pg_sys::pg_enc::PG_UTF8
}

pub fn status(text: &[u8]) -> Result<()> {
    if text.len() > MAX_NAME && characters(text) > MAX_NAME {
        let why = format!("It has {} characters; the limit is {MAX_NAME}.", characters(text));
        return Err(Error::InvalidName { argument: "status", why });
    }
    Ok(())
}

/// Statuses in the order of their rank; an empty list is one empty element.
pub fn status_rank<'a>(list: impl Iterator<Item = &'a [u8]>) -> Result<()> {
    let wrong = |why| Error::InvalidArgument { argument: "status_rank", why };
    let list: Vec<&[u8]> = list.collect();
    if list == [b""] {
        return Ok(());
    }
    if list.len() > MAX_RANKS {
        return Err(wrong(format!("It has {} statuses; the limit is {MAX_RANKS}.", list.len())));
    }
    for (place, listed) in list.iter().enumerate() {
        status(listed)?;
        if listed.is_empty() {
            return Err(wrong("A status is empty.".into()));
        }
        if list[..place].contains(listed) {
            return Err(wrong(format!("\"{}\" is listed twice.", printable(listed))));
        }
    }
    Ok(())
}

/// Microseconds, 1 s to 30 days.
pub fn ttl(microseconds: i128) -> Result<u64> {
    if (MIN_TTL..=MAX_TTL).contains(&microseconds) { Ok(microseconds as u64) } else { Err(Error::InvalidTtl) }
}

/// The given ttl of a member: 0 is the default.
pub fn given_ttl(microseconds: i128) -> Result<()> {
    if microseconds == 0 { Ok(()) } else { ttl(microseconds).map(|_| ()) }
}

/// Microseconds until a leave, whose time must be a valid timestamp.
pub fn after(microseconds: i128) -> Result<u64> {
    let why = match microseconds {
        ..0 => "It is negative.",
        _ if microseconds > MAX_AFTER => "It is infinite, or longer than 100,000 years.",
        _ => return Ok(microseconds as u64),
    };
    Err(Error::InvalidArgument { argument: "after", why: why.into() })
}

/// The tokens sorted and without duplicates, with `room` expanded, so that equal audiences have equal bytes.
pub fn audience<T: AsRef<[u8]>>(tokens: impl IntoIterator<Item = T>, room: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut list = tokens.into_iter().map(|given| token(given.as_ref(), room)).collect::<Result<Vec<_>>>()?;
    list.sort();
    list.dedup();
    if list.len() > MAX_TOKENS {
        let why = format!("It has {} tokens; the limit is {MAX_TOKENS}.", list.len());
        return Err(Error::InvalidAudience { why });
    }
    Ok(list)
}

fn token(given: &[u8], room: &[u8]) -> Result<Vec<u8>> {
    if given == b"any" || given == b"users" {
        return Ok(given.to_vec());
    }
    if given == b"room" {
        return Ok([b"room:", room].concat());
    }
    let name_part =
        [&b"room:"[..], b"user:", b"team:", b"role:"].iter().find_map(|kind| given.strip_prefix(*kind));
    match name_part {
        Some(part) if name("audience", part).is_ok() => Ok(given.to_vec()),
        _ => Err(Error::InvalidAudience {
            why: format!(
                "\"{}\" is not a token: any, users, room, room:NAME, user:ID, team:ID or role:NAME.",
                printable(given)
            ),
        }),
    }
}

/// Page sizes.
pub fn max_rows(rows: Option<i32>, limit: i32) -> Result<i32> {
    match rows {
        Some(rows) if (1..=limit).contains(&rows) => Ok(rows),
        _ => Err(Error::InvalidMaxRows { limit }),
    }
}
