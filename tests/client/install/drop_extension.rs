//! DROP and CREATE EXTENSION, rolled back and committed: what is rolled back has no effect, and what is
//! committed takes effect at once.

use crate::common::{Cluster, Session, lines, until};

/// Transactions that drop or create the extension, and undo it.
const UNDONE: [&str; 5] = [
    "begin; drop extension presence_ext; rollback",
    "begin; drop extension presence_ext; create extension presence_ext; rollback",
    "begin; drop extension presence_ext; create extension presence_ext;
     select presence.upsert('other'), presence.upsert('bound', session => true); select * from presence.health; rollback",
    "begin; savepoint a; drop extension presence_ext; create extension presence_ext; select presence.upsert('other');
     rollback to a; commit",
    "begin; savepoint a; drop extension presence_ext; savepoint b; create extension presence_ext;
     select presence.upsert('other'); rollback to b; create extension presence_ext; select presence.seq();
     rollback to a; select presence.seq(); commit",
];

/// Retries on lock timeouts, because DROP EXTENSION does not wait for a process that sleeps while it holds a
/// lock.
fn undo(session: &mut Session, statements: &str) {
    until("it gets its locks", || match session.try_run(statements) {
        Ok(()) => true,
        Err(failure) => {
            assert_eq!(failure.code, "55P03", "{statements}: {failure:?}");
            session.run("rollback");
            false
        }
    });
}

fn leaves(service: &mut Session) -> Vec<String> {
    let sql = "select room || ' ' || member_id || ' ' || reason from presence.event where event = 'leave' order by 1";
    service.rows(sql).into_iter().map(|row| row[0].clone()).collect()
}

#[test]
fn what_was_rolled_back_keeps_slots_sessions_rows_and_events() {
    for (turn, statements) in UNDONE.iter().enumerate() {
        // Only three slots: the fourth lease is stored in its row.
        let cluster = Cluster::with(&["presence.max_members=3"]);
        let (mut service, mut alice, mut bob) =
            (cluster.service(), cluster.user("alice"), cluster.user("bob"));
        let mut session = cluster.service();
        session.run("set lock_timeout = '500ms'");
        alice.run("select presence.upsert('short', ttl => '3 s'), presence.upsert('long', ttl => '1 h')");
        bob.run("select presence.upsert('bound', session => true)");
        service.run("select presence.upsert('row', member_id => 'm', user_id => 'u', ttl => '3 s')");
        service.flush();
        assert_eq!(service.number("select slots_used from presence.health"), 3);
        service.run("select presence.listen()");

        let worker = cluster.freeze_worker();
        alice.run("select presence.upsert('long', '\"in the ring\"')");
        undo(&mut session, statements);
        session.run("select presence.seq()");
        drop(worker);
        assert_eq!(service.number("select slots_used from presence.health"), 3, "turn {turn}");
        assert!(alice.is("select presence.heartbeat('long')"));
        assert_eq!(lines(&service.hear())[0], "update alice", "turn {turn}");

        undo(&mut session, statements);
        drop(bob);
        until("those whose time is over leave", || {
            leaves(&mut service) == ["bound bob disconnected", "row m expired", "short alice expired"]
        });
        assert_eq!(service.value("select string_agg(room, ' ') from presence.online"), "long");
        assert_eq!(alice.value("select state from presence.upsert('long', '2')"), "2");
        assert_eq!(service.number("select events_dropped from presence.health"), 0);
        cluster.assert_sound();
    }
}

#[test]
fn what_was_committed_frees_the_leases_and_works_at_once() {
    for between in ["", "; commit; begin", "; select presence.upsert('early', ttl => '1 h')"] {
        let cluster = Cluster::with(&["presence.max_members=1000"]);
        let (mut service, mut owner) = (cluster.service(), cluster.service());
        service.run("select presence.upsert('old', member_id => n::text, user_id => 'u', ttl => '1 h') from generate_series(1, 900) n");
        owner.run("select presence.upsert('bound', session => true)");
        service.flush();
        assert_eq!(service.number("select slots_used from presence.health"), 901);
        let (create, early) = if between.contains("upsert") { ("", between) } else { (between, "") };
        owner.run(&format!(
            "begin; drop extension presence_ext{create}; create extension presence_ext{early}; commit"
        ));
        service.run("select presence.listen()");
        service.run("select presence.upsert('new', ttl => '1 h')");
        assert!(service.is("select presence.heartbeat('new')"));
        let heard = service.hear_until("the new one", |event| event.text("room") == "new");
        assert_eq!(heard.last().expect("one").kind(), "enter");
        let members = 1 + i64::from(!early.is_empty());
        until("the leases of the old table are free", || {
            service.number("select slots_used from presence.health") == members
        });
        assert_eq!(service.number("select members from presence.occupancy()"), members);
        cluster.assert_sound();
    }
}

/// A worker that checks the database meanwhile finds no extension, and must not remove anything.
#[test]
fn created_late_or_not_at_all() {
    let cluster = Cluster::bare(&[]);
    cluster.sql("postgres", "create database app");
    let (mut owner, mut other) = (cluster.service(), cluster.service());
    owner.run("begin; create extension presence_ext; select presence.upsert('lobby'); rollback");
    owner.run("begin; savepoint a; create extension presence_ext; select presence.upsert('lobby'); rollback to a; commit");
    assert_eq!(owner.fails("select presence.seq()").code, "3F000");
    owner.run("create extension presence_ext; select presence.upsert('lobby')");
    cluster.until_worker("app");
    owner.flush();
    assert_eq!(owner.value("select string_agg(event, ' ') from presence.history('lobby')"), "enter");

    // In a database that never had the extension.
    other.run("create database late");
    let mut owner = cluster.session("postgres", "late");
    owner.run("begin; create extension presence_ext; select presence.upsert('lobby', session => true)");
    until("a worker has looked for it", || owner.is("select worker_state = 'absent' from presence.health"));
    owner.run("select presence.upsert('lobby', '1'); commit");
    cluster.until_worker("late");
    assert!(owner.is("select presence.heartbeat('lobby')"));
    owner.flush();
    assert_eq!(owner.value("select string_agg(event, ' ') from presence.history('lobby')"), "enter");
    assert_eq!(owner.number("select members from presence.occupancy()"), 1);
    cluster.assert_sound();
}

#[test]
fn dropped_is_dropped() {
    let cluster = Cluster::start();
    cluster.sql("postgres", "create database second");
    cluster.sql("second", "create extension presence_ext");
    let (mut service, mut second) = (cluster.service(), cluster.session("postgres", "second"));
    service.run("select presence.upsert('lobby', session => true), presence.upsert('side', ttl => '1 h')");
    second.run("select presence.upsert('lobby', ttl => '1 h')");
    service.run("drop extension presence_ext");
    until("its leases are free", || second.number("select slots_used from presence.health") == 1);
    assert!(second.is("select presence.heartbeat('lobby')"), "those of another database are not");
    // Another session creates the extension while the session that used the old one is still connected.
    cluster.sql("app", "create extension presence_ext");
    service.run("select presence.upsert('lobby', session => true)");
    service.flush();
    assert_eq!(service.number("select count(*) from presence.event where event = 'enter'"), 1);
    drop(service);
    let mut service = cluster.service();
    until("a session member leaves", || leaves(&mut service) == ["lobby postgres disconnected"]);
    cluster.assert_sound();
}
