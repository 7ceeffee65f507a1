//! Random changes to the table by its owner, to grants and to settings, interleaved with verbs of two users.
//! The same steps run in three databases: with verbs that may bypass the executor, with verbs that may not,
//! and with plain SQL instead of verbs. The result of each step and the contents of the tables afterwards
//! must agree.
//!
//! PRESENCE_CASES sets the number of cases (default 60), PRESENCE_SEED selects them.

use crate::common::{Cluster, Session};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use std::cell::RefCell;

/// What an owner may do to the table, and how to undo it.
const CHANGES: [(&str, &str); 24] = [
    (
        "create policy p1 on presence.member as restrictive for update using (status is distinct from 'a')",
        "drop policy p1 on presence.member",
    ),
    (
        "create policy p2 on presence.member as restrictive for update using (true) with check (status is distinct from 'b')",
        "drop policy p2 on presence.member",
    ),
    (
        "create policy p3 on presence.member as restrictive for select using (status is distinct from 'b')",
        "drop policy p3 on presence.member",
    ),
    (
        "create policy p4 on presence.member as restrictive for insert with check (room <> 'y')",
        "drop policy p4 on presence.member",
    ),
    (
        "create policy p5 on presence.member as restrictive for delete using (status is distinct from 'a')",
        "drop policy p5 on presence.member",
    ),
    (
        "create policy p6 on presence.member to alice using (user_id = 'alice')",
        "drop policy p6 on presence.member",
    ),
    (
        "alter policy member_change on presence.member using (false)",
        "alter policy member_change on presence.member using (user_id operator(pg_catalog.=) (select presence.user_id())
             or (select presence.is_service()))",
    ),
    (
        "create trigger zz_audit after insert or update or delete on presence.member for each row execute function audit()",
        "drop trigger zz_audit on presence.member",
    ),
    (
        "create trigger zz_mark before insert or update on presence.member for each row execute function mark()",
        "drop trigger zz_mark on presence.member",
    ),
    (
        "create trigger zz_skip before update on presence.member for each row when (new.status = 'b') execute function skip()",
        "drop trigger zz_skip on presence.member",
    ),
    (
        "create trigger zz_count after update on presence.member for each statement execute function count()",
        "drop trigger zz_count on presence.member",
    ),
    (
        "alter table presence.member alter status set not null",
        "alter table presence.member alter status drop not null",
    ),
    (
        "alter table presence.member add constraint c1 check (status is distinct from 'a') not valid",
        "alter table presence.member drop constraint c1",
    ),
    (
        "alter table presence.member add column note text default 'n'",
        "alter table presence.member drop column note",
    ),
    (
        "alter table presence.member add column twice text generated always as (status || status) stored",
        "alter table presence.member drop column twice",
    ),
    ("create index x1 on presence.member ((state ->> 'n'))", "drop index presence.x1"),
    (
        "create unique index x2 on presence.member (room) where status = 'b'",
        "drop index presence.x2",
    ),
    (
        "alter table presence.member disable row level security",
        "alter table presence.member enable row level security",
    ),
    (
        "create table public.kid () inherits (presence.member)",
        "drop table public.kid",
    ),
    ("revoke update on presence.member from alice", "grant update on presence.member to alice"),
    (
        "revoke update on presence.member from alice; grant update (user_id, status, state, metadata, audience, ttl) on presence.member to alice",
        "revoke update (user_id, status, state, metadata, audience, ttl) on presence.member from alice; grant update on presence.member to alice",
    ),
    (
        "revoke execute on function presence.tokens() from alice",
        "grant execute on function presence.tokens() to alice",
    ),
    (
        "revoke execute on function presence.is_service() from bob",
        "grant execute on function presence.is_service() to bob",
    ),
    ("revoke insert on presence.member from bob", "grant insert on presence.member to bob"),
];

/// What a user may set, and how to undo it.
const SETTINGS: [(&str, &str); 3] = [
    ("set row_security = off", "reset row_security"),
    ("set default_transaction_read_only = on", "reset default_transaction_read_only"),
    ("set default_transaction_isolation = 'serializable'", "reset default_transaction_isolation"),
];

