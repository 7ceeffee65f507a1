//! Members bound to a database session.

use crate::common::{Cluster, Session, lines, until};

#[test]
fn a_session_member_leaves_with_its_session() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    service.run("select presence.listen()");

    // The session disconnects, or is terminated; without a ttl its member needs no heartbeat.
    let mut alice = enter(&cluster, "alice");
    assert_eq!(
        alice.rows("select expires_at, ttl, session_pid = pg_backend_pid() from presence.get('lobby')")[0],
        ["", "", "t"]
    );
    drop(alice);
    assert_eq!(
        lines(&service.hear_until("a leave", |e| e.kind() == "leave")),
        ["enter alice", "leave alice disconnected"]
    );

    let mut alice = enter(&cluster, "alice");
    alice.run("select presence.upsert('side', session => true)");
    alice.run("begin; select presence.upsert('side', '2')");
    let pid = alice.pid();
    service.hear();
    service.run(&format!("select pg_terminate_backend({pid})"));
    service.hear_until("a leave", |e| e.kind() == "leave");
    service.hear_until("another leave", |e| e.kind() == "leave");
    until("both have gone", || service.is("select members + slots_used = 0 from presence.health"));

    // The member is invisible from the end of its session on, with or without a worker.
    let mut alice = enter(&cluster, "alice");
    let (pid, frozen) = (alice.pid(), cluster.freeze_worker());
    drop(alice);
    let mut gone = cluster.service();
    until("the session is over", || {
        gone.is(&format!("select count(*) = 0 from pg_stat_activity where pid = {pid}"))
    });
    assert_eq!(gone.number("select count(*) from presence.list('lobby')"), 0);
    assert!(!gone.is("select presence.heartbeat('lobby', 'alice')"));
    // A return before the sweep: as with expiry, both events are published.
    let mut alice = cluster.user("alice");
    alice.run("select presence.upsert('lobby')");
    drop(frozen);
    assert_eq!(lines(&service.hear()), ["enter alice", "leave alice disconnected", "enter alice"]);

    // A rolled-back enter has no effect.
    let mut bob = cluster.user("bob");
    bob.run("begin; select presence.upsert('lobby', session => true); rollback");
    drop(bob);
    assert_eq!(lines(&service.hear()), [""; 0]);
    assert_eq!(service.number("select slots_used from presence.health"), 1);
    cluster.assert_sound();
}

#[test]
fn the_end_of_a_session_takes_only_what_is_still_bound_to_it() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    service.run("select presence.listen()");

    // Taken over by another session, and unbound by another session.
    let (first, mut second) = (enter(&cluster, "alice"), cluster.user("alice"));
    second.run("select presence.upsert('lobby', session => true)");
    let (third, mut fourth) = (enter(&cluster, "bob"), cluster.user("bob"));
    fourth.run("select presence.upsert('lobby', session => false, ttl => '100 s')");
    service.hear();
    leave(&cluster, first);
    leave(&cluster, third);
    assert_eq!(lines(&service.hear()), [""; 0]);
    assert_eq!(service.number("select count(*) from presence.list('lobby')"), 2);
    assert!(fourth.is("select presence.heartbeat('lobby')"));

    // Left and entered again without a session: another stay.
    let mut fifth = enter(&cluster, "carol");
    fifth.run("select presence.delete('lobby'); select presence.upsert('lobby')");
    leave(&cluster, fifth);
    service.hear();
    assert_eq!(service.number("select count(*) from presence.list('lobby')"), 3);

    // With a ttl it also needs heartbeats; whichever ends first counts.
    let mut carol = cluster.user("carol");
    carol.run("select presence.upsert('lobby', session => true, ttl => '1 s')");
    let heard = service.hear_until("an expiry", |event| event.kind() == "leave");
    assert_eq!(lines(&heard).last().expect("it"), "leave carol expired");
    carol.run("select presence.upsert('lobby', session => true, ttl => '100 s')");
    leave(&cluster, carol);
    assert_eq!(
        lines(&service.hear_until("a leave", |e| e.kind() == "leave")),
        ["enter carol", "leave carol disconnected"]
    );

    // Taken over while the first session ends: the change is in progress, and wins.
    for _ in 0..20 {
        let (first, mut second) = (enter(&cluster, "carol"), cluster.user("carol"));
        second.run("begin; select presence.upsert('lobby', session => true)");
        leave(&cluster, first);
        second.run("commit");
        service.hear();
        assert_eq!(second.number("select count(*) from presence.get('lobby')"), 1);
        second.run("select presence.delete('lobby')");
    }
    // And taken over in a transaction that is rolled back.
    let (first, mut second) = (enter(&cluster, "carol"), cluster.user("carol"));
    service.hear();
    second.run("begin; select presence.upsert('lobby', session => true)");
    leave(&cluster, first);
    second.run("rollback");
    let heard = service.hear_until("a leave", |event| event.kind() == "leave");
    assert_eq!(lines(&heard), ["leave carol disconnected"]);
    cluster.assert_sound();
}

