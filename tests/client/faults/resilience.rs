//! A single obstacle blocks only itself: a member that cannot be deleted, an event that cannot be written, a
//! reader that stays, a step of the worker's housekeeping that fails.

use crate::common::{Cluster, Session, lines, millis, until};
use std::time::{Duration, Instant};

/// The guarantee is sweep_interval (1 s) plus 100 ms; the rest is an allowance for a busy machine.
const IN_TIME: Duration = Duration::from_millis(2_000);

/// What an operator sees: the last error, and whether it persists.
fn trouble(service: &mut Session) -> (String, bool) {
    let row = service.rows("select last_error, failing_since is not null from presence.health").remove(0);
    (row[0].clone(), row[1] == "t")
}

fn leaves(service: &mut Session, room: &str) -> i64 {
    service.number(&format!("select count(*) from presence.event where room = '{room}' and event = 'leave'"))
}

/// A trigger on `member` that acts only on bob's row.
fn minder(body: &str) -> String {
    format!(
        "create or replace function public.mind() returns trigger language plpgsql as
             $$ begin if old.user_id = 'bob' then {body} end if; return old; end $$;
         create or replace trigger mind before delete on presence.member
             for each row execute function public.mind()"
    )
}

const NO_MINDER: &str = "drop trigger if exists mind on presence.member; drop table if exists public.cursor";

/// Each of these prevents bob's member from being deleted.
fn obstacles() -> Vec<(&'static str, String)> {
    let reference = |options: &str| {
        format!(
            "create unlogged table public.cursor (room text, member_id text, connection_id text,
                 foreign key (room, member_id, connection_id) references presence.member {options});
             insert into public.cursor values ('hall', 'bob', '')"
        )
    };
    vec![
        ("a foreign key", reference("")),
        ("a foreign key that is looked at in the end", reference("deferrable initially deferred")),
        ("a trigger that fails", minder("raise exception 'not bob';")),
        ("one that fails as if something else was wrong", minder("raise 'no' using errcode = '40001';")),
        ("one that fails as if the disk was full", minder("raise 'full' using errcode = '53100';")),
        ("one that fails as if somebody cancelled", minder("raise 'away' using errcode = '57014';")),
        ("one that keeps the row", minder("return null;")),
        ("one that waits for a lock", minder("perform pg_catalog.pg_advisory_xact_lock(4711);")),
    ]
}

#[test]
fn a_member_that_cannot_be_deleted_holds_up_nobody_else() {
    for (what, obstacle) in obstacles() {
        let cluster = Cluster::start();
        let mut service = cluster.service();
        let mut holder = cluster.service();
        holder.run("begin; select pg_advisory_xact_lock(4711)");
        service.run(
            "select presence.upsert('hall', user_id => 'u' || n, ttl => '1 s') from generate_series(1, 300) n;
             select presence.upsert('hall', user_id => 'bob', ttl => '1 s')",
        );
        service.run(&obstacle);
        let began = Instant::now();
        until(what, || leaves(&mut service, "hall") == 300);
        let lag = began.elapsed().saturating_sub(millis(1_000));
        // The worker honours what looks like a cancel three times before it looks for the cause.
        let in_time = if what.contains("cancelled") { IN_TIME + millis(1_000) } else { IN_TIME };
        assert!(lag < in_time, "{what}: {lag:?}");
        until("health says it", || {
            let (error, is_failing) = trouble(&mut service);
            error.contains("member_id 'bob'") && is_failing
        });
        assert!(service.rows("select * from presence.list('hall')").is_empty());

        // Members that enter later also leave in time, and the log is not flooded.
        service.run("select presence.upsert('side', user_id => 'late', ttl => '1 s')");
        std::thread::sleep(millis(2_000)); // its ttl and the guaranteed delay
        let lag = "select extract(epoch from clock_timestamp() - at) from presence.event
                   where room = 'side' and event = 'leave'";
        assert_eq!(service.rows(lag).len(), 1, "{what}");
        assert_eq!(cluster.log().matches("a member cannot be removed").count(), 1, "{what}");
        assert!(service.is("select events_dropped = 0 and resyncs = 0 from presence.health"), "{what}");

        service.run(NO_MINDER);
        until("bob leaves when nothing is in the way", || leaves(&mut service, "hall") == 301);
        until("health is content", || !trouble(&mut service).1);
        cluster.assert_sound();
    }
}

