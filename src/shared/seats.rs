//! Seats: members that are entering where their number is limited (a room, a user), until their transaction ends.
//!
//! Who enters takes a seat first, and then counts: the members that a new snapshot shows, and the seats of those
//! transactions that are in progress for that same snapshot. A transaction is either, never both: once it is committed its
//! rows are seen, and while it is not its seats are. Of two that enter at once the later one sees the seat of the
//! earlier one, for both take it under one lock.
//!
//! The table does not know PostgreSQL; transactions are numbers. When it is full, a transaction goes without: from then
//! on until it ends the table is `crowded`, and all who enter take a lock on the seat besides.

use crate::event::savepoints::Savepoints;
use crate::lease::table::Locks;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

/// How many entries there are; a transaction needs one for each room or user, however many members enter.
pub const ENTRIES: usize = 1 << 14;

const NIL: u32 = u32::MAX;

/// The seats of one transaction in one place (a room or user). All fields are read and written under the lock.
#[repr(C)]
#[derive(Default)]
pub struct Entry {
    /// Keyed hash of the room or user.
    place: AtomicU64,
    transaction: AtomicU32,
    count: AtomicU32,
    next: AtomicU32,
    /// Head of the chain of places with this hash.
    bucket: AtomicU32,
}

#[repr(C)]
#[derive(Default)]
pub struct Header {
    free: AtomicU32,
    /// Number of transactions that found no entry.
    crowded: AtomicU32,
}

pub struct Seats<L: Locks + 'static> {
    pub header: &'static Header,
    pub entries: &'static [Entry],
    pub lock: L,
}

/// Seats of other transactions in a place: (transaction, count).
pub type Others = Vec<(u32, u32)>;

impl<L: Locks> Seats<L> {
    /// Initialize the memory as an empty table. Nobody else uses it yet.
    pub fn initialize(&self) {
        for (at, entry) in self.entries.iter().enumerate() {
            let next = if at + 1 < self.entries.len() { at as u32 + 1 } else { NIL };
            entry.next.store(next, Relaxed);
            entry.bucket.store(NIL, Relaxed);
        }
        self.header.free.store(if self.entries.is_empty() { NIL } else { 0 }, Relaxed);
        self.header.crowded.store(0, Relaxed);
    }

    fn bucket(&self, place: u64) -> &AtomicU32 {
        &self.entries[place as usize % self.entries.len()].bucket
    }

    /// The entries of a place, each with the link that points to it. The caller holds the lock.
    fn chain(&self, place: u64) -> impl Iterator<Item = (&AtomicU32, &Entry)> {
        let mut link = self.bucket(place);
        std::iter::from_fn(move || {
            let entry = self.entries.get(link.load(Relaxed) as usize)?;
            let found = (link, entry);
            link = &entry.next;
            Some(found)
        })
        .filter(move |(_, entry)| entry.place.load(Relaxed) == place)
    }

    fn others_in(&self, place: u64, transaction: u32) -> Others {
        self.chain(place)
            .map(|(_, entry)| (entry.transaction.load(Relaxed), entry.count.load(Relaxed)))
            .filter(|(other, _)| *other != transaction)
            .collect()
    }

    /// Take one more seat, if there is an entry for it. Returns whether there was, the seats of others, and whether the
    /// table is crowded. A transaction without an entry makes it crowded, once.
    fn take(&self, place: u64, transaction: u32, without: bool) -> (bool, Others, bool) {
        self.lock.exclusive(0, || {
            let others = self.others_in(place, transaction);
            let own = self.chain(place).find(|(_, entry)| entry.transaction.load(Relaxed) == transaction);
            let taken = match own {
                Some((_, entry)) => {
                    entry.count.fetch_add(1, Relaxed);
                    true
                }
                None => match self.entries.get(self.header.free.load(Relaxed) as usize) {
                    Some(entry) => {
                        let at = self.header.free.swap(entry.next.load(Relaxed), Relaxed);
                        entry.place.store(place, Relaxed);
                        entry.transaction.store(transaction, Relaxed);
                        entry.count.store(1, Relaxed);
                        entry.next.store(self.bucket(place).swap(at, Relaxed), Relaxed);
                        true
                    }
                    None => {
                        self.header.crowded.fetch_add(!without as u32, Relaxed);
                        false
                    }
                },
            };
            (taken, others, self.header.crowded.load(Relaxed) > 0)
        })
    }

