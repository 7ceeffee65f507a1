//! Members whose lease is over and whose row is still there, because somebody has it locked or it cannot be deleted. They have
//! no leave yet that would take back the channels they were given, so their channels are rotated without one.

use super::rotation::Rotation;
use crate::error::Result;
use crate::extension::Extension;
use crate::member::liveness;
use crate::pg::datum::uuids;
use crate::pg::snapshot::with_new_snapshot;
use crate::pg::spi::{Connection, Statement};
use pgrx::pg_sys;
use std::collections::HashSet;

static ROWS: Statement = Statement {
    sql: c"select key_hash, version, generation, deadline, session, user_id, room
           from presence.member where key_hash operator(pg_catalog.=) any ($1)",
    arguments: &[pg_sys::UUIDARRAYOID],
};

#[derive(Default)]
pub struct Overdue {
    /// Members whose channels were renamed, by key and version: one that revives has a new version.
    known: HashSet<(u128, u64)>,
    /// Those found in this round.
    found: HashSet<(u128, u64)>,
}

impl Overdue {
    /// These were due, and some were not removed.
    pub fn look(&mut self, extension: &Extension, keys: &[u128], rotation: &mut Rotation) -> Result<()> {
        // Not with the snapshot from before they were removed.
        with_new_snapshot(|| {
            let connection = Connection::open()?;
            let rows = connection.run(&ROWS, &[Some(uuids(keys))], false)?;
            for row in 0..rows.count {
                let Some(hash) = rows.uuid(row, 0) else { continue };
                let is_over = liveness::deadline(
                    &extension.key_of(hash),
                    &liveness::lease_of_query(&rows, row, [1, 2, 3, 4]),
                )
                .is_none();
                let (Some(user_id), Some(room)) = (rows.text(row, 5), rows.text(row, 6)) else { continue };
                let stay = (hash, rows.number(row, 1));
                if is_over && self.found.insert(stay) && !self.known.contains(&stay) {
                    rotation.is_over(extension, user_id, room);
                }
            }
            Ok(())
        })
    }

    /// The round has ended: forget those that it did not find, except those that it skipped.
    pub fn end_round(&mut self, left_out: impl Fn(u128) -> bool) {
        self.known.retain(|(hash, _)| left_out(*hash));
        self.known.extend(self.found.drain());
    }
}
