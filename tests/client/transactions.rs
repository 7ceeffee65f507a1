//! Rolled-back changes leave nothing behind, and changes without effect cost nothing.

use crate::common::{Cluster, Session, lines, millis, until};

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
    // An exception handler in PL/pgSQL is a savepoint, too.
    hears(
        "do $$ begin perform presence.upsert('lobby'); raise 'no'; exception when others then null; end $$",
        &[],
    );
    let mut reader = cluster.service();
    assert_eq!(reader.rows("select members, slots_used from presence.health")[0], ["0", "0"]);
    assert!(!reader.is("select presence.heartbeat('lobby', 'alice')"));

    // The part of a transaction that remains is published as one change.
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

    // Direct DML behaves the same way.
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

    // A heartbeat survives a rollback, also of a savepoint, and works in a read-only transaction.
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
    // True in the transaction that entered, false again after its rollback.
    assert!(alice.is("begin; select presence.upsert('side'); select presence.heartbeat('side')"));
    alice.run("rollback");
    assert!(!alice.is("select presence.heartbeat('side')"));
    assert!(!alice.is("begin; select presence.delete('lobby'); select presence.heartbeat('lobby')"));
    alice.run("rollback");

    // An identical upsert is a heartbeat that takes effect at commit.
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

    // No WAL, no transaction id, no lock beyond those of a SELECT. (Other processes write a little WAL, so
    // first wait until the server is quiet.)
    let wal = "select wal_bytes from pg_stat_wal";
    until("the server writes no WAL of its own", || {
        let bytes = service.value(wal);
        std::thread::sleep(millis(1_200));
        bytes == service.value(wal)
    });
    // The server may prune a page of its catalogs at that time, so one round out of five must write nothing
    // at all.
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
    // A transaction that only reads or sends heartbeats may be prepared.
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

/// Rolling back to a savepoint does not undo a heartbeat, and the transaction that sent it sees it, too.
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

/// Changes of a rolled-back savepoint no longer take up buffer space, and the remaining ones are published in
/// full.
#[test]
fn a_savepoint_that_was_rolled_back_takes_no_room() {
    let cluster = Cluster::with(&["presence.event_buffer=256kB"]);
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    service.run("select presence.listen()");
    let upsert = |room: &str, mark: &str| {
        format!(
            "select presence.upsert('{room}', jsonb_build_object('x', repeat('y', 60000), 'mark', '{mark}'))"
        )
    };
    let junk = (0..10).map(|n| upsert("junk", &n.to_string())).collect::<Vec<_>>().join(";");
    let state = |session: &mut Session| {
        session.value(
            "select state ->> 'mark' from presence.event where room = 'hall' order by seq desc limit 1",
        )
    };
    for (number, transaction) in [
        format!("savepoint a; {junk}; rollback to a; {}", upsert("hall", "0")),
        format!("{}; savepoint a; savepoint b; {junk}; release b; rollback to a", upsert("hall", "1")),
        // Too much before the inner savepoint as well; what remains is published in full.
        format!(
            "{}; savepoint a; {junk}; savepoint b; {junk}; rollback to b; {junk}; rollback to a",
            upsert("hall", "2")
        ),
        format!(
            "{}; do $$ begin {}; raise 'no'; exception when others then null; end $$",
            upsert("hall", "3"),
            junk.replace("select", "perform")
        ),
    ]
    .iter()
    .enumerate()
    {
        alice.run(&format!("begin; {transaction}; commit"));
        assert!(lines(&service.hear()).iter().all(|line| !line.contains("resync")), "{transaction}");
        assert_eq!(state(&mut service), number.to_string());
    }
    // Changes that remain but exceed the buffer are stored without data.
    alice.run(&format!("begin; savepoint a; {junk}; release a; select presence.upsert('late'); commit"));
    assert_eq!(lines(&service.hear()), ["enter alice", "enter alice"]);
    assert_eq!(
        service.value(
            "select state ->> 'mark' from presence.event where room = 'junk' order by seq desc limit 1"
        ),
        "9",
        "the rest is as the row has it"
    );
    // Changes that exceed the buffer even so are not published, but their leases exist.
    let wide = "array(select 'team:' || repeat(chr(128512), 200) || $n || k from generate_series(1, 64) k)";
    let wide = (0..10).map(|n| {
        format!("select presence.update('junk', audience => {})", wide.replace("$n", &n.to_string()))
    });
    let wide = wide.collect::<Vec<_>>().join(";");
    alice.run(&format!("begin; savepoint a; {wide}; release a; select presence.upsert('later'); commit"));
    service.hear_until("resync", |event| event.kind() == "resync");
    assert_eq!(alice.number("select count(*) from presence.online"), 4);
    cluster.assert_sound();
}

