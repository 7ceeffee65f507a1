//! What is written to the copy, and what servers without a copy pay for it.

use super::{named, until_copied};
use crate::common::{Cluster, signal, until};

const COUNTS: &str = "select (select count(*) from presence.shared), (select count(*) from presence.node)";

#[test]
fn a_server_without_a_name_writes_nothing() {
    let cluster = Cluster::start();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    service.run("select presence.listen()");
    let written = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')";
    alice.run("select presence.upsert('lobby')");
    let heard = service.hear();
    assert!(heard.iter().all(|event| event.fields.get("node").is_none()), "{heard:?}");
    assert_eq!(service.rows(COUNTS), [["0", "0"]]);
    assert_eq!(
        service.rows("select node from presence.online union all select node from presence.event"),
        [[""], [""]]
    );
    let wal = service.number(written);
    for _ in 0..20 {
        alice.run("select presence.heartbeat('lobby')");
    }
    std::thread::sleep(std::time::Duration::from_millis(1_200));
    // Commit records of the worker and the like.
    assert!(service.number(written) - wal < 2_000);
    cluster.assert_sound();
}

#[test]
fn members_are_copied_as_they_are() {
    let cluster = named(&[]);
    let (mut alice, mut bob, mut service) = (cluster.user("alice"), cluster.user("bob"), cluster.service());
    service.run("select presence.listen()");
    alice.run("select presence.upsert('lobby', '{\"x\": 1}', status => 'away', metadata => '[1]', ttl => '1 h', audience => '{any}')");
    bob.run("select presence.upsert('lobby', session => true)");
    service.flush();
    // The copy is written in the same transaction that publishes the event.
    assert_eq!(service.rows(COUNTS), [["2", "1"]]);
    until_copied(&mut service);
    assert_eq!(service.rows("select distinct node from presence.shared"), [["a"]]);
    for query in ["presence.online", "presence.list('lobby')", "presence.event"] {
        assert_eq!(service.rows(&format!("select distinct node from {query}")), [["a"]], "{query}");
    }
    assert_eq!(alice.value("select node from presence.upsert('lobby', '{\"x\": 2}')"), "a");
    assert_eq!(alice.value("select node from presence.upsert('lobby', '{\"x\": 2}')"), "a");
    service.flush();
    until_copied(&mut service);
    assert!(service.heard().iter().filter(|event| event.kind() == "enter").all(|event| event["node"] == "a"));
    // Changes that cause no event are copied with the next event.
    alice.run("select presence.delete('lobby', after => '1 h', state => '\"bye\"')");
    alice.run("select presence.upsert('side', '1', revert_after => '1 h')");
    alice.run("select presence.update('lobby', '{\"x\": 3}')");
    service.flush();
    until_copied(&mut service);
    let more = "select room, more->>'last_word', (more->>'leaves_at')::timestamptz = leaves_at, more->'reverts' = reverts
                from presence.shared join presence.member using (room, member_id, connection_id) where more is not null order by 1";
    assert_eq!(service.rows(more), [["lobby", "bye", "t", ""], ["side", "", "", "t"]]);
    for (what, left) in [
        ("select presence.delete('lobby', 'bob')", 2),
        ("select presence.forget('alice')", 0),
        ("select presence.upsert('lobby'); select presence.delete('lobby')", 0),
        (
            "begin; select presence.upsert('lobby'); select presence.delete('lobby'); select presence.upsert('lobby', '7'); commit",
            1,
        ),
        ("delete from presence.member", 0),
    ] {
        service.run(what);
        service.flush();
        assert_eq!(service.number("select count(*) from presence.shared"), left, "{what}");
    }
    cluster.assert_sound();
}

