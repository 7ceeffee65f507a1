//! The authorizer is part of the calling statement: its errors are the statement's errors, a cancel ends the
//! statement, and an answer is never older than what it depends on.

use crate::common::{Cluster, Session, millis, until};
use std::time::Instant;

/// `app.authorize` with this body; zed is in some rooms that everybody may see.
fn with_authorizer(body: &str, language: &str) -> Cluster {
    let cluster = Cluster::with(&["presence.member_ids=any", "presence.trusted_login_roles=app_login"]);
    cluster.sql(
        "app",
        &format!(
            "create schema app; grant usage on schema app to public;
             {}
             alter database app set presence.authorizer = 'app.authorize'",
            function(body, language)
        ),
    );
    cluster.sql(
        "app",
        "select presence.upsert('room ' || n, user_id => 'zed', audience => '{any}', ttl => '1 day') from generate_series(1, 8) n;
         select presence.upsert('acme:x', user_id => 'zed', audience => '{any}', ttl => '1 day')",
    );
    cluster
}

fn function(body: &str, language: &str) -> String {
    format!(
        "create or replace function app.authorize(room text, action text) returns boolean language {language} stable
         as $f$ {body} $f$;"
    )
}

/// All calls that ask the authorizer. Bob makes them; the service has entered 'mine' for bob.
const ASKING: [&str; 25] = [
    "select * from presence.list('room 1')",
    "select * from presence.list()",
    "select * from presence.get('room 1', 'zed')",
    "select * from presence.online",
    "select count(*) from presence.member",
    "select * from presence.users('room 1')",
    "select * from presence.occupancy('room 1')",
    "select * from presence.occupancy()",
    "select * from presence.rooms()",
    "select presence.state('room 1')",
    "select * from presence.history('room 1')",
    "select * from presence.changes(0)",
    "select presence.upsert('room 1')",
    "select presence.upsert('mine', '{\"x\": 2}')",
    "select presence.update('mine', '{\"x\": 3}')",
    r#"select presence.upsert_many('[{"room": "room 2"}, {"room": "room 3"}]')"#,
    "insert into presence.member (room) values ('room 4')",
    "select presence.delete('room 1', 'zed')",
    "select presence.delete_room('room 1')",
    "select presence.set_room('room 1', '{\"topic\": 1}')",
    "select presence.listen('room 1')",
    "select presence.channels('room 1')",
    "select presence.may('room 1', 'read')",
    "select presence.may('room 1', 'join')",
    "select presence.may('room 1', 'manage')",
];

#[test]
fn a_cancel_in_the_authorizer_ends_the_statement() {
    let cluster = with_authorizer("begin perform pg_sleep(60); return true; end", "plpgsql");
    cluster.sql("app", "select presence.upsert('mine', user_id => 'bob')");
    let mut service = cluster.service();
    service.flush();
    let mut bob = cluster.user("bob");
    for sql in ASKING.iter().chain(&["select presence.rotate_channels('room 1')"]) {
        bob.run("set statement_timeout = '100ms'");
        let start = Instant::now();
        assert_eq!(bob.fails(sql).code, "57014", "{sql}");
        assert!(start.elapsed() < millis(10_000), "{sql} took {:?}", start.elapsed());
    }
    // A cancel from another session.
    bob.run("set statement_timeout = 0");
    let pid = bob.pid();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| bob.fails("select * from presence.list()").code);
        let sleeps = format!("select wait_event = 'PgSleep' from pg_stat_activity where pid = {pid}");
        until("it sleeps", || service.rows(&sleeps) == [["t"]]);
        service.run(&format!("select pg_cancel_backend({pid})"));
        assert_eq!(waiting.join().expect("no panic"), "57014");
    });
    // No traces remain.
    assert_eq!(bob.number("select count(*) from presence.get('mine', 'bob')"), 1);
    assert_eq!(bob.number("select count(*) from pg_listening_channels()"), 0);
    cluster.assert_sound();
}

