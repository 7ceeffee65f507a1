//! How many are in a room: counted from what is published, pushed to listeners, shown to sessions.

pub mod asking;
pub mod change;
pub mod counting;
pub mod rooms;
pub mod shown;
pub mod telling;