/// Nothing of a forgotten user remains in the copy, whoever wrote it: this server's own rows go with the
/// batch that publishes the leaves; rows left behind by other servers, or by this one under another name, go
/// immediately.
#[test]
fn whoever_is_forgotten_is_gone_from_the_copy() {
    let cluster = named(&["presence.max_per_user=0"]);
    let (mut alice, mut bob, mut service) = (cluster.user("alice"), cluster.user("bob"), cluster.service());
    alice.run("select presence.upsert('lobby', '1'), presence.upsert('side', '1', connection_id => 'b')");
    alice.run("select presence.delete('side', connection_id => 'b', after => '1 h', state => '\"bye\"')");
    bob.run("select presence.upsert('lobby', '1')");
    service.flush();
    service.run("insert into presence.shared (node, room, member_id, connection_id, user_id) values ('old', 'lobby', 'a', '', 'alice'), ('old', 'lobby', 'b', '', 'bob')");
    let left = "select node, user_id from presence.shared order by 1, 2";
    let rows = service.number("select count(*) from presence.shared s where s.user_id = 'alice'")
        + service.number("select count(*) from presence.event e where e.user_id = 'alice'");
    {
        let _frozen = cluster.freeze_worker();
        // The count may include her `last_seen` row.
        assert!((rows..=rows + 1).contains(&service.number("select presence.forget('alice')")));
        assert_eq!(service.rows(left), [["a", "alice"], ["a", "alice"], ["a", "bob"], ["old", "bob"]]);
    }
    service.flush();
    assert_eq!(service.rows(left), [["a", "bob"], ["old", "bob"]]);
    // Members come and go again: expired, left, removed; and a crash brings none of them back.
    alice.run("select presence.upsert('lobby', '1', ttl => '1 s'), presence.upsert('side'), presence.upsert('here', ttl => '1 h')");
    service.flush();
    alice.run("select presence.delete('side')");
    until("what is over is not kept", || {
        service.rows("select room from presence.shared where user_id = 'alice'") == [["here"]]
    });
    service.run("select presence.forget('alice')");
    service.flush();
    until("that is on disk", || {
        service.is("select pg_current_wal_flush_lsn() >= pg_current_wal_insert_lsn()")
    });
    cluster.stop("immediate");
    cluster.start_again();
    let mut service = super::crash::until_restored(&cluster);
    assert_eq!(service.rows("select member_id from presence.list()"), [["bob"]]);
    assert_eq!(service.rows(left), [["a", "bob"], ["old", "bob"]]);
    // A server without a name does not treat the rows of its former name as another server's.
    cluster.restart_with(&["presence.node_name="]);
    cluster.until_worker("app");
    let mut service = cluster.service();
    until("its own are gone", || service.rows(left) == [["old", "bob"]]);
    service.run("select presence.forget('bob')");
    assert!(service.rows(left).is_empty());
    cluster.assert_sound();
}

/// Followers of the table (a peer, change data capture) learn the reason for a leave, and the member's last
/// state.
#[test]
fn a_leave_is_said_before_the_row_goes() {
    let cluster = named(&[]);
    let mut service = cluster.service();
    service.run(
        "create table heard (what text, reason text, state jsonb, version bigint);
         create function hear() returns trigger language plpgsql as $$ begin
             insert into public.heard values (tg_op, old.reason, old.state, old.version); return null; end $$;
         create trigger hear after delete on presence.shared for each row execute function hear()",
    );
    let mut alice = cluster.user("alice");
    alice.run("select presence.upsert('lobby', '1', ttl => '1 s'), presence.upsert('side', '1')");
    // A stay shorter than a batch is not recorded at all, so let the batch end.
    service.flush();
    alice.run("select presence.delete('side', state => '\"bye\"')");
    let heard = "select what, h.reason, h.state, h.version = e.version
                 from heard h left join presence.event e on e.event = 'leave' and e.version = h.version order by h.version";
    until("both leaves", || service.number("select count(*) from heard") == 2);
    assert_eq!(service.rows(heard), [["DELETE", "left", "\"bye\"", "t"], ["DELETE", "expired", "1", "t"]]);
    cluster.assert_sound();
}

