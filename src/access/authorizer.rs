//! The authorizer: the application's function that decides who may read, join and manage a room.
//!
//! The policies call it, so views, tables and functions all obey it. It runs as the caller and as part of the
//! caller's statement: an error in it (a cancel, a deadlock, a bug) ends that statement. NULL means no.
//!
//! An answer is remembered for its room, for as long as nothing changes that a STABLE function can see: the statement,
//! its snapshot and command, the role, the claims and any other setting, the catalog.

use super::{client, identity};
use crate::error::{Error, Result, printable};
use crate::pg::datum::varlena;
use crate::pg::function::Call;
use crate::pg::session_settings;
use crate::pg::spi::{Connection, Statement};
use crate::{extension, settings};
use pgrx::pg_guard;
use pgrx::pg_sys::{self, Datum, Oid};
use siphasher::sip128::{Hasher128, SipHasher13};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::hash::Hasher;

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

/// For readers: whether the caller may. Without an authorizer everybody may read and join, and only service roles may
/// manage.
pub fn allows(room: &[u8], action: Action) -> Result<bool> {
    let name = settings::authorizer();
    if name.is_empty() {
        return Ok(action != Action::Manage);
    }
    Ok(answer(&name, room, action)? == Some(true))
}

/// The same for writers, who get an error that says why not.
pub fn require(room: &[u8], action: Action) -> Result<()> {
    let name = settings::authorizer();
    let allowed = if name.is_empty() { Some(action != Action::Manage) } else { answer(&name, room, action)? };
    match allowed {
        Some(true) => Ok(()),
        Some(false) => Err(Error::NotAuthorized { action: action.name() }),
        None => Err(Error::AuthorizerFailed { why: "It returned NULL.".into() }),
    }
}

/// Answers by room and action; None is NULL.
type Answers = HashMap<(Vec<u8>, Action), Option<bool>>;

/// How many answers of one statement are cached.
const MOST_ROOMS: usize = 10_000;

thread_local! {
    /// With the fingerprint of everything that they depend on.
    static REMEMBERED: RefCell<(u128, Answers)> = RefCell::new((0, HashMap::new()));
}

fn answer(name: &[u8], room: &[u8], action: Action) -> Result<Option<bool>> {
    watch();
    let now = moment(name);
    let asked = (room.to_vec(), action);
    let known = REMEMBERED
        .with_borrow(|(then, answers)| if *then == now { answers.get(&asked).copied() } else { None });
    if let Some(known) = known {
        return Ok(known);
    }
    let answer = ask(name, room, action)?;
    // The call itself can change what the answer depends on. Then the answer is not cached.
    if moment(name) == now {
        REMEMBERED.with_borrow_mut(|(then, answers)| {
            if *then != now || answers.len() >= MOST_ROOMS {
                *answers = HashMap::new();
            }
            *then = now;
            answers.insert(asked, answer);
        });
    }
    Ok(answer)
}

thread_local! {
    /// A random key, so that nobody can choose settings that collide with others'.
    static KEYS: (u64, u64) = {
        let random = std::collections::hash_map::RandomState::new();
        let key = |number: u8| std::hash::BuildHasher::hash_one(&random, number);
        (key(0), key(1))
    };
    /// Incremented when functions, schemas, roles or tables change, and when a savepoint is rolled back.
    static EPOCH: Cell<u64> = const { Cell::new(0) };
    static WATCHING: Cell<bool> = const { Cell::new(false) };
}

/// A hash of everything that an answer may depend on.
fn moment(name: &[u8]) -> u128 {
    let (low, high) = KEYS.with(|keys| *keys);
    let mut hasher = SipHasher13::new_with_keys(low, high);
    hasher.write(name);
    hasher.write_u64(EPOCH.get());
    hasher.write_u8(u8::from(client::is_own_session()));
    // SAFETY: plain reads of this process's state. A snapshot's arrays are as long as it says.
    unsafe {
        let (mut role, mut context) = (pg_sys::InvalidOid, 0);
        pg_sys::GetUserIdAndSecContext(&mut role, &mut context);
        for role in [role, pg_sys::GetSessionUserId()] {
            hasher.write_u32(u32::from(role));
        }
        hasher.write_i32(context);
        hasher.write_i64(pg_sys::GetCurrentStatementStartTimestamp());
        hasher.write_u32(pg_sys::GetCurrentCommandId(false));
        if pg_sys::ActiveSnapshotSet() {
            hash_snapshot(&*pg_sys::GetActiveSnapshot(), &mut hasher);
        }
    }
    session_settings::hash(&mut hasher);
    hasher.finish128().as_u128()
}

/// # Safety
/// A valid snapshot.
unsafe fn hash_snapshot(snapshot: &pg_sys::SnapshotData, hasher: &mut impl Hasher) {
    for number in [u32::from(snapshot.xmin), u32::from(snapshot.xmax), snapshot.curcid, snapshot.xcnt] {
        hasher.write_u32(number);
    }
    let running = [(snapshot.xip, snapshot.xcnt as usize), (snapshot.subxip, snapshot.subxcnt as usize)];
    for (transactions, count) in running {
        // SAFETY: the caller's promise.
        let transactions = (0..count).map(|at| u32::from(unsafe { *transactions.add(at) }));
        transactions.for_each(|transaction| hasher.write_u32(transaction));
    }
}

