//! Something that the worker does again and again. When it fails it is tried again, ever more seldom; nothing else
//! waits with it.

use crate::clock;
use crate::pg::subtransaction::Failure;
use crate::shared::Database;
use crate::shared::error_status::Part;
use pgrx::PgSqlErrorCode;

const FIRST_PAUSE: u64 = 100_000;
const LONGEST_PAUSE: u64 = 6_400_000;
/// After this many failed waits for a lock in a row the worker is locked out.
const LOCKED_OUT: u32 = 4;

pub struct Step {
    part: Part,
    doing: &'static str,
    /// Number of failures in a row.
    failures: u32,
    not_before: u64,
    /// The last message that was logged.
    said: String,
}

impl Step {
    pub fn new(part: Part, doing: &'static str) -> Step {
        Step { part, doing, failures: 0, not_before: 0, said: String::new() }
    }

    /// After a failure: when to try again.
    pub fn not_before(&self) -> u64 {
        self.not_before
    }

    pub fn may_start(&self) -> bool {
        clock::boot() >= self.not_before
    }

    /// Whether a cancel is obeyed: what it interrupted starts again later. A step that is "cancelled" each time fails
    /// by itself.
    pub fn obeys_cancel(&self) -> bool {
        self.failures < 3
    }

    /// Run the step, if it is time.
    pub fn attempt<T>(
        &mut self,
        database: &Database,
        body: impl FnOnce() -> Result<T, Failure>,
    ) -> Option<T> {
        if !self.may_start() {
            return None;
        }
        let result = body();
        self.note(database, result)
    }

    /// Record the result of an attempt.
    pub fn note<T>(&mut self, database: &Database, result: Result<T, Failure>) -> Option<T> {
        match result {
            Ok(value) => {
                self.failures = 0;
                self.not_before = 0;
                self.said.clear();
                database.trouble.is_over(self.part);
                Some(value)
            }
            Err(failure) => {
                self.not_before = clock::boot() + (FIRST_PAUSE << self.failures.min(16)).min(LONGEST_PAUSE);
                self.failures += 1;
                // Somebody is altering the table, usually for a moment.
                if failure.code == PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE && self.failures < LOCKED_OUT {
                    return None;
                }
                database.trouble.failed(self.part, &failure.message);
                // Not a line for each attempt.
                if self.said != failure.message {
                    pgrx::log!(
                        "presence_ext: {} failed and will be tried again: {}",
                        self.doing,
                        failure.message
                    );
                    self.said = failure.message;
                }
                None
            }
        }
    }
}
