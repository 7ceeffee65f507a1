//! Indexes of `presence.member`, found by what they index, so that they may be renamed or rebuilt.

use super::column::Column;
use crate::access::policy;
use crate::pg::cached::Cached;
use pgrx::pg_sys::{self, Oid};

/// What an index scan needs to know of a column.
#[derive(Clone, Copy)]
pub struct Indexed {
    pub number: i16,
    of_type: Oid,
    pub collation: Oid,
}

thread_local! {
    /// By column, until the table's definition changes.
    static KNOWN: Cached<(Oid, i16), u64, Serving> = const { Cached::new(4) };
    static OF_KEY: Cached<Oid, u64, Option<OfKey>> = const { Cached::new(1) };
    static ON_AUDIENCE: Cached<Oid, u64, bool> = const { Cached::new(1) };
}

/// The index, its columns, and the transaction that created it, if that matters.
type OfKey = (Oid, [Indexed; 3], Option<pg_sys::TransactionId>);

/// Indexes that begin with a column, in the order of its type and collation, without a predicate.
#[derive(Clone, Copy)]
struct Serving {
    column: Indexed,
    /// The index to use: preferably one whose second key is `second`.
    index: Option<Oid>,
    second: i16,
    /// Created when there were older versions of rows, which it may lack: not for snapshots that see those.
    made_by: Option<pg_sys::TransactionId>,
}

/// A column, and an index that begins with it and can be scanned now, if there is one; and the column that is its
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

/// An index on room, member_id and connection_id that can be scanned now, if there is one, with its columns.
///
/// # Safety
/// As for `of`.
pub unsafe fn of_key(table: pg_sys::Relation) -> Option<(Oid, [Indexed; 3])> {
    // SAFETY: the caller's promise. Nothing in a look fails.
    let found = unsafe {
        let key = (*table).rd_id;
        OF_KEY.with(|known| known.get(key, policy::table_epoch(), |_| Ok(look_for_key(table))))
    };
    let (index, columns, made_by) = found.ok().flatten()?;
    is_whole(made_by).then_some((index, columns))
}

/// Whether an index supports queries for an audience.
///
/// # Safety
/// As for `of`.
pub unsafe fn is_on_audience(table: pg_sys::Relation) -> bool {
    // SAFETY: the caller's promise. Nothing in a look fails.
    unsafe {
        let look = |_: &Oid| Ok(has_index(table, |index| is_of_audience(index)));
        ON_AUDIENCE.with(|known| known.get((*table).rd_id, policy::table_epoch(), look)).unwrap_or(false)
    }
}

fn is_whole(made_by: Option<pg_sys::TransactionId>) -> bool {
    // SAFETY: a plain read of this process's state.
    made_by.is_none_or(|by| unsafe { pg_sys::TransactionIdPrecedes(by, pg_sys::TransactionXmin) })
}

/// # Safety
/// As for `of`.
unsafe fn look_for_key(table: pg_sys::Relation) -> Option<OfKey> {
    let mut found: Option<OfKey> = None;
    // SAFETY: the caller's promise.
    unsafe {
        let columns =
            [Column::Room, Column::MemberId, Column::ConnectionId].map(|column| Indexed::new(table, column));
        has_index(table, |index| {
            // All ascending.
            let is_in_order = |at: usize, column: &Indexed| {
                column.is_key_of(index, at) && *(*index).rd_indoption.add(at) == 0
            };
            let of_all = columns.iter().enumerate().all(|(at, column)| is_in_order(at, column));
            if of_all && found.is_none_or(|(.., made_by)| made_by.is_some()) {
                found = Some(((*index).rd_id, columns, made_by(index)));
            }
            false
        });
    }
    found
}

/// Whether the body accepts one of the indexes that are valid and contain all rows.
///
/// # Safety
/// As for `of`.
unsafe fn has_index(table: pg_sys::Relation, mut body: impl FnMut(pg_sys::Relation) -> bool) -> bool {
    // SAFETY: the list is a copy; no index in it can go while the table is locked.
    unsafe {
        let list = pg_sys::RelationGetIndexList(table);
        let found = (0..pg_sys::list_length(list)).map(|at| pg_sys::list_nth_oid(list, at)).any(|index| {
            let index = pg_sys::index_open(index, pg_sys::AccessShareLock as i32);
            let facts = &*(*index).rd_index;
            let is_usable =
                facts.indisvalid && facts.indisready && pg_sys::RelationGetIndexPredicate(index).is_null();
            let is_it = is_usable && body(index);
            pg_sys::index_close(index, pg_sys::NoLock as i32);
            is_it
        });
        pg_sys::list_free(list);
        found
    }
}

/// # Safety
/// An open index.
unsafe fn is_of_audience(index: pg_sys::Relation) -> bool {
    // SAFETY: the caller's promise; an index has at least one key.
    unsafe {
        let facts = &*(*index).rd_index;
        let keys = facts.indkey.values.as_slice(facts.indnkeyatts as usize);
        (*(*index).rd_rel).relam == pg_sys::GIN_AM_OID && keys == [Column::Audience as i16 + 1]
    }
}

/// The transaction that created it when there were older versions of rows, which it may lack.
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

/// The index of the primary key, if it can be scanned now.
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
    // SAFETY: the caller's promise.
    unsafe {
        let column = Indexed::new(table, column);
        let mut found = Serving { column, index: None, second: 0, made_by: None };
        has_index(table, |index| {
            if column.is_key_of(index, 0)
                && (found.index.is_none() || found.second == 0 || found.made_by.is_some())
            {
                let (index, second, made_by) = ((*index).rd_id, column.second_key_of(index), made_by(index));
                found = Serving { column, index: Some(index), second, made_by };
            }
            false
        });
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

    /// Whether it is a b-tree whose key at this place is this column, in the order of its type and collation.
    ///
    /// # Safety
    /// An open index of the column's table.
    unsafe fn is_key_of(&self, index: pg_sys::Relation, at: usize) -> bool {
        // SAFETY: the caller's promise; for each key there are a family, a collation and a direction.
        unsafe {
            let facts = &*(*index).rd_index;
            let keys = facts.indkey.values.as_slice(facts.indnkeyatts as usize);
            let order = pg_sys::lookup_type_cache(self.of_type, pg_sys::TYPECACHE_BTREE_OPFAMILY as i32);
            (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID
                && keys.get(at) == Some(&self.number)
                && *(*index).rd_opfamily.add(at) == (*order).btree_opf
                && *(*index).rd_indcollation.add(at) == self.collation
        }
    }

    /// For an index that begins with this column: the column of its second key. 0: none, or in an order that we do not
    /// use.
    ///
    /// # Safety
    /// An open index.
    unsafe fn second_key_of(&self, index: pg_sys::Relation) -> i16 {
        // SAFETY: the caller's promise; as above.
        unsafe {
            let facts = &*(*index).rd_index;
            let keys = facts.indkey.values.as_slice(facts.indnkeyatts as usize);
            let same = |at: usize| {
                *(*index).rd_opfamily.add(at) == *(*index).rd_opfamily
                    && *(*index).rd_indcollation.add(at) == self.collation
            };
            keys.get(1).copied().filter(|_| same(1)).unwrap_or(0)
        }
    }
}
