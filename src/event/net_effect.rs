//! The net effect of one transaction on each member: enter and leave cancel out, leave and enter stay both, several
//! updates become one.

use super::image::Image;
use super::record::{Kind, Reason, Record};
use crate::lease::slot::{Key, Lease, Stay};
use std::collections::HashMap;
use std::rc::Rc;

/// One thing that a statement did to a member.
#[derive(Clone, Debug)]
pub struct Change {
    pub key: Key,
    pub what: What,
    pub version: u64,
    /// timestamptz
    pub at: i64,
    pub joined_at: i64,
    /// timestamptz
    pub seen_at: i64,
    pub image: Image,
    /// The member's node, if that is another server: then it has no lease here.
    pub node: Option<Rc<[u8]>>,
    /// Index of this transaction's previous change of the member.
    pub previous: Option<usize>,
}

#[derive(Clone, Debug)]
pub enum What {
    Enter {
        lease: Lease,
    },
    /// `old`: the member as its old audience saw it, if the audience changed (their leave has the version before).
    Update {
        lease: Lease,
        old: Option<Image>,
    },
    /// A change without an event (unless it revives the member): ttl, session. `copied`: it goes to the copy.
    Quiet {
        lease: Lease,
        copied: bool,
    },
    /// The same data again: at commit it renews this stay.
    Renew {
        stay: Stay,
    },
    Leave {
        reason: Reason,
    },
    /// Not a member's change. `old`: the room for its old audience, if that changed.
    Signal {
        kind: Kind,
        old: Option<Image>,
    },
}

impl What {
    /// The lease of a member that is present after this change.
    pub fn lease(&self) -> Option<&Lease> {
        match self {
            What::Enter { lease } | What::Update { lease, .. } | What::Quiet { lease, .. } => Some(lease),
            What::Renew { .. } | What::Leave { .. } | What::Signal { .. } => None,
        }
    }

    pub fn lease_mut(&mut self) -> Option<&mut Lease> {
        match self {
            What::Enter { lease } | What::Update { lease, .. } | What::Quiet { lease, .. } => Some(lease),
            What::Renew { .. } | What::Leave { .. } | What::Signal { .. } => None,
        }
    }
}

/// What a commit does to the slot of a member.
#[derive(Clone, Debug, PartialEq)]
pub enum LeaseChange {
    Present(Lease),
    Gone(u64),
    Renew(Stay),
}

/// The net effect on one member.
#[derive(Default)]
struct Net<'a> {
    left: Option<Leave<'a>>,
    gone_version: Option<u64>,
    entered: bool,
    /// An update that must be published.
    told: bool,
    /// A change that must go to the copy.
    copied: bool,
    old: Option<(&'a Image, u64)>,
    last: Option<&'a Change>,
    renewed: Option<Stay>,
    is_elsewhere: bool,
}

struct Leave<'a> {
    change: &'a Change,
    reason: Reason,
    image: &'a Image,
}

impl<'a> Net<'a> {
    fn add(&mut self, change: &'a Change) {
        self.is_elsewhere = change.node.is_some();
        match &change.what {
            What::Enter { .. } => {
                self.entered = true;
                self.told = false;
                self.old = None;
                self.last = Some(change);
            }
            What::Update { old, .. } => {
                self.told = true;
                self.last = Some(change);
                if let (Some(old), None, false) = (old, self.old, self.entered) {
                    self.old = Some((old, change.version - 1));
                }
            }
            What::Quiet { copied, .. } => {
                self.copied |= copied;
                self.last = Some(change);
            }
            What::Signal { old, .. } => {
                self.last = Some(change);
                self.old = self.old.or(old.as_ref().map(|old| (old, 0)));
            }
            What::Renew { stay } => self.renewed = Some(*stay),
            What::Leave { reason } => {
                if !self.entered && self.left.is_none() {
                    // Those who saw the member are shown what they saw, not what only this transaction saw.
                    let image = self.old.map_or(&change.image, |(old, _)| old);
                    self.left = Some(Leave { change, reason: *reason, image });
                }
                self.gone_version = Some(change.version);
                self.entered = false;
                self.told = false;
                self.copied = false;
                self.old = None;
                self.last = None;
                self.renewed = None;
            }
        }
    }

    fn lease_change(&self) -> Option<LeaseChange> {
        if self.is_elsewhere {
            return None;
        }
        match (self.last.and_then(|change| change.what.lease()), self.gone_version) {
            (Some(lease), _) => Some(LeaseChange::Present(*lease)),
            (_, Some(version)) if self.left.is_some() => Some(LeaseChange::Gone(version)),
            _ => self.renewed.map(LeaseChange::Renew),
        }
    }