#[test]
fn sweep_leaves_out_what_it_cannot_delete() {
    for (what, obstacle) in obstacles() {
        // These cannot be tested in a session: it would wait, or treat the error as a cancel or a failure of
        // its own.
        if ["waits for", "cancelled", "something else", "disk"].iter().any(|word| what.contains(word)) {
            continue;
        }
        let cluster = Cluster::start();
        let mut service = cluster.service();
        service.run(
            "select presence.upsert('hall', user_id => 'u' || n, ttl => '1 s') from generate_series(1, 40) n;
             select presence.upsert('hall', user_id => 'bob', ttl => '1 s')",
        );
        service.run(&obstacle);
        let frozen = cluster.freeze_worker();
        until("they expire", || service.rows("select * from presence.list('hall')").is_empty());
        assert_eq!(service.number("select presence.sweep()"), 40, "{what}");
        assert_eq!(service.rows("select user_id from presence.member"), [["bob"]], "{what}");
        drop(frozen);
        service.flush();
        assert_eq!(leaves(&mut service, "hall"), 40, "{what}");
        cluster.assert_sound();
    }
}

#[test]
fn a_reader_of_the_log_stops_nothing_however_long_it_stays() {
    let cluster = Cluster::with_clock(&[]);
    let (mut service, mut alice) = (cluster.service(), cluster.user("alice"));
    alice.run("select presence.upsert('hall', '0', ttl => '30 d')");
    service.flush();
    let mut reader = cluster.service();
    reader.run("begin");
    reader.run("select count(*) from presence.event");

    // Rotation stays due for hours.
    let mut last = 0;
    for round in 1..=4 {
        cluster.clock().pass(Duration::from_secs(2 * 3_600));
        alice.run(&format!("select presence.upsert('hall', '{round}', ttl => '30 d')"));
        service.run(&format!("select presence.upsert('hall', user_id => 'guest{round}', ttl => '1 s')"));
        let began = Instant::now();
        service.flush();
        assert!(began.elapsed() < millis(1_000), "publishing took {:?}", began.elapsed());
        until("expiry goes on", || leaves(&mut service, "hall") == round);
        until("last_seen is written", || {
            service.is(&format!(
                "select exists (select from presence.last_seen where user_id = 'guest{round}' and not online)"
            ))
        });
        last = service.number("select count(*) from presence.event");
    }
    assert_eq!(last, 1 + 4 * 3, "nothing of the log is lost");
    assert!(!trouble(&mut service).1, "{}", trouble(&mut service).0);
    assert!(!cluster.log().contains("rotating the event log"));

    reader.run("commit");
    let parts = |service: &mut Session| {
        (0..3)
            .filter(|part| service.number(&format!("select count(*) from _presence._event_{part}")) > 0)
            .count()
    };
    until("it rotates", || {
        alice.run("select presence.upsert('hall', to_jsonb(clock_timestamp()), ttl => '30 d')");
        service.flush();
        parts(&mut service) == 2
    });
    cluster.assert_sound();
}

/// Statements that would lock others out, run by a user without the right to do so. Some of them wait first
/// and are refused afterwards: meanwhile, all later statements would wait behind them.
const LOCKING_OUT: [&str; 17] = [
    "lock table TABLE",
    "lock table public.own, TABLE in share mode",
    "lock table public.over",
    "lock table public.over_it in share row exclusive mode",
    "do $$ begin lock table TABLE; end $$",
    "create rule no as on insert to TABLE do instead nothing",
    "create trigger no before insert on TABLE for each row execute function public.nothing()",
    "create trigger no instead of insert on presence.online for each row execute function public.nothing()",
    "create rule no as on insert to presence.online do instead nothing",
    "create table public.cursor (room text, foreign key (room) references TABLE)",
    "create table public.cursor (room text references TABLE)",
    "alter table public.own add foreign key (room) references TABLE",
    "alter table public.own add note text references TABLE (room)",
    "create table public.part partition of TABLE default",
    "alter table public.parted attach partition TABLE default",
    "alter table public.parted detach partition TABLE",
    "alter index public.parted_room attach partition presence.member_user_id",
];

