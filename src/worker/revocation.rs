//! Rights that shrink: REVOKE, DROP ROLE, ALTER ROLE, a membership that ends, and settings that say who somebody is.
//! (`presence.authorizer` and `presence.notify_payload` are in `access::narrowing`.) Whoever listens may be one whose rights
//! ended, so all channels get new names, and carry doorbells only until then.
//!
//! The catalog's invalidations say that something changed. Then what opens channels is read as a set of facts, and
//! compared with what it was: a new role or a GRANT takes nothing away, and changes no names. It may have changed while
//! the server was down, too, or before the worker had a look.

use crate::error::Result;
use crate::extension::Extension;
use crate::pg::snapshot::with_catalog_snapshot;
use crate::pg::spi::{Connection, Statement};
use crate::settings;
use pgrx::pg_guard;
use pgrx::pg_sys::{self, Datum};
use siphasher::sip::SipHasher13;
use std::cell::Cell;
use std::hash::Hasher;

/// By role, membership, and the rights on `member` and its schema. (to_jsonb, because memberships have an
/// inherit_option only from PostgreSQL 16 on.)
static FACTS: Statement = Statement {
    sql: c"select pg_catalog.concat_ws(' ', 'role', r.oid, r.rolname) from pg_catalog.pg_roles r
           union all
           select pg_catalog.concat_ws(' ', 'attribute', r.oid, a.name)
           from pg_catalog.pg_roles r,
                lateral (values ('superuser', r.rolsuper), ('bypassrls', r.rolbypassrls), ('inherit', r.rolinherit))
                        a (name, is_set)
           where a.is_set
           union all
           select pg_catalog.concat_ws(' ', 'membership', m.roleid, m.member,
                      pg_catalog.jsonb_object_field_text(pg_catalog.to_jsonb(m), 'inherit_option'))
           from pg_catalog.pg_auth_members m
           union all
           select pg_catalog.concat_ws(' ', 'database', d.datdba) from pg_catalog.pg_database d
           where d.datname operator(pg_catalog.=) pg_catalog.current_database()
           union all
           select pg_catalog.concat_ws(' ', 'table', c.oid, c.relowner, a.grantee)
           from pg_catalog.pg_class c,
                pg_catalog.aclexplode(coalesce(c.relacl, pg_catalog.acldefault('r', c.relowner))) a
           where c.oid operator(pg_catalog.=) $1 and a.privilege_type operator(pg_catalog.=) 'SELECT'
           union all
           select pg_catalog.concat_ws(' ', 'schema', n.oid, n.nspowner, a.grantee)
           from pg_catalog.pg_class c
                join pg_catalog.pg_namespace n on n.oid operator(pg_catalog.=) c.relnamespace,
                pg_catalog.aclexplode(coalesce(n.nspacl, pg_catalog.acldefault('n', n.nspowner))) a
           where c.oid operator(pg_catalog.=) $1 and a.privilege_type operator(pg_catalog.=) 'USAGE'",
    arguments: &[pg_sys::OIDOID],
};

thread_local! {
    /// Incremented when any of this may have changed.
    static EPOCH: Cell<u64> = const { Cell::new(1) };
    /// The hash by which catalog invalidations identify the row of the table `member`.
    static TABLE: Cell<u32> = const { Cell::new(0) };
    static WATCHING: Cell<bool> = const { Cell::new(false) };
}

#[derive(Default)]
pub struct Rights {
    /// The epochs (of the catalog, and of settings) of the last look, and sorted hashes of the facts.
    looked: (u64, u64),
    facts: Option<Vec<u64>>,
}

impl Rights {
    pub fn may_have_changed(&self) -> bool {
        self.looked != epochs()
    }

    /// Compare the rights, if they may have changed, and have the channels renamed if any right was lost. In a
    /// transaction that has the table locked: locking it processes the invalidations of everything that was committed
    /// before.
    pub fn look(&mut self, extension: &Extension) -> Result<()> {
        watch(extension);
        let epochs = epochs();
        if self.looked == epochs {
            return Ok(());
        }
        let facts = with_catalog_snapshot(|| facts(extension))?;
        let database = extension.database;
        let are_kept = match &self.facts {
            Some(before) => before.iter().all(|fact| facts.binary_search(fact).is_ok()),
            // There may have been another worker before.
            None => database.rights.are_kept_by(extension.member, &facts),
        };
        if !are_kept {
            database.names.want_all();
        }
        database.rights.set(extension.member, &facts);
        (self.looked, self.facts) = (epochs, Some(facts));
        Ok(())
    }
}

fn epochs() -> (u64, u64) {
    (EPOCH.get(), settings::identity_epoch())
}

fn facts(extension: &Extension) -> Result<Vec<u64>> {
    let connection = Connection::open()?;
    let rows = connection.run(&FACTS, &[Some(Datum::from(extension.member))], false)?;
    let hash = |fact: &[u8]| {
        let mut hasher = SipHasher13::new();
        hasher.write(fact);
        hasher.finish()
    };
    let mut facts: Vec<u64> =
        (0..rows.count).map(|row| hash(rows.text(row, 0).unwrap_or_default())).collect();
    facts.extend(settings::of_identity().iter().map(|setting| hash(setting)));
    facts.sort_unstable();
    facts.dedup();
    Ok(facts)
}

fn watch(extension: &Extension) {
    use pg_sys::SysCacheIdentifier::{AUTHMEMROLEMEM, AUTHOID, DATABASEOID, NAMESPACEOID, RELOID};
    let zero = Datum::from(0);
    // SAFETY: the hash of a key of that cache.
    let table = unsafe {
        pg_sys::GetSysCacheHashValue(RELOID as i32, Datum::from(extension.member), zero, zero, zero)
    };
    TABLE.set(table);
    if WATCHING.replace(true) {
        return;
    }
    for cache in [AUTHOID, AUTHMEMROLEMEM, DATABASEOID, NAMESPACEOID, RELOID] {
        // SAFETY: registered once a process; the callback only counts.
        unsafe { pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(changed), Datum::from(0)) };
    }
}

/// A hash of 0 means any row.
#[pg_guard]
unsafe extern "C-unwind" fn changed(_argument: Datum, cache: i32, hash: u32) {
    let is_other_table =
        cache == pg_sys::SysCacheIdentifier::RELOID as i32 && hash != 0 && hash != TABLE.get();
    if !is_other_table {
        EPOCH.set(EPOCH.get() + 1);
    }
}
