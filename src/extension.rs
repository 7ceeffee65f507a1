//! The extension as installed in this database: its tables, its owner, its secrets. Looked up once, and again
//! after anything changed the table `member` (DROP and CREATE EXTENSION above all).

use crate::access::narrowing;
use crate::error::{Error, Result};
use crate::lease::slot::Key;
use crate::member::column;
use crate::pg::cached::Cached;
use crate::pg::datum::bytes_of;
use crate::pg::encoding::decode;
use crate::pg::spi::{Connection, Statement, accept_invalidations};
use crate::settings;
use crate::shared::Database;
use pgrx::pg_guard;
use pgrx::pg_sys::{self, Oid};
use siphasher::sip::SipHasher13;
use siphasher::sip128::{Hasher128, SipHasher13 as SipHasher13Wide};
use std::cell::Cell;
use std::ffi::CStr;
use std::hash::Hasher;

/// The version of this library.
pub const LIBRARY_VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Clone, Copy)]
pub struct Extension {
    pub member: Oid,
    /// The row type of the view `online`.
    pub online: Oid,
    pub owner_role: Oid,
    pub database: &'static Database,
    pub database_index: u32,
    /// The table has the columns that came after 0.2.0.
    pub has_later_columns: bool,
    /// The catalog epoch of the look-up.
    pub epoch: u64,
    secret: [u8; 32],
}

/// The purpose of a keyed hash, so that equal texts do not collide. The numbers are fixed: shared memory outlives a
/// session.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Purpose {
    /// The owner of a member.
    Owner = 0,
    /// The counters of a channel's listeners.
    Channel = 1,
    /// The epoch of a room's channels.
    RoomEpoch = 2,
    /// Seats of one user's members.
    UserSeats = 3,
    /// A user who was given the channel of those present in a room.
    RoomChannel = 4,
    /// The name of an event without a member.
    Told = 5,
    /// Seats in one room.
    RoomSeats = 6,
    /// The generation of channel names.
    Boot = 7,
    /// A user who is told to listen again.
    Moves = 8,
    /// The occupancy counts of a room.
    Numbers = 9,
    /// The name of a server.
    Node = 10,
}

thread_local! {
    static CURRENT: Cached<(), u64, Extension> = const { Cached::new(1) };
    /// The table `member` and the view `online`.
    static WATCHED: Cell<Option<[Oid; 2]>> = const { Cell::new(None) };
    static CATALOG_EPOCH: Cell<u64> = const { Cell::new(0) };
    /// The schema of internal objects, once it is known to be ours.
    static INTERNALS: Cell<Oid> = const { Cell::new(pg_sys::InvalidOid) };
}

/// Incremented whenever the table's definition changes.
pub fn catalog_epoch() -> u64 {
    CATALOG_EPOCH.get()
}

static VERSION: Statement = Statement {
    sql: c"select e.extversion from pg_catalog.pg_extension e where e.extname operator(pg_catalog.=) 'presence_ext'",
    arguments: &[],
};

/// The version of the SQL in this database. The library serves older ones, until ALTER EXTENSION UPDATE.
pub fn sql_version() -> Result<String> {
    let connection = Connection::open()?;
    let rows = connection.run(&VERSION, &[], false)?;
    rows.text(0, 0).map(decode).ok_or(Error::NotInstalled)
}

/// The extension of this database.
pub fn current() -> Result<Extension> {
    CURRENT.with(|current| current.get((), catalog_epoch(), |()| look_up()))
}

/// The table `member` of this database, if the extension is installed.
pub fn member_table() -> Option<Oid> {
    // SAFETY: a catalog look-up inside a transaction.
    let installed =
        unsafe { pg_sys::get_extension_oid(c"presence_ext".as_ptr(), true) } != pg_sys::InvalidOid;
    if installed { relation(c"member") } else { None }
}

/// A table, index or view of the extension, where that is installed.
pub fn relation(name: &CStr) -> Option<Oid> {
    relation_in(schema(c"presence"), name)
}

/// An internal table, index or view.
pub fn internal_relation(name: &CStr) -> Option<Oid> {
    relation_in(internals(), name)
}

/// The schema of internal objects: `_presence`; before 0.3.0 they are in `presence`.
pub fn internals() -> Oid {
    internal_schema().unwrap_or_else(|| schema(c"presence"))
}

