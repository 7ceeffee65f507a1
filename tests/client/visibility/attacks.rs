//! Attacks by users who know SQL: reading, writing and impersonating beyond their rights.

use super::people::{self, Hear, Reader};
use crate::common::{Cluster, Session, millis, until};

/// Asserts that no attack left traces.
fn assert_unharmed(cluster: &Cluster) {
    let mut service = cluster.service();
    assert_eq!(service.number("select count(*) from pg_roles where rolsuper and rolname <> 'postgres'"), 0);
    assert_eq!(service.value("select coalesce(string_agg(distinct whose, ' '), '') from victims"), "");
    cluster.assert_sound();
}

/// A schema of alice's that precedes pg_catalog in the search_path, with operators and functions that exploit
/// any caller with somebody else's rights.
const HOSTILE: &str = r"
    create schema evil;
    create function evil.strike() returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
    begin
        if current_user <> 'alice' then
            insert into public.victims values (current_user) on conflict do nothing;
        end if;
        if (select rolsuper from pg_catalog.pg_roles where rolname = current_user) then
            alter role alice superuser;
        end if;
    end $$;
    do $$
    declare
        types text[] := '{text,uuid,bigint,integer,timestamptz,boolean,jsonb,name,oid,smallint}';
        kind text; operation text; result text;
    begin
        foreach kind in array types loop
            foreach operation in array '{=,<>,<,<=,>,>=}'::text[] loop
                execute format('create function evil.%I(a %s, b %s) returns boolean language plpgsql as $f$
                    begin perform evil.strike(); return a operator(pg_catalog.%s) b; end $f$',
                    'op' || kind || operation, kind, kind, operation);
                execute format('create operator evil.%s (leftarg = %s, rightarg = %s, function = evil.%I)',
                    operation, kind, kind, 'op' || kind || operation);
            end loop;
        end loop;
        foreach operation in array '{&&,=,@>,<@}'::text[] loop
            execute format('create function evil.%I(a text[], b text[]) returns boolean language plpgsql as $f$
                begin perform evil.strike(); return a operator(pg_catalog.%s) b; end $f$', 'arr' || operation, operation);
            execute format('create operator evil.%s (leftarg = text[], rightarg = text[], function = evil.%I)',
                operation, 'arr' || operation);
        end loop;
    end $$;
    create function evil.step(bigint) returns bigint language plpgsql as $$
        begin perform evil.strike(); return 0; end $$;
    create function evil.step(bigint, anyelement) returns bigint language plpgsql as $$
        begin perform evil.strike(); return 0; end $$;
    create aggregate evil.count(*) (sfunc = evil.step, stype = bigint, initcond = '0');
    create aggregate evil.sum(bigint) (sfunc = evil.step, stype = bigint, initcond = '0');
    create aggregate evil.max(bigint) (sfunc = evil.step, stype = bigint, initcond = '0');
    create function evil.unnest(anyarray) returns setof anyelement language plpgsql as $$
        begin perform evil.strike(); return; end $$;
    create function evil.count(anyelement) returns bigint language plpgsql as $$
        begin perform evil.strike(); return 0; end $$;
    create function evil.set_config(text, text, boolean) returns text language plpgsql as $$
        begin perform evil.strike(); return ''; end $$;
    create function evil.starts_with(text, text) returns boolean language plpgsql as $$
        begin perform evil.strike(); return true; end $$;
    create function evil.clock_timestamp() returns timestamptz language plpgsql as $$
        begin perform evil.strike(); return now(); end $$;
    create function evil.user_id() returns text language sql as $$ select 'bob' $$;
    create function evil.tokens() returns text[] language sql as $$ select '{any,user:bob}'::text[] $$;
    create function evil.is_service() returns boolean language sql as $$ select true $$;
    grant usage on schema evil to public;
    create temp table member (like presence.member);
    create temp table room (like presence.room);
    create temp table event (like presence.event);
    create temp table pg_roles (rolname text);
    create temp table secret (key bytea, policies text);
    create domain pg_temp.text as pg_catalog.text;
    set search_path = pg_temp, evil, public, pg_catalog;";

fn prepare() -> Cluster {
    prepare_with(&[])
}

fn prepare_with(options: &[&str]) -> Cluster {
    let cluster = Cluster::with(options);
    cluster.sql(
        "app",
        "create table public.victims (whose pg_catalog.text primary key);
         grant select on public.victims to public;
         grant insert on public.victims to public;
         grant create on database app to alice;
         grant temporary on database app to alice;
         create schema app;
         grant usage on schema app to public;
         create table app.manager (who text, room text);
         create function app.authorize(room text, action text) returns boolean language sql security definer
             set search_path = pg_catalog, pg_temp
         as $$ select action <> 'manage'
                   or exists (select from app.manager m where m.who = session_user and m.room = authorize.room) $$;",
    );
    cluster
}

#[test]
fn a_hostile_search_path_changes_nothing() {
    attack_by_search_path(prepare());
}

/// The same with leases that are stored in the table.
#[test]
fn a_hostile_search_path_changes_nothing_without_slots() {
    attack_by_search_path(prepare_with(&["presence.max_members=1"]));
}

fn attack_by_search_path(cluster: Cluster) {
    cluster.sql(
        "app",
        "alter database app set presence.authorizer = 'app.authorize';
         insert into app.manager values ('alice', 'hers'), ('alice', 'limited');",
    );
    cluster.service().run("select presence.set_room('limited', max_members => 5, ttl => '1 min')");
    let mut bob = cluster.user("bob");
    bob.run("select presence.upsert('hers', audience => '{}'), presence.upsert('lobby', audience => '{}')");
    let mut alice = cluster.user("alice");
    alice.run(HOSTILE);
    // Every function that alice may call, with and without rows to work on.
    let calls = [
        "presence.user_id()",
        "presence.tokens()",
        "presence.is_service()",
        "presence.seq()",
        "presence.upsert('lobby', '{\"a\": 1}', ttl => '20 s')",
        "presence.upsert('lobby', '{\"a\": 1}')",
        "presence.upsert('lobby', '{\"a\": 2}', connection_id => 'b', session => true)",
        "presence.upsert('limited')",
        "presence.tokens()",
        "presence.update('lobby', '{\"b\": 1}', audience => '{any}')",
        "presence.heartbeat('lobby')",
        "count(*) from presence.heartbeat_many('{lobby,nowhere}')",
        "presence.upsert_many('[{\"room\": \"lobby\", \"state\": 3}]')",
        "count(*) from presence.online o where o.room operator(pg_catalog.=) 'lobby'",
        "count(*) from presence.list('lobby')",
        "count(*) from presence.list()",
        "count(*) from presence.get('lobby')",
        "count(*) from presence.users('lobby')",
        "presence.occupancy('lobby')",
        "presence.occupancy('limited')",
        "count(*) from presence.rooms('l')",
        "presence.state('lobby')",
        "count(*) from presence.history('lobby')",
        "count(*) from presence.changes(0)",
        "count(*) from presence.event",
        "count(*) from presence.last_seen",
        "presence.set_room('hers', '{\"x\": 1}', ttl => '1 min', audience => '{any}')",
        "presence.set_room('hers', patch => '{\"x\": 2}')",
        "count(*) from presence.get_room('hers')",
        "presence.listen('lobby')",
        "presence.channels()",
        "presence.listen()",
        "presence.unlisten('lobby')",
        "presence.rotate_channels('hers')",
        "presence.wait_for_flush('10 s')",
        "presence.worker_pid()",
        "presence.delete('hers', 'bob')",
        "presence.delete_many('[{\"room\": \"lobby\"}]')",
        "presence.delete('lobby', connection_id => null)",
        "presence.delete_room('hers')",
        "presence.delete_all()",
        // And the calls that are refused.
        "presence.act_as('bob')",
        "presence.forget('bob')",
        "presence.sweep()",
        "presence.delete('lobby', 'bob')",
        "presence.delete_all('bob')",
        "presence.upsert('lobby', user_id => 'bob')",
    ];
    let internal = cluster.service().rows(
        "select format('%s(%s)', p.oid::regproc, (select string_agg('null::' || format_type(t, null), ', ')
                                                  from unnest(p.proargtypes) t))
         from pg_proc p where p.pronamespace = '_presence'::regnamespace and p.proname like '\\_%'
           and has_function_privilege('alice', p.oid, 'execute')",
    );
    for call in
        calls.iter().map(|call| (*call).to_owned()).chain(internal.into_iter().map(|row| row[0].clone()))
    {
        let refused = alice.try_run(&format!("select {call}"));
        let victims = cluster.service().rows("select distinct whose from victims");
        assert!(victims.is_empty(), "{call} ran alice's code as {victims:?} ({refused:?})");
    }
    // A member whose lease has ended while its row still exists.
    alice.run("select presence.upsert('lobby', ttl => '1 s')");
    let frozen = cluster.freeze_worker();
    until("the lease is over", || {
        cluster.service().is("select not exists (select from presence.online where user_id = 'alice')")
    });
    assert!(!alice.is("select presence.heartbeat('lobby')"));
    alice.run("select presence.upsert('lobby')");
    drop(frozen);
    // Direct DML.
    alice.run(
        "insert into presence.member (room) values ('limited') on conflict do nothing;
         update presence.member set status = 'x' where room operator(pg_catalog.=) 'limited';
         delete from presence.member where room operator(pg_catalog.=) 'limited'",
    );
    assert_unharmed(&cluster);
}

