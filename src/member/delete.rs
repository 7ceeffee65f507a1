//! `presence.delete` and `presence.delete_all`: leave, now or after a while.

use super::grace::Leave;
use super::intent::{self, Intent};
use super::store::Store;
use super::{checks, holder};
use crate::access::authorizer::{self, Action};
use crate::access::identity::{self, Identity};
use crate::error::{Error, Result};
use crate::event::record::Reason;
use crate::extension::Extension;
use crate::lease::slot::Key;
use crate::nodes;
use crate::pg::datum::{hash_of, uuid, uuids, varlena};
use crate::pg::function::Call;
use crate::pg::role::as_role;
use crate::pg::spi::{self, Connection, Statement};
use crate::validate;
use pgrx::pg_sys::{self, Datum};

static CONNECTIONS: Statement = Statement {
    sql: c"select key_hash from presence.member \
           where room operator(pg_catalog.=) $1 and member_id operator(pg_catalog.=) $2",
    arguments: &[pg_sys::TEXTOID, pg_sys::TEXTOID],
};

static CONNECTION_IDS: Statement = Statement {
    sql: c"select connection_id from presence.member \
           where room operator(pg_catalog.=) $1 and member_id operator(pg_catalog.=) $2",
    arguments: &[pg_sys::TEXTOID, pg_sys::TEXTOID],
};

static OF_USER: Statement = Statement {
    sql: c"select key_hash from presence.member \
           where user_id operator(pg_catalog.=) $1 and ($2 is null or connection_id operator(pg_catalog.=) $2)",
    arguments: &[pg_sys::TEXTOID, pg_sys::TEXTOID],
};

static DELETE_ONE: Statement = Statement {
    sql: c"delete from presence.member where key_hash operator(pg_catalog.=) $1",
    arguments: &[pg_sys::UUIDOID],
};

/// In the common lock order.
static DELETE: Statement = Statement {
    sql: c"with found as materialized (select key_hash from presence.member \
                                       where key_hash operator(pg_catalog.=) any ($1) order by key_hash for update) \
           delete from presence.member m using found where m.key_hash operator(pg_catalog.=) found.key_hash",
    arguments: &[pg_sys::UUIDARRAYOID],
};

/// The keys of the members that a query for `key_hash` finds.
pub fn members(
    connection: &Connection,
    query: &'static Statement,
    values: &[Option<Datum>],
) -> Result<Vec<u128>> {
    spi::accept_invalidations();
    let rows = connection.run(query, values, true)?;
    // SAFETY: uuids.
    Ok((0..rows.count).filter_map(|row| rows.get(row, 0)).map(|hash| unsafe { hash_of(hash) }).collect())
}

/// Delete these members, as far as the current role may. Returns how many left.
pub fn leave(connection: &Connection, members: Vec<u128>, intent: Intent) -> Result<usize> {
    // SAFETY: a C string; raises in a READ ONLY transaction, also where there is nobody to delete.
    unsafe { pg_sys::PreventCommandIfReadOnly(c"DELETE".as_ptr()) };
    spi::accept_invalidations();
    let (statement, value) = match members.as_slice() {
        [] => return Ok(0),
        [one] => (&DELETE_ONE, uuid(*one)),
        many => (&DELETE, uuids(many)),
    };
    let _intent = intent::set(members, intent);
    Ok(connection.run(statement, &[Some(value)], true)?.count)
}

/// SQL `presence.delete(room, member_id, connection_id, state, reason, after)`.
fn delete(call: &Call, extension: Extension) -> Result<Option<Datum>> {
    let identity = identity::current(&extension)?;
    let room = call.text(0).ok_or(Error::MissingArgument { argument: "room" })?;
    let member_id = match call.text(1) {
        Some(given) => given,
        None => identity.writer()?,
    };
    let removal = Removal::new(
        room.to_vec(),
        member_id.to_vec(),
        call.text(2).map(<[u8]>::to_vec),
        call.varlena(3).map(<[u8]>::to_vec),
        reason(&identity, call.text(4))?,
        call.interval(5),
    )?;
    let connection = Connection::open()?;
    let store = Store::open(&extension, &identity, &connection)?;
    let left = removal.run(&store)?;
    if left == 0 {
        nodes::notice::nobody_here(&extension, &identity, room, member_id, call.text(2))?;
    }
    Ok(Some(Datum::from(left as i32)))
}

/// The removal of one member, or of all connections of one.
pub struct Removal {
    room: Vec<u8>,
    member_id: Vec<u8>,
    /// None: all connections.
    connection_id: Option<Vec<u8>>,
    /// jsonb bytes
    last_word: Option<Vec<u8>>,
    reason: Option<Reason>,
    /// Grace in microseconds; 0 is none.
    after: u64,
}