#[test]
fn what_the_authorizer_raises_is_what_the_statement_raises() {
    let cluster = with_authorizer(
        "begin raise exception using errcode = current_setting('app.code'), message = 'no answer'; end",
        "plpgsql",
    );
    cluster.sql("app", "select presence.upsert('mine', user_id => 'bob')");
    cluster.service().flush();
    let mut bob = cluster.user("bob");
    for code in ["40P01", "40001", "53200", "57014", "57P01", "58030", "22012", "P0001", "42501", "XX000"] {
        bob.run(&format!("set app.code = '{code}'"));
        for sql in ASKING {
            let failure = bob.fails(sql);
            assert_eq!((failure.code.as_str(), failure.message.as_str()), (code, "no answer"), "{sql}");
        }
    }
    // A user's own rows need no authorization, and neither do service roles.
    assert_eq!(bob.number("select count(*) from presence.get('mine', 'bob')"), 1);
    assert!(bob.is("select presence.heartbeat('mine')"));
    assert_eq!(cluster.service().number("select count(*) from presence.list()"), 10);
    cluster.assert_sound();
}

#[test]
fn no_answer_is_no() {
    let cluster = with_authorizer("select null::boolean", "sql");
    let mut bob = cluster.user("bob");
    assert_eq!(bob.number("select count(*) from presence.list()"), 0, "NULL");
    let failure = bob.fails("select presence.upsert('hall')");
    assert_eq!((failure.code.as_str(), failure.detail.as_str()), ("42501", "It returned NULL."));

    // A wrong setting causes an error for everybody except for those who need no authorization.
    let wrong = [
        ("authorize", "does not name a schema and a function"),
        ("app.authorize.x", "does not name a schema and a function"),
        ("app.\"", "does not name a schema and a function"),
        ("app.nothing", "There is no function app.nothing(room text, action text)."),
        ("nowhere.authorize", "There is no function nowhere.authorize(room text, action text)."),
        ("app.one", "There is no function app.one(room text, action text)."),
    ];
    cluster.sql("app", "create function app.one(room text) returns boolean language sql as 'select true'");
    for (name, why) in wrong {
        cluster.sql("app", &format!("alter database app set presence.authorizer = '{name}'"));
        let mut bob = cluster.user("bob");
        for sql in ["select presence.upsert('hall')", "select * from presence.list()"] {
            let failure = bob.fails(sql);
            assert_eq!(failure.code, "42501", "{name}");
            assert_eq!(failure.message, "the authorizer of presence gave no answer", "{name}");
            assert!(failure.detail.contains(why), "{name}: {failure:?}");
        }
        assert_eq!(cluster.service().number("select count(*) from presence.list()"), 9, "{name}");
    }
    // Quoted names, capitals and default arguments: PostgreSQL's rules for names apply.
    cluster.sql(
        "app",
        r#"create schema "My App"; grant usage on schema "My App" to public;
           create function "My App"."Ask; it"(room varchar, action varchar, more int default 1) returns boolean
               language sql stable as 'select true';
           alter database app set presence.authorizer = '"My App" . "Ask; it"'"#,
    );
    assert_eq!(cluster.user("bob").number("select count(*) from presence.list()"), 9);
    cluster.assert_sound();
}

