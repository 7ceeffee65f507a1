//! For gateways, which use one connection for many users: many members in one call; and forgetting a user.
//!
//! All or nothing; members are locked in the order of their key hashes, as everywhere, so two gateways with the
//! same members in opposite order do not deadlock.

use crate::access::authorizer::{self, Action};
use crate::access::identity::{self, Identity};
use crate::access::ownership;
use crate::error::{Error, Result};
use crate::event::image::Image;
use crate::event::pace;
use crate::event::record::Kind;
use crate::event::transaction;
use crate::extension::Extension;
use crate::member::delete::{self, Removal};
use crate::member::request::{Request, Written};
use crate::member::store::Store;
use crate::member::{checks, revert, session, upsert};
use crate::nodes::remains;
use crate::pg::datum::{bytes_of, interval_of, text_array, varlena};
use crate::pg::function::Call;
use crate::pg::jsonb::{self, Value};
use crate::pg::role::as_role;
use crate::pg::spi::Connection;
use crate::shared::leases::awaited_key;
use crate::validate;
use crate::worker::{last_seen, log};
use pgrx::direct_function_call;
use pgrx::pg_sys::{self, Datum};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::rc::Rc;

/// One object of the array: its fields by name.
struct Element {
    /// Position in the array, from 1.
    place: usize,
    fields: Vec<(String, Value)>,
}

impl Element {
    /// There are few: to look at each is quicker than to hash names.
    fn get(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value)
    }

    fn wrong(&self, why: impl std::fmt::Display) -> Error {
        Error::InvalidArgument { argument: "members", why: format!("Element {}: {why}", self.place) }
    }

    fn known(&self, names: &[&str]) -> Result<()> {
        match self.fields.iter().find(|(name, _)| !names.contains(&name.as_str())) {
            Some((unknown, _)) => Err(self.wrong(format!(
                "\"{}\" is not a name here; names are {}.",
                crate::error::printable(unknown.as_bytes()),
                names.join(", ")
            ))),
            None => Ok(()),
        }
    }

    fn text(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text.clone())),
            Some(Value::Number(text)) => Ok(Some(text.clone())),
            Some(_) => Err(self.wrong(format!("{name} is not a string."))),
        }
    }

    fn json(&self, name: &str) -> Option<Datum> {
        match self.get(name) {
            None | Some(Value::Null) => None,
            Some(value) => Some(value.to_jsonb()),
        }
    }

    fn bool(&self, name: &str) -> Result<Option<bool>> {
        match self.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong(format!("{name} is not a boolean."))),
        }
    }

    /// In PostgreSQL's input format for intervals.
    fn interval(&self, name: &str) -> Result<Option<Datum>> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let text = CString::new(text).map_err(|_| self.wrong(format!("{name} is not an interval.")))?;
        let arguments = [Some(Datum::from(text.as_ptr())), Some(Datum::from(0)), Some(Datum::from(-1))];
        // SAFETY: interval_in(cstring, oid, integer).
        Ok(unsafe { direct_function_call::<Datum>(pg_sys::interval_in, &arguments) })
    }

    /// Checked here, where the element's position is known.
    fn audience(&self, room: &[u8]) -> Result<Option<Datum>> {
        let name = "audience";
        let Some(value) = self.get(name) else { return Ok(None) };
        let list = match value {
            Value::Null => return Ok(None),
            Value::List(list) => list,
            _ => return Err(self.wrong(format!("{name} is not an array of strings."))),
        };
        let tokens = list.iter().map(|token| match token {
            Value::Text(token) => Ok(token.clone()),
            _ => Err(self.wrong(format!("{name} is not an array of strings."))),
        });
        let tokens = tokens.collect::<Result<Vec<_>>>()?;
        Ok(Some(text_array(&validate::audience(tokens, room)?)))
    }
}

/// The elements of the argument, which is an array of objects.
fn elements(call: &Call) -> Result<Vec<Element>> {
    let wrong =
        || Error::InvalidArgument { argument: "members", why: "It is not an array of objects.".into() };
    let given = call.datum(0).ok_or(Error::MissingArgument { argument: "members" })?;
    // SAFETY: declared jsonb in SQL.
    let list = unsafe { jsonb::read_list(given) }.ok_or_else(wrong)?;
    list.into_iter()
        .enumerate()
        .map(|(index, value)| match value {
            Value::Object(fields) => Ok(Element { place: index + 1, fields }),
            _ => Err(Error::InvalidArgument {
                argument: "members",
                why: format!("Element {} is not an object.", index + 1),
            }),
        })
        .collect()
}

/// Called before anything is locked. The events are about as long as the argument.
fn wait_for_room(call: &Call, extension: &Extension) {
    // SAFETY: declared jsonb in SQL.
    let bytes = call.datum(0).map_or(0, |members| unsafe { pg_sys::toast_raw_datum_size(members) });
    pace::wait_for_room(extension.database, bytes as u64);
}

