//! When users were last seen, in a logged table: written behind, in batches, because each write waits for the disk
//! and the log of events must not.
//!
//! Users are noted when they enter and leave, and when others see them who did not. Those who stay long are written
//! again every ten minutes, some at a time, so that a crash forgets no more than that.

use super::memory;
use super::process::transaction;
use super::retry::by_halves;
use super::step::Step;
use crate::event::image::Field;
use crate::event::record::{Kind, Record};
use crate::extension::Extension;
use crate::pg::datum::varlena;
use crate::pg::encoding::decode;
use crate::pg::role::as_role;
use crate::pg::spi::{Connection, Statement};
use crate::pg::subtransaction::Failure;
use crate::shared::error_status::Part;
use crate::{clock, settings};
use pgrx::pg_sys::{self, Datum};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound::*;

/// A batch is written when it has this size or age.
const BATCH: usize = 1_000;
const AGE: u64 = 2_000_000;
/// Memory of an entry in addition to its texts.
const ENTRY: usize = 200;
/// How often old rows are deleted.
const CLEAN: u64 = 600_000_000;

struct Seen {
    at: i64,
    room: Vec<u8>,
    /// text[] as bytes
    audience: Vec<u8>,
}

impl Seen {
    fn size(&self, user_id: &[u8]) -> usize {
        user_id.len() + self.room.len() + self.audience.len() + ENTRY
    }
}

pub struct LastSeen {
    noted: BTreeMap<Vec<u8>, Seen>,
    /// The memory in use. Entries beyond the limit are not kept, so that a flood of unknown users cannot exhaust it.
    size: usize,
    /// The last user of the previous batch: the next one starts after it.
    reached: Vec<u8>,
    forgotten: BTreeSet<Vec<u8>>,
    written: u64,
    cleaned: u64,
    /// The page of the table where the round through users who stay continues.
    round: u32,
    forgetting: Step,
    looking: Step,
    cleaning: Step,
    writing: Step,
}

static WRITE: Statement = Statement {
    sql:
        c"insert into _presence._last_seen as l (user_id, last_seen_at, room, audience) values ($1, $2, $3, $4)
           on conflict (user_id) do update
           set last_seen_at = excluded.last_seen_at, room = excluded.room, audience = excluded.audience
           where l.last_seen_at operator(pg_catalog.<=) excluded.last_seen_at",
    arguments: &[pg_sys::TEXTOID, pg_sys::TIMESTAMPTZOID, pg_sys::TEXTOID, pg_sys::TEXTARRAYOID],
};

/// Of the members on some pages of the table: in its order, since to fetch each by an index costs ten times as much.
static STALE: Statement = Statement {
    sql: c"select distinct on (m.user_id) m.user_id, m.room, m.audience,
                  _presence._last_seen_at(m.key_hash, m.version, m.generation, m.deadline, m.session, m.ttl,
                                         m.last_seen_at) as seen,
                  (select l.last_seen_at from _presence._last_seen l where l.user_id operator(pg_catalog.=) m.user_id)
           from presence.member m
           where m.ctid operator(pg_catalog.>=) $1 and m.ctid operator(pg_catalog.<) $2
           order by m.user_id, seen desc nulls last",
    arguments: &[pg_sys::TIDOID, pg_sys::TIDOID],
};

static PAGES: Statement = Statement {
    sql: c"select pg_catalog.pg_relation_size('presence.member')
                  operator(pg_catalog./) pg_catalog.current_setting('block_size')::pg_catalog.int8",
    arguments: &[],
};

/// `presence.forget`.
pub static FORGET: Statement = Statement {
    sql: c"delete from _presence._last_seen where user_id operator(pg_catalog.=) $1",
    arguments: &[pg_sys::TEXTOID],
};

static CLEAN_UP: Statement = Statement {
    sql: c"delete from _presence._last_seen l where l.last_seen_at operator(pg_catalog.<) $1
           and not exists (select from presence.member m where m.user_id operator(pg_catalog.=) l.user_id)",
    arguments: &[pg_sys::TIMESTAMPTZOID],
};

