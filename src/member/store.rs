//! How a verb finds its row and stores it: as SQL under the caller's rights, or by the same steps without the executor.
//!
//! A verb touches one row and knows whose it must be. Setting up an UPDATE under four policies with sub-selects costs
//! more than the update itself, and so does that of an INSERT. So where the executor could not do anything else, the row
//! is found by the index, locked, passed through what our triggers call, and stored (`heap`). What the executor would have
//! looked at, and what stands for it here:
//!
//! | the executor and what is before it | here |
//! |---|---|
//! | locks the table, takes in what was committed | the same lock, before anything is looked at (`policy::is_as_made`) |
//! | policies, triggers, rules, constraints, NOT NULL, generated columns, children, indexes | exactly ours, by the relation cache (`twin`), else SQL |
//! | functions that policies and triggers call, defaults of what verbs leave out | this library's, and none but constants, else SQL |
//! | other libraries' hooks for rights and policies | none are there, else SQL |
//! | rights on schema, table and columns, and on what policies call | all of them, as they are now, else SQL |
//! | policies of ours | `ownership`: they say the same |
//! | an authorizer, which our policies call | none is set, else SQL |
//! | `row_security = off`, which refuses | it is on, else SQL |
//! | READ ONLY, recovery | SQL, which refuses |
//! | replica role, in which triggers do less | SQL |
//! | REPEATABLE READ and SERIALIZABLE | lock and insert fail with 40001; heap and index report conflicts by themselves |
//! | publications, which may refuse an UPDATE or DELETE | none has a table that is unlogged, as ours is (`twin`), else SQL |
//! | statistics of the table | counted by the same functions of the heap |
//! | waiting for who has changed the row, and going on with what they made of it | `Heap::lock`, by the table's access method |
//! | ON CONFLICT DO NOTHING: waiting for who enters under the same key, entering if they do not | `Heap::insert`, by the indexes |
//!
//! `presence.fast_path = off` takes SQL always; the tests run both ways and compare. `presence.health` counts what went
//! the fast way.

use super::column::Column;
use super::heap::{Heap, Purpose};
use super::intent::{self, Grace, Intent};
use super::room_defaults::Rooms;
use super::row::Row;
use super::statements::{ANNOUNCE, CHANGE, CHOSEN, ENTER, FIND, LOCK, NAMES, Statements, changed};
use super::trigger::is_replica;
use super::{after, before, delete, grace, holder, scan};
use crate::access::grants::on_columns;
use crate::access::identity::Identity;
use crate::access::ownership::may_write;
use crate::access::{authorizer, policy};
use crate::error::Result;
use crate::event::transaction::{self, Pending};
use crate::extension::Extension;
use crate::lease::slot::Key;
use crate::pg::datum::uuid;
use crate::pg::snapshot::with_statement_snapshot;
use crate::pg::spi::{self, Connection, Statement};
use crate::settings;
use crate::shared::leases::leases;
use pgrx::pg_sys::{self, Datum};
use std::rc::Rc;

pub struct Store<'a> {
    extension: &'a Extension,
    caller: &'a Rc<Identity>,
    connection: &'a Connection,
    /// The table, if the executor could do nothing else.
    heap: Option<Heap>,
    rooms: Rooms,
}

