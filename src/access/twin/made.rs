//! What the extension made the twin to be. DDL for all tables of a database (a loop, an event trigger) comes to `member`
//! and its twin alike, and they stay the same; so the twin itself is looked at, too. What policies say stands nowhere
//! but in the twin; that there are no others, and for whom they are, is known.

use super::functions::is_of_member_triggers;
use super::{Table, checks, name};
use crate::member::column::{COLUMNS, Column};
use pgrx::FromDatum;
use pgrx::pg_sys::{self, Datum, Oid};
use std::ffi::CStr;

const POLICIES: [(&CStr, u8); 4] =
    [(c"member_read", b'r'), (c"member_enter", b'a'), (c"member_change", b'w'), (c"member_leave", b'd')];

const NULLABLE: [Column; 9] = [
    Column::Status,
    Column::ExpiresAt,
    Column::Ttl,
    Column::Session,
    Column::SessionPid,
    Column::LeavesAt,
    Column::LastWord,
    Column::LeaveReason,
    Column::Reverts,
];

/// Indexed columns, and whether they are unique.
const INDEXES: [(&[Column], bool); 4] = [
    (&[Column::Room, Column::MemberId, Column::ConnectionId], true),
    (&[Column::UserId, Column::Room], false),
    (&[Column::KeyHash], false),
    (&[Column::Audience], false),
];

const TRIGGERS: usize = 3;

/// Whether everything that decides what a SELECT shows is as the extension made it.
pub fn is_as_made_for_reading(twin: &Table) -> bool {
    twin.class().relrowsecurity && has_own_policies(twin, |command| matches!(command, b'r' | b'*'))
}

/// The same for writes.
pub fn is_as_made(twin: &Table) -> bool {
    has_own_class(twin)
        && has_own_columns(twin)
        && has_own_triggers(twin)
        && has_own_indexes(twin)
        && has_own_policies(twin, |_| true)
}

fn has_own_class(twin: &Table) -> bool {
    let class = twin.class();
    [class.relkind, class.relpersistence, class.relreplident].map(|kind| kind as u8)
        == [pg_sys::RELKIND_RELATION, pg_sys::RELPERSISTENCE_UNLOGGED, pg_sys::REPLICA_IDENTITY_DEFAULT]
        && class.relrowsecurity
        && !class.relforcerowsecurity
        && !class.relhassubclass
        && twin.relation().rd_rules.is_null()
}

/// Dropped columns may follow ours.
fn has_own_columns(twin: &Table) -> bool {
    let columns = twin.columns();
    let is_nullable = |at| NULLABLE.into_iter().any(|column| column as usize == at);
    columns.len() >= COLUMNS
        && columns.iter().enumerate().all(|(at, column)| {
            if at < COLUMNS { column.attnotnull != is_nullable(at) } else { column.attisdropped }
        })
        && checks(twin) == (0, false)
}

fn has_own_triggers(twin: &Table) -> bool {
    let triggers = twin.triggers();
    triggers.len() == TRIGGERS
        && triggers.iter().all(|trigger| {
            trigger.tgenabled as u8 == pg_sys::TRIGGER_FIRES_ALWAYS && is_of_member_triggers(trigger.tgfoid)
        })
}

fn has_own_indexes(twin: &Table) -> bool {
    let indexes = twin.indexes();
    indexes.len() == INDEXES.len()
        && INDEXES.iter().all(|(columns, is_unique)| {
            let columns: Vec<i16> = columns.iter().map(|column| *column as i16 + 1).collect();
            indexes.iter().any(|index| index.is_plain_index_of(&columns, *is_unique))
        })
}

fn has_own_policies(twin: &Table, counts: impl Fn(u8) -> bool) -> bool {
    let of_all = |policy: &pg_sys::RowSecurityPolicy| {
        // SAFETY: an array of oids, of an open relation.
        let roles = unsafe { Vec::<Oid>::from_datum(Datum::from(policy.roles), false) };
        roles.is_some_and(|roles| roles == [Oid::from(pg_sys::ACL_ID_PUBLIC)])
    };
    let found: Vec<_> = twin.policies().into_iter().filter(|policy| counts(policy.polcmd as u8)).collect();
    found.len() == POLICIES.iter().filter(|(_, command)| counts(*command)).count()
        && found.iter().all(|policy| {
            // SAFETY: a name of an open relation.
            let made = unsafe { name(policy.policy_name) }.map(|name| (name, policy.polcmd as u8));
            policy.permissive && of_all(policy) && made.is_some_and(|made| POLICIES.contains(&made))
        })
}
