//! Who is asking (`user_id`), what they are to others (`tokens`), and whether they act for all (`is_service`).
//! The rules are those of docs/visibility.md; what a role is, is remembered until roles or settings change.

use super::claims::{self, Name};
use super::client;
use crate::error::{Error, Result};
use crate::extension::{self, Extension};
use crate::member::liveness;
use crate::pg::cached::Cached;
use crate::pg::datum;
use crate::pg::encoding::{self, encode};
use crate::pg::function::Call;
use crate::pg::spi::{self, Connection, Statement};
use crate::settings;
use pgrx::pg_guard;
use pgrx::pg_sys::{self, Datum, Oid, pg_enc};
use serde_json::Value;
use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::CStr;
use std::rc::Rc;

pub struct Identity {
    /// In the encoding of the database, as the tables have it.
    pub user_id: Option<Vec<u8>>,
    pub service: bool,
    /// session_user is one of `presence.trusted_login_roles`: its sessions are shared by many users.
    pub trusted_login: bool,
    role: Oid,
    teams: Vec<Vec<u8>>,
}

/// What a pair of roles is, whatever the claims.
struct Roles {
    session: Oid,
    current: Oid,
    epoch: Epoch,
    trusted_login: bool,
    superuser_login: bool,
    anonymous: bool,
    service: bool,
    name: Vec<u8>,
}

/// How many roles a session remembers: a pooled one takes turns between few.
const REMEMBERED: usize = 8;

/// Roles and settings by which one is somebody, and the extension, whose owner is a service.
type Epoch = [u64; 3];