    fn give_back(&self, place: u64, transaction: u32) {
        self.lock.exclusive(0, || {
            let own = self.chain(place).find(|(_, entry)| entry.transaction.load(Relaxed) == transaction);
            if let Some((link, entry)) = own
                && entry.count.fetch_sub(1, Relaxed) == 1
            {
                let at = link.swap(entry.next.load(Relaxed), Relaxed);
                entry.next.store(self.header.free.swap(at, Relaxed), Relaxed);
            }
        });
    }

    /// The seats of others in a place, and whether the table is crowded.
    fn look(&self, place: u64, transaction: u32) -> (Others, bool) {
        self.lock.exclusive(0, || (self.others_in(place, transaction), self.header.crowded.load(Relaxed) > 0))
    }

    fn no_longer_without(&self) {
        self.lock.exclusive(0, || self.header.crowded.fetch_sub(1, Relaxed));
    }
}

#[derive(Clone, Copy)]
enum Step {
    Taken,
    /// There was no entry left.
    TakenWithout,
    /// The member left again in the same transaction. The seat is kept, because the leave may be rolled back.
    Left,
    /// Another member took the seat over.
    TakenOver,
}

/// The seats of this transaction.
#[derive(Default)]
pub struct Taken {
    transaction: u32,
    /// (member, place, step), oldest first.
    steps: Vec<(u128, u64, Step)>,
    savepoints: Savepoints,
    /// The places of the members that have entered.
    sitting: HashMap<u128, Vec<u64>>,
    /// Seats without a member.
    spare: HashMap<u64, u32>,
    /// It has seats without an entry.
    without: bool,
}

impl Taken {
    /// Take a seat for a member. Returns the seats of others there, and whether a lock is needed in addition.
    pub fn enter<L: Locks>(
        &mut self,
        seats: &Seats<L>,
        transaction: u32,
        level: i32,
        member: u128,
        place: u64,
    ) -> (Others, bool) {
        self.transaction = transaction;
        self.savepoints.note(level, self.steps.len());
        self.sitting.entry(member).or_default().push(place);
        if let Some(spare) = self.spare.get_mut(&place).filter(|spare| **spare > 0) {
            *spare -= 1;
            self.steps.push((member, place, Step::TakenOver));
            return seats.look(place, transaction);
        }
        let (taken, others, crowded) = seats.take(place, transaction, self.without);
        self.without |= !taken;
        self.steps.push((member, place, if taken { Step::Taken } else { Step::TakenWithout }));
        (others, crowded)
    }

    /// The current seats of others in a place.
    pub fn others<L: Locks>(&self, seats: &Seats<L>, place: u64) -> Others {
        seats.look(place, self.transaction).0
    }

    /// A member leaves; if it entered in this transaction, its seats can be taken over.
    pub fn leave(&mut self, level: i32, member: u128) {
        for place in self.sitting.remove(&member).unwrap_or_default() {
            self.savepoints.note(level, self.steps.len());
            self.steps.push((member, place, Step::Left));
            *self.spare.entry(place).or_default() += 1;
        }
    }

    /// Undo the latest step.
    pub fn undo<L: Locks>(&mut self, seats: &Seats<L>) {
        let Some((member, place, step)) = self.steps.pop() else { return };
        match step {
            Step::Taken => seats.give_back(place, self.transaction),
            Step::TakenWithout => {}
            Step::TakenOver => *self.spare.entry(place).or_default() += 1,
            Step::Left => {
                if let Some(spare) = self.spare.get_mut(&place) {
                    *spare -= 1;
                }
                return self.sitting.entry(member).or_default().push(place);
            }
        }
        if let Some(places) = self.sitting.get_mut(&member) {
            places.retain(|other| *other != place);
        }
    }

    /// A savepoint was released.
    pub fn release(&mut self, level: i32) {
        self.savepoints.release(level);
    }

    /// A savepoint was rolled back.
    pub fn roll_back<L: Locks>(&mut self, seats: &Seats<L>, level: i32) {
        if let Some(length) = self.savepoints.roll_back(level) {
            while self.steps.len() > length {
                self.undo(seats);
            }
        }
    }

