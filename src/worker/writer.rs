//! Writes one batch: a line of the log for each event, and the notifications to those whom it is for.

use super::connections::Counted;
use super::log::{COLUMNS, FORGET, Log, Page, Values};
use super::log_entry::{LogEntry, Rendered};
use super::memory::{self, Scratch};
use super::roaming::Roaming;
use super::rotation::{self, Rotation};
use crate::access::{authorizer, narrowing, policy};
use crate::clock;
use crate::error::{Error, Result};
use crate::event::channel::{Channel, SERVICE, Scope, covered, in_room, next_boot, own_token, reach};
use crate::event::payload;
use crate::event::record::{Field, Image, Kind, Reason, Record};
use crate::extension::Extension;
use crate::functions::channels;
use crate::pg::datum::{text_array, texts_of, varlena};
use crate::pg::encoding::decode;
use crate::pg::notify::notify;
use crate::pg::spi::Connection;
use crate::pg::subtransaction::Failure;
use crate::settings::{self, NotifyPayload};
use crate::shared::channel_epochs::Renewal;
use crate::shared::subscriber_counts::FIXED;
use pgrx::pg_sys::Datum;
use std::collections::HashMap;
use std::sync::atomic::Ordering::*;

pub struct Writer<'a> {
    extension: &'a Extension,
    connection: &'a Connection,
    page: Page,
    rotation: &'a mut Rotation,
    written: Written,
    /// No NOTIFY.
    quiet: bool,
    /// Listeners are owed a `resync`, and this batch does not tell it.
    owes_resync: bool,
    /// Only say that there is something.
    doorbell: bool,
    /// The same for those who listen to all rooms, where an authorizer decides room by room.
    doorbell_for_all_rooms: bool,
    roaming: Roaming<'a>,
    /// Doorbells to ring at the end: one a channel, with the newest seq.
    rung: HashMap<String, u64>,
    /// For what one line takes.
    scratch: Scratch,
    /// What is kept until the commit, for notifications and for what else grows with the batch.
    memory: usize,
}

/// Whether notifications only say that there is something: by setting, or because the policies are not ours.
pub fn rings_only(extension: &Extension) -> Result<bool> {
    Ok(settings::notify_payload() == NotifyPayload::Doorbell
        || narrowing::news(extension.database).is_some()
        || !policy::is_builtin(extension)?)
}

/// What a notification takes until the commit: PostgreSQL keeps channel and payload in memory that comes in powers of
/// two, with an entry in a list and in a hash table.
pub fn memory_of(payload: usize) -> usize {
    (payload + 64).next_power_of_two() + 128
}

/// A name that is rung at the end, and its notification.
const BELL: usize = 400;
/// What a subtransaction keeps until the commit.
const SUBTRANSACTION: usize = 16 * 1024;

/// What a batch came to.
#[derive(Default)]
pub struct Written {
    pub seq: u64,
    pub events: u64,
    pub notifications: u64,
    /// Channels that have new names from the commit on, and by which old one that is told.
    pub renewals: Vec<(String, Renewal)>,
}

