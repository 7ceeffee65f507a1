//! Part of a transaction that may fail without the rest.

use crate::error::Error;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgSqlErrorCode, PgTryBuilder, pg_sys};

/// An error, for a log, a DETAIL or `presence.health`.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
    /// The NOTIFY queue is full, or another of the limits of the server.
    pub limit: bool,
    /// The environment is at fault: a full disk, no memory, a lock, a shutdown. A later attempt may succeed.
    pub passing: bool,
    /// A cancel, a timeout, a shutdown: never the fault of what was tried.
    pub cancelled: bool,
    pub code: PgSqlErrorCode,
}

impl Failure {
    /// Raise it, as the statement would have.
    pub fn raise(self) -> ! {
        pgrx::ereport!(pgrx::PgLogLevel::ERROR, self.code, self.message);
        unreachable!()
    }
}

/// Classes of SQLSTATE: transaction rollback, insufficient resources, operator intervention, system error.
const PASSING: [&str; 4] = ["40", "53", "57", "58"];

impl From<&CaughtError> for Failure {
    fn from(caught: &CaughtError) -> Failure {
        let report = match caught {
            CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => report,
            CaughtError::RustPanic { ereport, .. } => ereport,
        };
        let code = report.sql_error_code();
        let limit = code == PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED;
        let mut state = code as i32;
        // Five characters of six bits each; the class is the first two.
        let class: String = std::iter::repeat_with(|| {
            let character = (state & 0x3f) as u8 + b'0';
            state >>= 6;
            char::from(character)
        })
        .take(2)
        .collect();
        let passing = PASSING.contains(&class.as_str()) || code == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE;
        let cancelled =
            matches!(code, PgSqlErrorCode::ERRCODE_QUERY_CANCELED | PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN);
        Failure { message: report.message().to_owned(), limit, passing, cancelled, code }
    }
}

/// Run the body in a subtransaction: an error rolls back only that.
pub fn attempt<T>(body: impl FnOnce() -> Result<T, Error>) -> Result<T, Failure> {
    // SAFETY: plain reads; restored below, as PL languages do around their subtransactions.
    let (context, owner) = unsafe { (pg_sys::CurrentMemoryContext, pg_sys::CurrentResourceOwner) };
    // SAFETY: inside a transaction.
    unsafe {
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
    }
    let result = catch(body);
    // SAFETY: ends the subtransaction begun above.
    unsafe {
        if result.is_err() {
            pg_sys::RollbackAndReleaseCurrentSubTransaction();
        } else {
            pg_sys::ReleaseCurrentSubTransaction();
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
    }
    result
}

/// Run the body and return an error as a value. The caller must then abort the (sub)transaction.
pub fn catch<T>(body: impl FnOnce() -> Result<T, Error>) -> Result<T, Failure> {
    let mut body = Some(body);
    let body = std::panic::AssertUnwindSafe(&mut body);
    PgTryBuilder::new(move || {
        let body = body;
        match body.0.take().map(|body| body()) {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => error.raise(),
            None => Err(Failure {
                message: "it ran already".into(),
                limit: false,
                passing: false,
                cancelled: false,
                code: PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            }),
        }
    })
    .catch_others(|caught| Err(Failure::from(&caught)))
    .catch_rust_panic(|caught| Err(Failure::from(&caught)))
    .execute()
}
