//! The fast paths are only for the schema as the extension created it, and for callers with full rights:
//! changes made to all tables alike, revoked rights, and the code around a verb have the same effect as in
//! plain SQL.

use crate::common::{Cluster, Session, until};

/// Applies the DDL to the twin of `member`, too, as a loop over all tables or an event trigger would.
fn to_both(service: &mut Session, ddl: &str) {
    for table in ["presence.member", "_presence.member_twin"] {
        service.run(&ddl.replace("%", table));
    }
}

const AUDIT: &str = "
    create table audit (what text, who text);
    grant insert on audit to public;
    create function audit() returns trigger language plpgsql as
        $$ begin insert into public.audit values (tg_op, current_user); return null; end $$;";

#[test]
fn what_is_made_for_all_tables_is_not_taken_for_ours() {
    let cluster = Cluster::start();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    service.run(AUDIT);
    alice.run("select presence.upsert('hall', '1', status => 'here')");

    to_both(
        &mut service,
        "create trigger zz after insert or update on % for each row execute function audit()",
    );
    alice.run("select presence.upsert('hall', '2'); select presence.upsert('side')");
    assert_eq!(service.rows("select * from audit"), [["UPDATE", "alice"], ["INSERT", "alice"]]);
    to_both(&mut service, "drop trigger zz on %");

    to_both(&mut service, "alter table % add column loud text generated always as (upper(status)) stored");
    alice.run("select presence.upsert('hall', status => 'quiet')");
    assert_eq!(service.value("select loud from presence.member where room = 'hall'"), "QUIET");
    to_both(&mut service, "alter table % drop column loud");

    to_both(&mut service, "alter table % add constraint small check (state <> '9')");
    assert_eq!(alice.fails("select presence.upsert('hall', '9')").code, "23514");
    to_both(&mut service, "alter table % drop constraint small");

    to_both(&mut service, "create index for_all on % (lower(status))");
    alice.run("select presence.upsert('hall', status => 'Here'); set enable_seqscan = off");
    assert_eq!(alice.number("select count(*) from presence.member where lower(status) = 'here'"), 1);
    service.run("drop index presence.for_all, _presence.for_all");

    to_both(&mut service, "alter table % disable trigger presence_after");
    service.flush();
    let seq = service.number("select presence.seq()");
    alice.run("select presence.upsert('hall', '10')");
    service.flush();
    assert_eq!(service.number("select presence.seq()"), seq, "as an UPDATE: nobody noted it");
    to_both(&mut service, "alter table % enable always trigger presence_after");

    to_both(&mut service, "create policy zz on % as restrictive for update using (false)");
    assert_eq!(alice.fails("select presence.upsert('hall', '11')").code, "42501");
    to_both(&mut service, "drop policy zz on %");
    to_both(&mut service, "alter policy member_change on % to bob");
    assert_eq!(alice.fails("select presence.upsert('hall', '11')").code, "42501");
    to_both(&mut service, "alter policy member_change on % to public");

    // Everything is as it was: the fast path is used again.
    let before = service.number("select fast_writes from presence.health");
    alice.run("select presence.upsert('hall', '12')");
    if service.is("select current_setting('presence.fast_path')::boolean") {
        assert_eq!(service.number("select fast_writes from presence.health"), before + 1);
    }
    cluster.assert_sound();
}

#[test]
fn a_policy_for_all_tables_closes_log_and_channels() {
    let cluster = Cluster::start();
    let (mut alice, mut bob, mut service) = (cluster.user("alice"), cluster.user("bob"), cluster.service());
    to_both(&mut service, "create policy zz on % as restrictive for select using (user_id = current_user)");
    alice.run("select presence.upsert('hall', '{\"secret\": 1}', audience => '{any}')");
    bob.listen("hall");
    alice.run("select presence.upsert('hall', '{\"secret\": 2}')");
    alice.flush();
    let heard = bob.hear();
    assert!(!heard.is_empty() && heard.iter().all(|event| event.kind() == "changes"), "{heard:?}");
    assert!(bob.rows("select * from presence.history('hall')").is_empty());
    assert_eq!(bob.rows("select * from presence.occupancy('hall')")[0], ["0", "0"]);
    to_both(&mut service, "drop policy zz on %");
    assert_eq!(bob.rows("select * from presence.occupancy('hall')")[0], ["1", "1"]);
}