/// In front of the audience of a line that the owner and service roles do not see: they see the `update`.
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
            written: Written { seq: extension.database.seq.load(Acquire), ..Written::default() },
            quiet,
            owes_resync: extension.database.owed_resync().is_some(),
            doorbell: rings_only(extension)?,
            doorbell_for_all_rooms: authorizer::is_set(),
            roaming: Roaming::new(extension),
            rung: HashMap::new(),
            scratch: Scratch::new(),
            memory: 0,
        })
    }

    /// Whether it is time to commit: what is kept until then is as much as it may be.
    pub fn is_full(&self) -> bool {
        self.memory > memory::for_notifications()
    }

    /// Try to write something that may fail: then nothing of it is counted.
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

    /// Ring the bells, rotate what is due.
    pub fn finish(mut self) -> Result<Written> {
        for (name, seq) in std::mem::take(&mut self.rung) {
            self.notify(&name, &payload::doorbell(seq))?;
        }
        if !self.quiet {
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
            Kind::Rotate => {}
            Kind::Forget => self.forget(owner)?,
            Kind::Update => {
                self.update(record, counted, audience, owner)?;
                self.given_away(record, counted, owner)?;
                if record.revived {
                    // Who looked meanwhile was not in the room.
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

    /// The user has no member in the room any more.
    fn gone_from(&mut self, user_id: &[u8], room: &[u8]) -> Result<()> {
        self.relisten(user_id, room)?;
        rotation::left(self.extension, user_id, room);
        Ok(())
    }

    /// With a new owner, one user may have left the room and another entered it.
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

    /// An update, and with a changed audience: a leave for those who lose sight, an enter for those who gain it.
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
        // The owner sees it as by a token of their own: who gives the member away loses sight of it like anybody.
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
                audience: kept,
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

    /// The log forgets a user, with the events that this very batch has written.
    fn forget(&mut self, user_id: &[u8]) -> Result<()> {
        self.connection.run(&FORGET, &[Some(varlena(user_id))], true).map(|_| ())
    }

    /// A room's metadata changed: for those who may read the room's settings.
    fn room(&mut self, record: &Record, audience: Vec<Vec<u8>>) -> Result<()> {
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
                changed_audience: None,
            },
        )
    }

    /// Write the line to the log and tell those who are meant.
    fn line(&mut self, record: &Record, line: LogEntry) -> Result<()> {
        self.written.seq += 1;
        self.written.events += 1;
        self.scratch.within(|| self.page.insert(self.connection, &self.row(record, &line)))?;
        self.scratch.clear();
        let rendered = self.tell(record, &line);
        self.scratch.clear();
        rendered
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
            None,
        ]
    }

    fn tell(&mut self, record: &Record, line: &LogEntry) -> Result<()> {
        if self.quiet {
            return Ok(());
        }
        let room = line.image.get(Field::Room).unwrap_or_default();
        let (mut whole, mut bells) = (Vec::new(), Vec::new());
        for token in &line.tokens {
            let (doorbells, has_channel) = in_room(room, token);
            for doorbell in doorbells {
                self.address(Scope::Room(room), doorbell, None, &mut bells);
            }
            if has_channel {
                self.address(Scope::Room(room), token, Some(&mut whole), &mut bells);
            }
            let (roaming, doorbells) = self.roaming.hear(token)?;
            for doorbell in doorbells {
                self.address(Scope::AllRooms, doorbell, None, &mut bells);
            }
            for token in std::iter::once(token).chain(roaming.iter()) {
                let all = (!self.doorbell_for_all_rooms).then_some(&mut whole);
                self.address(Scope::AllRooms, token, all, &mut bells);
            }
        }
        let mut service = Vec::new();
        if line.for_service {
            for scope in [Scope::Room(room), Scope::AllRooms] {
                self.address(scope, SERVICE, Some(&mut service), &mut bells);
            }
        }
        if self.doorbell {
            bells.extend(whole.drain(..).chain(service.drain(..)));
        }
        if !whole.is_empty() || !service.is_empty() {
            let (payload, for_service) =
                self.scratch.within(|| self.payloads(record, line, !service.is_empty()));
            // What one line may take: the rest of an audience that is too wide hears that there is something.
            let most = memory::for_payloads_of_a_line() / memory_of(payload.len());
            bells.extend(whole.drain(whole.len().min(most)..));
            whole.iter().try_for_each(|name| self.notify(name, &payload))?;
            service.iter().try_for_each(|name| self.notify(name, &for_service))?;
        }
        self.memory += bells.len() * BELL;
        let seq = self.written.seq;
        self.rung.extend(bells.into_iter().map(|name| (name, seq)));
        Ok(())
    }

    /// The payload for the audience, and the one for service roles.
    fn payloads(&self, record: &Record, line: &LogEntry, for_service: bool) -> (String, String) {
        let seq = self.written.seq;
        let rendered = Rendered::new(record, line);
        let payload = rendered.payload(record.kind, seq, line, None);
        if !for_service {
            return (payload, String::new());
        }
        let text = |tokens: &[Vec<u8>]| tokens.iter().map(|token| decode(token)).collect::<Vec<_>>();
        let (old, new) =
            line.changed_audience.as_ref().map_or((None, &line.audience), |(old, new)| (Some(old), new));
        let (audience, old) = (text(new), old.map(|old| text(old)));
        (payload, rendered.payload(record.kind, seq, line, Some((&audience, old.as_deref()))))
    }

    /// Add the channel's name, if somebody listens to it; to the bells if who hears it may not read it any more.
    fn address(&self, scope: Scope, token: &[u8], names: Option<&mut Vec<String>>, bells: &mut Vec<String>) {
        let channel = Channel::new(self.extension, scope, token);
        if channel.is_held(self.extension) {
            let names = names.filter(|_| !self.rotation.is_stale(self.extension, &channel));
            names.unwrap_or(bells).push(channel.name(self.extension));
        }
    }

    /// To the user: the rooms you are in are not the same as before.
    fn relisten(&mut self, user_id: &[u8], room: &[u8]) -> Result<()> {
        let token = own_token(user_id);
        // Who is about to commit a LISTEN, and does not hear it, finds out by this.
        self.extension.database.names.moved(channels::moves_of(self.extension, Some(user_id)));
        self.signal_relisten(&Channel::new(self.extension, Scope::Database, &token), room)
    }

    /// To service roles: rights in this room may have changed, ask for them again. (Of all rooms everybody is told.)
    fn relisten_for_service(&mut self, room: &[u8]) -> Result<()> {
        for scope in [Scope::Room(room), Scope::AllRooms] {
            let channel = Channel::new(self.extension, scope, SERVICE);
            self.signal_relisten(&channel, room)?;
        }
        Ok(())
    }

    fn signal_relisten(&mut self, channel: &Channel, room: &[u8]) -> Result<()> {
        if !self.quiet && channel.is_held(self.extension) {
            let payload = payload::relisten(self.written.seq, Some(&decode(room)));
            self.notify(&channel.name(self.extension), &payload)?;
        }
        Ok(())
    }

    /// To everybody: forget everything and list.
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

    fn notify(&mut self, channel: &str, payload: &str) -> Result<()> {
        self.written.notifications += 1;
        self.memory += memory_of(payload.len());
        notify(channel, payload)
    }
}

fn audience_of(image: &Image) -> Result<Vec<Vec<u8>>> {
    let Some(bytes) = image.get(Field::Audience) else { return Ok(Vec::new()) };
    // SAFETY: the bytes of a text[] behind its header, put behind a header again.
    let tokens = unsafe { texts_of(varlena(bytes)) };
    let tokens = tokens.map_err(|why| Error::InvalidAudience { why: why.into() })?;
    Ok(tokens.iter().map(<[u8]>::to_vec).collect())
}