/// Whether internal objects have their own schema. If not, it stays so until the transaction ends, because ALTER
/// EXTENSION UPDATE waits.
pub fn has_internal_schema() -> bool {
    accept_invalidations();
    internal_schema().is_some() || {
        if let Some(member) = member_table() {
            // SAFETY: a lock on a table that exists, or existed when it was looked up.
            unsafe { pg_sys::LockRelationOid(member, pg_sys::AccessShareLock as i32) };
        }
        internal_schema().is_some()
    }
}

/// The schema is ours only if it belongs to the extension: anybody who may create schemas may have created one of this
/// name.
fn internal_schema() -> Option<Oid> {
    let schema = schema(c"_presence");
    if schema == pg_sys::InvalidOid || schema == INTERNALS.get() {
        return (schema != pg_sys::InvalidOid).then_some(schema);
    }
    // SAFETY: look-ups in the catalog, in a transaction.
    let (owner, extension) = unsafe {
        (
            pg_sys::getExtensionOfObject(pg_sys::NamespaceRelationId, schema),
            pg_sys::get_extension_oid(c"presence_ext".as_ptr(), true),
        )
    };
    let is_ours = owner == extension && extension != pg_sys::InvalidOid;
    is_ours.then(|| {
        INTERNALS.set(schema);
        schema
    })
}

/// The schema of this name, if it exists.
pub fn schema(name: &CStr) -> Oid {
    // SAFETY: a look-up in the catalog, in a transaction.
    unsafe { pg_sys::get_namespace_oid(name.as_ptr(), true) }
}

fn relation_in(schema: Oid, name: &CStr) -> Option<Oid> {
    // SAFETY: a catalog look-up inside a transaction; nothing is locked or kept.
    let found = unsafe { pg_sys::get_relname_relid(name.as_ptr(), schema) };
    (found != pg_sys::InvalidOid).then_some(found)
}

fn look_up() -> Result<Extension> {
    narrowing::compare(&settings::authorizer(), settings::notify_payload() as i32);
    let epoch = catalog_epoch();
    let member = member_table().ok_or(Error::NotInstalled)?;
    let view = relation(c"online").ok_or(Error::NotInstalled)?;
    watch(member, view);
    // SAFETY: catalog look-ups of relations that exist.
    let (owner_role, online, has_later_columns) = unsafe {
        let tuple =
            pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::RELOID as i32, pg_sys::Datum::from(member));
        if tuple.is_null() {
            return Err(Error::NotInstalled);
        }
        let owner = (*(pg_sys::GETSTRUCT(tuple) as pg_sys::Form_pg_class)).relowner;
        pg_sys::ReleaseSysCache(tuple);
        (owner, pg_sys::get_rel_type_id(view), column::are_all_there(member))
    };
    let secret = secret_column(1)?.try_into().map_err(|_| Error::NotInstalled)?;
    // SAFETY: set when the process connected to its database.
    let database = Database::get(unsafe { pg_sys::MyDatabaseId })?;
    let database_index = database.index() as u32;
    Ok(Extension { member, online, owner_role, database, database_index, has_later_columns, epoch, secret })
}

/// A column of the only row of `secret`, by its number. Read whoever owns the table, because using our own keys is no
/// question of rights. No lock is kept, because ALTER EXTENSION UPDATE changes the table and must not wait for open
/// transactions.
pub fn secret_column(number: i32) -> Result<Vec<u8>> {
    let table = internal_relation(c"secret").ok_or(Error::NotInstalled)?;
    // SAFETY: a scan of our own table as it is now, ended and closed below. Its columns are a bytea and a text.
    unsafe {
        let lock = pg_sys::AccessShareLock as i32;
        let table = pg_sys::table_open(table, lock);
        let (none, snapshot, keys) = (pg_sys::InvalidOid, std::ptr::null_mut(), std::ptr::null_mut());
        let scan = pg_sys::systable_beginscan(table, none, false, snapshot, 0, keys);
        let tuple = pg_sys::systable_getnext(scan);
        let mut null = tuple.is_null();
        let value = (!null)
            .then(|| pg_sys::SPI_getbinval(tuple, (*table).rd_att, number, &mut null))
            .filter(|_| !null)
            .map(|value| bytes_of(value));
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(table, lock);
        value.ok_or(Error::NotInstalled)
    }
}

