//! `presence.user_id`, `is_service`, `tokens` and `act_as`.

use crate::access::client;
use crate::access::identity::{current, may_act_as};
use crate::error::{Error, Result};
use crate::member::user_rooms;
use crate::pg::datum;
use crate::pg::encoding::{self, encode};
use crate::pg::function::Call;
use crate::pg::spi::{Connection, Statement};
use crate::{extension, settings};
use pgrx::pg_sys::{self, Datum};
use serde_json::Value;

/// SQL `presence.user_id()`.
fn user_id(_call: &Call) -> Result<Option<Datum>> {
    let identity = current(&extension::current()?)?;
    Ok(identity.user_id.as_deref().map(datum::varlena))
}

/// SQL `presence.is_service()`.
fn is_service(_call: &Call) -> Result<Option<Datum>> {
    Ok(Some(Datum::from(current(&extension::current()?)?.service)))
}

/// SQL `presence.tokens()`.
fn tokens(_call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    let identity = current(&extension)?;
    let tokens = identity.tokens(&user_rooms::all_rooms(&identity, &extension)?)?;
    Ok(Some(datum::text_array(&tokens)))
}

/// SQL `presence.act_as(user_id, teams)`: sets the claims of that user until the transaction ends. Returns true.
fn act_as(call: &Call) -> Result<Option<Datum>> {
    let extension = extension::current()?;
    client::require_own_session("act_as")?;
    if !may_act_as(&extension)? {
        return Err(Error::NotTrusted);
    }
    let user_id = call.text(0).ok_or(Error::MissingArgument { argument: "user_id" })?;
    crate::validate::name("user_id", user_id)?;
    let teams = call.texts(1).map_err(|why| Error::InvalidArgument { argument: "teams", why: why.into() })?;
    let mut claims = serde_json::json!({ "sub": encoding::decode(user_id) });
    let mut at = &mut claims;
    let path = settings::teams_claim();
    for step in path.split('.').filter(|step| !step.is_empty()) {
        if !at.is_object() && !at.is_null() {
            return Err(Error::InvalidArgument {
                argument: "teams",
                why: "presence.teams_claim points into another claim.".into(),
            });
        }
        at = &mut at[step];
    }
    if let (Some(teams), true) = (teams, at.is_null()) {
        *at = teams.iter().map(|team| Value::String(encoding::decode(team))).collect();
    }
    let connection = Connection::open()?;
    connection.run(&SET_CLAIMS, &[Some(datum::varlena(&encode(&claims.to_string())))], false)?;
    Ok(Some(Datum::from(true)))
}

/// SQL `_presence._node_name()`.
fn node_name(_call: &Call) -> Result<Option<Datum>> {
    Ok(settings::node_name().as_deref().map(datum::varlena))
}

static SET_CLAIMS: Statement = Statement {
    sql: c"select pg_catalog.set_config('request.jwt.claims', $1, true)",
    arguments: &[pg_sys::TEXTOID],
};

crate::sql_function!(presence_user_id, pg_finfo_presence_user_id, user_id);
crate::sql_function!(presence_is_service, pg_finfo_presence_is_service, is_service);
crate::sql_function!(presence_tokens, pg_finfo_presence_tokens, tokens);
crate::sql_function!(presence_act_as, pg_finfo_presence_act_as, act_as);
crate::sql_function!(presence_node_name, pg_finfo_presence_node_name, node_name);
