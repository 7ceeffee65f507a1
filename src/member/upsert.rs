//! `presence.upsert`: enter, or change what is there, or (with what is there already) only renew.

use super::access::Access;
use super::checks::{EMPTY_OBJECT, check_member_id};
use super::intent::Intent;
use super::row::{Column, Row};
use super::{lease, session, validate};
use crate::authorizer::{self, Action};
use crate::clock;
use crate::error::{Error, Result};
use crate::event::fold::{Change, What};
use crate::event::transaction::{self, Pending};
use crate::extension::{self, Extension};
use crate::identity::{self, Identity};
use crate::lease::shared::leases;
use crate::lease::table::{Key, NEVER};
use crate::spi::{Connection, Statement};
use crate::sqlfn::{Call, bytes_of, interval_of, text_of, texts_of, uuid, varlena};
use pgrx::pg_sys::{self, Datum};
use std::rc::Rc;

/// A verb's arguments after the names were checked and defaults filled in.
pub struct Request {
    pub extension: Extension,
    pub key: Key,
    pub caller: Rc<Identity>,
    /// Whose member it becomes on enter.
    pub owner: Vec<u8>,
    /// Set: whose it becomes in any case. A service role that names nobody leaves the owner as it is.
    pub new_owner: Option<Datum>,
    pub room: Datum,
    pub member_id: Datum,
    pub connection_id: Datum,
    pub state: Option<Datum>,
    /// Instead of a state: a JSON merge patch on what is there.
    pub patch: Option<Datum>,
    pub status: Option<Datum>,
    pub metadata: Option<Datum>,
    pub ttl: Option<Datum>,
    pub audience: Option<Datum>,
    pub session: Option<bool>,
}

/// What came of a request: the row as written, or as found and only renewed.
pub enum Written {
    Row(Row),
    Renewed(Row),
}

/// Where a row has the columns of `online`.
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

static CHANGE: Statement = Statement {
    sql: c"update presence.member m set state = coalesce($2, m.state), status = coalesce($3, m.status), \
           metadata = coalesce($4, m.metadata), ttl = case when $7 then $5 else coalesce($5, m.ttl) end, \
           audience = coalesce($6, m.audience), user_id = coalesce($8, m.user_id) \
           where key_hash operator(pg_catalog.=) $1 and ($9 is null or user_id operator(pg_catalog.=) $9) \
           returning *",
    arguments: &[
        pg_sys::UUIDOID,
        pg_sys::JSONBOID,
        pg_sys::TEXTOID,
        pg_sys::JSONBOID,
        pg_sys::INTERVALOID,
        pg_sys::TEXTARRAYOID,
        pg_sys::BOOLOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
    ],
};

static ENTER: Statement = Statement {
    sql: c"insert into presence.member as m \
           (room, member_id, connection_id, state, status, metadata, ttl, audience, user_id) \
           values ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
           on conflict (room, member_id, connection_id) do nothing returning *",
    arguments: &[
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::JSONBOID,
        pg_sys::TEXTOID,
        pg_sys::JSONBOID,
        pg_sys::INTERVALOID,
        pg_sys::TEXTARRAYOID,
        pg_sys::TEXTOID,
    ],
};

/// SQL `presence.upsert(room, state, member_id, connection_id, status, metadata, ttl, audience, session, user_id)`.
fn upsert(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let identity = identity::current(&extension)?;
    let room = call.text(0).ok_or(Error::MissingArgument { argument: "room" })?;
    let owner = owner(&identity, call.text(9))?;
    let member_id = call.text(2).unwrap_or(&owner);
    let connection_id = call.text(3).unwrap_or_default();
    check_names(&identity, room, member_id, connection_id)?;
    if let Some(ttl) = call.interval(6) {
        validate::ttl(ttl)?;
    }
    if !identity.service {
        authorizer::require(room, Action::Join)?;
    }
    if call.bool(8) == Some(true) {
        session::require(&identity, "a session member")?;
    }
    let request = Request {
        key: extension.key(room, member_id, connection_id),
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
        new_owner: call.datum(9),
        caller: identity,
        owner,
    };
    request.run().map(Some)
}

