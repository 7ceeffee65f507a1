//! The steps, and the random generation of cases. There are few names, so that steps collide.

use crate::world::FOLLOWERS;
use proptest::prelude::*;
use proptest::sample::select;

/// Three with their own logins, one more who is in a role, and one who uses a shared login with claims.
pub const USERS: [&str; 5] = ["alice", "bob", "carol", "rita", "mate"];
pub const RITA: usize = 3;
pub const MATE: usize = 4;
pub const ROOMS: usize = 2;
pub const CONNECTION_IDS: [&str; 2] = ["", "x"];

/// A member's key. Its `member_id` is the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub who: usize,
    pub room: usize,
    pub connection: usize,
}

/// Whether a transaction uses a savepoint, and how it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Commit,
    Release,
    RollBack,
    RollBackTo,
    /// Enters or changes, and leaves in the same transaction.
    TakeBack,
}

#[derive(Clone, Copy, Debug)]
pub struct Writing {
    pub way: Way,
    pub audience: Option<usize>,
    /// A ttl of ten minutes instead of ten hours.
    pub is_short: bool,
    /// Bound to the session that writes.
    pub session: bool,
    /// Larger than a notification can hold.
    pub is_big: bool,
    /// By INSERT or UPDATE.
    pub by_sql: bool,
    /// It asks for channel names before it ends, and somebody else then listens to them.
    pub peeks: bool,
    /// REPEATABLE READ, with a snapshot from before the write.
    pub repeatable: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Right {
    All,
    Members,
    Schema,
}

#[derive(Clone, Copy, Debug)]
pub enum Removal {
    Member,
    Room,
    User,
}

#[derive(Clone, Copy, Debug)]
pub enum End {
    Commit,
    RollBack,
    Kill,
}

/// What a session does when its user is done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Nothing,
    ResetAll,
    ResetAuthorization,
    DiscardAll,
    UnlistenAll,
    Unlisten,
}

#[derive(Clone, Copy, Debug)]
pub enum Op {
    Write(Place, Writing),
    Update(Place, Option<usize>),
    Leave {
        place: Place,
        all: bool,
        is_lost: bool,
        by_sql: bool,
    },
    SignOut {
        who: usize,
        is_lost: bool,
    },
    Remove(Place, Removal),
    /// A service role makes another user the owner.
    Give {
        place: Place,
        to: usize,
    },
    /// The member's own user keeps the row locked, with or without a change.
    Lock {
        place: Place,
        change: bool,
    },
    Unlock(End),
    /// Enters with a short lease, which ends while the member's own user keeps the row locked.
    Outstay {
        place: Place,
        change: bool,
    },
    /// Every member of the room is updated.
    Chat {
        room: usize,
    },
    /// Time passes: long enough for short leases to end, or just for the next rotation.
    Pass {
        long: bool,
    },
    Revoke(usize, Right),
    Grant(usize),
    /// Gives rita the role or takes it away, by membership or by INHERIT.
    Role {
        on: bool,
        inherit: bool,
    },
    /// Whether mate's claims contain the team.
    Team {
        on: bool,
    },
    Rotate {
        room: Option<usize>,
        is_lost: bool,
    },
    SetRoom {
        room: usize,
        audience: usize,
    },
    /// Removes a member and refuses it from then on; or lifts that ban.
    Ban {
        place: Place,
        on: bool,
    },
    Hear {
        spy: usize,
        who: usize,
        room: Option<usize>,
        way: Way,
        after: After,
    },
    /// Mallory, who may see nothing, listens to all names that this user was ever given.
    Learn {
        who: usize,
    },
    /// The followers of this user, or all of them, stop listening, and start again with `Wake`. Names that nobody else
    /// listens to are handled differently from those that somebody does.
    Sleep(Option<usize>),
    Wake(usize),
    /// A spy stops listening.
    Silence {
        spy: usize,
        after: After,
    },
    KillWriter(usize),
    KillListener(usize),
    /// The connection on which a follower queries.
    KillAsking(usize),
    KillWorker,
    /// A follower takes some of its pending turns.
    Turn {
        at: usize,
        turns: usize,
    },
    /// Notifications say only that something has changed.
    Doorbell {
        on: bool,
    },
    /// The user enters or leaves many additional rooms.
    Crowd {
        who: usize,
        on: bool,
    },
    Freeze,
    Thaw,
    Restart {
        clean: bool,
    },
    /// Everything is published, and every listener is up to date.
    Settle,
}

/// A third of the cases start without any listener: only then would a listener that is not counted miss events.
pub fn steps() -> impl Strategy<Value = Vec<Op>> {
    let asleep = prop_oneof![2 => Just(vec![]), 1 => Just(vec![Op::Sleep(None)])];
    (asleep, prop::collection::vec(op(), 4..40)).prop_map(|(asleep, steps)| [asleep, steps].concat())
}

fn who() -> impl Strategy<Value = usize> {
    0..USERS.len()
}

fn place() -> impl Strategy<Value = Place> {
    let connection = prop_oneof![3 => Just(0), 1 => Just(1usize)];
    (who(), 0..ROOMS, connection).prop_map(|(who, room, connection)| Place { who, room, connection })
}

