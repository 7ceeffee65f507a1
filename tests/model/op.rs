//! What connections do, and the random generation of cases. There are few names and values, so that steps collide.

use proptest::prelude::*;
use proptest::sample::select;

pub const ROOMS: usize = 2;
pub const USERS: [&str; 4] = ["alice", "bob", "carol", "postgres"];
pub const SERVICE: usize = 3;
pub const CONNECTION_IDS: [&str; 2] = ["", "x"];
/// The user of each connection: alice has two.
pub const CONNECTIONS: [usize; 5] = [0, 0, 1, 2, SERVICE];

/// A member's key. With `member: None` the verb's default applies.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    pub room: usize,
    pub member: Option<usize>,
    pub connection: usize,
}

/// The arguments of a write; None keeps what is there. Each index selects one of the values in `values.rs`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given {
    pub state: Option<usize>,
    pub patch: Option<usize>,
    pub status: Option<usize>,
    pub metadata: Option<usize>,
    pub audience: Option<usize>,
    pub ttl: Option<usize>,
    pub session: Option<bool>,
    pub revert_after: Option<usize>,
    /// Service roles only.
    pub owner: Option<usize>,
}

#[derive(Clone, Copy, Debug)]
pub struct Removal {
    pub name: Name,
    pub all_connections: bool,
    pub last_word: Option<usize>,
    /// Service roles only.
    pub reason: Option<&'static str>,
    /// The index of a grace period.
    pub after: Option<usize>,
}

#[derive(Clone, Debug)]
pub enum Op {
    Begin,
    Commit,
    Rollback,
    Savepoint,
    RollbackTo,
    Release,
    Upsert(Name, Given),
    Update(Name, Given),
    Heartbeat(Name),
    HeartbeatMany(Vec<Name>),
    Delete(Removal),
    DeleteAll {
        connection: Option<usize>,
    },
    UpsertMany(Vec<(Name, Given)>),
    UpdateMany(Vec<(Name, Given)>),
    DeleteMany(Vec<Removal>),
    /// INSERT, UPDATE and DELETE on presence.member.
    Insert(Name, Given),
    Change {
        room: usize,
        status: usize,
        audience: Option<usize>,
    },
    Remove {
        room: usize,
    },
    /// The connection ends, and a new one takes its place.
    End {
        kill: bool,
    },
    /// 40 minutes go by.
    Pass,
    Sweep {
        rollback: bool,
    },
    /// Waits until everything is published, and compares what all listeners hold.
    Settle,
}

impl Op {
    /// Without the arguments that only a service role may give.
    pub fn rightful(&self, service: bool) -> Op {
        let given = |given: &Given| Given { owner: given.owner.filter(|_| service), ..*given };
        let removal = |removal: &Removal| Removal {
            reason: removal.reason.filter(|reason| service || *reason == "left"),
            ..*removal
        };
        match self {
            Op::Upsert(name, it) => Op::Upsert(*name, given(it)),
            Op::UpsertMany(list) => {
                Op::UpsertMany(list.iter().map(|(name, it)| (*name, given(it))).collect())
            }
            Op::Delete(it) => Op::Delete(removal(it)),
            Op::DeleteMany(list) => {
                let one = |it: &Removal| Removal { all_connections: false, ..removal(it) };
                Op::DeleteMany(list.iter().map(one).collect())
            }
            other => other.clone(),
        }
    }
}

/// Which connection does what.
pub type Step = (usize, Op);

pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec((0..CONNECTIONS.len(), op()), 4..45)
}

fn name() -> impl Strategy<Value = Name> {
    let member = prop_oneof![5 => Just(None), 2 => (0..USERS.len()).prop_map(Some)];
    (0..ROOMS, member, 0..CONNECTION_IDS.len()).prop_map(|(room, member, connection)| Name {
        room,
        member,
        connection,
    })
}

fn maybe(values: usize) -> impl Strategy<Value = Option<usize>> {
    prop_oneof![2 => Just(None), 3 => (0..values).prop_map(Some)]
}

fn rarely<T: Clone + std::fmt::Debug + 'static>(
    value: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Option<T>> {
    prop_oneof![4 => Just(None), 1 => value.prop_map(Some)]
}

/// Half of the time.
fn sometimes<T: Clone + std::fmt::Debug + 'static>(
    value: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Option<T>> {
    prop_oneof![Just(None), value.prop_map(Some)]
}

fn given() -> impl Strategy<Value = Given> {
    (
        maybe(4),
        maybe(3),
        rarely(0..2usize),
        sometimes(0..8usize),
        rarely(0..3usize),
        rarely(any::<bool>()),
        rarely(0..2usize),
        rarely(0..USERS.len()),
    )
        .prop_map(|(state, status, metadata, audience, ttl, session, revert_after, owner)| Given {
            state,
            patch: None,
            status,
            metadata,
            audience,
            ttl,
            session,
            revert_after,
            owner,
        })
}

fn patch() -> impl Strategy<Value = Given> {
    (given(), maybe(4)).prop_map(|(given, patch)| Given { state: None, patch, ..given })
}

fn removal() -> impl Strategy<Value = Removal> {
    (
        name(),
        prop::bool::weighted(0.2),
        rarely(0..4usize),
        rarely(select(&["left", "disconnected", "removed"][..])),
        sometimes(0..4usize),
    )
        .prop_map(|(name, all_connections, last_word, reason, after)| Removal {
            name,
            all_connections,
            last_word,
            reason,
            after,
        })
}

pub fn op() -> impl Strategy<Value = Op> {
    let many = prop::collection::vec((name(), prop_oneof![given(), patch()]), 1..4);
    prop_oneof![
        8 => Just(Op::Begin),
        5 => Just(Op::Commit),
        2 => Just(Op::Rollback),
        4 => Just(Op::Savepoint),
        3 => Just(Op::RollbackTo),
        1 => Just(Op::Release),
        22 => (name(), given()).prop_map(|(name, given)| Op::Upsert(name, given)),
        6 => name().prop_map(|name| Op::Upsert(name, Given::default())),
        8 => (name(), patch()).prop_map(|(name, given)| Op::Update(name, given)),
        8 => name().prop_map(Op::Heartbeat),
        3 => prop::collection::vec(name(), 1..5).prop_map(Op::HeartbeatMany),
        9 => removal().prop_map(Op::Delete),
        2 => maybe(CONNECTION_IDS.len()).prop_map(|connection| Op::DeleteAll { connection }),
        4 => many.prop_map(Op::UpsertMany),
        3 => prop::collection::vec((name(), patch()), 1..4).prop_map(Op::UpdateMany),
        3 => prop::collection::vec(removal(), 1..4).prop_map(Op::DeleteMany),
        4 => (name(), given()).prop_map(|(name, given)| Op::Insert(name, given)),
        4 => (0..ROOMS, 0..3usize, sometimes(0..8usize))
            .prop_map(|(room, status, audience)| Op::Change { room, status, audience }),
        2 => (0..ROOMS).prop_map(|room| Op::Remove { room }),
        3 => any::<bool>().prop_map(|kill| Op::End { kill }),
        4 => Just(Op::Pass),
        2 => any::<bool>().prop_map(|rollback| Op::Sweep { rollback }),
        2 => Just(Op::Settle),
    ]
}
