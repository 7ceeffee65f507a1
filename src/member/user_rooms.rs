//! Where a user is, for listeners: looked up by index as far as that answers the question, however many rooms there are.

use super::column::Column;
use super::row::Row;
use super::{liveness, scan};
use crate::access::identity::Identity;
use crate::error::Result;
use crate::extension::Extension;
use crate::functions::copy;
use crate::nodes::{self, row::Shared, scan::Of};
use crate::pg::datum::{hash_of, varlena};
use crate::pg::role::as_role;
use crate::pg::spi::{Connection, Statement};
use pgrx::pg_sys;
use std::collections::BTreeSet;
use std::collections::HashSet;

/// How many members of a user are looked at where an approximate answer suffices.
const MOST_LOOKED_AT: usize = 500;

/// Whether the user is present in this room.
pub fn is_in(extension: &Extension, user_id: &[u8], room: &[u8]) -> Result<bool> {
    let mut found = false;
    scan::of_user(extension, user_id, Some(room), |row| {
        found = is_alive(extension, row);
        Ok(!found)
    })?;
    if !found {
        nodes::scan::of_user(extension, Of::Heard, user_id, Some(room), |_| {
            found = true;
            Ok(false)
        })?;
    }
    Ok(found)
}

/// Whether the user is present in another room. If the first members have all expired, and there may be more, the
/// answer is yes.
pub fn is_elsewhere(extension: &Extension, user_id: &[u8], room: &[u8]) -> Result<bool> {
    let (mut found, mut looked_at) = (false, 0);
    scan::of_user(extension, user_id, None, |row| {
        looked_at += 1;
        found =
            looked_at >= MOST_LOOKED_AT || (row.text(Column::Room) != Some(room) && is_alive(extension, row));
        Ok(!found)
    })?;
    if !found {
        nodes::scan::of_user(extension, Of::Heard, user_id, None, |row| {
            looked_at += 1;
            found = looked_at >= MOST_LOOKED_AT || row.text(Shared::Room) != Some(room);
            Ok(!found)
        })?;
    }
    Ok(found)
}

/// All rooms that the user is in, if there are at most this many. None also if few are found among very many members.
pub fn few_rooms(extension: &Extension, user_id: &[u8], most: usize) -> Result<Option<Vec<Vec<u8>>>> {
    let (mut rooms, mut looked_at) = (BTreeSet::new(), 0);
    scan::of_user(extension, user_id, None, |row| {
        looked_at += 1;
        if is_alive(extension, row) {
            rooms.extend(row.text(Column::Room).map(<[u8]>::to_vec));
        }
        Ok(rooms.len() <= most && looked_at < MOST_LOOKED_AT)
    })?;
    nodes::scan::of_user(extension, Of::Heard, user_id, None, |row| {
        looked_at += 1;
        rooms.extend(row.text(Shared::Room).map(<[u8]>::to_vec));
        Ok(rooms.len() <= most && looked_at < MOST_LOOKED_AT)
    })?;
    let is_all = rooms.len() <= most && looked_at < MOST_LOOKED_AT;
    Ok(is_all.then(|| rooms.into_iter().collect()))
}

/// Whether the member's lease is not over.
pub fn is_alive(extension: &Extension, row: &Row) -> bool {
    let Some(hash) = row.get(Column::KeyHash) else { return false };
    // SAFETY: a uuid.
    let key = extension.key_of(unsafe { hash_of(hash) });
    liveness::deadline(&key, &row.lease()).is_some()
}

/// The rooms where the caller is present right now. Read with the owner's rights, because the policy that asks would
/// recurse.
pub fn all_rooms(identity: &Identity, extension: &Extension) -> Result<Vec<Vec<u8>>> {
    let Some(user_id) = &identity.user_id else { return Ok(Vec::new()) };
    if copy::is_read()? {
        return copied_rooms(user_id, extension);
    }
    as_role(extension.owner_role, || {
        let connection = Connection::open()?;
        let rows = connection.run(&ROOMS, &[Some(varlena(user_id))], false)?;
        let (mut rooms, mut known) = (Vec::new(), HashSet::new());
        for row in 0..rows.count {
            let (Some(room), Some(hash)) = (rows.text(row, 0), rows.get(row, 1)) else { continue };
            // SAFETY: a uuid.
            let hash = unsafe { hash_of(hash) };
            let lease = liveness::lease_of_query(&rows, row, [2, 3, 4, 5]);
            let alive = liveness::deadline(&extension.key_of(hash), &lease).is_some();
            if alive && known.insert(room) {
                rooms.push(room.to_vec());
            }
        }
        let mut elsewhere = BTreeSet::new();
        nodes::scan::of_user(extension, Of::Heard, user_id, None, |row| {
            elsewhere.extend(row.text(Shared::Room).filter(|room| !known.contains(room)).map(<[u8]>::to_vec));
            Ok(true)
        })?;
        rooms.extend(elsewhere);
        Ok(rooms)
    })
}

/// The same from the copy.
fn copied_rooms(user_id: &[u8], extension: &Extension) -> Result<Vec<Vec<u8>>> {
    as_role(extension.owner_role, || {
        let connection = Connection::open()?;
        let rows = connection.run(&COPIED_ROOMS, &[Some(varlena(user_id))], false)?;
        Ok((0..rows.count).filter_map(|row| rows.text(row, 0)).map(<[u8]>::to_vec).collect())
    })
}

static COPIED_ROOMS: Statement = Statement {
    sql: c"select distinct room from presence.shared
           where user_id operator(pg_catalog.=) $1 and _presence._is_heard(node)",
    arguments: &[pg_sys::TEXTOID],
};

static ROOMS: Statement = Statement {
    sql: c"select room, key_hash, version, generation, deadline, session from presence.member where user_id operator(pg_catalog.=) $1",
    arguments: &[pg_sys::TEXTOID],
};
