//! After a crash, and on a server that was promoted, `presence.member` is empty, and the copy says who was here. They are put
//! back, a page at a time, where nobody is; then a comparison may delete from the copy again. Whether it is needed says a
//! row in a table that is unlogged like `presence.member`: where that is gone, so are the members.
//!
//! ```text
//!              ┌────────┐ the row is there                      ┌───────┐
//!  worker ────▶│  Look  │──────────────────────────────────────▶│ whole │
//!              └────────┘                                       └───────┘
//!                  │ it is not: state "restoring", numbers above the floor   ▲
//!                  ▼                                                         │ no more: the row is written
//!              ┌────────┐  a page ──┐                                        │
//!              │  Pages │◀──────────┘────────────────────────────────────────┘
//!              └────────┘
//! ```
//!
//! A crash in the middle begins anew: what was put back is gone with the row that was not written yet.

use super::beat;
use crate::error::Result;
use crate::extension::Extension;
use crate::member::restoring;
use crate::pg::datum::varlena;
use crate::pg::encoding::decode;
use crate::pg::spi::{Connection, Statement};
use crate::pg::subtransaction::{Failure, attempt};
use crate::shared::control;
use crate::worker::retry::by_halves;
use pgrx::pg_sys::{self, Datum};
use std::sync::atomic::Ordering::*;

static WHOLE: Statement = Statement {
    sql: c"select node operator(pg_catalog.=) $1 from _presence._whole",
    arguments: &[pg_sys::TEXTOID],
};

static FLOOR: Statement = Statement {
    sql: c"select floor, members from presence.node where node operator(pg_catalog.=) $1",
    arguments: &[pg_sys::TEXTOID],
};

/// Whether there is a row older than this run of the server, so that its lease uses another clock.
static OLD: Statement = Statement {
    sql: c"select exists (select from presence.member where version operator(pg_catalog.<) $1)",
    arguments: &[pg_sys::INT8OID],
};

static KEYS: Statement = Statement {
    sql: c"select room, member_id, connection_id from presence.shared
           where (room, member_id, connection_id) operator(pg_catalog.>) ($2, $3, $4)
             and node operator(pg_catalog.=) $1
           order by room, member_id, connection_id limit 400",
    arguments: &[pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::TEXTOID],
};

static PUT_BACK: Statement = Statement {
    sql: c"insert into presence.member
               (room, member_id, connection_id, user_id, status, state, metadata, audience, version, generation,
                joined_at, updated_at, last_seen_at, expires_at, ttl, session, leaves_at, leave_reason, last_word, reverts)
           select s.room, s.member_id, s.connection_id, s.user_id, s.status, s.state, s.metadata, s.audience, s.version,
                  s.generation, s.joined_at, s.updated_at, s.last_seen_at,
                  (s.more operator(pg_catalog.->>) 'expires_at')::pg_catalog.timestamptz, s.ttl,
                  case when s.session then $8 end,
                  (s.more operator(pg_catalog.->>) 'leaves_at')::pg_catalog.timestamptz,
                  s.more operator(pg_catalog.->>) 'leave_reason',
                  case when pg_catalog.jsonb_typeof(s.more operator(pg_catalog.->) 'last_word')
                            operator(pg_catalog.<>) 'null' then s.more operator(pg_catalog.->) 'last_word' end,
                  case when pg_catalog.jsonb_typeof(s.more operator(pg_catalog.->) 'reverts')
                            operator(pg_catalog.<>) 'null' then s.more operator(pg_catalog.->) 'reverts' end
           from presence.shared s
           where s.node operator(pg_catalog.=) $1
             and (s.room, s.member_id, s.connection_id) operator(pg_catalog.>=) ($2, $3, $4)
             and (s.room, s.member_id, s.connection_id) operator(pg_catalog.<=) ($5, $6, $7)
           on conflict (room, member_id, connection_id) do nothing",
    arguments: &[
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::TEXTOID,
        pg_sys::INT8OID,
    ],
};

pub(super) static NOTE_WHOLE: Statement = Statement {
    sql: c"insert into _presence._whole (node) values ($1) on conflict (node) do nothing",
    arguments: &[pg_sys::TEXTOID],
};

/// Former names of this server.
static FORGET: [Statement; 3] = [
    Statement {
        sql: c"delete from presence.shared s using _presence._whole w
               where s.node operator(pg_catalog.=) w.node and w.node operator(pg_catalog.<>) $1",
        arguments: &[pg_sys::TEXTOID],
    },
    Statement {
        sql: c"delete from presence.node n using _presence._whole w
               where n.node operator(pg_catalog.=) w.node and w.node operator(pg_catalog.<>) $1",
        arguments: &[pg_sys::TEXTOID],
    },
    Statement {
        sql: c"delete from _presence._whole where node operator(pg_catalog.<>) $1",
        arguments: &[pg_sys::TEXTOID],
    },
];

/// Room, member_id and connection_id.
type Key = [Vec<u8>; 3];

/// The progress.
#[derive(Clone, Default)]
pub enum Restore {
    #[default]
    Look,
    Pages {
        after: Key,
        count: u64,
    },
}

pub enum Next {
    Page(Restore),
    /// The restore is finished; this many were restored.
    Whole(u64),
}

