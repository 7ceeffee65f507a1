//! `presence.delete` and `presence.delete_all`: leave.

use super::intent::{self, Intent};
use super::trigger::owner_of;
use super::validate;
use crate::authorizer::{self, Action};
use crate::error::{Error, Result};
use crate::event::record::Reason;
use crate::extension::{self, Extension};
use crate::identity::{self, Identity};
use crate::lease::shared::leases;
use crate::lease::table::alive;
use crate::spi::{self, Connection, Statement};
use crate::sqlfn::{self, Call, uuid, varlena};
use pgrx::pg_sys::{self, Datum};

static DELETE_ONE: Statement =
    Statement { sql: c"delete from presence.member where key_hash = $1", arguments: &[pg_sys::UUIDOID] };

static DELETE_CONNECTIONS: Statement = Statement {
    sql: c"with found as materialized (select key_hash from presence.member where room = $1 and member_id = $2 \
                                       order by key_hash for update) \
           delete from presence.member m using found where m.key_hash = found.key_hash",
    arguments: &[pg_sys::TEXTOID, pg_sys::TEXTOID],
};

static DELETE_ALL: Statement = Statement {
    sql: c"with found as materialized (select key_hash from presence.member \
                                       where user_id = $1 and ($2 is null or connection_id = $2) \
                                       order by key_hash for update) \
           delete from presence.member m using found where m.key_hash = found.key_hash",
    arguments: &[pg_sys::TEXTOID, pg_sys::TEXTOID],
};

/// SQL `presence.delete(room, member_id, connection_id, state, reason)`.
fn delete(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let identity = identity::current(&extension)?;
    let room = call.text(0).ok_or(Error::MissingArgument { argument: "room" })?;
    let member_id = match call.text(1) {
        Some(given) => given,
        None => identity.writer()?,
    };
    validate::name("room", room)?;
    validate::name("member_id", member_id)?;
    validate::connection_id("connection_id", call.text(2).unwrap_or_default())?;
    let last_word = call.varlena(3).map(<[u8]>::to_vec);
    validate::state_size(last_word.as_ref().map_or(0, Vec::len))?;
    let reason = reason(&identity, call.text(4))?;

    let target = Target { extension: &extension, room, member_id, connection_id: call.text(2) };
    let manages = !identity.service && !identity.is(member_id) && authorizer::allows(room, Action::Manage);
    let caller = manages.then(|| identity.user_id.clone()).flatten();
    let _intent = intent::set(Intent { reason, last_word, caller, ..Intent::default() });
    // Who manages the room removes members that they may not see.
    let deleted =
        if manages { spi::as_role(extension.owner, || target.delete())? } else { target.delete()? };
    if deleted == 0 && !identity.service && !manages {
        target.refuse_anothers(&identity)?;
    }
    Ok(Some(Datum::from(deleted as i32)))
}

struct Target<'a> {
    extension: &'a Extension,
    room: &'a [u8],
    member_id: &'a [u8],
    /// None: all.
    connection_id: Option<&'a [u8]>,
}

impl Target<'_> {
    fn delete(&self) -> Result<usize> {
        let connection = Connection::open()?;
        let rows = match self.connection_id {
            Some(connection_id) => {
                let key = self.extension.key(self.room, self.member_id, connection_id);
                connection.run(&DELETE_ONE, &[Some(uuid(key.hash))], true)?
            }
            None => {
                let values = [Some(varlena(self.room)), Some(varlena(self.member_id))];
                connection.run(&DELETE_CONNECTIONS, &values, true)?
            }
        };
        Ok(rows.count)
    }

    /// Nothing was deleted: say so if that is because the member is another's, seen or unseen alike.
    fn refuse_anothers(&self, identity: &Identity) -> Result<()> {
        let key = self.extension.key(self.room, self.member_id, self.connection_id.unwrap_or_default());
        let there = leases().read(&key).is_some_and(|slot| alive(slot.deadline, crate::clock::boot()));
        if there && owner_of(self.extension, &key)?.is_some_and(|owner| !identity.is(&owner)) {
            return Err(Error::OwnedByAnother);
        }
        Ok(())
    }
}

fn reason(identity: &Identity, given: Option<&[u8]>) -> Result<Option<Reason>> {
    let Some(given) = given else { return Ok(None) };
    let reason =
        Reason::from_name(given).filter(|reason| *reason != Reason::Expired).ok_or(Error::InvalidReason)?;
    if reason != Reason::Left && !identity.service {
        return Err(Error::ServiceOnly { what: "give another reason than left" });
    }
    Ok(Some(reason))
}

/// SQL `presence.delete_all(user_id, connection_id)`.
fn delete_all(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let identity = identity::current(&extension)?;
    let user_id = match call.text(0) {
        Some(given) if identity.service || identity.is(given) => given,
        Some(_) => return Err(Error::ServiceOnly { what: "name a user_id" }),
        None => identity.writer()?,
    };
    validate::name("user_id", user_id)?;
    validate::connection_id("connection_id", call.text(1).unwrap_or_default())?;
    let _intent = intent::set(Intent { reason: Some(Reason::Left), ..Intent::default() });
    let values = [Some(varlena(user_id)), call.text(1).map(sqlfn::varlena)];
    Ok(Some(Datum::from(Connection::open()?.run(&DELETE_ALL, &values, true)?.count as i32)))
}

crate::sql_function!(presence_delete, pg_finfo_presence_delete, delete);
crate::sql_function!(presence_delete_all, pg_finfo_presence_delete_all, delete_all);