/// A buffer that is too small loses events; the copy matches the table in the end all the same.
#[test]
fn what_was_missed_is_found_by_comparing() {
    let cluster = named(&["presence.event_buffer=64kB", "presence.max_per_user=0"]);
    let mut service = cluster.service();
    service.run(
        "select count(presence.upsert('r' || n % 7, to_jsonb(repeat('x', 500)), member_id => 'm' || n, user_id => 'u'))
         from generate_series(1, 2500) n",
    );
    assert!(service.number("select events_dropped from presence.health") > 0);
    until_copied(&mut service);
    {
        let _frozen = cluster.freeze_worker();
        service.run("select presence.delete_all('u')");
        service.run("select count(presence.upsert('r', to_jsonb(n), member_id => 'm' || n, user_id => 'u')) from generate_series(1, 2000) n");
    }
    until_copied(&mut service);
    // The worker is interrupted, and somebody modifies the copy.
    signal("TERM", service.number("select presence.worker_pid()"));
    service.run("update presence.shared set version = 1, state = '0' where member_id like '%3'; delete from presence.shared where member_id like '%4'");
    service.run("insert into presence.shared (node, room, member_id, connection_id) values ('a', 'lobby', 'ghost', ''), ('b', 'lobby', 'peer', '')");
    cluster.until_worker("app");
    until("others' rows are left alone", || {
        service.rows("select member_id from presence.shared where member_id !~ '^m'") == [["peer"]]
    });
    service.run("delete from presence.shared where node = 'b'");
    until_copied(&mut service);
    until("the beat has the number", || {
        service.is("select coalesce(members = 2000, false) from presence.node")
    });
    cluster.assert_sound();
}

/// Events are published, and the copy catches up once it can be written.
#[test]
fn a_copy_that_cannot_be_written_holds_up_nobody() {
    let cluster = named(&[]);
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    service.run("select presence.listen()");
    service
        .run("create function no() returns trigger language plpgsql as $$ begin raise 'not today'; end $$");
    service.run("create trigger no before insert or update or delete on presence.shared for each row execute function no()");
    for n in 0..5 {
        alice.run(&format!("select presence.upsert('lobby', '{n}')"));
        service.hear_until("the event", |event| event["state"] == n);
    }
    until("health tells", || service.value("select last_error from presence.health").contains("not today"));
    let beat = "select beat from presence.node";
    until("the beat stops", || {
        let before = service.value(beat);
        std::thread::sleep(std::time::Duration::from_millis(500));
        service.value(beat) == before
    });
    service.run("drop trigger no on presence.shared");
    until_copied(&mut service);
    until("all is well", || service.value("select failing_since from presence.health").is_empty());
    let before = service.number(beat);
    until("the beat goes on", || service.number(beat) > before);
    cluster.assert_sound();
}

/// Whatever its owner does to the copy, events are published, and the copy is repaired once that is possible.
#[test]
fn what_was_done_to_the_copy_is_mended() {
    let cluster = named(&["wal_level=logical"]);
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    service.run("create publication everything for all tables");
    for (done, undone) in [
        (
            "alter table presence.shared replica identity nothing",
            "alter table presence.shared replica identity default",
        ),
        ("alter table presence.shared drop column more", "alter table presence.shared add column more jsonb"),
        (
            "alter table presence.shared add column own int default 1",
            "alter table presence.shared drop column own",
        ),
        ("alter table presence.shared rename to hidden", "alter table presence.hidden rename to shared"),
        ("alter table presence.node rename to hidden", "alter table presence.hidden rename to node"),
        (
            "drop index presence.shared_user_id",
            "create index shared_user_id on presence.shared (user_id, room)",
        ),
        (
            "create rule no as on insert to presence.shared do instead nothing",
            "drop rule no on presence.shared",
        ),
        ("alter table presence.shared set unlogged", "alter table presence.shared set logged"),
        (
            "alter table presence.shared force row level security",
            "alter table presence.shared no force row level security",
        ),
        ("truncate presence.shared", "select pg_terminate_backend(presence.worker_pid())"),
    ] {
        service.run(done);
        alice.run("select presence.upsert('lobby', to_jsonb(random())), presence.upsert(gen_random_uuid()::text, ttl => '2 s')");
        service.flush();
        let seq = service.number("select presence.seq()");
        assert_eq!(
            service.number(&format!("select count(*) from presence.event where seq > {seq} - 2")),
            2,
            "{done}"
        );
        // Wait for at least one beat.
        std::thread::sleep(std::time::Duration::from_millis(300));
        service.run(undone);
        until_copied(&mut service);
        until("all is well", || service.value("select failing_since from presence.health").is_empty());
    }
    cluster.assert_sound();
}

