//! How many are in a room: counted from what is published, pushed to listeners, shown to sessions.

pub mod change;
pub mod counting;
pub mod published;
pub mod push;
pub mod requests;
pub mod rooms;
