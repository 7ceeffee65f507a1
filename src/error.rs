//! Every error a caller can meet: SQLSTATE, message, DETAIL and HINT. docs/reference.md lists them.
//!
//! Messages are ASCII whatever the caller wrote: they must reach a client of any encoding.

use pgrx::PgSqlErrorCode::{self, *};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, function_name};

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The library is not in shared_preload_libraries.
    NotPreloaded,
    /// CREATE EXTENSION has not run here (or DROP EXTENSION has).
    NotInstalled,
    TooManyDatabases {
        limit: usize,
    },
    /// NULL where a value is needed.
    MissingArgument {
        argument: &'static str,
    },
    /// An invalid room, member_id, connection_id, user_id, status or token.
    InvalidName {
        argument: &'static str,
        why: String,
    },
    InvalidTtl,
    InvalidRevertAfter,
    InvalidAudience {
        why: String,
    },
    InvalidReason,
    InvalidPatch,
    InvalidMaxRows {
        limit: i32,
    },
    InvalidTimeout,
    /// Another invalid argument.
    InvalidArgument {
        argument: &'static str,
        why: String,
    },
    StateTooLarge {
        size: usize,
        limit: usize,
    },
    KeyIsFixed,
    RoomIsFixed,
    /// The caller has no identity: presence needs a user_id.
    NoIdentity,
    NotYourName {
        member_id: String,
    },
    ServiceOnly {
        what: &'static str,
    },
    /// `act_as` sets another identity, which only a trusted login may do.
    NotTrusted,
    OwnedByAnother,
    /// The caller may write the member, but something that was added to the table prevents it.
    Refused,
    /// Others changed the member at each try, or since the transaction's snapshot.
    ConcurrentUpdate,
    NotAuthorized {
        action: &'static str,
    },
    /// The function of `presence.authorizer` gave no answer, which means no.
    AuthorizerFailed {
        why: String,
    },
    /// A statement that would lock others out, by a role without the right to do so.
    NotYours {
        relation: String,
    },
    NoPreparedTransactions,
    /// A trigger function of ours on another table, or called directly.
    NotItsTrigger {
        table: &'static str,
    },
    NoTruncate,
    NoSessionFeatures {
        what: &'static str,
        why: &'static str,
    },
    /// A feature of a client's own session, used in code that the client did not ask for.
    NotOwnSession {
        what: &'static str,
        why: &'static str,
    },
    ReadOnlyWithoutSlot,
    /// A standby can only read members.
    OnStandby {
        what: &'static str,
    },
    TooManyMembers {
        what: &'static str,
        limit: i32,
    },
    /// So many transactions are entering limited rooms at once that this one has to take turns.
    TooManySeats,
    TooManyColumns,
    Spi {
        code: i32,
    },
}

impl Error {
    fn code(&self) -> PgSqlErrorCode {
        match self {
            Error::NotPreloaded | Error::NotInstalled => ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            Error::TooManyDatabases { .. } => ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            Error::MissingArgument { .. }
            | Error::InvalidName { .. }
            | Error::InvalidTtl
            | Error::InvalidRevertAfter
            | Error::InvalidAudience { .. }
            | Error::InvalidReason
            | Error::InvalidPatch
            | Error::InvalidMaxRows { .. }
            | Error::InvalidTimeout
            | Error::InvalidArgument { .. }
            | Error::KeyIsFixed
            | Error::RoomIsFixed => ERRCODE_INVALID_PARAMETER_VALUE,
            Error::StateTooLarge { .. } | Error::TooManyMembers { .. } | Error::TooManySeats => {
                ERRCODE_PROGRAM_LIMIT_EXCEEDED
            }
            Error::NoIdentity
            | Error::NotYourName { .. }
            | Error::ServiceOnly { .. }
            | Error::NotTrusted
            | Error::OwnedByAnother
            | Error::Refused
            | Error::NotAuthorized { .. }
            | Error::NotYours { .. }
            | Error::AuthorizerFailed { .. } => ERRCODE_INSUFFICIENT_PRIVILEGE,
            Error::NoPreparedTransactions
            | Error::NoTruncate
            | Error::NoSessionFeatures { .. }
            | Error::NotOwnSession { .. } => ERRCODE_FEATURE_NOT_SUPPORTED,
            Error::ConcurrentUpdate => ERRCODE_T_R_SERIALIZATION_FAILURE,
            Error::NotItsTrigger { .. } => ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
            Error::ReadOnlyWithoutSlot | Error::OnStandby { .. } => ERRCODE_READ_ONLY_SQL_TRANSACTION,
            Error::TooManyColumns | Error::Spi { .. } => ERRCODE_INTERNAL_ERROR,
        }
    }

