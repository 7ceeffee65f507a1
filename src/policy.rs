//! What others have added to `presence.member`.
//!
//! As soon as its SELECT policies are not the built-in ones, events cannot be routed by audience alone:
//! notifications become doorbells, and the log shows ordinary roles nothing until it gets policies of its own.
//! While nothing at all was added, verbs know by themselves what the policies would say (`member::access`).

use crate::error::Result;
use crate::extension::{self, Extension};
use crate::spi::{self, Connection, Rows, Statement};
use crate::sqlfn::Call;
use pgrx::pg_sys::Datum;
use std::cell::Cell;

static COMPARE: Statement = Statement {
    sql: c"select s.policies operator(pg_catalog.=) presence._policies('presence.member'::pg_catalog.regclass), \
                  pg_catalog.to_regproc('presence._shape') is not null \
           from presence.secret s",
    arguments: &[],
};

/// Not in the SQL of version 0.1.0.
static COMPARE_SHAPE: Statement = Statement {
    sql: c"select o.shape operator(pg_catalog.=) presence._shape('presence.member'::pg_catalog.regclass) \
           from presence._origin o",
    arguments: &[],
};

#[derive(Clone, Copy)]
struct Answers {
    is_builtin: bool,
    is_untouched: bool,
}

thread_local! {
    /// The answers, for as long as nothing changed the table's definition.
    static KNOWN: Cell<Option<(u64, Answers)>> = const { Cell::new(None) };
}

/// Whether the SELECT policies are those that the extension made.
pub fn is_builtin(extension: &Extension) -> Result<bool> {
    answers(extension).map(|answers| answers.is_builtin)
}

/// Whether nobody has added anything that takes part in a write: no policy, trigger, rule or foreign key.
pub fn is_untouched(extension: &Extension) -> Result<bool> {
    answers(extension).map(|answers| answers.is_builtin && answers.is_untouched)
}

fn answers(extension: &Extension) -> Result<Answers> {
    let epoch = extension::epoch();
    if let Some((at, answers)) = KNOWN.get()
        && at == epoch
    {
        return Ok(answers);
    }
    let answers = spi::as_role(extension.owner, || {
        let connection = Connection::open()?;
        let is_true =
            |rows: &Rows, column| rows.get(0, column).is_some_and(|answer| answer.value() as u8 != 0);
        let rows = connection.run(&COMPARE, &[], false)?;
        let is_untouched = is_true(&rows, 1) && is_true(&connection.run(&COMPARE_SHAPE, &[], false)?, 0);
        Ok(Answers { is_builtin: is_true(&rows, 0), is_untouched })
    })?;
    KNOWN.set(Some((epoch, answers)));
    Ok(answers)
}

/// SQL `presence._has_builtin_policies()`.
fn has_builtin_policies(_call: &Call) -> Result<Option<Datum>> {
    Ok(Some(Datum::from(is_builtin(&extension::current()?)?)))
}

crate::sql_function!(
    presence_has_builtin_policies,
    pg_finfo_presence_has_builtin_policies,
    has_builtin_policies
);
