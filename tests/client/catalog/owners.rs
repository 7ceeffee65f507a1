//! Ownership: a schema that already existed, an owner who changes or loses rights, dropped roles.

use crate::common::{Cluster, Session, until, use_everything};

fn people(cluster: &Cluster) -> (Session, Session, Session) {
    (cluster.service(), cluster.user("alice"), cluster.user("bob"))
}

/// Whoever owns the schema, or an object in it, can place objects of their own next to the extension's.
#[test]
fn a_schema_of_somebody_else_is_not_used() {
    let cluster = Cluster::bare(&[]);
    cluster.sql("postgres", "create database app; ");
    let (mut owner, mut bob) = (cluster.service(), cluster.user("bob"));
    owner.run("create role admin superuser; grant create on database app to bob");
    let refused = |owner: &mut Session, what: &str| {
        let failure = owner.fails("create extension presence_ext");
        assert_eq!(failure.code, "42501", "{failure:?}");
        assert!(failure.detail.contains(what) && failure.detail.contains("bob"), "{failure:?}");
        assert!(!failure.hint.is_empty());
    };

    bob.run("create schema presence");
    refused(&mut owner, "schema presence");
    // Owning the schema is not enough while somebody else owns an object in it.
    for (statement, what) in [
        (
            "create function presence.upsert(text) returns text language sql begin atomic select $1; end",
            "upsert(text)",
        ),
        ("create table presence.mine (n int)", "table presence.mine"),
        ("create type presence.mood as enum ('good')", "type presence.mood"),
        ("create operator presence.= (leftarg = text, rightarg = text, function = texteq)", "operator"),
        ("create collation presence.c from \"C\"", "collation"),
        ("create view presence.seen as select 1", "presence.seen"),
    ] {
        bob.run(statement);
        owner.run("alter schema presence owner to postgres");
        refused(&mut owner, what);
        owner.run("drop schema presence cascade");
        bob.run("create schema presence");
    }

    owner.run("drop schema presence cascade; create schema presence authorization admin");
    owner.run("set role admin; create function presence.note(text) returns text language sql begin atomic select $1; end; reset role");
    owner.run(
        "create extension presence_ext; select presence.grant_access('alice'), presence.grant_access('bob')",
    );
    cluster.until_worker("app");
    let (mut service, mut alice, mut bob) = people(&cluster);
    use_everything(&mut service, &mut alice, &mut bob);
    owner.run("drop extension presence_ext");
    assert_eq!(owner.value("select presence.note('here still')"), "here still");
    cluster.assert_sound();
}

/// A server on which the extension belongs to the superuser `admin`.
fn of_admin() -> Cluster {
    let cluster = Cluster::bare(&[]);
    cluster.sql("postgres", "create database app");
    let mut owner = cluster.service();
    owner.run("create role admin superuser login; create role successor login; set role admin");
    owner.run(
        "create extension presence_ext; select presence.grant_access('alice'), presence.grant_access('bob')",
    );
    cluster.until_worker("app");
    cluster
}

const OWNERS: &str = "
    select string_agg(distinct owner::regrole::text, ' ') from (
        select relowner as owner from pg_class where relnamespace in ('presence'::regnamespace, '_presence'::regnamespace)
        union select proowner from pg_proc where pronamespace in ('presence'::regnamespace, '_presence'::regnamespace)
        union select extowner from pg_extension where extname = 'presence_ext') o";

#[test]
fn an_owner_who_is_no_superuser_any_more() {
    let cluster = of_admin();
    let (mut service, mut alice, mut bob) = people(&cluster);
    use_everything(&mut service, &mut alice, &mut bob);
    service.run("alter role admin nosuperuser");
    use_everything(&mut service, &mut alice, &mut bob);
    let (mut service, mut alice, mut bob) = people(&cluster);
    use_everything(&mut service, &mut alice, &mut bob);
    let mut admin = cluster.user("admin");
    assert!(admin.is("select presence.is_service()"));
    use_everything(&mut admin, &mut alice, &mut bob);
    service.run("select pg_terminate_backend(presence.worker_pid())");
    use_everything(&mut service, &mut alice, &mut bob);
    cluster.assert_sound();
}