/// The member is invisible from then on, although the sweep cannot happen yet: an uncommitted change by the
/// session itself does not keep the member.
#[test]
fn a_member_that_its_session_was_just_changing_is_gone_with_it() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    for change in ["select presence.upsert('lobby', '2')", "select presence.delete('lobby')"] {
        let mut alice = enter(&cluster, "alice");
        alice.run(&format!("begin; {change}"));
        let (pid, frozen) = (alice.pid(), cluster.freeze_worker());
        service.run(&format!("select pg_terminate_backend({pid})"));
        let over = format!("select count(*) = 0 from pg_stat_activity where pid = {pid}");
        until("the session is over", || service.is(&over));
        assert_eq!(service.number("select count(*) from presence.list('lobby')"), 0, "after {change}");
        drop(frozen);
    }
    cluster.assert_sound();
}

/// Session poolers send it before they pass the session to the next client.
#[test]
fn discard_all_ends_the_session_for_its_members() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    service.run("select presence.listen()");
    let mut alice = enter(&cluster, "alice");
    alice.run("select presence.upsert('side', connection_id => 'free')");
    service.hear();
    // Lesser resets do not end the session.
    for sql in [
        "discard plans",
        "discard temp",
        "discard sequences",
        "reset all",
        "reset role",
        "reset session authorization",
    ] {
        alice.run(sql);
    }
    assert_eq!(alice.fails("begin; discard all").code, "25001");
    alice.run("rollback");
    assert_eq!(alice.fails("do $$ begin execute 'discard all'; end $$").code, "25001");
    assert_eq!(service.number("select count(*) from presence.list('lobby')"), 1);

    // Bound members are gone at once, with or without a worker, and only those.
    let frozen = cluster.freeze_worker();
    alice.run("discard all");
    assert_eq!(service.number("select count(*) from presence.list('lobby')"), 0);
    assert!(!alice.is("select presence.heartbeat('lobby')"));
    drop(frozen);
    let heard = service.hear_until("a leave", |event| event.kind() == "leave");
    assert_eq!(lines(&heard), ["leave alice disconnected"]);
    assert_eq!(service.number("select count(*) from presence.list('side')"), 1);

    // The session can bind members again each time.
    for _ in 0..30 {
        alice.run("select presence.upsert('lobby', session => true)");
        assert_eq!(service.number("select count(*) from presence.list('lobby')"), 1);
        alice.run("discard all");
        assert_eq!(service.number("select count(*) from presence.list('lobby')"), 0);
    }
    alice.run("select presence.upsert('lobby', session => true)");
    service.hear();
    drop(alice);
    let heard = service.hear_until("a leave", |event| event.kind() == "leave");
    assert_eq!(lines(&heard), ["leave alice disconnected"]);

    // A member that another session has taken over stays.
    let (mut first, mut second) = (enter(&cluster, "bob"), cluster.user("bob"));
    second.run("select presence.upsert('lobby', session => true)");
    first.run("discard all");
    assert_eq!(second.number("select count(*) from presence.get('lobby')"), 1);
    cluster.assert_sound();
}

/// The same without a slot.
#[test]
fn discard_all_ends_members_that_have_no_slot() {
    let cluster = Cluster::with(&["presence.max_members=1"]);
    let mut service = cluster.service();
    service.run("select presence.upsert('full', user_id => 'zed', ttl => '1 day'); select presence.listen()");
    let mut alice = enter(&cluster, "alice");
    service.hear();
    alice.run("discard all");
    assert_eq!(service.number("select count(*) from presence.list('lobby')"), 0);
    let heard = service.hear_until("a leave", |event| event.kind() == "leave");
    assert_eq!(lines(&heard), ["leave alice disconnected"]);
    cluster.assert_sound();
}

