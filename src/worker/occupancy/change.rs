//! What an event does to the numbers of its room. It follows from what `Connections` counts: whoever enters with a first
//! member is one user more.

use crate::event::channel::{Channel, room_cell};
use crate::event::image::Field;
use crate::event::record::{Kind, Record};
use crate::extension::{Extension, Purpose};
use crate::worker::connections::Counted;

pub struct Change {
    /// Hash of the room.
    pub room: u64,
    pub name: Vec<u8>,
    pub members: i32,
    pub users: i32,
}

/// The key of a room, from its name. Never 0.
pub fn key(extension: &Extension, room: &[u8]) -> u64 {
    extension.hash(Purpose::Numbers, &[room]).max(1)
}

/// Whether somebody listens to the room; there are false positives.
pub fn is_listened_to(extension: &Extension, room: &[u8]) -> bool {
    Channel::of_cell(extension, room_cell(extension, room)).is_held(extension)
}

/// None unless the counts matter: the room is a known one, or somebody listens to it.
pub fn of(
    extension: &Extension,
    record: &Record,
    counted: &Counted,
    is_known: impl Fn(u64) -> bool,
) -> Option<Change> {
    let [members, users] = effect(record, counted)?;
    let name = record.image.get(Field::Room)?;
    let room = key(extension, name);
    let is_wanted = is_known(room) || is_listened_to(extension, name);
    is_wanted.then(|| Change { room, name: name.to_vec(), members, users })
}

fn effect(record: &Record, counted: &Counted) -> Option<[i32; 2]> {
    let (first, last) = (i32::from(counted.of_user == 1), i32::from(counted.of_user == 0));
    match (record.kind, &record.old) {
        (Kind::Enter, _) => Some([1, first]),
        (Kind::Leave, _) => Some([-1, -last]),
        // The owner changed.
        (Kind::Update, Some(old)) if old.get(Field::UserId) != record.image.get(Field::UserId) => {
            Some([0, first - i32::from(counted.of_old_user == 0)])
        }
        _ => None,
    }
}