const FUNCTIONS: &str = "
    create table audit (what text, who text, room text, status text);
    grant insert, select on audit to public;
    create function audit() returns trigger language plpgsql as $$ begin
        insert into public.audit values (tg_op, current_user, coalesce(new.room, old.room), coalesce(new.status, old.status));
        return null;
    end $$;
    create function mark() returns trigger language plpgsql as $$ begin
        new.metadata := jsonb_build_object('marked', new.status); return new;
    end $$;
    create function skip() returns trigger language plpgsql as $$ begin return null; end $$;
    create function count() returns trigger language plpgsql as $$ begin
        insert into public.audit values (tg_op, current_user, null, 'a statement'); return null;
    end $$;";

#[derive(Clone, Debug)]
enum Step {
    /// Make a change, or undo it if it is in effect.
    Change(usize),
    Set(usize, usize),
    Upsert {
        user: usize,
        room: &'static str,
        state: Option<u8>,
        status: Option<&'static str>,
    },
    Update {
        user: usize,
        room: &'static str,
        patch: u8,
        status: Option<&'static str>,
    },
    Delete {
        user: usize,
        room: &'static str,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let room = || prop::sample::select(vec!["x", "y"]);
    let status = || prop::option::of(prop::sample::select(vec!["", "a", "b", "c"]));
    let step = prop_oneof![
        4 => (0..CHANGES.len()).prop_map(Step::Change),
        1 => (0..2usize, 0..SETTINGS.len()).prop_map(|(user, at)| Step::Set(user, at)),
        6 => (0..2usize, room(), prop::option::of(0..3u8), status())
            .prop_map(|(user, room, state, status)| Step::Upsert { user, room, state, status }),
        3 => (0..2usize, room(), 0..3u8, status())
            .prop_map(|(user, room, patch, status)| Step::Update { user, room, patch, status }),
        1 => (0..2usize, room()).prop_map(|(user, room)| Step::Delete { user, room }),
    ];
    prop::collection::vec(step, 1..25)
}

/// One of the databases.
struct Place {
    name: &'static str,
    owner: Session,
    users: [Session; 2],
}

const USERS: [&str; 2] = ["alice", "bob"];

impl Place {
    fn writes_fast(&mut self) -> bool {
        self.owner.is("select fast_writes > 0 from presence.health")
    }

    fn new(cluster: &Cluster, name: &'static str, fast_path: &str) -> Place {
        cluster.sql("postgres", &format!("create database {name}"));
        cluster.sql(name, "create extension presence_ext");
        cluster.sql(name, &format!("alter database {name} set presence.fast_path = {fast_path}"));
        cluster.sql(name, FUNCTIONS);
        cluster.sql(name, "select presence.grant_access('alice'), presence.grant_access('bob')");
        Place {
            name,
            owner: cluster.session("postgres", name),
            users: USERS.map(|user| cluster.session(user, name)),
        }
    }

    /// Runs the step as a verb or as plain SQL, and returns the rows, or the SQLSTATE and the message.
    fn take(&mut self, user: usize, step: &Step) -> Answer {
        let sql = if self.name == "plain" { plain(user, step) } else { verb(step) };
        match self.users[user].try_rows(&sql) {
            Ok(rows) => Answer { error: String::new(), message: String::new(), rows },
            Err(failure) => Answer { error: failure.code, message: failure.message, rows: Vec::new() },
        }
    }