impl LastSeen {
    pub fn new() -> LastSeen {
        LastSeen {
            noted: BTreeMap::new(),
            size: 0,
            reached: Vec::new(),
            forgotten: BTreeSet::new(),
            written: 0,
            cleaned: 0,
            round: 0,
            forgetting: Step::new(Part::LastSeenForget, "forgetting users"),
            looking: Step::new(Part::LastSeenLook, "looking who is still here"),
            cleaning: Step::new(Part::LastSeenClean, "forgetting when users were seen"),
            writing: Step::new(Part::LastSeen, "writing when users were seen"),
        }
    }

    pub fn note(&mut self, record: &Record) {
        let image = &record.image;
        let counts = match record.kind {
            Kind::Enter | Kind::Leave => true,
            Kind::Update => record.old.is_some(),
            Kind::Forget => {
                let user_id = image.get(Field::UserId).unwrap_or_default();
                self.forget(user_id);
                self.forgotten.insert(user_id.to_vec());
                false
            }
            _ => false,
        };
        if counts
            && let (Some(user_id), Some(room), Some(audience)) =
                (image.get(Field::UserId), image.get(Field::Room), image.get(Field::Audience))
        {
            let seen = Seen { at: record.seen_at, room: room.to_vec(), audience: audience.to_vec() };
            self.note_one(user_id, seen);
        }
    }

    fn note_one(&mut self, user_id: &[u8], seen: Seen) {
        if self.noted.get(user_id).is_some_and(|earlier| earlier.at > seen.at) {
            return;
        }
        self.forget(user_id);
        let size = seen.size(user_id);
        if self.size + size <= memory::for_last_seen() {
            self.size += size;
            self.noted.insert(user_id.to_vec(), seen);
        }
    }

    /// Nothing more must be written about this user.
    fn forget(&mut self, user_id: &[u8]) {
        if let Some(seen) = self.noted.remove(user_id) {
            self.size -= seen.size(user_id);
        }
    }

    /// Called once a second.
    pub fn write(&mut self, extension: &Extension) {
        let database = extension.database;
        if self.forgetting.may_start() && !self.forgotten.is_empty() {
            let forgotten = self.forget_written(extension);
            self.forgetting.note(database, forgotten);
        }
        if self.looking.may_start() {
            let looked = self.note_stale(extension);
            self.looking.note(database, looked);
        }
        let now = clock::boot();
        if self.cleaning.may_start() && now > self.cleaned + CLEAN {
            let before = clock::wall() - settings::last_seen_retention() as i64;
            let cleaned = transaction(c"forgetting when users were seen", || {
                as_role(extension.owner_role, || {
                    Connection::open()?.run(&CLEAN_UP, &[Some(Datum::from(before))], true).map(|_| ())
                })
            });
            if self.cleaning.note(database, cleaned).is_some() {
                self.cleaned = now;
            }
        }
        let is_due = self.noted.len() >= BATCH || (!self.noted.is_empty() && now >= self.written + AGE);
        if self.writing.may_start() && is_due {
            self.written = now;
            let written = self.write_batch(extension);
            self.writing.note(database, written);
        }
    }

    fn write_batch(&mut self, extension: &Extension) -> Result<(), Failure> {
        let batch = self.next_batch();
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        let noted = &self.noted;
        let attempt = |users: &[Vec<u8>]| {
            transaction(c"writing when users were seen", || {
                as_role(extension.owner_role, || {
                    let connection = Connection::open()?;
                    connection.run_text(c"set constraints all immediate", true)?;
                    for (user_id, seen) in users.iter().filter_map(|user_id| noted.get_key_value(user_id)) {
                        let values = [
                            Some(varlena(user_id)),
                            Some(Datum::from(seen.at)),
                            Some(varlena(&seen.room)),
                            Some(varlena(&seen.audience)),
                        ];
                        connection.run(&WRITE, &values, true)?;
                    }
                    Ok(())
                })
            })?;
            done.extend_from_slice(users);
            Ok(())
        };
        let alone = |user_id: &Vec<u8>, failure: Failure| failed.push((user_id.clone(), failure));
        let ended = by_halves(&batch, self.writing.obeys_cancel(), attempt, alone);
        done.iter().for_each(|user_id| self.forget(user_id));
        let mut later = Ok(());
        for (user_id, failure) in failed {
            if failure.passing {
                later = Err(failure);
            } else {
                pgrx::warning!(
                    "presence_ext cannot write when a user was seen ({}): {}",
                    decode(&user_id),
                    failure.message
                );
                self.forget(&user_id);
            }
        }
        ended?;
        self.reached = batch.into_iter().next_back().unwrap_or_default();
        later
    }

