//! What a verb wants of the triggers beyond the row it writes. Direct DML has no such wishes.

use crate::event::record::Reason;
use crate::identity::Identity;
use std::cell::RefCell;
use std::rc::Rc;

#[derive(Clone, Default)]
pub struct Intent {
    /// Bind to this session (true), or to none (false).
    pub session: Option<bool>,
    /// Why a deleted member leaves.
    pub reason: Option<Reason>,
    /// What the leave shows as state: jsonb bytes.
    pub last_word: Option<Vec<u8>>,
    /// The row's lease has run out and was claimed: its DELETE is the expiry.
    pub expiring: bool,
    /// Who asks, where the statement itself runs with the owner's rights.
    pub caller: Option<Rc<Identity>>,
    /// Only technical columns are written: no check, no event.
    pub technical: bool,
}

thread_local! {
    static INTENT: RefCell<Intent> = RefCell::new(Intent::default());
}

pub fn current() -> Intent {
    INTENT.with_borrow(Clone::clone)
}

/// While the guard lives the triggers know the intent.
pub struct Guard(Intent);

pub fn set(intent: Intent) -> Guard {
    Guard(INTENT.replace(intent))
}

impl Drop for Guard {
    fn drop(&mut self) {
        INTENT.set(std::mem::take(&mut self.0));
    }
}
