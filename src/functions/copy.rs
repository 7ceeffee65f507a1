//! The copy for readers: on a standby, and while members are put back after a crash.
//!
//! A plan that names an unlogged table fails on a standby, also where that is in a dead branch. So each function that reads
//! members has a twin that reads `presence.shared_online`, and the planner is told by a support function which one it shall
//! plan. Elsewhere nothing is different, and nothing is looked at again when a plan is run.

use crate::access::grants;
use crate::error::Result;
use crate::extension::{self, Extension};
use crate::member::verb::require_no_standby;
use crate::pg::function::Call;
use crate::pg::role::as_role;
use crate::pg::spi::{Connection, Statement};
use crate::settings;
use crate::shared::database;
use pgrx::pg_sys::{self, Datum, Oid};
use std::ffi::{CStr, CString};

/// Whether readers must use the copy.
pub fn is_read() -> Result<bool> {
    // SAFETY: a look-up in shared memory.
    if unsafe { pg_sys::RecoveryInProgress() } {
        return Ok(true);
    }
    let Some(node) = settings::node_name() else { return Ok(false) };
    let extension = extension::current()?;
    // Until the worker has looked, it is not known whether members are missing, or whether the copy was heard.
    Ok(!extension.database.copy.reads_members() && is_heard(&extension, &node))
}

fn is_heard(extension: &Extension, node: &[u8]) -> bool {
    extension.database.heard.is_heard(extension.node_hash(node))
}

/// SQL `_presence._reads(internal)`: the support function. NULL leaves the call as it is.
fn sql_reads(call: &Call) -> Result<Option<Datum>> {
    Ok(Some(twin_for(call)?.unwrap_or(Datum::from(0))))
}

fn twin_for(call: &Call) -> Result<Option<Datum>> {
    let Some(function) = call_to_plan(call) else { return Ok(None) };
    // Whoever may not call the function may not call its twin.
    // SAFETY: the request has a call.
    if !is_read()? || !grants::is_executable(unsafe { (*function).funcid }) {
        return Ok(None);
    }
    // SAFETY: as above.
    let twin = twin_of(unsafe { (*function).funcid })?;
    Ok(twin.map(|twin| call_instead(function, twin)))
}

/// The call about which the planner asks a support function.
fn call_to_plan(call: &Call) -> Option<*mut pg_sys::FuncExpr> {
    let request = call.datum(0)?.cast_mut_ptr::<pg_sys::SupportRequestSimplify>();
    // SAFETY: the planner passes a node, whose tag says what it is.
    unsafe { ((*request).type_ == pg_sys::NodeTag::T_SupportRequestSimplify).then(|| (*request).fcall) }
}

/// The same call of another function, with the same arguments and result.
fn call_instead(function: *mut pg_sys::FuncExpr, other: Oid) -> Datum {
    // SAFETY: a node of a request, which is not ours to change: a copy is.
    unsafe {
        let copy = pg_sys::copyObjectImpl(function.cast()).cast::<pg_sys::FuncExpr>();
        (*copy).funcid = other;
        Datum::from(copy)
    }
}

/// The function in `_presence` with the same arguments whose name begins with `_shared_`.
fn twin_of(function: Oid) -> Result<Option<Oid>> {
    // SAFETY: look-ups in the catalog; the name and the arguments' types are copied.
    unsafe {
        let name = pg_sys::get_func_name(function);
        if name.is_null() {
            return Ok(None);
        }
        let name = CStr::from_ptr(name).to_bytes();
        if matches!(name, b"history" | b"changes") {
            require_no_standby(if name == b"history" { "presence.history()" } else { "presence.changes()" })?;
            return Ok(None);
        }
        let Ok(name) = CString::new([b"_shared_", name].concat()) else { return Ok(None) };
        let (mut types, mut count) = (std::ptr::null_mut(), 0);
        pg_sys::get_func_signature(function, &mut types, &mut count);
        let types = pg_sys::buildoidvector(types, count);
        let schema = Datum::from(extension::internals());
        let found = pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::PROCNAMEARGSNSP as i32,
            pg_sys::Anum_pg_proc_oid as pg_sys::AttrNumber,
            Datum::from(name.as_ptr()),
            Datum::from(types),
            schema,
            Datum::from(0),
        );
        Ok((found != pg_sys::InvalidOid).then_some(found))
    }
}

/// SQL `_presence._is_heard(node)`: whether that server was heard recently, so that its members are shown.
fn sql_is_heard(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    database::request_worker(extension.database);
    Ok(Some(Datum::from(call.text(0).is_some_and(|node| is_heard(&extension, node)))))
}

/// SQL `_presence._is_elsewhere(node)`: whether that is another server, and heard.
fn sql_is_elsewhere(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let is_elsewhere = |node: &[u8]| {
        extension.database.heard.has_peers()
            && settings::node_name().as_deref() != Some(node)
            && is_heard(&extension, node)
    };
    Ok(Some(Datum::from(call.text(0).is_some_and(is_elsewhere))))
}

/// SQL `_presence._version_here(node, version)`: the version with which a member of another server is shown.
fn sql_version_here(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let (Some(node), Some(version)) = (call.text(0), call.datum(1)) else { return Ok(call.datum(1)) };
    let own = version.value() as u64;
    Ok(Some(Datum::from(extension.database.heard.version_here(extension.node_hash(node), own))))
}

static MEMBERS: Statement =
    Statement { sql: c"select pg_catalog.count(*) from presence.member", arguments: &[] };

/// SQL `_presence._members()`: the number of rows in presence.member; NULL on a standby.
fn sql_members(_call: &Call) -> Result<Option<Datum>> {
    // SAFETY: a look-up in shared memory.
    if unsafe { pg_sys::RecoveryInProgress() } {
        return Ok(None);
    }
    let extension = extension::current()?;
    as_role(extension.owner_role, || {
        let connection = Connection::open()?;
        Ok(Some(Datum::from(connection.run(&MEMBERS, &[], false)?.number(0, 0) as i64)))
    })
}

/// SQL `_presence._beat_age()`: how long ago the server of this name was heard; NULL if it was not.
fn sql_beat_age(_call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let age = settings::node_name().and_then(|node| extension.database.heard.age(extension.node_hash(&node)));
    Ok(age.map(|age| crate::pg::datum::interval(age as i64)))
}

crate::sql_function!(presence_reads, pg_finfo_presence_reads, sql_reads);
crate::sql_function!(presence_version_here, pg_finfo_presence_version_here, sql_version_here);
crate::sql_function!(presence_is_heard, pg_finfo_presence_is_heard, sql_is_heard);
crate::sql_function!(presence_is_elsewhere, pg_finfo_presence_is_elsewhere, sql_is_elsewhere);
crate::sql_function!(presence_members, pg_finfo_presence_members, sql_members);
crate::sql_function!(presence_beat_age, pg_finfo_presence_beat_age, sql_beat_age);
