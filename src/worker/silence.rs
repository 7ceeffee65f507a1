//! Tells listeners that the members of a server that fell silent are gone, and that they are back (shared/heard.rs has the
//! states). Readers go by the clock and need none of this. Part by part: as many at once as fit into the event buffer, each
//! part with the marks of whom it tells of, in one transaction.

use super::sweeper::Budget;
use crate::error::Result;
use crate::event::record::{Reason, size_of_record_of};
use crate::extension::Extension;
use crate::nodes::events;
use crate::nodes::row::{Shared, SharedRow};
use crate::nodes::unreachable::{self, Place};
use crate::pg::role::as_role;
use crate::pg::rows::Rows;
use crate::pg::spi::{Connection, Statement};

/// How far this is with a server.
pub struct Telling {
    node: Vec<u8>,
    is_silent: bool,
    told: Place,
}

#[derive(PartialEq, Eq)]
pub enum Told {
    /// Some; there may be more.
    Some,
    /// Somebody applies what a peer sends, or the event buffer has no room: a little later.
    Busy,
    All,
}

static NODES: Statement = Statement { sql: c"select node from presence.node order by node", arguments: &[] };

/// In the order of the key, by its index, whatever the planner has heard of the tables.
const BY_INDEX: &std::ffi::CStr =
    c"set local enable_seqscan = off; set local enable_sort = off; set local enable_bitmapscan = off; \
      set local enable_hashjoin = off; set local enable_mergejoin = off";

/// The next part, of a server that has any. In a transaction.
pub fn tell(extension: &Extension, telling: &mut Option<Telling>) -> Result<Told> {
    as_role(extension.owner_role, || {
        if !unreachable::exclude_appliers() {
            return Ok(Told::Busy);
        }
        let connection = Connection::open()?;
        connection.run_text(BY_INDEX, true)?;
        let heard = &extension.database.heard;
        let name = |node: &[u8]| extension.node_hash(node);
        // It may have been forgotten meanwhile, or be back, or gone again.
        telling.take_if(|at| {
            !heard.is_unsettled_of(name(&at.node)) || heard.is_silent(name(&at.node)) != at.is_silent
        });
        let Some(at) = (match telling {
            Some(at) => Some(at),
            None => unsettled(extension, &connection)?.map(|node| {
                let is_silent = heard.is_silent(name(&node));
                telling.insert(Telling { node, is_silent, told: Place::default() })
            }),
        }) else {
            return Ok(Told::All);
        };
        let told = if at.is_silent {
            leaves(extension, &connection, at)
        } else {
            enters(extension, &connection, at)
        }?;
        if told == Told::All {
            heard.settle(name(&at.node));
            *telling = None;
            return Ok(Told::Some);
        }
        Ok(told)
    })
}

fn unsettled(extension: &Extension, connection: &Connection) -> Result<Option<Vec<u8>>> {
    let nodes = connection.run(&NODES, &[], false)?;
    let is_unsettled = |node: &&[u8]| extension.database.heard.is_unsettled_of(extension.node_hash(node));
    let found = (0..nodes.count).filter_map(|row| nodes.text(row, 0)).find(is_unsettled).map(<[u8]>::to_vec);
    Ok(found)
}

fn leaves(extension: &Extension, connection: &Connection, at: &mut Telling) -> Result<Told> {
    let rows = unreachable::next_present(connection, &at.node, &at.told)?;
    let mut gone = Vec::new();
    each_that_fits(extension, &rows, |row| {
        events::left(extension, row, Reason::Unreachable);
        gone.push(Place::of(row));
    })?;
    let Some(last) = gone.last() else { return Ok(all_or_busy(&rows)) };
    at.told = last.clone();
    unreachable::add_all(connection, &at.node, &gone)?;
    Ok(Told::Some)
}

fn enters(extension: &Extension, connection: &Connection, at: &mut Telling) -> Result<Told> {
    let rows = unreachable::next_gone(connection, &at.node, &at.told)?;
    let mut last = None;
    each_that_fits(extension, &rows, |row| {
        if row.get(Shared::Reason).is_none() {
            events::returned(extension, row);
        }
        last = Some(Place::of(row));
    })?;
    let told = if last.is_some() { Told::Some } else { all_or_busy(&rows) };
    match last {
        None if told == Told::Busy => {}
        place => {
            unreachable::remove_up_to(connection, &at.node, place.as_ref())?;
            at.told = place.unwrap_or_default();
        }
    }
    Ok(told)
}

fn all_or_busy(rows: &Rows) -> Told {
    if rows.count == 0 { Told::All } else { Told::Busy }
}

fn each_that_fits(extension: &Extension, rows: &Rows, mut body: impl FnMut(&SharedRow)) -> Result<()> {
    let room = Budget::for_worker(extension);
    let mut bytes = 0;
    for (tuple, descriptor) in rows.tuples() {
        // SAFETY: a row of the table, which lives as long as the rows.
        let row = unsafe { SharedRow::deform(tuple, descriptor) }?;
        let size = size_of_record_of(&row.image()) as u64;
        if !room.has_room(extension, bytes, size) {
            break;
        }
        bytes += size;
        body(&row);
    }
    Ok(())
}
