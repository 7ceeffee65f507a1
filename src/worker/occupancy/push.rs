//! Occupancy that is pushed: whoever may have the full numbers of a room (`count_audience`) and listens to it hears when they
//! changed, at most once a second a room. It goes by the channels of the room that they hold anyway.
//!
//! Each push is a transaction of its own, so that it holds up no event. The numbers are those of what was published by then.
//! Nobody hears them longer than they may: the audience is read when the numbers are sent, and a channel that is to get a
//! new name carries none.

use super::change::is_listened_to;
use super::counting;
use super::rooms::{Due, Outcome};
use crate::access::narrowing;
use crate::error::Result;
use crate::event::channel::{Channel, SERVICE, Scope, in_room};
use crate::event::payload;
use crate::event::reach::fewest;
use crate::extension::{self, Extension};
use crate::member::room_defaults;
use crate::pg::encoding::decode;
use crate::pg::memory::Scratch;
use crate::pg::notify::notify;
use crate::pg::role::as_role;
use crate::pg::subtransaction::Failure;
use crate::shared::error_status::Part;
use crate::shared::occupancy::Numbers;
use crate::worker::commit_gap::Window;
use crate::worker::memory;
use crate::worker::publisher::Publisher;
use crate::worker::routing::{self, memory_of};
use crate::worker::step::Step;
use crate::worker::tenancy::guarded;
use crate::{clock, settings};
use pgrx::pg_sys;
use std::sync::atomic::Ordering::*;

/// At most this many rooms in one transaction.
const MOST_ROOMS: usize = 256;

pub struct Pushing {
    step: Step,
    next: u64,
}

/// The channels on which a room's counts are sent.
#[derive(Default)]
struct Hearers {
    whole: Vec<String>,
    /// Doorbells for listeners in the audience by a token without a channel there.
    bells: Vec<String>,
    /// Some channels need new names.
    some_are_stale: bool,
}

impl Pushing {
    pub fn new() -> Pushing {
        Pushing { step: Step::new(Part::Numbers, "telling how many there are"), next: 0 }
    }

    /// When there is something to do next.
    pub fn next(&self, extension: &Extension, publisher: &Publisher) -> u64 {
        // Events were lost: their `resync` comes first.
        if extension.database.owed_resync().is_some() {
            return u64::MAX;
        }
        publisher.rooms.next().max(self.next).max(self.step.not_before())
    }

    /// Send what is due. False: the extension is not the one that we know any more.
    pub fn turn(&mut self, extension: &Extension, publisher: &mut Publisher) -> bool {
        let now = clock::boot();
        publisher.rooms.clean(now, |room| is_listened_to(extension, room));
        if now < self.next(extension, publisher) {
            return true;
        }
        let due = publisher.rooms.due(now, MOST_ROOMS);
        let is_all = due.len() < MOST_ROOMS;
        self.next = if is_all { now + settings::notify_delay() } else { now };
        let told = publisher.tell_numbers(extension, &due);
        if told.is_err() {
            publisher.rooms.note_progress(false);
        }
        self.step.note(extension.database, told).unwrap_or(true)
    }
}

/// The result of one transaction.
#[derive(Default)]
struct Told {
    outcomes: Vec<(u64, Outcome)>,
    notifications: u64,
    memory: usize,
}

impl Publisher {
    /// False: the extension is not the one that we know any more.
    fn tell_numbers(&mut self, extension: &Extension, due: &[Due]) -> std::result::Result<bool, Failure> {
        let began = clock::boot();
        let told = guarded(extension, c"telling how many there are", || {
            let Some(window) = Window::open(extension)? else { return Ok(Told::default()) };
            // As before a batch is published.
            self.rights.look(extension)?;
            let leaves = window.take(0, 0, false, |_| false).leaves;
            self.rotation.will_be_told(extension, leaves.iter().filter_map(|place| window.record(*place)));
            as_role(extension.owner_role, || self.tell(extension, &window, due))
        })?;
        let Some(told) = told else { return Ok(false) };
        extension.database.counters.notifications.fetch_add(told.notifications, Relaxed);
        self.rooms
            .note_progress(told.outcomes.iter().any(|(_, outcome)| !matches!(outcome, Outcome::NotNow)));
        for (room, outcome) in told.outcomes {
            self.rooms.settle(room, outcome, began);
        }
        Ok(true)
    }

