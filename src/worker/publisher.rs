//! The publisher: from the ring to the log and to the listeners, in one transaction a batch.
//!
//! 1. Take a snapshot. A record is ready if its transaction is over by that snapshot.
//! 2. Wait for the cells of transactions that are over but not through with their COMMIT callback (the commit
//!    gap): then the ring has every record that is ready, so no version of a member is missing before another.
//! 3. Read the ring, take the ready records in the order of their versions, conflate, count, number.
//! 4. Write the log, NOTIFY, commit. The COMMIT callback marks the records as done: a worker that dies before has
//!    published nothing, one that dies later everything.

use super::connections::{Connections, Counted};
use super::log::{Log, Values};
use super::process::{self, Failure, attempt, transaction};
use crate::clock;
use crate::error::{Error, Result};
use crate::event::channel::{Channel, EVERYBODY, SERVICE, Scope, covered, own_token, reach};
use crate::event::payload::{self, Event};
use crate::event::record::{Field, Image, Kind, Reason, Record};
use crate::extension::Extension;
use crate::jsonb;
use crate::lease::shared::leases;
use crate::settings::{self, NotifyPayload};
use crate::shared::{Database, processes};
use crate::spi::{self, Connection};
use crate::sqlfn::{decode, text_array, texts_of, varlena};
use pgrx::pg_sys::{self, Datum};
use pgrx::{pg_guard, pg_sys::ffi::pg_guard_ffi_boundary};
use serde_json::value::RawValue;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::atomic::Ordering::*;

/// Records published in one transaction, at most: the NOTIFY lock is held for one commit, not for a flood.
const BATCH: usize = 5_000;

pub struct Publisher {
    /// None: to be built from the table, at start and whenever a batch failed or records were lost.
    connections: Option<Connections>,
    log: Option<Log>,
}

/// How a batch is published: the first way that works.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Together,
    /// Each event in a subtransaction: what fails is dropped and answered with `resync`.
    OneByOne,
    /// The NOTIFY queue is full: the log is written, listeners hear `resync` when there is room.
    LogOnly,
}

/// What the COMMIT callback does with a published batch.
struct Batch {
    database: &'static Database,
    positions: Vec<u64>,
    seq: u64,
    events: u64,
    notifications: u64,
    resynced: bool,
}

thread_local! {
    static BATCH_TO_COMMIT: RefCell<Option<Batch>> = const { RefCell::new(None) };
}

/// Once for each worker.
pub fn register_callback() {
    // SAFETY: the callback has the right signature and lives as long as the library.
    unsafe { pg_sys::RegisterXactCallback(Some(at_transaction_end), std::ptr::null_mut()) };
}

#[pg_guard]
unsafe extern "C-unwind" fn at_transaction_end(event: pg_sys::XactEvent::Type, _argument: *mut std::ffi::c_void) {
    let batch = match event {
        pg_sys::XactEvent::XACT_EVENT_COMMIT => BATCH_TO_COMMIT.take(),
        pg_sys::XactEvent::XACT_EVENT_ABORT => {
            BATCH_TO_COMMIT.take();
            None
        }
        _ => None,
    };
    let Some(batch) = batch else { return };
    let ring = batch.database.ring();
    batch.positions.iter().for_each(|position| ring.mark_done(*position));
    let counters = &batch.database.counters;
    counters.published.fetch_add(batch.events, Relaxed);
    counters.notifications.fetch_add(batch.notifications, Relaxed);
    if batch.resynced {
        counters.resyncs.fetch_add(1, Relaxed);
    }
    batch.database.seq.fetch_max(batch.seq, AcqRel);
    // Last: who waits for the tail finds the rest done.
    ring.advance();
}

impl Publisher {
    pub fn new() -> Publisher {
        Publisher { connections: None, log: None }
    }

    /// Publish what is in the ring. Returns whether there is more to do at once.
    pub fn publish(&mut self, extension: &Extension) -> std::result::Result<bool, Failure> {
        let mut way = Way::Together;
        loop {
            let resync = extension.database.must_resync.load(Acquire);
            match self.try_publish(extension, way, resync) {
                Ok(outcome) => return Ok(outcome),
                Err(failure) => {
                    self.connections = None;
                    way = match way {
                        Way::Together => Way::OneByOne,
                        Way::OneByOne if failure.limit => Way::LogOnly,
                        _ => return Err(failure),
                    };
                }
            }
        }
    }

