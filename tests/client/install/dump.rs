//! pg_dump and restore, DROP and CREATE EXTENSION: what is kept, what is not, and that the extension is not
//! in the way.

use crate::common::{Cluster, GRANTS, lines, shell, try_shell, until};

/// An application in the database `app` that uses presence in every way that SQL allows.
const APPLICATION: &str = "
    create schema app; grant usage on schema app to public;
    create function app.may(room text, action text) returns boolean language sql stable
        begin atomic select room not like 'closed%'; end;
    create table app.heard (seq bigint primary key, event text);
    create function app.hear(events presence.event[]) returns void language sql
        begin atomic
            insert into app.heard select e.seq, e.event from unnest(events) e;
        end;
    create table app.document (
        room text primary key references presence.room on delete cascade,
        owner text not null default presence.user_id()
    );
    alter table app.document enable row level security;
    create policy own on app.document using (owner = (select presence.user_id()));
    create view app.here as select d.room, o.member_id from app.document d join presence.online o using (room);
    create materialized view app.snapshot as select * from presence.online;
    create policy app_reads on presence.member for select to carol using (true);

    alter database app set presence.default_ttl = '40 s';
    alter database app set presence.max_per_user = 5;
    alter database app set presence.authorizer = 'app.may';
    alter database app set presence.sink = 'app.hear';
    alter database app set presence.service_roles = 'carol';
    alter role alice in database app set presence.session_features = off;

    select presence.revoke_access('bob'), presence.grant_access('bob', write => false);
    select presence.set_room('plain');
    select presence.set_room('full', '{\"topic\": \"Grüße\"}', audience => '{team:red}', count_audience => '{any}',
                             ttl => '2 min', max_members => 7, keep_history => false);
    select presence.set_room('closed');
    insert into app.document values ('full', 'alice');
    select presence.upsert('full', member_id => 'm', user_id => 'alice');";

const SETTINGS: &str = "
    select coalesce(setrole::regrole::text, ''), setconfig from pg_db_role_setting
    where setdatabase = (select oid from pg_database where datname = current_database()) order by 1";
const ROOMS: &str = "
    select room, metadata, audience, count_audience, ttl, max_members, keep_history, created_at, updated_at
    from presence.room order by room";
/// The objects of examples/wrapper.sql.
const WRAPPER: &str = "
    select p.oid::regprocedure::text, pg_get_functiondef(p.oid), obj_description(p.oid, 'pg_proc') from pg_proc p
    where pronamespace = to_regnamespace('presence_api')
    union all
    select c.oid::regclass::text, pg_get_viewdef(c.oid), format('%s %s', c.relacl, c.reloptions) from pg_class c
    where relnamespace = to_regnamespace('presence_api') order by 1";

fn application() -> Cluster {
    let cluster = Cluster::start();
    cluster.sql("app", APPLICATION);
    cluster.sql("app", include_str!("../../../examples/wrapper.sql"));
    cluster.service().flush();
    cluster
}

/// Restores over the database itself, while its worker is running.
#[test]
fn a_dump_keeps_rooms_grants_and_settings() {
    let cluster = application();
    let mut service = cluster.service();
    let before = [SETTINGS, ROOMS, GRANTS, WRAPPER].map(|question| service.rows(question));
    assert!(!before[3].is_empty());
    let highest = service.number("select greatest(presence.seq(), max(version)) from presence.room");
    drop(service);

    shell(
        "\"$bin/pg_dump\" -h \"$1\" -U postgres -Fc -f \"$1/dump\" app
         \"$bin/pg_restore\" -h \"$1\" -U postgres -d postgres --clean --create --exit-on-error \"$1/dump\"",
        &[&cluster],
    );
    cluster.until_worker("app");
    let mut service = cluster.service();
    let after = [SETTINGS, ROOMS, GRANTS, WRAPPER].map(|question| service.rows(question));
    assert_eq!(after, before);
    assert!(service.number("select min(version) from presence.room") > highest);

    // What the dump does not contain, according to docs/operations.md.
    assert_eq!(service.rows("select * from presence.member"), [[""; 0]; 0]);
    assert_eq!(service.rows("select * from presence.last_seen"), [[""; 0]; 0]);
    assert_eq!(service.rows("select * from pg_policy where polname = 'app_reads'"), [[""; 0]; 0]);

    // The database works, with its settings: the sink receives events, the authorizer decides, readers can
    // read. A sink starts with the events that follow its creation, and its function was restored late.
    until("the sink is there", || service.is("select sink_position is not null from presence.health"));
    service.run("delete from app.heard; select presence.listen()");
    let mut alice = cluster.user("alice");
    assert_eq!(alice.value("select ttl from presence.upsert('plain')"), "00:00:40");
    assert_eq!(alice.fails("select presence.upsert('closed')").code, "42501");
    assert_eq!(alice.fails("select presence.listen('plain')").code, "0A000");
    assert_eq!(cluster.user("bob").fails("select presence.upsert('plain')").code, "42501");
    assert_eq!(alice.value("select member_id from presence_api.list('plain')"), "alice");
    assert_eq!(lines(&service.hear()), ["enter alice"]);
    until("the sink hears it", || {
        service.number("select count(*) from app.heard where event = 'enter'") == 1
    });
    assert_eq!(service.rows("select * from app.here"), [[""; 0]; 0]);
    cluster.assert_sound();
}

