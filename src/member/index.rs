//! Indexes of `presence.member`, found by what they index: whoever renames one, or makes it anew, changes nothing.

use super::column::Column;
use crate::access::policy;
use crate::pg::cached::Cached;
use pgrx::pg_sys::{self, Oid};

/// A column as an index scan needs to know it.
#[derive(Clone, Copy)]
pub struct Indexed {
    pub number: i16,
    of_type: Oid,
    pub collation: Oid,
}

thread_local! {
    /// By column, for as long as the table's definition does not change.
    static KNOWN: Cached<(Oid, i16), u64, Serving> = const { Cached::new(4) };
}

/// Which indexes begin with a column, as its type and collation order it, without any further condition.
#[derive(Clone, Copy)]
struct Serving {
    column: Indexed,
    /// The one to take: if there is one whose second key is that of `second`, then that.
    index: Option<Oid>,
    second: i16,
    /// It was made beside older versions of rows, which it may lack: not for snapshots that see those.
    made_by: Option<pg_sys::TransactionId>,
}

/// A column, and an index that begins with it, if there is one that a scan may take now; and the column that is its
/// second key.
///
/// # Safety
/// `table` is the table `member`, open and locked.
pub unsafe fn of(table: pg_sys::Relation, column: Column) -> (Indexed, Option<(Oid, i16)>) {
    // SAFETY: the caller's promise.
    let serving = unsafe {
        let key = ((*table).rd_id, column as i16 + 1);
        KNOWN.with(|known| known.get(key, policy::table_epoch(), |_| Ok(look(table, column))))
    };
    let Ok(Serving { column, index, second, made_by }) = serving else {
        // SAFETY: as above. Nothing in a look fails.
        return (unsafe { Indexed::new(table, column) }, None);
    };
    (column, index.filter(|_| is_whole(made_by)).map(|index| (index, second)))
}

/// Whether an index that was made by this transaction, if that matters, lacks nothing that is to be seen now.
fn is_whole(made_by: Option<pg_sys::TransactionId>) -> bool {
    // SAFETY: plain reads of this process's state.
    made_by.is_none_or(|by| unsafe { pg_sys::TransactionIdPrecedes(by, pg_sys::TransactionXmin) })
}

/// Who made an index, where that matters.
///
/// # Safety
/// An open index.
unsafe fn made_by(index: pg_sys::Relation) -> Option<pg_sys::TransactionId> {
    // SAFETY: the caller's promise.
    unsafe {
        (*(*index).rd_index)
            .indcheckxmin
            .then(|| pg_sys::htup::HeapTupleHeaderGetXmin((*(*index).rd_indextuple).t_data))
    }
}

/// The index of the primary key, if there is one that a scan may take now.
///
/// # Safety
/// An open table, which is locked.
pub unsafe fn primary(table: pg_sys::Relation) -> Option<Oid> {
    // SAFETY: the caller's promise.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        let found = pg_sys::RelationGetPrimaryKeyIndex(table);
        #[cfg(feature = "pg18")]
        let found = pg_sys::RelationGetPrimaryKeyIndex(table, false);
        (found != pg_sys::InvalidOid).then_some(found).filter(|found| {
            let index = pg_sys::index_open(*found, pg_sys::AccessShareLock as i32);
            let is_whole = is_whole(made_by(index));
            pg_sys::index_close(index, pg_sys::NoLock as i32);
            is_whole
        })
    }
}

/// # Safety
/// As for `of`.
unsafe fn look(table: pg_sys::Relation, column: Column) -> Serving {
    // SAFETY: the list is a copy; no index in it can go while the table is locked.
    unsafe {
        let column = Indexed::new(table, column);
        let mut found = Serving { column, index: None, second: 0, made_by: None };
        let list = pg_sys::RelationGetIndexList(table);
        for index in (0..pg_sys::list_length(list)).map(|at| pg_sys::list_nth_oid(list, at)) {
            if let Some((second, made_by)) = column.is_served_by(index)
                && (found.index.is_none() || found.second == 0 || found.made_by.is_some())
            {
                found = Serving { column, index: Some(index), second, made_by };
            }
        }
        pg_sys::list_free(list);
        found
    }
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

    /// A b-tree that begins with this column: the column of its second key (0: none), and who made it, where that
    /// matters.
    ///
    /// # Safety
    /// An index of the column's table, which is locked.
    unsafe fn is_served_by(&self, index: Oid) -> Option<(i16, Option<pg_sys::TransactionId>)> {
        // SAFETY: the caller's promise; an index has at least one key, and a family and a collation for it.
        unsafe {
            let index = pg_sys::index_open(index, pg_sys::AccessShareLock as i32);
            let facts = &*(*index).rd_index;
            let order = pg_sys::lookup_type_cache(self.of_type, pg_sys::TYPECACHE_BTREE_OPFAMILY as i32);
            let keys = facts.indkey.values.as_slice(facts.indnkeyatts as usize);
            let serves = facts.indisvalid
                && facts.indisready
                && keys[0] == self.number
                && (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID
                && *(*index).rd_opfamily == (*order).btree_opf
                && *(*index).rd_indcollation == self.collation
                && pg_sys::RelationGetIndexPredicate(index).is_null();
            // Of a second key of another order no use is made.
            let same = |at: usize| {
                *(*index).rd_opfamily.add(at) == *(*index).rd_opfamily
                    && *(*index).rd_indcollation.add(at) == self.collation
            };
            let second = keys.get(1).copied().filter(|_| same(1)).unwrap_or(0);
            let made_by = made_by(index);
            pg_sys::index_close(index, pg_sys::NoLock as i32);
            serves.then_some((second, made_by))
        }
    }
}
