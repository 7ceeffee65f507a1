//! Other servers, as this one's worker sees them: the first that is heard makes `presence.online` show its members. Of one that
//! is not heard any more listeners are told (`silence`).

use super::silence::{self, Telling, Told};
use super::step::Step;
use super::tenancy::guarded;
use crate::clock;
use crate::error::Result;
use crate::extension::{self, Extension};
use crate::pg::role::as_role;
use crate::pg::spi::{Connection, Statement};
use crate::shared::Database;
use crate::shared::error_status::Part;
use pgrx::pg_sys;

/// Somebody reads the view in a transaction that goes on: when to try again.
const PAUSE: u64 = 200_000;
/// Somebody applies what a server has sent, or the event buffer is full.
const SHORT_PAUSE: u64 = 10_000;

pub struct Peers {
    /// As of which state of the catalog `presence.online` shows members of other servers: somebody may make it anew.
    shown_as_of: Option<u64>,
    showing: Step,
    not_before: u64,
    telling: Step,
    told: Option<Telling>,
    tell_not_before: u64,
}

static ARE_SHOWN: Statement = Statement {
    sql: c"select pg_catalog.pg_get_viewdef('presence.online'::pg_catalog.regclass) operator(pg_catalog.=)
                  pg_catalog.pg_get_viewdef('_presence._everywhere'::pg_catalog.regclass)",
    arguments: &[],
};

const SHOW: &std::ffi::CStr = c"do $$ begin
    execute 'create or replace view presence.online with (security_invoker = true) as '
            operator(pg_catalog.||) pg_catalog.pg_get_viewdef('_presence._everywhere'::pg_catalog.regclass);
end $$";

impl Peers {
    pub fn new() -> Peers {
        let showing = Step::new(Part::Peers, "showing members of other servers");
        let telling = Step::new(Part::Silence, "telling that members of other servers are gone or back");
        Peers { shown_as_of: None, showing, not_before: 0, telling, told: None, tell_not_before: 0 }
    }

    pub fn next(&self, database: &Database) -> u64 {
        let show = if self.wants_to_show(database) {
            self.not_before.max(self.showing.not_before())
        } else {
            u64::MAX
        };
        let tell = if database.heard.is_unsettled() {
            self.tell_not_before.max(self.telling.not_before())
        } else {
            u64::MAX
        };
        show.min(tell).min(database.heard.next_silence())
    }

    fn wants_to_show(&self, database: &Database) -> bool {
        database.heard.has_peers() && self.shown_as_of != Some(extension::catalog_epoch())
    }

    /// False: the extension is not the one that we know any more.
    pub fn turn(&mut self, extension: &Extension) -> bool {
        let database = extension.database;
        if clock::boot() < self.next(database) {
            return true;
        }
        if clock::boot() >= database.heard.next_silence() {
            database.heard.take_silent();
        }
        self.tell(extension)
            && (!self.wants_to_show(database)
                || clock::boot() < self.not_before
                || !self.showing.may_start()
                || self.show(extension))
    }

    fn tell(&mut self, extension: &Extension) -> bool {
        let database = extension.database;
        let now = clock::boot();
        if !database.heard.is_unsettled() || now < self.tell_not_before || !self.telling.may_start() {
            return true;
        }
        let activity = c"telling that members of other servers are gone or back";
        let mut telling = self.told.take();
        let told = guarded(extension, activity, || silence::tell(extension, &mut telling));
        match self.telling.note(database, told) {
            Some(Some(Told::Some)) => self.told = telling,
            Some(Some(Told::Busy)) => {
                self.told = telling;
                self.tell_not_before = now + SHORT_PAUSE;
            }
            Some(Some(Told::All)) => telling.into_iter().for_each(|telling| telling.settle(extension)),
            // Its row is not there yet.
            Some(Some(Told::Nothing)) => self.tell_not_before = now + PAUSE,
            Some(None) => return false,
            // Once more from the beginning.
            None => {}
        }
        true
    }

    fn show(&mut self, extension: &Extension) -> bool {
        let epoch = extension::catalog_epoch();
        let shown =
            guarded(extension, c"showing members of other servers", || as_role(extension.owner_role, show));
        match self.showing.note(extension.database, shown) {
            // Whoever has listed before shall list again.
            Some(Some(Shown::Now)) => extension.database.ask_resync(),
            Some(Some(Shown::Already)) => self.shown_as_of = Some(epoch),
            Some(Some(Shown::Busy)) => self.not_before = clock::boot() + PAUSE,
            Some(None) => return false,
            None => {}
        }
        true
    }
}

enum Shown {
    Now,
    Already,
    /// Somebody reads it. Nobody shall wait behind us.
    Busy,
}

fn show() -> Result<Shown> {
    let connection = Connection::open()?;
    if connection.run(&ARE_SHOWN, &[], false)?.get(0, 0).is_some_and(|shown| shown.value() != 0) {
        return Ok(Shown::Already);
    }
    let Some(view) = extension::relation(c"online") else { return Ok(Shown::Busy) };
    // SAFETY: a lock on a relation that exists, until the transaction ends; it waits for nobody.
    if !unsafe { pg_sys::ConditionalLockRelationOid(view, pg_sys::AccessExclusiveLock as i32) } {
        return Ok(Shown::Busy);
    }
    connection.run_text(SHOW, true)?;
    Ok(Shown::Now)
}