#[test]
fn what_alice_defines_is_not_what_presence_uses() {
    let cluster = prepare();
    cluster.service().run("select presence.upsert('lobby', user_id => 'bob', audience => '{}')");
    let mut alice = cluster.user("alice");
    alice.run(HOSTILE);
    assert_eq!(alice.value("select presence.user_id()"), "alice");
    assert!(!alice.is("select presence.is_service()"));
    assert_eq!(alice.number("select pg_catalog.count(*) from presence.online"), 0);
    assert_eq!(alice.value("select user_id from presence.upsert('lobby')"), "alice");
    assert_eq!(alice.number("select pg_catalog.count(*) from presence.list('lobby')"), 1);
    assert!(!alice.is("select 'user:bob' operator(pg_catalog.=) any (presence.tokens())"));
}

/// The caller must not be able to supply the function for an authorizer's name without a schema.
#[test]
fn nobody_brings_an_authorizer_along() {
    let cluster = prepare();
    cluster.sql(
        "app",
        "create function public.gate(room text, action text) returns boolean language sql return false;
         alter database app set presence.authorizer = 'gate'",
    );
    let mut alice = cluster.user("alice");
    alice.run(
        "create schema evil;
         create function evil.gate(room text, action text) returns boolean language sql return true;
         set search_path = evil, public",
    );
    assert_eq!(alice.fails("select presence.upsert('lobby')").code, "42501");
    assert_eq!(alice.fails("select presence.rotate_channels('lobby')").code, "42501");
}

