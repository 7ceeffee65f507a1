//! Rooms that sessions ask for: each is counted once, and then published to all who may have its numbers, for as long as
//! somebody asks.

use super::change::key;
use super::counting;
use crate::clock;
use crate::extension::Extension;
use crate::pg::role::as_role;
use crate::pg::subtransaction::Failure;
use crate::shared::error_status::Part;
use crate::worker::commit_gap::Window;
use crate::worker::publisher::Publisher;
use crate::worker::step::Step;
use crate::worker::tenancy::guarded;

pub struct Requests {
    step: Step,
}

impl Requests {
    pub fn new() -> Requests {
        Requests { step: Step::new(Part::Counting, "counting rooms") }
    }

    /// When there is something to do next.
    pub fn next(&self, extension: &Extension) -> u64 {
        let database = extension.database;
        let may_count = database.numbers().has_wishes() && database.owed_resync().is_none();
        if may_count { self.step.not_before() } else { u64::MAX }
    }

    /// Count what is requested. False: the extension is not the one that we know any more.
    pub fn turn(&mut self, extension: &Extension, publisher: &mut Publisher) -> bool {
        if clock::boot() < self.next(extension) {
            return true;
        }
        let counted = publisher.count_asked(extension);
        self.step.note(extension.database, counted).unwrap_or(true)
    }
}

impl Publisher {
    fn count_asked(&mut self, extension: &Extension) -> Result<bool, Failure> {
        let wishes = extension.database.change_numbers(|table| table.take_wishes());
        let now = clock::boot();
        let mut unknown: Vec<Vec<u8>> = Vec::new();
        for name in wishes {
            let room = key(extension, &name);
            match self.rooms.numbers(room) {
                Some(numbers) => self.rooms.show(room, name, numbers, now),
                None if self.rooms.may_show_more() => unknown.push(name),
                None => {}
            }
        }
        if unknown.is_empty() {
            return Ok(true);
        }
        let names: Vec<&[u8]> = unknown.iter().map(Vec::as_slice).collect();
        let counted = guarded(extension, c"counting rooms", || {
            // They will be requested again.
            let Some(window) = Window::open(extension)? else { return Ok(Vec::new()) };
            as_role(extension.owner_role, || counting::count(extension, &names, &window))
        })?;
        let Some(counted) = counted else { return Ok(false) };
        for (name, numbers) in unknown.into_iter().zip(counted) {
            self.rooms.show(key(extension, &name), name, numbers, now);
        }
        Ok(true)
    }
}