/// The last one of each repeated key, all in the common lock order.
fn in_key_order<K: Copy + Ord + std::hash::Hash, T>(items: Vec<(K, T)>) -> Vec<T> {
    let mut last: HashMap<K, T> = HashMap::with_capacity(items.len());
    for (key, item) in items {
        last.insert(key, item);
    }
    let mut ordered: Vec<(K, T)> = last.into_iter().collect();
    ordered.sort_by_key(|(key, _)| *key);
    ordered.into_iter().map(|(_, item)| item).collect()
}

const UPSERT: [&str; 12] = [
    "room",
    "state",
    "patch",
    "member_id",
    "connection_id",
    "status",
    "metadata",
    "ttl",
    "audience",
    "session",
    "user_id",
    "revert_after",
];
const UPDATE: [&str; 9] =
    ["room", "patch", "member_id", "connection_id", "status", "metadata", "audience", "ttl", "revert_after"];
const DELETE: [&str; 6] = ["room", "member_id", "connection_id", "state", "reason", "after"];

/// SQL `presence.upsert_many(members)`.
fn upsert_many(call: &Call, extension: Extension) -> Result<Option<Datum>> {
    write_many(call, extension, upsert_of)
}

/// SQL `presence.update_many(members)`.
fn update_many(call: &Call, extension: Extension) -> Result<Option<Datum>> {
    write_many(call, extension, update_of)
}

/// Returns how many of the members are present as requested.
fn write_many(
    call: &Call,
    extension: Extension,
    request_of: fn(&Extension, &Rc<Identity>, &Element) -> Result<Request>,
) -> Result<Option<Datum>> {
    wait_for_room(call, &extension);
    let identity = identity::current(&extension)?;
    let mut requests = Vec::new();
    for element in elements(call)? {
        let request =
            request_of(&extension, &identity, &element).map_err(|error| located(error, element.place))?;
        requests.push((request.key.hash, request));
    }
    let connection = Connection::open()?;
    let store = Store::open(&extension, &identity, &connection)?;
    let mut written = 0;
    for request in in_key_order(requests) {
        connection.scratch(|| {
            written += !matches!(request.write(&store)?, Written::Absent) as i32;
            Ok(())
        })?;
    }
    Ok(Some(Datum::from(written)))
}

/// The same error, with the element that it is about.
fn located(error: Error, place: usize) -> Error {
    match error {
        Error::InvalidName { argument, why } => {
            Error::InvalidName { argument, why: format!("Element {place}: {why}") }
        }
        Error::InvalidAudience { why } => Error::InvalidAudience { why: format!("Element {place}: {why}") },
        Error::MissingArgument { argument } => {
            Error::InvalidArgument { argument, why: format!("Element {place}: it must not be null.") }
        }
        Error::InvalidTtl => {
            let why = format!("Element {place}: a ttl is between 1 second and 30 days.");
            Error::InvalidArgument { argument: "ttl", why }
        }
        Error::InvalidRevertAfter => {
            let why = format!("Element {place}: it is more than zero, and at most 100 years.");
            Error::InvalidArgument { argument: "revert_after", why }
        }
        Error::InvalidReason => {
            let why = format!("Element {place}: a reason is left, disconnected or removed.");
            Error::InvalidArgument { argument: "reason", why }
        }
        Error::InvalidArgument { argument, why } if argument != "members" => {
            Error::InvalidArgument { argument, why: format!("Element {place}: {why}") }
        }
        Error::InvalidPatch => {
            let why = format!("Element {place}: a patch is a JSON object (RFC 7396).");
            Error::InvalidArgument { argument: "patch", why }
        }
        other => other,
    }
}

fn upsert_of(extension: &Extension, identity: &Rc<Identity>, element: &Element) -> Result<Request> {
    element.known(&UPSERT)?;
    let given_owner = element.text("user_id")?;
    let owner = upsert::owner(identity, given_owner.as_deref())?;
    let request = request(c"presence.upsert_many()", extension, identity, element, &owner)?;
    // SAFETY: two texts.
    let (room, member_id) = unsafe { (bytes_of(request.room), bytes_of(request.member_id)) };
    ownership::check_member_id(identity, &member_id)?;
    if !identity.service {
        authorizer::require(&room, Action::Join)?;
    }
    let session = element.bool("session")?;
    if session == Some(true) {
        session::require(identity, "a session member")?;
    }
    let state = element.json("state");
    if request.patch.is_some() && state.is_some() {
        return Err(element.wrong("it has both state and patch."));
    }
    let new_owner = given_owner.as_deref().map(varlena);
    Ok(Request { state, session, new_owner, owner: Some(owner), ..request })
}

fn update_of(extension: &Extension, identity: &Rc<Identity>, element: &Element) -> Result<Request> {
    element.known(&UPDATE)?;
    let member_id = if element.text("member_id")?.is_some() { b"" } else { identity.writer()? };
    request(c"presence.update_many()", extension, identity, element, member_id)
}

