//! `presence.upsert`: enter, or change what is there, or (with what is there already) only renew.

use super::checks::{EMPTY_OBJECT, check_member_id};
use super::intent::{self, Intent};
use super::{lease, session, validate};
use crate::authorizer::{self, Action};
use crate::clock;
use crate::error::{Error, Result};
use crate::event::fold::{Change, What};
use crate::event::transaction::{self, Pending};
use crate::extension::{self, Extension};
use crate::identity::{self, Identity};
use crate::lease::rule::RowLease;
use crate::lease::shared::leases;
use crate::lease::table::{Key, NEVER};
use crate::spi::{Connection, Rows, Statement};
use crate::sqlfn::{Call, bytes_of, interval_of, text_of, texts_of, uuid, varlena};
use pgrx::pg_sys::{self, Datum};

/// A verb's arguments after the names were checked and defaults filled in.
pub struct Request {
    pub extension: Extension,
    pub key: Key,
    pub service: bool,
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
    Row(Rows),
    Renewed(Rows),
}

/// The columns of `online` as their owner gets them, then what the lease needs.
macro_rules! returning {
    ($($sql:literal),*) => {
        concat!(
            $($sql,)*
            " room, member_id, connection_id, user_id, status, state, metadata, audience, version, joined_at, \
             updated_at, last_seen_at, expires_at, ttl, session_pid"
        )
    };
}

