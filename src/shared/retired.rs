//! Old channel names of the cells of rooms. A session that listens to one is deaf (a library that connected again by itself,
//! say), so it is told to listen again, by that very name.

use super::subscriber_counts::{LENGTH, PREFIX, counted_at};
use std::sync::atomic::{AtomicU64, Ordering::*};

const PLACES: usize = 1 << 12;
/// 48 hexadecimal digits.
const WORDS: usize = 3;
const DIGITS: usize = 16;

/// A name's place follows from the name; the newest one replaces others. Only the worker adds names.
#[repr(C)]
pub struct Retired {
    names: [[AtomicU64; WORDS]; PLACES],
    /// Somebody listens to the name at this place.
    asked: [AtomicU64; PLACES / 64],
}

type Words = [u64; WORDS];

fn words(name: &[u8]) -> Option<Words> {
    counted_at(name).filter(|_| name.len() == LENGTH)?;
    let digits = str::from_utf8(&name[PREFIX.len()..]).ok()?;
    let mut words = [0; WORDS];
    for (at, word) in words.iter_mut().enumerate() {
        *word = u64::from_str_radix(&digits[at * DIGITS..(at + 1) * DIGITS], 16).ok()?;
    }
    Some(words)
}

impl Retired {
    /// The name is not valid any more. Neither fails nor blocks, like `ask`.
    pub fn add(&self, name: &str) {
        if let Some(words) = words(name.as_bytes()) {
            self.put(words);
        }
    }

    fn put(&self, words: Words) {
        let place = words[0] as usize % PLACES;
        self.asked[place / 64].fetch_and(!(1 << (place % 64)), AcqRel);
        self.names[place].iter().zip(words).for_each(|(to, word)| to.store(word, SeqCst));
    }

    /// Somebody has begun to listen to this name.
    pub fn ask(&self, name: &[u8]) {
        if let Some(words) = words(name)
            && self.at(words[0] as usize % PLACES) == words
        {
            let place = words[0] as usize % PLACES;
            self.asked[place / 64].fetch_or(1 << (place % 64), AcqRel);
        }
    }

    fn at(&self, place: usize) -> Words {
        std::array::from_fn(|at| self.names[place][at].load(SeqCst))
    }

    /// The names with listeners that have not been told yet.
    pub fn take_asked(&self) -> Vec<String> {
        let taken = self.asked.iter().enumerate().filter(|(_, word)| word.load(Acquire) != 0);
        let places = taken.flat_map(|(at, word)| {
            let word = word.swap(0, AcqRel);
            (0..64).filter(move |bit| word & 1 << bit != 0).map(move |bit| at * 64 + bit)
        });
        places
            .map(|place| self.at(place).map(|word| format!("{word:016x}")).concat())
            .map(|digits| PREFIX.to_owned() + &digits)
            .collect()
    }

    /// The state for the next start.
    pub fn save(&self) -> Vec<u64> {
        (0..PLACES).map(|place| self.at(place)).filter(|words| *words != [0; WORDS]).flatten().collect()
    }

    pub fn restore(&self, saved: &[u64]) {
        saved.as_chunks().0.iter().for_each(|words| self.put(*words));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_to_a_name_that_was_good_is_told_by_it() {
        // SAFETY: zero is a valid value of all atomics.
        let retired: Box<Retired> = unsafe { Box::new(std::mem::zeroed()) };
        let name = |digit: char| PREFIX.to_owned() + &digit.to_string().repeat(48);
        for digit in ['1', '2', '3'] {
            retired.add(&name(digit));
        }
        for other in [&name('4'), "presence", "", &name('1')[1..], &(name('1')[..56].to_owned() + "0")] {
            retired.ask(other.as_bytes());
        }
        assert_eq!(retired.take_asked(), [""; 0]);
        for digit in ['3', '1', '3'] {
            retired.ask(name(digit).as_bytes());
        }
        let mut asked = retired.take_asked();
        asked.sort();
        assert_eq!(asked, [name('1'), name('3')]);
        assert_eq!(retired.take_asked(), [""; 0]);
        // SAFETY: as above.
        let next: Box<Retired> = unsafe { Box::new(std::mem::zeroed()) };
        next.restore(&retired.save());
        next.ask(name('2').as_bytes());
        assert_eq!(next.take_asked(), [name('2')]);
    }
}