    fn try_publish(
        &mut self,
        extension: &Extension,
        way: Way,
        resync: bool,
    ) -> std::result::Result<bool, Failure> {
        if resync {
            // Records are missing: what we counted is wrong.
            extension.database.must_resync.store(false, Release);
            self.connections = None;
        }
        let result = transaction(c"publishing events", || {
            let Some(ready) = ready_records(extension)? else { return Ok(Outcome::Blocked) };
            if ready.records.is_empty() && !resync {
                return Ok(Outcome::Nothing);
            }
            spi::as_role(extension.owner, || self.write(extension, ready, way, resync))
        });
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(failure) => {
                if resync {
                    extension.database.must_resync.store(true, Release);
                }
                return Err(failure);
            }
        };
        match outcome {
            Outcome::Nothing | Outcome::Blocked => {
                if resync {
                    extension.database.must_resync.store(true, Release);
                }
                Ok(false)
            }
            Outcome::Published { gone, more } => {
                for (hash, version) in gone {
                    leases().free(&extension.key_of(hash), version);
                }
                if way == Way::LogOnly {
                    extension.database.must_resync.store(true, Release);
                    return Ok(false);
                }
                Ok(more)
            }
        }
    }

    fn write(&mut self, extension: &Extension, ready: Ready, way: Way, resync: bool) -> Result<Outcome> {
        let Ready { records, positions, more } = ready;
        if self.log.is_none() {
            self.log = Some(Log::open()?);
        }
        let mut connections = match self.connections.take() {
            Some(connections) => connections,
            None => Connections::build(&records)?,
        };
        let gone: Vec<(u128, u64)> = records
            .iter()
            .filter(|record| record.kind == Kind::Leave)
            .map(|record| (record.hash, record.version))
            .collect();
        let conflated = conflate(records);
        let connection = Connection::open()?;
        let Some(log) = &mut self.log else { return Err(Error::NotInstalled) };
        let mut writer = Writer {
            extension,
            connection: &connection,
            log,
            seq: extension.database.seq.load(Acquire),
            events: 0,
            notifications: 0,
            quiet: way == Way::LogOnly,
            doorbell: settings::notify_payload() == NotifyPayload::Doorbell,
            rung: HashMap::new(),
        };
        let mut lost = false;
        if resync && way != Way::LogOnly {
            writer.resync()?;
        }
        for record in &conflated {
            let counted = connections.count(record);
            if way == Way::OneByOne {
                let before = writer.seq;
                if let Err(failure) = attempt(|| writer.event(record, &counted)) {
                    pgrx::warning!("presence_ext dropped an event that it could not publish: {}", failure.message);
                    writer.seq = before;
                    extension.database.drop_events(1);
                    lost = true;
                }
            } else {
                writer.event(record, &counted)?;
            }
        }
        writer.ring_bells()?;
        let batch = Batch {
            database: extension.database,
            positions,
            seq: writer.seq,
            events: writer.events,
            notifications: writer.notifications,
            resynced: resync && way != Way::LogOnly,
        };
        if writer.events > 0 {
            log.is_fresh = false;
        }
        BATCH_TO_COMMIT.set(Some(batch));
        self.connections = (!lost).then_some(connections);
        Ok(Outcome::Published { gone, more })
    }

    /// Rotate the log when it is time. Somebody who reads the part makes us try again later.
    pub fn rotate_log(&mut self, extension: &Extension) -> std::result::Result<(), Failure> {
        let Some(log) = self.log.as_ref().filter(|log| log.is_due()) else { return Ok(()) };
        let (next, lost) = transaction(c"rotating the event log", || spi::as_role(extension.owner, || log.rotate()))?;
        extension.database.log_floor.fetch_max(lost, AcqRel);
        self.log = Some(next);
        Ok(())
    }
}

enum Outcome {
    Nothing,
    /// Some backend is in the commit gap and does not come out.
    Blocked,
    Published {
        gone: Vec<(u128, u64)>,
        more: bool,
    },
}

struct Ready {
    records: Vec<Record>,
    positions: Vec<u64>,
    more: bool,
}

