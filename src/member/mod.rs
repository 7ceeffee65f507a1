//! Members: the verbs that write them, what every write passes, as triggers or called by the verbs, and whether they are here. (The leases
//! themselves are in `lease` and `shared::leases`.)

pub mod after;
pub mod before;
pub mod checks;
pub mod column;
pub mod delete;
pub mod expiry;
pub mod grace;
pub mod heap;
pub mod heartbeat;
pub mod holder;
pub mod in_place;
pub mod index;
pub mod intent;
pub mod layout;
pub mod limits;
pub mod liveness;
pub mod ordered;
pub mod pages;
pub mod request;
pub mod restoring;
pub mod revert;
pub mod room_defaults;
pub mod row;
pub mod scan;
pub mod session;
pub mod statements;
pub mod store;
pub mod tries;
pub mod trigger;
pub mod trigger_call;
pub mod update;
pub mod upsert;
pub mod user_rooms;
pub mod verb;
