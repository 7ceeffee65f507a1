//! A hostile user who, alongside all steps, does whatever an ordinary role can do to obstruct others. None of it may
//! make a difference to them.

use crate::common::{Cluster, Session, millis};
use proptest::sample::select;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

pub const NAME: &str = "mallory";

const SETUP: &str = "
    create role mallory login;
    create schema mallory authorization mallory;
    select presence.grant_access('mallory');
    set role mallory;
    create table mallory.own (room text primary key, member_id text);
    create table mallory.parted (like presence.member) partition by list (room);
    insert into mallory.own select 'a' || i, 'alice' from generate_series(1, 100) i;
    create function mallory.nothing() returns trigger language plpgsql as 'begin return null; end';
    create function mallory.spy(text) returns text language plpgsql immutable as $$ begin
        perform set_config('request.jwt.claims', '{\"sub\": \"alice\"}', true);
        perform presence.delete_all();
        return presence.user_id();
    end $$;
    create materialized view mallory.seen as select * from presence.online;
    create view mallory.over as select * from presence.member;";

/// Some are refused, some fail in the transaction they run in, some wait. `#` is the number of her session.
const STATEMENTS: [&str; 56] = [
    // Transactions, including some that stay open without a session.
    "begin",
    "begin",
    "begin isolation level serializable",
    "savepoint s",
    "savepoint s",
    "rollback to s",
    "release s",
    "commit",
    "rollback",
    "rollback",
    "prepare transaction 'mallory #'",
    "prepare transaction 'mallory #'",
    "rollback prepared 'mallory #'",
    "rollback prepared 'mallory #'",
    "discard all",
    // Her own members, which nobody else sees.
    "select presence.upsert('m', to_jsonb(random()), connection_id => '#', audience => '{}')",
    "select presence.upsert('m', connection_id => 'held', audience => '{}', session => true)",
    "select presence.upsert_many(jsonb_agg(jsonb_build_object('room', 'm' || i, 'audience', '[]'::jsonb,
         'state', repeat(chr(1), 1000) || random()))) from generate_series(1, 20) i",
    "select presence.update('m', '{\"x\": 1}', connection_id => '#')",
    "select presence.heartbeat_many(array['m', 'a', 'b', '1a', '2b'])",
    "select presence.delete_all()",
    "select presence.delete('m')",
    // Members of other users.
    "select presence.heartbeat_many(array_agg(room), array_agg(member_id), array_agg(connection_id)) from presence.online",
    "select presence.upsert(room, member_id => member_id) from presence.online",
    "update presence.member set status = 'mine'",
    "delete from presence.member",
    "select count(*) from (select from presence.member for update) m",
    "insert into presence.member (room, member_id) select room, member_id from presence.online",
    "select presence.set_room('a', max_members => 1)",
    "truncate presence.member",
    // Locks, taken or waited for.
    "lock table presence.member",
    "lock table presence.room in share mode",
    "lock table mallory.over",
    "select pg_advisory_lock(i) from generate_series(1, 100) i",
    "select pg_try_advisory_lock_shared(i, 3) from generate_series(1, 100) i",
    "select count(*) from presence.event, presence.room, presence.last_seen",
    "declare c cursor with hold for select * from presence.list()",
    "create rule no as on insert to presence.member do instead nothing",
    "create rule no as on insert to _presence._event_0 do instead nothing",
    "create trigger no before insert on presence.member for each row execute function mallory.nothing()",
    "create table mallory.cursor (room text references presence.member)",
    "alter table mallory.parted attach partition presence.member default",
    "drop schema presence cascade",
    "drop extension presence_ext",
    // Her own objects, with code that others might run.
    "create index on mallory.own (mallory.spy(room))",
    "update mallory.own set member_id = 'bob'",
    "analyze mallory.own",
    "refresh materialized view mallory.seen",
    "create or replace view mallory.over as select * from presence.member where room > ''",
    // Other users' identities, sessions and channels.
    "set request.jwt.claims = '{\"sub\": \"alice\"}'",
    "select presence.act_as('alice')",
    "select presence.listen(), presence.listen('m')",
    "select presence.rotate_channels()",
    "select pg_cancel_backend(presence.worker_pid())",
    "select pg_terminate_backend(pid) from pg_stat_activity where usename <> 'mallory'",
    "select pg_cancel_backend(pid) from pg_stat_activity where usename = 'mallory' and pid <> pg_backend_pid()",
];

/// Her two sessions, which run until `end`.
pub struct Mallory {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<usize>>,
}

impl Mallory {
    pub fn start(cluster: &Cluster, random: impl Fn(usize) -> TestRunner) -> Mallory {
        cluster.sql("app", SETUP);
        let over = Arc::new(AtomicBool::new(false));
        let begin = |number| {
            let (session, over, random) = (cluster.user(NAME), over.clone(), random(number));
            std::thread::spawn(move || annoy(session, number, random, &over))
        };
        Mallory { threads: (0..2).map(begin).collect(), over }
    }

    /// Stops both sessions. They leave nothing open.
    pub fn end(&mut self) {
        self.over.store(true, Relaxed);
        let done = self.threads.drain(..).map(|thread| thread.join().expect("an answer to each statement"));
        assert!(done.sum::<usize>() > 10, "she did hardly anything");
    }
}

impl Drop for Mallory {
    fn drop(&mut self) {
        // So that the threads do not go on without a server.
        self.over.store(true, Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn annoy(mut session: Session, number: usize, mut random: TestRunner, over: &AtomicBool) -> usize {
    let mut done = 0;
    let mut run = |statement: &str| {
        let statement = statement.replace('#', &number.to_string());
        match session.try_run(&statement) {
            Err(failure) if failure.code == "25P02" => session.run("rollback"),
            Err(failure) if failure.code.starts_with("XX") || failure.code == "08006" => {
                panic!("{statement}: {failure:?}")
            }
            result => done += usize::from(result.is_ok()),
        }
    };
    while !over.load(Relaxed) {
        // The clock is moved, so a timeout could fire at any time.
        run("set statement_timeout = 0");
        run(select(&STATEMENTS[..]).new_tree(&mut random).expect("a statement").current());
        std::thread::sleep(millis(3));
    }
    run("rollback");
    run("rollback prepared 'mallory #'");
    done
}
