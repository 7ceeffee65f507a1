//! The changes of one transaction in their order, with an image of each, in bounded memory.

use super::image::Image;
use super::net_effect::{Change, What};
use super::savepoints::Savepoints;
use crate::lease::slot::Lease;
use std::collections::HashMap;

#[derive(Default)]
pub struct Changes {
    list: Vec<Change>,
    /// The latest change of each member.
    latest: HashMap<u128, usize>,
    savepoints: Savepoints,
    bytes: usize,
    /// The size if all changes were lean. Changes that no longer fit in full are kept lean; from a certain change on
    /// there are more events than the ring could hold even so:
    lean_bytes: usize,
    /// these are not published, so only their leases are kept. Earlier changes would be published, because a savepoint
    /// may be rolled back to there.
    untold_from: Option<usize>,
}

/// The size of a change here, which is about its size in the ring.
fn size(change: &Change) -> usize {
    size_by(change, Image::len)
}

fn lean_size(change: &Change) -> usize {
    size_by(change, if can_be_lean(change) { Image::lean_len } else { Image::len })
}

/// Only members have a row from which the worker can read the rest.
fn can_be_lean(change: &Change) -> bool {
    !matches!(change.what, What::Signal { .. })
}

fn size_by(change: &Change, length: fn(&Image) -> usize) -> usize {
    let old = match &change.what {
        What::Update { old: Some(old), .. } | What::Signal { old: Some(old), .. } => length(old),
        _ => 0,
    };
    128 + length(&change.image) + old
}

fn is_present(what: &What) -> bool {
    matches!(what, What::Update { .. } | What::Quiet { .. })
}

impl Changes {
    /// Add a change, made at this nesting level; the ring holds `limit` bytes.
    pub fn push(&mut self, mut change: Change, level: i32, limit: usize) {
        let length = self.list.len();
        self.savepoints.note(level, length);
        if self.bytes + size(&change) > limit && can_be_lean(&change) {
            change.image.make_lean();
            if let What::Update { old: Some(old), .. } = &mut change.what {
                old.make_lean();
            }
        }
        if self.untold_from.is_none() && self.lean_bytes + lean_size(&change) > limit {
            self.untold_from = Some(length);
        }
        change.previous = self.latest.get(&change.key.hash).copied();
        if let Some(untold_from) = self.untold_from {
            change.image = Default::default();
            if let What::Update { old, .. } = &mut change.what {
                *old = None;
            }
            // Of changes that are not published only the latest lease is needed, since the last savepoint.
            let replaceable = untold_from.max(self.savepoints.begin());
            if let Some(place) = change.previous.filter(|place| *place >= replaceable)
                && is_present(&change.what)
                && is_present(&self.list[place].what)
            {
                change.previous = self.list[place].previous;
                self.list[place] = change;
                return;
            }
        }
        self.bytes += size(&change);
        self.lean_bytes += lean_size(&change);
        self.latest.insert(change.key.hash, length);
        self.list.push(change);
    }

    /// A savepoint was released.
    pub fn release(&mut self, level: i32) {
        self.savepoints.release(level);
    }

    /// A savepoint was rolled back: drop later changes.
    pub fn roll_back(&mut self, level: i32) {
        let Some(length) = self.savepoints.roll_back(level) else { return };
        for change in self.list.drain(length..).rev() {
            self.bytes -= size(&change);
            self.lean_bytes -= lean_size(&change);
            match change.previous {
                Some(previous) => self.latest.insert(change.key.hash, previous),
                None => self.latest.remove(&change.key.hash),
            };
        }
        self.untold_from = self.untold_from.filter(|from| *from < length);
    }