/// Changes undone by a savepoint leave nothing behind when the transaction is prepared: no pin, no seat, no
/// version.
#[test]
fn a_prepared_transaction_leaves_nothing_behind() {
    let cluster = Cluster::with(&["max_prepared_transactions=5"]);
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    service.run("select presence.set_room('small', max_members => 1)");
    alice.run("select presence.upsert('lobby')");
    for change in
        ["upsert('lobby', '1')", "delete('lobby')", "upsert('small')", "update('lobby', '{}', status => 'x')"]
    {
        alice.run(&format!(
            "begin; savepoint a; select presence.{change}; rollback to a; prepare transaction 'p'"
        ));
        service.run("rollback prepared 'p'");
        // The session works afterwards, and so does another one.
        assert!(alice.is("select presence.heartbeat('lobby')"), "{change}");
        service.run("begin; select presence.upsert('small', user_id => 'zed'); rollback");
        let pinned = "select presence.upsert('lobby')";
        let before = service.value("select xmin from presence.member");
        alice.run(pinned);
        assert_eq!(
            service.value("select xmin from presence.member"),
            before,
            "{change}: no write, so no pin"
        );
    }
    alice.run(
        "begin; savepoint a; select presence.upsert('lobby', '1'); rollback to a; prepare transaction 'p'",
    );
    drop(alice);
    service.run("commit prepared 'p'");
    let mut alice = cluster.user("alice");
    alice.run("select presence.delete_all()");
    until("all slots are free", || service.is("select members + slots_used = 0 from presence.health"));
    // CREATE EXTENSION may be prepared; the first change starts the worker.
    cluster.sql("postgres", "begin; create extension presence_ext; prepare transaction 'p'");
    cluster.sql("postgres", "commit prepared 'p'");
    cluster.sql("postgres", "select presence.upsert('lobby')");
    cluster.until_worker("postgres");
    cluster.assert_sound();
}

/// An identical upsert renews at commit, and only the stay that it saw.
#[test]
fn a_renewal_reaches_nobody_else() {
    let cluster = Cluster::with_clock(&["presence.member_ids=any"]);
    let (mut alice, mut other, mut service) =
        (cluster.user("alice"), cluster.user("alice"), cluster.service());
    let enter = "select presence.upsert('duel', '1', 'seat', ttl => '60 s')";
    let lease = "select expires_at from presence.get('duel', 'seat')";
    let many = "select presence.upsert_many('[{\"room\": \"duel\", \"state\": 1, \"member_id\": \"seat\", \"ttl\": \"60 s\"}]')";
    let direct = "update presence.member set status = status";
    let changes = [
        // Another user's stay, or another stay of the same user.
        "select presence.delete('duel', 'seat'); set role bob; select presence.upsert('duel', '1', 'seat', ttl => '60 s'); reset role",
        "select presence.delete('duel', 'seat'); select presence.upsert('duel', '1', 'seat', ttl => '60 s')",
        // A service role gives the member to another owner within the same stay.
        "reset role; select presence.upsert('duel', '1', 'seat', ttl => '60 s', user_id => 'bob')",
    ];
    for renewal in [enter, many, direct] {
        // A statement that writes the row holds its lock until the commit.
        let changes = if renewal == direct { &changes[..0] } else { &changes[..] };
        for change in changes {
            alice.run(enter);
            alice.run(&format!("begin; {renewal}"));
            service.run("set role alice");
            service.run(change);
            service.run("reset role");
            let before = service.value(lease);
            cluster.clock().pass(millis(20_000));
            alice.run("commit");
            assert_eq!(service.value(lease), before, "{renewal}: {change}");
            service.run("delete from presence.member");
        }
        // Within the same stay the renewal takes effect, whatever else has changed.
        alice.run(enter);
        alice.run(&format!("begin; {renewal}"));
        if renewal != direct {
            other.run("select presence.update('duel', member_id => 'seat', status => 'busy')");
        }
        let before = service.value(lease);
        cluster.clock().pass(millis(20_000));
        alice.run("commit");
        assert_ne!(service.value(lease), before, "{renewal}");
        service.run("delete from presence.member");
    }
    cluster.assert_sound();
}