#[test]
fn policies_ask_with_the_rights_of_the_caller() {
    let cluster = Cluster::start();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    alice.run("select presence.upsert('hall', '1')");
    for function in
        ["presence.tokens()", "presence.user_id()", "presence.is_service()", "_presence._may(text, text)"]
    {
        service.run(&format!("revoke execute on function {function} from alice"));
        for verb in [
            "upsert('hall', '2')",
            "upsert('side')",
            "update('hall', '{}')",
            "upsert_many('[{\"room\": \"hall\"}]')",
        ] {
            assert_eq!(alice.fails(&format!("select presence.{verb}")).code, "42501", "{function}: {verb}");
        }
        service.run(&format!("grant execute on function {function} to alice"));
    }
    alice.run("select presence.upsert('hall', '2')");
    // A replaced function keeps its OID: the policies call the new body.
    service.run(
        "create or replace function presence.user_id() returns text language sql stable parallel restricted as
             $$ select 'nobody' $$",
    );
    assert_eq!(alice.fails("select presence.upsert('hall', '3')").code, "42501");
    assert_eq!(alice.fails("select presence.upsert('side')").code, "42501");
}

/// Calling a verb through somebody's function requires no USAGE on the schema, but the verb's own statements
/// do.
#[test]
fn the_schema_may_be_closed() {
    let cluster = Cluster::start();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    service.run(
        "create function public.say(room text, state jsonb) returns jsonb language sql
             begin atomic select u.state from presence.upsert(say.room, say.state) u; end",
    );
    alice.run("select say('hall', '1')");
    service.run("revoke usage on schema presence from alice");
    assert_eq!(alice.fails("select say('hall', '2')").code, "42501");
    assert_eq!(alice.fails("select say('side', '2')").code, "42501");
    service.run("grant usage on schema presence to alice");
    assert_eq!(alice.value("select say('hall', '3')"), "3");
}

/// Defaults of columns that the triggers fill are evaluated as well, with the rights of the writer.
#[test]
fn a_default_runs_as_the_caller() {
    let cluster = Cluster::start();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    service.run(AUDIT);
    service.run(
        "create function number() returns bigint language plpgsql as
             $$ begin insert into public.audit values ('default', current_user); return 5; end $$;
         alter table presence.member alter column session set default number()",
    );
    alice.run("select presence.upsert('hall')");
    assert_eq!(service.rows("select * from audit"), [["default", "alice"]]);
    service.run("revoke execute on function number() from public");
    assert_eq!(alice.fails("select presence.upsert('side')").code, "42501");
    service.run("alter table presence.member alter column session drop default");
    alice.run("select presence.upsert('side')");
}

/// A constant default runs no code, and the triggers replace its value: both the extension's own defaults and
/// added ones.
#[test]
fn a_constant_default_changes_nothing() {
    let cluster = Cluster::start();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    let fast = "select fast_writes from presence.health";
    let row = "select version >= generation, generation > 1, updated_at >= joined_at, joined_at > now() - interval '1 min',
                      last_seen_at >= joined_at, deadline > 0, session is null, key_hash <> gen_random_uuid() and key_hash::text !~ '^0000',
                      member_id = 'alice' and user_id = 'alice', audience = array['room:' || room]
               from presence.member where room = ";
    let made = ["t"; 10];
    for (room, more) in
        [("built in", ""), ("more", "alter table presence.member alter column session set default '5'")]
    {
        service.run(more);
        let before = service.number(fast);
        alice.run(&format!("select presence.upsert('{room}', '1'); select presence.upsert('{room}', '2')"));
        let is_on = service.is("select current_setting('presence.fast_path')::boolean");
        assert_eq!(service.number(fast) - before, if is_on { 2 } else { 0 }, "{room}");
        alice.run(&format!("insert into presence.member (room) values ('direct {room}')"));
        service.run(&format!("insert into presence.room (room) values ('{room}')"));
        for room in [room.to_owned(), format!("direct {room}")] {
            assert_eq!(service.rows(&format!("{row}'{room}'")), [made], "{room}");
        }
    }
    assert!(service.is("select bool_and(version > 1 and created_at = updated_at and updated_at > now() - interval '1 min') from presence.room"));
    cluster.assert_sound();
}