const fn c(sql: &'static str) -> &'static std::ffi::CStr {
    match std::ffi::CStr::from_bytes_with_nul(sql.as_bytes()) {
        Ok(sql) => sql,
        Err(_) => c"",
    }
}

/// Columns of the SELECT: one of `online`, and those that follow.
const VERSION: usize = 8;
const GENERATION: usize = 15;
const DEADLINE: usize = 16;
const SESSION: usize = 17;
const ONLINE_COLUMNS: usize = 15;

static FIND: Statement = Statement {
    sql: c(concat!(
        returning!("select"),
        ", generation, deadline, session from presence.member where key_hash operator(pg_catalog.=) $1\0"
    )),
    arguments: &[pg_sys::UUIDOID],
};

static CHANGE: Statement = Statement {
    sql: c(concat!(
        returning!(
            "update presence.member m set state = coalesce($2, m.state), status = coalesce($3, m.status), ",
            "metadata = coalesce($4, m.metadata), ttl = case when $7 then $5 else coalesce($5, m.ttl) end, ",
            "audience = coalesce($6, m.audience), user_id = coalesce($8, m.user_id) where key_hash operator(pg_catalog.=) $1 returning"
        ),
        "\0"
    )),
    arguments: &[
        pg_sys::UUIDOID,
        pg_sys::JSONBOID,
        pg_sys::TEXTOID,
        pg_sys::JSONBOID,
        pg_sys::INTERVALOID,
        pg_sys::TEXTARRAYOID,
        pg_sys::BOOLOID,
        pg_sys::TEXTOID,
    ],
};

static ENTER: Statement = Statement {
    sql: c(concat!(
        returning!(
            "insert into presence.member as m ",
            "(room, member_id, connection_id, state, status, metadata, ttl, audience, user_id) ",
            "values ($1, $2, $3, $4, $5, $6, $7, $8, $9) ",
            "on conflict (room, member_id, connection_id) do nothing returning"
        ),
        "\0"
    )),
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
        service: identity.service,
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
            Written::Row(row) => online_row(&connection, row, self.extension.online),
            Written::Renewed(row) => self.renewed(&connection, row),
        }
    }

    /// Enter, change or renew.
    pub fn write(&self, connection: &Connection) -> Result<Written> {
        // The member may expire, enter or leave between our statements; each turn starts from what is there.
        for turn in 0..100 {
            // The first look is at what the caller's statement sees; after that somebody was quicker, so look anew.
            let found = connection.run(&FIND, &[Some(uuid(self.key.hash))], turn > 0)?;
            if self.is_live(&found) {
                self.refuse_anothers(&found)?;
                let state = self.new_state(found.get(0, 5));
                let identical = self.is_identical(&found, state)?;
                crate::injection::stall("renewing");
                if identical && self.renew(&found) {
                    return Ok(Written::Renewed(found));
                }
                let changed = self.change(connection, state)?;
                if changed.count > 0 {
                    return Ok(Written::Row(changed));
                }
            }
            let entered = self.enter(connection, self.new_state(None))?;
            if entered.count > 0 {
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

    fn refuse_anothers(&self, found: &Rows) -> Result<()> {
        // SAFETY: a text.
        let own = found.get(0, 3).is_some_and(|held| unsafe { text_of(held) } == self.owner);
        if own || self.service { Ok(()) } else { Err(Error::OwnedByAnother) }
    }

    fn is_live(&self, found: &Rows) -> bool {
        found.count > 0 && lease::deadline(&self.key, &row_lease(found)).is_some()
    }

    /// Whether the call would leave everything as it is.
    fn is_identical(&self, found: &Rows, state: Option<Datum>) -> Result<bool> {
        let same = |given: Option<Datum>, column: usize| match (given, found.get(0, column)) {
            (None, _) => true,
            // SAFETY: the arguments and columns are jsonb.
            (Some(given), Some(held)) => unsafe { bytes_of(given) == bytes_of(held) },
            (Some(_), None) => false,
        };
        // SAFETY: texts and intervals, as the columns are.
        let (same_owner, same_status, same_ttl) = unsafe {
            (
                self.new_owner
                    .is_none_or(|given| found.get(0, 3).is_some_and(|held| text_of(held) == text_of(given))),
                self.status.is_none_or(|given| {
                    found.get(0, 4).map_or(&b""[..], |held| text_of(held)) == text_of(given)
                }),
                self.ttl.is_none_or(|given| {
                    found.get(0, 13).is_some_and(|held| interval_of(held) == interval_of(given))
                }),
            )
        };
        let same_session = match self.session {
            None => true,
            Some(false) => found.get(0, SESSION).is_none(),
            Some(true) => {
                let mine = crate::shared::my_process()
                    .map_or(0, |process| process.session.load(std::sync::atomic::Ordering::Relaxed));
                mine != 0
                    && row_lease(found).session == mine
                    && (self.ttl.is_some() == found.get(0, 13).is_some())
            }
        };
        Ok(same_owner
            && same_status
            && same_ttl
            && same_session
            && same(state, 5)
            && same(self.metadata, 6)
            && self.same_audience(found)?)
    }

    fn same_audience(&self, found: &Rows) -> Result<bool> {
        let (Some(given), Some(held)) = (self.audience, found.get(0, 7)) else {
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
    fn renew(&self, found: &Rows) -> bool {
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
        let version = row_lease(found).version;
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

    fn change(&self, connection: &Connection, state: Option<Datum>) -> Result<Rows> {
        let _intent = intent::set(Intent { session: self.session, ..Intent::default() });
        let values = [
            Some(uuid(self.key.hash)),
            state,
            self.status,
            self.metadata,
            self.ttl,
            self.audience,
            self.session.map(Datum::from),
            self.new_owner,
        ];
        connection.run(&CHANGE, &values, true)
    }

    fn enter(&self, connection: &Connection, state: Option<Datum>) -> Result<Rows> {
        let _intent = intent::set(Intent { session: self.session, ..Intent::default() });
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
        connection.run(&ENTER, &values, true)
    }

    /// The row as it will be once the renewal is committed.
    fn renewed(&self, connection: &Connection, found: &Rows) -> Result<Datum> {
        let now = clock::boot();
        // SAFETY: an interval.
        let ttl = found.get(0, 13).map(|ttl| unsafe { interval_of(ttl) } as u64);
        let mut values: [Option<Datum>; ONLINE_COLUMNS] = std::array::from_fn(|column| found.get(0, column));
        values[11] = Some(Datum::from(clock::wall_of(now)));
        values[12] = Some(Datum::from(lease::expires_at(ttl.map_or(NEVER, |ttl| now + ttl))));
        connection.in_caller(|| composite(&values, self.extension.online))
    }
}

fn row_lease(found: &Rows) -> RowLease {
    lease::found(found, 0, [VERSION, GENERATION, DEADLINE, SESSION])
}

/// The first row of a query as a value of the row type of `online`, in the memory of the caller.
pub fn online_row(connection: &Connection, rows: &Rows, row_type: pg_sys::Oid) -> Result<Datum> {
    let values: [Option<Datum>; ONLINE_COLUMNS] = std::array::from_fn(|column| rows.get(0, column));
    connection.in_caller(|| composite(&values, row_type))
}

fn composite(values: &[Option<Datum>; ONLINE_COLUMNS], row_type: pg_sys::Oid) -> Result<Datum> {
    // SAFETY: the row type's descriptor is a counted reference, released below; the values are of its types.
    unsafe {
        let descriptor = pg_sys::lookup_rowtype_tupdesc(row_type, -1);
        if ((*descriptor).natts as usize) < ONLINE_COLUMNS {
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
