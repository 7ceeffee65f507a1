//! Writes one batch: a line of the log for each event, and who else is told of it. By which channels, and what: `routing`.

use super::connections::Counted;
use super::log::{self, COLUMNS, Log, Page, Values};
use super::log_entry::LogEntry;
use super::memory;
use super::roaming::Roaming;
use super::rotation::{self, Rotation};
use super::routing::rings_only;
use crate::access::authorizer;
use crate::clock;
use crate::error::{Error, Result};
use crate::event::channel::{next_boot, own_token};
use crate::event::image::{Field, Image};
use crate::event::payload;
use crate::event::reach::{covered, reach, with_gained};
use crate::event::record::{Kind, Reason, Record};
use crate::extension::{self, Extension};
use crate::pg::datum::{text_array, texts_of, varlena};
use crate::pg::memory::Scratch;
use crate::pg::spi::Connection;
use crate::pg::subtransaction::Failure;
use crate::settings;
use crate::shared::channel_epochs::Renewal;
use crate::shared::subscriber_counts::FIXED;
use pgrx::pg_sys::Datum;
use std::collections::HashMap;
use std::sync::atomic::Ordering::*;

pub struct Writer<'a> {
    pub(super) extension: &'a Extension,
    pub(super) connection: &'a Connection,
    pub(super) page: Page,
    pub(super) rotation: &'a mut Rotation,
    /// This server's name.
    pub(super) node: Option<Vec<u8>>,
    pub(super) written: Written,
    /// Do not NOTIFY.
    pub(super) quiet: bool,
    /// Listeners are owed a `resync`, which this batch does not send.
    pub(super) owes_resync: bool,
    /// Send only doorbells.
    pub(super) doorbell: bool,
    /// The same for listeners to all rooms, because an authorizer decides for each room.
    pub(super) doorbell_for_all_rooms: bool,
    pub(super) roaming: Roaming<'a>,
    /// Doorbells to ring at the end: one per channel, with the newest seq.
    pub(super) rung: HashMap<String, u64>,
    /// Memory for one line.
    pub(super) scratch: Scratch,
    /// The owner has much in the ring: see `memory`.
    pub(super) is_flooded: bool,
    /// Memory that is kept until the commit, for notifications and everything else that grows with the batch.
    pub(super) memory: usize,
}

/// Memory of a subtransaction until the commit.
const SUBTRANSACTION: usize = 16 * 1024;

/// The result of a batch.
#[derive(Default)]
pub struct Written {
    pub seq: u64,
    pub events: u64,
    pub notifications: u64,
    /// Channels that get new names with the commit, each with the old name on which that is announced.
    pub renewals: Vec<(String, Renewal)>,
}

/// Prefix of the audience of a line that the owner and service roles do not see, because they see the `update`.
const NOT_FOR_OWNER: &[u8] = b"-";