fn room() -> impl Strategy<Value = Option<usize>> {
    prop_oneof![1 => Just(None), 2 => (0..ROOMS).prop_map(Some)]
}

fn rarely() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.15)
}

fn audience() -> impl Strategy<Value = Option<usize>> {
    prop_oneof![Just(None), (0..crate::rights::AUDIENCES.len()).prop_map(Some)]
}

fn writing() -> impl Strategy<Value = Writing> {
    let way = prop_oneof![
        8 => Just(Way::Commit),
        1 => Just(Way::Release),
        2 => Just(Way::RollBack),
        1 => Just(Way::RollBackTo),
        1 => Just(Way::TakeBack),
    ];
    (way, audience(), prop::bool::weighted(0.4), rarely(), rarely(), rarely(), rarely(), rarely()).prop_map(
        |(way, audience, is_short, session, is_big, by_sql, peeks, repeatable)| Writing {
            way,
            audience,
            is_short,
            session,
            is_big,
            by_sql,
            // Names from writes that do not last are the interesting ones, so all but plain commits peek.
            peeks: peeks || way != Way::Commit,
            repeatable,
        },
    )
}

fn after() -> impl Strategy<Value = After> {
    use After::*;
    prop_oneof![
        6 => Just(Nothing),
        4 => select(&[ResetAll, ResetAuthorization, DiscardAll, UnlistenAll, Unlisten][..]),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let right = select(&[Right::All, Right::Members, Right::Schema][..]);
    let removal = select(&[Removal::Member, Removal::Room, Removal::User][..]);
    let end = select(&[End::Commit, End::RollBack, End::Kill][..]);
    let way = prop_oneof![4 => Just(Way::Commit), 2 => Just(Way::Release), 1 => select(&[Way::RollBack, Way::RollBackTo][..])];
    let people = prop_oneof![
        70 => (place(), writing()).prop_map(|(place, writing)| Op::Write(place, writing)),
        30 => (place(), audience()).prop_map(|(place, audience)| Op::Update(place, audience)),
        24 => (place(), rarely(), rarely(), rarely())
            .prop_map(|(place, all, is_lost, by_sql)| Op::Leave { place, all, is_lost, by_sql }),
        4 => (who(), rarely()).prop_map(|(who, is_lost)| Op::SignOut { who, is_lost }),
        6 => (place(), removal).prop_map(|(place, removal)| Op::Remove(place, removal)),
        6 => (place(), who()).prop_map(|(place, to)| Op::Give { place, to }),
        6 => (place(), any::<bool>()).prop_map(|(place, change)| Op::Lock { place, change }),
        6 => end.prop_map(Op::Unlock),
        5 => (place(), any::<bool>()).prop_map(|(place, change)| Op::Outstay { place, change }),
        20 => (0..ROOMS).prop_map(|room| Op::Chat { room }),
        6 => any::<bool>().prop_map(|long| Op::Pass { long }),
    ];
    let rights = prop_oneof![
        5 => (who(), right).prop_map(|(who, right)| Op::Revoke(who, right)),
        6 => who().prop_map(Op::Grant),
        3 => (any::<bool>(), any::<bool>()).prop_map(|(on, inherit)| Op::Role { on, inherit }),
        3 => any::<bool>().prop_map(|on| Op::Team { on }),
        4 => (room(), rarely()).prop_map(|(room, is_lost)| Op::Rotate { room, is_lost }),
        3 => (0..ROOMS, 0..crate::rights::AUDIENCES.len())
            .prop_map(|(room, audience)| Op::SetRoom { room, audience }),
        5 => (place(), prop::bool::weighted(0.7)).prop_map(|(place, on)| Op::Ban { place, on }),
    ];
    let listeners = prop_oneof![
        30 => (0..crate::world::SPIES, who(), room(), way, after())
            .prop_map(|(spy, who, room, way, after)| Op::Hear { spy, who, room, way, after }),
        6 => who().prop_map(|who| Op::Learn { who }),
        8 => prop_oneof![2 => Just(None), 1 => who().prop_map(Some)].prop_map(Op::Sleep),
        4 => who().prop_map(Op::Wake),
        4 => (0..crate::world::SPIES, after()).prop_map(|(spy, after)| Op::Silence { spy, after }),
        3 => (0..crate::world::LISTENERS).prop_map(Op::KillListener),
        4 => (0..FOLLOWERS.len()).prop_map(Op::KillAsking),
        60 => (0..FOLLOWERS.len(), 1..6usize).prop_map(|(at, turns)| Op::Turn { at, turns }),
    ];
    prop_oneof![
        150 => people,
        25 => rights,
        60 => listeners,
        3 => who().prop_map(Op::KillWriter),
        2 => Just(Op::KillWorker),
        4 => any::<bool>().prop_map(|on| Op::Doorbell { on }),
        2 => (who(), prop::bool::weighted(0.7)).prop_map(|(who, on)| Op::Crowd { who, on }),
        8 => Just(Op::Freeze),
        8 => Just(Op::Thaw),
        1 => any::<bool>().prop_map(|clean| Op::Restart { clean }),
        60 => Just(Op::Settle),
    ]
}