#[test]
fn reassigned_to_somebody_who_is_no_superuser() {
    let cluster = of_admin();
    let (mut service, mut alice, mut bob) = people(&cluster);
    use_everything(&mut service, &mut alice, &mut bob);
    let (mut admin, mut successor) = (cluster.user("admin"), cluster.user("successor"));
    service.run("alter role admin nosuperuser; grant usage on schema presence to successor");
    service.run("grant execute on function presence.is_service() to successor");
    assert!(admin.is("select presence.is_service()"));
    assert!(!successor.is("select presence.is_service()"));
    service.run("reassign owned by admin to successor");
    assert_eq!(service.value(OWNERS), "successor");
    service.run(
        "grant usage on schema presence to admin; grant execute on function presence.is_service() to admin",
    );
    assert!(!admin.is("select presence.is_service()"));
    assert!(successor.is("select presence.is_service()"));
    use_everything(&mut service, &mut alice, &mut bob);
    service.run("drop owned by admin; drop role admin");
    use_everything(&mut service, &mut alice, &mut bob);
    let (mut service, mut alice, mut bob) = people(&cluster);
    service.run("select pg_terminate_backend(presence.worker_pid())");
    use_everything(&mut service, &mut alice, &mut bob);
    successor.run("select presence.grant_access('carol')");
    // And in the middle of all this, a rolled-back change of owner.
    service.run("create role third; begin; reassign owned by successor to third; select presence.upsert('lobby'); rollback");
    service.run("select presence.delete('lobby')");
    use_everything(&mut service, &mut alice, &mut bob);
    cluster.assert_sound();
}

/// The hash keys are readable whoever owns their table.
#[test]
fn tables_with_other_owners() {
    let cluster = of_admin();
    let (mut service, mut alice, mut bob) = people(&cluster);
    for table in [
        "_presence.secret",
        "presence.room",
        "presence.event",
        "_presence._event_0",
        "_presence._event_1",
        "_presence._last_seen",
        "_presence._sink",
    ] {
        service.run(&format!("alter table {table} owner to successor"));
        service.run("alter role admin superuser");
        use_everything(&mut service, &mut alice, &mut bob);
        let (mut service, mut alice, mut bob) = people(&cluster);
        use_everything(&mut service, &mut alice, &mut bob);
    }
    cluster.assert_sound();
}

#[test]
fn roles_that_are_dropped() {
    let cluster = Cluster::start();
    let (mut service, mut alice, mut bob) = people(&cluster);
    let names = alice.rows("select presence.channels('lobby')");
    service.run(
        "create role gone; create role other_service; grant alice to gone;
         select presence.grant_access('gone'), presence.grant_access('other_service');
         grant select, trigger on presence.member to gone;
         create policy of_gone on presence.member for select to gone using (true);
         alter policy of_gone on presence.member to gone, other_service;
         alter database app set presence.service_roles = 'gone, other_service';
         alter database app set presence.anonymous_roles = 'gone';
         alter database app set presence.trusted_login_roles = 'gone, authenticator'",
    );
    until("the worker goes by these settings", || {
        alice.run("select presence.upsert('side')");
        alice.run("select presence.delete('side')");
        service.flush();
        alice.rows("select presence.channels('lobby')") != names
    });
    alice.run("select presence.upsert('lobby', audience => '{any,role:gone}')");
    service.run("drop owned by gone; drop policy of_gone on presence.member; drop role gone");
    until("only the built-in policies are left", || {
        service.is("select count(*) = 4 from pg_policy where polrelid = 'presence.member'::regclass")
    });
    alice.run("select presence.delete('lobby')");
    use_everything(&mut service, &mut alice, &mut bob);
    let (mut service, mut alice, mut bob) = people(&cluster);
    assert!(alice.is("select not presence.is_service() and presence.user_id() = 'alice'"));
    use_everything(&mut service, &mut alice, &mut bob);
    service.run("create role gone login; select presence.grant_access('gone')");
    assert!(cluster.user("gone").is("select presence.is_service()"), "the name counts again");
    cluster.assert_sound();
}
