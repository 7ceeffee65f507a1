//! When users were last seen, in a logged table: written behind, in batches, because each write waits for the disk
//! and the log of events must not.
//!
//! Users are noted when they enter and leave, and when others see them who did not. Those who stay long are written again every ten minutes, some at a
//! time, so that a crash forgets no more than that.

use super::process::transaction;
use crate::clock;
use crate::event::record::{Field, Kind, Record};
use crate::extension::Extension;
use crate::settings;
use crate::spi::{self, Connection, Statement};
use crate::sqlfn::varlena;
use crate::subtransaction::Failure;
use pgrx::pg_sys::{self, Datum};
use std::collections::BTreeMap;
use std::ops::Bound::*;

/// A batch is written when it is this large or this old.
const BATCH: usize = 1_000;
const AGE: u64 = 2_000_000;
/// More are not remembered: a flood of strangers must not eat the memory.
const MOST: usize = 100_000;
/// How often what is too old is thrown away.
const CLEAN: u64 = 600_000_000;

struct Seen {
    at: i64,
    room: Vec<u8>,
    /// text[] as bytes
    audience: Vec<u8>,
}

#[derive(Default)]
pub struct LastSeen {
    noted: BTreeMap<Vec<u8>, Seen>,
    /// Whom the last batch ended with: the next one goes on from there.
    reached: Vec<u8>,
    forgotten: Vec<Vec<u8>>,
    written: u64,
    cleaned: u64,
    /// Where the round through those who stay goes on.
    round: Vec<u8>,
}

static WRITE: Statement = Statement {
    sql:
        c"insert into presence._last_seen as l (user_id, last_seen_at, room, audience) values ($1, $2, $3, $4)
           on conflict (user_id) do update
           set last_seen_at = excluded.last_seen_at, room = excluded.room, audience = excluded.audience
           where l.last_seen_at operator(pg_catalog.<=) excluded.last_seen_at",
    arguments: &[pg_sys::TEXTOID, pg_sys::TIMESTAMPTZOID, pg_sys::TEXTOID, pg_sys::TEXTARRAYOID],
};

static STALE: Statement = Statement {
    sql: c"select distinct on (m.user_id) m.user_id, m.room, m.audience,
                  presence._last_seen_at(m.key_hash, m.version, m.generation, m.deadline, m.session, m.ttl,
                                         m.last_seen_at) as seen, l.last_seen_at
           from (select * from presence.member where user_id operator(pg_catalog.>) $1 order by user_id limit 200) m
                left join presence._last_seen l on l.user_id operator(pg_catalog.=) m.user_id
           order by m.user_id, seen desc nulls last",
    arguments: &[pg_sys::TEXTOID],
};

static FORGET: Statement = Statement {
    sql: c"delete from presence._last_seen where user_id operator(pg_catalog.=) $1",
    arguments: &[pg_sys::TEXTOID],
};

static CLEAN_UP: Statement = Statement {
    sql: c"delete from presence._last_seen l where l.last_seen_at operator(pg_catalog.<) $1
           and not exists (select from presence.member m where m.user_id operator(pg_catalog.=) l.user_id)",
    arguments: &[pg_sys::TIMESTAMPTZOID],
};

impl LastSeen {
    pub fn note(&mut self, records: &[Record]) {
        for record in records {
            let image = &record.image;
            let counts = match record.kind {
                Kind::Enter | Kind::Leave => true,
                Kind::Update => record.old.is_some(),
                Kind::Forget => {
                    let user_id = image.get(Field::UserId).unwrap_or_default();
                    self.noted.remove(user_id);
                    self.forgotten.push(user_id.to_vec());
                    false
                }
                _ => false,
            };
            if !counts {
                continue;
            }
            let (Some(user_id), Some(room), Some(audience)) =
                (image.get(Field::UserId), image.get(Field::Room), image.get(Field::Audience))
            else {
                continue;
            };
            self.note_one(
                user_id,
                Seen { at: record.seen_at, room: room.to_vec(), audience: audience.to_vec() },
            );
        }
    }

