//! How many members there are with the same room, member_id and audience, by what was published: so that 1 on
//! enter is "came" and 0 on leave is "went", also when two tabs close at once. And how many a user has in a room.
//!
//! Counted, not queried each time: two concurrent leaves must give 1 and 0, in the order of the log. A count that is
//! not known yet is what the table says by the current snapshot, less what that snapshot sees and nobody has published.

use super::commit_gap::{Ready, Window};
use super::memory;
use super::remembered::Remembered;
use crate::error::Result;
use crate::event::image::{Field, Image};
use crate::event::record::{Kind, Record};
use crate::extension::Extension;
use crate::member::column::Column;
use crate::member::{liveness, scan};
use crate::nodes::{self, row::Shared, scan::Of};
use crate::pg::memory::Scratch;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};

/// Counts of published members, by room, member_id and audience, and by room and user, for those that were asked for.
#[derive(Default)]
pub struct Connections {
    hasher: RandomState,
    counts: Remembered,
    /// For users in rooms, as of this batch: how many of their members have expired and have no leave yet, because the
    /// row is locked or cannot be deleted. Those do not make a user present.
    over: HashMap<u64, u32>,
}

/// The changes of counts by an event.
pub fn effects<'r>(record: &'r Record, mut body: impl FnMut(&'r Image, i32)) {
    match (record.kind, &record.old) {
        (Kind::Enter, _) => body(&record.image, 1),
        (Kind::Leave, _) => body(&record.image, -1),
        (Kind::Update, Some(old)) => {
            body(old, -1);
            body(&record.image, 1);
        }
        _ => {}
    }
}

/// The counts that go with one event.
pub struct Counted {
    pub connections: u32,
    /// Of the old audience, after it lost sight.
    pub hidden: u32,
    /// The user's members in the room, whatever their member_id.
    pub of_user: u32,
    /// The same for the previous owner, if there was another.
    pub of_old_user: u32,
    /// How many of the members of the user, and of the previous owner, are alive.
    pub alive: u32,
    pub alive_of_old: u32,
}

impl Connections {
    /// Load all counts that these records need. In the transaction of the window's snapshot.
    pub fn learn(&mut self, extension: &Extension, records: &[Ready], window: &Window) -> Result<()> {
        // A group and a user, before and after.
        self.counts.make_room(memory::for_counts(), records.len() * 4);
        let (mut member_ids, mut users) = (BTreeSet::new(), BTreeSet::new());
        let mut unknown: HashMap<u64, i64> = HashMap::new();
        for record in records.iter().map(|ready| &ready.record) {
            if !matches!(record.kind, Kind::Enter | Kind::Update | Kind::Leave) {
                continue;
            }
            for image in [Some(&record.image), record.old.as_ref()].into_iter().flatten() {
                let (group, user) = self.keys_of(image);
                let field = |field| image.get(field).unwrap_or_default();
                if !self.counts.touch(group) {
                    unknown.insert(group, 0);
                    member_ids.insert((field(Field::Room), field(Field::MemberId)));
                }
                // An update does not concern the user's count, unless the owner changes.
                let tells_of_user = record.kind != Kind::Update || record.old.is_some();
                if tells_of_user && !self.counts.touch(user) {
                    unknown.insert(user, 0);
                    users.insert((field(Field::Room), field(Field::UserId)));
                }
            }
        }
        self.count_unknown(extension, unknown, member_ids, users, window)?;
        self.look_who_is_over(extension, records)
    }