    fn tell(&self, extension: &Extension, window: &Window, due: &[Due]) -> Result<Told> {
        let mut told = Told::default();
        if routing::rings_only(extension)? {
            // Unless that is only until settings have been read.
            let is_passing = narrowing::news(extension.database).is_some();
            let outcome = if is_passing { Outcome::NotNow } else { Outcome::Nobody };
            told.outcomes.extend(due.iter().map(|due| (due.room, outcome)));
            return Ok(told);
        }
        if !may_read_rooms() {
            told.outcomes.extend(due.iter().map(|due| (due.room, Outcome::NotNow)));
            return Ok(told);
        }
        let mut hearing: Vec<(&Due, Hearers)> = Vec::new();
        let scratch = Scratch::new();
        for due in due {
            if !due.is_news {
                told.outcomes.push((due.room, Outcome::NoNews));
                continue;
            }
            let audience = scratch.within(|| room_defaults::count_audience(&due.name))?;
            scratch.clear();
            let Some(audience) = audience else {
                told.outcomes.push((due.room, Outcome::Nobody));
                continue;
            };
            let hearers = self.hearers(extension, &due.name, &audience);
            match hearers {
                Hearers { some_are_stale: true, .. } if hearers.is_nobody() => {
                    told.outcomes.push((due.room, Outcome::NotNow));
                }
                _ if hearers.is_nobody() => told.outcomes.push((due.room, Outcome::NobodyYet)),
                _ => hearing.push((due, hearers)),
            }
        }
        let unknown: Vec<&[u8]> =
            hearing.iter().filter(|(due, _)| due.numbers.is_none()).map(|(due, _)| &*due.name).collect();
        let mut counted = match unknown.is_empty() {
            true => Vec::new(),
            false => counting::count(extension, &unknown, window)?,
        }
        .into_iter();
        for (due, hearers) in hearing {
            // In the order of the requests.
            let Some(numbers) = due.numbers.or_else(|| counted.next()) else { continue };
            if told.memory > memory::for_notifications() {
                continue;
            }
            told.tell(extension, due, &hearers, numbers)?;
            let outcome =
                if hearers.some_are_stale { Outcome::ToldSome(numbers) } else { Outcome::Told(numbers) };
            told.outcomes.push((due.room, outcome));
        }
        Ok(told)
    }

    fn hearers(&self, extension: &Extension, room: &[u8], audience: &[Vec<u8>]) -> Hearers {
        let mut hearers = Hearers::default();
        let mut held = |token: &[u8]| {
            let channel = Channel::new(extension, Scope::Room(room), token);
            if !channel.is_held(extension) {
                return None;
            }
            let is_stale = self.rotation.is_stale(extension, &channel);
            hearers.some_are_stale |= is_stale;
            (!is_stale).then(|| channel.name(extension))
        };
        let (mut whole, mut bells) = (Vec::new(), Vec::new());
        for token in fewest(audience) {
            let (doorbells, has_channel) = in_room(room, &token);
            bells.extend(doorbells.iter().filter_map(|doorbell| held(doorbell)));
            whole.extend(has_channel.then(|| held(&token)).flatten());
        }
        whole.extend(held(SERVICE));
        bells.sort_unstable();
        bells.dedup();
        (hearers.whole, hearers.bells) = (whole, bells);
        hearers
    }
}

impl Hearers {
    fn is_nobody(&self) -> bool {
        self.whole.is_empty() && self.bells.is_empty()
    }
}

impl Told {
    fn tell(&mut self, extension: &Extension, due: &Due, hearers: &Hearers, numbers: Numbers) -> Result<()> {
        let whole = payload::occupancy(&decode(&due.name), numbers.members, numbers.users);
        let bell = payload::doorbell(extension.database.seq.load(Acquire));
        for (names, payload) in [(&hearers.whole, whole), (&hearers.bells, bell)] {
            for name in names {
                notify(name, &payload)?;
                self.notifications += 1;
                self.memory += memory_of(payload.len());
            }
        }
        Ok(())
    }
}

/// Do not wait for a transaction that changes the table `room`: events would wait, too.
fn may_read_rooms() -> bool {
    extension::relation(c"room").is_some_and(|table| {
        // SAFETY: a lock on an oid, kept until the transaction ends.
        unsafe { pg_sys::ConditionalLockRelationOid(table, pg_sys::AccessShareLock as i32) }
    })
}
