//! Channels: the names under which events are notified, and the tokens an event is for.
//!
//! NOTIFY has no access control, so a name is a capability: a keyed hash of room and token that nobody can guess
//! and that only `presence.listen` and `presence.channels` hand out, after the rights check. The hash has the
//! server's boot id and an epoch in it: `rotate_channels` and a restart make new names.

use crate::extension::{Extension, Purpose};
use crate::shared::{control, database::CHANNEL_BITS};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::sync::atomic::Ordering::*;

/// Where a channel listens: one room, all rooms, or the database's own affairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope<'a> {
    Room(&'a [u8]),
    AllRooms,
    Database,
}

/// Service roles hear everything on one channel: no token of a caller can be this.
pub const SERVICE: &[u8] = b"service";
/// All who listen to a room hear this of it: `relisten`, when its channels were rotated.
pub const LISTENERS: &[u8] = b"listeners";
/// The one channel that every listener hears: `resync`.
pub const EVERYBODY: &[u8] = b"everybody";

/// `user:<id>` in the scope of the database: `relisten`, for that user alone.
pub fn own_token(user_id: &[u8]) -> Vec<u8> {
    [b"user:", user_id].concat()
}

pub struct Channel<'a> {
    scope: Scope<'a>,
    token: &'a [u8],
    /// Of the database, of the room, and of those present in the room that the token names.
    epochs: [u32; 3],
}

impl<'a> Channel<'a> {
    pub fn new(extension: &Extension, scope: Scope<'a>, token: &'a [u8]) -> Channel<'a> {
        let database = extension.database;
        let room = match scope {
            Scope::Room(room) => {
                database.room_epoch(extension.hash(Purpose::RoomEpoch, &[room])).load(Acquire)
            }
            _ => 0,
        };
        let presence = match token.strip_prefix(b"room:") {
            Some(room) => database.presence_epoch(extension.hash(Purpose::RoomEpoch, &[room])).load(Acquire),
            None => 0,
        };
        Channel { scope, token, epochs: [database.epoch.load(Acquire), room, presence] }
    }

    fn parts(&self) -> [&'a [u8]; 3] {
        match self.scope {
            Scope::Room(room) => [b"room", room, self.token],
            Scope::AllRooms => [b"all", b"", self.token],
            Scope::Database => [b"database", b"", self.token],
        }
    }

    /// 9 + 48 characters: an identifier that LISTEN does not cut short.
    pub fn name(&self, extension: &Extension) -> String {
        // HMAC takes keys of any length; without one there is no name to guess either.
        let Ok(mut hash) = Hmac::<Sha256>::new_from_slice(extension.secret()) else { return String::new() };
        hash.update(&control().boot_id.load(Relaxed).to_le_bytes());
        self.epochs.iter().for_each(|epoch| hash.update(&epoch.to_le_bytes()));
        for part in self.parts() {
            hash.update(&(part.len() as u32).to_le_bytes());
            hash.update(part);
        }
        let digest = hash.finalize().into_bytes();
        digest[..24].iter().fold(String::from("presence_"), |mut name, byte| {
            name.push_str(&format!("{byte:02x}"));
            name
        })
    }

    fn bit(&self, extension: &Extension) -> usize {
        let [scope, room, token] = self.parts();
        extension.hash(Purpose::Channel, &[scope, room, token]) as usize % CHANNEL_BITS
    }

    /// Somebody may be listening from now on.
    pub fn hand_out(&self, extension: &Extension) -> String {
        let bit = self.bit(extension);
        extension.database.handed_out[bit / 64].fetch_or(1 << (bit % 64), SeqCst);
        self.name(extension)
    }

    /// False: nobody was ever given this channel since the server started.
    pub fn was_handed_out(&self, extension: &Extension) -> bool {
        let bit = self.bit(extension);
        extension.database.handed_out[bit / 64].load(SeqCst) & 1 << (bit % 64) != 0
    }
}

/// The fewest tokens that reach an audience and the owner.
pub fn reach(audience: &[Vec<u8>], owner: &[u8]) -> Vec<Vec<u8>> {
    if audience.iter().any(|token| token == b"any") {
        return vec![b"any".to_vec()];
    }
    let mut reached: Vec<Vec<u8>> = audience
        .iter()
        .filter(|token| *token == b"users" || !covers_with_users(audience, token))
        .cloned()
        .collect();
    let owner = own_token(owner);
    if !covered(&owner, audience) {
        reached.push(owner);
    }
    reached
}

/// Everybody with a user, team or room token is signed in.
fn covers_with_users(audience: &[Vec<u8>], token: &[u8]) -> bool {
    audience.iter().any(|other| other == b"users") && !token.starts_with(b"role:") && token != b"any"
}

/// Whether everybody with this token sees what the audience sees.
pub fn covered(token: &[u8], audience: &[Vec<u8>]) -> bool {
    audience.iter().any(|other| other == b"any" || other == token) || covers_with_users(audience, token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(tokens: &[&str]) -> Vec<Vec<u8>> {
        tokens.iter().map(|token| token.as_bytes().to_vec()).collect()
    }

    #[test]
    fn any_reaches_everybody_alone() {
        assert_eq!(reach(&list(&["any", "user:b", "users"]), b"a"), list(&["any"]));
    }

    #[test]
    fn users_leave_only_roles_to_reach() {
        assert_eq!(reach(&list(&["role:guest", "team:x", "users"]), b"a"), list(&["role:guest", "users"]));
    }

    #[test]
    fn the_owner_is_always_reached() {
        assert_eq!(reach(&[], b"a"), list(&["user:a"]));
        assert_eq!(reach(&list(&["room:lobby", "user:b"]), b"a"), list(&["room:lobby", "user:b", "user:a"]));
    }

    #[test]
    fn covering() {
        assert!(covered(b"team:x", &list(&["users"])));
        assert!(!covered(b"role:x", &list(&["users"])));
        assert!(!covered(b"any", &list(&["users"])));
        assert!(covered(b"role:x", &list(&["any"])));
        assert!(covered(b"team:x", &list(&["team:x"])));
        assert!(!covered(b"team:x", &list(&["team:y"])));
    }
}