    fn message(&self) -> String {
        match self {
            Error::NotPreloaded => "presence_ext is not loaded".into(),
            Error::NotInstalled => "extension presence_ext is not installed in this database".into(),
            Error::TooManyDatabases { .. } => "too many databases use presence".into(),
            Error::MissingArgument { argument } => format!("{argument} must not be null"),
            Error::InvalidName { argument, .. } => format!("invalid {argument}"),
            Error::InvalidTtl => "invalid ttl".into(),
            Error::InvalidRevertAfter => "invalid revert_after".into(),
            Error::InvalidAudience { .. } => "invalid audience".into(),
            Error::InvalidReason => "invalid reason".into(),
            Error::InvalidPatch => "patch must be a JSON object".into(),
            Error::InvalidMaxRows { .. } => "invalid max_rows".into(),
            Error::InvalidTimeout => "invalid timeout".into(),
            Error::InvalidArgument { argument, .. } => format!("invalid {argument}"),
            Error::StateTooLarge { .. } => "state and metadata are too large".into(),
            Error::KeyIsFixed => "room, member_id and connection_id of a member cannot be changed".into(),
            Error::RoomIsFixed => "the name of a room cannot be changed".into(),
            Error::NoIdentity => "the caller has no identity".into(),
            Error::NotYourName { .. } => "member_id is not yours".into(),
            Error::ServiceOnly { what } => format!("only a service role may {what}"),
            Error::NotTrusted => "only trusted logins and superusers may act as another user".into(),
            Error::OwnedByAnother => "the member belongs to another user".into(),
            Error::Refused => "the change of the member was refused".into(),
            Error::ConcurrentUpdate => "could not serialize access due to concurrent update".into(),
            Error::NotAuthorized { action } => format!("not authorized to {action} this room"),
            Error::AuthorizerFailed { .. } => "the authorizer of presence gave no answer".into(),
            Error::NotYours { relation } => format!("permission denied for relation {relation}"),
            Error::NoPreparedTransactions => "cannot prepare a transaction that has changed presence".into(),
            Error::NotItsTrigger { table } => format!("this function is for the triggers of {table} alone"),
            Error::NoTruncate => "cannot truncate the members".into(),
            Error::NoSessionFeatures { what, .. } => format!("{what} is not available to this session"),
            Error::NotOwnSession { what, .. } => format!("{what} is for a client's own session only"),
            Error::ReadOnlyWithoutSlot => "cannot renew this lease in a read-only transaction".into(),
            Error::OnStandby { what } => format!("cannot execute {what} during recovery"),
            Error::TooManyMembers { what, .. } => format!("the {what} has too many members"),
            Error::TooManySeats => "too many members are entering at once".into(),
            Error::TooManyColumns => "table presence.member is not as expected".into(),
            Error::Spi { .. } => "a query of presence_ext failed".into(),
        }
    }