impl Removal {
    pub fn new(
        room: Vec<u8>,
        member_id: Vec<u8>,
        connection_id: Option<Vec<u8>>,
        last_word: Option<Vec<u8>>,
        reason: Option<Reason>,
        after: Option<i128>,
    ) -> Result<Removal> {
        validate::key(&room, &member_id, connection_id.as_deref().unwrap_or_default())?;
        checks::state_size(last_word.as_deref().as_slice())?;
        // A leave with grace is not a removal.
        let reason = reason.or(after.map(|_| Reason::Left));
        let after = after.map_or(Ok(0), validate::after)?;
        Ok(Removal { room, member_id, connection_id, last_word, reason, after })
    }

    fn key(&self, extension: &Extension, connection_id: &[u8]) -> Key {
        extension.key(&self.room, &self.member_id, connection_id)
    }

    /// The members to remove that the current role may see, in the common lock order.
    fn members(&self, store: &Store) -> Result<Vec<u128>> {
        match &self.connection_id {
            Some(connection_id) => Ok(vec![self.key(store.extension(), connection_id).hash]),
            None => {
                let values = [Some(varlena(&self.room)), Some(varlena(&self.member_id))];
                let mut members = members(store.connection(), &CONNECTIONS, &values)?;
                members.sort_unstable();
                Ok(members)
            }
        }
    }

    /// Returns how many left.
    pub fn run(&self, store: &Store) -> Result<usize> {
        let (extension, identity) = (store.extension(), store.caller());
        let deleted = self.delete(store, false)?;
        if identity.service || (deleted > 0 && self.connection_id.is_some()) {
            return Ok(deleted);
        }
        // Whoever manages the room may remove others' members, including those that they may not see.
        if authorizer::allows(&self.room, Action::Manage)? {
            let managed = as_role(extension.owner_role, || {
                let connection = Connection::open()?;
                self.delete(&Store::open(extension, identity, &connection)?, true)
            })?;
            return Ok(deleted + managed);
        }
        if deleted == 0 {
            let key = self.key(extension, self.connection_id.as_deref().unwrap_or_default());
            holder::require_none_of_anothers(extension, identity, &self.member_id, &key)?;
        }
        Ok(deleted)
    }

    /// For all connections: one removal for each that is present, so that many can be locked in order.
    pub fn expand(self, extension: &Extension) -> Result<Vec<(u128, Removal)>> {
        let key = |connection_id: &[u8]| self.key(extension, connection_id).hash;
        if let Some(connection_id) = &self.connection_id {
            return Ok(vec![(key(connection_id), self)]);
        }
        let connection = Connection::open()?;
        let values = [Some(varlena(&self.room)), Some(varlena(&self.member_id))];
        let rows = connection.run(&CONNECTION_IDS, &values, true)?;
        let one = |row| {
            let connection_id = rows.text(row, 0)?.to_vec();
            let removal = Removal {
                room: self.room.clone(),
                member_id: self.member_id.clone(),
                last_word: self.last_word.clone(),
                reason: self.reason,
                after: self.after,
                connection_id: Some(connection_id.clone()),
            };
            Some((key(&connection_id), removal))
        };
        Ok((0..rows.count).filter_map(one).collect())
    }

    /// `managing`: with the owner's rights, on behalf of the caller.
    fn delete(&self, store: &Store, managing: bool) -> Result<usize> {
        let members = self.members(store)?;
        let (reason, last_word) = (self.reason, self.last_word.clone());
        if self.after > 0 {
            return Leave { after: self.after, reason, last_word }.announce(store, &members, managing);
        }
        let intent = Intent { reason, last_word, ..Intent::default() };
        store.leave(members, intent)
    }
}

pub fn reason(identity: &Identity, given: Option<&[u8]>) -> Result<Option<Reason>> {
    let Some(given) = given else { return Ok(None) };
    let reason =
        Reason::from_name(given).filter(|reason| *reason != Reason::Expired).ok_or(Error::InvalidReason)?;
    if reason != Reason::Left && !identity.service {
        return Err(Error::ServiceOnly { what: "give another reason than left" });
    }
    Ok(Some(reason))
}

/// SQL `presence.delete_all(user_id, connection_id)`.
fn delete_all(call: &Call, extension: Extension) -> Result<Option<Datum>> {
    let identity = identity::current(&extension)?;
    let user_id = match call.text(0) {
        Some(given) if identity.service || identity.is(given) => given,
        Some(_) => return Err(Error::ServiceOnly { what: "name a user_id" }),
        None => identity.writer()?,
    };
    validate::name("user_id", user_id)?;
    validate::connection_id("connection_id", call.text(1).unwrap_or_default())?;
    Ok(Some(Datum::from(delete_members_of(user_id, call.text(1))? as i32)))
}

/// Every member of a user, or those of one connection, leave.
pub fn delete_members_of(user_id: &[u8], connection_id: Option<&[u8]>) -> Result<usize> {
    let connection = Connection::open()?;
    let members = members(&connection, &OF_USER, &[Some(varlena(user_id)), connection_id.map(varlena)])?;
    leave(&connection, members, Intent { reason: Some(Reason::Left), ..Intent::default() })
}

crate::verb!(presence_delete, pg_finfo_presence_delete, "presence.delete()", delete);
crate::verb!(presence_delete_all, pg_finfo_presence_delete_all, "presence.delete_all()", delete_all);
