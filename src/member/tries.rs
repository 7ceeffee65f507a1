//! How often a write is tried that comes to nothing.

use crate::event::transaction::newest_of_others;
use crate::lease::slot::Key;

/// How many tries in a row may fail although nobody else changes the member: then something prevents the write.
const TRIES: usize = 4;

/// Tries to write a member. Each one waits for the holder of the row or key; if that changes the member, the next try
/// starts from the new state. That is no reason to give up, however often it happens.
pub struct Tries<'a> {
    key: &'a Key,
    newest: u64,
    in_vain: usize,
}

impl Tries<'_> {
    pub fn new(key: &Key) -> Tries<'_> {
        Tries { key, newest: newest_of_others(key), in_vain: 0 }
    }

    /// After a failed try: whether to try again.
    pub fn again(&mut self) -> bool {
        pgrx::check_for_interrupts!();
        let newest = newest_of_others(self.key);
        if newest > self.newest {
            *self = Tries { newest, in_vain: 0, ..*self };
        }
        self.in_vain += 1;
        self.in_vain < TRIES
    }
}
