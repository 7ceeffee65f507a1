//! `presence.list`: a page of those who are here, in the order of the key. Past the planner and the executor, so it costs what
//! it reads; where others' policies, missing rights or no index stand in the way, SQL says it: `_presence._list`.
//!
//! Rows are read in the order of the key until the page is full. Who sees few of many would read all of them: when that shows,
//! the index of audiences is asked for the rest.

use super::{arguments, may};
use crate::access::authorizer::{self, Action};
use crate::access::identity::{self, Identity};
use crate::access::visibility::{self, Sight, Visibility};
use crate::access::{policy, twin};
use crate::error::{Error, Result};
use crate::extension::{self, Extension};
use crate::lease::rule::RowLease;
use crate::lease::slot::Key;
use crate::member::column::Column;
use crate::member::layout::Layout;
use crate::member::liveness::Shown;
use crate::member::ordered::{self, From};
use crate::member::row::Row;
use crate::member::{revert, user_rooms};
use crate::nodes;
use crate::pg::cached::Cached;
use crate::pg::datum::varlena;
use crate::pg::function::{Call, Set};
use crate::pg::memory::Scratch;
use crate::shared::leases::leases;
use crate::{clock, settings, validate};
use pgrx::pg_sys::{self, Datum, INT4OID, Oid, TEXTARRAYOID, TEXTOID};

thread_local! {
    /// Whether a role has all rights that reading needs, until any right may have changed.
    static RIGHTS: Cached<Oid, (policy::RightsEpoch, u64), bool> = const { Cached::new(8) };
}

/// The page size for all rooms if none is given.
const PAGE: usize = 1_000;

/// SQL `presence.list(room, max_rows, after)`.
fn list(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let identity = identity::current(&extension)?;
    if !is_fast(&extension, &identity)? {
        let by_sql = twin::by_name(c"_list", &[TEXTOID, INT4OID, TEXTARRAYOID]).ok_or(Error::NotInstalled)?;
        // SAFETY: ours: the same in SQL.
        return Ok(unsafe { call.pass_on(by_sql) });
    }
    let room = call.text(0);
    if let Some(room) = room {
        validate::name("room", room)?;
    }
    let most = arguments::page_of(call.int(1))?.unwrap_or(if room.is_some() { usize::MAX } else { PAGE });
    let after = arguments::after(call, 2, if room.is_some() { 2 } else { 3 })?.map(|after| match room {
        Some(room) => [room.to_vec(), after[0].to_vec(), after[1].to_vec()],
        None => [0, 1, 2].map(|part| after[part].to_vec()),
    });
    let tokens = match identity.service {
        true => Vec::new(),
        false => identity.tokens(&[])?,
    };
    let visibility = match identity.service {
        true => Visibility::all(),
        false => Visibility::asking(&identity, &tokens, &extension),
    };
    let mut page = Page {
        extension: &extension,
        set: call.set(),
        scratch: Scratch::new(),
        visibility,
        may_read: None,
        read_since: clock::read_since(),
        most,
        listed: 0,
        looked_at: 0,
        next_look: FIRST_LOOK,
        shown: 0,
        node: settings::node_name().map(|node| varlena(&node)),
        candidates: Vec::with_capacity(TOGETHER),
    };
    page.fill(From { room, after }, &identity)?;
    Ok(None)
}

/// Whether the fast path shows exactly what a SELECT would.
fn is_fast(extension: &Extension, identity: &Identity) -> Result<bool> {
    // SAFETY: a look-up in shared memory. On a standby SQL says best that unlogged tables cannot be read.
    if unsafe { pg_sys::RecoveryInProgress() }
        || nodes::scan::are_there(extension.database)
        || !visibility::is_by_built_in_policies(extension, identity)?
    {
        return Ok(false);
    }
    // SAFETY: a plain read of this process's state.
    let role = unsafe { pg_sys::GetUserId() };
    let epoch = (policy::rights_epoch(), extension.epoch);
    let look_up = |_: &Oid| Ok(may::may_list(extension) && is_view_as_made());
    Ok(RIGHTS.with(|rights| rights.get(role, epoch, look_up))? && ordered::is_indexed(extension))
}

/// Whether nobody has added columns to the view.
fn is_view_as_made() -> bool {
    // SAFETY: a look-up in the catalog; null where there is no such column.
    let has = |view, column| unsafe { !pg_sys::get_attname(view, column as i16, true).is_null() };
    extension::relation(c"online").is_some_and(|view| has(view, ONLINE) && !has(view, ONLINE + 1))
}

/// Columns of the view `online`.
const ONLINE: usize = 16;

/// How many leases are looked up together: their slots are prefetched while other rows are read.
const TOGETHER: usize = 32;

/// Number of rows after which it is first checked whether few of them are visible; again each time they have doubled.
const FIRST_LOOK: usize = 2_048;
/// Few is fewer than one in this many.
const SPARSE: usize = 16;

struct Page<'a> {
    extension: &'a Extension,
    set: Set<'a>,
    /// Memory of the candidates.
    scratch: Scratch,
    visibility: Visibility<'a>,
    /// The last room for which the authorizer was asked, and its answer.
    may_read: Option<(Vec<u8>, bool)>,
    read_since: u64,
    most: usize,
    listed: usize,
    looked_at: usize,
    next_look: usize,
    /// How many of them are visible.
    shown: usize,
    /// This server's name.
    node: Option<Datum>,
    /// Members that the caller may see, if they are alive.
    candidates: Vec<(Row, Key, Sight)>,
}

