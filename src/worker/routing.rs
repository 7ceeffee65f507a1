//! Which channels hear of an event, and what: the whole payload, a doorbell, or nothing. A channel that nobody holds is
//! skipped; one whose holders may have lost the right to it hears a doorbell.

use super::log_entry::{LogEntry, Rendered};
use super::memory;
use super::writer::Writer;
use crate::access::{narrowing, policy};
use crate::error::Result;
use crate::event::channel::{Channel, SERVICE, Scope, in_room, moves_of, own_token};
use crate::event::image::Field;
use crate::event::payload;
use crate::event::record::Record;
use crate::extension::Extension;
use crate::pg::encoding::decode;
use crate::pg::notify::notify;
use crate::settings::{self, NotifyPayload};

/// Whether notifications are only doorbells: by a setting, or because the policies are not ours.
pub fn rings_only(extension: &Extension) -> Result<bool> {
    Ok(settings::notify_payload() == NotifyPayload::Doorbell
        || narrowing::news(extension.database).is_some()
        || !policy::is_builtin(extension)?)
}

/// Memory of a notification until the commit: PostgreSQL allocates channel and payload in powers of two, with an entry
/// in a list and in a hash table.
pub fn memory_of(payload: usize) -> usize {
    (payload + 64).next_power_of_two() + 128
}

/// Memory of a doorbell's name and its notification.
const BELL: usize = 400;

impl Writer<'_> {
    pub(super) fn tell(&mut self, record: &Record, line: &LogEntry) -> Result<()> {
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
            let wanted = (!whole.is_empty(), !service.is_empty());
            let (payload, for_service) = self.scratch.within(|| self.payloads(record, line, wanted));
            // The limit for one line: the rest of a very wide audience gets a doorbell.
            let most = match self.is_flooded {
                true => memory::FOR_PAYLOADS_OF_A_FLOODED_LINE,
                false => memory::for_payloads_of_a_line(),
            } / memory_of(payload.len());
            bells.extend(whole.drain(whole.len().min(most)..));
            whole.iter().try_for_each(|name| self.notify(name, &payload))?;
            service.iter().try_for_each(|name| self.notify(name, &for_service))?;
        }
        self.memory += bells.len() * BELL;
        let seq = self.written.seq;
        self.rung.extend(bells.into_iter().map(|name| (name, seq)));
        Ok(())
    }

    /// The payload for the audience and the one for service roles, as far as they are wanted.
    fn payloads(&self, record: &Record, line: &LogEntry, wanted: (bool, bool)) -> (String, String) {
        let seq = self.written.seq;
        let rendered = Rendered::new(record, line, self.node_of(record));
        let for_audience = || rendered.payload(record.kind, seq, line, None);
        let for_service = || {
            let text = |tokens: &[Vec<u8>]| tokens.iter().map(|token| decode(token)).collect::<Vec<_>>();
            let (old, new) =
                line.changed_audience.as_ref().map_or((None, &line.audience), |(old, new)| (Some(old), new));
            let (audience, old) = (text(new), old.map(|old| text(old)));
            rendered.payload(record.kind, seq, line, Some((&audience, old.as_deref())))
        };
        (wanted.0.then(for_audience).unwrap_or_default(), wanted.1.then(for_service).unwrap_or_default())
    }

    /// Add the channel's name if it has listeners; to the doorbells if a listener may have lost the right.
    fn address(&self, scope: Scope, token: &[u8], names: Option<&mut Vec<String>>, bells: &mut Vec<String>) {
        let channel = Channel::new(self.extension, scope, token);
        if channel.is_held(self.extension) {
            let names = names.filter(|_| !self.rotation.is_stale(self.extension, &channel));
            names.unwrap_or(bells).push(channel.name(self.extension));
        }
    }

    /// Tell the user that their set of rooms has changed.
    pub(super) fn relisten(&mut self, user_id: &[u8], room: &[u8]) -> Result<()> {
        let token = own_token(user_id);
        // A session that is about to commit a LISTEN, and does not hear this, finds out by the counter.
        self.extension.database.names.moved(moves_of(self.extension, Some(user_id)));
        self.signal_relisten(&Channel::new(self.extension, Scope::Database, &token), room)
    }

    /// Tell service roles that rights in this room may have changed. (For all rooms everybody is told.)
    pub(super) fn relisten_for_service(&mut self, room: &[u8]) -> Result<()> {
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

    pub(super) fn notify(&mut self, channel: &str, payload: &str) -> Result<()> {
        self.written.notifications += 1;
        self.memory += memory_of(payload.len());
        notify(channel, payload)
    }
}