    pub fn all(&self) -> &[Change] {
        &self.list
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether there are more events than the ring could ever hold.
    pub fn too_many(&self) -> bool {
        self.untold_from.is_some()
    }

    /// The changes of a member, the latest first.
    pub fn of(&self, hash: u128) -> impl Iterator<Item = &Change> {
        let first = self.latest.get(&hash).map(|place| &self.list[*place]);
        std::iter::successors(first, |change| change.previous.map(|place| &self.list[place]))
    }

    /// The leases of a member that this transaction has entered or changed, the latest first.
    pub fn each_lease(&mut self, hash: u128, mut body: impl FnMut(&mut Lease) -> bool) {
        let mut at = self.latest.get(&hash).copied();
        while let Some(place) = at {
            let change = &mut self.list[place];
            let goes_on = change.what.lease_mut().is_some_and(&mut body);
            at = change.previous.filter(|_| goes_on);
        }
    }

    pub fn clear(&mut self) {
        self.list.clear();
        self.latest.clear();
        self.savepoints.clear();
        self.bytes = 0;
        self.lean_bytes = 0;
        self.untold_from = None;
    }
}

#[cfg(test)]
mod tests {
    use super::super::image::Field;
    use super::super::record::Reason;
    use super::super::savepoints::tests::{Step, steps};
    use super::*;
    use crate::lease::slot::Key;
    use proptest::prelude::*;

    const LIMIT: usize = 1_000;

    fn change(hash: u128, version: u64, size: usize, leave: bool) -> Change {
        // A fixed part, and twice as much as a state.
        let (bytes, state) = (vec![b'x'; size], vec![b'y'; 2 * size]);
        let lease = Lease { version, ..Lease::default() };
        let what =
            if leave { What::Leave { reason: Reason::Left } } else { What::Update { lease, old: None } };
        Change {
            key: Key { database: 0, relation: 0, hash },
            what,
            version,
            at: 0,
            joined_at: 0,
            seen_at: 0,
            image: Image::new([Some(&bytes), None, None, None, None, Some(&state), None, None]),
            node: None,
            previous: None,
        }
    }

    fn held(changes: &Changes) -> usize {
        changes.all().iter().map(|change| change.image.len()).sum()
    }

    #[test]
    fn what_was_rolled_back_takes_no_room() {
        let mut changes = Changes::default();
        changes.push(change(1, 1, 100, false), 1, LIMIT);
        for version in 2..50 {
            changes.push(change(2, version, 100, false), 2, LIMIT);
        }
        assert!(changes.too_many());
        changes.roll_back(2);
        changes.push(change(3, 50, 100, false), 1, LIMIT);
        assert!(!changes.too_many());
        assert_eq!(changes.all().len(), 2);
        assert!(changes.all().iter().all(|change| change.image.len() > 100), "they are whole");
    }

    #[test]
    fn many_changes_of_a_member_that_are_not_told_are_one() {
        let mut changes = Changes::default();
        for version in 1..10_000 {
            changes.push(change(1, version, 100, false), 1, LIMIT);
        }
        assert!(changes.all().len() < 20);
        assert_eq!(changes.of(1).next().map(|change| change.version), Some(9_999));
    }

    proptest! {
        /// Compared with a list of full changes: a transaction is published exactly if what is left of it fits at its
        /// end, lean, or it never grew beyond; and it holds no more than twice what fits. Only states are left out.
        #[test]
        fn bounded_and_exact(steps in steps((0..3u128, 0..400usize, any::<bool>()))) {
            let (mut changes, mut whole, mut copies) = (Changes::default(), Vec::new(), Vec::new());
            let mut version = 0;
            for step in steps {
                let level = copies.len() as i32 + 1;
                match step {
                    Step::Do((hash, size, leave)) => {
                        version += 1;
                        let change = change(hash, version, size, leave);
                        whole.push(change.clone());
                        changes.push(change, level, LIMIT);
                    }
                    Step::Savepoint => copies.push(whole.clone()),
                    Step::Release => if copies.pop().is_some() { changes.release(level) },
                    Step::RollBack => if let Some(copy) = copies.pop() {
                        whole = copy;
                        changes.roll_back(level);
                    },
                }
                prop_assert!(held(&changes) <= 2 * LIMIT);
                let total: usize = whole.iter().map(lean_size).sum();
                prop_assert_eq!(changes.too_many(), total > LIMIT);
                if !changes.too_many() {
                    prop_assert_eq!(changes.all().len(), whole.len());
                    for (change, whole) in changes.all().iter().zip(&whole) {
                        prop_assert_eq!(change.image.get(Field::Room), whole.image.get(Field::Room));
                        prop_assert!(change.image.is_lean() || change.image == whole.image);
                    }
                }
                for hash in 0..3 {
                    let latest = whole.iter().rev().find(|change| change.key.hash == hash);
                    prop_assert_eq!(changes.of(hash).next().map(|change| change.version), latest.map(|change| change.version));
                }
            }
        }
    }
}
