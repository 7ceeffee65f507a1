//! The walk through the rows, for what no slot says: which members without one are over, who may have one now, and what
//! reverts when. In the order of their keys, some rows at a time, so that events need not wait for the end of it.

use super::reverting::moment;
use crate::clock;
use crate::error::Result;
use crate::extension::Extension;
use crate::lease::slot::NEVER;
use crate::member::liveness::{self, lease_of_query};
use crate::pg::datum::uuid;
use crate::pg::spi::{Connection, Statement, statement};
use crate::shared::leases::leases;
use pgrx::pg_sys;
use std::sync::atomic::Ordering::*;

/// The last key of the next 2,000 rows.
static END: Statement = statement!(
    [pg_sys::UUIDOID],
    "select key_hash from presence.member where key_hash operator(pg_catalog.>) $1 order by key_hash offset 1999 limit 1"
);

macro_rules! rows {
    ($reverts:literal, $have_notes:literal) => {
        statement!(
            [pg_sys::UUIDOID, pg_sys::UUIDOID],
            "select key_hash, version, generation, deadline, session, _presence._has_slot(key_hash)",
            $reverts,
            " from presence.member where key_hash operator(pg_catalog.>) $1 and key_hash operator(pg_catalog.<=) $2 and (",
            $have_notes,
            "not _presence._has_slot(key_hash)) order by key_hash"
        )
    };
}
static ROWS: Statement = rows!(", reverts", "reverts is not null or ");
static ROWS_OF_OLD: Statement = rows!("", "");

pub struct RowScan {
    /// The last key of the previous portion; None at the end.
    after: Option<u128>,
    /// How many changes without a slot the database had at the beginning, and how many such rows were found.
    known: u64,
    found: u64,
    /// A lower bound of their deadlines.
    pub due: u64,
}

/// The result of one portion.
#[derive(Default)]
pub struct Portion {
    pub over: Vec<u128>,
    pub reverting: Vec<u128>,
    /// Live members without a slot.
    pub slotless: Vec<u128>,
}

impl RowScan {
    pub fn start(extension: &Extension) -> RowScan {
        let known = extension.database.slotless.load(Acquire);
        RowScan { after: Some(0), known, found: 0, due: NEVER }
    }

    pub fn next(&mut self, extension: &Extension) -> Result<Option<Portion>> {
        let Some(after) = self.after else { return Ok(None) };
        let connection = Connection::open()?;
        self.after = connection.run(&END, &[Some(uuid(after))], false)?.uuids(0).first().copied();
        let has_notes = extension.has_later_columns;
        let statement = if has_notes { &ROWS } else { &ROWS_OF_OLD };
        let to = self.after.unwrap_or(u128::MAX);
        let rows = connection.run(statement, &[Some(uuid(after)), Some(uuid(to))], false)?;
        let now = clock::boot();
        let mut portion = Portion::default();
        for row in 0..rows.count {
            let Some(hash) = rows.uuid(row, 0) else { continue };
            let (key, lease) = (extension.key_of(hash), lease_of_query(&rows, row, [1, 2, 3, 4]));
            let has_slot = rows.get(row, 5).is_some_and(|has_slot| has_slot.value() != 0);
            let reverts_at = if has_notes { moment(&rows, row, 6) } else { 0 };
            if reverts_at != 0 && has_slot {
                // A heartbeat that found a slot for it did not know about the revert.
                leases().note_revert(&key, lease.version, reverts_at);
            }
            if reverts_at != 0 && reverts_at <= now {
                portion.reverting.push(hash);
            }
            if has_slot {
                continue;
            }
            self.found += 1;
            let deadline = liveness::deadline(&key, &lease);
            let due = deadline.unwrap_or(now);
            self.due = self.due.min(if reverts_at == 0 { due } else { due.min(reverts_at) });
            if deadline.is_some() { portion.slotless.push(hash) } else { portion.over.push(hash) }
        }
        Ok(Some(portion))
    }

    /// This many of those found have a slot now.
    pub fn adopted(&mut self, many: u64) {
        self.found -= many.min(self.found);
    }

    /// Returns how many are left without a slot. If there are none, rows need not be scanned.
    pub fn end(&self, extension: &Extension) -> u64 {
        if self.found == 0 {
            let _ = extension.database.slotless.compare_exchange(self.known, 0, AcqRel, Relaxed);
        }
        self.found
    }
}
