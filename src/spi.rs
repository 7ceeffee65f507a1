//! Queries from inside the server: kept plans, one for each statement and role.
//!
//! A plan under row-level security belongs to the role it was made for; a plan kept over a change of role is
//! planned anew each time. So each role gets its own.

use crate::error::{Error, Result};
use pgrx::pg_sys::{self, Datum, Oid};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CStr;

/// A statement of ours. Its address is its name.
pub struct Statement {
    pub sql: &'static CStr,
    pub arguments: &'static [Oid],
}

thread_local! {
    static PLANS: RefCell<HashMap<(usize, Oid), Plan>> = RefCell::new(HashMap::new());
}

#[derive(Clone, Copy)]
struct Plan(pg_sys::SPIPlanPtr);

static ADVISORY_LOCK: Statement =
    Statement { sql: c"select pg_catalog.pg_advisory_xact_lock($1)", arguments: &[pg_sys::INT8OID] };

/// A connection to SPI; results live until it is dropped.
pub struct Connection {
    caller: pg_sys::MemoryContext,
}

impl Connection {
    pub fn open() -> Result<Connection> {
        // SAFETY: plain call; the memory context is the caller's, to which `Rows::copy_*` copies.
        unsafe {
            let caller = pg_sys::CurrentMemoryContext;
            match pg_sys::SPI_connect() {
                code if code < 0 => Err(Error::Spi { code }),
                _ => Ok(Connection { caller }),
            }
        }
    }

    /// Run a statement as the current role. `write` false keeps it free of a transaction id.
    pub fn run(&self, statement: &'static Statement, values: &[Option<Datum>], write: bool) -> Result<Rows> {
        let plan = plan(statement)?;
        let mut datums: Vec<Datum> = values.iter().map(|value| value.unwrap_or(Datum::from(0))).collect();
        let nulls: Vec<u8> = values.iter().map(|value| if value.is_some() { b' ' } else { b'n' }).collect();
        // SAFETY: as many values as the statement has arguments; a kept plan.
        let code = unsafe {
            pg_sys::SPI_execute_plan(plan.0, datums.as_mut_ptr(), nulls.as_ptr().cast(), !write, 0)
        };
        Rows::of(code)
    }

    /// Wait for an advisory lock, and hold it until the transaction ends.
    pub fn lock(&self, key: i64) -> Result<()> {
        self.run(&ADVISORY_LOCK, &[Some(Datum::from(key))], true).map(|_| ())
    }

    /// Run SQL that is made up on the spot, and not kept.
    pub fn run_text(&self, sql: &CStr, write: bool) -> Result<Rows> {
        // SAFETY: a C string.
        Rows::of(unsafe { pg_sys::SPI_execute(sql.as_ptr(), !write, 0) })
    }

    /// Run SQL that is made up on the spot, with arguments of these types.
    pub fn run_once(&self, sql: &CStr, arguments: &[(Oid, Datum)]) -> Result<Rows> {
        let mut types: Vec<Oid> = arguments.iter().map(|(of_type, _)| *of_type).collect();
        let mut values: Vec<Datum> = arguments.iter().map(|(_, value)| *value).collect();
        // SAFETY: as many types as values, none of them NULL.
        let code = unsafe {
            pg_sys::SPI_execute_with_args(
                sql.as_ptr(),
                arguments.len() as i32,
                types.as_mut_ptr(),
                values.as_mut_ptr(),
                std::ptr::null(),
                false,
                0,
            )
        };
        Rows::of(code)
    }

