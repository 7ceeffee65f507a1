//! The triggers of `presence.shared`, which fire only where rows are replicated: the worker writes past them.
//!
//! BEFORE leaves out what is not a peer's or not sound, gives rows versions of this server (clocks and counters of two servers
//! say nothing of each other), and makes an INSERT of what is there an UPDATE: a table that is copied again must not stop the
//! stream. AFTER makes events, as that of `presence.member` does.

use super::check::is_sound;
use super::events::{self, VISIBILITY, key_of};
use super::row::{Shared, SharedRow, TYPES};
use super::trigger_call::{Firing, Operation};
use super::{beats, remains, scan, subscription, unreachable};
use crate::error::{Error, Result};
use crate::event::record::Reason;
use crate::event::transaction::issue_version;
use crate::extension::{self, Extension};
use crate::pg::function::Call;
use crate::pg::role::as_role;
use crate::pg::spi::{Connection, Statement};
use crate::settings;
use pgrx::pg_sys::{self, Datum, Oid};
use std::cell::{Cell, RefCell};

const TABLE: &str = "presence.shared";

/// What listeners hear of.
const PUBLISHED: [Shared; 6] =
    [Shared::UserId, Shared::Status, Shared::State, Shared::Metadata, Shared::Audience, Shared::Reason];
thread_local! {
    /// Which transaction copies a table, and of which servers it has made way.
    static REPLACED: RefCell<(u32, Vec<Vec<u8>>)> = const { RefCell::new((0, Vec::new())) };
    static IS_REPLACING: Cell<bool> = const { Cell::new(false) };
}

static CHANGE: Statement = Statement {
    sql: c"update presence.shared
           set user_id = $2, status = $3, state = $4, metadata = $5, audience = $6, version = $7, generation = $8,
               joined_at = $9, updated_at = $10, last_seen_at = $11, ttl = $12, session = $13, reason = $14, more = $15
           where ctid operator(pg_catalog.=) $1",
    arguments: &PLACE_AND_VALUES,
};

/// Where the row is, and its columns behind the key.
const PLACE_AND_VALUES: [Oid; 1 + TYPES.len() - Shared::UserId as usize] = {
    let first = Shared::UserId as usize;
    let mut types = [pg_sys::TIDOID; 1 + TYPES.len() - Shared::UserId as usize];
    let mut at = first;
    while at < TYPES.len() {
        types[1 + at - first] = TYPES[at];
        at += 1;
    }
    types
};

fn is_own(row: &SharedRow) -> bool {
    settings::node_name().as_deref() == row.text(Shared::Node)
}

fn before(call: &Call) -> Result<Option<Datum>> {
    let firing = Firing::of(call, c"shared", TABLE, pg_sys::TRIGGER_EVENT_BEFORE)?;
    // SAFETY: a tuple of the trigger's relation.
    let row = unsafe { SharedRow::deform(firing.newest(), firing.descriptor()) }?;
    // Who follows all tables of a peer is sent this server's own rows, too.
    if is_own(&row) {
        return firing.skip();
    }
    if firing.operation == Operation::Delete {
        return firing.proceed();
    }
    if !is_sound(&row) {
        return firing.skip();
    }
    let extension = extension::current()?;
    let key = key_of(&extension, &row);
    let version = match firing.operation {
        Operation::Update => {
            // SAFETY: as above.
            let old = unsafe { SharedRow::deform(firing.first(), firing.descriptor()) }?;
            if is_seen_alike(&old, &row) {
                old.number(Shared::Version)
            } else {
                issue_version(&key, !row.same(&old, &VISIBILITY)) as i64
            }
        }
        _ => {
            if subscription::is_copying(c"shared") {
                replace(&extension, row.text(Shared::Node).unwrap_or_default())?;
            }
            if change(&extension, &row)? {
                return firing.skip();
            }
            issue_version(&key, false) as i64
        }
    };
    firing.proceed_with(Shared::Version as usize, version)
}

fn is_seen_alike(old: &SharedRow, row: &SharedRow) -> bool {
    row.same(old, &PUBLISHED) && row.number(Shared::Generation) == old.number(Shared::Generation)
}

/// What is copied of a server takes the place of all that is here of it: who left meanwhile would stay for ever.
fn replace(extension: &Extension, node: &[u8]) -> Result<()> {
    // SAFETY: in a transaction that writes.
    let transaction = u32::from(unsafe { pg_sys::GetTopTransactionId() });
    let is_new = REPLACED.with_borrow_mut(|(copying, nodes)| {
        if *copying != transaction {
            (*copying, *nodes) = (transaction, Vec::new());
        }
        let is_new = !nodes.iter().any(|known| known == node);
        if is_new {
            nodes.push(node.to_vec());
        }
        is_new
    });
    if !is_new {
        return Ok(());
    }
    beats::begin_anew(extension, node);
    make_way(extension, node).map(|_| ())
}

