//! The authorizer: a function of the application's that decides who may read, join and manage a room.
//!
//! It stands in the policies, so views, tables and functions obey it alike. Answers are remembered for each room
//! for the length of a statement. An error, NULL, a missing function or one that may not be called is a no.

use crate::error::{Error, Result};
use crate::extension;
use crate::identity;
use crate::settings;
use crate::spi::Connection;
use crate::sqlfn::{Call, varlena};
use crate::subtransaction::attempt;
use pgrx::pg_sys::{self, Datum};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Read,
    Join,
    Manage,
}

impl Action {
    pub fn name(self) -> &'static str {
        match self {
            Action::Read => "read",
            Action::Join => "join",
            Action::Manage => "manage",
        }
    }
}

pub fn is_set() -> bool {
    !settings::authorizer().is_empty()
}

/// Which statement is running, as well as one can tell: where it differs, answers are asked for again.
#[derive(PartialEq, Eq)]
struct Moment {
    started: i64,
    role: pg_sys::Oid,
    user_id: Option<Vec<u8>>,
    command: u32,
    horizon: (u32, u32),
}

impl Moment {
    fn now() -> Moment {
        let identity = extension::current().and_then(|extension| identity::current(&extension));
        let user_id = identity.ok().and_then(|identity| identity.user_id.clone());
        // SAFETY: plain reads; a snapshot is active while a statement runs.
        unsafe {
            let snapshot =
                if pg_sys::ActiveSnapshotSet() { pg_sys::GetActiveSnapshot() } else { std::ptr::null_mut() };
            let (command, horizon) = snapshot.as_ref().map_or((0, (0, 0)), |snapshot| {
                (snapshot.curcid, (u32::from(snapshot.xmin), u32::from(snapshot.xmax)))
            });
            Moment {
                started: pg_sys::GetCurrentStatementStartTimestamp(),
                role: pg_sys::GetUserId(),
                user_id,
                command,
                horizon,
            }
        }
    }
}

type Answers = HashMap<(Vec<u8>, Action), std::result::Result<bool, String>>;

thread_local! {
    static REMEMBERED: RefCell<Option<(Moment, Vec<u8>, Answers)>> = const { RefCell::new(None) };
}

/// What the authorizer says. Err tells why it said nothing, which is a no.
fn answer(name: &[u8], room: &[u8], action: Action) -> std::result::Result<bool, String> {
    let moment = Moment::now();
    let known = REMEMBERED.with_borrow(|remembered| match remembered {
        Some((then, whose, answers)) if *then == moment && whose == name => {
            answers.get(&(room.to_vec(), action)).cloned()
        }
        _ => None,
    });
    if let Some(known) = known {
        return known;
    }
    let answer = match attempt(|| ask(name, room, action)) {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err("It returned NULL.".into()),
        Err(failure) => Err(format!("It failed: {}.", failure.message)),
    };
    REMEMBERED.with_borrow_mut(|remembered| {
        let same = matches!(remembered, Some((then, whose, _)) if *then == moment && whose == name);
        if !same {
            *remembered = Some((moment, name.to_vec(), HashMap::new()));
        }
        if let Some((_, _, answers)) = remembered {
            answers.insert((room.to_vec(), action), answer.clone());
        }
    });
    answer
}

/// Call the function as the current role.
fn ask(name: &[u8], room: &[u8], action: Action) -> Result<Option<bool>> {
    let function = quoted(name)?;
    let literal = |text: &[u8]| -> Vec<u8> {
        let given = CString::new(text).unwrap_or_default();
        // SAFETY: a C string; the result is a new one.
        unsafe { std::ffi::CStr::from_ptr(pg_sys::quote_literal_cstr(given.as_ptr())) }.to_bytes().to_vec()
    };
    let sql = [
        b"select (",
        function.as_slice(),
        b"(",
        &literal(room),
        b"::pg_catalog.text, ",
        &literal(action.name().as_bytes()),
        b"::pg_catalog.text))::pg_catalog.bool",
    ]
    .concat();
    let sql = CString::new(sql)
        .map_err(|_| Error::InvalidArgument { argument: "room", why: "It has a NUL.".into() })?;
    let connection = Connection::open()?;
    let rows = connection.run_text(&sql, false)?;
    Ok(rows.get(0, 0).map(|answer: Datum| answer.value() as u8 != 0))
}

/// The setting's value as schema and function (without a schema the caller's search_path would choose one): parsed and quoted by PostgreSQL, so it is a name and nothing else.
fn quoted(name: &[u8]) -> Result<Vec<u8>> {
    let connection = Connection::open()?;
    let rows = connection.run(&QUOTE, &[Some(varlena(name))], false)?;
    rows.text(0, 0).map(<[u8]>::to_vec).ok_or(Error::AuthorizerFailed {
        why: "presence.authorizer does not name a schema and a function in it.".into(),
    })
}

static QUOTE: crate::spi::Statement = crate::spi::Statement {
    sql: c"select pg_catalog.string_agg(pg_catalog.quote_ident(part), '.') \
           from pg_catalog.unnest(pg_catalog.parse_ident($1)) part having pg_catalog.count(*) operator(pg_catalog.=) 2",
    arguments: &[pg_sys::TEXTOID],
};

/// Whether the caller may, for readers: anything but a yes is a no. Without an authorizer everybody may read and
/// join, and only service roles manage.
pub fn allows(room: &[u8], action: Action) -> bool {
    let name = settings::authorizer();
    if name.is_empty() {
        return action != Action::Manage;
    }
    answer(&name, room, action) == Ok(true)
}

/// The same for writers, who are told what is wrong.
pub fn require(room: &[u8], action: Action) -> Result<()> {
    let name = settings::authorizer();
    if name.is_empty() {
        return if action == Action::Manage {
            Err(Error::NotAuthorized { action: "manage" })
        } else {
            Ok(())
        };
    }
    match answer(&name, room, action) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::NotAuthorized { action: action.name() }),
        Err(why) => Err(Error::AuthorizerFailed { why }),
    }
}

/// SQL `presence._may(room, action)`, for the policies. A NULL room is the database's own affair.
fn may(call: &Call) -> Result<Option<Datum>> {
    let action = match call.text(1) {
        Some(b"read") => Action::Read,
        Some(b"manage") => Action::Manage,
        _ => Action::Join,
    };
    let Some(room) = call.text(0) else { return Ok(Some(Datum::from(action == Action::Read))) };
    if allows(room, action) {
        return Ok(Some(Datum::from(true)));
    }
    let service = identity::current(&extension::current()?)?.service;
    Ok(Some(Datum::from(service)))
}

crate::sql_function!(presence_may, pg_finfo_presence_may, may);