    fn count_unknown(
        &mut self,
        extension: &Extension,
        mut unknown: HashMap<u64, i64>,
        member_ids: BTreeSet<(&[u8], &[u8])>,
        users: BTreeSet<(&[u8], &[u8])>,
        window: &Window,
    ) -> Result<()> {
        if unknown.is_empty() {
            return Ok(());
        }
        // Counts in the table by the current snapshot. The index is forced: old statistics of such a table are useless
        // to the planner. In the order of the index, because neighbours share pages.
        let mut add = |key| {
            if let Some(count) = unknown.get_mut(&key) {
                *count += 1;
            }
        };
        let scratch = Scratch::new();
        for (room, member_id) in member_ids {
            scratch.within(|| {
                scan::of_member_id(extension, room, member_id, |row| {
                    add(self.group(Some(room), Some(member_id), row.varlena(Column::Audience)));
                    Ok(true)
                })?;
                nodes::scan::of_member_id(extension, Of::Told, room, member_id, |row| {
                    add(self.group(Some(room), Some(member_id), row.varlena(Shared::Audience)));
                    Ok(true)
                })
            })?;
            scratch.clear();
        }
        for (room, user_id) in users {
            scratch.within(|| {
                scan::of_user(extension, user_id, Some(room), |_| {
                    add(self.user(Some(room), Some(user_id)));
                    Ok(true)
                })?;
                nodes::scan::of_user(extension, Of::Told, user_id, Some(room), |_| {
                    add(self.user(Some(room), Some(user_id)));
                    Ok(true)
                })
            })?;
            scratch.clear();
        }
        window.each(|record| {
            self.effects(record, |key, change| {
                if let Some(count) = unknown.get_mut(&key) {
                    *count -= i64::from(change);
                }
            })
        });
        for (key, count) in unknown {
            self.counts.set(key, count.max(0) as u32);
        }
        Ok(())
    }

    /// For users with several members in a room, where these records concern one of them.
    fn look_who_is_over(&mut self, extension: &Extension, records: &[Ready]) -> Result<()> {
        self.over = HashMap::new();
        let mut several = HashMap::new();
        let user = |image: &Image| self.keys_of(image).1;
        let moves = |record: &&Record| record.old.as_ref().is_none_or(|old| user(old) != user(&record.image));
        for record in records.iter().map(|ready| &ready.record).filter(moves) {
            effects(record, |image, change| {
                let user = self.keys_of(image).1;
                let [room, user_id] =
                    [Field::Room, Field::UserId].map(|field| image.get(field).unwrap_or_default());
                let known = self.counts.get(user).unwrap_or(0);
                let (.., most) = several.entry(user).or_insert((room, user_id, known));
                *most += u32::from(change > 0);
            });
        }
        let scratch = Scratch::new();
        for (user, (room, user_id, _)) in several.into_iter().filter(|(_, (.., most))| *most > 1) {
            let mut over = 0;
            scratch.within(|| {
                scan::of_user(extension, user_id, Some(room), |row| {
                    over += u32::from(liveness::deadline(&row.key(extension), &row.lease()).is_none());
                    Ok(true)
                })
            })?;
            scratch.clear();
            if over > 0 {
                self.over.insert(user, over);
            }
        }
        Ok(())
    }

    /// Count an event, and return the resulting counts.
    pub fn count(&mut self, record: &Record) -> Counted {
        self.apply(record, 1);
        let get = |key| self.counts.get(key).unwrap_or(0);
        let (group, user) = self.keys_of(&record.image);
        let alive = |user| get(user).saturating_sub(self.over.get(&user).copied().unwrap_or(0));
        let (hidden, of_old_user, alive_of_old) = record.old.as_ref().map_or((0, 0, 0), |old| {
            let (group, user) = self.keys_of(old);
            (get(group), get(user), alive(user))
        });
        let (connections, of_user, alive) = (get(group), get(user), alive(user));
        Counted { connections, hidden, of_user, of_old_user, alive, alive_of_old }
    }

    /// Undo `count`.
    pub fn take_back(&mut self, record: &Record) {
        self.apply(record, -1);
    }

    fn apply(&mut self, record: &Record, times: i32) {
        let mut changes = Vec::new();
        self.effects(record, |key, change| changes.push((key, change)));
        for (key, change) in changes {
            let count = self.counts.get(key).unwrap_or(0);
            self.counts.set(key, count.saturating_add_signed(change * times));
        }
    }

    /// The changes of counts by an event, by key.
    fn effects(&self, record: &Record, mut add: impl FnMut(u64, i32)) {
        effects(record, |image, change| {
            let (group, user) = self.keys_of(image);
            add(group, change);
            add(user, change);
        });
    }

    fn keys_of(&self, image: &Image) -> (u64, u64) {
        let field = |field| image.get(field);
        (
            self.group(field(Field::Room), field(Field::MemberId), field(Field::Audience)),
            self.user(field(Field::Room), field(Field::UserId)),
        )
    }

    fn group(&self, room: Option<&[u8]>, member_id: Option<&[u8]>, audience: Option<&[u8]>) -> u64 {
        self.hasher.hash_one((0, room, member_id, audience))
    }

    fn user(&self, room: Option<&[u8]>, user_id: Option<&[u8]>) -> u64 {
        self.hasher.hash_one((1, room, user_id))
    }
}