/// One plan is cached; it follows changes of the function, its privileges and the caller.
#[test]
fn the_function_is_the_one_that_is_there_now() {
    let cluster = with_authorizer("select true", "sql");
    let (mut service, mut bob, mut carol) = (cluster.service(), cluster.user("bob"), cluster.user("carol"));
    let ask = "select count(*) from presence.list('room 1')";
    for _ in 0..8 {
        assert_eq!(bob.number(ask), 1);
    }
    service.run(&function("select false", "sql"));
    assert_eq!(bob.number(ask), 0, "replaced");
    service.run("drop function app.authorize");
    assert_eq!(bob.fails(ask).code, "42501", "dropped");
    service.run(&function("begin return room = 'room 1'; end", "plpgsql"));
    assert_eq!(bob.number(ask), 1, "made again");
    service.run("alter function app.authorize rename to other");
    assert_eq!(bob.fails(ask).code, "42501", "renamed");
    service.run(&function("select true", "sql"));
    assert_eq!(bob.number(ask), 1);

    // The EXECUTE privilege is also checked for a function that is inlined.
    service.run("revoke execute on function app.authorize from public; grant execute on function app.authorize to bob, carol");
    assert_eq!((bob.number(ask), carol.number(ask)), (1, 1));
    service.run("revoke execute on function app.authorize from bob");
    let failure = bob.fails(ask);
    assert_eq!(
        (failure.code.as_str(), failure.message.as_str()),
        ("42501", "permission denied for function authorize")
    );
    assert_eq!(carol.number(ask), 1);
    // In one session with many roles.
    service.run("grant execute on function app.authorize to bob");
    service.run("do $$ begin for n in 1..20 loop
                     execute format('create role r%s; select presence.grant_access(''r%s'')', n, n);
                     if n % 2 = 0 then execute format('grant execute on function app.authorize to r%s', n); end if;
                 end loop; end $$");
    let mut many = cluster.service();
    for turn in 1..=60 {
        let role = turn % 20 + 1;
        many.run(&format!("set role r{role}"));
        if role % 2 == 0 {
            assert_eq!(many.number(ask), 1);
        } else {
            assert_eq!(many.fails(ask).code, "42501", "r{role}");
        }
        many.run("reset role");
    }

    // No search_path leads to another function, and the function sees the caller's search_path.
    service.run(&function("begin return current_setting('search_path') = 'mine'; end", "plpgsql"));
    service.run("create schema app2 authorization carol; grant execute on function app.authorize to public");
    carol.run("create function app2.authorize(room text, action text) returns boolean language sql as 'select true'");
    carol.run("set search_path = app2");
    assert_eq!(carol.number(ask), 0);
    carol.run("set search_path = mine");
    assert_eq!(carol.number(ask), 1);
    // A function replaces the authorizer between two reads of one statement.
    service.run(&format!(
        "grant create on schema app to bob; alter function app.authorize owner to bob;
         create function app.forbid() returns void language plpgsql as $x$ begin execute $y$ {} $y$; end $x$",
        function("begin return false; end", "plpgsql")
    ));
    assert_eq!(
        bob.rows(&format!("set search_path = mine; select ({ask}), app.forbid(), ({ask})")),
        [["1", "", "0"]]
    );
    cluster.assert_sound();
}

#[test]
fn it_answers_in_every_plan_and_in_read_only_transactions() {
    let cluster = with_authorizer("select true", "sql");
    cluster.sql(
        "app",
        "create table app.big as select i from generate_series(1, 50000) i; analyze app.big;
         create table app.allowed as select room from presence.member; grant select on app.big, app.allowed to public",
    );
    let bodies = [
        ("select true", "sql", ""),
        ("select exists (select from app.allowed a where a.room = authorize.room)", "sql", ""),
        ("begin return exists (select from app.allowed a where a.room = authorize.room); end", "plpgsql", ""),
        (
            "begin return exists (select from app.allowed a where a.room = authorize.room); end",
            "plpgsql",
            "alter function app.authorize volatile security definer set search_path = pg_catalog, pg_temp",
        ),
    ];
    for (body, language, more) in bodies {
        cluster.sql("app", &format!("{}{more}", function(body, language)));
        let mut bob = cluster.user("bob");
        assert_eq!(bob.number("select count(*) from presence.online"), 9, "{body}");
        bob.run("begin read only");
        assert_eq!(bob.number("select count(*) from presence.online"), 9, "{body}");
        bob.run("commit; set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0");
        for query in [
            "select (select count(*) from presence.online), count(*) from app.big",
            "select (select count(*) from presence.list('room 1')) + 8, count(*) from app.big",
            "select (select count(*) from presence.member), count(*) from app.big",
            "select (select sum(members) from presence.rooms()), count(*) from app.big",
            "select (select members from presence.occupancy()), count(*) from app.big",
        ] {
            let plan = bob.rows(&format!("explain {query}"));
            assert!(plan.iter().any(|line| line[0].contains("Gather")), "{query}: {plan:?}");
            assert_eq!(bob.rows(query), [["9", "50000"]], "{body}: {query}");
        }
    }
    cluster.assert_sound();
}

/// Counts how often it is called.
const COUNTING: &str = "begin perform nextval('app.asked'); return true; end";

#[test]
fn it_is_asked_once_a_room_and_statement() {
    let cluster = with_authorizer(COUNTING, "plpgsql");
    cluster.sql(
        "app",
        "create sequence app.asked; grant all on sequence app.asked to public; set presence.max_per_user = 0;
         select presence.upsert('full', member_id => 'm' || n, user_id => 'zed', audience => '{any}') from generate_series(1, 1000) n",
    );
    let mut bob = cluster.user("bob");
    let mut asked = |sql: &str| {
        bob.run("select setval('app.asked', 1, false)");
        bob.run(sql);
        let once = bob.number("select last_value from app.asked");
        bob.run(sql);
        assert_eq!(bob.number("select last_value from app.asked"), 2 * once, "the next statement asks again");
        once
    };
    assert_eq!(asked("select count(*) from presence.list('full', max_rows => 1000)"), 1);
    assert_eq!(asked("select count(*) from presence.online"), 10, "rooms");
    assert_eq!(
        asked("select (select count(*) from presence.online), (select count(*) from presence.member)"),
        10
    );
    assert_eq!(asked("begin; select count(*) from presence.online; commit"), 10);
    cluster.assert_sound();
}

#[test]
fn an_answer_is_not_older_than_what_it_depends_on() {
    let cluster = with_authorizer(
        "select split_part(authorize.room, ':', 1) = current_setting('app.tenant', true)",
        "sql",
    );
    cluster.sql(
        "app",
        "create function app.readers(tenant text) returns bigint language sql set app.tenant = 'acme'
             as $$ select count(*) from presence.list('acme:x') $$;
         create function app.as_tenant(tenant text) returns bigint language plpgsql as $$
             begin perform set_config('app.tenant', tenant, true); return (select count(*) from presence.list('acme:x')); end $$",
    );
    let mut bob = cluster.user("bob");
    // Within one function, within one statement, and within one scan of a statement.
    bob.run(
        "do $$ declare acme bigint; globex bigint; begin
            perform set_config('app.tenant', 'acme', true); acme := (select count(*) from presence.list('acme:x'));
            perform set_config('app.tenant', 'globex', true); globex := (select count(*) from presence.list('acme:x'));
            perform set_config('app.counts', acme || ' ' || globex, false); end $$",
    );
    assert_eq!(bob.value("select current_setting('app.counts')"), "1 0");
    assert_eq!(
        bob.rows("select t, app.as_tenant(t) from unnest('{acme,globex,acme}'::text[]) t"),
        [["acme", "1"], ["globex", "0"], ["acme", "1"]]
    );
    // (PostgreSQL does not call a function in FROM again for the same arguments.)
    let correlated = "select set_config('app.tenant', t, true),
                             (select count(*) from presence.list('acme:x' || left(t, 0)))
                      from unnest('{acme,globex,acme}'::text[]) t";
    assert_eq!(bob.rows(correlated), [["acme", "1"], ["globex", "0"], ["acme", "1"]]);
    assert_eq!(
        bob.rows(
            "select (select count(*) from presence.list('acme:x')), set_config('app.tenant', 'acme', true),
                         (select count(*) from presence.list('acme:x'))"
        ),
        [["0", "acme", "1"]],
    );
    let message = "begin; set local app.tenant = 'acme'; select count(*) from presence.list('acme:x');
                   set local app.tenant = 'globex'; select count(*) from presence.list('acme:x'); commit";
    assert_eq!(bob.value(message), "0");
    // A function's own SET clause, and a setting that ends with a savepoint.
    bob.run("set app.tenant = 'globex'");
    let ask = "(select count(*) from presence.list('acme:x'))";
    assert_eq!(bob.rows(&format!("select {ask}, app.readers('x'), {ask}")), [["0", "1", "0"]]);
    bob.run(
        "do $$ declare inside bigint; begin
            begin
                perform set_config('app.tenant', 'acme', true); inside := (select count(*) from presence.list('acme:x'));
                raise division_by_zero;
            exception when division_by_zero then null; end;
            perform set_config('app.counts', inside || ' ' || (select count(*) from presence.list('acme:x')), false); end $$",
    );
    assert_eq!(bob.value("select current_setting('app.counts')"), "1 0");

    // Tables that the authorizer reads: whoever commits to them, and whatever is rolled back.
    cluster.sql("app", "create table app.allowed (room text); grant all on app.allowed to public");
    cluster.sql(
        "app",
        &function("select exists (select from app.allowed a where a.room = authorize.room)", "sql"),
    );
    bob.run(
        "do $$ declare counts text := ''; begin
            counts := (select count(*) from presence.list('acme:x'));
            begin
                insert into app.allowed values ('acme:x');
                counts := counts || (select count(*) from presence.list('acme:x'));
                raise division_by_zero;
            exception when division_by_zero then null; end;
            counts := counts || (select count(*) from presence.list('acme:x'));
            perform set_config('app.counts', counts, false); end $$",
    );
    assert_eq!(bob.value("select current_setting('app.counts')"), "010");
    others_commit(&cluster, &mut bob);

    // The claims: the same user with other teams.
    cluster.sql(
        "app",
        "create role app_login login; select presence.grant_access('app_login');
                        grant execute on function presence.act_as(text, text[]) to app_login",
    );
    cluster.sql("app", &function("select 'team:acme' = any (presence.tokens())", "sql"));
    let mut login = cluster.user("app_login");
    login.run(
        "begin; do $$ declare counts text := ''; begin
            perform presence.act_as('u', '{acme}'); counts := (select count(*) from presence.list('acme:x'));
            perform presence.act_as('u', '{globex}'); counts := counts || (select count(*) from presence.list('acme:x'));
            perform presence.act_as('u', '{acme}'); counts := counts || (select count(*) from presence.list('acme:x'));
            perform set_config('app.counts', counts, false); end $$; commit",
    );
    assert_eq!(login.value("select current_setting('app.counts')"), "101");
    cluster.assert_sound();
}

/// Another session commits between two statements of one function.
fn others_commit(cluster: &Cluster, bob: &mut Session) {
    let mut service = cluster.service();
    // A transaction with a newer id has already ended, so the next commit changes neither end of the
    // snapshot.
    let mut writer = cluster.service();
    writer.run("begin; insert into app.allowed values ('acme:x')");
    service.run("create table app.newer (); drop table app.newer");
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| {
            bob.run(
                "do $$ declare before bigint; begin
                    before := (select count(*) from presence.list('acme:x'));
                    perform set_config('application_name', 'waits', false);
                    while not exists (select from app.allowed) loop perform pg_sleep(0.01); end loop;
                    perform set_config('app.counts', before || ' ' || (select count(*) from presence.list('acme:x')), false);
                 end $$",
            );
            bob.value("select current_setting('app.counts')")
        });
        until("it has read once", || {
            service.is("select exists (select from pg_stat_activity where application_name = 'waits')")
        });
        writer.run("commit");
        assert_eq!(reads.join().expect("no panic"), "0 1");
    });
}
