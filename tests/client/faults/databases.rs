//! One worker per database with the extension; workers do not block other operations.

use crate::common::{Cluster, Over, lines, until};
use std::sync::atomic::{AtomicBool, Ordering::*};

#[test]
fn each_database_with_the_extension_gets_its_worker() {
    let cluster = Cluster::start();
    cluster.sql("postgres", "create database other");
    cluster.sql("postgres", "create database plain");
    cluster.sql("other", "create extension presence_ext");
    let worker = cluster.until_worker("other");
    assert_ne!(worker, cluster.until_worker("app"));

    // The databases are independent of each other.
    let (mut app, mut other) = (cluster.service(), cluster.session("postgres", "other"));
    for session in [&mut app, &mut other] {
        session.run("select presence.listen()");
    }
    app.run("select presence.upsert('lobby', member_id => 'm', user_id => 'app')");
    other.run("select presence.upsert('lobby', member_id => 'm', user_id => 'other', ttl => '1 s')");
    assert_eq!(lines(&app.hear()), ["enter m"]);
    assert_eq!(
        lines(&other.hear_until("a leave", |event| event.kind() == "leave")),
        ["enter m", "leave m expired"]
    );
    assert!(app.is("select presence.heartbeat('lobby', 'm')"));
    assert_eq!(lines(&app.hear()), [""; 0]);

    let workers = "select count(*) from pg_stat_activity where backend_type = 'presence_ext worker'";
    until("one for each of them", || app.number(workers) == 2);
    cluster.sql("other", "drop extension presence_ext");
    until("it leaves with the extension", || app.number(workers) == 1);
    cluster.assert_sound();
}

#[test]
fn drop_extension_goes_through_with_traffic_on() {
    let cluster = Cluster::start();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for user in ["a", "b"] {
            let (cluster, done) = (&cluster, &done);
            scope.spawn(move || {
                let mut session = cluster.service();
                let key = format!("'lobby', member_id => '{user}'");
                while !done.load(Relaxed) {
                    for call in
                        [format!("upsert({key})"), format!("heartbeat({key})"), format!("delete({key})")]
                    {
                        // The extension is present or absent, but nothing crashes.
                        if let Err(failure) = session.try_run(&format!("select presence.{call}")) {
                            let known = ["3F000", "42883", "42P01", "55000", "40P01", "42704", "XX000"];
                            assert!(known.contains(&failure.code.as_str()), "{failure:?}");
                            assert_ne!(failure.code, "08006", "{failure:?}");
                        }
                    }
                }
            });
        }
        let _over = Over::tell(&done);
        let mut owner = cluster.service();
        for _ in 0..4 {
            let mut frozen_out = 0;
            while let Err(failure) = owner.try_run("drop extension presence_ext") {
                // A writer may have locked the extension's tables in opposite order.
                assert_eq!(failure.code, "40P01", "{failure:?}");
                frozen_out += 1;
                assert!(frozen_out < 10);
            }
            assert_eq!(owner.fails("select presence.seq()").code, "42883");
            owner.run("create extension presence_ext");
            cluster.until_worker("app");
            assert!(owner.is("select presence.wait_for_flush('20 s')"));
        }
    });

    let mut service = cluster.service();
    service.run("delete from presence.member");
    service.run("select presence.listen()");
    service.flush();
    // Some last leaves were never published; their tombstones are freed within a minute. More would be a
    // leak.
    assert!(service.number("select slots_used from presence.health") <= 10);
    service.heard();
    service.run("select presence.upsert('lobby', ttl => '1 s')");
    let heard = service.hear_until("an expiry", |event| event.kind() == "leave");
    assert_eq!(lines(&heard), ["enter postgres", "leave postgres expired"]);
    cluster.assert_sound();
}

#[test]
fn a_worker_steps_aside_for_what_needs_the_database_alone() {
    let cluster = Cluster::start();
    let mut maintenance = cluster.session("postgres", "postgres");
    cluster.sql("app", "select presence.upsert('lobby', member_id => 'm', user_id => 'u', ttl => '1 h')");

    // The copy is a database like any other: it gets a worker, and keeps the template's members at most for
    // the grace period.
    maintenance.run("create database copy template app");
    cluster.until_worker("copy");
    cluster.until_worker("app");
    let (mut app, mut copy) = (cluster.service(), cluster.session("postgres", "copy"));
    copy.run("select presence.listen()");
    app.run("select presence.listen()");
    copy.run("select presence.upsert('side')");
    assert_eq!(lines(&copy.hear()), ["enter postgres"]);
    assert_eq!(lines(&app.hear()), [""; 0]);
    assert!(app.is("select presence.heartbeat('lobby', 'm')"), "the template's members are where they were");
    drop((app, copy));

    maintenance.run("alter database app rename to renamed");
    cluster.until_worker("renamed");
    let mut renamed = cluster.session("postgres", "renamed");
    assert!(renamed.is("select presence.heartbeat('lobby', 'm')"));
    renamed.run("select presence.listen()");
    renamed.run("select presence.delete('lobby', 'm')");
    assert_eq!(lines(&renamed.hear()), ["leave m removed"]);
    drop(renamed);

    // Even while it is busy.
    let mut busy = cluster.session("postgres", "renamed");
    busy.run("select presence.upsert('lobby', member_id => 'm' || n, user_id => 'u', ttl => '1 s') from generate_series(1, 5000) n");
    drop(busy);
    maintenance.run("drop database renamed");
    maintenance.run("drop database copy");
    // Their entries in shared memory are free for others, however often this happens.
    for _ in 0..3 {
        maintenance.run("create database short");
        cluster.sql("short", "create extension presence_ext");
        cluster.sql("short", "select presence.upsert('lobby')");
        maintenance.run("drop database short");
    }
    maintenance.run("create database app");
    cluster.sql("app", "create extension presence_ext");
    cluster.until_worker("app");
    until("all slots are free", || cluster.service().number("select slots_used from presence.health") == 0);
    cluster.assert_sound();
}