/// When these change, the next call looks again. Called before they are read.
fn watch(member: Oid, view: Oid) {
    if WATCHED.replace(Some([member, view])).is_none() {
        // SAFETY: registered once a process; the callback only counts.
        unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(forget), pg_sys::Datum::from(0)) };
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn forget(_argument: pg_sys::Datum, relation: Oid) {
    if relation == pg_sys::InvalidOid || WATCHED.get().is_some_and(|watched| watched.contains(&relation)) {
        CATALOG_EPOCH.set(catalog_epoch() + 1);
    }
}

/// Whether the current role has a right on a schema or function.
pub fn is_granted(class: Oid, object: Oid, right: u32) -> bool {
    // SAFETY: a look-up in the catalog, of something that exists.
    let answer = unsafe {
        let (user, right) = (pg_sys::GetUserId(), right as pg_sys::AclMode);
        #[cfg(feature = "pg15")]
        if class == pg_sys::NamespaceRelationId {
            pg_sys::pg_namespace_aclcheck(object, user, right)
        } else {
            pg_sys::pg_proc_aclcheck(object, user, right)
        }
        #[cfg(not(feature = "pg15"))]
        pg_sys::object_aclcheck(class, object, user, right)
    };
    answer == pg_sys::AclResult::ACLCHECK_OK
}

impl Extension {
    /// The key of a member: a keyed hash, so that nobody can make two members collide.
    pub fn key(&self, room: &[u8], member_id: &[u8], connection_id: &[u8]) -> Key {
        self.key_of_parts(&[room, member_id, connection_id])
    }

    /// The key of a member of another server, which no local member can have.
    pub fn key_elsewhere(&self, node: &[u8], room: &[u8], member_id: &[u8], connection_id: &[u8]) -> Key {
        self.key_of_parts(&[node, room, member_id, connection_id])
    }

    fn key_of_parts(&self, parts: &[&[u8]]) -> Key {
        let (low, high) = self.secret_numbers();
        let mut hasher = SipHasher13Wide::new_with_keys(low, high);
        for part in parts {
            hasher.write_u32(part.len() as u32);
            hasher.write(part);
        }
        self.key_of(hasher.finish128().as_u128())
    }

    pub fn key_of(&self, hash: u128) -> Key {
        Key { database: self.database_index, relation: u32::from(self.member), hash }
    }

    /// Whether the current role was granted SELECT on the members.
    pub fn may_read(&self) -> bool {
        self.was_granted(pg_sys::ACL_SELECT as _)
    }

    /// Whether the current role was granted everything that a verb does with a row.
    pub fn may_do_all(&self) -> bool {
        self.was_granted(
            (pg_sys::ACL_SELECT | pg_sys::ACL_INSERT | pg_sys::ACL_UPDATE | pg_sys::ACL_DELETE) as _,
        )
    }

    /// Whether the current role has USAGE on the schema.
    pub fn may_use_schema(&self) -> bool {
        is_granted(pg_sys::NamespaceRelationId, schema(c"presence"), pg_sys::ACL_USAGE)
    }

    /// All of these rights.
    fn was_granted(&self, rights: pg_sys::AclMode) -> bool {
        use pg_sys::AclMaskHow::ACLMASK_ALL;
        // SAFETY: a look-up in the catalog.
        unsafe { pg_sys::pg_class_aclmask(self.member, pg_sys::GetUserId(), rights, ACLMASK_ALL) == rights }
    }

    /// The hash of an owner, as in a slot.
    pub fn owner_hash(&self, user_id: &[u8]) -> u64 {
        self.hash(Purpose::Owner, &[user_id])
    }

    /// The hash of a server's name, as in `Heard`.
    pub fn node_hash(&self, name: &[u8]) -> u64 {
        self.hash(Purpose::Node, &[name]).max(1)
    }

    /// A keyed 64-bit hash for small tables in shared memory.
    pub fn hash(&self, purpose: Purpose, parts: &[&[u8]]) -> u64 {
        let (low, high) = self.secret_numbers();
        let mut hasher = SipHasher13::new_with_keys(low, high);
        hasher.write_u8(purpose as u8);
        for part in parts {
            hasher.write_u32(part.len() as u32);
            hasher.write(part);
        }
        hasher.finish()
    }

    /// The key for channel names.
    pub fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    fn secret_numbers(&self) -> (u64, u64) {
        let number = |from: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&self.secret[from..from + 8]);
            u64::from_le_bytes(bytes)
        };
        (number(0), number(8))
    }
}
