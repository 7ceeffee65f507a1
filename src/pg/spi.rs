//! Queries from inside the server: kept plans, one for each statement and role.
//!
//! A plan under row-level security belongs to the role it was made for; a plan kept over a change of role is
//! planned anew each time. So each role gets its own. A pooled session may be a role for each user, so only those
//! that were used last are kept.

use super::memory::within;
use super::rows::Rows;
use crate::error::{Error, Result};
use crate::extension;
use pgrx::pg_sys::{self, Datum, Oid};
use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::rc::Rc;

/// A statement of ours, identified by its address. It names internal objects with the schema `_presence`.
pub struct Statement {
    pub sql: &'static CStr,
    pub arguments: &'static [Oid],
}

/// A statement whose text is concatenated.
macro_rules! statement {
    ($arguments:expr, $($part:expr),+) => {
        $crate::pg::spi::Statement {
            sql: match std::ffi::CStr::from_bytes_with_nul(concat!($($part),+, "\0").as_bytes()) {
                Ok(sql) => sql,
                Err(_) => c"",
            },
            arguments: &$arguments,
        }
    };
}
pub(crate) use statement;

/// How many plans a session keeps; each takes about 20 to 70 kB.
const KEPT_PLANS: usize = 32;

thread_local! {
    static PLANS: RefCell<Plans> = RefCell::default();
}

/// A plan that outlives the transaction, shared by those who run it.
struct Plan {
    prepared: pg_sys::SPIPlanPtr,
    /// The schema of internal objects, if it names any.
    internals: Option<Internals>,
}

/// The schema of internal objects depends on the version of the SQL.
#[derive(Clone, Copy, PartialEq)]
enum Internals {
    Apart,
    /// In `presence`, as before 0.3.0.
    WithTheRest,
}

impl Internals {
    /// The current one, which does not change while this transaction uses it.
    fn now() -> Internals {
        if extension::has_internal_schema() { Internals::Apart } else { Internals::WithTheRest }
    }
}

/// The text with the actual names of internal objects, if it names any.
fn localized(sql: &CStr) -> Result<(Cow<'_, CStr>, Option<Internals>)> {
    const NAMED: &[u8] = b"_presence.";
    let text = sql.to_bytes();
    let is_name = |at: usize| text[at..].starts_with(NAMED);
    if !(0..text.len()).any(is_name) {
        return Ok((Cow::Borrowed(sql), None));
    }
    let internals = Internals::now();
    if internals == Internals::Apart {
        return Ok((Cow::Borrowed(sql), Some(internals)));
    }
    // Without the underscore.
    let kept = (0..text.len()).filter(|at| !is_name(*at)).map(|at| text[at]).collect::<Vec<_>>();
    let kept = CString::new(kept).map_err(|_| Error::Spi { code: pg_sys::SPI_ERROR_ARGUMENT })?;
    Ok((Cow::Owned(kept), Some(internals)))
}

#[derive(Default)]
struct Plans {
    /// By statement and role, with the turn of the last use.
    kept: HashMap<(usize, Oid), (Rc<Plan>, u64)>,
    turn: u64,
    /// Evicted, but still running when they were: a statement may call us again.
    leaving: Vec<Rc<Plan>>,
}

impl Plans {
    fn find(&mut self, key: (usize, Oid)) -> Option<Rc<Plan>> {
        self.turn += 1;
        let (plan, used) = self.kept.get_mut(&key)?;
        *used = self.turn;
        Some(plan.clone())
    }

    /// Returns the plans to be freed.
    fn keep(&mut self, key: (usize, Oid), plan: Rc<Plan>) -> Vec<Rc<Plan>> {
        if self.kept.len() >= KEPT_PLANS {
            let oldest = self.kept.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
            self.leaving.extend(oldest.and_then(|oldest| self.kept.remove(&oldest)).map(|(plan, _)| plan));
        }
        self.leaving.extend(self.kept.insert(key, (plan, self.turn)).map(|(plan, _)| plan));
        // While an ERROR unwinds plans are only abandoned, not freed: so this is the place, and not a `drop`.
        let (running, over) = self.leaving.drain(..).partition(|plan| Rc::strong_count(plan) > 1);
        self.leaving = running;
        over
    }
}

/// An SPI connection; results of statements borrow from it.
pub struct Connection {
    caller: pg_sys::MemoryContext,
}

impl Connection {
    pub fn open() -> Result<Connection> {
        // SAFETY: plain call; the memory context is the caller's, for `in_caller`.
        unsafe {
            let caller = pg_sys::CurrentMemoryContext;
            match pg_sys::SPI_connect() {
                code if code < 0 => Err(Error::Spi { code }),
                _ => Ok(Connection { caller }),
            }
        }
    }

