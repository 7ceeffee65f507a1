//! What the server says on the channel that everybody knows: that it is alive, now and then, so that silence means a
//! dead connection; and that all must listen anew, where no name is good any more.
//!
//! A library that reconnects by itself listens to the names that it knows. Whether these are still good says `boot`:
//! as long as it is the same, nobody was deaf but to what was renamed while they were away.

use super::tenancy::guarded;
use crate::event::channel::boot;
use crate::event::payload;
use crate::extension::Extension;
use crate::pg::notify::notify;
use crate::pg::subtransaction::Failure;
use crate::shared::database;
use crate::shared::subscriber_counts::FIXED;
use crate::{clock, settings};
use std::sync::atomic::Ordering::*;

/// `relisten` is repeated this long after a renewal of names, for a LISTEN that was just committing.
const REPEAT: u64 = 5_000_000;
/// After a crash it is repeated with each beacon for this long, while clients reconnect.
const RECONNECTING: u64 = 120_000_000;

#[derive(Default)]
pub struct Beacon {
    /// Time of the last beacon, by the boot clock.
    last: u64,
    repeat: Option<u64>,
}

impl Beacon {
    /// Send what is due, if somebody listens.
    pub fn turn(&mut self, extension: &Extension) -> Result<(), Failure> {
        let database = extension.database;
        if !database.held.holds(FIXED) {
            return Ok(());
        }
        let (now, boot, told) = (clock::boot(), boot(extension), database.beacon.told.load(Acquire));
        let interval = settings::beacon();
        let is_due = interval > 0 && (self.last == 0 || now >= self.last + interval);
        let is_new = told != boot && told != database::Beacon::NONE;
        let is_repeat = self.repeat.is_some_and(|repeat| now >= repeat)
            || (is_due && now < database.beacon.until.load(Acquire));
        if is_due || is_new || is_repeat {
            let seq = database.seq.load(Acquire);
            let told = guarded(extension, c"telling listeners that the server is alive", || {
                if is_new || is_repeat {
                    notify(FIXED, &payload::beacon("relisten", boot, seq))?;
                }
                if is_due { notify(FIXED, &payload::beacon("alive", boot, seq)) } else { Ok(()) }
            })?;
            if told.is_none() {
                return Ok(());
            }
        }
        if is_due {
            self.last = now;
        }
        if is_new {
            database.beacon.told.store(boot, Release);
            database
                .beacon
                .until
                .store(if told == database::Beacon::LOST { now + RECONNECTING } else { 0 }, Release);
            self.repeat = Some(now + REPEAT);
        } else if is_repeat {
            self.repeat = self.repeat.filter(|repeat| now < *repeat);
        }
        Ok(())
    }
}