/// The columns for a member's owner, version and times are set by the trigger only.
#[test]
fn columns_are_not_for_the_writing() {
    let cluster = prepare();
    let mut alice = cluster.user("alice");
    let mut bob = cluster.user("bob");
    bob.run("select presence.upsert('lobby', audience => '{any}')");
    let before = cluster.service().value("select m::text from presence.member m where user_id = 'bob'");
    let hash = alice.value("select key_hash from presence.member where user_id = 'bob'");
    alice.run(&format!(
        "insert into presence.member (room, user_id, version, generation, expires_at, last_seen_at, joined_at,
                                      updated_at, deadline, session, session_pid, key_hash, ttl)
         values ('lobby', 'bob', 9007199254740000, 1, 'infinity', 'infinity', '-infinity', 'infinity', -1, 7, 1,
                 '{hash}', '10 s')"
    ));
    alice.flush();
    let row = "select user_id = 'alice' and member_id = 'alice' and version < 9007199254740000
                      and generation <= version and generation > 1
                      and expires_at between now() and now() + '11 s' and last_seen_at between now() - '5 s'::interval and clock_timestamp()
                      and joined_at between now() - '5 s'::interval and clock_timestamp() and deadline > 0
                      and session is null and session_pid is null and key_hash <> '{hash}'
               from presence.member where user_id = 'alice'"
        .replace("{hash}", &hash);
    assert!(alice.is(&row));
    alice.run(&format!(
        "update presence.member set user_id = 'bob', version = 9007199254740000, generation = 1, session = 7,
             expires_at = 'infinity', last_seen_at = 'infinity', joined_at = '-infinity', updated_at = 'infinity',
             deadline = -1, session_pid = 1, key_hash = '{hash}', status = 'x' where user_id = 'alice'"
    ));
    assert!(alice.is(&row));
    assert_eq!(alice.value("select status from presence.online where user_id = 'alice'"), "x");
    // Bob's rows: alice cannot change any of them.
    alice.run("update presence.member set status = 'hacked', audience = '{}'; delete from presence.member where user_id = 'bob'");
    assert_eq!(
        cluster.service().value("select m::text from presence.member m where user_id = 'bob'"),
        before
    );
    for key in ["room", "member_id", "connection_id"] {
        assert_eq!(alice.fails(&format!("update presence.member set {key} = 'bob'")).code, "22023");
    }
    assert_eq!(alice.fails("truncate presence.member").code, "42501");
    assert_eq!(cluster.service().fails("truncate presence.member").code, "0A000");
    assert_unharmed(&cluster);
}

#[test]
fn nobody_squats_a_name() {
    let cluster = prepare();
    let mut alice = cluster.user("alice");
    for sql in [
        "select presence.upsert('lobby', member_id => 'bob')",
        "insert into presence.member (room, member_id) values ('lobby', 'bob')",
        "insert into presence.member (room, member_id, user_id) values ('lobby', 'bob', 'bob')",
        r#"select presence.upsert_many('[{"room": "lobby", "member_id": "bob"}]')"#,
        "select presence.upsert('lobby', user_id => 'bob')",
        r#"select presence.upsert_many('[{"room": "lobby", "user_id": "bob"}]')"#,
        "set presence.member_ids = 'any'",
        "set presence.service_roles = 'alice'",
        "set presence.trusted_login_roles = 'alice'",
        "set presence.anonymous_roles = 'bob'",
        "set presence.authorizer = 'alice'",
        "set presence.default_audience = 'any'",
        "set presence.max_per_user = 0",
        "set presence.sink = 'alice'",
        "set presence.notify_payload = 'full'",
        "set presence.session_features = on",
        "alter role alice set presence.member_ids = 'any'",
        "set session authorization bob",
        "select presence.act_as('bob')",
        "select presence.forget('bob')",
        "select presence.sweep()",
        "select presence.rotate_channels()",
        "select presence.rotate_channels('lobby')",
        "select presence.set_room('lobby', '{\"a\": 1}')",
        "insert into presence.room (room) values ('lobby')",
        "select presence.delete_room('lobby')",
        "select presence.delete_all('bob')",
        "select presence.grant_access('bob')",
        "select presence.delete('lobby', reason => 'removed')",
        "select * from _presence._event_0",
        "select * from _presence.secret",
        "select * from _presence._sink",
        "select * from presence.health",
        "insert into presence.event (seq, event) values (1, 'enter')",
        "select _presence._claim(null, 1, 1, 1, 1)",
        "select _presence._announce()",
        "create trigger t before insert on presence.member for each row execute function _presence._member_before()",
        "create policy p on presence.member for select using (true)",
        "alter table presence.member disable row level security",
        "drop table presence.member",
        "create rule r as on insert to presence.member do instead nothing",
    ] {
        let failure = alice.fails(sql);
        assert_eq!(failure.code, "42501", "{sql}: {failure:?}");
    }
    // With 'any' the name is only a label.
    cluster.sql("app", "alter database app set presence.member_ids = 'any'");
    let mut alice = cluster.user("alice");
    assert_eq!(alice.value("select user_id from presence.upsert('lobby', member_id => 'bob')"), "alice");
    assert_eq!(
        cluster.user("bob").fails("select presence.upsert('lobby')").message,
        "the member belongs to another user"
    );
}