fn watch() {
    if WATCHING.replace(true) {
        return;
    }
    use pg_sys::SysCacheIdentifier::*;
    // SAFETY: registered once a process; the callbacks only count.
    unsafe {
        for cache in [PROCOID, NAMESPACEOID, AUTHOID, AUTHMEMROLEMEM] {
            pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(catalog_changed), Datum::from(0));
        }
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), Datum::from(0));
        pg_sys::RegisterSubXactCallback(Some(savepoint_ended), std::ptr::null_mut());
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn catalog_changed(_argument: Datum, _cache: i32, _hash: u32) {
    EPOCH.set(EPOCH.get() + 1);
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_argument: Datum, _relation: Oid) {
    EPOCH.set(EPOCH.get() + 1);
}

/// Rows that were rolled back may have been seen under the same snapshot.
#[pg_guard]
unsafe extern "C-unwind" fn savepoint_ended(
    event: pg_sys::SubXactEvent::Type,
    _mine: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _argument: *mut std::ffi::c_void,
) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        EPOCH.set(EPOCH.get() + 1);
    }
}

/// Call the function as the current role, read-only, and without a subtransaction, which a parallel plan does not
/// allow.
fn ask(name: &[u8], room: &[u8], action: Action) -> Result<Option<bool>> {
    let statement = statement(name)?;
    let connection = Connection::open()?;
    let values = [Some(varlena(room)), Some(varlena(action.name().as_bytes()))];
    let rows = connection.run(statement, &values, false)?;
    Ok(rows.get(0, 0).map(|answer| answer.value() as u8 != 0))
}

thread_local! {
    static STATEMENTS: RefCell<HashMap<Vec<u8>, &'static Statement>> = RefCell::default();
}

/// The statement is planned for each role, because rights were checked for the role when a function was inlined into
/// the plan. It is never freed; there are only as many as superusers name authorizers.
fn statement(name: &[u8]) -> Result<&'static Statement> {
    let function = Function::named(name)?;
    if let Some(known) = STATEMENTS.with_borrow(|known| known.get(name).copied()) {
        return Ok(known);
    }
    let sql = Box::leak(function.call().into_boxed_c_str());
    let statement: &'static Statement =
        Box::leak(Box::new(Statement { sql, arguments: &[pg_sys::TEXTOID, pg_sys::TEXTOID] }));
    STATEMENTS.with_borrow_mut(|known| known.insert(name.to_vec(), statement));
    Ok(statement)
}

/// Schema and function. Without a schema the caller's search_path would choose the function.
struct Function {
    schema: CString,
    function: CString,
}

impl Function {
    /// Parsed as PostgreSQL parses a name. The schema is required.
    fn named(name: &[u8]) -> Result<Function> {
        let wrong = || Error::AuthorizerFailed {
            why: "presence.authorizer does not name a schema and a function in it.".into(),
        };
        let given = CString::new(name).map_err(|_| wrong())?;
        // SAFETY: the copy is split in place into a list of its parts, zero-terminated strings.
        let parts: Vec<CString> = unsafe {
            let mut list = std::ptr::null_mut();
            if !pg_sys::SplitIdentifierString(pg_sys::pstrdup(given.as_ptr()), b'.' as _, &mut list) {
                return Err(wrong());
            }
            let count = list.as_ref().map_or(0, |list| list.length);
            (0..count).map(|at| CStr::from_ptr(pg_sys::list_nth(list, at).cast()).to_owned()).collect()
        };
        let [schema, function] = <[CString; 2]>::try_from(parts).map_err(|_| wrong())?;
        let function = Function { schema, function };
        if function.exists() {
            return Ok(function);
        }
        let why = format!("There is no function {}(room text, action text).", printable(name));
        Err(Error::AuthorizerFailed { why })
    }

    /// Whether any function of that name takes two arguments; the parser chooses among them.
    fn exists(&self) -> bool {
        // SAFETY: a list of two new String nodes; look-ups in the catalog.
        unsafe {
            if pg_sys::get_namespace_oid(self.schema.as_ptr(), true) == pg_sys::InvalidOid {
                return false;
            }
            let name = |part: &CStr| pg_sys::makeString(pg_sys::pstrdup(part.as_ptr()));
            let names = pg_sys::lappend(std::ptr::null_mut(), name(&self.schema).cast());
            let names = pg_sys::lappend(names, name(&self.function).cast());
            !pg_sys::FuncnameGetCandidates(names, 2, std::ptr::null_mut(), true, true, false, true).is_null()
        }
    }

    fn call(&self) -> CString {
        let mut sql = b"select (".to_vec();
        for (part, end) in [(&self.schema, b".".as_slice()), (&self.function, b"($1, $2))::pg_catalog.bool")]
        {
            // SAFETY: a C string; the result is the same or a new one.
            sql.extend(unsafe { CStr::from_ptr(pg_sys::quote_identifier(part.as_ptr())) }.to_bytes());
            sql.extend(end);
        }
        CString::new(sql).unwrap_or_default()
    }
}

/// SQL `_presence._may(room, action)`, for the policies. Without a room only `read` is allowed.
fn may(call: &Call) -> Result<Option<Datum>> {
    let action = match call.text(1) {
        Some(b"read") => Action::Read,
        Some(b"manage") => Action::Manage,
        _ => Action::Join,
    };
    let Some(room) = call.text(0) else { return Ok(Some(Datum::from(action == Action::Read))) };
    let service = identity::current(&extension::current()?)?.service;
    Ok(Some(Datum::from(service || allows(room, action)?)))
}

crate::sql_function!(presence_may, pg_finfo_presence_may, may);
