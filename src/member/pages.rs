//! The rows of a room in the order in which they lie in the table, so that each page is visited once, however the index
//! orders them: for who looks at a hundred thousand. As in `scan`, without the executor and without any policy.

use super::column::Column;
use super::in_place::InPlace;
use super::{index, layout::Layout, scan};
use crate::error::Result;
use crate::extension::Extension;
use crate::lease::table::prefetch_line;
use crate::pg::datum::varlena;
use crate::pg::memory::Scratch;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::pg_sys::{self, BlockNumber, Buffer};

/// Call `body` with the rows of each page in the active snapshot. They live only during the call, which may take them
/// from the list.
pub fn of_room(
    extension: &Extension,
    room: &[u8],
    mut body: impl FnMut(&mut Vec<InPlace>) -> Result<()>,
) -> Result<()> {
    // SAFETY: a snapshot is active while a function runs. The table is ours; the lock on it, and on the index, stays until
    // the transaction ends, as those of a SELECT do.
    unsafe {
        let snapshot = pg_sys::GetActiveSnapshot();
        let lock = pg_sys::AccessShareLock as i32;
        let table = pg_sys::table_open(extension.member, lock);
        let scratch = Scratch::new();
        let result = Layout::of((*table).rd_att).and_then(|_| match index::of(table, Column::Room) {
            (column, Some((index, _))) => {
                let index = pg_sys::index_open(index, lock);
                let mut key = pg_sys::ScanKeyData::default();
                pg_sys::ScanKeyEntryInitialize(
                    &mut key,
                    0,
                    1,
                    pg_sys::BTEqualStrategyNumber as u16,
                    pg_sys::InvalidOid,
                    column.collation,
                    pg_sys::F_TEXTEQ.into(),
                    varlena(room),
                );
                let result = by_index(table, index, &mut key, snapshot, &scratch, &mut body);
                pg_sys::index_close(index, pg_sys::NoLock as i32);
                result
            }
            _ => {
                let condition = (Column::Room, pg_sys::F_TEXTEQ, varlena(room));
                scan::scan(extension, condition, None, snapshot, |tuple, _| {
                    body(&mut vec![InPlace::read(&tuple, scratch.memory(), tuple)])?;
                    scratch.clear();
                    Ok(true)
                })
            }
        });
        pg_sys::table_close(table, pg_sys::NoLock as i32);
        result
    }
}

/// As many places as fit into work_mem at a time.
fn most_places() -> usize {
    // SAFETY: a plain setting, in kB.
    let kilobytes = unsafe { pg_sys::work_mem } as usize;
    (kilobytes * 1024 / size_of::<u64>()).clamp(8_192, 4_194_304)
}

/// # Safety
/// Open relations, the index one of the table, with a condition on its first column; the snapshot is registered or active.
unsafe fn by_index(
    table: pg_sys::Relation,
    index: pg_sys::Relation,
    key: &mut pg_sys::ScanKeyData,
    snapshot: pg_sys::Snapshot,
    scratch: &Scratch,
    body: &mut impl FnMut(&mut Vec<InPlace>) -> Result<()>,
) -> Result<()> {
    let most = most_places();
    let mut places: Vec<u64> = Vec::with_capacity(most);
    // SAFETY: the caller's promise; the scan is ended below.
    unsafe {
        #[cfg(feature = "pg18")]
        let scan = pg_sys::index_beginscan(table, index, snapshot, std::ptr::null_mut(), 1, 0);
        #[cfg(not(feature = "pg18"))]
        let scan = pg_sys::index_beginscan(table, index, snapshot, 1, 0);
        pg_sys::index_rescan(scan, key, 1, std::ptr::null_mut(), 0);
        let mut result = Ok(());
        while result.is_ok() {
            // SAFETY: nothing in here is to be dropped, and there is room for what is pushed.
            pg_guard_ffi_boundary(|| {
                while places.len() < most {
                    let place = unguarded::index_getnext_tid(scan, FORWARD);
                    let Some(place) = place.as_ref() else { break };
                    places.push(pack(place));
                }
            });
            let is_last = places.len() < most;
            places.sort_unstable();
            result = visit(table, &places, snapshot, scratch, body);
            places.clear();
            if is_last {
                break;
            }
        }
        pg_sys::index_endscan(scan);
        result
    }
}