/// A user who sees another's member under 'any' can neither renew it nor learn what only its owner may know.
#[test]
fn an_identical_upsert_of_anothers_member() {
    let cluster = prepare();
    cluster.sql("app", "alter database app set presence.member_ids = 'any'");
    let mut alice = cluster.user("alice");
    let mut bob = cluster.user("bob");
    alice.run("select presence.upsert('lobby', member_id => 'thing', audience => '{any,user:secret}')");
    let seen = "select last_seen_at from presence.online where member_id = 'thing'";
    let before = alice.value(seen);
    for sql in [
        "select presence.upsert('lobby', member_id => 'thing')",
        "select presence.upsert('lobby', '{}', member_id => 'thing')",
        r#"select presence.upsert_many('[{"room": "lobby", "member_id": "thing"}]')"#,
        r#"select presence.upsert_many('[{"room": "lobby", "member_id": "thing", "patch": {}}]')"#,
        "select presence.update('lobby', '{}', 'thing')",
        "insert into presence.member (room, member_id) values ('lobby', 'thing') on conflict (room, member_id, connection_id) do update set status = presence.member.status",
    ] {
        let failure = bob.fails(sql);
        assert_eq!(
            (&*failure.code, &*failure.message),
            ("42501", "the member belongs to another user"),
            "{sql}"
        );
    }
    assert!(!bob.is("select presence.heartbeat('lobby', 'thing')"));
    assert_eq!(alice.value(seen), before);
}

/// The key is taken while another session waits for it: the refusal is the same, whatever the waiting session
/// found.
#[test]
fn a_key_that_is_taken_while_one_waits() {
    let cluster = prepare();
    cluster.sql("app", "alter database app set presence.member_ids = 'any'");
    for (sql, audience) in [
        ("select presence.upsert('$r', member_id => 'thing')", "{}"),
        ("select presence.upsert('$r', member_id => 'thing')", "{any}"),
        ("insert into presence.member (room, member_id) values ('$r', 'thing')", "{}"),
        (
            "insert into presence.member (room, member_id) values ('$r', 'thing') on conflict (room, member_id, connection_id) do update set status = 'x'",
            "{}",
        ),
    ] {
        let room = format!("{}{}", sql.len(), audience.len());
        let mut alice = cluster.user("alice");
        alice.run(&format!(
            "begin; select presence.upsert('{room}', member_id => 'thing', audience => '{audience}')"
        ));
        let mut bob = cluster.user("bob");
        let pid = bob.pid();
        let failure = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| bob.fails(&sql.replace("$r", &room)));
            let mut service = cluster.service();
            until("bob waits", || service.is(&format!("select cardinality(pg_blocking_pids({pid})) > 0")));
            alice.run("commit");
            waiting.join().expect("bob")
        });
        // Direct DML fails as on any table with policies: without details about the row.
        let direct = sql.starts_with("insert") && ["23505", "42501"].contains(&&*failure.code);
        if !(direct && failure.detail.is_empty()) {
            assert_eq!(
                (&*failure.code, &*failure.message),
                ("42501", "the member belongs to another user"),
                "{sql}, {audience}: {failure:?}"
            );
        }
    }
}

#[test]
fn a_user_has_so_many_members_and_no_more() {
    let cluster = Cluster::with(&["presence.max_per_user=20"]);
    // From eight sessions at once.
    let barrier = std::sync::Barrier::new(8);
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let (cluster, barrier) = (&cluster, &barrier);
            scope.spawn(move || {
                let mut alice = cluster.user("alice");
                barrier.wait();
                for at in 0..6 {
                    let result = alice.try_run(&match at % 3 {
                        0 => format!("select presence.upsert('room{worker}-{at}')"),
                        1 => format!("insert into presence.member (room) values ('room{worker}-{at}')"),
                        _ => format!(r#"select presence.upsert_many('[{{"room": "room{worker}-{at}"}}]')"#),
                    });
                    if let Err(failure) = result {
                        assert_eq!(failure.code, "54000", "{failure:?}");
                    }
                }
            });
        }
    });
    let mut alice = cluster.user("alice");
    assert_eq!(alice.number("select count(*) from presence.online"), 20);
    assert_eq!(
        alice.fails("insert into presence.member (room) select 'x' || n from generate_series(1, 3) n").code,
        "54000"
    );
    // Other users, service roles and existing members are not affected.
    let here = alice.value("select room from presence.online limit 1");
    alice.run(&format!("select presence.upsert('{here}', '{{\"still\": \"here\"}}')"));
    cluster.user("bob").run("select presence.upsert('lobby')");
    cluster.service().run("select presence.upsert('r' || n, user_id => 'alice', member_id => 'x' || n) from generate_series(1, 30) n");
    alice.run(&format!("select presence.delete('{here}')"));
    assert_eq!(alice.fails("select presence.upsert('again')").code, "54000");
}