/// What the current snapshot says is over, from the ring, oldest version first. None: the commit gap is occupied.
fn ready_records(extension: &Extension) -> Result<Option<Ready>> {
    // SAFETY: `transaction` has pushed a snapshot.
    let snapshot = unsafe { pg_sys::GetActiveSnapshot() };
    // SAFETY: a valid snapshot; 0 is the mark of a record from before the start.
    let is_over = |xid: u32| xid == 0 || !unsafe { pg_sys::XidInMVCCSnapshot(pg_sys::TransactionId::from(xid), snapshot) };
    let in_gap = |process: &crate::shared::Process| {
        let xid = process.committing.load(SeqCst);
        xid != 0 && process.database.load(Relaxed) == extension.database_index && is_over(xid)
    };
    for process in processes() {
        // The gap is some microseconds of copying memory, unless that backend has no processor.
        let mut turns = 0;
        while in_gap(process) {
            if turns == 200 {
                return Ok(None);
            }
            turns += 1;
            std::thread::sleep(std::time::Duration::from_micros(if turns < 20 { 10 } else { 100 }));
            process::interrupts();
        }
    }
    let ring = extension.database.ring();
    let all = ring.read(ring.tail.load(Acquire), ring.head.load(Acquire));
    let mut ready: Vec<(u64, Record)> = Vec::new();
    for (position, bytes) in all {
        match Record::decode(&bytes) {
            Some(record) if is_over(record.xid) => ready.push((position, record)),
            Some(_) => {}
            // Never written by us: not to be read again either.
            None => ring.mark_done(position),
        }
    }
    ready.sort_by_key(|(_, record)| record.version);
    let more = ready.len() > BATCH;
    ready.truncate(BATCH);
    let (positions, records) = ready.into_iter().unzip();
    Ok(Some(Ready { records, positions, more }))
}

/// Of several updates of a member in a row only the newest goes out, with the oldest audience that has not heard.
fn conflate(records: Vec<Record>) -> Vec<Record> {
    let mut kept: Vec<Option<Record>> = Vec::with_capacity(records.len());
    let mut last: HashMap<u128, usize> = HashMap::new();
    for mut record in records {
        let previous = last.insert(record.hash, kept.len()).filter(|_| record.kind != Kind::Room);
        if record.kind == Kind::Update
            && let Some(place) = previous
            && kept[place].as_ref().is_some_and(|earlier| earlier.kind == Kind::Update)
            && let Some(earlier) = kept[place].take()
            && earlier.old.is_some()
        {
            record.old = earlier.old;
            record.hidden_version = earlier.hidden_version;
        }
        kept.push(Some(record));
    }
    kept.into_iter().flatten().collect()
}

struct Writer<'a> {
    extension: &'a Extension,
    connection: &'a Connection,
    log: &'a Log,
    seq: u64,
    events: u64,
    notifications: u64,
    /// No NOTIFY.
    quiet: bool,
    /// Only say that there is something.
    doorbell: bool,
    /// Doorbells to ring at the end: one a channel, with the newest seq.
    rung: HashMap<String, u64>,
}

/// One line of the log and what its listeners hear.
struct Line<'a> {
    event: &'static str,
    version: u64,
    image: &'a Image,
    reason: Reason,
    connections: u32,
    /// Who hears it.
    tokens: Vec<Vec<u8>>,
    /// What the log says of its audience.
    audience: Vec<Vec<u8>>,
    for_service: bool,
    old_audience: Option<Vec<Vec<u8>>>,
}

/// In front of the audience of a line that the owner and service roles do not see: they see the `update`.
const NOT_FOR_OWNER: &[u8] = b"-";

