//! `presence.cluster` and `forget_node`: what is known of other servers.

use crate::access::identity;
use crate::error::{Error, Result};
use crate::extension::{self, Extension};
use crate::nodes::{remains, unreachable};
use crate::pg::datum::{interval, varlena};
use crate::pg::function::Call;
use crate::pg::role::as_role;
use crate::pg::spi::{Connection, Statement};
use crate::settings;
use pgrx::pg_sys::{self, Datum};

/// SQL `_presence._peer(node)`: one row.
fn peer(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let heard = &extension.database.heard;
    let name = call.text(0).map(|node| extension.node_hash(node));
    let age = name.and_then(|name| heard.age(name)).map(|age| interval(age as i64));
    let has_conflict = name.is_some_and(|name| heard.has_conflict(name));
    let members = as_role(extension.owner_role, || {
        let connection = Connection::open()?;
        Ok(connection.run(&MEMBERS, &[call.text(0).map(varlena)], false)?.get(0, 0))
    })?;
    call.rows([vec![age, Some(Datum::from(has_conflict)), members]])
}

static MEMBERS: Statement = Statement {
    sql: c"select pg_catalog.count(*) from presence.shared where node operator(pg_catalog.=) $1",
    arguments: &[pg_sys::TEXTOID],
};

/// SQL `presence.forget_node(node)`.
fn forget_node(call: &Call, extension: Extension) -> Result<Option<Datum>> {
    let node = call.text(0).ok_or(Error::MissingArgument { argument: "node" })?;
    if !identity::current(&extension)?.service {
        return Err(Error::ServiceOnly { what: "forget a server" });
    }
    let refused = |why: &str| Err(Error::InvalidArgument { argument: "node", why: why.into() });
    if settings::node_name().as_deref() == Some(node) {
        return refused("It is this server.");
    }
    // Who does not change would stay away: a stream brings changes.
    if extension.database.heard.is_heard(extension.node_hash(node)) {
        return refused("It is heard. Drop its subscription first.");
    }
    unreachable::exclude_the_worker(&extension, node);
    if extension.database.heard.replace(extension.node_hash(node)) {
        extension.database.ask_resync();
    }
    as_role(extension.owner_role, || {
        let connection = Connection::open()?;
        remains::delete_beat(&connection, node)?;
        Ok(Some(Datum::from(remains::delete_members(&connection, node)? as i64)))
    })
}

crate::sql_function!(presence_peer, pg_finfo_presence_peer, peer);
crate::verb!(presence_forget_node, pg_finfo_presence_forget_node, "presence.forget_node()", forget_node);