    /// In lock order, starting after the previous batch.
    fn next_batch(&self) -> Vec<Vec<u8>> {
        let after = self.noted.range::<Vec<u8>, _>((Excluded(&self.reached), Unbounded));
        let mut batch: Vec<Vec<u8>> = after.take(BATCH).map(|(user_id, _)| user_id.clone()).collect();
        if batch.is_empty() {
            batch = self.noted.keys().take(BATCH).cloned().collect();
        }
        batch
    }

    /// `presence.forget`: also deletes what was written between its own DELETE and the user's last events.
    fn forget_written(&mut self, extension: &Extension) -> Result<(), Failure> {
        let forgotten: Vec<Vec<u8>> = self.forgotten.iter().cloned().collect();
        let (mut done, mut later) = (Vec::new(), Ok(()));
        let attempt = |users: &[Vec<u8>]| {
            transaction(c"forgetting users", || {
                as_role(extension.owner_role, || {
                    let connection = Connection::open()?;
                    users.iter().try_for_each(|user_id| {
                        connection.run(&FORGET, &[Some(varlena(user_id))], true).map(|_| ())
                    })
                })
            })?;
            done.extend_from_slice(users);
            Ok(())
        };
        let ended = by_halves(&forgotten, self.forgetting.obeys_cancel(), attempt, |_, failure| {
            later = Err(failure);
        });
        done.iter().for_each(|user_id| {
            self.forgotten.remove(user_id);
        });
        ended?;
        later
    }

    /// The next users of the round whose row is ten minutes old. A round takes as long.
    fn note_stale(&mut self, extension: &Extension) -> Result<(), Failure> {
        const TEN_MINUTES: i64 = 600_000_000;
        let mut found = Vec::new();
        let from = self.round;
        let next = transaction(c"looking who is still here", || {
            as_role(extension.owner_role, || {
                let connection = Connection::open()?;
                let pages = connection.run(&PAGES, &[], false)?.number(0, 0) as u32;
                let to = from.saturating_add(pages / 600 + 8);
                let [mut first, mut end] = [from, to].map(beginning_of_page);
                let range = [Some(Datum::from(&raw mut first)), Some(Datum::from(&raw mut end))];
                let rows = connection.run(&STALE, &range, false)?;
                for row in 0..rows.count {
                    let time = |column| rows.get(row, column).map(|time: Datum| time.value() as i64);
                    let (Some(user_id), Some(room), Some(audience)) =
                        (rows.text(row, 0), rows.text(row, 1), rows.array(row, 2))
                    else {
                        continue;
                    };
                    if let Some(at) = time(3)
                        && time(4).is_none_or(|written| written.saturating_add(TEN_MINUTES) < at)
                    {
                        let seen = Seen { at, room: room.to_vec(), audience: audience.to_vec() };
                        found.push((user_id.to_vec(), seen));
                    }
                }
                Ok(if to < pages { to } else { 0 })
            })
        })?;
        self.round = next;
        for (user_id, seen) in found {
            self.note_one(&user_id, seen);
        }
        Ok(())
    }
}

fn beginning_of_page(page: u32) -> pg_sys::ItemPointerData {
    let ip_blkid = pg_sys::BlockIdData { bi_hi: (page >> 16) as u16, bi_lo: page as u16 };
    pg_sys::ItemPointerData { ip_blkid, ip_posid: 0 }
}