/// The only rows dumped are the settings of rooms: no members, no secret, no positions of the log or the
/// sink.
#[test]
fn a_dump_has_no_rows_but_rooms() {
    let cluster = application();
    cluster.user("alice").run("select presence.upsert('plain'); select presence.delete('plain')");
    cluster.service().flush();
    shell(
        "\"$bin/pg_dump\" -h \"$1\" -U postgres app >\"$1/dump\"
         grep -E '^(COPY|INSERT INTO) _?presence\\.' \"$1/dump\" | cut -d '(' -f 1 >\"$1/rows\"",
        &[&cluster],
    );
    let read = |name| std::fs::read_to_string(cluster.join(name)).expect("what was dumped");
    assert_eq!(read("rows").trim(), "COPY presence.room");
    let key = "select encode(key, 'hex') from _presence.secret";
    assert!(!read("dump").contains(&cluster.service().value(key)));
    // CREATE EXTENSION creates its own schema.
    assert!(!read("dump").contains("CREATE SCHEMA _presence"));
}

#[test]
fn a_copy_has_its_own_secret_and_the_limits_of_its_rooms() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    service.run("select presence.set_room('all \"of\" it', max_members => 7)");
    service.run("create database copy");
    shell(
        "\"$bin/pg_dump\" -h \"$1\" -U postgres app |
         \"$bin/psql\" -X -q -v ON_ERROR_STOP=1 -h \"$1\" -U postgres -d copy",
        &[&cluster],
    );
    cluster.until_worker("copy");
    let mut copy = cluster.session("postgres", "copy");
    let key = "select encode(sha256(key), 'hex') from _presence.secret";
    assert_ne!(copy.value(key), service.value(key));
    copy.run(
        "select presence.upsert_many((select jsonb_agg(jsonb_build_object('room', 'all \"of\" it', 'user_id', n::text))
                                      from generate_series(1, 7) n))",
    );
    assert_eq!(copy.fails("select presence.upsert('all \"of\" it')").code, "54000");
    cluster.assert_sound();
}

/// An upgraded database, with stored calls and with grants made before the upgrade.
#[test]
fn a_dump_of_an_upgraded_database_is_restored_whole() {
    let cluster = Cluster::bare(&[]);
    cluster.sql("postgres", "create database app");
    cluster.sql("postgres", "create database copy");
    cluster.sql(
        "app",
        "create extension presence_ext version '0.2.0';
         select presence.grant_access('alice'), presence.grant_access('bob', write => false);
         grant execute on function presence.update to carol with grant option;
         create function public.entered() returns jsonb
             begin atomic; select (presence.upsert('lobby', '1')).state; end;
         create function public.renewed() returns jsonb
             begin atomic; select u.state from presence.update('lobby') u; end;
         create function public.gone() returns integer
             begin atomic; select presence.delete('nowhere', state => '1'); end;
         create function public.speak() returns text begin atomic;
             select presence.act_as('zoe'); select presence.user_id(); end;
         create function public.silence() returns void begin atomic;
             select presence.forget('nobody'); select presence.unlisten(); select presence.rotate_channels(); end;
         create function public.let_in(who regrole) returns void begin atomic; select presence.grant_access(who); end;
         create function public.let_out(who regrole) returns void begin atomic; select presence.revoke_access(who); end;
         create view public.here as select * from presence.online;
         alter extension presence_ext update",
    );
    shell(
        "\"$bin/pg_dump\" -h \"$1\" -U postgres app |
         \"$bin/psql\" -X -q -v ON_ERROR_STOP=1 -h \"$1\" -U postgres -d copy",
        &[&cluster],
    );
    cluster.until_worker("copy");
    let [mut app, mut copy] = ["app", "copy"].map(|database| cluster.session("postgres", database));
    assert_eq!(copy.rows(GRANTS), app.rows(GRANTS));
    assert_eq!(copy.value("select public.speak()"), "zoe");
    copy.run("select public.silence(); select public.let_out('bob'); select public.let_in('bob')");
    let mut alice = cluster.session("alice", "copy");
    assert_eq!(alice.value("select public.entered()"), "1");
    assert!(alice.is("select public.renewed() = '1' and public.gone() = 0"), "by what they were made with");
    cluster.assert_sound();
}