    fn note_one(&mut self, user_id: &[u8], seen: Seen) {
        let is_full = self.noted.len() >= MOST;
        match self.noted.get_mut(user_id) {
            Some(earlier) if earlier.at <= seen.at => *earlier = seen,
            Some(_) => {}
            None if !is_full => {
                self.noted.insert(user_id.to_vec(), seen);
            }
            None => {}
        }
    }

    /// Once a second.
    pub fn write(&mut self, extension: &Extension) -> Result<(), Failure> {
        let now = clock::boot();
        if settings::last_seen_retention() == 0 {
            self.noted.clear();
            return Ok(());
        }
        self.forget(extension)?;
        self.note_stale(extension)?;
        if now > self.cleaned + CLEAN {
            self.cleaned = now;
            let before = clock::wall() - settings::last_seen_retention() as i64;
            transaction(c"forgetting when users were seen", || {
                spi::as_role(extension.owner, || {
                    Connection::open()?.run(&CLEAN_UP, &[Some(Datum::from(before))], true).map(|_| ())
                })
            })?;
        }
        if self.noted.is_empty() || (self.noted.len() < BATCH && now < self.written + AGE) {
            return Ok(());
        }
        self.written = now;
        let batch = self.next_batch();
        transaction(c"writing when users were seen", || {
            spi::as_role(extension.owner, || {
                let connection = Connection::open()?;
                for (user_id, seen) in batch.iter().filter_map(|user_id| self.noted.get_key_value(user_id)) {
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
        for user_id in &batch {
            self.noted.remove(user_id);
        }
        self.reached = batch.into_iter().next_back().unwrap_or_default();
        Ok(())
    }

    /// In the order in which everybody would lock the rows, from where the last batch ended.
    fn next_batch(&self) -> Vec<Vec<u8>> {
        let after = self.noted.range::<Vec<u8>, _>((Excluded(&self.reached), Unbounded));
        let mut batch: Vec<Vec<u8>> = after.take(BATCH).map(|(user_id, _)| user_id.clone()).collect();
        if batch.is_empty() {
            batch = self.noted.keys().take(BATCH).cloned().collect();
        }
        batch
    }

    /// `presence.forget`: also what was written between its own DELETE and the last events of the user.
    fn forget(&mut self, extension: &Extension) -> Result<(), Failure> {
        if self.forgotten.is_empty() {
            return Ok(());
        }
        let forgotten = std::mem::take(&mut self.forgotten);
        transaction(c"forgetting users", || {
            spi::as_role(extension.owner, || {
                let connection = Connection::open()?;
                forgotten.iter().try_for_each(|user_id| {
                    connection.run(&FORGET, &[Some(varlena(user_id))], true).map(|_| ())
                })
            })
        })
    }

    /// The next users of the round whose last line is ten minutes old.
    fn note_stale(&mut self, extension: &Extension) -> Result<(), Failure> {
        const TEN_MINUTES: i64 = 600_000_000;
        let mut found = Vec::new();
        let mut last = Vec::new();
        let round = &self.round;
        transaction(c"looking who is still here", || {
            spi::as_role(extension.owner, || {
                let connection = Connection::open()?;
                let rows = connection.run(&STALE, &[Some(varlena(round))], false)?;
                for row in 0..rows.count {
                    let time = |column| rows.get(row, column).map(|time: Datum| time.value() as i64);
                    let (Some(user_id), Some(room), Some(audience)) =
                        (rows.text(row, 0), rows.text(row, 1), rows.array(row, 2))
                    else {
                        continue;
                    };
                    let (user_id, room, audience) = (user_id.to_vec(), room.to_vec(), audience.to_vec());
                    last = user_id.clone();
                    if let Some(at) = time(3)
                        && time(4).is_none_or(|written| written + TEN_MINUTES < at)
                    {
                        found.push((user_id, Seen { at, room, audience }));
                    }
                }
                Ok(())
            })
        })?;
        self.round = last;
        for (user_id, seen) in found {
            self.note_one(&user_id, seen);
        }
        Ok(())
    }
}
