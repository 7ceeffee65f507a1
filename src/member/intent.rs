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
    /// What the leave shows as state: jsonb bytes.
    pub last_word: Option<Vec<u8>>,
    /// The row's lease has run out and was claimed: its DELETE is the expiry.
    pub expiring: bool,
    /// Who asks, where the statement itself runs with the owner's rights.
    pub caller: Option<Rc<Identity>>,
    /// What becomes of a leave that was announced.
    pub grace: Grace,
    /// Only system columns are written: no check, no event.
    pub system_columns_only: bool,
    /// What is set of what can be undone, and for how long. None: nothing, or nothing will be.
    pub wish: Option<Rc<Wish>>,
    /// What is due is undone, and nothing else: that is no proof of life.
    pub reverting: bool,
    /// The member was here before a crash, and comes back as it was: no check, no event.
    pub restoring: bool,
}

/// What a write means for a leave that is still to come (`grace`).
#[derive(Clone, Copy, Default, PartialEq)]
pub enum Grace {
    /// Nothing else than the row says.
    #[default]
    AsTheRowSays,
    /// There shall be none.
    Over,
    /// It is announced by this very write.
    Announced,
}

/// A statement that is running, and what is wanted of its rows.
struct Running {
    /// Keyed hashes of the members, sorted.
    members: Vec<u128>,
    /// How deep in triggers the statement's own triggers are.
    depth: i32,
    intent: Rc<Intent>,
}

thread_local! {
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
}

/// What is wanted of this row by the statement whose trigger is running.
pub fn of(member: u128) -> Rc<Intent> {
    let depth = trigger_depth();
    RUNNING.with_borrow(|running| match running {
        Some(running) if running.depth == depth && running.members.binary_search(&member).is_ok() => {
            running.intent.clone()
        }
        _ => Rc::default(),
    })
}

/// While the guard lives, the triggers of the statement that runs now know the intent.
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