/// If the library is missing from shared_preload_libraries, everything but presence is restored. Once the
/// library is loaded, the rest can be restored later.
#[test]
fn without_the_library_a_restore_brings_all_but_presence() {
    let cluster = Cluster::start();
    cluster.service().run(
        "select presence.set_room('kept', '{\"topic\": 1}');
         create table own (room text); insert into own values ('kept');
         alter database app set presence.default_ttl = '40 s'",
    );
    shell("\"$bin/pg_dump\" -h \"$1\" -U postgres -Fc -f \"$1/dump\" app", &[&cluster]);
    cluster.restart_with(&["shared_preload_libraries="]);

    let restore = "\"$bin/pg_restore\" -h \"$1\" -U postgres";
    let (complete, said) =
        try_shell(&format!("{restore} -d postgres --clean --create \"$1/dump\""), &[&cluster]);
    assert!(!complete);
    assert!(said.contains("presence_ext is not loaded"), "{said}");
    assert!(said.contains("Add presence_ext to shared_preload_libraries"), "{said}");
    let mut session = cluster.session("postgres", "app");
    assert_eq!(session.value("select room from own"), "kept");
    assert!(session.is("select current_setting('presence.default_ttl') = '40 s'"));
    drop(session);

    cluster.restart_with(&["shared_preload_libraries=presence_ext"]);
    shell(&format!("{restore} -d app --clean --if-exists --exit-on-error \"$1/dump\""), &[&cluster]);
    cluster.until_worker("app");
    let mut service = cluster.service();
    assert_eq!(service.value("select metadata from presence.room"), "{\"topic\": 1}");
    let mut alice = cluster.user("alice");
    assert_eq!(alice.value("select ttl from presence.upsert('kept')"), "00:00:40");
    cluster.assert_sound();
}

/// Settings of the database stay. Rooms and grants belong to the extension and are dropped with it.
#[test]
fn drop_extension_and_create_extension_begin_anew() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    service.run("alter database app set presence.default_ttl = '40 s'; select presence.set_room('lobby', '{\"a\": 1}')");
    let mut alice = cluster.user("alice");
    alice.run(
        "select presence.upsert('lobby', session => true); select presence.upsert('side', ttl => '1 h')",
    );
    service.flush();
    let numbers = "select presence.seq(), (select max(version) from presence.member)";
    let before = service.rows(numbers)[0].clone();

    let channels = service.rows("select presence.channels('lobby')");
    service.run("drop extension presence_ext; create extension presence_ext");
    cluster.until_worker("app");
    let begun = "select (select count(*) from presence.room) + (select count(*) from presence.online)
                      + (select slots_used from presence.health)";
    until("nothing is left of before", || service.number(begun) == 0);
    assert_eq!(alice.fails("select presence.upsert('lobby')").code, "42501");
    service.run("select presence.grant_access('alice')");
    // The channels have new names: earlier listeners receive nothing new.
    let renamed = service.rows("select presence.channels('lobby')");
    let is_fixed = |name: &Vec<String>| name[0] == "presence";
    assert!(renamed.iter().all(|name| is_fixed(name) || !channels.contains(name)));

    service.run("select presence.listen()");
    let mut alice = cluster.user("alice"); // new sessions have the settings; the old session ends, which causes no leave
    assert_eq!(alice.value("select ttl from presence.upsert('lobby')"), "00:00:40");
    assert_eq!(lines(&service.hear()), ["enter alice"]);
    let after = service.rows(numbers)[0].clone();
    for (before, after) in before.iter().zip(&after) {
        assert!(after.parse::<i64>().expect("a number") > before.parse().expect("a number"));
    }
    cluster.assert_sound();
}