impl<'a> Writer<'a> {
    pub fn new(
        extension: &'a Extension,
        connection: &'a Connection,
        log: &Log,
        rotation: &'a mut Rotation,
        quiet: bool,
    ) -> Result<Writer<'a>> {
        Ok(Writer {
            extension,
            connection,
            page: log.page(connection)?,
            rotation,
            node: settings::node_name(),
            written: Written { seq: extension.database.seq.load(Acquire), ..Written::default() },
            quiet,
            owes_resync: extension.database.owed_resync().is_some(),
            doorbell: rings_only(extension)?,
            doorbell_for_all_rooms: authorizer::is_set(),
            roaming: Roaming::new(extension),
            rung: HashMap::new(),
            scratch: Scratch::new(),
            is_flooded: false,
            memory: 0,
        })
    }

    /// Whether it is time to commit, because the memory that is kept until then has reached its limit.
    pub fn is_full(&self) -> bool {
        self.memory > memory::for_notifications()
    }

    /// Write something that may fail: then nothing of it is counted.
    pub fn attempt(
        &mut self,
        body: impl FnOnce(&mut Self) -> std::result::Result<(), Failure>,
    ) -> std::result::Result<(), Failure> {
        self.memory += SUBTRANSACTION;
        let (seq, events, notifications) =
            (self.written.seq, self.written.events, self.written.notifications);
        let result = body(self);
        if result.is_err() {
            (self.written.seq, self.written.events, self.written.notifications) =
                (seq, events, notifications);
        }
        result
    }

    /// Ring the doorbells, and rotate what is due.
    pub fn finish(mut self) -> Result<Written> {
        for (name, seq) in std::mem::take(&mut self.rung) {
            self.notify(&name, &payload::doorbell(seq))?;
        }
        if !self.quiet {
            for (user_id, room) in self.rotation.take_over() {
                self.relisten(&user_id, &room)?;
            }
            for (name, renewal) in self.rotation.take_due(self.extension, self.owes_resync) {
                if self.extension.database.held.holds(&name) {
                    let seq = self.written.seq;
                    let payload = match renewal {
                        Renewal::All(_) => payload::beacon("relisten", next_boot(self.extension), seq),
                        Renewal::Of(_) => payload::relisten(seq, None),
                    };
                    self.notify(&name, &payload)?;
                }
                self.written.renewals.push((name, renewal));
            }
        }
        Ok(self.written)
    }

    pub fn event(&mut self, record: &Record, counted: &Counted) -> Result<()> {
        if record.kind == Kind::Rotate {
            let room = record.image.get(Field::Room);
            rotation::ask(self.extension, room);
            return room.map_or(Ok(()), |room| self.relisten_for_service(room));
        }
        let audience = self.scratch.within(|| audience_of(&record.image))?;
        let owner = record.image.get(Field::UserId).unwrap_or_default();
        self.told(record, counted, audience, owner)?;
        self.scratch.clear();
        Ok(())
    }

    fn told(
        &mut self,
        record: &Record,
        counted: &Counted,
        audience: Vec<Vec<u8>>,
        owner: &[u8],
    ) -> Result<()> {
        match record.kind {
            Kind::Rotate | Kind::Quiet => {}
            Kind::Forget => self.forget(owner)?,
            Kind::Update => {
                self.update(record, counted, audience, owner)?;
                self.given_away(record, counted, owner)?;
                if record.revived {
                    // A user who has looked up names meanwhile was not in the room.
                    let room = record.image.get(Field::Room).unwrap_or_default();
                    self.relisten(owner, room)?;
                }
            }
            Kind::Room => self.room(record, audience)?,
            Kind::Enter | Kind::Leave => {
                let event = if record.kind == Kind::Enter { "enter" } else { "leave" };
                self.line(
                    record,
                    LogEntry {
                        event,
                        version: record.version,
                        image: &record.image,
                        reason: record.reason,
                        connections: counted.connections,
                        tokens: reach(&audience, owner),
                        audience,
                        for_service: true,
                        changed_audience: None,
                    },
                )?;
                let first = record.kind == Kind::Enter && counted.alive <= 1;
                let last = record.kind == Kind::Leave && counted.alive == 0;
                let room = record.image.get(Field::Room).unwrap_or_default();
                if first || last {
                    self.relisten(owner, room)?;
                }
                if last {
                    rotation::left(self.extension, owner, room);
                }
            }
        }
        Ok(())
    }

    /// The user has no members in the room any more.
    fn gone_from(&mut self, user_id: &[u8], room: &[u8]) -> Result<()> {
        self.relisten(user_id, room)?;
        rotation::left(self.extension, user_id, room);
        Ok(())
    }

    /// With a new owner one user may have left the room and another entered it.
    fn given_away(&mut self, record: &Record, counted: &Counted, owner: &[u8]) -> Result<()> {
        let before =
            record.old.as_ref().and_then(|old| old.get(Field::UserId)).filter(|before| *before != owner);
        let Some(before) = before else { return Ok(()) };
        let room = record.image.get(Field::Room).unwrap_or_default();
        if counted.alive <= 1 {
            self.relisten(owner, room)?;
        }
        if counted.alive_of_old == 0 { self.gone_from(before, room) } else { Ok(()) }
    }

    /// An update; if the audience changed, also a leave for those who lose sight, and an enter for those who gain it.
    fn update(
        &mut self,
        record: &Record,
        counted: &Counted,
        audience: Vec<Vec<u8>>,
        owner: &[u8],
    ) -> Result<()> {
        let Some(old) = &record.old else {
            return self.line(
                record,
                LogEntry {
                    event: "update",
                    version: record.version,
                    image: &record.image,
                    reason: Reason::None,
                    connections: counted.connections,
                    tokens: reach(&audience, owner),
                    audience,
                    for_service: true,
                    changed_audience: None,
                },
            );
        };
        // The owner sees the member as if by a token of their own; whoever gives it away loses sight of it like
        // anybody.
        let with_owner = |mut tokens: Vec<Vec<u8>>, image: &Image| {
            tokens.push(own_token(image.get(Field::UserId).unwrap_or_default()));
            tokens
        };
        let old_audience = self.scratch.within(|| audience_of(old))?;
        let before = with_owner(old_audience.clone(), old);
        let now = with_owner(audience.clone(), &record.image);
        let lost: Vec<Vec<u8>> = before.iter().filter(|token| !covered(token, &now)).cloned().collect();
        let (kept, gained): (Vec<_>, Vec<_>) =
            audience.iter().cloned().partition(|token| covered(token, &before));
        let others = |tokens: Vec<Vec<u8>>| -> Vec<Vec<u8>> {
            std::iter::once(NOT_FOR_OWNER.to_vec()).chain(tokens).collect()
        };
        // The functions of older SQL show the column as it is.
        let logged =
            if extension::has_internal_schema() { with_gained(kept.clone(), &gained) } else { kept.clone() };
        if !lost.is_empty() {
            self.line(
                record,
                LogEntry {
                    event: "leave",
                    version: record.hidden_leave_version,
                    image: old,
                    reason: Reason::Hidden,
                    connections: counted.hidden,
                    tokens: lost.clone(),
                    audience: others(lost),
                    for_service: false,
                    changed_audience: None,
                },
            )?;
        }
        self.line(
            record,
            LogEntry {
                event: "update",
                version: record.version,
                image: &record.image,
                reason: Reason::None,
                connections: counted.connections,
                tokens: reach(&kept, owner),
                audience: logged,
                for_service: true,
                changed_audience: Some((old_audience, audience)),
            },
        )?;
        if !gained.is_empty() {
            self.line(
                record,
                LogEntry {
                    event: "enter",
                    version: record.version,
                    image: &record.image,
                    reason: Reason::None,
                    connections: counted.connections,
                    tokens: gained.clone(),
                    audience: others(gained),
                    for_service: false,
                    changed_audience: None,
                },
            )?;
        }
        Ok(())
    }

    /// Delete a user from the log, including the events that this batch has written.
    fn forget(&mut self, user_id: &[u8]) -> Result<()> {
        log::forget(self.extension, self.connection, user_id).map(|_| ())
    }

    /// A room's metadata changed: for those who may read the room's settings.
    fn room(&mut self, record: &Record, audience: Vec<Vec<u8>>) -> Result<()> {
        let old = record.old.as_ref().map(|old| self.scratch.within(|| audience_of(old))).transpose()?;
        let changed_audience = old.filter(|old| *old != audience).map(|old| (old, audience.clone()));
        self.line(
            record,
            LogEntry {
                event: "room",
                version: record.version,
                image: &record.image,
                reason: Reason::None,
                connections: 0,
                tokens: reach(&audience, b""),
                audience,
                for_service: true,
                changed_audience,
            },
        )
    }

    /// Write the line to the log and notify its channels.
    fn line(&mut self, record: &Record, line: LogEntry) -> Result<()> {
        self.written.seq += 1;
        self.written.events += 1;
        self.scratch.within(|| self.page.insert(self.connection, &self.row(record, &line)))?;
        self.scratch.clear();
        let rendered = self.tell(record, &line);
        self.scratch.clear();
        rendered
    }

    /// The server where it happened.
    pub(super) fn node_of<'r>(&'r self, record: &'r Record) -> Option<&'r [u8]> {
        record.node.as_deref().or(self.node.as_deref())
    }

    /// A row of the log.
    fn row(&self, record: &Record, line: &LogEntry) -> Values {
        let text = |field| line.image.get(field).map(varlena);
        [
            Some(Datum::from(self.written.seq as i64)),
            Some(Datum::from(line.version as i64)),
            Some(varlena(line.event.as_bytes())),
            text(Field::Room),
            text(Field::MemberId),
            text(Field::ConnectionId),
            text(Field::UserId),
            text(Field::Status),
            text(Field::State),
            text(Field::Metadata),
            (record.kind != Kind::Room).then(|| Datum::from(line.connections as i32)),
            line.reason.name().map(|name| varlena(name.as_bytes())),
            Some(Datum::from(record.at)),
            (record.kind != Kind::Room).then(|| Datum::from(record.joined_at)),
            Some(text_array(&line.audience)),
            self.node_of(record).map(varlena),
        ]
    }

    /// To everybody: list again.
    pub fn resync(&mut self) -> Result<()> {
        self.owes_resync = false;
        self.written.seq += 1;
        let mut row: Values = [None; COLUMNS];
        row[0] = Some(Datum::from(self.written.seq as i64));
        row[2] = Some(varlena(b"resync"));
        row[12] = Some(Datum::from(clock::wall()));
        row[14] = Some(text_array([b"any"]));
        self.page.insert(self.connection, &row)?;
        if self.extension.database.held.holds(FIXED) {
            self.notify(FIXED, &payload::resync(self.written.seq))?;
        }
        Ok(())
    }
}

fn audience_of(image: &Image) -> Result<Vec<Vec<u8>>> {
    let Some(bytes) = image.get(Field::Audience) else { return Ok(Vec::new()) };
    // SAFETY: the bytes of a text[] behind its header, put behind a header again.
    let tokens = unsafe { texts_of(varlena(bytes)) };
    let tokens = tokens.map_err(|why| Error::InvalidAudience { why: why.into() })?;
    Ok(tokens.iter().map(<[u8]>::to_vec).collect())
}