    /// Run a statement as the current role. With `write` false it is read-only.
    pub fn run(
        &self,
        statement: &'static Statement,
        values: &[Option<Datum>],
        write: bool,
    ) -> Result<Rows<'_>> {
        let plan = plan(statement)?;
        let mut datums: Vec<Datum> = values.iter().map(|value| value.unwrap_or(Datum::from(0))).collect();
        let nulls: Vec<u8> = values.iter().map(|value| if value.is_some() { b' ' } else { b'n' }).collect();
        // SAFETY: as many values as the statement has arguments; a kept plan, which nobody frees while we hold it.
        self.rows(|| unsafe {
            pg_sys::SPI_execute_plan(plan.prepared, datums.as_mut_ptr(), nulls.as_ptr().cast(), !write, 0)
        })
    }

    /// Run SQL that is generated, without keeping its plan.
    pub fn run_text(&self, sql: &CStr, write: bool) -> Result<Rows<'_>> {
        let (sql, _) = localized(sql)?;
        // SAFETY: a C string.
        self.rows(|| unsafe { pg_sys::SPI_execute(sql.as_ptr(), !write, 0) })
    }

    /// The same with arguments of these types.
    pub fn run_once(&self, sql: &CStr, arguments: &[(Oid, Datum)]) -> Result<Rows<'_>> {
        let mut types: Vec<Oid> = arguments.iter().map(|(of_type, _)| *of_type).collect();
        let mut values: Vec<Datum> = arguments.iter().map(|(_, value)| *value).collect();
        // SAFETY: as many types as values, none of them NULL.
        self.rows(|| unsafe {
            pg_sys::SPI_execute_with_args(
                sql.as_ptr(),
                arguments.len() as i32,
                types.as_mut_ptr(),
                values.as_mut_ptr(),
                std::ptr::null(),
                false,
                0,
            )
        })
    }

    fn rows(&self, execute: impl FnOnce() -> i32) -> Result<Rows<'_>> {
        let code = in_current_memory(execute);
        if code < 0 {
            return Err(Error::Spi { code });
        }
        // SAFETY: it has.
        Ok(unsafe { Rows::of_last_execution(self) })
    }

    /// Run `body`, and free its memory afterwards: for loops.
    pub fn scratch(&self, body: impl FnOnce() -> Result<()>) -> Result<()> {
        // SAFETY: a context of its own below the current one; an error unwinds to an abort, which deletes both.
        unsafe {
            let parent = pg_sys::CurrentMemoryContext;
            let scratch = pg_sys::AllocSetContextCreateInternal(
                parent,
                c"presence_ext scratch".as_ptr(),
                pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
                pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
            );
            pg_sys::MemoryContextSwitchTo(scratch);
            let result = body();
            pg_sys::MemoryContextSwitchTo(parent);
            pg_sys::MemoryContextDelete(scratch);
            result
        }
    }

    /// Run `body` in the memory context that outlives this connection.
    pub fn in_caller<T>(&self, body: impl FnOnce() -> T) -> T {
        // The caller's context was current when the connection was opened, so it is alive.
        within(self.caller, body)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // While an ERROR unwinds, the abort of the transaction cleans SPI up itself.
        if !std::thread::panicking() {
            // SAFETY: the connection opened in `open` is the innermost: they nest like scopes.
            unsafe { pg_sys::SPI_finish() };
        }
    }
}

/// SPI leaves the connection's own memory context current, whatever was current before: a loop in `scratch` would fill
/// that.
fn in_current_memory<T>(body: impl FnOnce() -> T) -> T {
    // SAFETY: what is current lives longer than this call.
    let current = unsafe { pg_sys::CurrentMemoryContext };
    let value = body();
    // SAFETY: what was current before.
    unsafe { pg_sys::MemoryContextSwitchTo(current) };
    value
}

fn plan(statement: &'static Statement) -> Result<Rc<Plan>> {
    // SAFETY: plain read of this process's state.
    let key = (std::ptr::from_ref(statement) as usize, unsafe { pg_sys::GetUserId() });
    if let Some(found) = PLANS.with_borrow_mut(|plans| plans.find(key))
        && found.internals.is_none_or(|internals| internals == Internals::now())
    {
        return Ok(found);
    }
    let (sql, internals) = localized(statement.sql)?;
    let arguments = statement.arguments;
    // SAFETY: a C string and as many argument types as we say.
    let plan = in_current_memory(|| unsafe {
        pg_sys::SPI_prepare(sql.as_ptr(), arguments.len() as i32, arguments.as_ptr().cast_mut())
    });
    if plan.is_null() {
        // SAFETY: a global that says why.
        return Err(Error::Spi { code: unsafe { pg_sys::SPI_result } });
    }
    // SAFETY: a new plan; from here on it lives until it is freed.
    unsafe { pg_sys::SPI_keepplan(plan) };
    let plan = Rc::new(Plan { prepared: plan, internals });
    for over in PLANS.with_borrow_mut(|plans| plans.keep(key, plan.clone())) {
        // SAFETY: nobody else has it: it is neither kept nor running.
        unsafe { pg_sys::SPI_freeplan(over.prepared) };
    }
    Ok(plan)
}

/// Process invalidations of what others have committed to the catalog, as the parser does before it looks at a table. A
/// kept plan does so only with a lock that the transaction does not have yet.
pub fn accept_invalidations() {
    // SAFETY: inside a transaction.
    unsafe { pg_sys::AcceptInvalidationMessages() };
}
