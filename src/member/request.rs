//! What a verb requests, and how it is done: find the row, decide what it becomes, store it. The same steps for `upsert`,
//! `update` and the like; `store` knows how to find and store a row.

use super::checks::{self, EMPTY_OBJECT, check_join};
use super::column::Column;
use super::intent::{Grace, Intent};
use super::revert::{self, Given, Set, Wish};
use super::room_defaults::Rooms;
use super::row::Row;
use super::store::Store;
use super::tries::Tries;
use super::{holder, liveness};
use crate::access::identity::Identity;
use crate::access::ownership::{self, check_member_id};
use crate::error::{Error, Result};
use crate::event::net_effect::{Change, What};
use crate::event::transaction::{self, Pending};
use crate::extension::Extension;
use crate::lease::slot::{Key, Stay};
use crate::pg::datum::{bytes_of, interval_of, texts_of, varlena};
use crate::pg::jsonb;
use crate::shared::leases::leases;
use crate::{clock, validate};
use pgrx::pg_sys::{self, Datum};
use std::rc::Rc;

/// A verb's arguments after names were checked and defaults filled in. None keeps the member's value.
pub struct Request {
    /// For messages: the SQL function.
    pub verb: &'static std::ffi::CStr,
    pub extension: Extension,
    pub key: Key,
    pub caller: Rc<Identity>,
    /// The owner of a member that enters. None: nobody enters, only an existing member is changed.
    pub owner: Option<Vec<u8>>,
    /// Set: the new owner in any case. A service role that names nobody keeps the owner.
    pub new_owner: Option<Datum>,
    pub room: Datum,
    pub member_id: Datum,
    pub connection_id: Datum,
    pub state: Option<Datum>,
    /// Instead of a state: a JSON merge patch for the current one.
    pub patch: Option<Datum>,
    pub status: Option<Datum>,
    pub metadata: Option<Datum>,
    /// 0 is the default.
    pub ttl: Option<Datum>,
    pub audience: Option<Datum>,
    pub session: Option<bool>,
    /// In microseconds: how long status and state keep their new values. None: for good.
    pub revert_after: Option<u64>,
}

/// The result of a request.
pub enum Written {
    /// The row as written.
    Row(Row),
    /// The row as found, and only renewed.
    Renewed(Row),
    /// There is no member to change.
    Absent,
}

impl Request {
    /// Find, decide, store. The member may expire, enter or leave between our statements; each try starts from its
    /// current state.
    pub fn write(&self, store: &Store) -> Result<Written> {
        if !self.caller.service {
            self.caller.writer()?;
        }
        if self.revert_after.is_some() && !self.extension.has_later_columns {
            return Err(Error::TooManyColumns);
        }
        let (mut tries, mut anew) = (Tries::new(&self.key), false);
        loop {
            // An insert finds out by the index whether somebody has entered meanwhile.
            let is_nobody = !anew && self.owner.is_some() && store.knows_nobody(&self.key);
            let found = if is_nobody { None } else { store.find(&self.key, anew)? };
            let found = found.filter(|row| self.is_live(row));
            let version = found.as_ref().map(|row| row.number(Column::Version));
            let written = match found {
                Some(found) => self.change(store, &found)?,
                None if self.owner.is_none() => return self.absent(),
                None => self.enter(store)?,
            };
            match written {
                Some(written) => return Ok(written),
                None if tries.again() => anew = true,
                None if self.owner.is_none() => return self.absent(),
                None => return Err(self.why_not(store, version)?),
            }
        }
    }

    /// Change the row that was found, or only renew it. None: it is gone, or may not be changed.
    fn change(&self, store: &Store, found: &Row) -> Result<Option<Written>> {
        self.require_ownership(found)?;
        check_join(&self.caller, found)?;
        let stays = self.owner.is_some() && found.lease().is_fixed;
        let state = self.new_state(found);
        let identical = !stays && self.is_identical(found, state)?;
        crate::injection::stall("renewing");
        if identical && store.may_change() && self.renew(found) {
            return Ok(Some(Written::Renewed(found.clone())));
        }
        // SAFETY: a C string; raises in a READ ONLY transaction.
        unsafe { pg_sys::PreventCommandIfReadOnly(self.verb.as_ptr()) };
        let Some(held) = store.lock(found)?.filter(|row| self.is_live(row)) else { return Ok(None) };
        self.require_ownership(&held)?;
        let as_of = clock::boot();
        let undone = revert::undone(&held, as_of);
        let as_it_is = undone.as_ref().unwrap_or(&held);
        // Usually merged already.
        let state = if as_it_is.same(found, &[Column::State]) { state } else { self.new_state(as_it_is) };
        let wanted = self.wanted(as_it_is, state);
        match store.change(&held, wanted, self.intent(as_of, held.get(Column::Reverts).is_some()))? {
            Some(row) => Ok(Some(Written::Row(row))),
            // Nobody else can change a locked row: trying again would only fire the same triggers again.
            None if self.is_live(&held) => self.refused().map(Some),
            None => Ok(None),
        }
    }