#[test]
fn who_may_not_lock_a_table_makes_nobody_wait() {
    let cluster = Cluster::start();
    let (mut service, mut alice, mut bob) = (cluster.service(), cluster.user("alice"), cluster.user("bob"));
    service.run("grant create on schema public to bob");
    bob.run(
        "create table public.own (room text);
         create table public.parted (like presence.member) partition by list (room);
         create index parted_room on public.parted (room);
         create view public.over as select * from presence.member;
         create view public.over_it as select o.room, (select count(*) from public.over) from public.own o;
         create function public.nothing() returns trigger language plpgsql as 'begin return null; end'",
    );
    // A transaction that has read and written stays open.
    alice.run("begin; select presence.upsert('hall'); select count(*) from presence.online, presence.event");
    bob.run("set lock_timeout = '10s'");
    for statement in LOCKING_OUT {
        for table in ["presence.member", "presence.room", "presence.event", "_presence._event_0"] {
            let statement = statement.replace("TABLE", table);
            let began = Instant::now();
            assert_eq!(bob.fails(&format!("begin; {statement}")).code, "42501", "{statement}");
            bob.run("rollback");
            assert!(began.elapsed() < millis(2_000), "{statement}");
        }
    }
    alice.run("commit");

    // Statements that lock nobody out succeed, and so do those that the owner of the tables allows.
    bob.run("begin; lock table presence.member in row exclusive mode; lock table public.own; commit");
    bob.run("create rule quiet as on insert to public.own do instead delete from presence.member");
    service.run("grant trigger, references on presence.member to bob");
    bob.run("create unlogged table public.cursor (r text, m text, c text, foreign key (r, m, c) references presence.member)");
    bob.run(
        "create trigger yes after insert on presence.member for each row execute function public.nothing()",
    );
    service.run("begin; lock table presence.member; rollback");
    cluster.assert_sound();
}

#[test]
fn a_view_that_becomes_another_one_locks_nobody_out() {
    let cluster = Cluster::start();
    let (mut service, mut bob, mut other) = (cluster.service(), cluster.user("bob"), cluster.user("bob"));
    service.run("grant create on schema public to bob");
    bob.run("create table public.own (room text); create view public.over as select room from public.own");
    other.run("begin; lock table public.own");
    std::thread::scope(|scope| {
        let locking = scope.spawn(|| bob.fails("begin; lock table public.own, public.over"));
        until("it waits", || {
            service.is("select exists (select from pg_locks where not granted and relation = 'public.own'::regclass)")
        });
        other.run("create or replace view public.over as select room from presence.member; commit");
        assert_eq!(locking.join().expect("an answer").code, "42501");
    });
    cluster.assert_sound();
}

/// Additions to the log's tables that prevent bob's events from being written. The last field: the worker
/// waits.
fn censors() -> Vec<(&'static str, &'static str, bool)> {
    vec![
        ("a check", "alter table presence.event add constraint censor check (user_id <> 'bob')", false),
        ("a trigger", "P0001", false),
        ("a trigger in the end", "deferred", false),
        ("a trigger that fails as if it was a deadlock", "40P01", true),
        ("a trigger that fails as if the disk was full", "53100", true),
    ]
}

/// Triggers that raise this SQLSTATE, on each table of the log.
fn censor(code: &str) -> String {
    let (code, kind) = match code {
        "deferred" => ("P0001", "constraint trigger censor after insert"),
        code => (code, "trigger censor before insert"),
    };
    let when = if kind.starts_with("constraint") { "deferrable initially deferred" } else { "" };
    let triggers: String = (0..3)
        .map(|part| {
            format!("create {kind} on _presence._event_{part} {when} for each row execute function public.censor();")
        })
        .collect();
    format!(
        "create function public.censor() returns trigger language plpgsql as
         $$ begin if new.user_id = 'bob' then raise 'no' using errcode = '{code}'; end if; return new; end $$;
         {triggers}"
    )
}

#[test]
fn an_event_that_cannot_be_written_holds_up_nobody_elses() {
    for (what, sql, waits) in censors() {
        let cluster = Cluster::start();
        let (mut service, mut alice) = (cluster.service(), cluster.user("alice"));
        service.run("select presence.listen()");
        let sql = if sql.contains(' ') { sql.to_owned() } else { censor(sql) };
        service.run(&sql);
        service.run("select presence.upsert('hall', user_id => 'bob')");
        for round in 0..20 {
            alice.run(&format!("select presence.upsert('hall', '{round}')"));
            let began = Instant::now();
            let heard = format!("select exists (select from presence.event where state = '{round}')");
            until("alice's events are published", || service.is(&heard));
            assert!(began.elapsed() < millis(1_000), "{what}: {:?}", began.elapsed());
        }
        let dropped = service.number("select events_dropped from presence.health");
        assert_eq!(dropped, if waits { 0 } else { 1 }, "{what}");
        let heard = service.heard();
        assert!(lines(&heard).iter().all(|line| line.ends_with("alice")), "{what}: {:?}", lines(&heard));
        if waits {
            let (error, is_failing) = trouble(&mut service);
            assert!(is_failing && error == "no", "{what}: {error}");
            service.run("drop function public.censor() cascade");
            let heard = service.hear_until("bob, at last", |event| event.line() == "enter bob");
            assert!(heard.iter().all(|event| event.kind() != "resync"), "{what}");
        } else {
            assert!(heard.iter().any(|event| event.kind() == "resync"), "{what}");
        }
        until("health is content", || !trouble(&mut service).1);
        let counted =
            "select connections from presence.event where user_id = 'alice' order by seq desc limit 1";
        assert_eq!(service.number(counted), 1);
    }
}

