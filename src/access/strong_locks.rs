//! Statements that take a lock on our tables for which everybody else would wait.
//!
//! PostgreSQL lets whoever may DELETE take a table for themselves with LOCK TABLE. And several kinds of DDL wait for
//! their lock first and ask for rights afterwards, so that anybody who can name a table can stand in line before all
//! others while somebody has a transaction open. So the rights are asked for here, before there is a lock.

use crate::error::{Error, Result};
use crate::extension;
use crate::pg::snapshot::with_catalog_snapshot;
use crate::pg::spi::{Connection, Statement};
use pgrx::pg_sys::{self, Datum, Node, NodeTag, Oid, RangeVar};
use pgrx::{PgList, pg_guard};
use std::collections::HashSet;
use std::ffi::CStr;

/// The right that a statement needs on a relation.
#[derive(Clone, Copy)]
enum Right {
    Own,
    Trigger,
    Reference,
}

/// Refuse the statement if it takes a strong lock on a relation of ours and the current role has no right to that.
///
/// # Safety
/// A utility statement's node, or null, in a transaction.
#[pg_guard]
pub unsafe extern "C-unwind" fn check(statement: *mut Node) {
    // SAFETY: the caller's promise.
    if let Err(error) = unsafe { check_statement(statement) } {
        error.raise();
    }
}

/// After the statement, when what it has locked cannot change any more.
///
/// # Safety
/// As `check`.
pub unsafe fn check_again(statement: *mut Node) {
    // SAFETY: the caller's promise.
    unsafe {
        if tag(statement) == NodeTag::T_LockStmt {
            check(statement);
        }
    }
}

