//! On a standby, in each database with the extension: looks at the beats of servers that have a name, and notes when it saw
//! them, by the clock of this server. Readers go by that. It writes nothing, and goes when the standby is promoted.

use super::place::Place;
use super::process::{self, transaction};
use super::settings as own_settings;
use crate::clock;
use crate::error::Result;
use crate::extension::{self, Extension};
use crate::pg::role::as_role;
use crate::pg::spi::{Connection, Statement};
use crate::shared::database::WorkerState;
use crate::shared::error_status::Part;
use crate::shared::{self, Database};
use pgrx::{pg_guard, pg_sys};
use std::time::Duration;

/// How often to look for a beat.
const PAUSE: u64 = 1_000_000;
/// How often to check whether this is still a standby.
const SHORT: Duration = Duration::from_millis(100);

static BEATS: Statement = Statement { sql: c"select node, epoch, beat from presence.node", arguments: &[] };

/// The process's entry point; the argument is the database's oid.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn presence_standby_worker(argument: pg_sys::Datum) {
    process::install_signals();
    let oid = pg_sys::Oid::from(argument.value() as u32);
    process::connect(oid, c"presence_ext standby");
    own_settings::pin_settings(c"off", c"1s");
    let found = transaction(c"starting", || match extension::member_table() {
        Some(_) => extension::current().map(Some),
        None => Ok(None),
    });
    let Ok(Some(extension)) = found else {
        if let Some(database) = Database::find(oid) {
            database.worker.set_state(WorkerState::Absent);
        }
        return;
    };
    let database = extension.database;
    let place = Place {
        database,
        pid: &database.worker.pid,
        process: &database.worker.process,
        leaving: |database| database.worker.set_state(WorkerState::None),
        left: || shared::wake(&shared::control().launcher),
    };
    if !place.take() {
        return;
    }
    database.worker.set_state(WorkerState::Standby);
    let mut next = 0;
    // SAFETY: a look-up in shared memory.
    while unsafe { pg_sys::RecoveryInProgress() } {
        if clock::boot() >= next {
            next = clock::boot() + PAUSE;
            match transaction(c"looking at beats", || look(&extension)) {
                Ok(true) => database.trouble.is_over(Part::Beating),
                // Dropped, or dropped and created again.
                Ok(false) => return,
                Err(failure) => {
                    database.trouble.failed(Part::Beating, &failure.message);
                }
            }
        }
        process::wait(SHORT, false);
    }
}

/// False: the extension is not the one that we know any more.
fn look(known: &Extension) -> Result<bool> {
    if extension::member_table() != Some(known.member) {
        return Ok(false);
    }
    if extension::relation(c"node").is_none() {
        return Ok(true);
    }
    let extension = extension::current()?;
    as_role(extension.owner_role, || {
        let connection = Connection::open()?;
        let beats = connection.run(&BEATS, &[], false)?;
        for row in 0..beats.count {
            if let Some(node) = beats.text(row, 0) {
                let (epoch, beat) = (beats.number(row, 1), beats.number(row, 2));
                extension.database.heard.note(extension.node_hash(node), epoch, beat);
            }
        }
        Ok(true)
    })
}
