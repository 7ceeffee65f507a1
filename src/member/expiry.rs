//! The end of members whose lease has run out, whoever notices first: the worker, or a newcomer who wants the key.

use super::intent::{self, Intent};
use super::liveness;
use crate::clock;
use crate::error::Result;
use crate::extension::Extension;
use crate::lease::rule::RowLease;
use crate::pg::datum::uuids;
use crate::pg::spi::{Connection, Statement};
use pgrx::pg_sys;

static DELETE: Statement = Statement {
    sql: c"delete from presence.member where key_hash operator(pg_catalog.=) any ($1) returning key_hash",
    arguments: &[pg_sys::UUIDARRAYOID],
};

/// The result for rows whose lease may have run out.
#[derive(Default)]
pub struct Ended {
    /// Their lease had run out, and we claimed it.
    pub claimed: Vec<u128>,
    /// Those of them that were deleted: a trigger or rule may keep a row.
    pub gone: Vec<u128>,
}

/// Delete those of these rows whose lease has run out; they leave as expired. The rows are locked first, and leases are
/// read under the lock, because somebody may be renewing them before. Runs as the extension's owner.
pub fn delete(
    extension: &Extension,
    connection: &Connection,
    locked: impl IntoIterator<Item = (u128, RowLease)>,
) -> Result<Ended> {
    let now = clock::boot();
    let is_over = |(hash, lease): &(u128, RowLease)| liveness::claim(&extension.key_of(*hash), lease, now);
    let claimed: Vec<u128> = locked.into_iter().filter(is_over).map(|(hash, _)| hash).collect();
    if claimed.is_empty() {
        return Ok(Ended::default());
    }
    let _intent = intent::set(claimed.clone(), Intent { expiring: true, ..Intent::default() });
    let gone = connection.run(&DELETE, &[Some(uuids(&claimed))], true)?.uuids(0);
    Ok(Ended { claimed, gone })
}
