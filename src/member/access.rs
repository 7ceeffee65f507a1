//! With whose rights a verb finds and writes its row.
//!
//! A verb touches one row, and knows whose it must be. While nobody has added anything to the table and the caller
//! was granted what the statements need, the built-in policies could say nothing else. Then the row is found and
//! changed without the executor, by the same steps: lock it, pass it through what our triggers call, store it. And
//! what does need the executor runs as the owner of the extension, for the caller. That spares each call the set-up
//! of a plan with four policies and their sub-selects, which costs more than the write itself.
//!
//! In all other cases (policies, triggers, rules or constraints of somebody else's, grants on columns only, an
//! authorizer, a row that somebody else has just changed) the statements run as SQL; those of the first four as the
//! caller, under the policies.

use super::intent::{self, Intent};
use super::row::Row;
use super::trigger::is_replica;
use super::{after, before, scan};
use crate::error::Result;
use crate::extension::Extension;
use crate::identity::Identity;
use crate::lease::table::Key;
use crate::spi::{self, Connection, Rows, Statement, with_statement_snapshot};
use crate::sqlfn::uuid;
use crate::{authorizer, policy};
use pgrx::pg_sys::{self, Datum};
use std::rc::Rc;

pub struct Access {
    extension: Extension,
    caller: Rc<Identity>,
    direct: bool,
}

static FIND: Statement = Statement {
    sql: c"select * from presence.member where key_hash operator(pg_catalog.=) $1",
    arguments: &[pg_sys::UUIDOID],
};

impl Access {
    /// For somebody who has a name to write under, or acts for all.
    pub fn new(extension: &Extension, caller: &Rc<Identity>) -> Result<Access> {
        if !caller.service {
            caller.writer()?;
        }
        let direct = !authorizer::is_set() && extension.may_do_all() && is_untouched(extension)?;
        Ok(Access { extension: *extension, caller: caller.clone(), direct })
    }

    /// The member's row, as the caller's statement sees it, or (`anew`) as one that begins now would. It may be
    /// another's: compare the owner.
    pub fn find(&self, connection: &Connection, key: &Key, anew: bool) -> Result<Option<Row>> {
        if !self.direct {
            return Row::of_query(&connection.run(&FIND, &[Some(uuid(key.hash))], anew)?);
        }
        // SAFETY: a snapshot is active while a function runs.
        let find = || scan::by_key(&self.extension, key, unsafe { pg_sys::GetActiveSnapshot() });
        if anew { with_statement_snapshot(find) } else { find() }
    }

    /// Change a row that was found: `row` is what it shall be. Returns what it is then, or None if it is not what was
    /// found any more: then SQL must decide.
    pub fn change(&self, found: &Row, row: Row, intent: &Intent) -> Result<Option<Row>> {
        if !self.direct {
            return Ok(None);
        }
        // SAFETY: our own table, closed below; the lock on it stays until the transaction ends.
        unsafe {
            let table = pg_sys::table_open(self.extension.member, pg_sys::RowExclusiveLock as i32);
            let changed = if found.lock(table) {
                before::change(&self.extension, &self.caller, intent, found, row)?
            } else {
                None
            };
            let changed = changed.map(|mut row| {
                row.replace(table, found);
                after::changed(&self.extension, found, &row);
                row
            });
            pg_sys::table_close(table, pg_sys::NoLock as i32);
            Ok(changed)
        }
    }

    /// Whose rows the statements may change: for their `user_id = $n or $n is null`.
    pub fn only_of(&self) -> Option<Datum> {
        if self.caller.service { None } else { self.caller.user_id.as_deref().map(crate::sqlfn::varlena) }
    }

    /// Run a statement that writes.
    pub fn write(
        &self,
        connection: &Connection,
        statement: &'static Statement,
        values: &[Option<Datum>],
        intent: Intent,
    ) -> Result<Rows> {
        let _intent = intent::set(Intent { caller: Some(self.caller.clone()), ..intent });
        let run = || connection.run(statement, values, true);
        if self.direct { spi::as_role(self.extension.owner, run) } else { run() }
    }
}

/// Whether the table is as the extension made it, and stays so: from here on it is locked as by an UPDATE.
fn is_untouched(extension: &Extension) -> Result<bool> {
    // SAFETY: a look-up in shared memory, and a lock until the transaction ends.
    unsafe {
        // On a standby SQL says best that unlogged tables cannot be read; in replica role triggers do less.
        if pg_sys::RecoveryInProgress() || is_replica() {
            return Ok(false);
        }
        pg_sys::LockRelationOid(extension.member, pg_sys::RowExclusiveLock as i32);
    }
    policy::is_untouched(extension)
}