    /// Like an UPDATE of no row, which for `upsert` is an error.
    fn refused(&self) -> Result<Written> {
        if self.owner.is_none() { Ok(Written::Absent) } else { Err(Error::Refused) }
    }

    fn enter(&self, store: &Store) -> Result<Option<Written>> {
        let mut row = Row::empty();
        row.set(Column::Room, Some(self.room));
        row.set(Column::MemberId, Some(self.member_id));
        row.set(Column::ConnectionId, Some(self.connection_id));
        row.set(Column::UserId, self.owner.as_deref().map(varlena));
        let intent = self.intent(clock::boot(), false);
        Ok(store.enter(&self.key, &self.wanted(&row, self.new_state(&row)), intent)?.map(Written::Row))
    }

    fn require_ownership(&self, row: &Row) -> Result<()> {
        // SAFETY: a text.
        let member_id = unsafe { bytes_of(self.member_id) };
        // Another user's name is refused in the same way whether that user is present or not.
        if !ownership::may_write(&self.caller, row.text(Column::UserId).unwrap_or_default()) {
            check_member_id(&self.caller, &member_id)?;
            return Err(Error::OwnedByAnother);
        }
        Ok(())
    }

    /// The member is absent, or another user's.
    fn absent(&self) -> Result<Written> {
        // SAFETY: a text.
        let member_id = unsafe { bytes_of(self.member_id) };
        holder::require_none_of_anothers(&self.extension, &self.caller, &member_id, &self.key)?;
        Ok(Written::Absent)
    }

    /// Why none of the tries succeeded; the last one found this version.
    fn why_not(&self, store: &Store, found: Option<u64>) -> Result<Error> {
        Ok(match holder::holder(&self.extension, &self.key)? {
            Some(holder) if !ownership::may_write(&self.caller, &holder.owner) => Error::OwnedByAnother,
            // It is the caller's and nobody else changes it, and yet it cannot be changed, or not even be seen.
            Some(holder) if !store.is_fast() && found.is_none_or(|found| found == holder.version) => {
                Error::Refused
            }
            // Nobody has the key, and yet it cannot be entered.
            None if !store.is_fast() && found.is_none() => Error::Refused,
            _ => Error::ConcurrentUpdate,
        })
    }

    /// The row that the request asks for, with this new state, made from the existing row; on enter, from one that has
    /// only its names.
    fn wanted(&self, held: &Row, state: Option<Datum>) -> Row {
        let mut row = held.clone();
        let given = [
            (Column::State, state),
            (Column::Status, self.status),
            (Column::Metadata, self.metadata),
            (Column::Ttl, self.ttl),
            (Column::Audience, self.audience),
            (Column::UserId, self.new_owner),
        ];
        for (column, value) in given.into_iter().filter(|(_, value)| value.is_some()) {
            row.set(column, value);
        }
        // A session member needs no ttl, unless one is given.
        if self.session == Some(true) {
            row.set(Column::Ttl, self.ttl);
        }
        row
    }

    /// The given state, or the current one with the patch applied.
    fn new_state(&self, held: &Row) -> Option<Datum> {
        let Some(patch) = self.patch else { return self.state };
        let held = held.get(Column::State).unwrap_or_else(|| varlena(&EMPTY_OBJECT));
        // SAFETY: both are jsonb, and the patch was checked to be an object.
        Some(unsafe { jsonb::merge_patch(held, patch) })
    }

    fn is_live(&self, found: &Row) -> bool {
        liveness::deadline(&self.key, &found.lease()).is_some()
    }

    /// For a row made from the row as of that moment; `is_noted` if something in it may revert.
    fn intent(&self, as_of: u64, is_noted: bool) -> Intent {
        let matters = is_noted || self.revert_after.is_some();
        let wish = matters.then(|| Rc::new(self.wish(as_of)));
        // An upsert cancels an announced leave.
        let grace = if self.owner.is_some() { Grace::Over } else { Grace::AsTheRowSays };
        Intent { session: self.session, grace, wish, ..Intent::default() }
    }