impl Restore {
    /// One transaction of the restore.
    pub fn step(&self, extension: &Extension, node: &[u8], obeys_cancel: bool) -> Result<Next> {
        let connection = Connection::open()?;
        match self {
            Restore::Look => look(extension, &connection, node),
            Restore::Pages { after, count } => {
                page(extension, &connection, node, after, *count, obeys_cancel)
            }
        }
    }
}

fn look(extension: &Extension, connection: &Connection, node: &[u8]) -> Result<Next> {
    let name = [Some(varlena(node))];
    let whole = connection.run(&WHOLE, &name, false)?;
    if (0..whole.count).any(|row| whole.get(row, 0).is_some_and(|is_ours| is_ours.value() != 0)) {
        return Ok(Next::Whole(0));
    }
    let known = connection.run(&FLOOR, &name, false)?;
    let floor = known.number(0, 0);
    let members = known.get(0, 1).map(|members| members.value() as i64);
    // Before anybody is issued another version.
    control().next_version.fetch_max(floor, AcqRel);
    extension.database.seq.fetch_max(floor, AcqRel);
    extension.database.log_floor.fetch_max(extension.database.seq.load(Acquire), AcqRel);
    let started = Datum::from(control().started_version.load(Acquire) as i64);
    if connection.run(&OLD, &[Some(started)], false)?.get(0, 0).is_some_and(|found| found.value() == 0) {
        extension.database.copy.trust_rows();
    }
    beat::write(extension, node, members, "restoring")?;
    Ok(Next::Page(Restore::Pages { after: Default::default(), count: 0 }))
}

/// A member that a trigger, constraint or foreign key refuses is left out, and does not prevent others: the comparison
/// deletes it from the copy. Errors that may pass are retried, except a cancel that must be obeyed.
fn page(
    extension: &Extension,
    connection: &Connection,
    node: &[u8],
    after: &Key,
    count: u64,
    obeys_cancel: bool,
) -> Result<Next> {
    let [room, member_id, connection_id] = values(after);
    let found = connection.run(&KEYS, &[Some(varlena(node)), room, member_id, connection_id], false)?;
    let keys: Vec<Key> = (0..found.count)
        .map(|row| [0, 1, 2].map(|column| found.text(row, column).unwrap_or_default().to_vec()))
        .collect();
    let Some(last) = keys.last() else {
        end(extension, connection, node)?;
        return Ok(Next::Whole(count));
    };
    let hash = |[room, member_id, connection_id]: &Key| extension.key(room, member_id, connection_id).hash;
    let _putting_back = restoring::set(keys.iter().map(hash).collect());
    connection.run_text(c"set constraints all immediate", true)?;
    let (mut more, mut refused, mut passing) = (0, Vec::new(), None);
    let put = |keys: &[Key]| attempt(|| put_back(connection, node, keys)).map(|count| more += count);
    let alone = |key: &Key, failure: Failure| match failure.passing && obeys_cancel {
        true => passing = Some(failure),
        false => refused.push((decode(&key[0]), decode(&key[1]), failure.message)),
    };
    if let Some(failure) = by_halves(&keys, obeys_cancel, put, alone).err().or(passing) {
        failure.raise();
    }
    if let [(room, member_id, message), ..] = &refused[..] {
        let count = refused.len();
        pgrx::warning!(
            "presence_ext: members that cannot be put back: {count}, the first of them {member_id} in {room}: {message}"
        );
    }
    crate::injection::stall("restoring");
    Ok(Next::Page(Restore::Pages { after: last.clone(), count: count + more }))
}

/// Restore the members with these sorted keys. Returns how many were missing.
fn put_back(connection: &Connection, node: &[u8], keys: &[Key]) -> Result<u64> {
    let (Some(first), Some(last)) = (keys.first(), keys.last()) else { return Ok(0) };
    let ([room, member_id, connection_id], [to_room, to_member_id, to_connection_id]) =
        (values(first), values(last));
    let over = Some(Datum::from(restoring::OVER as i64));
    let values =
        [Some(varlena(node)), room, member_id, connection_id, to_room, to_member_id, to_connection_id, over];
    Ok(connection.run(&PUT_BACK, &values, true)?.count as u64)
}

fn values(key: &Key) -> [Option<Datum>; 3] {
    key.each_ref().map(|part| Some(varlena(part)))
}

fn end(extension: &Extension, connection: &Connection, node: &[u8]) -> Result<()> {
    forget_other_names(connection, node)?;
    connection.run(&NOTE_WHOLE, &[Some(varlena(node))], true)?;
    extension.database.copy.members_are_read();
    plan_anew();
    crate::injection::stall("restored");
    Ok(())
}

/// Plans that read the copy, on a standby or until now, must be replaced by plans that read the members: invalidate all
/// plans that call a function.
pub fn plan_anew() {
    // SAFETY: others are told when the transaction commits.
    unsafe { pg_sys::CacheInvalidateCatalog(pg_sys::ProcedureRelationId) };
}

/// Also if the server has no name any more: then all names are others.
pub fn forget_other_names(connection: &Connection, node: &[u8]) -> Result<()> {
    for statement in &FORGET {
        connection.run(statement, &[Some(varlena(node))], true)?;
    }
    Ok(())
}
