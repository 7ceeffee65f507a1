//! `presence.upsert`: enter, or change what is there, or (with what is there already) only renew.

use super::column::Column;
use super::request::{Request, Written};
use super::row::Row;
use super::store::Store;
use super::{liveness, revert, session};
use crate::access::authorizer::{self, Action};
use crate::access::identity::{self, Identity};
use crate::access::ownership::check_member_id;
use crate::error::{Error, Result};
use crate::extension::Extension;
use crate::lease::slot::NEVER;
use crate::pg::datum::{is_named, varlena};
use crate::pg::function::Call;
use crate::pg::spi::Connection;
use crate::shared::leases::awaited_key;
use crate::{clock, settings, validate};
use pgrx::pg_sys::{self, Datum};

/// The columns of `online` in a row.
const ONLINE: [Column; 15] = [
    Column::Room,
    Column::MemberId,
    Column::ConnectionId,
    Column::UserId,
    Column::Status,
    Column::State,
    Column::Metadata,
    Column::Audience,
    Column::Version,
    Column::JoinedAt,
    Column::UpdatedAt,
    Column::LastSeenAt,
    Column::ExpiresAt,
    Column::Ttl,
    Column::SessionPid,
];
const LAST_SEEN_AT: usize = 11;
const EXPIRES_AT: usize = 12;

/// SQL `presence.upsert(room, state, member_id, connection_id, status, metadata, ttl, audience, session, user_id,
/// revert_after)`.
fn upsert(call: &Call, extension: Extension) -> Result<Option<Datum>> {
    let identity = identity::current(&extension)?;
    let room = call.text(0).ok_or(Error::MissingArgument { argument: "room" })?;
    let owner = owner(&identity, call.text(9))?;
    let member_id = call.text(2).unwrap_or(&owner);
    let connection_id = call.text(3).unwrap_or_default();
    check_names(&identity, room, member_id, connection_id)?;
    if let Some(ttl) = call.interval(6) {
        validate::given_ttl(ttl)?;
    }
    if !identity.service {
        authorizer::require(room, Action::Join)?;
    }
    if call.bool(8) == Some(true) {
        session::require(&identity, "a session member")?;
    }
    let request = Request {
        verb: c"presence.upsert()",
        key: awaited_key(&extension, room, member_id, connection_id),
        extension,
        room: varlena(room),
        member_id: varlena(member_id),
        connection_id: varlena(connection_id),
        state: call.datum(1),
        patch: None,
        status: call.datum(4),
        metadata: call.datum(5),
        ttl: call.datum(6),
        audience: call.datum(7),
        session: call.bool(8),
        revert_after: call.interval(10).map(revert::check_interval).transpose()?,
        new_owner: call.datum(9),
        caller: identity,
        owner: Some(owner),
    };
    run(&request)
}

/// The owner of the member: the caller, or whom a service role names.
pub fn owner(identity: &Identity, given: Option<&[u8]>) -> Result<Vec<u8>> {
    match given {
        Some(_) if !identity.service => Err(Error::ServiceOnly { what: "name a user_id" }),
        Some(given) => validate::name("user_id", given).map(|()| given.to_vec()),
        None => identity.writer().map(<[u8]>::to_vec),
    }
}

pub fn check_names(identity: &Identity, room: &[u8], member_id: &[u8], connection_id: &[u8]) -> Result<()> {
    validate::key(room, member_id, connection_id)?;
    check_member_id(identity, member_id)
}

/// Carry out the request. Returns the row as `online` shows it to its owner; None if the member is absent.
pub fn run(request: &Request) -> Result<Option<Datum>> {
    let connection = Connection::open()?;
    let store = Store::open(&request.extension, &request.caller, &connection)?;
    match &request.write(&store)? {
        Written::Row(row) => online_row(&connection, row, &request.extension).map(Some),
        Written::Renewed(row) if row.lease().is_fixed => {
            online_row(&connection, row, &request.extension).map(Some)
        }
        Written::Renewed(row) => renewed(&connection, row, &request.extension).map(Some),
        Written::Absent => Ok(None),
    }
}

/// The row as it will be once the renewal is committed.
fn renewed(connection: &Connection, found: &Row, extension: &Extension) -> Result<Datum> {
    let now = clock::boot();
    let undone = revert::undone(found, now);
    let mut values = ONLINE.map(|column| undone.as_ref().unwrap_or(found).get(column));
    values[LAST_SEEN_AT] = Some(Datum::from(clock::wall_of(now)));
    values[EXPIRES_AT] = liveness::expires_at(found.ttl().map_or(NEVER, |ttl| now + ttl as u64));
    connection.in_caller(|| composite(&values, extension.online))
}

/// A row as returned to its owner: a value of the row type of `online`, in the caller's memory.
fn online_row(connection: &Connection, row: &Row, extension: &Extension) -> Result<Datum> {
    let undone = revert::undone(row, clock::boot());
    let values = ONLINE.map(|column| undone.as_ref().unwrap_or(row).get(column));
    connection.in_caller(|| composite(&values, extension.online))
}

fn composite(values: &[Option<Datum>; ONLINE.len()], row_type: pg_sys::Oid) -> Result<Datum> {
    // SAFETY: the row type's descriptor is a counted reference, released below; the values are of its types.
    unsafe {
        let descriptor = pg_sys::lookup_rowtype_tupdesc(row_type, -1);
        if ((*descriptor).natts as usize) < ONLINE.len() {
            return Err(Error::TooManyColumns);
        }
        let columns = (*descriptor).natts as usize;
        let mut datums = vec![Datum::from(0); columns];
        let mut nulls = vec![true; columns];
        for (column, value) in values.iter().enumerate() {
            nulls[column] = value.is_none();
            datums[column] = value.unwrap_or(Datum::from(0));
        }
        if let Some(node) = settings::node_name()
            && columns > ONLINE.len()
        {
            let is_node = is_named(descriptor, ONLINE.len() as i32, c"node");
            (nulls[ONLINE.len()], datums[ONLINE.len()]) = (!is_node, varlena(&node));
        }
        let tuple = pg_sys::heap_form_tuple(descriptor, datums.as_mut_ptr(), nulls.as_mut_ptr());
        let value = pg_sys::heap_copy_tuple_as_datum(tuple, descriptor);
        if (*descriptor).tdrefcount >= 0 {
            pg_sys::DecrTupleDescRefCount(descriptor);
        }
        Ok(value)
    }
}

crate::verb!(presence_upsert, pg_finfo_presence_upsert, "presence.upsert()", upsert);
