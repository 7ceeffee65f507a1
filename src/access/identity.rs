//! Who is asking (`user_id`), what they are to others (`tokens`), and whether they act for all (`is_service`).
//! The rules are those of docs/visibility.md; what a role is, is remembered until roles or settings change.

use super::claims::{self, Name};
use super::client;
use crate::error::{Error, Result};
use crate::extension::Extension;
use crate::pg::cached::Cached;
use crate::pg::encoding::{self, encode};
use crate::pg::spi::{Connection, Statement};
use crate::settings;
use pgrx::pg_guard;
use pgrx::pg_sys::{self, Datum, Oid, pg_enc};
use std::cell::Cell;
use std::ffi::CStr;
use std::rc::Rc;

pub struct Identity {
    /// In the encoding of the database, as in the tables.
    pub user_id: Option<Vec<u8>>,
    pub service: bool,
    /// session_user is one of `presence.trusted_login_roles`: its sessions are shared by many users.
    pub trusted_login: bool,
    role: Oid,
    teams: Vec<Vec<u8>>,
}

/// What follows from a pair of roles, whatever the claims.
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

/// How many roles a session caches: a pooled session alternates between a few.
const REMEMBERED: usize = 8;

/// Versions of everything that determines an identity: roles, settings, and the extension, whose owner is a service
/// role. A tuple: an array is compared by a call.
type Epoch = (u64, u64, u64);

thread_local! {
    static ROLES: Cached<(Oid, Oid), Epoch, Rc<Roles>> = const { Cached::new(REMEMBERED) };
    static IDENTITY: Cached<Claims, Epoch, Rc<Identity>> = const { Cached::new(1) };
    static ROLE_TOKENS: Cached<Oid, u64, Rc<Vec<Vec<u8>>>> = const { Cached::new(REMEMBERED) };
    static ROLE_EPOCH: Cell<u64> = const { Cell::new(0) };
    static WATCHING: Cell<bool> = const { Cell::new(false) };
}

/// Incremented whenever a role or a membership changes.
pub fn role_epoch() -> u64 {
    watch();
    ROLE_EPOCH.get()
}

/// What an identity was derived from: equal claims and equal roles give the same identity.
#[derive(PartialEq)]
struct Claims {
    session: Oid,
    current: Oid,
    /// Whether the claims are trusted here.
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
    // Decoding invalid bytes could make two users look the same.
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

/// Whether the login may call `act_as`.
pub fn may_act_as(extension: &Extension) -> Result<bool> {
    let roles = roles(extension)?;
    Ok(roles.trusted_login || roles.superuser_login)
}

fn roles(extension: &Extension) -> Result<Rc<Roles>> {
    // SAFETY: plain reads of this process's state.
    let (session, current) = unsafe { (pg_sys::GetSessionUserId(), pg_sys::GetUserId()) };
    let epoch = (settings::identity_epoch(), role_epoch(), extension.epoch);
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
            || current == extension.owner_role
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

/// Invalidate when roles or memberships change; membership in pg_database_owner changes with the database.
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
    /// The user_id under which the caller writes.
    pub fn writer(&self) -> Result<&[u8]> {
        self.user_id.as_deref().ok_or(Error::NoIdentity)
    }

    pub fn is(&self, user_id: &[u8]) -> bool {
        self.user_id.as_deref() == Some(user_id)
    }

    /// The tokens by which others can share with this caller, who is in these rooms.
    pub fn tokens(&self, rooms: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        let mut tokens = self.own_tokens();
        tokens.extend(self.group_tokens()?);
        tokens.extend(rooms.iter().map(|room| [b"room:", room.as_slice()].concat()));
        Ok(tokens)
    }

    /// The tokens for everybody, for everybody who is signed in, and for this user.
    pub fn own_tokens(&self) -> Vec<Vec<u8>> {
        let mut tokens = vec![b"any".to_vec()];
        if let Some(user_id) = &self.user_id {
            tokens.push(b"users".to_vec());
            tokens.push([b"user:", user_id.as_slice()].concat());
        }
        tokens
    }

    /// The tokens of teams and roles.
    pub fn group_tokens(&self) -> Result<Vec<Vec<u8>>> {
        let teams = self.teams.iter().map(|team| [b"team:", team.as_slice()].concat());
        Ok(teams.chain(role_tokens(self.role)?.iter().cloned()).collect())
    }
}

static ROLE_NAMES: Statement = Statement {
    sql:
        c"select rolname::pg_catalog.text from pg_catalog.pg_roles where pg_catalog.pg_has_role($1, oid, 'usage')",
    arguments: &[pg_sys::OIDOID],
};

/// `role:` tokens: the role and the roles that it inherits. A superuser sees everything anyway, so only its own.
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
