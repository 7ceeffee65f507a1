//! Tells listeners that the members of a server that fell silent are gone, and that they are back (shared/heard.rs has the
//! states). Readers go by the clock and need none of this. Part by part: as many at once as fit into the event buffer, each
//! part with the marks of whom it tells of, in one transaction.

use super::sweeper::Budget;
use crate::error::Result;
use crate::event::record::Reason;
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
    /// Which turn of it this tells of.
    turn: u64,
    told: Place,
}

impl Telling {
    /// It is committed, to the last member.
    pub fn settle(self, extension: &Extension) {
        extension.database.heard.settle(extension.node_hash(&self.node), self.turn);
    }
}

#[derive(PartialEq, Eq)]
pub enum Told {
    /// Some; there may be more.
    Some,
    /// Somebody applies what each of them sends, or the event buffer has no room: a little later.
    Busy,
    /// All of this server.
    All,
    /// There is none to tell of.
    Nothing,
}

static NODES: Statement = Statement { sql: c"select node from presence.node order by node", arguments: &[] };

/// In the order of the key, by its index, whatever the planner has heard of the tables.
const BY_INDEX: &std::ffi::CStr =
    c"set local enable_seqscan = off; set local enable_sort = off; set local enable_bitmapscan = off; \
      set local enable_hashjoin = off; set local enable_mergejoin = off";

/// The next part, of a server that has any. In a transaction.
pub fn tell(extension: &Extension, telling: &mut Option<Telling>) -> Result<Told> {
    as_role(extension.owner_role, || {
        crate::injection::stall("telling");
        let connection = Connection::open()?;
        connection.run_text(BY_INDEX, true)?;
        let heard = &extension.database.heard;
        // It may have been forgotten meanwhile, or be back, or gone again.
        telling.take_if(|at| {
            !unreachable::exclude_appliers(extension, &at.node)
                || heard.unsettled(extension.node_hash(&at.node)) != Some(at.turn)
        });
        let at = match telling {
            Some(at) => at,
            None => match next(extension, &connection)? {
                Ok(at) => telling.insert(at),
                Err(told) => return Ok(told),
            },
        };
        if heard.is_silent(extension.node_hash(&at.node)) {
            leaves(extension, &connection, at)
        } else {
            enters(extension, &connection, at)
        }
    })
}

/// A server of whose turn nobody was told yet. One of which much is applied holds up no other.
fn next(extension: &Extension, connection: &Connection) -> Result<std::result::Result<Telling, Told>> {
    let nodes = connection.run(&NODES, &[], false)?;
    let unsettled = |node: &[u8]| extension.database.heard.unsettled(extension.node_hash(node));
    let mut told = Told::Nothing;
    for node in (0..nodes.count).filter_map(|row| nodes.text(row, 0)).filter(|node| unsettled(node).is_some())
    {
        if unreachable::exclude_appliers(extension, node)
            && let Some(turn) = unsettled(node)
        {
            return Ok(Ok(Telling { node: node.to_vec(), turn, told: Place::default() }));
        }
        told = Told::Busy;
    }
    Ok(Err(told))
}

fn leaves(extension: &Extension, connection: &Connection, at: &mut Telling) -> Result<Told> {
    let rows = unreachable::next_present(connection, &at.node, &at.told)?;
    let mut gone = Vec::new();
    each_that_fits(extension, &rows, |row| {
        events::left(extension, row, Reason::Unreachable);
        gone.push(Place::of(row));
    })?;
    let Some(last) = gone.last() else { return Ok(if rows.count == 0 { Told::All } else { Told::Busy }) };
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
    if last.is_none() && rows.count > 0 {
        return Ok(Told::Busy);
    }
    // Behind the last row there are only marks of who has left for good.
    unreachable::remove_up_to(connection, &at.node, last.as_ref())?;
    let Some(last) = last else { return Ok(Told::All) };
    at.told = last;
    Ok(Told::Some)
}

fn each_that_fits(extension: &Extension, rows: &Rows, mut body: impl FnMut(&SharedRow)) -> Result<()> {
    let room = Budget::for_worker(extension);
    let mut bytes = 0;
    for (tuple, descriptor) in rows.tuples() {
        // SAFETY: a row of the table, which lives as long as the rows.
        let row = unsafe { SharedRow::deform(tuple, descriptor) }?;
        let size = row.size_of_event() as u64;
        if !room.has_room(extension, bytes, size) {
            break;
        }
        bytes += size;
        body(&row);
    }
    Ok(())
}