/// Members that were rolled back, deleted or left behind do not affect the existing ones.
#[test]
fn a_session_knows_its_members_whatever_became_of_others() {
    let cluster = Cluster::with(&["presence.max_per_user=0", "max_prepared_transactions=2"]);
    let mut service = cluster.service();
    let mut alice = cluster.user("alice");
    // Far more members than a session keeps track of.
    alice.run(
        "select presence.upsert('kept ' || n, session => true) from generate_series(1, 100) n;
         do $$ begin for n in 1..1000 loop
             perform presence.upsert('short', connection_id => 'c' || n, session => true);
             perform presence.delete('short', connection_id => 'c' || n);
         end loop; end $$;
         begin;
         select presence.upsert('released ' || n, session => true) from generate_series(1, 100) n;
         savepoint s;
         select presence.upsert('back ' || n, session => true) from generate_series(1, 300) n;
         rollback to s;
         select presence.upsert('more ' || n, session => true) from generate_series(1, 100) n;
         commit",
    );
    assert_eq!(
        alice.fails("begin; select presence.upsert('x', session => true); prepare transaction 'p'").code,
        "0A000"
    );
    alice.run("rollback");
    assert_eq!(service.number("select count(*) from presence.online where session_pid is not null"), 300);
    let (pid, frozen) = (alice.pid(), cluster.freeze_worker());
    drop(alice);
    until("the session is over", || {
        service.is(&format!("select count(*) = 0 from pg_stat_activity where pid = {pid}"))
    });
    assert_eq!(service.number("select count(*) from presence.online"), 0, "at once, worker or not");
    drop(frozen);
    until("the rows go", || service.is("select count(*) = 0 from presence.member"));

    // The extension is dropped and created again while the session lives.
    let mut bob = enter(&cluster, "bob");
    cluster.sql(
        "app",
        "drop extension presence_ext; create extension presence_ext; select presence.grant_access('bob')",
    );
    cluster.until_worker("app");
    bob.run("select presence.upsert('lobby', session => true)");
    cluster.sql("app", "begin; drop extension presence_ext; rollback");
    assert_eq!(service.number("select count(*) from presence.list('lobby')"), 1);
    bob.run("discard all");
    until("it leaves", || service.is("select count(*) = 0 from presence.member"));
    cluster.assert_sound();
}

#[test]
fn shared_sessions_cannot_bind_members() {
    let cluster = Cluster::with(&["presence.trusted_login_roles=carol"]);
    let mut carol = cluster.user("carol");
    carol.run("select set_config('request.jwt.claims', '{\"sub\": \"u1\"}', false)");
    assert_eq!(carol.fails("select presence.upsert('lobby', session => true)").code, "0A000");
    assert_eq!(carol.fails("select presence.listen('lobby')").code, "0A000");
    carol.run("select presence.upsert('lobby')");
    assert_eq!(carol.value("select user_id from presence.list('lobby')"), "u1");

    cluster.sql("postgres", "alter role bob set presence.session_features = off");
    let mut bob = cluster.user("bob");
    let failure = bob.fails("select presence.upsert('lobby', session => true)");
    assert_eq!((failure.code.as_str(), failure.hint.is_empty()), ("0A000", false));
    assert_eq!(bob.fails("select presence.listen('lobby')").code, "0A000");
    bob.run("select presence.upsert('lobby')");
}

/// A session of the user, bound to a member in the lobby.
fn enter(cluster: &Cluster, user: &str) -> Session {
    let mut session = cluster.user(user);
    session.run("select presence.upsert('lobby', session => true)");
    session
}

/// Ends the session, and returns once it is gone.
fn leave(cluster: &Cluster, mut session: Session) {
    let pid = session.pid();
    drop(session);
    let over = format!("select count(*) = 0 from pg_stat_activity where pid = {pid}");
    let mut service = cluster.service();
    until("the session is over", || service.is(&over));
}