/// Whose member it is: the caller's, or whom a service role names.
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

impl Request {
    /// Returns the row as `online` shows it to its owner.
    pub fn run(&self) -> Result<Datum> {
        let connection = Connection::open()?;
        let written = self.write(&connection)?;
        match &written {
            Written::Row(row) => online_row(&connection, row, &self.extension),
            Written::Renewed(row) => self.renewed(&connection, row),
        }
    }

    /// Enter, change or renew.
    pub fn write(&self, connection: &Connection) -> Result<Written> {
        let access = Access::new(&self.extension, &self.caller)?;
        // The member may expire, enter or leave between our statements; each turn starts from what is there.
        for turn in 0..100 {
            // The first look is at what the caller's statement sees; after that somebody was quicker, so look anew.
            let found = access.find(connection, &self.key, turn > 0)?;
            if let Some(found) = found.filter(|row| self.is_live(row)) {
                self.refuse_anothers(&found)?;
                let state = self.new_state(found.get(Column::State));
                let identical = self.is_identical(&found, state)?;
                crate::injection::stall("renewing");
                if identical && self.renew(&found) {
                    return Ok(Written::Renewed(found));
                }
                let wanted = self.wanted(&found, state);
                if let Some(changed) = access.change(&found, wanted, &self.intent())? {
                    return Ok(Written::Row(changed));
                }
                if let Some(changed) = self.change(connection, &access, state)? {
                    return Ok(Written::Row(changed));
                }
            }
            if let Some(entered) = self.enter(connection, &access, self.new_state(None))? {
                return Ok(Written::Row(entered));
            }
        }
        Err(Error::OwnedByAnother)
    }

    /// The state as given, or as the patch makes it of the one that is there.
    fn new_state(&self, held: Option<Datum>) -> Option<Datum> {
        let patch = match self.patch {
            Some(patch) => patch,
            None => return self.state,
        };
        let held = held.unwrap_or_else(|| varlena(&EMPTY_OBJECT));
        // SAFETY: both are jsonb, and the patch was checked to be an object.
        Some(unsafe { crate::jsonb::merge_patch(held, patch) })
    }

    fn refuse_anothers(&self, found: &Row) -> Result<()> {
        let own = found.text(Column::UserId) == Some(&self.owner);
        if own || self.caller.service { Ok(()) } else { Err(Error::OwnedByAnother) }
    }

    fn is_live(&self, found: &Row) -> bool {
        lease::deadline(&self.key, &found.lease()).is_some()
    }

    /// Whether the call would leave everything as it is.
    fn is_identical(&self, found: &Row, state: Option<Datum>) -> Result<bool> {
        let same = |given: Option<Datum>, column| match given {
            // SAFETY: callers name jsonb arguments.
            Some(given) => found.varlena(column) == Some(unsafe { bytes_of(given) }),
            None => true,
        };
        // SAFETY: a text, a text and an interval.
        let (owner, status, ttl) = unsafe {
            let text = |given: Option<Datum>| given.map(|given| text_of(given));
            (text(self.new_owner), text(self.status), self.ttl.map(|ttl| interval_of(ttl)))
        };
        let same_session = match self.session {
            None => true,
            Some(false) => found.get(Column::Session).is_none(),
            Some(true) => {
                let mine = crate::shared::my_process()
                    .map_or(0, |process| process.session.load(std::sync::atomic::Ordering::Relaxed));
                mine != 0
                    && found.number(Column::Session) == mine
                    && (self.ttl.is_some() == found.get(Column::Ttl).is_some())
            }
        };
        Ok(owner.is_none_or(|owner| found.text(Column::UserId) == Some(owner))
            && status.is_none_or(|status| found.text(Column::Status).unwrap_or_default() == status)
            && ttl.is_none_or(|ttl| found.ttl() == Some(ttl))
            && same_session
            && same(state, Column::State)
            && same(self.metadata, Column::Metadata)
            && self.same_audience(found)?)
    }