/// The owner's rights enable a fast path; they are not a condition for anybody.
#[test]
fn an_owner_who_may_not_enter_keeps_nobody_out() {
    let cluster = Cluster::bare(&[]);
    cluster.sql("postgres", "create database app");
    let mut service = cluster.service();
    service.run("create role admin superuser; create role successor; set role admin");
    service.run("create extension presence_ext; select presence.grant_access('alice')");
    service.run("reset role; reassign owned by admin to successor");
    service.run("revoke insert on presence.member from successor");
    cluster.until_worker("app");
    cluster.user("alice").run("select presence.upsert('hall')");
    cluster.assert_sound();
}

/// A statement whose row a verb modifies while the statement runs fails with an error.
#[test]
fn a_verb_is_a_command_of_its_own() {
    let cluster = Cluster::start();
    let mut alice = cluster.user("alice");
    alice.run("select presence.upsert('hall', '1')");
    for statement in [
        "update presence.member set status = (presence.upsert('hall', '2')).room",
        "update presence.member set status = (select m.room from presence.update('hall', '{\"a\": 1}') m)",
        "delete from presence.member where (presence.upsert('hall', '2')).version > 0",
    ] {
        assert_eq!(alice.fails(statement).code, "27000", "{statement}");
    }
    assert_eq!(alice.value("select state from presence.get('hall')"), "1");
}

/// A trigger that rejects a row runs once, and its answer is not treated as a conflict.
#[test]
fn what_a_trigger_refuses_is_not_tried_again() {
    let cluster = Cluster::start();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    alice.run("select presence.upsert('hall', '1')");
    service.run(
        "create sequence asked; grant usage on sequence asked to public;
         create function refuse() returns trigger language plpgsql as
             $$ begin perform nextval('public.asked'); return null; end $$;
         create trigger zz before insert or update on presence.member for each row execute function refuse()",
    );
    let asked = "select last_value from asked";
    assert!(alice.rows("select * from presence.update('hall', '{\"a\": 1}')").is_empty());
    assert_eq!(service.number(asked), 1);
    for verb in
        ["upsert('hall', '2')", "upsert_many('[{\"room\": \"hall\", \"state\": 2}]')", "upsert('side')"]
    {
        let refused = alice.fails(&format!("select presence.{verb}"));
        assert_eq!(
            (refused.code.as_str(), refused.message.as_str()),
            ("42501", "the change of the member was refused"),
            "{verb}"
        );
    }
    assert_eq!(alice.value("select state from presence.get('hall')"), "1");
    cluster.assert_sound();
}

#[test]
fn occupancy_counts_what_a_select_shows() {
    let cluster = Cluster::bare(&[]);
    cluster.sql("postgres", "create database app");
    let mut service = cluster.service();
    service.run("create role admin superuser; create role successor; set role admin");
    service.run(
        "create extension presence_ext; select presence.grant_access('alice'), presence.grant_access('bob')",
    );
    service.run("reset role; reassign owned by admin to successor");
    cluster.until_worker("app");
    let (mut alice, mut bob) = (cluster.user("alice"), cluster.user("bob"));
    alice.run("select presence.upsert('hall', audience => '{}')");
    let both =
        "select o.members, (select count(*) from presence.list('hall')) from presence.occupancy('hall') o";
    assert_eq!(bob.rows(both)[0], ["0", "0"]);
    // PostgreSQL does not apply policies to members of the owner's role.
    service.run("grant successor to bob");
    assert_eq!(bob.rows(both)[0], ["1", "1"]);
    service.run("revoke successor from bob");
    until("she may not any more", || bob.rows(both)[0] == ["0", "0"]);
    // And a SELECT also reads inheriting tables.
    service.run(
        "create table public.kid () inherits (presence.member);
         insert into public.kid select * from presence.member;
         update public.kid set member_id = 'kid', key_hash = gen_random_uuid()",
    );
    assert_eq!(alice.rows(both)[0], ["2", "2"]);
}
