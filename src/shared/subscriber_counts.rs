//! How many sessions listen to a channel, by the place that its name ends with. Several names share a place, so a channel may
//! be notified although nobody listens to it. The fixed channel has a place of its own.

use std::sync::atomic::{AtomicU32, Ordering::*};

pub const PLACES: usize = 1 << 16;

/// `presence_`, 44 hexadecimal digits that nobody can guess, and four of the place.
pub const LENGTH: usize = 57;
pub const PREFIX: &str = "presence_";
const DIGITS: usize = 4;

/// The one channel whose name everybody knows, and never changes.
pub const FIXED: &str = "presence";

#[repr(C)]
pub struct Held {
    counts: [AtomicU32; PLACES + 1],
}

/// The place of a name; None if it is no name of ours.
pub fn place_of(name: &[u8]) -> Option<usize> {
    if name == FIXED.as_bytes() {
        return Some(PLACES);
    }
    let digits = name.strip_prefix(PREFIX.as_bytes()).filter(|_| name.len() == LENGTH)?;
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let place = str::from_utf8(&digits[digits.len() - DIGITS..]).ok()?;
    digits.iter().all(is_digit).then(|| usize::from_str_radix(place, 16).ok())?
}

impl Held {
    pub fn add(&self, place: usize) {
        self.counts[place].fetch_add(1, SeqCst);
    }

    /// By whoever has added it.
    pub fn remove(&self, place: usize) {
        self.counts[place].fetch_sub(1, SeqCst);
    }

    /// Whether somebody may listen to a name with this place.
    pub fn is_held(&self, place: usize) -> bool {
        self.counts[place].load(SeqCst) > 0
    }

    pub fn holds(&self, name: &str) -> bool {
        place_of(name.as_bytes()).is_some_and(|place| self.is_held(place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_have_a_place() {
        let name = format!("presence_{}00ff", "a".repeat(44));
        assert_eq!(place_of(name.as_bytes()), Some(255));
        assert_eq!(place_of(b"presence"), Some(PLACES));
        for other in [&name[..56], &name.to_uppercase(), &name.replace("00ff", "00fg"), "Presence", ""] {
            assert_eq!(place_of(other.as_bytes()), None, "{other}");
        }
    }
}
