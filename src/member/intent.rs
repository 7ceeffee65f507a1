//! What a verb tells the triggers beyond the rows it writes. Direct DML tells them nothing.
//!
//! An intent belongs to the rows it is about, and to the verb's own statement: what a trigger of somebody else's writes
//! meanwhile, to other rows or to these, is that trigger's own, and its caller is whom it runs as.

use super::revert::Wish;
use crate::access::identity::Identity;
use crate::event::record::Reason;
use pgrx::pg_sys;
use std::cell::RefCell;
use std::rc::Rc;

#[derive(Clone, Default)]
pub struct Intent {
    /// Bind to this session (true), or to none (false).
    pub session: Option<bool>,
    /// Why a deleted member leaves.
    pub reason: Option<Reason>,
    /// The state shown by the leave: jsonb bytes.
    pub last_word: Option<Vec<u8>>,
    /// The row's lease has run out and was claimed: the DELETE is the expiry.
    pub expiring: bool,
    /// The caller, if the statement runs with the owner's rights.
    pub caller: Option<Rc<Identity>>,
    /// What happens to an announced leave.
    pub grace: Grace,
    /// Only system columns are written: no checks, no event.
    pub system_columns_only: bool,
    /// Which revertible parts are set, and for how long. None: none, or for good.
    pub wish: Option<Rc<Wish>>,
    /// The write only reverts what is due, which is no proof of life.
    pub reverting: bool,
    /// The member was present before a crash and is restored: no checks, no event.
    pub restoring: bool,
}

/// What a write does to an announced leave (`grace`).
#[derive(Clone, Copy, Default, PartialEq)]
pub enum Grace {
    /// What the row says.
    #[default]
    AsTheRowSays,
    /// It is cancelled.
    Over,
    /// This write announces it.
    Announced,
}

/// A running statement, and the intent for its rows.
struct Running {
    /// Keyed hashes of the members, sorted.
    members: Vec<u128>,
    /// The trigger depth of the statement's own triggers.
    depth: i32,
    intent: Rc<Intent>,
}

thread_local! {
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
}

/// The intent for this row of the statement whose trigger is running.
pub fn of(member: u128) -> Rc<Intent> {
    let depth = trigger_depth();
    RUNNING.with_borrow(|running| match running {
        Some(running) if running.depth == depth && running.members.binary_search(&member).is_ok() => {
            running.intent.clone()
        }
        _ => Rc::default(),
    })
}

/// While the guard lives, the triggers of the current statement use the intent.
pub struct Guard(Option<Running>);

pub fn set(mut members: Vec<u128>, intent: Intent) -> Guard {
    members.sort_unstable();
    let running = Running { members, depth: trigger_depth() + 1, intent: Rc::new(intent) };
    Guard(RUNNING.replace(Some(running)))
}

impl Drop for Guard {
    fn drop(&mut self) {
        RUNNING.set(self.0.take());
    }
}

fn trigger_depth() -> i32 {
    // SAFETY: pg_trigger_depth() takes nothing, looks at nothing but this process's state, and returns an integer.
    unsafe { pgrx::direct_function_call::<i32>(pg_sys::pg_trigger_depth, &[]) }.unwrap_or(0)
}