impl Page<'_> {
    fn fill(&mut self, mut from: From, identity: &Identity) -> Result<()> {
        let extension = self.extension;
        let mut place = None;
        ordered::each(extension, &from, |tuple, layout| {
            let goes_on = self.take(tuple, layout)?;
            if goes_on && !identity.service && self.is_sparse() {
                // SAFETY: a tuple of this layout.
                place = Some(ordered::place(&unsafe { Row::deform(tuple, layout) }));
            }
            Ok(goes_on && place.is_none())
        })?;
        if place.is_some() {
            from.after = place;
            let user_id = identity.user_id.as_deref();
            let tokens = identity.tokens(&user_rooms::all_rooms(identity, extension)?)?;
            let by_audience = ordered::each_shared(extension, &from, user_id, &tokens, |tuple, layout| {
                self.take(tuple, layout)
            });
            if by_audience?.is_none() {
                ordered::each(extension, &from, |tuple, layout| self.take(tuple, layout))?;
            }
        }
        self.take_living()
    }

    /// Whether few of the rows so far are visible; only at certain row counts.
    fn is_sparse(&mut self) -> bool {
        if self.looked_at < self.next_look {
            return false;
        }
        self.next_look *= 2;
        self.shown * SPARSE < self.looked_at
    }

    /// Take the next row. Returns whether there is room for more.
    fn take(&mut self, tuple: pg_sys::HeapTuple, layout: Layout) -> Result<bool> {
        self.looked_at += 1;
        // SAFETY: a tuple of this layout. Copied at once, for most rows that are looked at are shown: the copy lives until the
        // candidates are taken.
        let row = self.scratch.within(|| unsafe { Row::deform(pg_sys::heap_copytuple(tuple), layout) });
        let sight = self.sight(&row)?;
        if sight != Sight::None {
            let key = row.key(self.extension);
            leases().prefetch(&key, false);
            self.candidates.push((row, key, sight));
            self.shown += 1;
        }
        let is_full = self.listed + self.candidates.len() >= self.most;
        if is_full || self.candidates.len() == TOGETHER || self.looked_at.is_multiple_of(LONG_ENOUGH) {
            self.take_living()?;
        }
        Ok(self.listed < self.most)
    }

    fn sight(&mut self, row: &Row) -> Result<Sight> {
        let sight = self.visibility.of_row(row)?;
        if sight != Sight::Shared {
            return Ok(sight);
        }
        let room = row.text(Column::Room).unwrap_or_default();
        let may_read = match &self.may_read {
            Some((known, answer)) if known == room => *answer,
            _ => {
                let answer = authorizer::allows(room, Action::Read)?;
                self.may_read = Some((room.to_vec(), answer));
                answer
            }
        };
        Ok(if may_read { sight } else { Sight::None })
    }

    /// Return those of the candidates that are alive.
    fn take_living(&mut self) -> Result<()> {
        pgrx::check_for_interrupts!();
        self.candidates.iter().for_each(|(_, key, _)| leases().prefetch(key, true));
        for (row, key, sight) in std::mem::take(&mut self.candidates) {
            let lease = row.lease_read(self.read_since);
            let shown = self.scratch.within(|| Shown::look(&key, &lease));
            if let Some(shown) = shown {
                self.scratch.within(|| self.put(&row, &lease, &shown, sight == Sight::Own))?;
                self.listed += 1;
            }
        }
        self.scratch.clear();
        Ok(())
    }

    /// In the form of the view.
    fn put(&self, row: &Row, lease: &RowLease, shown: &Shown, is_own: bool) -> Result<()> {
        let undone = row.get(Column::Reverts).and_then(|_| revert::undone(row, shown.at));
        let now = undone.as_ref().unwrap_or(row);
        let written = row.get(Column::LastSeenAt).map(|_| row.time(Column::LastSeenAt));
        let last_seen_at = shown.last_seen_at(lease, written);
        let columns: [Option<Datum>; ONLINE] = [
            row.get(Column::Room),
            row.get(Column::MemberId),
            row.get(Column::ConnectionId),
            row.get(Column::UserId),
            now.get(Column::Status),
            now.get(Column::State),
            row.get(Column::Metadata),
            row.get(Column::Audience).filter(|_| is_own),
            row.get(Column::Version),
            row.get(Column::JoinedAt),
            row.get(Column::UpdatedAt),
            last_seen_at.map(Datum::from),
            shown.expires_at().map(Datum::from),
            row.get(Column::Ttl),
            row.get(Column::SessionPid).filter(|_| is_own),
            self.node,
        ];
        let mut values = columns.map(|value| value.unwrap_or(Datum::from(0)));
        let mut nulls = columns.map(|value| value.is_none());
        self.set.put(&mut values, &mut nulls)
    }
}

/// After this many rows, visible or not, it is checked whether to continue.
const LONG_ENOUGH: usize = 512;

crate::sql_function!(presence_list, pg_finfo_presence_list, list);