/// The lease of a member changed in a transaction ends before the transaction does: then the member is gone
/// for this transaction as for all others, and an upsert enters again.
#[test]
fn a_lease_may_end_within_the_transaction() {
    let cluster = Cluster::with_clock(&[]);
    let (mut alice, mut phone, mut service) =
        (cluster.user("alice"), cluster.user("alice"), cluster.service());
    service.run("select presence.listen()");
    let here = "select count(*) from presence.list('hall')";
    let enter = "select presence.upsert('hall', '0', ttl => '60 s')";
    let change = "select presence.upsert('hall', '1')";
    let inserts = "insert into presence.member (room, state) values ('hall', '2')";
    for again in [
        "select presence.upsert('hall', '2')",
        "select presence.upsert('hall', '1')",
        "select presence.upsert_many('[{\"room\": \"hall\", \"state\": 2}]')",
        inserts,
        "insert into presence.member (room, state) values ('hall', '2') on conflict do nothing",
        "savepoint s; select presence.upsert('hall', '2'); release s",
        "savepoint s; select presence.upsert('hall', '2'); rollback to s; select presence.upsert('hall', '3')",
    ] {
        for first in [
            change,
            "update presence.member set state = '1'",
            "select presence.update('hall', status => 'x')",
            "savepoint a; select presence.upsert('hall', '1')",
        ] {
            // Changed in this transaction.
            alice.run(enter);
            let joined = alice.value("select joined_at from presence.get('hall')");
            assert_eq!(lines(&service.hear()), ["enter alice"]);
            alice.run(&format!("begin; {first}"));
            cluster.clock().pass(millis(61_000));
            for session in [&mut alice, &mut service] {
                assert_eq!(session.number(here), 0, "{again}");
            }
            assert!(!alice.is("select presence.heartbeat('hall')"), "nobody renews the dead");
            assert_eq!(alice.rows("select * from presence.heartbeat_many('{hall}')").len(), 1);
            assert_eq!(alice.number("select count(*) from presence.update('hall', '{}')"), 0);
            assert_eq!(alice.number("select presence.delete('hall') + presence.delete_all()"), 0);
            alice.run("update presence.member set status = 'late'; delete from presence.member");
            alice.run(again);
            assert_eq!(alice.number(here), 1, "{again}");
            assert!(alice.is("select presence.heartbeat('hall')"));
            assert_eq!(service.number(here), 0, "not committed");
            assert!(!phone.is("select presence.heartbeat('hall')"));
            alice.run("commit");
            assert_eq!(lines(&service.hear()), ["leave alice expired", "enter alice"], "{first}; {again}");
            assert!(alice.is(&format!("select joined_at > '{joined}' from presence.get('hall')")));
            alice.run("select presence.delete('hall')");
            assert_eq!(lines(&service.hear()), ["leave alice left"]);
        }

        // Entered in this transaction: others never saw the member.
        alice.run(&format!("begin; {enter}"));
        cluster.clock().pass(millis(61_000));
        assert_eq!(alice.number(here), 0);
        alice.run(again);
        cluster.clock().pass(millis(61_000));
        alice.run("select presence.upsert('hall', '4'); commit");
        assert_eq!(lines(&service.hear()), ["enter alice"], "{again}");
        alice.run("select presence.delete('hall')");
        assert_eq!(lines(&service.hear()), ["leave alice left"]);

        // Rolled back: the member has expired all the same, once.
        alice.run(enter);
        assert_eq!(lines(&service.hear()), ["enter alice"]);
        alice.run(&format!("begin; {change}"));
        cluster.clock().pass(millis(61_000));
        alice.run(again);
        alice.run("rollback");
        assert!(!alice.is("select presence.heartbeat('hall')"));
        let heard = service.hear_until("an expiry", |event| event.kind() == "leave");
        assert_eq!(lines(&heard), ["leave alice expired"]);
    }

    // A heartbeat from another session of hers counts in this transaction, too.
    alice.run(enter);
    alice.run(&format!("begin; {change}"));
    cluster.clock().pass(millis(40_000));
    assert!(phone.is("select presence.heartbeat('hall')"));
    cluster.clock().pass(millis(40_000));
    assert_eq!(alice.number(here), 1);
    alice.run("select presence.upsert('hall', '2'); commit");
    assert_eq!(lines(&service.hear()), ["enter alice", "update alice"]);
    // A shorter ttl ends for this transaction while others still see the longer one.
    alice.run("begin; select presence.upsert('hall', '3', ttl => '1 s')");
    cluster.clock().pass(millis(2_000));
    assert_eq!((alice.number(here), service.number(here)), (0, 1));
    alice.run("select presence.upsert('hall', '4', ttl => '60 s'); commit");
    assert_eq!(lines(&service.hear()), ["leave alice expired", "enter alice"]);
    cluster.assert_sound();
}