    /// Do something whose memory is freed afterwards: for loops.
    pub fn scratch<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
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
            let value = body();
            pg_sys::MemoryContextSwitchTo(parent);
            pg_sys::MemoryContextDelete(scratch);
            value
        }
    }

    /// Do something in the memory context that outlives this connection.
    pub fn in_caller<T>(&self, body: impl FnOnce() -> T) -> T {
        // SAFETY: the caller's context was current when the connection was opened, so it lives.
        let mine = unsafe { pg_sys::MemoryContextSwitchTo(self.caller) };
        let value = body();
        // SAFETY: what was current before.
        unsafe { pg_sys::MemoryContextSwitchTo(mine) };
        value
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

fn plan(statement: &'static Statement) -> Result<Plan> {
    // SAFETY: plain read of this process's state.
    let key = (std::ptr::from_ref(statement) as usize, unsafe { pg_sys::GetUserId() });
    if let Some(found) = PLANS.with_borrow(|plans| plans.get(&key).copied()) {
        return Ok(found);
    }
    // SAFETY: a C string and as many argument types as we say; a kept plan lives as long as the process.
    let plan = unsafe {
        let arguments = statement.arguments;
        let plan = pg_sys::SPI_prepare(
            statement.sql.as_ptr(),
            arguments.len() as i32,
            arguments.as_ptr().cast_mut(),
        );
        if plan.is_null() {
            return Err(Error::Spi { code: pg_sys::SPI_result });
        }
        pg_sys::SPI_keepplan(plan);
        Plan(plan)
    };
    PLANS.with_borrow_mut(|plans| plans.insert(key, plan));
    Ok(plan)
}

/// The rows of one query, freed when dropped.
pub struct Rows {
    table: *mut pg_sys::SPITupleTable,
    /// Rows returned or affected.
    pub count: usize,
}

impl Rows {
    fn of(code: i32) -> Result<Rows> {
        if code < 0 {
            return Err(Error::Spi { code });
        }
        // SAFETY: globals that the execution just set.
        unsafe { Ok(Rows { table: pg_sys::SPI_tuptable, count: pg_sys::SPI_processed as usize }) }
    }

    /// A bigint column; NULL is 0.
    pub fn number(&self, row: usize, column: usize) -> u64 {
        self.get(row, column).map_or(0, |number| number.value() as u64)
    }

    /// The first row as a tuple, and its descriptor.
    pub fn first(&self) -> Option<(pg_sys::HeapTuple, pg_sys::TupleDesc)> {
        // SAFETY: the table lives until the connection is closed, and has as many rows as were counted.
        (!self.table.is_null() && self.count > 0)
            .then(|| unsafe { (*(*self.table).vals, (*self.table).tupdesc) })
    }

    pub fn get(&self, row: usize, column: usize) -> Option<Datum> {
        // SAFETY: the table lives until the connection is closed; row and column are checked by it and us.
        unsafe {
            if self.table.is_null() || row >= self.count {
                return None;
            }
            let tuple = *(*self.table).vals.add(row);
            let mut null = false;
            let datum = pg_sys::SPI_getbinval(tuple, (*self.table).tupdesc, column as i32 + 1, &mut null);
            (!null).then_some(datum)
        }
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        // A loop of queries on one connection would keep all results otherwise. While an ERROR unwinds, the abort
        // frees them.
        if !self.table.is_null() && !std::thread::panicking() {
            // SAFETY: a result of the open connection; freeing one that is not there any more is checked by SPI.
            unsafe { pg_sys::SPI_freetuptable(self.table) };
        }
    }
}

/// Do something as another role, with what a function of that role could do and no more.
pub fn as_role<T>(role: Oid, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let (mut before, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: plain reads and writes of this process's state; after an ERROR the abort restores it.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut before, &mut context);
        let restricted = pg_sys::SECURITY_LOCAL_USERID_CHANGE | pg_sys::SECURITY_RESTRICTED_OPERATION;
        pg_sys::SetUserIdAndSecContext(role, context | restricted as i32);
    }
    let result = body();
    // SAFETY: what was before.
    unsafe { pg_sys::SetUserIdAndSecContext(before, context) };
    result
}

/// See what a statement that begins now would see: in a READ COMMITTED transaction, all that is committed.
pub fn with_statement_snapshot<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: pushed and popped in pairs; an error unwinds to an abort, which pops it.
    unsafe {
        pg_sys::CommandCounterIncrement();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let value = body();
        pg_sys::PopActiveSnapshot();
        value
    }
}

/// See this statement's own rows, and what others have committed while we waited for a lock.
pub fn with_new_snapshot<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: pushed and popped in pairs; an error unwinds to an abort, which pops it.
    unsafe {
        pg_sys::CommandCounterIncrement();
        pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
        let value = body();
        pg_sys::PopActiveSnapshot();
        value
    }
}

/// See the catalog as it is now, whatever snapshot the caller reads with.
pub fn with_catalog_snapshot<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // SAFETY: pushed and popped in pairs; an error unwinds to an abort, which pops it.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetCatalogSnapshot(pg_sys::InvalidOid));
        let value = body();
        pg_sys::PopActiveSnapshot();
        value
    }
}

/// Take in what others have committed of the catalog, as the parser does before it looks at a table. A kept plan does
/// so only with a lock that the transaction has not got yet.
pub fn accept_invalidations() {
    // SAFETY: inside a transaction.
    unsafe { pg_sys::AcceptInvalidationMessages() };
}
