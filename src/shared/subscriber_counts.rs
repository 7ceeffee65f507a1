//! How many sessions listen to a channel, by the places that its name ends with. Several names share a place. A channel of
//! which all places are shared is notified although nobody listens to it, and that wakes every listener: so each name has
//! three (a Bloom filter that counts). The fixed channel has a place of its own.

use std::sync::atomic::{AtomicU32, Ordering::*};

const PLACES: usize = 1 << 16;
const EACH: usize = 3;

/// `presence_`, 36 hexadecimal digits that nobody can guess, and four for each of its counters.
pub const LENGTH: usize = 57;
pub const PREFIX: &str = "presence_";
const DIGITS: usize = 4 * EACH;

/// The one channel with a fixed, public name.
pub const FIXED: &str = "presence";

#[repr(C)]
pub struct Held {
    counts: [AtomicU32; PLACES + 1],
}

/// The counters for the listeners of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CountedAt([u32; EACH]);

impl CountedAt {
    /// From the lowest bits of a hash.
    pub fn of_hash(hash: u64) -> CountedAt {
        CountedAt(std::array::from_fn(|at| (hash >> (16 * at)) as u32 % PLACES as u32))
    }

    /// The last digits of a name.
    pub fn digits(self) -> String {
        self.0.iter().rev().map(|place| format!("{place:04x}")).collect()
    }
}

/// The counters of a name; None if it is not a name of ours.
pub fn counted_at(name: &[u8]) -> Option<CountedAt> {
    if name == FIXED.as_bytes() {
        return Some(CountedAt([PLACES as u32; EACH]));
    }
    let digits = name.strip_prefix(PREFIX.as_bytes()).filter(|_| name.len() == LENGTH)?;
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let places = str::from_utf8(&digits[digits.len() - DIGITS..]).ok()?;
    let hash = digits.iter().all(is_digit).then(|| u64::from_str_radix(places, 16).ok())?;
    hash.map(CountedAt::of_hash)
}

impl Held {
    pub fn add(&self, at: CountedAt) {
        for place in at.0 {
            self.counts[place as usize].fetch_add(1, SeqCst);
        }
    }

    /// Called by the session that has added it.
    pub fn remove(&self, at: CountedAt) {
        for place in at.0 {
            self.counts[place as usize].fetch_sub(1, SeqCst);
        }
    }

    /// Whether a name with these counters may have listeners.
    pub fn is_held(&self, at: CountedAt) -> bool {
        at.0.iter().all(|place| self.counts[*place as usize].load(SeqCst) > 0)
    }

    /// The number of sessions that listen to a name, or slightly more.
    pub fn count(&self, name: &str) -> u32 {
        let counts = |at: CountedAt| at.0.map(|place| self.counts[place as usize].load(SeqCst));
        counted_at(name.as_bytes()).map_or(0, |at| counts(at).into_iter().min().unwrap_or(0))
    }

    pub fn holds(&self, name: &str) -> bool {
        counted_at(name.as_bytes()).is_some_and(|at| self.is_held(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_have_a_place() {
        let at = CountedAt::of_hash(0xffff_0002_0001_00ff);
        let name = format!("presence_{}{}", "a".repeat(36), at.digits());
        assert_eq!((at.0, &name[45..]), ([255, 1, 2], "0002000100ff"));
        assert_eq!(counted_at(name.as_bytes()), Some(at));
        assert_eq!(counted_at(b"presence"), Some(CountedAt([PLACES as u32; EACH])));
        for other in [&name[..56], &name.to_uppercase(), &name.replace("00ff", "00fg"), "Presence", ""] {
            assert_eq!(counted_at(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_name_of_which_some_places_are_shared_is_not_held() {
        // SAFETY: zero is a valid value of all atomics.
        let held: Box<Held> = unsafe { Box::new(std::mem::zeroed()) };
        let [one, other] = [CountedAt([1, 2, 3]), CountedAt([3, 4, 4])];
        held.add(one);
        held.add(other);
        assert!(
            held.is_held(one) && held.is_held(CountedAt([4, 1, 2])) && !held.is_held(CountedAt([1, 2, 5]))
        );
        held.remove(one);
        assert!(!held.is_held(one) && held.is_held(other));
        held.remove(other);
        assert!(held.counts.iter().all(|count| count.load(SeqCst) == 0));
    }
}
