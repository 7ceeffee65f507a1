//! Utility statements that concern us: a hook sees them all, looks at their kind, and lets them run as ever.

use crate::access::strong_locks;
use crate::event::subscriptions;
use crate::member::session;
use pgrx::pg_sys;
use std::ffi::{CStr, c_char};

static mut PREVIOUS: pg_sys::ProcessUtility_hook_type = None;

unsafe extern "C-unwind" {
    // Called without pgrx's guard, so that an ERROR of any statement passes unchanged.
    fn standard_ProcessUtility(
        statement: *mut pg_sys::PlannedStmt,
        text: *const c_char,
        read_only_tree: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        parameters: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        receiver: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

/// Called from _PG_init in the postmaster.
pub fn install_hook() {
    // SAFETY: the postmaster has one thread, and hooks are chained as every library does.
    unsafe {
        PREVIOUS = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(run);
    }
}

/// Nothing in here needs dropping, because an ERROR of the statement may jump over it.
#[allow(clippy::too_many_arguments)]
unsafe extern "C-unwind" fn run(
    statement: *mut pg_sys::PlannedStmt,
    text: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    receiver: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the statement is valid, and what is called has this signature.
    unsafe {
        let node = (*statement).utilityStmt;
        strong_locks::check(node);
        let next = PREVIOUS.unwrap_or(standard_ProcessUtility);
        next(statement, text, read_only_tree, context, parameters, environment, receiver, completion);
        // While the statement waited, a view that it names may have been replaced.
        strong_locks::check_again(node);
        listens(node);
        // It is never part of a longer transaction, so it cannot be rolled back.
        if discards_all(node) {
            subscriptions::unlisten_all();
            session::end();
        }
    }
}

/// # Safety
/// `statement` is a utility statement's node, or null; it was run.
unsafe fn listens(statement: *mut pg_sys::Node) {
    if statement.is_null() {
        return;
    }
    // SAFETY: the caller's promise; a node's tag says what it is. A channel is a zero-terminated string; of UNLISTEN it is
    // null for all.
    unsafe {
        match (*statement).type_ {
            pg_sys::NodeTag::T_ListenStmt => {
                let channel = (*statement.cast::<pg_sys::ListenStmt>()).conditionname;
                subscriptions::listen(CStr::from_ptr(channel).to_bytes());
            }
            pg_sys::NodeTag::T_UnlistenStmt => {
                let channel = (*statement.cast::<pg_sys::UnlistenStmt>()).conditionname;
                match channel.is_null() {
                    true => subscriptions::unlisten_all(),
                    false => subscriptions::unlisten(CStr::from_ptr(channel).to_bytes()),
                }
            }
            _ => {}
        }
    }
}

/// # Safety
/// `statement` is a utility statement's node, or null.
unsafe fn discards_all(statement: *mut pg_sys::Node) -> bool {
    // SAFETY: the caller's promise; a node's tag says what it is.
    unsafe {
        !statement.is_null()
            && (*statement).type_ == pg_sys::NodeTag::T_DiscardStmt
            && (*statement.cast::<pg_sys::DiscardStmt>()).target == pg_sys::DiscardMode::DISCARD_ALL
    }
}