#[test]
fn nobody_else_writes_the_copy() {
    let cluster = named(&[]);
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    service.run("select presence.upsert('lobby', user_id => 'bob')");
    service.flush();
    let writes = [
        "insert into presence.shared (node, room, member_id, connection_id) values ('a', 'lobby', 'alice', '')",
        "update presence.shared set state = '0'",
        "delete from presence.shared",
        "truncate presence.shared",
        "insert into presence.node (node) values ('b')",
        "update presence.node set beat = 0",
        "delete from presence.node",
    ];
    for write in writes {
        assert_eq!(alice.fails(write).code, "42501", "{write}");
    }
    // Whatever the default privileges are.
    service.run("grant insert, update, delete on presence.shared, presence.node to alice");
    for write in [writes[0], writes[4]] {
        assert_eq!(alice.fails(write).code, "42501", "{write}");
    }
    for write in [writes[1], writes[2], writes[5], writes[6]] {
        let _ = alice.try_run(write);
    }
    until_copied(&mut service);
    assert_eq!(service.number("select count(*) from presence.node"), 1);
    cluster.assert_sound();
}

/// What the worker writes is flushed promptly, so that a standby lags by no more than a moment.
#[test]
fn what_is_written_is_on_disk_soon() {
    let cluster = named(&["wal_writer_delay=10s", "presence.node_beat=60s"]);
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    let mut flushed_late = 0;
    for n in 0..20 {
        alice.run(&format!("select presence.upsert('lobby', '{n}')"));
        service.flush();
        let end: String = service.value("select pg_current_wal_insert_lsn()");
        let began = std::time::Instant::now();
        until("it is flushed", || service.is(&format!("select pg_current_wal_flush_lsn() >= '{end}'")));
        flushed_late += usize::from(began.elapsed() > std::time::Duration::from_millis(300));
    }
    // A busy machine is slow once in a while.
    assert!(flushed_late <= 3, "{flushed_late} of 20 late");
    cluster.assert_sound();
}

#[test]
fn a_name_is_short_and_plain() {
    let cluster = Cluster::bare(&[]);
    let mut service = cluster.session("postgres", "postgres");
    for name in ["x".repeat(64), "zwölf".into(), "a\tb".into()] {
        let failure = service.fails(&format!("alter system set presence.node_name = '{name}'"));
        assert_eq!(failure.code, "22023", "{name}");
    }
    service.run(&format!("alter system set presence.node_name = '{}'", "x".repeat(63)));
}

/// Any name is accepted, and a server has one name, however many databases it has.
#[test]
fn each_database_has_its_own_copy() {
    let name = "it's a \"name\", with = spaces; %s {and} 63 bytes -- /* .........";
    assert_eq!(name.len(), 63);
    let cluster = named(&[&format!("presence.node_name={name}")]);
    cluster.sql("postgres", "create database other");
    cluster.sql("other", "create extension presence_ext");
    let mut sessions = ["app", "other"].map(|database| cluster.session("postgres", database));
    for (session, members) in sessions.iter_mut().zip([3, 5]) {
        session.run(&format!("select presence.upsert('lobby', user_id => 'u' || n, ttl => '1 h') from generate_series(1, {members}) n"));
        session.flush();
        until_copied(session);
    }
    cluster.stop("immediate");
    cluster.start_again();
    for (database, members) in [("app", "3"), ("other", "5")] {
        cluster.until_worker(database);
        let mut session = cluster.session("postgres", database);
        session.run("select presence.heartbeat('lobby')");
        let rows = session.rows("select node, count(*) from presence.list() group by 1");
        assert_eq!(rows, [[name, members]]);
        until("the beat counts them", || {
            session.rows("select node, state, members from presence.node") == [[name, "up", members]]
        });
        until_copied(&mut session);
    }
    // A recreated extension starts with an empty copy, also within one transaction.
    let mut session = cluster.session("postgres", "other");
    for anew in ["drop extension presence_ext; create extension presence_ext", "drop extension presence_ext"]
    {
        session.run(anew);
        session.try_run("create extension presence_ext").ok();
        session.run("select presence.upsert('again', user_id => 'u', ttl => '1 h')");
        session.flush();
        until_copied(&mut session);
        until("the beat counts them", || {
            session.rows("select node, state, members from presence.node") == [[name, "up", "1"]]
        });
    }
    cluster.assert_sound();
}
