//! Who may do what: who is asking, what the rights, policies and settings say, and what others have changed of them.

pub mod authorizer;
pub mod claims;
pub mod client;
pub mod grants;
pub mod identity;
pub mod narrowing;
pub mod ownership;
pub mod policy;
pub mod strong_locks;
pub mod twin;
pub mod visibility;