    fn same_audience(&self, found: &Row) -> Result<bool> {
        let (Some(given), Some(held)) = (self.audience, found.get(Column::Audience)) else {
            return Ok(self.audience.is_none());
        };
        // SAFETY: text arrays and a text.
        unsafe {
            let given = texts_of(given).map_err(|why| Error::InvalidAudience { why: why.into() })?;
            let given = validate::audience(&given, text_of(self.room))?;
            let held = texts_of(held).map_err(|why| Error::InvalidAudience { why: why.into() })?;
            Ok(given == held)
        }
    }

    /// Renew at commit without touching the row, if nobody else is changing it.
    fn renew(&self, found: &Row) -> bool {
        if !self.extension.may_write() {
            return false;
        }
        match transaction::pending(&self.key) {
            Pending::Present { .. } => {
                transaction::renew_pending(&self.key, clock::boot(), false);
                return true;
            }
            Pending::Gone => return false,
            Pending::Untouched => {}
        }
        let version = found.number(Column::Version);
        let unchanged = leases().unchanged(&self.key, version, clock::boot());
        if unchanged {
            let (what, image) = (What::Renew, Default::default());
            transaction::push(
                &self.extension,
                Change {
                    key: self.key,
                    what,
                    version,
                    at: 0,
                    joined_at: 0,
                    seen_at: 0,
                    image,
                    previous: None,
                },
            );
        }
        unchanged
    }

    /// What CHANGE says, for a row that was found.
    fn wanted(&self, found: &Row, state: Option<Datum>) -> Row {
        let mut row = found.clone();
        let given = [
            (Column::State, state),
            (Column::Status, self.status),
            (Column::Metadata, self.metadata),
            (Column::Ttl, self.ttl),
            (Column::Audience, self.audience),
            (Column::UserId, self.new_owner),
        ];
        for (column, value) in given.into_iter().filter(|(_, value)| value.is_some()) {
            row.set(column, value);
        }
        if self.session == Some(true) {
            row.set(Column::Ttl, self.ttl);
        }
        row
    }

    fn change(&self, connection: &Connection, access: &Access, state: Option<Datum>) -> Result<Option<Row>> {
        let values = [
            Some(uuid(self.key.hash)),
            state,
            self.status,
            self.metadata,
            self.ttl,
            self.audience,
            self.session.map(Datum::from),
            self.new_owner,
            access.only_of(),
        ];
        Row::of_query(&access.write(connection, &CHANGE, &values, self.intent())?)
    }

    fn enter(&self, connection: &Connection, access: &Access, state: Option<Datum>) -> Result<Option<Row>> {
        let values = [
            Some(self.room),
            Some(self.member_id),
            Some(self.connection_id),
            state,
            self.status,
            self.metadata,
            self.ttl,
            self.audience,
            Some(varlena(&self.owner)),
        ];
        Row::of_query(&access.write(connection, &ENTER, &values, self.intent())?)
    }

    fn intent(&self) -> Intent {
        Intent { session: self.session, ..Intent::default() }
    }

    /// The row as it will be once the renewal is committed.
    fn renewed(&self, connection: &Connection, found: &Row) -> Result<Datum> {
        let now = clock::boot();
        let mut values = ONLINE.map(|column| found.get(column));
        values[LAST_SEEN_AT] = Some(Datum::from(clock::wall_of(now)));
        values[EXPIRES_AT] =
            Some(Datum::from(lease::expires_at(found.ttl().map_or(NEVER, |ttl| now + ttl as u64))));
        connection.in_caller(|| composite(&values, self.extension.online))
    }
}

/// A row as its owner gets it: a value of the row type of `online`, in the memory of the caller.
pub fn online_row(connection: &Connection, row: &Row, extension: &Extension) -> Result<Datum> {
    let values = ONLINE.map(|column| row.get(column));
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
        let tuple = pg_sys::heap_form_tuple(descriptor, datums.as_mut_ptr(), nulls.as_mut_ptr());
        let value = pg_sys::heap_copy_tuple_as_datum(tuple, descriptor);
        if (*descriptor).tdrefcount >= 0 {
            pg_sys::DecrTupleDescRefCount(descriptor);
        }
        Ok(value)
    }
}

crate::sql_function!(presence_upsert, pg_finfo_presence_upsert, upsert);
