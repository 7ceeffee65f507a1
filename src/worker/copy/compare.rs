//! Comparing the members with their copy, page by page in the order of the key: first whom the copy has not, or not as they
//! are, then who is in the copy and not here any more.

use super::restore::NOTE_WHOLE;
use crate::error::Result;
use crate::pg::datum::varlena;
use crate::pg::spi::{Connection, Statement, statement};
use pgrx::pg_sys;

/// Write these rows of `presence.member` ($1 is the name) where the copy does not have them in this version. Each one
/// is looked up once, by the index, and then changed in place: ON CONFLICT DO UPDATE would look it up again and lock it
/// first, which writes WAL. `more` are columns that readers do not need. The result is made of `members` and `written`.
macro_rules! write {
    ($arguments:expr, $result:literal, $members:literal) => {
        statement!(
            $arguments,
            "with members as materialized (
                 select m.room, m.member_id, m.connection_id, m.user_id, m.status, m.state, m.metadata, m.audience,
                        m.version, m.generation, m.joined_at, m.updated_at, m.last_seen_at, m.ttl,
                        m.session is not null as session,
                        case when m.leaves_at is not null or m.reverts is not null then
                            pg_catalog.jsonb_build_object('leaves_at', m.leaves_at, 'expires_at', m.expires_at,
                                'leave_reason', m.leave_reason, 'last_word', m.last_word, 'reverts', m.reverts)
                        end as more,
                        known.place, known.version as known_version
                 from (",
            $members,
            ") m left join lateral (
                     select s.ctid as place, s.version from presence.shared s
                     where s.room operator(pg_catalog.=) m.room and s.member_id operator(pg_catalog.=) m.member_id
                       and s.connection_id operator(pg_catalog.=) m.connection_id and s.node operator(pg_catalog.=) $1
                     offset 0) known on true),
             changed as (
                 update presence.shared s
                 set user_id = m.user_id, status = m.status, state = m.state, metadata = m.metadata,
                     audience = m.audience, version = m.version, generation = m.generation, joined_at = m.joined_at,
                     updated_at = m.updated_at, last_seen_at = m.last_seen_at, ttl = m.ttl, session = m.session,
                     reason = null, more = m.more
                 from members m
                 where s.ctid operator(pg_catalog.=) m.place and coalesce(m.known_version, 0) operator(pg_catalog.<>) m.version),
             written as (
                 insert into presence.shared
                     (node, room, member_id, connection_id, user_id, status, state, metadata, audience, version,
                      generation, joined_at, updated_at, last_seen_at, ttl, session, reason, more)
                 select $1, m.room, m.member_id, m.connection_id, m.user_id, m.status, m.state, m.metadata, m.audience,
                        m.version, m.generation, m.joined_at, m.updated_at, m.last_seen_at, m.ttl, m.session, null,
                        m.more
                 from members m where m.place is null
                 on conflict (room, member_id, connection_id, node) do nothing
                 returning 1)
             select ",
            $result
        )
    };
}
pub(super) use write;

const KEY: [pg_sys::Oid; 4] = [pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::TEXTOID];

static PRESENT: Statement = write!(
    KEY,
    "m.room, m.member_id, m.connection_id from members m
     order by m.room desc, m.member_id desc, m.connection_id desc limit 1",
    "select * from presence.member
     where (room, member_id, connection_id) operator(pg_catalog.>) ($2, $3, $4)
     order by room, member_id, connection_id limit 1000"
);

static GONE: Statement = statement!(
    KEY,
    "with copied as materialized (
         select room, member_id, connection_id from presence.shared
         where (room, member_id, connection_id) operator(pg_catalog.>) ($2, $3, $4)
           and node operator(pg_catalog.=) $1
         order by room, member_id, connection_id limit 1000),
     gone as (
         delete from presence.shared s using copied c
         where s.room operator(pg_catalog.=) c.room and s.member_id operator(pg_catalog.=) c.member_id
           and s.connection_id operator(pg_catalog.=) c.connection_id and s.node operator(pg_catalog.=) $1
           and not exists (select from presence.member m
                           where m.room operator(pg_catalog.=) c.room
                             and m.member_id operator(pg_catalog.=) c.member_id
                             and m.connection_id operator(pg_catalog.=) c.connection_id))
     select c.room, c.member_id, c.connection_id from copied c
     order by c.room desc, c.member_id desc, c.connection_id desc limit 1"
);

static COUNT: Statement = Statement {
    sql: c"select pg_catalog.count(*) from presence.shared where node operator(pg_catalog.=) $1",
    arguments: &[pg_sys::TEXTOID],
};

/// The progress: each page is a transaction.
#[derive(Clone, Default)]
pub struct Comparison {
    /// The members are done; now rows of the copy without a member.
    of_gone: bool,
    /// The last key of the previous page.
    after: [Vec<u8>; 3],
}

pub struct Page {
    pub next: Option<Comparison>,
    /// At the end: the number of rows.
    pub members: Option<i64>,
}

impl Comparison {
    pub fn page(&self, node: &[u8]) -> Result<Page> {
        let connection = Connection::open()?;
        let [room, member_id, connection_id] = self.after.each_ref().map(|part| Some(varlena(part)));
        let statement = if self.of_gone { &GONE } else { &PRESENT };
        let last = connection.run(statement, &[Some(varlena(node)), room, member_id, connection_id], true)?;
        if last.count > 0 {
            let part = |column| last.text(0, column).unwrap_or_default().to_vec();
            let after = [part(0), part(1), part(2)];
            return Ok(Page { next: Some(Comparison { after, ..*self }), members: None });
        }
        if !self.of_gone {
            return Ok(Page {
                next: Some(Comparison { of_gone: true, ..Comparison::default() }),
                members: None,
            });
        }
        // The SQL was installed while the server ran: nobody has to be restored.
        connection.run(&NOTE_WHOLE, &[Some(varlena(node))], true)?;
        let members = connection.run(&COUNT, &[Some(varlena(node))], false)?.number(0, 0) as i64;
        Ok(Page { next: None, members: Some(members) })
    }
}