/// # Safety
/// As `check`.
unsafe fn check_statement(statement: *mut Node) -> Result<()> {
    // SAFETY: a node's tag says what it is; lists of a statement have the nodes that its grammar says.
    unsafe {
        match tag(statement) {
            NodeTag::T_LockStmt => {
                let statement = &*statement.cast::<pg_sys::LockStmt>();
                if statement.mode > pg_sys::RowExclusiveLock as i32 {
                    for relation in elements(statement.relations) {
                        check_lock(find(relation.cast()), &mut HashSet::new())?;
                    }
                }
            }
            NodeTag::T_RuleStmt => {
                require(Right::Own, (*statement.cast::<pg_sys::RuleStmt>()).relation)?;
            }
            NodeTag::T_CreateTrigStmt => {
                require(Right::Trigger, (*statement.cast::<pg_sys::CreateTrigStmt>()).relation)?;
            }
            NodeTag::T_CreateStmt | NodeTag::T_CreateForeignTableStmt => {
                for parent in elements((*statement.cast::<pg_sys::CreateStmt>()).inhRelations) {
                    require(Right::Own, parent.cast())?;
                }
            }
            NodeTag::T_AlterTableStmt => {
                for command in elements((*statement.cast::<pg_sys::AlterTableStmt>()).cmds) {
                    check_part((*command.cast::<pg_sys::AlterTableCmd>()).def)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// A part of ALTER TABLE. Foreign keys in CREATE TABLE come here too: they are added to the new table.
///
/// # Safety
/// The definition of a command of ALTER TABLE, or null.
unsafe fn check_part(part: *mut Node) -> Result<()> {
    // SAFETY: as in `check_statement`.
    unsafe {
        match tag(part) {
            NodeTag::T_Constraint => {
                let constraint = &*part.cast::<pg_sys::Constraint>();
                if constraint.contype == pg_sys::ConstrType::CONSTR_FOREIGN {
                    require(Right::Reference, constraint.pktable)?;
                }
            }
            NodeTag::T_ColumnDef => {
                for constraint in elements((*part.cast::<pg_sys::ColumnDef>()).constraints) {
                    check_part(constraint)?;
                }
            }
            NodeTag::T_PartitionCmd => require(Right::Own, (*part.cast::<pg_sys::PartitionCmd>()).name)?,
            NodeTag::T_RangeVar => require(Right::Own, part.cast())?,
            _ => {}
        }
    }
    Ok(())
}

/// LOCK TABLE on a view also locks the tables that it reads.
fn check_lock(relation: Oid, seen: &mut HashSet<Oid>) -> Result<()> {
    if relation == pg_sys::InvalidOid || !seen.insert(relation) {
        return Ok(());
    }
    require_on(Right::Own, relation)?;
    // SAFETY: a look-up in the catalog.
    if unsafe { pg_sys::get_rel_relkind(relation) } as u8 != pg_sys::RELKIND_VIEW {
        return Ok(());
    }
    let parts = with_catalog_snapshot(|| {
        let connection = Connection::open()?;
        let rows = connection.run(&PARTS_OF_VIEW, &[Some(Datum::from(relation))], false)?;
        Ok((0..rows.count).map(|row| Oid::from(rows.number(row, 0) as u32)).collect::<Vec<_>>())
    })?;
    parts.into_iter().try_for_each(|part| check_lock(part, seen))
}

static PARTS_OF_VIEW: Statement = Statement {
    sql: c"select d.refobjid from pg_catalog.pg_rewrite r
                join pg_catalog.pg_depend d on d.objid operator(pg_catalog.=) r.oid
           where r.ev_class operator(pg_catalog.=) $1
             and d.classid operator(pg_catalog.=) 'pg_catalog.pg_rewrite'::pg_catalog.regclass
             and d.refclassid operator(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass",
    arguments: &[pg_sys::OIDOID],
};

/// # Safety
/// A name in a statement, or null.
unsafe fn require(right: Right, name: *mut RangeVar) -> Result<()> {
    // SAFETY: the caller's promise.
    require_on(right, unsafe { find(name) })
}

/// Relations that are not ours are not checked.
fn require_on(right: Right, relation: Oid) -> Result<()> {
    // SAFETY: look-ups in the catalog.
    let may = unsafe {
        let user = pg_sys::GetUserId();
        let schema = pg_sys::get_rel_namespace(relation);
        let is_ours = schema != pg_sys::InvalidOid
            && (schema == extension::schema(c"presence") || schema == extension::internals());
        !is_ours
            || pg_sys::get_extension_oid(c"presence_ext".as_ptr(), true) == pg_sys::InvalidOid
            || match right {
                Right::Own => owns(relation, user),
                Right::Trigger => has(relation, user, pg_sys::ACL_TRIGGER),
                Right::Reference => has(relation, user, pg_sys::ACL_REFERENCES),
            }
    };
    if may { Ok(()) } else { Err(Error::NotYours { relation: name_of(relation) }) }
}

/// Whether the role has the right on the table or on any column; PostgreSQL itself checks which columns.
///
/// # Safety
/// In a transaction.
unsafe fn has(relation: Oid, user: Oid, right: u32) -> bool {
    let (right, granted) = (right as pg_sys::AclMode, pg_sys::AclResult::ACLCHECK_OK);
    // SAFETY: look-ups in the catalog.
    unsafe {
        pg_sys::pg_class_aclcheck(relation, user, right) == granted
            || pg_sys::pg_attribute_aclcheck_all(relation, user, right, pg_sys::AclMaskHow::ACLMASK_ANY)
                == granted
    }
}

/// # Safety
/// In a transaction.
unsafe fn owns(relation: Oid, user: Oid) -> bool {
    // SAFETY: a look-up in the catalog.
    unsafe {
        #[cfg(feature = "pg15")]
        return pg_sys::pg_class_ownercheck(relation, user);
        #[cfg(not(feature = "pg15"))]
        return pg_sys::object_ownercheck(pg_sys::RelationRelationId, relation, user);
    }
}

/// Find the relation of this name, if it exists.
///
/// # Safety
/// A name in a statement, or null.
unsafe fn find(name: *mut RangeVar) -> Oid {
    if name.is_null() {
        return pg_sys::InvalidOid;
    }
    let (lock, missing_ok) = (pg_sys::NoLock as i32, pg_sys::RVROption::RVR_MISSING_OK);
    // SAFETY: the caller's promise; no callback.
    unsafe { pg_sys::RangeVarGetRelidExtended(name, lock, missing_ok, None, std::ptr::null_mut()) }
}

fn name_of(relation: Oid) -> String {
    // SAFETY: a zero-terminated copy, or null.
    unsafe {
        let name = pg_sys::get_rel_name(relation);
        if name.is_null() { String::new() } else { crate::error::printable(CStr::from_ptr(name).to_bytes()) }
    }
}

/// # Safety
/// A node, or null.
unsafe fn tag(node: *mut Node) -> NodeTag {
    // SAFETY: the caller's promise.
    if node.is_null() { NodeTag::T_Invalid } else { unsafe { (*node).type_ } }
}

/// # Safety
/// A list of nodes, or null.
unsafe fn elements(list: *mut pg_sys::List) -> Vec<*mut Node> {
    // SAFETY: the caller's promise.
    unsafe { PgList::<Node>::from_pg(list) }.iter_ptr().collect()
}