const FORWARD: pg_sys::ScanDirection::Type = pg_sys::ScanDirection::ForwardScanDirection;

/// A tuple's place as a number, ordered by page.
fn pack(place: &pg_sys::ItemPointerData) -> u64 {
    let block = u64::from(place.ip_blkid.bi_hi) << 16 | u64::from(place.ip_blkid.bi_lo);
    block << 16 | u64::from(place.ip_posid)
}

fn block_of(place: u64) -> BlockNumber {
    (place >> 16) as BlockNumber
}

fn unpack(place: u64) -> pg_sys::ItemPointerData {
    let (bi_hi, bi_lo, ip_posid) = ((place >> 32) as u16, (place >> 16) as u16, place as u16);
    pg_sys::ItemPointerData { ip_blkid: pg_sys::BlockIdData { bi_hi, bi_lo }, ip_posid }
}

/// How many pages are read together: their tuples are prefetched while others are read.
const TOGETHER: usize = 8;

/// Read the pages of these places, which are sorted.
///
/// # Safety
/// An open table; the snapshot is registered or active.
unsafe fn visit(
    table: pg_sys::Relation,
    places: &[u64],
    snapshot: pg_sys::Snapshot,
    scratch: &Scratch,
    body: &mut impl FnMut(&mut Vec<InPlace>) -> Result<()>,
) -> Result<()> {
    let mut tuples: Vec<pg_sys::HeapTupleData> = Vec::new();
    let mut pages = places.chunk_by(|one, other| block_of(*one) == block_of(*other));
    let mut result = Ok(());
    while result.is_ok() {
        pgrx::check_for_interrupts!();
        let mut group: [(Buffer, &[u64]); TOGETHER] = [(0, &[]); TOGETHER];
        let wanted =
            pages.by_ref().take(TOGETHER).zip(&mut group).map(|(page, place)| place.1 = page).count();
        if wanted == 0 {
            break;
        }
        let group = &mut group[..wanted];
        tuples.clear();
        tuples.reserve(group.iter().map(|(_, places)| places.len()).sum());
        // SAFETY: the caller's promise; in here nothing is to be dropped, and there is room for what is pushed. The tuples
        // stay where they are while their pages are pinned.
        unsafe {
            pg_guard_ffi_boundary(|| {
                for (page, places) in group.iter_mut() {
                    *page = unguarded::ReadBuffer(table, block_of(places[0]));
                    unguarded::heap_page_prune_opt(table, *page);
                    places.iter().for_each(|place| prefetch_tuple(*page, *place));
                }
                for (page, places) in group.iter() {
                    unguarded::LockBuffer(*page, pg_sys::BUFFER_LOCK_SHARE as i32);
                    for place in places.iter() {
                        let mut tuple =
                            pg_sys::HeapTupleData { t_self: unpack(*place), ..Default::default() };
                        if find(table, *page, snapshot, &mut tuple) {
                            tuples.push(tuple);
                        }
                    }
                    unguarded::LockBuffer(*page, pg_sys::BUFFER_LOCK_UNLOCK as i32);
                }
            });
            count_fetched(table, tuples.len());
            let rows = tuples.iter_mut();
            let mut rows = rows.map(|tuple| InPlace::read(scratch, scratch.memory(), tuple)).collect();
            result = body(&mut rows);
            group.iter().for_each(|(page, _)| pg_sys::ReleaseBuffer(*page));
        }
        scratch.clear();
    }
    result
}

