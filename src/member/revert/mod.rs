//! Status and state that revert by themselves: `revert_after`. What a call changed for a time is noted in the row, with
//! when to undo it and what it was before (`rule`, `notes`). From that moment on all readers see it undone, by the clock;
//! the worker makes the row so, with an event (`worker::reverting`).

mod notes;
mod rule;

use super::checks::EMPTY_OBJECT;
use super::column::Column;
use super::row::Row;
use crate::clock;
use crate::error::{Error, Result};
use crate::pg::datum::varlena;
use crate::pg::jsonb::text_len;
use rule::{Data, Reverts};
pub use rule::{Given, Set};

/// A hundred years: longer than any member stays.
const LONGEST: i128 = 36_525 * 86_400_000_000;

/// What a write sets that can revert. Without it nothing is set.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The row was made from the existing one as of this moment, by the boot clock.
    pub as_of: u64,
    pub set: Set,
    /// For how long, in microseconds. None: for good.
    pub revert_after: Option<u64>,
}

/// `revert_after` in microseconds.
pub fn check_interval(microseconds: i128) -> Result<u64> {
    if (1..=LONGEST).contains(&microseconds) {
        Ok(microseconds as u64)
    } else {
        Err(Error::InvalidRevertAfter)
    }
}

impl Data {
    fn of(row: &Row) -> Data {
        let status = row.text(Column::Status).filter(|status| !status.is_empty());
        let state = row.varlena(Column::State).unwrap_or(&EMPTY_OBJECT);
        Data { status: status.map(<[u8]>::to_vec), state: notes::state_of_json(state) }
    }

    /// Store into a row what differs from it.
    fn store(&self, row: &mut Row) {
        let now = Data::of(row);
        if now.status != self.status {
            row.set(Column::Status, self.status.as_deref().map(varlena));
        }
        if now.state != self.state {
            row.set(Column::State, Some(varlena(&notes::state_to_json(&self.state))));
        }
    }
}

fn of(row: &Row) -> Option<Reverts> {
    row.varlena(Column::Reverts).map(notes::decode)
}

/// When something in the row reverts next, by the boot clock; 0 is never.
pub fn next(row: &Row) -> u64 {
    of(row).and_then(|reverts| reverts.next()).unwrap_or(0)
}

/// The same from the column's bytes.
pub fn next_of(reverts: &[u8]) -> u64 {
    notes::decode(reverts).next().unwrap_or(0)
}

/// The row as of a moment, if it differs from the written one.
pub fn undone(row: &Row, now: u64) -> Option<Row> {
    let mut reverts = of(row)?;
    let mut data = Data::of(row);
    reverts.apply(&mut data, now)?;
    let mut undone = row.clone();
    data.store(&mut undone);
    undone.set(Column::Reverts, notes::encode(&reverts).as_deref().map(varlena));
    Some(undone)
}

/// The status as of a moment.
pub fn status(written: Option<&[u8]>, reverts: &[u8], now: u64) -> Option<Vec<u8>> {
    let status = notes::decode(reverts).status.filter(|undo| undo.at <= now);
    status.map_or_else(|| written.map(<[u8]>::to_vec), |undo| undo.to)
}

/// The state as of a moment, if it differs from the written one.
pub fn state(written: &[u8], reverts: &[u8], now: u64) -> Option<Vec<u8>> {
    let mut reverts = notes::decode(reverts);
    reverts.status = None;
    let mut data = Data { status: None, state: notes::state_of_json(written) };
    reverts.apply(&mut data, now)?;
    Some(notes::state_to_json(&data.state))
}

/// Record in a row that replaces `old` what will revert. Returns the moment of the last revert in `old`: from then on
/// it differed from what was written.
pub fn settle(old: Option<&Row>, row: &mut Row, wish: Option<&Wish>) -> Option<u64> {
    let noted = old.and_then(of);
    if noted.is_none() && wish.is_none_or(|wish| wish.revert_after.is_none()) {
        row.set(Column::Reverts, None);
        return None;
    }
    let nothing = || Wish {
        as_of: clock::boot(),
        set: Set { status: false, state: Given::Nothing },
        revert_after: None,
    };
    let wish = &wish.cloned().unwrap_or_else(nothing);
    let written = old.map_or_else(Data::of_nobody, Data::of);
    let (mut before, mut reverts) = (written.clone(), noted.clone().unwrap_or_default());
    let last = reverts.apply(&mut before, wish.as_of);
    let mut after = Data::of(row);
    // Parts that the statement does not set come from the row as written.
    if !wish.set.status && after.status == written.status {
        after.status.clone_from(&before.status);
    }
    if wish.set.state == Given::Nothing && after.state == written.state {
        after.state.clone_from(&before.state);
    }
    after.store(row);
    reverts.record(&before, &after, &wish.set, wish.revert_after.map(|time| wish.as_of.saturating_add(time)));
    let is_same = noted.as_ref() == Some(&reverts);
    let kept = old.filter(|_| is_same).and_then(|old| old.get(Column::Reverts));
    row.set(Column::Reverts, kept.or_else(|| notes::encode(&reverts).as_deref().map(varlena)));
    last
}

impl Data {
    /// For a member that enters.
    fn of_nobody() -> Data {
        Data { status: None, state: notes::state_of_json(&EMPTY_OBJECT) }
    }
}

/// The largest state of the row until everything has reverted.
pub fn largest_state(row: &Row) -> Option<Vec<u8>> {
    let (reverts, data) = (of(row)?, Data::of(row));
    Some(notes::state_to_json(&reverts.largest(&data.state, |state| text_len(&notes::state_to_json(state)))))
}
