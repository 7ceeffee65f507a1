//! Nobody can become another user: the identity in maintenance, in background processes and in code with
//! elevated rights, and the permitted values of a `sub`.

use crate::common::{Cluster, Session, until};

/// A table of carol's with an index, a materialized view and functions that try to act as alice in whatever
/// session runs them. The results are in `trap.loot`.
const TRAP: &str = r#"
    create schema trap authorization carol;
    grant usage on schema trap to public;
    grant execute on function presence.act_as(text, text[]) to carol;
    set session authorization carol;
    create table trap.loot (call text collate "C", got text);
    create function trap.attempt(call text) returns text language plpgsql as $$
    declare got text;
    begin
        execute 'select ' || call into got;
        return coalesce(got, 'NULL');
    exception when others then return sqlstate;
    end $$;
    create function trap.spring() returns void language plpgsql as $$
    declare
        calls constant text[] := array['presence.user_id()', 'presence.tokens()::text',
            '(select string_agg(status, '''') from presence.list(''diary''))',
            'presence.act_as(''alice'')::text', 'presence.listen(''hall'')', 'presence.unlisten(''hall'')::text',
            'presence.channels(''hall'')', '(presence.upsert(''hall'', session => true)).user_id',
            '(presence.upsert(''forged'', audience => ''{any}'')).user_id'];
        call text;
    begin
        perform pg_catalog.set_config('request.jwt.claims', '{"sub": "alice", "app_metadata": {"teams": ["red"]}}', true);
        foreach call in array calls loop
            insert into trap.loot values (call, trap.attempt(call));
        end loop;
    end $$;
    create function trap.innocent(i int) returns int language plpgsql immutable as
        $$ begin perform trap.spring(); return i; end $$;
    create table trap.bait (i int);
    insert into trap.bait values (1), (2);
    create index bait_index on trap.bait (trap.innocent(i));
    create materialized view trap.view as select trap.innocent(i) from trap.bait;
    reset session authorization;"#;

/// What carol's code gets, whoever runs it: her own rights, and nothing that belongs to a session.
const HARMLESS: [[&str; 2]; 9] = [
    ["(presence.upsert('forged', audience => '{any}')).user_id", "carol"],
    ["(presence.upsert('hall', session => true)).user_id", "0A000"],
    ["(select string_agg(status, '') from presence.list('diary'))", "NULL"],
    ["presence.act_as('alice')::text", "0A000"],
    ["presence.channels('hall')", "0A000"],
    ["presence.listen('hall')", "0A000"],
    ["presence.tokens()::text", "{any,users,user:carol,role:carol,room:forged}"],
    ["presence.unlisten('hall')::text", "0A000"],
    ["presence.user_id()", "carol"],
];

fn trapped(options: &[&str]) -> Cluster {
    let cluster = Cluster::with(options);
    cluster.user("alice").run("select presence.upsert('diary', status => 'secret', audience => '{}')");
    cluster.sql("app", TRAP);
    cluster.user("carol").run("select presence.upsert('forged', audience => '{any}')");
    cluster
}

fn assert_harmless(service: &mut Session, what: &str) {
    let loot = service.rows("select distinct call, got from trap.loot order by call");
    assert_eq!(loot, HARMLESS, "{what}");
    assert_eq!(service.number("select count(*) from pg_listening_channels()"), 0, "{what}");
    let forged =
        "select string_agg(distinct user_id, ' ') from presence.member where room in ('forged', 'hall')";
    assert_eq!(service.value(forged), "carol", "{what}");
}

#[test]
fn maintenance_by_a_superuser_runs_nobody_elses_code_as_a_user() {
    let cluster = trapped(&[]);
    let mut service = cluster.service();
    let maintenance = [
        "analyze trap.bait",
        "vacuum (analyze) trap.bait",
        "vacuum full trap.bait",
        "reindex table trap.bait",
        "reindex index concurrently trap.bait_index",
        "create index on trap.bait (trap.innocent(i + 1))",
        "cluster trap.bait using bait_index",
        "refresh materialized view trap.view",
    ];
    for sql in maintenance {
        // Also in a session that has an identity of its own.
        for claims in ["", r#"{"sub": "alice"}"#] {
            service.run(&format!(
                "truncate trap.loot; select set_config('request.jwt.claims', '{claims}', false)"
            ));
            service.run(sql);
            assert_harmless(&mut service, sql);
        }
    }
    // The session itself has its own identity again.
    assert_eq!(service.value("select presence.user_id()"), "alice");
    cluster.assert_sound();
}

#[test]
fn autovacuum_is_nobody_else() {
    let cluster = trapped(&["autovacuum_naptime=1s"]);
    let mut service = cluster.service();
    service.run(
        "alter table trap.bait set (autovacuum_analyze_threshold = 1, autovacuum_analyze_scale_factor = 0)",
    );
    cluster.user("carol").run("insert into trap.bait select generate_series(3, 20); truncate trap.loot");
    until("autovacuum analyzes", || service.is("select exists (select from trap.loot)"));
    assert_harmless(&mut service, "autovacuum");
    cluster.assert_sound();
}

/// A sink is a background worker: its function acts only as its owner.
#[test]
fn a_sink_is_its_owner() {
    let cluster = trapped(&[]);
    cluster.sql(
        "app",
        "create function trap.sink(events presence.event[]) returns void language plpgsql as
             $$ begin if exists (select from unnest(events) where room = 'bell') then perform trap.spring(); end if; end $$;
         alter function trap.sink owner to carol;
         truncate trap.loot;
         alter database app set presence.sink = 'trap.sink'",
    );
    let mut service = cluster.service();
    until("there is a sink", || service.is("select sink_position is not null from presence.health"));
    service.run("select presence.upsert('bell', user_id => 'zed')");
    until("it was called", || service.is("select exists (select from trap.loot)"));
    assert_harmless(&mut service, "sink");
    cluster.assert_sound();
}

const LOGIN: &str = "
    create role app_login login; create role browser;
    grant browser to app_login;
    select presence.grant_access('app_login'), presence.grant_access('browser');";

fn with_login() -> Cluster {
    let cluster = Cluster::with(&["presence.trusted_login_roles=app_login"]);
    cluster.sql("app", LOGIN);
    cluster
}

fn claim(session: &mut Session, claims: &str) {
    session.run(&format!("select set_config('request.jwt.claims', '{}', false)", claims.replace('\'', "''")));
}

#[test]
fn a_sessions_own_functions_and_parallel_workers_are_its_user() {
    let cluster = with_login();
    cluster.sql(
        "app",
        "create schema app; grant usage on schema app to public;
         create function app.definer() returns text language sql security definer
             set search_path = pg_catalog, pg_temp as 'select presence.user_id()';
         alter function app.definer owner to bob;
         create function app.worker() returns text language plpgsql parallel safe as
             $$ begin return presence.user_id() || ' ' || (pg_backend_pid() <> current_setting('app.pid')::int); end $$",
    );
    let mut login = cluster.user("app_login");
    claim(&mut login, r#"{"sub": "u1"}"#);
    assert_eq!(login.value("select app.definer()"), "u1");
    let force = if login.number("select current_setting('server_version_num')::int") < 160_000 {
        "force_parallel_mode"
    } else {
        "debug_parallel_query"
    };
    login.run(&format!("select set_config('app.pid', pg_backend_pid()::text, false); set {force} = on"));
    assert_eq!(login.value("select app.worker()"), "u1 true", "in a parallel worker");
    claim(&mut login, "");
    assert_eq!(login.rows("select app.worker()"), [[""]], "nobody there, too");
    let mut alice = cluster.user("alice");
    alice.run(&format!("select set_config('app.pid', pg_backend_pid()::text, false); set {force} = on"));
    claim(&mut alice, r#"{"sub": "u1"}"#);
    assert_eq!(alice.value("select app.worker()"), "alice true");
    cluster.assert_sound();
}

/// Other users' triggers on the member table run with elevated rights if a verb needs those: the user stays
/// the same, and gets nothing that belongs to the session.
#[test]
fn triggers_that_run_with_lent_rights_know_the_user() {
    let cluster = with_login();
    cluster.sql(
        "app",
        "create schema app; grant usage on schema app to public;
         create function app.authorize(room text, action text) returns boolean language sql stable as 'select true';
         create table app.seen (call text collate \"C\", got text);
         create function app.attempt(call text) returns text language plpgsql as $$
         declare got text;
         begin
             execute 'select ' || call into got;
             return coalesce(got, 'NULL');
         exception when others then return sqlstate;
         end $$;
         create function app.witness() returns trigger language plpgsql as $$
         declare call text;
         begin
             foreach call in array array['presence.user_id()', 'presence.act_as(''u9'')::text', 'presence.listen(''hall'')',
                                         '(presence.upsert(''side'', session => true)).user_id'] loop
                 insert into app.seen values (call, app.attempt(call));
             end loop;
             return null;
         end $$;
         create trigger witness after delete on presence.member for each row execute function app.witness();
         alter database app set presence.authorizer = 'app.authorize'",
    );
    let mut service = cluster.service();
    service.run("select presence.upsert('hall', user_id => 'zed')");
    let mut login = cluster.user("app_login");
    claim(&mut login, r#"{"sub": "u1"}"#);
    assert_eq!(login.number("select presence.delete('hall', 'zed')"), 1, "u1 manages the room");
    assert_eq!(
        service.rows("select call, got from app.seen order by call"),
        [
            ["(presence.upsert('side', session => true)).user_id", "0A000"],
            ["presence.act_as('u9')::text", "0A000"],
            ["presence.listen('hall')", "0A000"],
            ["presence.user_id()", "u1"],
        ]
    );
    assert_eq!(login.value("select presence.user_id()"), "u1");
    cluster.assert_sound();
}

#[test]
fn a_sub_is_exact() {
    let cluster = with_login();
    let mut login = cluster.user("app_login");
    for (sub, user) in [
        ("\"bob\"", "bob"),
        ("36893488147419103232", "36893488147419103232"),
        ("36893488147419103233", "36893488147419103233"),
        ("-1", "-1"),
        ("1", "1"),
        ("1.0", "1.0"),
        ("1e2", "1e2"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ("true", "true"),
        ("[1]", "[1]"),
        (r#"{"id": 1.0}"#, r#"{"id": 1.0}"#),
        (r#""caf\u00e9 \ud83d\ude00""#, "caf\u{e9} \u{1f600}"),
        ("null", ""),
        ("\"\"", ""),
        (r#""bob\u0000""#, ""),
        (r#""\u0000""#, ""),
        (r#""\ud800""#, ""),
    ] {
        claim(&mut login, &format!(r#"{{"aud": "x", "sub": {sub}}}"#));
        assert_eq!(login.rows("select presence.user_id()"), [[user]], "{sub}");
        if user.is_empty() {
            let failure = login.fails("select presence.upsert('hall')");
            assert_eq!(
                (failure.code.as_str(), failure.detail.as_str()),
                ("42501", "presence.user_id() is NULL.")
            );
        } else {
            assert_eq!(login.value("select user_id from presence.upsert('hall')"), user);
            assert!(login.is("select presence.heartbeat('hall')"));
            assert_eq!(login.number("select presence.delete_all()"), 1, "{sub}");
        }
    }
    // Claims that are not valid JSON identify nobody; the older setting applies if there is no sub.
    login.run("set request.jwt.claim.sub = 'old'");
    for (claims, user) in
        [("", "old"), ("{}", "old"), (r#"{"sub": null}"#, "old"), (r#"{"sub": "new"}"#, "new")]
    {
        claim(&mut login, claims);
        assert_eq!(login.rows("select presence.user_id()"), [[user]], "{claims}");
    }
    for claims in [r#"{"sub": "bob""#, "bob", r#"{"sub": "x\u0000"}"#] {
        claim(&mut login, claims);
        assert_eq!(login.rows("select presence.user_id()"), [[""]], "{claims}");
    }
    // A user with an invalid name may read, but not enter.
    for sub in ["x".repeat(256), r"a\nb".into()] {
        claim(&mut login, &format!(r#"{{"sub": "{sub}"}}"#));
        assert!(login.is("select presence.user_id() is not null"));
        assert_eq!(login.number("select count(*) from presence.list('hall')"), 0);
        assert_eq!(login.fails("select presence.upsert('hall')").code, "22023");
    }
    // Teams.
    claim(
        &mut login,
        r#"{"sub": "u", "app_metadata": {"teams": ["red", 36893488147419103233, 1.0, null, "x\u0000"]}}"#,
    );
    assert_eq!(
        login.value("select presence.tokens()"),
        "{any,users,user:u,team:red,team:36893488147419103233,team:1.0,role:app_login,role:browser}"
    );
    cluster.assert_sound();
}

#[test]
fn act_as_is_granted_on_its_own() {
    let cluster = with_login();
    let mut login = cluster.user("app_login");
    assert_eq!(login.fails("select presence.act_as('u1')").code, "42501");
    cluster.sql("app", "grant execute on function presence.act_as(text, text[]) to app_login");
    let two = "begin; select presence.act_as('u1', '{red}'); set local role browser;
               select presence.user_id() || presence.tokens()::text; commit";
    assert_eq!(login.value(two), "u1{any,users,user:u1,team:red,role:browser}");
    assert_eq!(
        login.fails("begin; set local role browser; select presence.act_as('u2')").message,
        "permission denied for function act_as"
    );
    login.run("rollback");
    // The grant remains until access is revoked.
    cluster.sql("app", "select presence.grant_access('app_login')");
    login.run("select presence.act_as('u1')");
    cluster.sql("app", "select presence.revoke_access('app_login'), presence.grant_access('app_login')");
    assert_eq!(login.fails("select presence.act_as('u1')").code, "42501");
    // Two users in one message, and in one function.
    cluster.sql("app", "grant execute on function presence.act_as(text, text[]) to app_login");
    let message = "begin; select presence.act_as('u1', '{red}'); select presence.act_as('u2');
                   select presence.user_id() || presence.tokens()::text; commit";
    assert_eq!(login.value(message), "u2{any,users,user:u2,role:app_login,role:browser}");
    login.run(
        "begin; do $$ declare who text := ''; begin
             for n in 1..3 loop
                 perform presence.act_as('u' || n);
                 who := who || presence.user_id() || (select count(*) from presence.get('hall', 'u' || n));
                 perform presence.upsert('hall', audience => '{}');
                 who := who || (select count(*) from presence.list('hall')) || ' ';
             end loop;
             perform set_config('app.who', who, false);
         end $$; commit",
    );
    assert_eq!(login.value("select current_setting('app.who')"), "u101 u201 u301 ");
    cluster.assert_sound();
}
