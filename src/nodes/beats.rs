//! The triggers of `presence.node`, which fire only where rows are replicated: a beat of a peer counts from the moment at which
//! it is applied here, by the clock of this server. Whoever has seen it has seen all that was sent before.

use super::check::is_name;
use super::trigger_call::{Firing, Operation};
use super::{remains, subscription, triggers, unreachable};
use crate::error::{Error, Result, printable};
use crate::extension::{self, Extension};
use crate::pg::datum::{begins_with, bytes_of};
use crate::pg::function::Call;
use crate::pg::role::as_role;
use crate::pg::spi::Connection;
use crate::shared::heard::Arrival;
use crate::{settings, shared};
use pgrx::pg_sys::{self, Datum, Oid};

const TABLE: &str = "presence.node";
const TYPES: [Oid; 6] = [
    pg_sys::TEXTOID,
    pg_sys::INT8OID,
    pg_sys::INT8OID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::TEXTOID,
    pg_sys::INT8OID,
];

struct Beat {
    node: Vec<u8>,
    epoch: u64,
    beat: u64,
    state: Vec<u8>,
    /// How many members it has, if it knows that just now.
    members: Option<u64>,
}

impl Beat {
    fn of(firing: &Firing) -> Result<Beat> {
        let descriptor = firing.descriptor();
        // SAFETY: a tuple of the descriptor, whose columns are looked at first.
        unsafe {
            if !begins_with(descriptor, &TYPES) {
                return Err(Error::TooManyColumns);
            }
            let get = |column: i32| {
                let mut null = false;
                let value = pg_sys::SPI_getbinval(firing.newest(), descriptor, column, &mut null);
                (!null).then_some(value)
            };
            let text = |column| get(column).map(|value| bytes_of(value)).unwrap_or_default();
            let number = |column| get(column).map_or(0, |value| value.value() as u64);
            let members = get(6).map(|value| value.value() as u64);
            Ok(Beat { node: text(1), epoch: number(2), beat: number(3), state: text(5), members })
        }
    }

    fn is_own(&self) -> bool {
        settings::node_name().as_ref() == Some(&self.node)
    }
}

fn before(call: &Call) -> Result<Option<Datum>> {
    let firing = Firing::of(call, c"node", TABLE, pg_sys::TRIGGER_EVENT_BEFORE)?;
    let beat = Beat::of(&firing)?;
    if beat.is_own() {
        note_echo(&extension::current()?, &beat);
        return firing.skip();
    }
    if !is_name(&beat.node) {
        return firing.skip();
    }
    // A table that is copied again must not stop the stream.
    if firing.operation == Operation::Insert {
        let extension = extension::current()?;
        if subscription::is_copying(c"node") {
            begin_anew(&extension, &beat.node);
        }
        as_role(extension.owner_role, || remains::delete_beat(&Connection::open()?, &beat.node))?;
    }
    firing.proceed()
}

/// What is here of a server is copied anew: until both tables are there its beats say nothing of it.
pub fn begin_anew(extension: &Extension, node: &[u8]) {
    unreachable::exclude_the_worker(extension, node);
    if extension.database.heard.replace(extension.node_hash(node)) {
        extension.database.ask_resync();
    }
}

/// A beat under this server's own name. Of another epoch it is another server's.
fn note_echo(extension: &Extension, beat: &Beat) {
    let is_ours = beat.epoch == extension.database.copy.epoch();
    if !is_ours && !subscription::is_copying(c"node") {
        note_conflict(extension, beat);
    }
}

fn note_conflict(extension: &Extension, beat: &Beat) {
    if extension.database.heard.note_conflict(extension.node_hash(&beat.node)) {
        pgrx::warning!("presence_ext: two servers have the name \"{}\"", printable(&beat.node));
    }
}

fn after(call: &Call) -> Result<Option<Datum>> {
    let firing = Firing::of(call, c"node", TABLE, pg_sys::TRIGGER_EVENT_AFTER)?;
    let beat = Beat::of(&firing)?;
    if firing.operation != Operation::Delete && !beat.is_own() && subscription::is_ready() {
        arrived(&extension::current()?, &beat)?;
    }
    Ok(Some(Datum::from(0)))
}

fn arrived(extension: &Extension, beat: &Beat) -> Result<()> {
    unreachable::exclude_the_worker(extension, &beat.node);
    let (database, name) = (extension.database, extension.node_hash(&beat.node));
    if beat.state == b"down" {
        if !database.heard.hide(name, beat.epoch) {
            note_conflict(extension, beat);
        }
    } else {
        match database.heard.note_arrival(name, beat.epoch, beat.beat) {
            Arrival::Known => {}
            // All that it sent until now is here and was told to nobody.
            Arrival::New => {
                unreachable::forget(extension, &beat.node)?;
                database.ask_resync();
            }
            // The worker tells who is back.
            Arrival::Back => {}
            Arrival::Conflict => {
                note_conflict(extension, beat);
                return Ok(());
            }
        }
        // Where it has none, none was copied either that could have made way for what was here.
        if beat.state == b"up"
            && let Some(members) = beat.members
            && database.heard.is_first_count(name)
            && members == 0
            && triggers::make_way(extension, &beat.node)? > 0
        {
            database.ask_resync();
        }
    }
    shared::wake(&database.worker.process);
    Ok(())
}

crate::sql_function!(presence_node_before, pg_finfo_presence_node_before, before);
crate::sql_function!(presence_node_after, pg_finfo_presence_node_after, after);
