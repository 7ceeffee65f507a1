//! When to publish: at once when idle, then at most every `presence.notify_delay`.

use super::process::transaction;
use super::publisher::{Outcome, Publisher};
use super::step::Step;
use crate::extension::Extension;
use crate::pg::spi::Connection;
use crate::pg::subtransaction::Failure;
use crate::shared::Database;
use crate::shared::error_status::Part;
use crate::{clock, settings};

/// How often to retry listeners while the NOTIFY queue is full.
const QUEUE_PAUSE: u64 = 200_000;
/// While an event waits for a transaction that has ended for others but not for us.
const GAP_PAUSE: u64 = 1_000;
/// While somebody has locked or dropped the table.
const STALE_PAUSE: u64 = 100_000;

pub struct Publishing {
    pub publisher: Publisher,
    step: Step,
    next: u64,
}

impl Publishing {
    pub fn new(database: &'static Database) -> Publishing {
        Publishing {
            publisher: Publisher::new(database),
            step: Step::new(Part::Publishing, "publishing"),
            next: 0,
        }
    }

    /// When there is something to do next.
    pub fn next(&self, extension: &Extension) -> u64 {
        if self.publisher.has_events(extension) {
            return self.next.max(self.step.not_before());
        }
        // Events that wait have their own times.
        self.publisher.next_attempt(extension).max(self.step.not_before())
    }

    /// Publish a batch, if it is time. False: the extension is not the one that we know any more.
    pub fn turn(&mut self, extension: &Extension) -> bool {
        let now = clock::boot();
        if extension.database.ring().used() == 0 {
            extension.database.numbers().set_current(now);
        }
        now < self.next(extension) || self.publish(extension)
    }

    /// Called before something that makes events: if a quarter of the ring is in use, publish first, whatever the delay.
    pub fn make_room(&mut self, extension: &Extension) -> bool {
        let ring = extension.database.ring();
        let is_needed = ring.used() > ring.size() / 4 && self.step.may_start();
        if is_needed { self.publish(extension) } else { self.turn(extension) }
    }

    fn publish(&mut self, extension: &Extension) -> bool {
        let database = extension.database;
        let began = clock::boot();
        let obeys_cancel = self.step.obeys_cancel();
        let published = self.publisher.publish(extension, obeys_cancel);
        let Some(outcome) = self.step.note(database, published) else { return true };
        self.next = match &outcome {
            Outcome::Published { more: true } => began,
            Outcome::QueueFull(_) => began + QUEUE_PAUSE,
            Outcome::Stale => began + STALE_PAUSE,
            Outcome::Blocked => began + settings::notify_delay().max(GAP_PAUSE),
            _ => began + settings::notify_delay(),
        };
        match outcome {
            Outcome::Published { .. } => database.trouble.is_over(Part::NotifyQueue),
            Outcome::QueueFull(failure) => {
                // The log is written all the while.
                if database.trouble.failed(Part::NotifyQueue, &failure.message) {
                    pgrx::log!(
                        "presence_ext: listeners hear nothing until there is room again, then resync: {}",
                        failure.message
                    );
                }
                // Retried when the queue is full again.
                if let Err(failure) = make_room_in_notify_queue() {
                    database.trouble.failed(Part::NotifyQueue, &failure.message);
                }
            }
            Outcome::Stale => return false,
            Outcome::Nothing | Outcome::Blocked => {}
        }
        true
    }
}

/// Free space in the NOTIFY queue that listeners have read. PostgreSQL does this when somebody sends, which a full
/// queue refuses, and when somebody asks how full it is.
pub fn make_room_in_notify_queue() -> std::result::Result<(), Failure> {
    transaction(c"looking at the NOTIFY queue", || {
        Connection::open()?.run_text(c"select pg_catalog.pg_notification_queue_usage()", false)?;
        Ok(())
    })
}
