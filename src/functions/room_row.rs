//! The BEFORE trigger of `presence.room`: validates and completes the row, whatever statement writes it.

use crate::access::identity;
use crate::error::{Error, Result};
use crate::member::checks::EMPTY_OBJECT;
use crate::pg::datum::{begins_with, interval_of, text_array, text_in, texts_of, varlena};
use crate::pg::function::Call;
use crate::shared::next_version;
use crate::{extension, validate};
use pgrx::pg_sys::{self, Datum, Oid};

/// The columns, in the order of sql/rooms.sql. Added columns may follow.
const ROOM: usize = 0;
const METADATA: usize = 1;
const AUDIENCE: usize = 2;
const COUNT_AUDIENCE: usize = 3;
const TTL: usize = 4;
const MAX_MEMBERS: usize = 5;
const VERSION: usize = 7;
const CREATED_AT: usize = 8;
const UPDATED_AT: usize = 9;

/// Their types.
const TYPES: [Oid; 10] = [
    pg_sys::TEXTOID,
    pg_sys::JSONBOID,
    pg_sys::TEXTARRAYOID,
    pg_sys::TEXTARRAYOID,
    pg_sys::INTERVALOID,
    pg_sys::INT4OID,
    pg_sys::BOOLOID,
    pg_sys::INT8OID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::TIMESTAMPTZOID,
];

/// All columns of a row, including added ones.
struct Row {
    values: Vec<Datum>,
    nulls: Vec<bool>,
    memory: pg_sys::MemoryContext,
}

impl Row {
    /// # Safety
    /// A tuple of this descriptor, which outlives the row.
    unsafe fn read(tuple: pg_sys::HeapTuple, descriptor: pg_sys::TupleDesc) -> Result<Row> {
        // SAFETY: the caller's promise; there is a place for each attribute, and no more are looked at.
        unsafe {
            if !begins_with(descriptor, &TYPES) {
                return Err(Error::TooManyColumns);
            }
            let width = (*descriptor).natts as usize;
            let (mut values, mut nulls) = (vec![Datum::from(0); width], vec![true; width]);
            pg_sys::heap_deform_tuple(tuple, descriptor, values.as_mut_ptr(), nulls.as_mut_ptr());
            Ok(Row { values, nulls, memory: pg_sys::CurrentMemoryContext })
        }
    }

    fn get(&self, column: usize) -> Option<Datum> {
        (!self.nulls[column]).then(|| self.values[column])
    }

    fn set(&mut self, column: usize, value: Option<Datum>) {
        self.nulls[column] = value.is_none();
        self.values[column] = value.unwrap_or(Datum::from(0));
    }

    fn room(&self) -> Option<&[u8]> {
        // SAFETY: a text.
        self.get(ROOM).map(|room| unsafe { text_in(self, self.memory, room) })
    }

    /// Sorted, without duplicates, with `room` expanded.
    fn normalize(&mut self, column: usize, room: &[u8]) -> Result<()> {
        let Some(tokens) = self.get(column) else { return Ok(()) };
        // SAFETY: a text[].
        let tokens = unsafe { texts_of(tokens) }.map_err(|why| Error::InvalidAudience { why: why.into() })?;
        let tokens = text_array(&validate::audience(tokens.iter(), room)?);
        self.set(column, Some(tokens));
        Ok(())
    }
}

/// SQL `_presence._room_before()`: BEFORE INSERT or UPDATE, each row.
fn room_before(call: &Call) -> Result<Option<Datum>> {
    use pg_sys::{TRIGGER_EVENT_BEFORE, TRIGGER_EVENT_INSERT, TRIGGER_EVENT_ROW, TRIGGER_EVENT_UPDATE};
    let not_ours = Error::NotItsTrigger { table: "presence.room" };
    let Some(data) = call.trigger() else { return Err(not_ours) };
    let is_insert = data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK == TRIGGER_EVENT_INSERT;
    let is_update = data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK == TRIGGER_EVENT_UPDATE;
    // SAFETY: a trigger's relation is open.
    let (table, descriptor) = unsafe { ((*data.tg_relation).rd_id, (*data.tg_relation).rd_att) };
    let is_ours = extension::relation(c"room") == Some(table)
        && data.tg_event & pg_sys::TRIGGER_EVENT_TIMINGMASK == TRIGGER_EVENT_BEFORE
        && data.tg_event & TRIGGER_EVENT_ROW != 0
        && (is_insert || is_update);
    if !is_ours {
        return Err(not_ours);
    }
    // SAFETY: tuples of this trigger's relation; an UPDATE has a new one.
    let (old, mut row) = unsafe {
        let newest = if is_update { data.tg_newtuple } else { data.tg_trigtuple };
        (Row::read(data.tg_trigtuple, descriptor)?, Row::read(newest, descriptor)?)
    };
    if is_update && row.room() != old.room() {
        return Err(Error::RoomIsFixed);
    }
    let room = row.room().ok_or(Error::MissingArgument { argument: "room" })?.to_vec();
    validate::name("room", &room)?;
    if row.get(METADATA).is_none() {
        row.set(METADATA, Some(varlena(&EMPTY_OBJECT)));
    }
    row.normalize(AUDIENCE, &room)?;
    row.normalize(COUNT_AUDIENCE, &room)?;
    if let Some(ttl) = row.get(TTL) {
        // SAFETY: an interval.
        validate::ttl(unsafe { interval_of(ttl) })?;
    }
    if row.get(MAX_MEMBERS).is_some_and(|most| (most.value() as i32) < 1) {
        let why = "It is at least 1, or NULL for no limit.".into();
        return Err(Error::InvalidArgument { argument: "max_members", why });
    }
    // A restore keeps the dumped times. It is recognized by a version that a service role gives.
    let has_version = row.get(VERSION).is_some_and(|version| version.value() as i64 > 0);
    let is_restored = is_insert && has_version && identity::current(&extension::current()?)?.service;
    if !is_restored {
        // SAFETY: reads the clock.
        let now = Some(Datum::from(unsafe { pg_sys::GetCurrentTimestamp() }));
        row.set(UPDATED_AT, now);
        row.set(CREATED_AT, if is_update { old.get(CREATED_AT) } else { now });
    }
    row.set(VERSION, Some(Datum::from(next_version() as i64)));
    // SAFETY: a value, or a null, for each attribute of the descriptor.
    let tuple =
        unsafe { pg_sys::heap_form_tuple(descriptor, row.values.as_mut_ptr(), row.nulls.as_mut_ptr()) };
    Ok(Some(Datum::from(tuple)))
}

crate::sql_function!(presence_room_before, pg_finfo_presence_room_before, room_before);