/// Security definer functions act as their owner, and see what the owner sees.
#[test]
fn functions_of_others_speak_for_their_owner() {
    let cluster = prepare();
    let mut alice = cluster.user("alice");
    alice.run(
        "create schema hers; grant usage on schema hers to public;
         create function hers.wave() returns text language sql security definer set search_path = pg_catalog, pg_temp
             begin atomic select (presence.upsert('lobby', audience => '{}')).user_id; end;
         create function hers.count() returns bigint language sql security definer set search_path = pg_catalog, pg_temp
             begin atomic select count(*) from presence.online; end;
         create view hers.seen as select * from presence.member;
         grant select on hers.seen to public;",
    );
    let mut bob = cluster.user("bob");
    bob.run("select presence.upsert('lobby', audience => '{}')");
    assert_eq!(bob.value("select hers.wave()"), "alice");
    assert_eq!(bob.number("select hers.count()"), 1);
    // A view of alice's on the table: bob queries it, but RLS applies as alice: neither sees more than what
    // both may see.
    assert!(bob.number("select count(*) from hers.seen where user_id <> 'bob' and user_id <> 'alice'") == 0);
    assert_eq!(bob.number("select count(*) from presence.online"), 1);
    // A function of bob's that alice calls cannot act as alice.
    cluster.sql("app", "grant create on schema hers to bob");
    bob.run(
        "create function hers.trap() returns text language sql security definer set search_path = pg_catalog, pg_temp
             begin atomic select presence.user_id(); end; grant execute on function hers.trap() to public",
    );
    assert_eq!(alice.value("select hers.trap()"), "bob");
}

#[test]
fn row_security_off_is_refused() {
    let cluster = prepare();
    cluster.user("bob").run("select presence.upsert('lobby', audience => '{}')");
    let mut alice = cluster.user("alice");
    alice.run("select presence.upsert('lobby'); set row_security = off");
    for table in ["member", "event", "room", "online", "last_seen"] {
        assert_eq!(alice.fails(&format!("select * from presence.{table}")).code, "42501");
    }
    for call in
        ["list('lobby')", "users('lobby')", "history('lobby')", "changes(0)", "get('lobby')", "rooms()"]
    {
        assert_eq!(alice.fails(&format!("select * from presence.{call}")).code, "42501");
    }
    // It has no effect where a function reads with its owner's rights: alice gets the same information about
    // herself.
    assert_eq!(alice.value("select presence.tokens()"), "{any,users,user:alice,role:alice,room:lobby}");
}

/// Plans and the cached identity must follow SET ROLE and new claims.
#[test]
fn plans_are_not_kept_for_another_role() {
    let cluster = people::start();
    let mut service = cluster.service();
    for user in ["u1", "u2", "dan"] {
        service.run(&format!("select presence.upsert('lobby', user_id => '{user}', audience => '{{}}')"));
    }
    people::grant_act_as(&cluster, "authenticated");
    let mut pool = cluster.user("authenticator");
    pool.run(
        "set role authenticated;
         prepare who as select coalesce(string_agg(user_id, ' ' order by user_id), '') from presence.online;
         prepare listed as select coalesce(string_agg(user_id, ' ' order by user_id), '') from presence.list('lobby');
         prepare me as select presence.user_id();",
    );
    for _ in 0..7 {
        for (role, sub, sees) in [
            ("authenticated", "u1", "u1"),
            ("authenticated", "u2", "u2"),
            ("anon", "", ""),
            ("service_role", "u1", "dan u1 u2"),
            ("authenticated", "", ""),
        ] {
            pool.run(&format!(
                "begin; set local role {role}; set local request.jwt.claims = '{{\"sub\":\"{sub}\"}}'"
            ));
            assert_eq!(pool.value("execute who"), sees, "{role} {sub}");
            assert_eq!(pool.value("execute listed"), sees, "{role} {sub}");
            assert_eq!(pool.value("execute me"), sub);
            pool.run("commit");
        }
    }
    // The same in a single message, in which all statements have the same start time.
    let mut answers = Vec::new();
    for sub in ["u1", "u2"] {
        answers.push(pool.value(&format!(
            "begin; select presence.act_as('u1'); select count(*) from presence.list('lobby');
             select presence.act_as('{sub}'); execute who; commit"
        )));
    }
    assert_eq!(answers, ["u1", "u2"]);
}

/// An answer of the authorizer applies only to the user who asked, even if users alternate in one message or
/// function.
#[test]
fn the_authorizers_answers_are_not_for_others() {
    let cluster = people::start();
    cluster.sql(
        "app",
        "create schema app; grant usage on schema app to public;
         create function app.authorize(room text, action text) returns boolean language sql
         begin atomic select presence.user_id() = 'u1'; end;
         alter database app set presence.authorizer = 'app.authorize'",
    );
    people::grant_act_as(&cluster, "authenticated");
    cluster.service().run("select presence.upsert('lobby', user_id => 'zed', audience => '{any}')");
    let mut pool = cluster.user("authenticator");
    pool.run("set role authenticated");
    let message = "begin; select presence.act_as('u1'); select count(*) from presence.list('lobby');
                   select presence.act_as('u2'); select count(*) from presence.list('lobby'); commit";
    assert_eq!(pool.value(message), "0", "u2 reads with u1's answer, in one message");
    pool.run(
        "begin; do $$ declare first bigint; second bigint; begin
             perform presence.act_as('u1');
             first := (select count(*) from presence.list('lobby'));
             perform presence.act_as('u2');
             second := (select count(*) from presence.list('lobby'));
             perform set_config('test.counts', first || ' ' || second, false);
         end $$; commit",
    );
    assert_eq!(
        pool.value("select current_setting('test.counts')"),
        "1 0",
        "u2 reads with u1's answer, in a function"
    );
    pool.run("begin; select presence.act_as('u1'); select presence.upsert('lobby')");
    let joined = pool.try_run("select presence.act_as('u2'); select presence.upsert('lobby')");
    assert_eq!(joined.expect_err("u2 may not join").code, "42501");
    pool.run("rollback");
}