    fn records(&self, xid: u32, ran_out: impl Fn(&Lease) -> bool, out: &mut Vec<Record>) {
        if let Some(Leave { change, reason, image }) = &self.left {
            let mut leave = record(change, Kind::Leave, *reason, image, None, xid, change.version);
            leave.hidden_leave_version = self.gone_version.unwrap_or(change.version);
            out.push(leave);
        }
        let Some(last) = self.last else { return };
        let lease = match &last.what {
            What::Enter { lease } | What::Update { lease, .. } | What::Quiet { lease, .. } => lease,
            What::Signal { kind, .. } => {
                return out.push(record(last, *kind, Reason::None, &last.image, self.old, xid, 0));
            }
            What::Renew { .. } | What::Leave { .. } => return,
        };
        let (generation, revived) = (lease.generation, !self.entered && ran_out(lease));
        if self.entered {
            out.push(record(last, Kind::Enter, Reason::None, &last.image, None, xid, generation));
        } else if self.told || revived {
            let update = record(last, Kind::Update, Reason::None, &last.image, self.old, xid, generation);
            out.push(Record { revived, ..update });
        } else if self.copied {
            let mut quiet = record(last, Kind::Quiet, Reason::None, &last.image, None, xid, generation);
            quiet.image.make_lean();
            out.push(quiet);
        }
    }
}

fn record(
    change: &Change,
    kind: Kind,
    reason: Reason,
    image: &Image,
    old: Option<(&Image, u64)>,
    xid: u32,
    generation: u64,
) -> Record {
    Record {
        kind,
        reason,
        xid,
        relation: change.key.relation,
        hash: change.key.hash,
        version: change.version,
        hidden_leave_version: old.map_or(0, |(_, version)| version),
        generation,
        at: change.at,
        joined_at: change.joined_at,
        seen_at: change.seen_at,
        revived: false,
        image: image.clone(),
        old: old.map(|(image, _)| image.clone()),
        node: change.node.clone(),
    }
}