thread_local! {
    static ROLES: Cached<(Oid, Oid), Epoch, Rc<Roles>> = const { Cached::new(REMEMBERED) };
    static IDENTITY: Cached<Claims, Epoch, Rc<Identity>> = const { Cached::new(1) };
    static ROLE_TOKENS: Cached<Oid, u64, Rc<Vec<Vec<u8>>>> = const { Cached::new(REMEMBERED) };
    static ROLE_EPOCH: Cell<u64> = const { Cell::new(0) };
    static WATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Grows whenever a role or a membership changed.
pub fn role_epoch() -> u64 {
    watch();
    ROLE_EPOCH.get()
}

/// What an identity was made from: equal claims of equal roles are the same identity.
#[derive(PartialEq)]
struct Claims {
    session: Oid,
    current: Oid,
    /// Whether the login may say who its user is, here.
    believed: bool,
    claims: Vec<u8>,
    sub: Vec<u8>,
}

pub fn current(extension: &Extension) -> Result<Rc<Identity>> {
    let roles = roles(extension)?;
    let believed = (roles.trusted_login || roles.superuser_login) && client::is_own_session();
    let (claims, sub) = if believed {
        (setting(c"request.jwt.claims"), setting(c"request.jwt.claim.sub"))
    } else {
        (Vec::new(), Vec::new())
    };
    let from = Claims { session: roles.session, current: roles.current, believed, claims, sub };
    IDENTITY.with(|known| known.get(from, roles.epoch, |from| Ok(Rc::new(identify(&roles, from)))))
}

fn identify(roles: &Roles, from: &Claims) -> Identity {
    // Of bytes that are no text two users could look the same.
    let readable =
        encoding::database_encoding() != pg_enc::PG_SQL_ASCII || str::from_utf8(&from.claims).is_ok();
    let claims = claims::Claims { json: readable.then(|| encoding::decode(&from.claims)) };
    let user_id = if from.believed && (roles.trusted_login || !from.claims.is_empty()) {
        match claims.sub() {
            Name::Named(sub) => Some(encode(&sub)),
            Name::Missing if roles.trusted_login && !from.sub.is_empty() => Some(from.sub.clone()),
            Name::Missing | Name::Nobody => None,
        }
    } else if roles.anonymous {
        None
    } else {
        Some(roles.name.clone())
    };
    let teams = if user_id.is_some() { claims.names(&settings::teams_claim()) } else { Vec::new() };
    let teams = teams.iter().map(|team| encode(team)).collect();
    Identity {
        user_id,
        service: roles.service,
        trusted_login: roles.trusted_login,
        role: roles.current,
        teams,
    }
}

fn roles(extension: &Extension) -> Result<Rc<Roles>> {
    // SAFETY: plain reads of this process's state.
    let (session, current) = unsafe { (pg_sys::GetSessionUserId(), pg_sys::GetUserId()) };
    let epoch = [settings::identity_epoch(), role_epoch(), extension.epoch];
    let look_up = |_: &(Oid, Oid)| Ok(Rc::new(look_up_roles(extension, session, current, epoch)));
    ROLES.with(|known| known.get((session, current), epoch, look_up))
}

fn look_up_roles(extension: &Extension, session: Oid, current: Oid, epoch: Epoch) -> Roles {
    let name = role_name(current);
    let listed = |list: Vec<Vec<u8>>, name: &[u8]| list.iter().any(|role| role == name);
    Roles {
        session,
        current,
        epoch,
        trusted_login: listed(settings::trusted_login_roles(), &role_name(session)),
        // SAFETY: look-ups by role.
        superuser_login: unsafe { pg_sys::superuser_arg(session) },
        anonymous: listed(settings::anonymous_roles(), &name),
        // SAFETY: look-ups by role; superusers have every privilege.
        service: unsafe { pg_sys::superuser_arg(current) || pg_sys::has_bypassrls_privilege(current) }
            || current == extension.owner
            || listed(settings::service_roles(), &name),
        name,
    }
}

fn role_name(role: Oid) -> Vec<u8> {
    // SAFETY: the name is a zero-terminated copy, or null for a role that was dropped meanwhile.
    unsafe {
        let name = pg_sys::GetUserNameFromId(role, true);
        if name.is_null() { Vec::new() } else { CStr::from_ptr(name).to_bytes().to_vec() }
    }
}

fn setting(name: &CStr) -> Vec<u8> {
    // SAFETY: a zero-terminated string of the settings, or null.
    unsafe {
        let value = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        if value.is_null() { Vec::new() } else { CStr::from_ptr(value).to_bytes().to_vec() }
    }
}

/// Roles and memberships may change under us; that in pg_database_owner with the database.
fn watch() {
    use pg_sys::SysCacheIdentifier::{AUTHMEMROLEMEM, AUTHOID, DATABASEOID};
    if WATCHING.replace(true) {
        return;
    }
    for cache in [AUTHOID, AUTHMEMROLEMEM, DATABASEOID] {
        // SAFETY: registered once a process; the callback only counts.
        unsafe { pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(forget_roles), Datum::from(0)) };
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn forget_roles(_argument: Datum, _cache: i32, _hash: u32) {
    ROLE_EPOCH.set(ROLE_EPOCH.get() + 1);
}

impl Identity {
    /// Whose name a writer writes under.
    pub fn writer(&self) -> Result<&[u8]> {
        self.user_id.as_deref().ok_or(Error::NoIdentity)
    }

    pub fn is(&self, user_id: &[u8]) -> bool {
        self.user_id.as_deref() == Some(user_id)
    }

    /// The tokens by which others may share with this caller; `rooms` are the rooms the caller is in.
    pub fn tokens(&self, rooms: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        let mut tokens = self.own_tokens();
        tokens.extend(self.group_tokens()?);
        tokens.extend(rooms.iter().map(|room| [b"room:", room.as_slice()].concat()));
        Ok(tokens)
    }

    /// Those of everybody, of everybody who is signed in, and the caller's own.
    pub fn own_tokens(&self) -> Vec<Vec<u8>> {
        let mut tokens = vec![b"any".to_vec()];
        if let Some(user_id) = &self.user_id {
            tokens.push(b"users".to_vec());
            tokens.push([b"user:", user_id.as_slice()].concat());
        }
        tokens
    }

    /// Those of teams and roles.
    pub fn group_tokens(&self) -> Result<Vec<Vec<u8>>> {
        let teams = self.teams.iter().map(|team| [b"team:", team.as_slice()].concat());
        Ok(teams.chain(role_tokens(self.role)?.iter().cloned()).collect())
    }

    /// The rooms where the caller is present right now. Read with the owner's rights, never through the policy
    /// that asks.
    pub fn rooms(&self, extension: &Extension) -> Result<Vec<Vec<u8>>> {
        let Some(user_id) = &self.user_id else { return Ok(Vec::new()) };
        spi::as_role(extension.owner, || {
            let connection = Connection::open()?;
            let rows = connection.run(&ROOMS, &[Some(datum::varlena(user_id))], false)?;
            let (mut rooms, mut known) = (Vec::new(), HashSet::new());
            for row in 0..rows.count {
                let (Some(room), Some(hash)) = (rows.text(row, 0), rows.get(row, 1)) else { continue };
                // SAFETY: a uuid.
                let hash = unsafe { datum::hash_of(hash) };
                let lease = liveness::lease_of_query(&rows, row, [2, 3, 4, 5]);
                let alive = liveness::deadline(&extension.key_of(hash), &lease).is_some();
                if alive && known.insert(room) {
                    rooms.push(room.to_vec());
                }
            }
            Ok(rooms)
        })
    }
}

static ROOMS: Statement = Statement {
    sql: c"select room, key_hash, version, generation, deadline, session from presence.member where user_id operator(pg_catalog.=) $1",
    arguments: &[pg_sys::TEXTOID],
};

static ROLE_NAMES: Statement = Statement {
    sql:
        c"select rolname::pg_catalog.text from pg_catalog.pg_roles where pg_catalog.pg_has_role($1, oid, 'usage')",
    arguments: &[pg_sys::OIDOID],
};

/// `role:` tokens: the role itself and what it inherits. A superuser sees everything anyway, so only its own.
fn role_tokens(role: Oid) -> Result<Rc<Vec<Vec<u8>>>> {
    ROLE_TOKENS.with(|known| known.get(role, role_epoch(), |role| look_up_role_tokens(*role).map(Rc::new)))
}

fn look_up_role_tokens(role: Oid) -> Result<Vec<Vec<u8>>> {
    // SAFETY: a look-up by role.
    let names = if unsafe { pg_sys::superuser_arg(role) } {
        vec![role_name(role)]
    } else {
        let connection = Connection::open()?;
        let rows = connection.run(&ROLE_NAMES, &[Some(Datum::from(role))], false)?;
        (0..rows.count).filter_map(|row| rows.text(row, 0)).map(<[u8]>::to_vec).collect()
    };
    Ok(names.iter().map(|name| [b"role:", name.as_slice()].concat()).collect())
}

/// SQL `presence.user_id()`.
fn user_id(_call: &Call) -> Result<Option<Datum>> {
    let identity = current(&extension::current()?)?;
    Ok(identity.user_id.as_deref().map(datum::varlena))
}

/// SQL `presence.is_service()`.
fn is_service(_call: &Call) -> Result<Option<Datum>> {
    Ok(Some(Datum::from(current(&extension::current()?)?.service)))
}

/// SQL `presence.tokens()`.
fn tokens(_call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let identity = current(&extension)?;
    let tokens = identity.tokens(&identity.rooms(&extension)?)?;
    Ok(Some(datum::text_array(&tokens)))
}

/// SQL `presence.act_as(user_id, teams)`: the claims of that user, until the transaction ends.
fn act_as(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    client::require_own_session("act_as")?;
    let roles = roles(&extension)?;
    if !roles.trusted_login && !roles.superuser_login {
        return Err(Error::NotTrusted);
    }
    let user_id = call.text(0).ok_or(Error::MissingArgument { argument: "user_id" })?;
    crate::validate::name("user_id", user_id)?;
    let teams = call.texts(1).map_err(|why| Error::InvalidArgument { argument: "teams", why: why.into() })?;
    let mut claims = serde_json::json!({ "sub": encoding::decode(user_id) });
    let mut at = &mut claims;
    let path = settings::teams_claim();
    for step in path.split('.').filter(|step| !step.is_empty()) {
        if !at.is_object() && !at.is_null() {
            return Err(Error::InvalidArgument {
                argument: "teams",
                why: "presence.teams_claim points into another claim.".into(),
            });
        }
        at = &mut at[step];
    }
    if let (Some(teams), true) = (teams, at.is_null()) {
        *at = teams.iter().map(|team| Value::String(encoding::decode(team))).collect();
    }
    let connection = Connection::open()?;
    connection.run(&SET_CLAIMS, &[Some(datum::varlena(&encode(&claims.to_string())))], false)?;
    Ok(None)
}

static SET_CLAIMS: Statement = Statement {
    sql: c"select pg_catalog.set_config('request.jwt.claims', $1, true)",
    arguments: &[pg_sys::TEXTOID],
};

crate::sql_function!(presence_user_id, pg_finfo_presence_user_id, user_id);
crate::sql_function!(presence_is_service, pg_finfo_presence_is_service, is_service);
crate::sql_function!(presence_tokens, pg_finfo_presence_tokens, tokens);
crate::sql_function!(presence_act_as, pg_finfo_presence_act_as, act_as);