    fn contents(&mut self) -> Vec<Vec<String>> {
        let mut rows = self.owner.rows(
            "select room, member_id, status, state, metadata, to_jsonb(m) -> 'note', to_jsonb(m) -> 'twice'
             from presence.member m order by 1, 2",
        );
        rows.extend(self.owner.rows(
            "select what, who, room, status, count(*) from audit group by 1, 2, 3, 4 order by 1, 2, 3, 4",
        ));
        rows
    }
}

#[derive(Debug, PartialEq)]
struct Answer {
    error: String,
    message: String,
    rows: Vec<Vec<String>>,
}

fn literal(status: &Option<&str>) -> String {
    status.map_or("null".into(), |status| format!("'{status}'"))
}

fn verb(step: &Step) -> String {
    match step {
        Step::Upsert { room, state, status, .. } => {
            let state = state.map_or("null".into(), |n| format!("'{{\"n\": {n}}}'"));
            let status = literal(status);
            format!("select room, status, state from presence.upsert('{room}', {state}, status => {status})")
        }
        Step::Update { room, patch, status, .. } => {
            let status = literal(status);
            format!(
                "select room, status, state from presence.update('{room}', '{{\"p\": {patch}}}', status => {status})"
            )
        }
        Step::Delete { room, .. } => format!("select presence.delete('{room}')"),
        Step::Change(_) | Step::Set(..) => String::new(),
    }
}

/// What an application without verbs would write, which leaves rows alone that are already right.
fn plain(user: usize, step: &Step) -> String {
    let of = |room| format!("room = '{room}' and member_id = '{0}' and connection_id = ''", USERS[user]);
    let change = |room, state: &str, status: &str| {
        let of = of(room);
        format!(
            "do $$ begin
                 if exists (select from presence.member m where {of}
                            and (m.state is distinct from {state}
                                 or coalesce(m.status, '') is distinct from coalesce({status}, m.status, ''))) then
                     update presence.member m set state = {state}, status = coalesce({status}, m.status) where {of};
                 "
        )
    };
    match step {
        Step::Upsert { room, state, status, .. } => {
            let (of, status) = (of(room), literal(status));
            let given = state.map_or("null".into(), |n| format!("'{{\"n\": {n}}}'::jsonb"));
            let change = change(room, &format!("coalesce({given}, m.state)"), &status);
            format!(
                "{change} elsif not exists (select from presence.member where {of}) then
                     insert into presence.member (room, state, status) values ('{room}', {given}, {status})
                     on conflict (room, member_id, connection_id) do nothing;
                 end if; end $$"
            )
        }
        Step::Update { room, patch, status, .. } => {
            let state = format!("m.state || '{{\"p\": {patch}}}'");
            format!("{} end if; end $$", change(room, &state, &literal(status)))
        }
        Step::Delete { room, .. } => format!("delete from presence.member where {}", of(room)),
        Step::Change(_) | Step::Set(..) => String::new(),
    }
}

fn run(places: &mut [Place; 3], steps: &[Step]) -> Result<(), String> {
    let mut made: Vec<usize> = Vec::new();
    let mut set: Vec<(usize, usize)> = Vec::new();
    let mut result = Ok(());
    for (number, step) in steps.iter().enumerate() {
        let outcome = match step {
            Step::Change(at) => change(places, *at, &mut made),
            Step::Set(user, at) => {
                let there = set.iter().position(|known| known == &(*user, *at));
                let (make, undo) = SETTINGS[*at];
                places
                    .iter_mut()
                    .for_each(|place| place.users[*user].run(if there.is_some() { undo } else { make }));
                match there {
                    Some(place) => drop(set.remove(place)),
                    None => set.push((*user, *at)),
                }
                Ok(())
            }
            Step::Upsert { user, .. } | Step::Update { user, .. } | Step::Delete { user, .. } => {
                compare(places, *user, step)
            }
        };
        if let Err(why) = outcome {
            result = Err(format!("step {number}, {step:?}: {why}"));
            break;
        }
    }
    for (user, at) in set {
        places.iter_mut().for_each(|place| place.users[user].run(SETTINGS[at].1));
    }
    for at in made.into_iter().rev() {
        places.iter_mut().for_each(|place| place.owner.run(CHANGES[at].1));
    }
    places.iter_mut().for_each(|place| place.owner.run("delete from presence.member; truncate audit"));
    result
}

/// A change that one database refuses (existing rows violate it) must be refused by all.
fn change(places: &mut [Place; 3], at: usize, made: &mut Vec<usize>) -> Result<(), String> {
    let there = made.iter().position(|known| *known == at);
    let (make, undo) = CHANGES[at];
    // These changes undo each other's grants, and `member_change` is a single policy.
    if there.is_none() && made.iter().any(|known| CHANGES[*known].1 == undo || conflict(*known, at)) {
        return Ok(());
    }
    let sql = if there.is_some() { undo } else { make };
    let codes: Vec<String> = places
        .iter_mut()
        .map(|place| place.owner.try_run(sql).err().map(|failure| failure.code).unwrap_or_default())
        .collect();
    if codes.iter().any(|code| *code != codes[0]) {
        return Err(format!("{sql}: {codes:?}"));
    }
    if codes[0].is_empty() {
        match there {
            Some(place) => drop(made.remove(place)),
            None => made.push(at),
        }
    }
    Ok(())
}

fn conflict(one: usize, other: usize) -> bool {
    let grants = |at: usize| CHANGES[at].0.starts_with("revoke update");
    grants(one) && grants(other)
}

fn compare(places: &mut [Place; 3], user: usize, step: &Step) -> Result<(), String> {
    let answers: Vec<Answer> = places.iter_mut().map(|place| place.take(user, step)).collect();
    if answers[0] != answers[1] {
        return Err(format!("fast: {:?}, not fast: {:?}", answers[0], answers[1]));
    }
    // Plain SQL silently changes no row where an upsert must report that it did nothing; and an upsert that
    // changes nothing still checks the right to change.
    let says_more = ["42501", "25006"].contains(&answers[1].error.as_str()) && answers[2].error.is_empty();
    // If both refuse, the reasons may be checked in either order.
    let [verbs, plain] = [1, 2].map(|at| answers[at].error.as_str());
    let refused = !verbs.is_empty() && !plain.is_empty() && (verbs == "25006" || plain == "25006");
    if verbs != plain && !says_more && !refused {
        return Err(format!("verbs: {:?}, plain SQL: {:?}", answers[1], answers[2]));
    }
    let contents: Vec<_> = places.iter_mut().map(Place::contents).collect();
    for at in 1..3 {
        if contents[0] != contents[at] {
            return Err(format!("fast: {:?}, {}: {:?}", contents[0], places[at].name, contents[at]));
        }
    }
    Ok(())
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

#[test]
fn verbs_do_what_sql_does_whatever_was_done_to_the_table() {
    let seed = number("PRESENCE_SEED")
        .unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().expect("after 1970").as_micros() as u64);
    println!("PRESENCE_SEED={seed}");
    let cluster = Cluster::bare(&["max_worker_processes=24"]);
    let places = RefCell::new([
        Place::new(&cluster, "fast", "on"),
        Place::new(&cluster, "slow", "off"),
        Place::new(&cluster, "plain", "off"),
    ]);
    // Before anything is done to the table: a column that was added and dropped again leaves it changed
    // permanently.
    for place in places.borrow_mut().iter_mut() {
        place.users[0].run("select presence.upsert('first', '1'); select presence.upsert('first', '2')");
        place.owner.run("delete from presence.member; truncate audit");
    }
    let ways = places.borrow_mut().each_mut().map(Place::writes_fast);
    assert_eq!(ways, [true, false, false], "which way they go");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: number("PRESENCE_CASES").unwrap_or(60) as u32,
        max_shrink_iters: 500,
        max_shrink_time: 60_000,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let result =
        runner.run(&steps(), |steps| run(&mut places.borrow_mut(), &steps).map_err(TestCaseError::fail));
    if let Err(TestError::Fail(why, steps)) = &result {
        panic!("PRESENCE_SEED={seed}: {why}\n{steps:#?}");
    }
    result.unwrap_or_else(|error| panic!("{error}"));
    let [_, slow, plain] = &mut *places.borrow_mut();
    assert!(!slow.writes_fast() && !plain.writes_fast());
    cluster.assert_sound();
}