    pub fn detail(&self) -> String {
        match self {
            Error::TooManyDatabases { limit } => format!("presence.max_databases is {limit}."),
            Error::InvalidName { why, .. }
            | Error::InvalidAudience { why }
            | Error::InvalidArgument { why, .. } => why.clone(),
            Error::InvalidTtl => "A ttl must be between 1 second and 30 days.".into(),
            Error::InvalidRevertAfter => "It must be more than zero and at most 100 years.".into(),
            Error::InvalidReason => "The reason must be left, disconnected or removed.".into(),
            Error::InvalidPatch => "JSON merge patch (RFC 7396) changes the keys of an object.".into(),
            Error::InvalidMaxRows { limit } => format!("max_rows must be between 1 and {limit}."),
            Error::InvalidTimeout => "A timeout must not be negative, and at most 1 day.".into(),
            Error::StateTooLarge { size, limit } => {
                format!("Their JSON text takes {size} bytes; presence.max_state_size is {limit} bytes.")
            }
            Error::NotYourName { member_id } => {
                format!("Your member_id is \"{member_id}\", and presence.member_ids is \"own\".")
            }
            Error::NoSessionFeatures { why, .. } | Error::NotOwnSession { why, .. } => (*why).into(),
            Error::AuthorizerFailed { why } => why.clone(),
            Error::ReadOnlyWithoutSlot => "All lease slots are taken, so this lease lives in a table.".into(),
            Error::OnStandby { .. } => "This server is a standby: members live on its primary.".into(),
            Error::TooManyMembers { limit, .. } => format!("The limit is {limit}."),
            Error::TooManySeats => {
                "Another transaction is entering the same room, or under the same user, and there are too many open \
                 transactions that enter to tell how many members it brings."
                    .into()
            }
            Error::Spi { code } => format!("SPI returned {code}."),
            Error::NotPreloaded => {
                "It keeps leases in shared memory, which is allocated when the server starts.".into()
            }
            Error::NotInstalled => "There is no table presence.member.".into(),
            Error::MissingArgument { .. } => "It is NULL and has no default.".into(),
            Error::KeyIsFixed => "They are the key of the member.".into(),
            Error::RoomIsFixed => "It is the key of the room.".into(),
            Error::NoIdentity => "presence.user_id() is NULL.".into(),
            Error::ServiceOnly { .. } => "presence.is_service() is false.".into(),
            Error::NotTrusted => {
                "The login role (session_user) is neither a superuser nor in presence.trusted_login_roles."
                    .into()
            }
            Error::OwnedByAnother => {
                "A key belongs to the user who entered with it, until they leave.".into()
            }
            Error::Refused => {
                "A policy or trigger that was added to presence.member prevented it.".into()
            }
            Error::ConcurrentUpdate => "Another transaction has changed the member.".into(),
            Error::NotAuthorized { .. } => "Service roles may; others as presence.authorizer says.".into(),
            Error::NotYours { .. } => {
                "The statement takes a lock that everybody else who is present would wait for.".into()
            }
            Error::NoPreparedTransactions => {
                "Leases and events are applied by the session that commits.".into()
            }
            Error::NotItsTrigger { .. } => "It reads and writes columns of that table.".into(),
            Error::NoTruncate => "TRUNCATE does not say which rows it removes, so nobody could be told who left.".into(),
            Error::TooManyColumns => "Its columns are not the ones that this library knows.".into(),
        }
    }