/// Count for the statistics of the table.
///
/// # Safety
/// An open table, of which a page was read: then they are there, where they are counted at all.
unsafe fn count_fetched(table: pg_sys::Relation, tuples: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        if let Some(statistics) = (*table).pgstat_info.as_mut() {
            #[cfg(feature = "pg15")]
            let fetched = &mut statistics.t_counts.t_tuples_fetched;
            #[cfg(not(feature = "pg15"))]
            let fetched = &mut statistics.counts.tuples_fetched;
            *fetched += tuples as i64;
        }
    }
}

/// The tuple in the snapshot, of the HOT chain that begins at a place.
///
/// # Safety
/// The table's page is pinned and locked; within a guard.
unsafe fn find(
    table: pg_sys::Relation,
    page: Buffer,
    snapshot: pg_sys::Snapshot,
    tuple: &mut pg_sys::HeapTupleData,
) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        // On an all-visible page the tuple is visible without a check, as in a sequential scan. (But a SERIALIZABLE
        // transaction records what it has read.)
        let bytes = pg_sys::BufferGetPage(page).cast::<u8>();
        let all_see_it = (*bytes.cast::<pg_sys::PageHeaderData>()).pd_flags & pg_sys::PD_ALL_VISIBLE as u16
            != 0
            && pg_sys::XactIsoLevel < pg_sys::XACT_SERIALIZABLE as i32;
        if !all_see_it {
            let (mut place, none) = (tuple.t_self, std::ptr::null_mut());
            return unguarded::heap_hot_search_buffer(&mut place, table, page, snapshot, tuple, none, true);
        }
        let found = item(bytes, tuple.t_self.ip_posid).filter(|item| item.lp_flags() == pg_sys::LP_NORMAL);
        if let Some(item) = found {
            tuple.t_len = item.lp_len();
            tuple.t_data = bytes.add(item.lp_off() as usize).cast();
        }
        found.is_some()
    }
}

/// Prefetch the tuple at this place of a page. Nothing that is read here without a lock is trusted.
///
/// # Safety
/// The page is pinned.
unsafe fn prefetch_tuple(page: Buffer, place: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        let bytes = pg_sys::BufferGetPage(page).cast::<u8>();
        if let Some(item) = item(bytes, place as u16) {
            let lines = (0..item.lp_len() as usize).step_by(64);
            lines.for_each(|line| prefetch_line(bytes.wrapping_add(item.lp_off() as usize + line)));
        }
    }
}

/// The line pointer of a page, or the one that it redirects to.
///
/// # Safety
/// The page is pinned.
unsafe fn item(page: *const u8, number: u16) -> Option<pg_sys::ItemIdData> {
    let at = |number: u16| {
        let at = size_of::<pg_sys::PageHeaderData>()
            + size_of::<pg_sys::ItemIdData>() * usize::from(number.checked_sub(1)?);
        // SAFETY: the caller's promise; nothing behind its end is looked at.
        (at < pg_sys::BLCKSZ as usize).then(|| unsafe { *page.add(at).cast::<pg_sys::ItemIdData>() })
    };
    let item = at(number)?;
    if item.lp_flags() == pg_sys::LP_REDIRECT { at(item.lp_off() as u16) } else { Some(item) }
}

/// Many calls within one of pgrx's guards, which take longer than they do.
mod unguarded {
    use pgrx::pg_sys::*;

    unsafe extern "C-unwind" {
        pub fn index_getnext_tid(scan: IndexScanDesc, direction: ScanDirection::Type) -> ItemPointer;
        pub fn ReadBuffer(relation: Relation, block: BlockNumber) -> Buffer;
        pub fn heap_page_prune_opt(relation: Relation, buffer: Buffer);
        pub fn LockBuffer(buffer: Buffer, mode: std::ffi::c_int);
        pub fn heap_hot_search_buffer(
            place: ItemPointer,
            relation: Relation,
            buffer: Buffer,
            snapshot: Snapshot,
            tuple: HeapTuple,
            all_dead: *mut bool,
            first_call: bool,
        ) -> bool;
    }
}