#[test]
fn a_line_of_last_seen_that_cannot_be_written_holds_up_nobody_elses() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    service.run("alter table _presence._last_seen add check (user_id not in ('u17', 'u60'))");
    service.run("select presence.upsert('hall', user_id => 'u' || n) from generate_series(1, 100) n");
    service.run("select presence.delete_all('u' || n) from generate_series(1, 100) n");
    until("the others are written", || service.number("select count(*) from presence.last_seen") == 98);
    assert_eq!(cluster.log().matches("cannot write when a user was seen (u17)").count(), 1);
    service.run("select presence.upsert('hall', user_id => 'late')");
    service.run("select presence.delete_all('late')");
    until("and later ones", || service.number("select count(*) from presence.last_seen") == 99);
    cluster.assert_sound();
}

#[test]
fn steps_of_the_housekeeping_that_fail_hold_up_no_others() {
    let cluster = Cluster::with_clock(&[]);
    let (mut service, mut alice) = (cluster.service(), cluster.user("alice"));
    // Both rotating the log and writing last_seen fail.
    service.run(
        "create function public.never() returns trigger language plpgsql as $$ begin raise 'never'; end $$;
         create trigger never before truncate on _presence._event_1 execute function public.never();
         create trigger never before truncate on _presence._event_2 execute function public.never();
         create trigger never before truncate on _presence._event_0 execute function public.never();
         create trigger never before insert on _presence._last_seen execute function public.never()",
    );
    alice.run("select presence.upsert('hall', '0', ttl => '30 d')");
    service.flush();
    cluster.clock().pass(Duration::from_secs(3_600));
    until("health says it", || trouble(&mut service) == ("never".into(), true));
    let log = |part: &str| cluster.log().matches(part).count();
    until("both have failed", || {
        log("rotating the event log failed") == 1
            && log("writing when users were seen failed") + log("cannot write") > 0
    });
    // While somebody reads the log the rotation waits, which is no failure.
    let mut reader = cluster.service();
    reader.run("begin; select count(*) from presence.event");
    for round in 1..=30 {
        alice.run(&format!("select presence.upsert('hall', '{round}', ttl => '30 d')"));
        let began = Instant::now();
        service.flush();
        assert!(began.elapsed() < millis(500), "publishing took {:?}", began.elapsed());
        std::thread::sleep(millis(50));
    }
    reader.run("commit");
    service.run("select presence.upsert('hall', user_id => 'guest', ttl => '1 s')");
    let began = Instant::now();
    until("expiry goes on", || leaves(&mut service, "hall") == 1);
    assert!(began.elapsed() < IN_TIME + millis(1_000), "expiry took {:?}", began.elapsed());
    service.run("alter database app set presence.notify_payload = 'doorbell'");
    service.run("select presence.listen()");
    until("settings are still read", || {
        alice.run("select presence.upsert('hall', to_jsonb(clock_timestamp()), ttl => '30 d')");
        service.hear().iter().any(|event| event.kind() == "changes")
    });
    assert_eq!(log("rotating the event log failed"), 1, "not a line each time");
    cluster.assert_sound();
}

#[test]
fn a_cancel_of_the_worker_costs_no_event() {
    let cluster = Cluster::start();
    let (mut service, mut alice) = (cluster.service(), cluster.user("alice"));
    service.run("select presence.listen()");
    // Each event takes a while, so that the cancel arrives during one.
    service.run(
        "create function public.slowly() returns trigger language plpgsql as
             $$ begin perform pg_sleep(0.3); return coalesce(new, old); end $$;
         create trigger slowly before insert on _presence._event_0 for each row execute function public.slowly();
         create trigger slowly before delete on presence.member for each row execute function public.slowly()",
    );
    alice.run("select presence.upsert('hall', '0', ttl => '2 s')");
    for _ in 0..2 {
        std::thread::sleep(millis(100));
        service.run("select pg_cancel_backend(presence.worker_pid())");
    }
    service.hear_until("alice comes", |event| event.line() == "enter alice");
    let deleting = "select exists (select from pg_stat_activity
                    where pid = presence.worker_pid() and query = 'removing expired members')";
    until("she is being removed", || service.is(deleting));
    service.run("select pg_cancel_backend(presence.worker_pid())");
    service.hear_until("alice goes", |event| event.line() == "leave alice expired");
    assert!(service.is("select events_dropped = 0 and resyncs = 0 from presence.health"));
    assert!(!cluster.log().contains("a member cannot be removed"), "nobody was in the way");
    cluster.assert_sound();
}