    pub fn hint(&self) -> String {
        match self {
            Error::NotPreloaded => {
                "Add presence_ext to shared_preload_libraries in postgresql.conf and restart the server.".into()
            }
            Error::NotInstalled => "Run CREATE EXTENSION presence_ext in this database.".into(),
            Error::TooManyDatabases { .. } => {
                "Raise presence.max_databases, or drop the extension where it is not needed.".into()
            }
            Error::NoIdentity => "Sign in, or log in with a role of your own: anonymous callers can read, but not be \
                 present. A trusted login sets request.jwt.claims or calls presence.act_as."
                .into(),
            Error::NotYourName { .. } => {
                "Leave member_id out, or ask for presence.member_ids = 'any'. Use connection_id for tabs and devices."
                    .into()
            }
            Error::StateTooLarge { .. } => "Keep large data in a table of your own and its key in the state.".into(),
            Error::KeyIsFixed => "Delete the member and insert another.".into(),
            Error::RoomIsFixed => "Delete the room and make another.".into(),
            Error::NotItsTrigger { .. } => "Give your own trigger a function of your own.".into(),
            Error::NoTruncate => "Use DELETE, so that everybody hears who left.".into(),
            Error::NoSessionFeatures { .. } => {
                "Use presence.channels or presence.changes from a connection of your own, and heartbeats instead of \
                 session members."
                    .into()
            }
            Error::NotOwnSession { .. } => {
                "Call it in a statement that the client sends. There its user counts; here it is the current role."
                    .into()
            }
            Error::AuthorizerFailed { .. } => "Access is denied unless the authorizer returns true. presence.authorizer names a function \
                 (room text, action text) returns boolean that callers may execute."
                .into(),
            Error::ReadOnlyWithoutSlot => {
                "Use a read-write transaction, or raise presence.max_members and restart the server.".into()
            }
            Error::OnStandby { .. } => {
                "Connect to the primary. On a standby whose primary has a name (presence.node_name) list, get, users, \
                 occupancy, rooms and state answer."
                    .into()
            }
            Error::InvalidMaxRows { .. } => "Read page by page: see the function's comment (\\df+ in psql).".into(),
            Error::MissingArgument { .. } => "Pass a value.".into(),
            Error::InvalidName { .. } => "Names have 1 to 255 characters without control characters; a connection_id \
                 may be empty."
                .into(),
            Error::InvalidTtl => "Give an interval such as '90 s'.".into(),
            Error::InvalidRevertAfter => {
                "Give an interval such as '5 s', or NULL for a change that does not revert.".into()
            }
            Error::InvalidAudience { .. } => "Give an array such as '{users}' or '{team:red,user:bob}'; '{}' is the \
                 owner alone."
                .into(),
            Error::InvalidReason => "Omit it when members leave by themselves.".into(),
            Error::InvalidPatch => "Replace the whole value instead, with presence.upsert or presence.set_room.".into(),
            Error::InvalidTimeout => "Give an interval such as '5 s'.".into(),
            Error::InvalidArgument { .. } => "See the function's comment (\\df+ in psql).".into(),
            Error::ServiceOnly { .. } => "Service roles are superusers, roles with BYPASSRLS, the owner of the \
                 extension and presence.service_roles."
                .into(),
            Error::NotTrusted => "Connect with a role that the application's server alone logs in with, listed in \
                 presence.trusted_login_roles. Service roles may name a user_id instead, where they write."
                .into(),
            Error::Refused => "Ask the administrator of the database.".into(),
            Error::ConcurrentUpdate => "Try the transaction again.".into(),
            Error::OwnedByAnother => "Choose another member_id or connection_id.".into(),
            Error::NotAuthorized { .. } => "Ask somebody who manages the room.".into(),
            Error::NotYours { .. } => {
                "This is for the owner and for roles to which the owner has granted TRIGGER or REFERENCES. Lock rows with \
                 SELECT ... FOR UPDATE."
                    .into()
            }
            Error::NoPreparedTransactions => "Use COMMIT.".into(),
            Error::TooManyMembers { .. } => "Leave with some members first, or ask for a higher limit.".into(),
            Error::TooManySeats => "Try again; enter in smaller transactions.".into(),
            Error::TooManyColumns => "Run ALTER EXTENSION presence_ext UPDATE.".into(),
            Error::Spi { .. } => "Please report this.".into(),
        }
    }

    pub fn report(&self) -> ErrorReport {
        ErrorReport::new(self.code(), self.message(), function_name!())
            .set_detail(self.detail())
            .set_hint(self.hint())
    }

    /// For the log.
    pub fn text(&self) -> String {
        format!("{}. {}", self.message(), self.detail())
    }

    /// Raise it as a PostgreSQL ERROR. Rust destructors run on the way.
    pub fn raise(self) -> ! {
        self.report().report(PgLogLevel::ERROR);
        unreachable!("an ERROR does not return")
    }
}

/// What a caller wrote, fit for a message.
pub fn printable(text: &[u8]) -> String {
    text.iter().take(64).flat_map(|byte| byte.escape_ascii()).map(char::from).collect()
}