impl Writer<'_> {
    fn event(&mut self, record: &Record, counted: &Counted) -> Result<()> {
        let audience = audience_of(&record.image)?;
        let owner = record.image.get(Field::UserId).unwrap_or_default();
        match record.kind {
            Kind::Update => self.update(record, counted, audience, owner)?,
            Kind::Room => return Ok(()),
            Kind::Enter | Kind::Leave => {
                let event = if record.kind == Kind::Enter { "enter" } else { "leave" };
                self.line(record, Line {
                    event,
                    version: record.version,
                    image: &record.image,
                    reason: record.reason,
                    connections: counted.connections,
                    tokens: reach(&audience, owner),
                    audience,
                    for_service: true,
                    old_audience: None,
                })?;
                let first = record.kind == Kind::Enter && counted.of_user == 1;
                let last = record.kind == Kind::Leave && counted.of_user == 0;
                if first || last {
                    self.relisten(owner, record.image.get(Field::Room).unwrap_or_default())?;
                }
            }
        }
        Ok(())
    }

    /// An update, and with a changed audience: a leave for those who lose sight, an enter for those who gain it.
    fn update(&mut self, record: &Record, counted: &Counted, audience: Vec<Vec<u8>>, owner: &[u8]) -> Result<()> {
        let Some(old) = &record.old else {
            return self.line(record, Line {
                event: "update",
                version: record.version,
                image: &record.image,
                reason: Reason::None,
                connections: counted.connections,
                tokens: reach(&audience, owner),
                audience,
                for_service: true,
                old_audience: None,
            });
        };
        let before = audience_of(old)?;
        let lost: Vec<Vec<u8>> = before.iter().filter(|token| !covered(token, &audience)).cloned().collect();
        let (kept, gained): (Vec<_>, Vec<_>) = audience.iter().cloned().partition(|token| covered(token, &before));
        let others = |tokens: Vec<Vec<u8>>| -> Vec<Vec<u8>> {
            std::iter::once(NOT_FOR_OWNER.to_vec()).chain(tokens).collect()
        };
        if !lost.is_empty() {
            self.line(record, Line {
                event: "leave",
                version: record.hidden_version,
                image: old,
                reason: Reason::Hidden,
                connections: counted.hidden,
                tokens: lost.clone(),
                audience: others(lost),
                for_service: false,
                old_audience: None,
            })?;
        }
        self.line(record, Line {
            event: "update",
            version: record.version,
            image: &record.image,
            reason: Reason::None,
            connections: counted.connections,
            tokens: reach(&kept, owner),
            audience: kept,
            for_service: true,
            old_audience: Some(before),
        })?;
        if !gained.is_empty() {
            self.line(record, Line {
                event: "enter",
                version: record.version,
                image: &record.image,
                reason: Reason::None,
                connections: counted.connections,
                tokens: gained.clone(),
                audience: others(gained),
                for_service: false,
                old_audience: None,
            })?;
        }
        Ok(())
    }

    /// Write the line to the log and tell those who are meant.
    fn line(&mut self, record: &Record, line: Line) -> Result<()> {
        self.seq += 1;
        self.events += 1;
        let text = |field| line.image.get(field).map(varlena);
        let row: Values = [
            Some(Datum::from(self.seq as i64)),
            Some(Datum::from(line.version as i64)),
            Some(varlena(line.event.as_bytes())),
            text(Field::Room),
            text(Field::MemberId),
            text(Field::ConnectionId),
            text(Field::UserId),
            text(Field::Status),
            text(Field::State),
            text(Field::Metadata),
            Some(Datum::from(line.connections as i32)),
            line.reason.name().map(|name| varlena(name.as_bytes())),
            Some(Datum::from(record.at)),
            Some(Datum::from(record.joined_at)),
            Some(text_array(&line.audience)),
        ];
        self.log.insert(self.connection, &row)?;
        self.tell(record, &line)
    }

    fn tell(&mut self, record: &Record, line: &Line) -> Result<()> {
        if self.quiet {
            return Ok(());
        }
        let room = line.image.get(Field::Room).unwrap_or_default();
        let scopes = [Scope::Room(room), Scope::AllRooms];
        let handed_out = |token: &[u8]| -> Vec<String> {
            scopes
                .iter()
                .map(|scope| Channel::new(self.extension, *scope, token))
                .filter(|channel| channel.was_handed_out(self.extension))
                .map(|channel| channel.name(self.extension))
                .collect()
        };
        let ordinary: Vec<String> = line.tokens.iter().flat_map(|token| handed_out(token)).collect();
        let service = if line.for_service { handed_out(SERVICE) } else { Vec::new() };
        if ordinary.is_empty() && service.is_empty() {
            return Ok(());
        }
        if self.doorbell {
            let seq = self.seq;
            ordinary.into_iter().chain(service).for_each(|name| {
                self.rung.insert(name, seq);
            });
            return Ok(());
        }
        let rendered = Rendered::new(record, line);
        if !ordinary.is_empty() {
            let payload = payload::event(&rendered.event(self.seq, line, None));
            for name in &ordinary {
                self.notify(name, &payload)?;
            }
        }
        if !service.is_empty() {
            let audience = line.audience.iter().map(|token| decode(token)).collect::<Vec<_>>();
            let old = line.old_audience.as_ref().map(|old| old.iter().map(|token| decode(token)).collect::<Vec<_>>());
            let payload = payload::event(&rendered.event(self.seq, line, Some((&audience, old.as_deref()))));
            for name in &service {
                self.notify(name, &payload)?;
            }
        }
        Ok(())
    }

    /// To the user: the rooms you are in are not the same as before.
    fn relisten(&mut self, user_id: &[u8], room: &[u8]) -> Result<()> {
        let token = own_token(user_id);
        let channel = Channel::new(self.extension, Scope::Database, &token);
        if !self.quiet && channel.was_handed_out(self.extension) {
            self.notify(&channel.name(self.extension), &payload::relisten(self.seq, Some(&decode(room))))?;
        }
        Ok(())
    }

    /// To everybody: forget everything and list.
    fn resync(&mut self) -> Result<()> {
        self.seq += 1;
        let mut row: Values = [None; 15];
        row[0] = Some(Datum::from(self.seq as i64));
        row[2] = Some(varlena(b"resync"));
        row[12] = Some(Datum::from(clock::wall()));
        row[14] = Some(text_array(&[b"any"]));
        self.log.insert(self.connection, &row)?;
        let channel = Channel::new(self.extension, Scope::Database, EVERYBODY);
        if channel.was_handed_out(self.extension) {
            self.notify(&channel.name(self.extension), &payload::resync(self.seq))?;
        }
        Ok(())
    }

    fn ring_bells(&mut self) -> Result<()> {
        for (name, seq) in std::mem::take(&mut self.rung) {
            self.notify(&name, &payload::doorbell(seq))?;
        }
        Ok(())
    }

    fn notify(&mut self, channel: &str, payload: &str) -> Result<()> {
        self.notifications += 1;
        notify(channel, payload)
    }
}

