//! Indexes of `presence.member`, found by what they index: whoever renames one, or makes it anew, changes nothing.

use super::row::Column;
use pgrx::pg_sys::{self, Oid};

/// A column as an index scan needs to know it.
pub struct Indexed {
    pub number: i16,
    of_type: Oid,
    pub collation: Oid,
}

impl Indexed {
    /// # Safety
    /// `table` is the table `member`, open.
    pub unsafe fn new(table: pg_sys::Relation, column: Column) -> Indexed {
        let (number, mut typmod) = (column as i16 + 1, 0);
        let mut found = Indexed { number, of_type: pg_sys::InvalidOid, collation: pg_sys::InvalidOid };
        // SAFETY: a look-up of a column that the table has.
        unsafe {
            let (table, of_type) = ((*table).rd_id, &mut found.of_type);
            pg_sys::get_atttypetypmodcoll(table, number, of_type, &mut typmod, &mut found.collation);
        }
        found
    }

    /// A b-tree whose first key is this column, as its type and collation order it, without any further condition.
    ///
    /// # Safety
    /// `table` is the table of the column, open and locked.
    pub unsafe fn index(&self, table: pg_sys::Relation) -> Option<Oid> {
        // SAFETY: the list is a copy; no index in it can go while the table is locked.
        unsafe {
            let list = pg_sys::RelationGetIndexList(table);
            let found = (0..pg_sys::list_length(list))
                .map(|at| pg_sys::list_nth_oid(list, at))
                .find(|index| self.is_served_by(*index));
            pg_sys::list_free(list);
            found
        }
    }

    /// # Safety
    /// An index of the column's table, which is locked.
    unsafe fn is_served_by(&self, index: Oid) -> bool {
        // SAFETY: the caller's promise; an index has at least one key, and a family and a collation for it.
        unsafe {
            let index = pg_sys::index_open(index, pg_sys::AccessShareLock as i32);
            let facts = &*(*index).rd_index;
            let order = pg_sys::lookup_type_cache(self.of_type, pg_sys::TYPECACHE_BTREE_OPFAMILY as i32);
            let serves = facts.indisvalid
                && facts.indisready
                && facts.indkey.values.as_slice(1)[0] == self.number
                && (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID
                && *(*index).rd_opfamily == (*order).btree_opf
                && *(*index).rd_indcollation == self.collation
                && pg_sys::RelationGetIndexPredicate(index).is_null()
                // Made beside older versions of rows, which it may lack: not for snapshots that see those.
                && (!facts.indcheckxmin || {
                    let made_by = pg_sys::htup::HeapTupleHeaderGetXmin((*(*index).rd_indextuple).t_data);
                    pg_sys::TransactionIdPrecedes(made_by, pg_sys::TransactionXmin)
                });
            pg_sys::index_close(index, pg_sys::NoLock as i32);
            serves
        }
    }
}