/// Common to both; the default member_id is this one. A request does not enter by itself.
fn request(
    verb: &'static CStr,
    extension: &Extension,
    identity: &Rc<Identity>,
    element: &Element,
    member_id: &[u8],
) -> Result<Request> {
    let room = element.text("room")?.ok_or(Error::MissingArgument { argument: "room" })?;
    let member_id = element.text("member_id")?.unwrap_or_else(|| member_id.to_vec());
    let connection_id = element.text("connection_id")?.unwrap_or_default();
    validate::key(&room, &member_id, &connection_id)?;
    let ttl = element.interval("ttl")?;
    if let Some(ttl) = ttl {
        // SAFETY: an interval.
        validate::given_ttl(unsafe { interval_of(ttl) })?;
    }
    // SAFETY: an interval.
    let revert_after = element.interval("revert_after")?.map(|given| unsafe { interval_of(given) });
    let revert_after = revert_after.map(revert::check_interval).transpose()?;
    let patch = element.json("patch");
    // SAFETY: a jsonb.
    if patch.is_some_and(|patch| !unsafe { jsonb::is_object(patch) }) {
        return Err(Error::InvalidPatch);
    }
    // SAFETY: a jsonb.
    checks::state_size(patch.map(|patch| unsafe { bytes_of(patch) }).as_deref().as_slice())?;
    Ok(Request {
        verb,
        key: awaited_key(extension, &room, &member_id, &connection_id),
        extension: *extension,
        room: varlena(&room),
        member_id: varlena(&member_id),
        connection_id: varlena(&connection_id),
        state: None,
        patch,
        status: element.text("status")?.as_deref().map(varlena),
        metadata: element.json("metadata"),
        ttl,
        audience: element.audience(&room)?,
        session: None,
        revert_after,
        caller: identity.clone(),
        new_owner: None,
        owner: None,
    })
}

/// SQL `presence.delete_many(members)`.
fn delete_many(call: &Call, extension: Extension) -> Result<Option<Datum>> {
    wait_for_room(call, &extension);
    let identity = identity::current(&extension)?;
    let mut removals = Vec::new();
    for element in elements(call)? {
        let removal = removal(&identity, &element).map_err(|error| located(error, element.place))?;
        removals.extend(removal.expand(&extension)?);
    }
    let connection = Connection::open()?;
    let store = Store::open(&extension, &identity, &connection)?;
    let mut deleted = 0;
    for removal in in_key_order(removals) {
        connection.scratch(|| {
            deleted += removal.run(&store)?;
            Ok(())
        })?;
    }
    Ok(Some(Datum::from(deleted as i32)))
}

fn removal(identity: &Identity, element: &Element) -> Result<Removal> {
    element.known(&DELETE)?;
    let room = element.text("room")?.ok_or(Error::MissingArgument { argument: "room" })?;
    let member_id = match element.text("member_id")? {
        Some(given) => given,
        None => identity.writer()?.to_vec(),
    };
    let connection_id = match element.get("connection_id") {
        Some(Value::Null) => None,
        _ => Some(element.text("connection_id")?.unwrap_or_default()),
    };
    let last_word = element.json("state");
    // SAFETY: a jsonb.
    let last_word = last_word.map(|state| unsafe { bytes_of(state) });
    let reason = delete::reason(identity, element.text("reason")?.as_deref())?;
    // SAFETY: an interval.
    let after = element.interval("after")?.map(|after| unsafe { interval_of(after) });
    Removal::new(room, member_id, connection_id, last_word, reason, after)
}

/// SQL `presence.forget(user_id)`: the number of rows erased.
fn forget(call: &Call, extension: Extension) -> Result<Option<Datum>> {
    let user_id = call.text(0).ok_or(Error::MissingArgument { argument: "user_id" })?;
    validate::name("user_id", user_id)?;
    if !identity::current(&extension)?.service {
        return Err(Error::ServiceOnly { what: "forget a user" });
    }
    let members = delete::delete_members_of(user_id, None)?;
    // What the worker has not written yet, it must not write.
    let image = Image::new([None, None, None, Some(user_id), None, None, None, None]);
    transaction::signal(&extension, Kind::Forget, image, None);
    let past = as_role(extension.owner_role, || {
        let connection = Connection::open()?;
        let last_seen = connection.run(&last_seen::FORGET, &[Some(varlena(user_id))], true)?.count;
        Ok(last_seen
            + remains::forget(&extension, &connection, user_id)?
            + log::forget(&extension, &connection, user_id)?)
    })?;
    Ok(Some(Datum::from((members + past) as i32)))
}

crate::verb!(presence_upsert_many, pg_finfo_presence_upsert_many, "presence.upsert_many()", upsert_many);
crate::verb!(presence_update_many, pg_finfo_presence_update_many, "presence.update_many()", update_many);
crate::verb!(presence_delete_many, pg_finfo_presence_delete_many, "presence.delete_many()", delete_many);
crate::verb!(presence_forget, pg_finfo_presence_forget, "presence.forget()", forget);