/// The parts of a line as UTF-8 text, for payloads.
struct Rendered {
    room: String,
    member_id: String,
    connection_id: String,
    user_id: String,
    status: Option<String>,
    state: Option<Box<RawValue>>,
    metadata: Option<Box<RawValue>>,
    at: String,
    joined_at: String,
}

impl Rendered {
    fn new(record: &Record, line: &Line) -> Rendered {
        let text = |field| line.image.get(field).map(decode);
        let json = |field| line.image.get(field).and_then(|bytes| RawValue::from_string(jsonb::to_text(bytes)).ok());
        Rendered {
            room: text(Field::Room).unwrap_or_default(),
            member_id: text(Field::MemberId).unwrap_or_default(),
            connection_id: text(Field::ConnectionId).unwrap_or_default(),
            user_id: text(Field::UserId).unwrap_or_default(),
            status: text(Field::Status),
            state: json(Field::State),
            metadata: json(Field::Metadata),
            at: payload::time(record.at),
            joined_at: payload::time(record.joined_at),
        }
    }

    fn event<'a>(
        &'a self,
        seq: u64,
        line: &'a Line,
        audiences: Option<(&'a [String], Option<&'a [String]>)>,
    ) -> Event<'a> {
        Event {
            event: line.event,
            seq,
            version: line.version,
            room: &self.room,
            member_id: &self.member_id,
            connection_id: &self.connection_id,
            user_id: &self.user_id,
            status: self.status.as_deref(),
            state: self.state.as_deref(),
            metadata: self.metadata.as_deref(),
            connections: line.connections,
            reason: line.reason.name(),
            at: &self.at,
            joined_at: &self.joined_at,
            audience: audiences.map(|(audience, _)| audience),
            old_audience: audiences.and_then(|(_, old)| old),
            truncated: false,
        }
    }
}

fn audience_of(image: &Image) -> Result<Vec<Vec<u8>>> {
    let bytes = image.get(Field::Audience).unwrap_or_default();
    // SAFETY: the bytes of a text[] behind its header, put behind a header again.
    let tokens = unsafe { texts_of(varlena(bytes)) };
    let tokens = tokens.map_err(|why| Error::InvalidAudience { why: why.into() })?;
    Ok(tokens.into_iter().map(<[u8]>::to_vec).collect())
}

unsafe extern "C-unwind" {
    fn Async_Notify(channel: *const std::ffi::c_char, payload: *const std::ffi::c_char);
}

/// NOTIFY in this transaction. Channel and payload are ours: short and ASCII.
pub fn notify(channel: &str, payload: &str) -> Result<()> {
    let text = |text: &str| {
        CString::new(text).map_err(|_| Error::InvalidArgument { argument: "payload", why: "It has a NUL.".into() })
    };
    let (channel, payload) = (text(channel)?, text(payload)?);
    // SAFETY: C strings; the function copies them and may raise, which the boundary turns into a panic.
    unsafe { pg_guard_ffi_boundary(|| Async_Notify(channel.as_ptr(), payload.as_ptr())) };
    Ok(())
}