/// Delete what is here of a server, which listeners hear by a resync. Returns how many members that were.
pub fn make_way(extension: &Extension, node: &[u8]) -> Result<usize> {
    let _replacing = Replacing::begin();
    as_role(extension.owner_role, || remains::delete_members(&Connection::open()?, node))
}

/// What is deleted meanwhile has not left. Ends also when an ERROR unwinds.
struct Replacing;

impl Replacing {
    fn begin() -> Replacing {
        IS_REPLACING.set(true);
        Replacing
    }
}

impl Drop for Replacing {
    fn drop(&mut self) {
        IS_REPLACING.set(false);
    }
}

/// Change the row that is there; false: there is none.
fn change(extension: &Extension, row: &SharedRow) -> Result<bool> {
    let key = [Shared::Room, Shared::MemberId, Shared::ConnectionId, Shared::Node];
    let key = key.map(|column| (column, row.text(column).unwrap_or_default()));
    let Some(mut place) = scan::place_of(&key)? else { return Ok(false) };
    let mut values = vec![Some(Datum::from(&raw mut place))];
    values.extend(row.values_from(Shared::UserId));
    as_role(extension.owner_role, || {
        let changed = Connection::open()?.run(&CHANGE, &values, true)?.count;
        Ok(changed > 0)
    })
}

fn after(call: &Call) -> Result<Option<Datum>> {
    let firing = Firing::of(call, c"shared", TABLE, pg_sys::TRIGGER_EVENT_AFTER)?;
    // SAFETY: tuples of the trigger's relation.
    let (old, row) = unsafe {
        (
            SharedRow::deform(firing.first(), firing.descriptor())?,
            SharedRow::deform(firing.newest(), firing.descriptor())?,
        )
    };
    let extension = extension::current()?;
    if is_own(&row) || IS_REPLACING.get() || subscription::is_copying(c"shared") {
        return Ok(Some(Datum::from(0)));
    }
    let node = row.text(Shared::Node).unwrap_or_default();
    unreachable::exclude_the_worker(&extension, node);
    let name = extension.node_hash(node);
    let heard = &extension.database.heard;
    if heard.is_told(name) {
        let has_left = heard.may_have_left(name) && unreachable::contains_now(&extension, &row)?;
        tell(&extension, firing.operation, &old, &row, has_left, heard.is_silent(name))?;
    }
    Ok(Some(Datum::from(0)))
}

/// With `has_left` listeners know that the member is gone, because its server was silent; with `is_silent` it still is.
fn tell(
    extension: &Extension,
    operation: Operation,
    old: &SharedRow,
    row: &SharedRow,
    has_left: bool,
    is_silent: bool,
) -> Result<()> {
    let is_here = row.get(Shared::Reason).is_none();
    match operation {
        Operation::Insert if is_silent => unreachable::add(extension, row)?,
        Operation::Insert if is_here => events::entered(extension, row),
        Operation::Insert => {}
        Operation::Update if has_left && is_silent => {}
        Operation::Update if has_left => {
            unreachable::remove(extension, row)?;
            if is_here {
                events::returned(extension, row);
            }
        }
        Operation::Update => events::changed(extension, old, row),
        Operation::Delete if has_left => unreachable::remove(extension, row)?,
        // Who has said why they leave has left with that.
        Operation::Delete if old.get(Shared::Reason).is_none() => events::left(extension, row, Reason::Left),
        Operation::Delete => {}
    }
    Ok(())
}

/// Of tables that are each server's own: somebody's subscription to all tables of another brings them.
fn stays_here(call: &Call) -> Result<Option<Datum>> {
    let Some(data) = call.trigger() else {
        return Err(Error::NotItsTrigger { table: "_presence.secret, _last_seen and _sink" });
    };
    // SAFETY: a plain look at this process's state.
    let row = match unsafe { pg_sys::IsLogicalWorker() } {
        // A null pointer that is not SQL NULL: the row is left alone.
        true => std::ptr::null_mut(),
        false if data.tg_newtuple.is_null() => data.tg_trigtuple,
        false => data.tg_newtuple,
    };
    Ok(Some(Datum::from(row)))
}

crate::sql_function!(presence_stays_here, pg_finfo_presence_stays_here, stays_here);
crate::sql_function!(presence_shared_before, pg_finfo_presence_shared_before, before);
crate::sql_function!(presence_shared_after, pg_finfo_presence_shared_after, after);