    fn wish(&self, as_of: u64) -> Wish {
        let state = match (self.state, self.patch) {
            (None, None) => Given::Nothing,
            // SAFETY: a jsonb, which was checked to be an object.
            (_, Some(patch)) => Given::Keys(jsonb::fields::keys(&unsafe { bytes_of(patch) })),
            (Some(_), None) => Given::All,
        };
        Wish { as_of, set: Set { status: self.status.is_some(), state }, revert_after: self.revert_after }
    }

    /// Whether pending reverts stay as they are.
    fn same_reverts(&self, found: &Row, state: Option<Datum>) -> bool {
        if self.revert_after.is_none() && found.get(Column::Reverts).is_none() {
            return true;
        }
        let mut wanted = self.wanted(found, state);
        revert::settle(Some(found), &mut wanted, Some(&self.wish(clock::boot()))).is_none()
            && wanted.same(found, &[Column::Reverts])
    }

    /// Whether the call, with this new state, would change nothing.
    fn is_identical(&self, found: &Row, state: Option<Datum>) -> Result<bool> {
        let same = |given: Option<Datum>, column| match given {
            // SAFETY: callers name jsonb arguments.
            Some(given) => found.varlena(column) == Some(&unsafe { bytes_of(given) }[..]),
            None => true,
        };
        // SAFETY: two texts.
        let text = |given: Option<Datum>| given.map(|given| unsafe { bytes_of(given) });
        let (owner, status) = (text(self.new_owner), text(self.status));
        let same_session = match self.session {
            None => true,
            Some(false) => found.get(Column::Session).is_none(),
            Some(true) => {
                let mine = crate::shared::my_process()
                    .map_or(0, |process| process.session.load(std::sync::atomic::Ordering::Relaxed));
                mine != 0
                    && found.number(Column::Session) == mine
                    && (self.ttl.is_some() || found.get(Column::Ttl).is_none())
            }
        };
        Ok(owner.is_none_or(|owner| found.text(Column::UserId) == Some(&owner[..]))
            && status.is_none_or(|status| found.text(Column::Status).unwrap_or_default() == status)
            && same_session
            && self.same_ttl(found)?
            && same(state, Column::State)
            && same(self.metadata, Column::Metadata)
            && self.same_reverts(found, state)
            && self.same_audience(found)?)
    }

    fn same_ttl(&self, found: &Row) -> Result<bool> {
        // SAFETY: an interval.
        Ok(match self.ttl.map(|ttl| unsafe { interval_of(ttl) }) {
            None => true,
            Some(0) => {
                // SAFETY: a text.
                let room = unsafe { bytes_of(self.room) };
                let session_bound = checks::is_session_bound(
                    Some(found),
                    &Intent { session: self.session, ..Intent::default() },
                );
                found.ttl() == checks::default_ttl(&Rooms::default(), &room, session_bound)?.map(i128::from)
            }
            given => found.ttl() == given,
        })
    }

    fn same_audience(&self, found: &Row) -> Result<bool> {
        let (Some(given), Some(held)) = (self.audience, found.get(Column::Audience)) else {
            return Ok(self.audience.is_none());
        };
        // SAFETY: text arrays and a text.
        unsafe {
            let given = texts_of(given).map_err(|why| Error::InvalidAudience { why: why.into() })?;
            let given = validate::audience(given.iter(), &bytes_of(self.room))?;
            let held = texts_of(held).map_err(|why| Error::InvalidAudience { why: why.into() })?;
            Ok(given.iter().map(Vec::as_slice).eq(held.iter()))
        }
    }

    /// Renew at commit without touching the row, if nobody else is changing it.
    fn renew(&self, found: &Row) -> bool {
        match transaction::pending(&self.key) {
            Pending::Present { .. } => {
                transaction::renew_pending(&self.key, clock::boot(), false);
                return true;
            }
            Pending::Gone => return false,
            Pending::Untouched => {}
        }
        let version = found.number(Column::Version);
        let unchanged = leases().unchanged(&self.key, version, clock::boot());
        if unchanged {
            let stay = Stay {
                owner: self.extension.owner_hash(found.text(Column::UserId).unwrap_or_default()),
                generation: found.number(Column::Generation),
            };
            transaction::push(
                &self.extension,
                Change {
                    key: self.key,
                    what: What::Renew { stay },
                    version,
                    at: 0,
                    joined_at: 0,
                    seen_at: 0,
                    image: Default::default(),
                    node: None,
                    previous: None,
                },
            );
        }
        unchanged
    }
}
