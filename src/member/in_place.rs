//! A stored row as it lies in its page: only what tells whether somebody sees it and whether it is here. For who looks at a
//! hundred thousand; others have a `Row`.

use super::column::{Column, OLDEST, SHAPES, VARLENA};
use super::grace;
use crate::lease::rule::RowLease;
use crate::pg::datum::{hash_of, text_in};
use pgrx::pg_sys::{self, Datum};

pub struct InPlace<'p> {
    pub user_id: &'p [u8],
    /// The bytes of the array after its header.
    pub audience: &'p [u8],
    /// Hash of the key.
    pub hash: u128,
    version: u64,
    generation: u64,
    /// As stored in the row.
    deadline: u64,
    session: u64,
}

impl<'p> InPlace<'p> {
    /// # Safety
    /// `tuple` is one of the table, and lives as long as the holder, as does what is allocated in `memory`.
    pub unsafe fn read<H>(
        holder: &'p H,
        memory: pg_sys::MemoryContext,
        tuple: pg_sys::HeapTuple,
    ) -> InPlace<'p> {
        // SAFETY: the caller's promise; each value is read as its column's type.
        unsafe {
            let places = places(tuple);
            let varlena = |column: Column| match places[column as usize] {
                place if place.is_null() => &[][..],
                place => text_in(holder, memory, Datum::from(place)),
            };
            let number = |column: Column| match places[column as usize] {
                place if place.is_null() => 0,
                place => *place.cast::<u64>(),
            };
            let hash = places[Column::KeyHash as usize];
            InPlace {
                user_id: varlena(Column::UserId),
                audience: varlena(Column::Audience),
                hash: if hash.is_null() { 0 } else { hash_of(Datum::from(hash)) },
                version: number(Column::Version),
                generation: number(Column::Generation),
                deadline: number(Column::Deadline),
                session: number(Column::Session),
            }
        }
    }

    /// The ttl is not read, because deadlines do not depend on it.
    pub fn lease_read(&self, read_since: u64) -> RowLease {
        let (version, generation, session) = (self.version, self.generation, self.session);
        let (deadline, is_fixed) = grace::read_deadline(self.deadline);
        RowLease { read_since, version, generation, deadline, is_fixed, ttl: 0, session }
    }
}

/// Where the values of the oldest columns begin; a null pointer for NULL. A faster `heap_deform_tuple` for this table.
///
/// # Safety
/// `tuple` is one of the table.
#[inline]
unsafe fn places(tuple: pg_sys::HeapTuple) -> [*const u8; OLDEST] {
    let mut places = [std::ptr::null(); OLDEST];
    // SAFETY: the caller's promise: the header tells how many columns there are and which are NULL, and the others lie one
    // after the other, of these types.
    unsafe {
        let header = (*tuple).t_data;
        let has_nulls = (*header).t_infomask & pg_sys::HEAP_HASNULL as u16 != 0;
        let nulls = (*header).t_bits.as_ptr();
        let count = ((*header).t_infomask2 & pg_sys::HEAP_NATTS_MASK as u16) as usize;
        let data = header.cast::<u8>().cast_const().add((*header).t_hoff as usize);
        let mut at = 0;
        for column in 0..OLDEST.min(count) {
            if has_nulls && *nulls.add(column / 8) & 1 << (column % 8) == 0 {
                continue;
            }
            let (length, alignment) = SHAPES[column];
            // A nonzero byte begins a short varlena, which is not aligned.
            if length != VARLENA || *data.add(at) == 0 {
                at = at.next_multiple_of(alignment);
            }
            let place = data.add(at);
            places[column] = place;
            at += if length == VARLENA { pgrx::varsize_any(place.cast()) } else { length };
        }
    }
    places
}
