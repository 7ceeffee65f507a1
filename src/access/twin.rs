//! Whether the table `member` is still as the extension made it, by what the relation cache says of it and of its empty
//! twin, `_presence.member_twin`, which has the same columns, indexes, triggers and policies, and is as it was made
//! (`made`).
//!
//! The relation cache is what the executor itself goes by: under a lock on the table it is never older than the last
//! committed definition, whatever snapshot the caller reads with. Trees are compared with `equal()`, never as text.

mod functions;
mod made;

use crate::member::column::Column;
use crate::pg::datum::attribute;
pub use functions::{Asked, by_name};
use pgrx::pg_sys::{self, Oid};
use std::ffi::{CStr, c_char};

/// In which respects `member` is equal to its twin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Likeness {
    /// The policies that decide what a SELECT shows.
    pub of_reading: bool,
    /// No other table inherits from it.
    pub is_alone: bool,
    /// Everything that takes part in a write: columns, constraints, indexes, triggers, rules, children, all policies.
    pub of_writing: bool,
    /// The functions that the policies call; None if they are not ours any more, or not known.
    pub asked: Option<Asked>,
}

/// The caller has locked `member`.
pub fn compare(member: Oid, twin: Oid) -> Likeness {
    let (member, twin) = (Table::open(member), Table::open(twin));
    let asked = Asked::find();
    let of_reading = made::is_as_made_for_reading(&twin)
        && member.class().relrowsecurity == twin.class().relrowsecurity
        && same_policies(&member, &twin, |command| matches!(command, b'r' | b'*'));
    let of_writing = of_reading
        && asked.is_some()
        && made::is_as_made(&twin)
        && same_class(&member, &twin)
        && same_columns(&member, &twin)
        && same_triggers(&member, &twin)
        && same_indexes(&member, &twin)
        && same_policies(&member, &twin, |_| true);
    Likeness { of_reading, is_alone: !member.class().relhassubclass, of_writing, asked }
}

/// An open relation, closed on drop, or by the abort while an ERROR unwinds. The lock stays.
struct Table(pg_sys::Relation);

impl Table {
    fn open(relation: Oid) -> Table {
        // SAFETY: opens a relation that exists, or raises.
        Table(unsafe { pg_sys::relation_open(relation, pg_sys::AccessShareLock as i32) })
    }

    fn relation(&self) -> &pg_sys::RelationData {
        // SAFETY: open, so the entry of the relation cache stays.
        unsafe { &*self.0 }
    }

    fn class(&self) -> &pg_sys::FormData_pg_class {
        // SAFETY: a part of the open entry.
        unsafe { &*self.relation().rd_rel }
    }

    fn columns(&self) -> Vec<&pg_sys::FormData_pg_attribute> {
        // SAFETY: a descriptor has as many attributes as it says.
        unsafe {
            (0..(*self.relation().rd_att).natts).map(|at| &*attribute(self.relation().rd_att, at)).collect()
        }
    }

    fn has_constant_default(&self, column: i16) -> bool {
        // SAFETY: constraints of the open relation are null, or have as many defaults as they say; each is the text of a
        // tree.
        unsafe {
            let Some(constraints) = (*self.relation().rd_att).constr.as_ref() else { return false };
            (0..constraints.num_defval as usize).map(|at| &*constraints.defval.add(at)).any(|default| {
                default.adnum == column
                    && !default.adbin.is_null()
                    && (*pg_sys::stringToNode(default.adbin).cast::<pg_sys::Node>()).type_
                        == pg_sys::NodeTag::T_Const
            })
        }
    }

    fn triggers(&self) -> &[pg_sys::Trigger] {
        // SAFETY: null, or as many triggers as it says.
        unsafe {
            match self.relation().trigdesc.as_ref() {
                Some(list) if list.numtriggers > 0 => {
                    std::slice::from_raw_parts(list.triggers, list.numtriggers as usize)
                }
                _ => &[],
            }
        }
    }

    fn policies(&self) -> Vec<&pg_sys::RowSecurityPolicy> {
        // SAFETY: null, or a list of policies that lives as long as the open entry.
        unsafe {
            let Some(security) = self.relation().rd_rsdesc.as_ref() else { return Vec::new() };
            let count = list_length(security.policies);
            (0..count).map(|at| &*(pg_sys::list_nth(security.policies, at) as *const _)).collect()
        }
    }

    fn indexes(&self) -> Vec<Table> {
        // SAFETY: a list of oids, copied for us; the indexes are locked when opened.
        unsafe {
            let list = pg_sys::RelationGetIndexList(self.0);
            (0..list_length(list)).map(|at| Table::open(pg_sys::list_nth_oid(list, at))).collect()
        }
    }
}

/// The properties of an index that count.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct IndexFacts {
    columns: Vec<i16>,
    families: Vec<u32>,
    method: u32,
    is_unique: bool,
    is_primary: bool,
    /// A plain index: of columns only, on all rows, checked at once, valid and in use.
    is_plain: bool,
}

impl Table {
    fn index_facts(&self) -> IndexFacts {
        // SAFETY: an open index: it has as many keys, and operator classes, as it says.
        unsafe {
            let entry = &*self.relation().rd_index;
            let keys = entry.indnkeyatts as usize;
            let families = std::slice::from_raw_parts(self.relation().rd_opfamily, keys);
            IndexFacts {
                columns: entry.indkey.values.as_slice(entry.indnatts as usize).to_vec(),
                families: families.iter().map(|family| u32::from(*family)).collect(),
                method: u32::from(self.class().relam),
                is_unique: entry.indisunique,
                is_primary: entry.indisprimary,
                is_plain: !entry.indisexclusion
                    && entry.indimmediate
                    && entry.indisvalid
                    && entry.indisready
                    && entry.indislive
                    && pg_sys::RelationGetIndexExpressions(self.0).is_null()
                    && pg_sys::RelationGetIndexPredicate(self.0).is_null(),
            }
        }
    }