    /// The transaction has ended.
    pub fn give_back_all<L: Locks>(&mut self, seats: &Seats<L>) {
        for (_, place, step) in self.steps.drain(..) {
            if let Step::Taken = step {
                seats.give_back(place, self.transaction);
            }
        }
        if self.without {
            seats.no_longer_without();
        }
        *self = Taken::default();
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && !self.without
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::savepoints::tests::{Step as Do, steps};
    use proptest::prelude::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct OneLock(Mutex<()>);

    impl Locks for OneLock {
        fn shared<T>(&self, partition: usize, body: impl FnOnce() -> T) -> T {
            self.exclusive(partition, body)
        }

        fn exclusive<T>(&self, _partition: usize, body: impl FnOnce() -> T) -> T {
            let _guard = self.0.lock();
            body()
        }
    }

    fn table(entries: usize) -> Seats<OneLock> {
        let entries = (0..entries).map(|_| Entry::default()).collect::<Vec<_>>().leak();
        let seats = Seats { header: Box::leak(Box::default()), entries, lock: OneLock::default() };
        seats.initialize();
        seats
    }

    fn free(seats: &Seats<OneLock>) -> usize {
        let mut at = seats.header.free.load(Relaxed);
        std::iter::from_fn(|| {
            let entry = seats.entries.get(at as usize)?;
            at = entry.next.load(Relaxed);
            Some(())
        })
        .count()
    }

    #[test]
    fn the_later_one_sees_the_earlier_one() {
        let seats = table(4);
        let (mut one, mut two) = (Taken::default(), Taken::default());
        assert_eq!(one.enter(&seats, 1, 1, 10, 7), (vec![], false));
        assert_eq!(one.enter(&seats, 1, 1, 11, 7), (vec![], false));
        assert_eq!(two.enter(&seats, 2, 1, 12, 7), (vec![(1, 2)], false));
        assert_eq!(two.enter(&seats, 2, 1, 13, 3), (vec![], false), "another place in the same chain");
        one.give_back_all(&seats);
        assert_eq!(two.others(&seats, 7), vec![]);
        two.undo(&seats);
        two.give_back_all(&seats);
        assert_eq!(free(&seats), 4);
    }

    #[test]
    fn who_enters_and_leaves_again_keeps_one_seat() {
        let seats = table(4);
        let mut one = Taken::default();
        for _ in 0..100 {
            one.enter(&seats, 1, 1, 10, 7);
            one.leave(1, 10);
        }
        one.leave(1, 99);
        assert_eq!(seats.look(7, 2).0, [(1, 1)]);
        one.give_back_all(&seats);
        assert_eq!(free(&seats), 4);
    }

    #[test]
    fn a_full_table_is_crowded_until_all_who_go_without_are_done() {
        let seats = table(1);
        let (mut one, mut two, mut three) = (Taken::default(), Taken::default(), Taken::default());
        assert!(!one.enter(&seats, 1, 1, 10, 7).1);
        assert!(two.enter(&seats, 2, 1, 20, 8).1);
        assert!(two.enter(&seats, 2, 1, 21, 9).1);
        assert!(three.enter(&seats, 3, 1, 30, 9).1);
        assert!(one.enter(&seats, 1, 1, 11, 7).1, "who has an entry takes the lock, too");
        two.roll_back(&seats, 1);
        two.give_back_all(&seats);
        assert!(one.enter(&seats, 1, 1, 12, 7).1, "there is still one");
        three.give_back_all(&seats);
        assert!(!one.enter(&seats, 1, 1, 13, 7).1);
        one.give_back_all(&seats);
        assert_eq!(free(&seats), 1);
    }

    proptest! {
        /// Others see at least as many seats as members that this transaction may commit, whatever happens to
        /// savepoints, and never more than it had at once; at the end there are none.
        #[test]
        fn never_too_few(steps in steps((0..6u128, 0..2u64))) {
            let seats = table(8);
            let mut taken = Taken::default();
            let mut here: HashMap<u128, u64> = HashMap::new();
            let (mut copies, mut most) = (Vec::new(), [0; 2]);
            for step in steps {
                let level = copies.len() as i32 + 1;
                match step {
                    Do::Do((member, _)) if here.contains_key(&member) => {
                        here.remove(&member);
                        taken.leave(level, member);
                    }
                    Do::Do((member, place)) => {
                        here.insert(member, place);
                        taken.enter(&seats, 1, level, member, place);
                    }
                    Do::Savepoint => copies.push(here.clone()),
                    Do::Release => if copies.pop().is_some() { taken.release(level) },
                    Do::RollBack => if let Some(copy) = copies.pop() {
                        here = copy;
                        taken.roll_back(&seats, level);
                    },
                }
                for place in 0..2 {
                    let now = here.values().filter(|at| **at == place).count();
                    most[place as usize] = now.max(most[place as usize]);
                    let seen = seats.look(place, 2).0.iter().map(|(_, count)| *count as usize).sum::<usize>();
                    prop_assert!(now <= seen && seen <= most[place as usize]);
                }
            }
            taken.give_back_all(&seats);
            prop_assert_eq!(free(&seats), 8);
        }
    }
}