/// Fold a transaction's changes into changes of leases and records of events. `ran_out`: whether the lease of a changed
/// member has ended for everybody else; the change was made in time and revives the member.
pub fn fold(
    changes: &[Change],
    xid: u32,
    ran_out: impl Fn(&Key, &Lease) -> bool,
) -> (Vec<(Key, LeaseChange)>, Vec<Record>) {
    let mut order: Vec<(Key, Net)> = Vec::with_capacity(changes.len());
    let mut places: HashMap<u128, usize> = HashMap::with_capacity(changes.len());
    for change in changes {
        let place = *places.entry(change.key.hash).or_insert_with(|| {
            order.push((change.key, Net::default()));
            order.len() - 1
        });
        order[place].1.add(change);
    }
    let leases =
        order.iter().filter_map(|(key, net)| net.lease_change().map(|change| (*key, change))).collect();
    let mut records = Vec::new();
    for (key, net) in &order {
        net.records(xid, |lease| ran_out(key, lease), &mut records);
    }
    (leases, records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lease(version: u64) -> Lease {
        Lease {
            deadline: 9,
            last_seen: 1,
            ttl: 8,
            version,
            generation: version,
            owner: 0,
            session: 0,
            reverts_at: 0,
            changed_at: 0,
            pins: 0,
        }
    }

    fn image(text: &str) -> Image {
        Image::new([Some(text.as_bytes()), None, None, None, None, None, None, None])
    }

    fn change(version: u64, what: What) -> Change {
        let key = Key { database: 0, relation: 1, hash: 7 };
        Change {
            key,
            what,
            version,
            at: 0,
            joined_at: 0,
            seen_at: 0,
            image: image(&version.to_string()),
            node: None,
            previous: None,
        }
    }

    fn enter(version: u64) -> Change {
        change(version, What::Enter { lease: lease(version) })
    }

    fn update(version: u64, old: Option<Image>) -> Change {
        change(version, What::Update { lease: lease(version), old })
    }

    fn leave(version: u64) -> Change {
        change(version, What::Leave { reason: Reason::Left })
    }

    fn in_time(_: &Key, _: &Lease) -> bool {
        false
    }

    fn kinds(changes: &[Change]) -> Vec<(Kind, u64)> {
        fold(changes, 1, in_time).1.iter().map(|record| (record.kind, record.version)).collect()
    }

    #[test]
    fn enter_and_leave_is_nothing() {
        assert_eq!(kinds(&[enter(1), update(2, None), leave(3)]), []);
        assert_eq!(fold(&[enter(1), leave(2)], 1, in_time).0, []);
    }

    #[test]
    fn leave_and_enter_is_both() {
        assert_eq!(kinds(&[leave(1), enter(2), update(3, None)]), [(Kind::Leave, 1), (Kind::Enter, 3)]);
    }

    #[test]
    fn updates_are_one_and_keep_the_first_old_audience() {
        let changes = [update(2, Some(image("a"))), update(4, Some(image("b")))];
        let (_, records) = fold(&changes, 1, in_time);
        assert_eq!(records.len(), 1);
        assert_eq!((records[0].version, records[0].hidden_leave_version), (4, 1));
        assert_eq!(records[0].old, Some(image("a")));
    }

    #[test]
    fn a_leave_shows_what_the_old_audience_saw() {
        let (_, records) = fold(&[update(2, Some(image("seen"))), leave(3)], 1, in_time);
        assert_eq!((records.len(), records[0].kind), (1, Kind::Leave));
        assert_eq!(records[0].image, image("seen"));
    }

    #[test]
    fn a_quiet_change_is_for_the_copy_unless_an_event_tells_it() {
        let quiet = |version| change(version, What::Quiet { lease: lease(version), copied: true });
        assert_eq!(kinds(&[quiet(2), quiet(3)]), [(Kind::Quiet, 3)]);
        assert_eq!(kinds(&[update(2, None), quiet(3)]), [(Kind::Update, 3)]);
        assert_eq!(kinds(&[quiet(2), leave(3), enter(4)]), [(Kind::Leave, 3), (Kind::Enter, 4)]);
    }

    #[test]
    fn quiet_changes_and_renewals_tell_nobody() {
        let quiet = change(2, What::Quiet { lease: lease(2), copied: false });
        assert_eq!(
            fold(std::slice::from_ref(&quiet), 1, in_time),
            (vec![(quiet.key, LeaseChange::Present(lease(2)))], vec![])
        );
        let stay = Stay { owner: 7, generation: 1 };
        let renew = change(2, What::Renew { stay });
        assert_eq!(
            fold(std::slice::from_ref(&renew), 1, in_time),
            (vec![(renew.key, LeaseChange::Renew(stay))], vec![])
        );
    }

    #[test]
    fn members_elsewhere_have_no_lease() {
        let elsewhere = |change| Change { node: Some(b"b"[..].into()), ..change };
        for changes in
            [[elsewhere(enter(1)), elsewhere(update(2, None))], [elsewhere(leave(1)), elsewhere(enter(2))]]
        {
            let (leases, records) = fold(&changes, 1, in_time);
            assert_eq!(leases, []);
            assert!(!records.is_empty() && records.iter().all(|record| record.node.as_deref() == Some(b"b")));
        }
    }

    #[test]
    fn any_change_tells_of_a_member_that_comes_back() {
        for what in
            [What::Quiet { lease: lease(2), copied: false }, What::Update { lease: lease(2), old: None }]
        {
            let (_, records) = fold(&[change(2, what)], 1, |_, _| true);
            assert_eq!((records.len(), records[0].kind, records[0].revived), (1, Kind::Update, true));
        }
        let (_, records) = fold(&[enter(2), update(3, None)], 1, |_, _| true);
        assert_eq!((records[0].kind, records[0].revived), (Kind::Enter, false));
    }

    proptest! {
        /// Compared with a simple model: who was present before and after.
        #[test]
        fn at_most_one_leave_and_then_one_enter_or_update(before in any::<bool>(), operations in prop::collection::vec(0..3u8, 0..12)) {
            let mut present = before;
            let mut changes = Vec::new();
            for (index, operation) in operations.iter().enumerate() {
                let version = 10 + index as u64 * 2;
                match (operation, present) {
                    (0, false) => { changes.push(enter(version)); present = true; }
                    (1, true) => changes.push(update(version, None)),
                    (2, true) => { changes.push(leave(version)); present = false; }
                    _ => {}
                }
            }
            let kinds: Vec<Kind> = kinds(&changes).into_iter().map(|(kind, _)| kind).collect();
            let stayed = !changes.iter().any(|change| matches!(change.what, What::Leave { .. }));
            let expected = match (before, present) {
                (false, false) => vec![],
                (false, true) => vec![Kind::Enter],
                (true, false) => vec![Kind::Leave],
                (true, true) if stayed && changes.is_empty() => vec![],
                (true, true) if stayed => vec![Kind::Update],
                (true, true) => vec![Kind::Leave, Kind::Enter],
            };
            prop_assert_eq!(kinds, expected);
        }
    }
}
