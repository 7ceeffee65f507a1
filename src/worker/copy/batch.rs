//! What a batch of events means for the copy.
//!
//! A member that entered or changed is copied as its row is now, which may be newer than the event: then the next one finds
//! nothing left to do. A leave is an UPDATE, which says why and how, and a DELETE, which carries only the key, in one
//! transaction: whoever follows the table hears both.

use super::compare::write;
use crate::error::Result;
use crate::event::image::Field;
use crate::event::record::{Kind, Record};
use crate::pg::datum::{array, nullable_array, text_array, uuids, varlena};
use crate::pg::spi::{Connection, Statement, statement};
use pgrx::pg_sys::{self, Datum};

pub struct Batch {
    is_wanted: bool,
    changed: Vec<u128>,
    left: Vec<Left>,
}

struct Left {
    room: Vec<u8>,
    member_id: Vec<u8>,
    connection_id: Vec<u8>,
    reason: Option<&'static str>,
    /// jsonb; None: unchanged.
    state: Option<Vec<u8>>,
    version: u64,
    at: i64,
}

/// A row whose version is as new as the leave belongs to a later stay.
macro_rules! left {
    ($what:literal) => {
        statement!(
            [
                pg_sys::TEXTOID,
                pg_sys::TEXTARRAYOID,
                pg_sys::TEXTARRAYOID,
                pg_sys::TEXTARRAYOID,
                pg_sys::TEXTARRAYOID,
                pg_sys::JSONBARRAYOID,
                pg_sys::INT8ARRAYOID,
                pg_sys::TIMESTAMPTZARRAYOID
            ],
            $what,
            " rows from (pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4), pg_catalog.unnest($5),
                         pg_catalog.unnest($6), pg_catalog.unnest($7), pg_catalog.unnest($8))
                  as l (room, member_id, connection_id, reason, state, version, at)
              where s.node operator(pg_catalog.=) $1 and s.room operator(pg_catalog.=) l.room
                and s.member_id operator(pg_catalog.=) l.member_id
                and s.connection_id operator(pg_catalog.=) l.connection_id
                and s.generation operator(pg_catalog.<) l.version"
        )
    };
}

static SAY: Statement = left!(
    "update presence.shared s
     set reason = l.reason, state = coalesce(l.state, s.state), version = l.version, updated_at = l.at from"
);
static GO: Statement = left!("delete from presence.shared s using");

static CHANGE: Statement = write!(
    [pg_sys::TEXTOID, pg_sys::UUIDARRAYOID],
    "pg_catalog.count(*) from written",
    "select * from presence.member where key_hash operator(pg_catalog.=) any ($2)"
);

impl Batch {
    pub fn new(is_wanted: bool) -> Batch {
        Batch { is_wanted, changed: Vec::new(), left: Vec::new() }
    }

    pub fn note(&mut self, record: &Record) {
        // Members of other servers are copied by their own server.
        if !self.is_wanted || record.node.is_some() {
            return;
        }
        match record.kind {
            Kind::Enter | Kind::Update | Kind::Quiet => self.changed.push(record.hash),
            Kind::Leave => {
                let text = |field| record.image.get(field).unwrap_or_default().to_vec();
                self.left.push(Left {
                    room: text(Field::Room),
                    member_id: text(Field::MemberId),
                    connection_id: text(Field::ConnectionId),
                    reason: record.reason.name(),
                    state: record.image.get(Field::State).map(<[u8]>::to_vec),
                    version: record.version,
                    at: record.at,
                });
                // It may have entered again, with an event of the next batch.
                self.changed.push(record.hash);
            }
            Kind::Room | Kind::Rotate | Kind::Forget => {}
        }
    }

    pub fn is_empty(&self) -> bool {
        self.changed.is_empty()
    }

    /// Returns by how many the number of rows has grown.
    pub fn write(&self, node: &[u8]) -> Result<i64> {
        let connection = Connection::open()?;
        let mut more = 0;
        if !self.left.is_empty() {
            let values = self.values(node);
            connection.run(&SAY, &values, true)?;
            more -= connection.run(&GO, &values, true)?.count as i64;
        }
        let written = connection.run(&CHANGE, &[Some(varlena(node)), Some(uuids(&self.changed))], true)?;
        Ok(more + written.number(0, 0) as i64)
    }

    fn values(&self, node: &[u8]) -> [Option<Datum>; 8] {
        let left = &self.left;
        let each = |value: &dyn Fn(&Left) -> Option<Datum>| left.iter().map(value).collect::<Vec<_>>();
        let numbers = |value: &dyn Fn(&Left) -> i64| {
            left.iter().map(|left| Datum::from(value(left))).collect::<Vec<_>>()
        };
        [
            Some(varlena(node)),
            Some(text_array(left.iter().map(|left| &left.room))),
            Some(text_array(left.iter().map(|left| &left.member_id))),
            Some(text_array(left.iter().map(|left| &left.connection_id))),
            Some(nullable_array(
                &each(&|left| left.reason.map(|reason| varlena(reason.as_bytes()))),
                pg_sys::TEXTOID,
            )),
            Some(nullable_array(&each(&|left| left.state.as_deref().map(varlena)), pg_sys::JSONBOID)),
            Some(array(&numbers(&|left| left.version as i64), pg_sys::INT8OID)),
            Some(array(&numbers(&|left| left.at), pg_sys::TIMESTAMPTZOID)),
        ]
    }
}