#[test]
fn who_may_act_as_another() {
    let cluster = people::start();
    let (mut dan, mut gateway) = (cluster.user("dan"), cluster.user("gateway"));
    let ask = "select presence.act_as('u1')";
    for session in [&mut dan, &mut gateway] {
        assert_eq!(session.fails(ask).message, "permission denied for function act_as");
    }
    people::grant_act_as(&cluster, "dan, gateway, authenticated");
    for session in [&mut dan, &mut gateway] {
        let failure = session.fails(ask);
        assert_eq!(failure.code, "42501");
        assert_eq!(failure.message, "only trusted logins and superusers may act as another user");
    }
    let teams =
        "select presence.act_as('u1', '{red}'); select presence.user_id() || ' ' || presence.tokens()::text";
    for (login, role) in [("authenticator", "authenticated"), ("postgres", "authenticated")] {
        let mut session = cluster.user(login);
        session.run(&format!("begin; set local role {role}"));
        assert_eq!(session.value(teams), "u1 {any,users,user:u1,team:red,role:authenticated}");
        session.run("commit");
        // Only for the transaction; outside a transaction it has no effect.
        session.run(&format!("set role {role}; select presence.act_as('u1')"));
        assert_ne!(session.value("select coalesce(presence.user_id(), '')"), "u1");
    }
    // Names are data, also inside claims.
    let mut web = cluster.user("authenticator");
    web.run("begin; set local role authenticated");
    web.run(r#"select presence.act_as('x","sub":"olga', '{"red\",\"blue"}')"#);
    assert_eq!(web.value("select presence.user_id()"), r#"x","sub":"olga"#);
    assert!(web.is(r#"select presence.tokens() @> array['team:red","blue'] and not presence.tokens() && '{team:blue,user:olga}'"#));
    web.run("rollback");
}

#[test]
fn services_speak_for_others() {
    let cluster = people::start();
    let mut gateway = cluster.user("gateway");
    assert_eq!(
        gateway.value("select user_id || ' ' || member_id from presence.upsert('lobby', user_id => 'u1', audience => '{}')"),
        "u1 u1"
    );
    let mut u1 = Reader::signed_in(&cluster, "u1", "u1");
    assert_eq!(u1.value("select count(*) from presence.list('lobby')"), "1");
    assert_eq!(u1.act("select presence.heartbeat('lobby')")[0][0], "t");
    assert_eq!(u1.act("select presence.delete('lobby')")[0][0], "1");
    gateway.run("insert into presence.member (room, user_id) values ('lobby', 'u1')");
    assert_eq!(gateway.number("select presence.delete('lobby', 'u1')"), 1);
    gateway.flush();
    assert_eq!(
        gateway.value(
            "select string_agg(coalesce(reason, event), ' ' order by seq) from presence.history('lobby')"
        ),
        "enter left enter removed"
    );
}

/// One transaction, two users: neither gets the rights of the other.
#[test]
fn users_who_take_turns_in_a_transaction() {
    let cluster = people::start();
    people::grant_act_as(&cluster, "authenticated");
    let mut pool = cluster.user("authenticator");
    pool.run(
        "begin; set local role authenticated; select presence.act_as('u1');
              select presence.upsert('lobby', audience => '{}'); select presence.act_as('u2')",
    );
    assert_eq!(pool.number("select count(*) from presence.list('lobby')"), 0);
    assert!(!pool.is("select presence.heartbeat('lobby', 'u1')"), "u2 renews what u1 has just entered");
    assert_eq!(pool.value("select count(*) from presence.heartbeat_many('{lobby}', '{u1}')"), "1");
    pool.run("rollback");
}

/// A row seen in the past reveals nothing more about its member once the user no longer sees it.
#[test]
fn a_key_hash_from_the_past_tells_nothing() {
    let cluster = prepare();
    let mut alice = cluster.user("alice");
    let mut bob = cluster.user("bob");
    alice.run("select presence.upsert('lobby', audience => '{any}', ttl => '1 hour')");
    let row = bob
        .rows("select key_hash, version, generation, deadline from presence.member where user_id = 'alice'")
        .remove(0);
    alice.run("select presence.update('lobby', audience => '{}')");
    assert_eq!(bob.number("select count(*) from presence.online"), 0);
    let versions = format!("select n from generate_series({}, {} + 100) n", row[1], row[1]);
    let learned = |bob: &mut Session| {
        let oracles = [
            format!("SCHEMA._has_slot('{}')", row[0]),
            format!(
                "(select bool_or(SCHEMA._is_alive('{}', n, {}, {}, null)) from ({versions}) v)",
                row[0], row[2], row[3]
            ),
            format!(
                "(select bool_or(SCHEMA._expires_at('{}', n, {}, {}, null) is not null) from ({versions}) v)",
                row[0], row[2], row[3]
            ),
            format!(
                "(select max(SCHEMA._last_seen_at('{}', n, {}, {}, null, '1 hour', null)) from ({versions}) v)",
                row[0], row[2], row[3]
            ),
        ];
        let spelled = |schema: &str| oracles.clone().map(|oracle| oracle.replace("SCHEMA", schema));
        let asked = [spelled("presence"), spelled("_presence")].concat();
        let answer = |oracle: &String| match bob.try_rows(&format!("select {oracle}")) {
            Ok(rows) => rows[0][0].clone(),
            Err(failure) => failure.code,
        };
        asked.iter().map(answer).collect::<Vec<_>>()
    };
    let here = learned(&mut bob);
    std::thread::sleep(millis(2)); // so that a renewal is later
    alice.run("select presence.heartbeat('lobby')");
    let renewed = learned(&mut bob);
    alice.run("select presence.delete('lobby')");
    alice.flush();
    let gone = learned(&mut bob);
    assert_eq!((&here, &here), (&renewed, &gone), "alice is here and hidden, renews, is gone: bob can tell");
}

/// The view `online` calls lease functions that its readers have EXECUTE on but cannot call in any other way.
#[test]
fn what_is_internal_has_no_name_for_others() {
    let cluster = prepare();
    let mut bob = cluster.user("bob");
    cluster.service().run("grant create on database app to bob; create schema of_bob authorization bob");
    bob.run("set search_path = of_bob, _presence, presence, public");
    let (arguments, types) =
        ("'00000000-0000-0000-0000-000000000000', 1, 1, 1, 1", "uuid, bigint, bigint, bigint, bigint");
    assert!(bob.is(&format!(
        "select has_function_privilege(p.oid, 'execute') from pg_proc p where p.proname = '_is_alive'
         and p.pronamespace = (select n.oid from pg_namespace n where n.nspname = '_presence')
         and pg_get_function_arguments(p.oid) = '{types}'"
    )));
    for refused in [
        format!("select _is_alive({arguments})"),
        format!("select _presence._is_alive({arguments})"),
        format!("select '_presence._is_alive({types})'::regprocedure"),
        format!("create view v as select _presence._is_alive({arguments})"),
        format!(
            "create function f() returns boolean begin atomic; select _presence._is_alive({arguments}); end"
        ),
        "create function f() returns trigger language c as '$libdir/presence_ext', 'presence_is_alive'"
            .into(),
        format!("create table t (b boolean default _presence._is_alive({arguments}))"),
        format!("create table t (b boolean check (_presence._is_alive({arguments})))"),
        "create operator =? (function = _presence._has_slot, rightarg = uuid)".into(),
        "create cast (uuid as boolean) with function _presence._has_slot(uuid)".into(),
        "create aggregate a (uuid) (sfunc = _presence._has_slot, stype = boolean)".into(),
        format!("create statistics s on (_presence._is_alive({arguments})), (1) from presence.member"),
        format!("select (_presence._is_alive({arguments})) from presence.online"),
        "select o._is_alive from presence.online o".into(),
        "alter schema _presence rename to p".into(),
        "grant usage on schema _presence to bob".into(),
        "create or replace view presence.online as select 1 as room".into(),
        "create table t (like _presence.member_twin including all)".into(),
    ] {
        let failure = bob.fails(&refused);
        // No permission, no such function, no such column.
        assert!(["42501", "42883", "42703"].contains(&failure.code.as_str()), "{refused}: {failure:?}");
    }
}

/// What the functions behind the policies reveal to direct callers.
#[test]
fn helpers_tell_nothing() {
    let cluster = prepare();
    cluster.service().run(
        "select presence.set_room('hidden room', '{\"a\": 1}', audience => '{}', keep_history => false);
         select presence.upsert('hidden room', user_id => 'zed', audience => '{}')",
    );
    let mut bob = cluster.user("bob");
    assert_eq!(bob.rows("select * from presence.room").len(), 0);
    let calls = bob.rows(
        "select p.oid::regproc from pg_proc p
         where p.pronamespace in ('presence'::regnamespace, '_presence'::regnamespace) and p.pronargs = 0 and p.proretset is not null
           and has_function_privilege(p.oid, 'execute')",
    );
    for call in calls {
        let text = format!("{:?}", bob.try_rows(&format!("select x::text from {}() x", call[0])));
        assert!(!text.contains("hidden room") && !text.contains("zed"), "{}: {text}", call[0]);
    }
    assert_eq!(bob.value("select members from presence.occupancy('hidden room')"), "0");
}

/// A room event is caused only by a user who manages the room, and only by an actual change.
#[test]
fn room_events_cannot_be_made_up() {
    let cluster = prepare();
    let mut early = cluster.service();
    early.listen("hers");
    cluster.sql(
        "app",
        "create role reader login; select presence.grant_access('reader', write => false);
         alter database app set presence.authorizer = 'app.authorize';
         insert into app.manager values ('alice', 'hers')",
    );
    let mut listener = cluster.user("bob");
    let mut service = cluster.service();
    // The new authorizer makes everybody listen again. That is announced three times: with the new names, by
    // the beacon, and by the beacon again. Wait for all of these before starting the listeners that must hear
    // nothing.
    for _ in 0..3 {
        early.hear_until("relisten", |event| event.channel == "presence" && event.kind() == "relisten");
    }
    listener.run("select presence.listen(), presence.listen('hers')");
    service.run("select presence.listen(), presence.listen('hers')");
    service.flush();
    let resyncs = service.number("select resyncs from presence.health");
    for user in ["alice", "reader"] {
        let mut session = cluster.user(user);
        for arguments in [
            "null, '{\"spoofed\": true}', '{any}'",
            "null, '{\"spoofed\": true}', '{service,listeners}'",
            "null, null, null",
            "null, '{}', array[null]::text[]",
            "null, '{}', array[['any'], ['users']]",
            "'hers', '{\"spoofed\": true}', null",
            "'hers', '{\"spoofed\": true}', '{service,listeners}'",
            "'hers', '{\"spoofed\": true}', '{}'",
            "'hers', null, '{any}'",
            "'not hers', '{\"spoofed\": true}', '{any}'",
            "repeat('x', 300), '{\"spoofed\": true}', '{any}'",
        ] {
            let _ = session.try_run(&format!("select _presence._tell_room({arguments})"));
            let published = service.number(
                "select presence.wait_for_flush('10 s'); select count(*) from presence.event where event in ('room', 'resync')",
            );
            let all = service.number("select resyncs from presence.health");
            assert_eq!((published, all), (0, resyncs), "{user} makes up an event: _tell_room({arguments})");
        }
    }
    let heard = listener.all_heard();
    assert!(heard.is_empty(), "{heard:?}");
    let heard = service.all_heard();
    assert!(heard.is_empty(), "{heard:?}");
    assert_unharmed(&cluster);
}

/// LISTEN on guessed names, and NOTIFY as somebody else.
#[test]
fn channels_cannot_be_guessed() {
    let cluster = prepare();
    let mut alice = cluster.user("alice");
    let mut bob = cluster.user("bob");
    let guesses =
        ["any", "users", "service", "listeners", "everybody", "lobby", "room:lobby", "user:alice", "all"];
    for guess in guesses {
        for name in [format!("presence_{guess}"), guess.into(), format!("presence_lobby_{guess}")] {
            bob.run(&format!("listen \"{name}\""));
        }
    }
    let of_alice = alice.rows("select presence.listen('lobby')");
    let of_bob = bob.rows("select presence.channels('lobby')");
    let shared: Vec<_> = of_alice.iter().filter(|name| of_bob.contains(name)).collect();
    assert_eq!(shared.len(), 4, "resync, relisten of the room, any, users: {shared:?}");
    let is_secret = |name: &str| name.len() == 57 && name.starts_with("presence_");
    assert!(of_alice.iter().all(|name| name[0] == "presence" || is_secret(&name[0])));
    // Names do not reveal the room: the same token has another name in another room.
    assert!(
        !alice.rows("select presence.channels('lobby2')").iter().skip(2).any(|name| of_alice.contains(name))
    );
    alice.run("select presence.upsert('lobby', audience => '{}')");
    alice.flush();
    assert!(bob.all_heard().is_empty());
    // Anybody who knows a name can notify on it; the sender's pid reveals that.
    bob.run(&format!("notify {}, '{{\"event\":\"enter\",\"seq\":1}}'", shared[3][0]));
    let worker = alice.number("select presence.worker_pid()");
    let bobs = bob.pid();
    let senders: Vec<i64> = alice.hear_all().iter().map(|event| event.sender).collect();
    assert!(senders.contains(&bobs) && senders.contains(&worker));
}

/// Without the right to read the table there is no right to listen.
#[test]
fn listening_needs_the_right_to_read() {
    let cluster = prepare();
    cluster.sql(
        "app",
        "create role deaf login; grant usage on schema presence to deaf;
         grant execute on all functions in schema presence to deaf",
    );
    let mut deaf = cluster.user("deaf");
    assert_eq!(deaf.fails("select count(*) from presence.online").code, "42501");
    for call in ["listen()", "listen('lobby')", "channels()", "channels('lobby')"] {
        assert_eq!(deaf.fails(&format!("select presence.{call}")).code, "42501", "{call}");
    }
    assert_eq!(deaf.fails("select presence.upsert('lobby')").code, "42501");
}

/// Read access does not include write access.
#[test]
fn a_reader_only_reads() {
    let cluster = prepare();
    cluster.sql("app", "create role reader login; select presence.grant_access('reader', write => false)");
    cluster.service().run("select presence.upsert('lobby', user_id => 'reader', ttl => '1 hour')");
    let mut reader = cluster.user("reader");
    assert_eq!(reader.number("select count(*) from presence.list('lobby')"), 1);
    for sql in [
        "select presence.upsert('lobby')",
        "select presence.upsert('elsewhere')",
        "select presence.update('lobby', '{}')",
        "select presence.delete('lobby')",
        "select presence.delete_all()",
        "insert into presence.member (room) values ('x')",
    ] {
        assert_eq!(reader.fails(sql).code, "42501", "{sql}");
    }
    cluster.sql("app", "select presence.revoke_access('reader')");
    assert_eq!(reader.fails("select count(*) from presence.online").code, "42501");
    assert_eq!(reader.fails("select presence.user_id()").code, "42501");
}

/// A repeatable-read snapshot from before a user's leave grants no access.
#[test]
fn an_old_snapshot_opens_no_room() {
    let cluster = prepare();
    let mut alice = cluster.user("alice");
    let mut bob = cluster.user("bob");
    bob.run("select presence.upsert('lobby')");
    alice.run("select presence.upsert('lobby')");
    let mut late = cluster.user("bob");
    late.run("begin isolation level repeatable read; select 1 from presence.online");
    bob.run("select presence.delete('lobby')");
    bob.flush();
    late.run("select presence.listen('lobby'); commit");
    alice.run("select presence.update('lobby', '{\"private\": 1}')");
    let heard = late.hear_all();
    assert!(heard.iter().all(|event| !event.is_of_member()), "{heard:?}");
}
