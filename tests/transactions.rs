//! What did not happen leaves nothing behind, and what changes nothing costs nothing.

mod common;

use common::{Cluster, Session, lines, millis, until};

#[test]
fn only_the_net_effect_of_a_commit_is_heard() {
    let cluster = Cluster::start();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    service.run("select presence.listen()");
    let mut hears = |transaction: &str, expected: &[&str]| {
        alice.run(transaction);
        assert_eq!(lines(&service.hear()), expected, "{transaction}");
    };

    // Rolled back: no member, no event, no lease.
    hears("begin; select presence.upsert('lobby'); rollback", &[]);
    hears("begin; select presence.upsert('lobby'), presence.delete('lobby'); commit", &[]);
    let nothing = "begin; savepoint s; select presence.upsert('lobby'); rollback to s; commit";
    hears(nothing, &[]);
    hears(
        "begin; savepoint a; savepoint b; select presence.upsert('lobby'); release b; rollback to a; commit",
        &[],
    );
    // An error in PL/pgSQL is a savepoint, too.
    hears(
        "do $$ begin perform presence.upsert('lobby'); raise 'no'; exception when others then null; end $$",
        &[],
    );
    let mut reader = cluster.service();
    assert_eq!(reader.rows("select members, slots_used from presence.health")[0], ["0", "0"]);
    assert!(!reader.is("select presence.heartbeat('lobby', 'alice')"));

    // The part of a transaction that stays is heard, as one.
    hears(
        "begin; select presence.upsert('lobby', '1'); savepoint s; select presence.upsert('lobby', '2');
         rollback to s; select presence.upsert('side'); savepoint t; select presence.delete('side'); release t; commit",
        &["enter alice"],
    );
    assert_eq!(reader.value("select state from presence.get('lobby', 'alice')"), "1");
    hears(
        "begin; select presence.upsert('lobby', '3'); select presence.update('lobby', status => 'x');
         select presence.upsert('lobby', '4'); commit",
        &["update alice"],
    );
    hears(
        "begin; select presence.upsert('lobby', '5'); select presence.upsert('lobby', '4', status => 'x'); commit",
        &["update alice"],
    );
    hears("begin; savepoint s; select presence.delete('lobby'); rollback to s; commit", &[]);
    assert!(
        reader.is("select presence.heartbeat('lobby', 'alice')"),
        "the lease came back with the savepoint"
    );

    let before = reader.value("select joined_at from presence.get('lobby', 'alice')");
    hears(
        "begin; select presence.delete('lobby'); select presence.upsert('lobby', '6'); commit",
        &["leave alice left", "enter alice"],
    );
    assert_ne!(reader.value("select joined_at from presence.get('lobby', 'alice')"), before);
    hears(
        "begin; select presence.update('lobby', status => 'y'), presence.delete('lobby'); commit",
        &["leave alice left"],
    );
    hears("begin; select presence.upsert('lobby'); select presence.delete('lobby'); select presence.upsert('lobby', '7');
           commit", &["enter alice"]);
    hears("begin; select presence.delete('lobby'); select presence.upsert('lobby'); select presence.delete('lobby');
           commit", &["leave alice left"]);
    until("nothing is left", || reader.is("select members + slots_used = 0 from presence.health"));

    // Direct DML is no other way.
    hears(
        "insert into presence.member (room, state) values ('lobby', '1'), ('side', '2')",
        &["enter alice"; 2],
    );
    hears("begin; delete from presence.member; rollback", &[]);
    hears("update presence.member set state = '3' where room = 'side'", &["update alice"]);
    hears("delete from presence.member", &["leave alice left"; 2]);
    cluster.assert_sound();
}

#[test]
fn a_heartbeat_counts_at_once_and_costs_nothing() {
    let cluster = Cluster::start();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    service.run("select presence.listen()");
    alice.run("select presence.upsert('lobby', '{\"a\": 1}', ttl => '100 s')");
    service.hear();

    // Proof of life survives a rollback, also of a savepoint, and works in a read-only transaction.
    for beat in [
        "begin; select presence.heartbeat('lobby'); rollback",
        "begin; savepoint s; select presence.heartbeat('lobby'); rollback to s; rollback",
        "begin read only; select presence.heartbeat('lobby'); commit",
        "begin; select * from presence.heartbeat_many('{lobby}'); rollback",
    ] {
        renews(&mut alice, beat);
    }
    assert_eq!(
        alice.rows(
            "select * from presence.heartbeat_many('{lobby,side,lobby}', connection_ids => '{\"\",\"\",x}')"
        ),
        [["side", "alice", ""], ["lobby", "alice", "x"]]
    );
    // True in the transaction that entered, false again when that came to nothing.
    assert!(alice.is("begin; select presence.upsert('side'); select presence.heartbeat('side')"));
    alice.run("rollback");
    assert!(!alice.is("select presence.heartbeat('side')"));
    assert!(!alice.is("begin; select presence.delete('lobby'); select presence.heartbeat('lobby')"));
    alice.run("rollback");

    // The identical upsert is a heartbeat that counts from the commit on.
    let row = "select xmin, ctid, version, updated_at from presence.member";
    let before = service.rows(row);
    let same = "select presence.upsert('lobby', '{\"a\": 1}')";
    let lease = expiry(&mut alice);
    alice.run(&format!("begin; {same}; rollback"));
    assert_eq!(expiry(&mut alice), lease);
    renews(&mut alice, same);
    renews(&mut alice, &format!("begin; {same}; {same}; commit"));
    assert_eq!(service.rows(row), before, "no row was written");
    assert_eq!(lines(&service.hear()), [""; 0]);

    // No WAL, no transaction id, no lock beyond those of a SELECT. (Other processes write a little WAL: ask for our
    // own.)
    let wal = "select wal_bytes from pg_stat_wal";
    until("the server writes no WAL of its own", || {
        let bytes = service.value(wal);
        std::thread::sleep(millis(1_200));
        bytes == service.value(wal)
    });
    // The server may prune a page of its catalogs just then: some round must write nothing at all.
    let mut costs_nothing = || {
        let position = "select pg_current_wal_insert_lsn(), pg_snapshot_xmax(pg_current_snapshot())";
        let before = service.rows(position);
        for _ in 0..500 {
            alice.run("select presence.heartbeat('lobby')");
            alice.run(same);
        }
        service.rows(position) == before
    };
    assert!((0..5).any(|_| costs_nothing()), "WAL or transaction ids");
    let locks = "select string_agg(distinct locktype || ' ' || mode, ', ') from pg_locks where pid = pg_backend_pid()";
    assert_eq!(
        alice.value(&format!("begin; select presence.heartbeat('lobby'); {locks}")),
        alice.value(&format!("rollback; begin; select 1 from presence.member limit 0; {locks}"))
    );
    assert_eq!(alice.value("select pg_current_xact_id_if_assigned()"), "");
    alice.run("rollback");
    cluster.assert_sound();
}

#[test]
fn prepared_transactions_are_refused() {
    let cluster = Cluster::with(&["max_prepared_transactions=5"]);
    let mut alice = cluster.user("alice");
    for change in ["upsert('lobby')", "upsert('lobby')"] {
        let failure = alice.fails(&format!("begin; select presence.{change}; prepare transaction 'p'"));
        assert_eq!(failure.code, "0A000");
        alice.run("rollback");
        assert_eq!(alice.number("select count(*) from presence.list('lobby')"), 0);
    }
    alice.run("select presence.upsert('lobby', '1')");
    for change in ["upsert('lobby', '2')", "upsert('lobby', '1')", "delete('lobby')"] {
        let failure = alice.fails(&format!("begin; select presence.{change}; prepare transaction 'p'"));
        assert_eq!((failure.code.as_str(), alice.try_run("rollback").is_ok()), ("0A000", true), "{change}");
    }
    // What only looks or beats may be prepared.
    alice.run("begin; select presence.heartbeat('lobby'), presence.list('lobby'); create temp table t (); drop table t");
    alice.run("rollback");
    cluster.sql("app", "create table business (); grant select on business to alice");
    alice.run("begin; select presence.heartbeat('lobby'); select * from business; prepare transaction 'p'");
    alice.run("rollback prepared 'p'");
    assert_eq!(alice.value("select state from presence.get('lobby')"), "1");
    cluster.assert_sound();
}

fn expiry(session: &mut Session) -> String {
    session.value("select expires_at from presence.get('lobby')")
}

fn renews(session: &mut Session, statement: &str) {
    let before = expiry(session);
    std::thread::sleep(millis(2)); // the lease ends later only if time has passed
    session.run(statement);
    let after = format!("select expires_at > '{before}' from presence.get('lobby')");
    assert!(session.is(&after), "{statement}");
}

/// Proof of life is not undone by a savepoint, and the transaction that gave it sees it, too.
#[test]
fn a_transaction_may_take_longer_than_its_lease() {
    let cluster = Cluster::with_clock(&[]);
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    service.run("select presence.listen()");
    let enter = "select presence.upsert('lobby', ttl => '60 s')";
    let beat = "select presence.heartbeat('lobby')";
    for (first, renewal, then) in [
        (enter.to_owned(), beat, ""),
        (format!("{enter}; savepoint s; select presence.upsert('lobby', '1')"), beat, "rollback to s"),
        (enter.to_owned(), enter, ""),
        (enter.to_owned(), "update presence.member set status = status", ""),
    ] {
        alice.run(&format!("begin; {first}"));
        cluster.clock().pass(millis(40_000));
        alice.run(renewal);
        alice.run(then);
        cluster.clock().pass(millis(40_000));
        assert_eq!(alice.number("select count(*) from presence.list('lobby')"), 1, "{first}; {renewal}");
        assert_eq!(alice.number("select count(*) from presence.update('lobby')"), 1, "{first}; {renewal}");
        alice.run("rollback; begin");
        alice.run(&first);
        cluster.clock().pass(millis(40_000));
        alice.run(renewal);
        alice.run(then);
        cluster.clock().pass(millis(15_000));
        alice.run("commit");
        cluster.clock().pass(millis(15_000));
        assert!(alice.is(beat), "{first}; {renewal}");
        assert_eq!(lines(&service.hear()), ["enter alice"], "{first}; {renewal}");
        alice.run("select presence.delete('lobby')");
        assert_eq!(lines(&service.hear()), ["leave alice left"]);
    }
    cluster.assert_sound();
}
