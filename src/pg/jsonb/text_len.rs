//! How long the JSON text of a jsonb is, without making it: a number of three bytes can stand for a hundred thousand
//! digits.
//!
//! Reads the bytes as PostgreSQL keeps them (utils/jsonb.h, utils/adt/numeric.c), a form that pg_upgrade relies on.

const COUNT: u32 = 0x0FFF_FFFF;
const SCALAR: u32 = 0x1000_0000;
const OBJECT: u32 = 0x2000_0000;

const OFFSET_OR_LENGTH: u32 = 0x0FFF_FFFF;
const HAS_OFFSET: u32 = 0x8000_0000;
const KIND: u32 = 0x7000_0000;
const STRING: u32 = 0;
const NUMERIC: u32 = 0x1000_0000;
const FALSE: u32 = 0x2000_0000;
const TRUE: u32 = 0x3000_0000;
const NULL: u32 = 0x4000_0000;
const CONTAINER: u32 = 0x5000_0000;

/// `octet_length(jsonb::text)`, from the bytes after the header of the jsonb. Invalid bytes give the largest number.
pub fn text_len(bytes: &[u8]) -> usize {
    length(bytes).unwrap_or(usize::MAX)
}

fn length(root: &[u8]) -> Option<usize> {
    let mut total = 0usize;
    // No recursion, because the writer chooses the depth.
    let mut open = vec![root];
    while let Some(container) = open.pop() {
        let header = word(container, 0)?;
        let (items, is_object) = ((header & COUNT) as usize, header & OBJECT != 0);
        let entries = if is_object { items * 2 } else { items };
        if header & SCALAR == 0 {
            // {}, with ": " in each pair, and ", " between elements.
            let separators = items.saturating_sub(1) * 2 + if is_object { items * 2 } else { 0 };
            total = total.checked_add(2 + separators)?;
        }
        let data = container.get(4 + entries * 4..)?;
        let mut start = 0;
        for at in 0..entries {
            let entry = word(container, 4 + at * 4)?;
            let number = (entry & OFFSET_OR_LENGTH) as usize;
            let end = if entry & HAS_OFFSET != 0 { number } else { start + number };
            // Numbers and containers are aligned to 4.
            let aligned = || data.get(start.next_multiple_of(4)..end);
            let length = match entry & KIND {
                STRING => string(data.get(start..end)?),
                NUMERIC => numeric(aligned()?)?,
                TRUE | NULL => 4,
                FALSE => 5,
                CONTAINER => {
                    open.push(aligned()?);
                    0
                }
                _ => return None,
            };
            total = total.checked_add(length)?;
            start = end;
        }
    }
    Some(total)
}

/// Including the quotes, as escape_json writes it.
fn string(text: &[u8]) -> usize {
    let escaped = |byte: &u8| match byte {
        b'"' | b'\\' | 0x08 | 0x0C | b'\n' | b'\r' | b'\t' => 1,
        0..0x20 => 5,
        _ => 0,
    };
    2 + text.len() + text.iter().map(escaped).sum::<usize>()
}

/// A numeric with its header, as numeric_out writes it.
fn numeric(bytes: &[u8]) -> Option<usize> {
    const SHORT: u16 = 0x8000;
    const SPECIAL: u16 = 0xC000;
    let digits_header = half(bytes, 4)?;
    let (negative, scale, weight, digits) = match digits_header & SPECIAL {
        // jsonb has neither NaN nor infinity.
        SPECIAL => return None,
        SHORT => {
            let weight = (digits_header & 0x3F) as i32 - if digits_header & 0x40 != 0 { 64 } else { 0 };
            (digits_header & 0x2000 != 0, (digits_header & 0x1F80) >> 7, weight, 6)
        }
        sign => (sign != 0, digits_header & 0x3FFF, half(bytes, 6)? as i16 as i32, 8),
    };
    // Digits are four at a time, and the first has no leading zeros.
    let first = half(bytes, digits).filter(|_| weight >= 0).unwrap_or(0);
    let leading = match first {
        0..10 => 1,
        10..100 => 2,
        100..1_000 => 3,
        _ => 4,
    };
    let fraction = if scale > 0 { 1 + scale as usize } else { 0 };
    Some(negative as usize + leading + 4 * weight.max(0) as usize + fraction)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// {"a": "x\n"}
    fn small() -> Vec<u8> {
        let words = [OBJECT | 1, STRING | HAS_OFFSET | 1, STRING | 2];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend(b"ax\n");
        bytes
    }

    #[test]
    fn a_small_object() {
        assert_eq!(text_len(&small()), r#"{"a": "x\n"}"#.len());
        assert_eq!(text_len(&OBJECT.to_ne_bytes()), 2);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(prop_oneof![0..3u8, any::<u8>()], 0..300)) {
            text_len(&bytes);
        }

        #[test]
        fn a_damaged_one_never_panics(at in 0..3usize, number in any::<u32>()) {
            let mut bytes = small();
            bytes[at * 4..at * 4 + 4].copy_from_slice(&number.to_ne_bytes());
            text_len(&bytes);
        }
    }
}