impl<'a> Store<'a> {
    pub fn open(
        extension: &'a Extension,
        caller: &'a Rc<Identity>,
        connection: &'a Connection,
    ) -> Result<Store<'a>> {
        spi::accept_invalidations();
        let heap = is_fast(extension)?.then(|| Heap::open(extension)).transpose()?;
        Ok(Store { extension, caller, connection, heap, rooms: Rooms::default() })
    }

    /// Whether the caller has the rights that `change` needs, on the table or on its columns.
    pub fn may_change(&self) -> bool {
        self.is_fast() || on_columns(self.extension.member, pg_sys::ACL_UPDATE, changed())
    }

    pub fn caller(&self) -> &Rc<Identity> {
        self.caller
    }

    pub fn extension(&self) -> &Extension {
        self.extension
    }

    pub fn connection(&self) -> &Connection {
        self.connection
    }

    pub fn is_fast(&self) -> bool {
        self.heap.is_some()
    }

    /// The member's row in the snapshot of the caller's statement, or (`anew`, and if this statement has changed it) in
    /// a new one. It may be another user's: compare the owner.
    pub fn find(&self, key: &Key, anew: bool) -> Result<Option<Row>> {
        let anew = anew || !matches!(transaction::pending(key), Pending::Untouched);
        let Some(heap) = &self.heap else {
            return Row::of_query(&self.connection.run(self.of_now(&FIND), &[Some(uuid(key.hash))], anew)?);
        };
        // SAFETY: a snapshot is active while a function runs.
        let find = || scan::by_key(self.extension, key, unsafe { pg_sys::GetActiveSnapshot() });
        if anew { with_statement_snapshot(find) } else { heap.find(key).map_or_else(find, Ok) }
    }

    /// Whether the member seems to be absent, without reading the table: no slot has the key, and there are no rows
    /// without a slot. The caller must still check by an insert: a row can be visible a moment before its slot.
    pub fn knows_nobody(&self, key: &Key) -> bool {
        self.is_fast()
            && !holder::may_be_slotless(self.extension)
            && matches!(transaction::pending(key), Pending::Untouched)
            && leases().read(key).is_none()
    }

    /// Lock the row that was found, waiting for concurrent writers, and read its current version. None if it is gone,
    /// or if a policy keeps the caller from changing it.
    pub fn lock(&self, found: &Row) -> Result<Option<Row>> {
        if let Some(heap) = &self.heap {
            // A command of its own, as in SQL: a surrounding statement whose row it changes must notice (27000).
            // SAFETY: inside a transaction.
            unsafe { pg_sys::CommandCounterIncrement() };
            return heap.lock(found, Purpose::Replace);
        }
        let key = found.key(self.extension);
        Row::of_query(&self.connection.run(self.of_now(&LOCK), &[Some(uuid(key.hash))], true)?)
    }

    /// Store `row` in place of `held`, which was locked. Returns the stored row, or None if something (an expired
    /// lease, a trigger) prevented it.
    pub fn change(&self, held: &Row, row: Row, intent: Intent) -> Result<Option<Row>> {
        let key = held.key(self.extension);
        if let Some(heap) = &self.heap {
            let Some(mut row) = before::change(self.extension, self.caller, &self.rooms, &intent, held, row)?
            else {
                return Ok(None);
            };
            heap.replace(held, &mut row);
            after::changed(self.extension, held, &row);
            self.count_fast_write();
            return Ok(Some(row));
        }
        let (statement, columns): (_, &[Column]) = match intent.grace {
            Grace::Announced => (&ANNOUNCE, &grace::COLUMNS),
            _ => (&CHANGE, &CHOSEN),
        };
        let mut values = vec![Some(uuid(key.hash))];
        values.extend(columns.iter().map(|column| row.get(*column)));
        self.write(&key, self.of_now(statement), &values, intent)
    }

    /// Store a new row. None if its key exists.
    pub fn enter(&self, key: &Key, row: &Row, intent: Intent) -> Result<Option<Row>> {
        if let Some(heap) = &self.heap {
            return with_statement_snapshot(|| {
                let mut row = before::enter(self.extension, self.caller, &self.rooms, &intent, row.clone())?;
                if !heap.insert(&mut row)? {
                    return Ok(None);
                }
                after::entered(self.extension, self.caller, &self.rooms, &row)?;
                self.count_fast_write();
                Ok(Some(row))
            });
        }
        let mut values = NAMES.map(|column| row.get(column)).to_vec();
        values.extend(CHOSEN.map(|column| row.get(column)));
        self.write(key, self.of_now(&ENTER), &values, intent)
    }

    /// Delete these members, as far as the current role may. Returns how many left.
    pub fn leave(&self, members: Vec<u128>, intent: Intent) -> Result<usize> {
        // SAFETY: a C string; raises in a READ ONLY transaction, also where there is nobody to delete.
        unsafe { pg_sys::PreventCommandIfReadOnly(c"DELETE".as_ptr()) };
        let Some(heap) = &self.heap else {
            return delete::leave(
                self.connection,
                members,
                Intent { caller: Some(self.caller.clone()), ..intent },
            );
        };
        let mut count = 0;
        for hash in members {
            self.connection.scratch(|| {
                count += self.leave_one(heap, &self.extension.key_of(hash), &intent)?;
                Ok(())
            })?;
        }
        Ok(count)
    }

    fn leave_one(&self, heap: &Heap, key: &Key, intent: &Intent) -> Result<usize> {
        let is_meant = |row: &Row| may_write(self.caller, row.text(Column::UserId).unwrap_or_default());
        // If it is not found, it may have been inserted or moved meanwhile.
        for anew in [false, true] {
            let Some(found) = self.find(key, anew)?.filter(is_meant) else { continue };
            // SAFETY: inside a transaction: a command of its own, as in `lock`.
            unsafe { pg_sys::CommandCounterIncrement() };
            let Some(held) = heap.lock(&found, Purpose::Delete)?.filter(is_meant) else { continue };
            if !before::may_leave(self.extension, intent, &held) {
                return Ok(0);
            }
            heap.delete(&held);
            after::left(self.extension, intent, &held, || Ok(self.caller.clone()))?;
            self.count_fast_write();
            return Ok(1);
        }
        Ok(0)
    }

    fn count_fast_write(&self) {
        self.extension.database.counters.fast_writes.add(1);
    }

    /// The variant for the installed SQL.
    fn of_now(&self, statements: &'static Statements) -> &'static Statement {
        &statements[usize::from(self.extension.has_later_columns)]
    }

    fn write(
        &self,
        key: &Key,
        statement: &'static Statement,
        values: &[Option<Datum>],
        intent: Intent,
    ) -> Result<Option<Row>> {
        let caller = Some(self.caller.clone());
        let _intent = intent::set(vec![key.hash], Intent { caller, ..intent });
        Row::of_query(&self.connection.run(statement, values, true)?)
    }
}

/// Whether the executor could do nothing else: the table above.
fn is_fast(extension: &Extension) -> Result<bool> {
    // SAFETY: look-ups in shared memory and plain reads of this process's state.
    let may_be = unsafe {
        !pg_sys::RecoveryInProgress() && !pg_sys::XactReadOnly && pg_sys::row_security && !is_replica()
    };
    Ok(may_be && settings::fast_path() && !authorizer::is_set() && policy::is_as_made(extension)?)
}