    fn is_plain_index_of(&self, columns: &[i16], is_unique: bool) -> bool {
        let facts = self.index_facts();
        facts.is_plain
            && facts.columns == columns
            && (facts.is_unique, facts.is_primary) == (is_unique, is_unique)
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: opened in `open`.
            unsafe { pg_sys::relation_close(self.0, pg_sys::NoLock as i32) };
        }
    }
}

/// # Safety
/// A list, or null, which is the empty one.
unsafe fn list_length(list: *mut pg_sys::List) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { list.as_ref().map_or(0, |list| list.length) }
}

fn same_class(member: &Table, twin: &Table) -> bool {
    let facts = |table: &Table| {
        let class = table.class();
        (
            (class.relkind, class.relam, class.relpersistence, class.relreplident),
            (class.relrowsecurity, class.relforcerowsecurity, class.relispartition),
            (class.relhassubclass, table.relation().rd_rules.is_null()),
        )
    };
    facts(member) == facts(twin)
}

/// Whether the columns are ours, followed only by dropped ones. Verbs leave out columns that the triggers fill, so a
/// default would be evaluated with the rights of the caller. A constant is harmless, and the triggers replace it.
fn same_columns(member: &Table, twin: &Table) -> bool {
    let facts = |column: &pg_sys::FormData_pg_attribute| {
        (
            column.attname.data,
            (column.atttypid, column.atttypmod, column.attcollation),
            (column.attnotnull, column.attidentity, column.attgenerated),
        )
    };
    let is_left_out = |at| at >= Column::Version as usize && at != Column::Ttl as usize;
    let kept = |table| -> Vec<_> {
        Table::columns(table).into_iter().filter(|column| !column.attisdropped).collect()
    };
    let (ours, all) = (kept(twin), kept(member));
    all.len() == ours.len()
        && all.iter().zip(&ours).all(|(column, twin)| facts(column) == facts(twin))
        && all.iter().enumerate().all(|(at, column)| {
            !is_left_out(at) || !column.atthasdef || member.has_constant_default(column.attnum)
        })
        && checks(member) == checks(twin)
}

/// The number of check constraints, and whether there are generated columns.
fn checks(table: &Table) -> (u16, bool) {
    // SAFETY: null, or the constraints of the open relation.
    unsafe {
        (*table.relation().rd_att)
            .constr
            .as_ref()
            .map_or((0, false), |constraints| (constraints.num_check, constraints.has_generated_stored))
    }
}

/// Foreign keys are triggers, too.
fn same_triggers(member: &Table, twin: &Table) -> bool {
    let facts = |trigger: &pg_sys::Trigger| {
        (
            (trigger.tgfoid, trigger.tgtype, trigger.tgenabled, trigger.tgisinternal),
            (trigger.tgdeferrable, trigger.tginitdeferred, trigger.tgnargs, trigger.tgnattr),
            [trigger.tgqual, trigger.tgoldtable, trigger.tgnewtable].map(|text| text.is_null()),
        )
    };
    let (ours, all) = (twin.triggers(), member.triggers());
    all.len() == ours.len() && all.iter().zip(ours).all(|(trigger, twin)| facts(trigger) == facts(twin))
}

/// Compared by their definitions; their names do not matter.
fn same_indexes(member: &Table, twin: &Table) -> bool {
    let sorted = |table: &Table| {
        let mut found: Vec<_> = table.indexes().iter().map(Table::index_facts).collect();
        found.sort();
        found
    };
    sorted(member) == sorted(twin)
}

fn same_policies(member: &Table, twin: &Table, counts: impl Fn(u8) -> bool) -> bool {
    let of = |table| -> Vec<_> {
        let policies: Vec<&pg_sys::RowSecurityPolicy> = Table::policies(table);
        policies.into_iter().filter(|policy| counts(policy.polcmd as u8)).collect()
    };
    let (ours, all) = (of(twin), of(member));
    // SAFETY: names, arrays and trees of open relations.
    let same = |policy: &pg_sys::RowSecurityPolicy, twin: &pg_sys::RowSecurityPolicy| unsafe {
        let bytes = |roles: *mut pg_sys::ArrayType| {
            std::slice::from_raw_parts(roles.cast::<u8>(), pgrx::varsize_any(roles.cast()))
        };
        (policy.polcmd, policy.permissive) == (twin.polcmd, twin.permissive)
            && same_name(policy.policy_name, twin.policy_name)
            && bytes(policy.roles) == bytes(twin.roles)
            && pg_sys::equal(policy.qual.cast(), twin.qual.cast())
            && pg_sys::equal(policy.with_check_qual.cast(), twin.with_check_qual.cast())
    };
    all.len() == ours.len() && all.iter().zip(&ours).all(|(policy, twin)| same(policy, twin))
}

/// # Safety
/// Both are zero-terminated, or null.
unsafe fn same_name(one: *const c_char, other: *const c_char) -> bool {
    // SAFETY: the caller's promise.
    unsafe { name(one) == name(other) }
}

/// # Safety
/// Zero-terminated, or null, for as long as the name is used.
unsafe fn name<'a>(text: *const c_char) -> Option<&'a CStr> {
    // SAFETY: the caller's promise.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) })
}
