//! A session's memory use does not grow with what it does.

use crate::common::{Cluster, Session};

fn kilobytes_of_plans(session: &mut Session) -> i64 {
    session.number(
        "select sum(total_bytes)::bigint / 1024 from pg_backend_memory_contexts where name like 'CachedPlan%'",
    )
}

/// Creates the roles user1 to userN, each of which may use presence.
fn make_users(service: &mut Session, users: i64) {
    // The roles inherit from one role with the rights: otherwise each ACL would get longer with each role.
    service.run(&format!(
        "create role people; select presence.grant_access('people');
         do $$ begin for n in 1 .. {users} loop execute 'create role user' || n || ' in role people'; end loop; end $$"
    ));
}

#[test]
fn a_session_that_is_many_roles_keeps_a_bounded_number_of_plans() {
    let cluster = Cluster::start();
    let mut pooled = cluster.service();
    make_users(&mut pooled, 400);
    // With an authorizer the statements run under the policies, so each role has its own plans for them.
    pooled.run(
        "create function public.authorize(room text, action text) returns boolean language sql as 'select true';
         set presence.authorizer = 'public.authorize'",
    );
    let mut be = |users: std::ops::RangeInclusive<i64>| {
        for user in users {
            pooled.run(&format!("set role user{user}"));
            pooled.run("select presence.upsert('hall', '{}'); select presence.tokens()");
            assert_eq!(
                pooled.value("select user_id from presence.update('hall', '{\"a\": 1}')"),
                format!("user{user}")
            );
            assert_eq!(pooled.number("select presence.delete('hall')"), 1);
            pooled.run("reset role");
        }
        kilobytes_of_plans(&mut pooled)
    };
    let after_many = be(1..=60);
    let after_all = be(61..=400);
    assert!(after_all < after_many * 5 / 4, "{after_many} kB after 60 roles, {after_all} kB after 400");
    assert!(after_all < 5 * 1024, "{after_all} kB");
    // The plans of the first roles have been evicted by now, and are made again.
    be(1..=2);
    cluster.assert_sound();
}

/// A trigger may call presence as more roles than plans are kept, while the statement that fired it is still
/// running.
#[test]
fn a_plan_that_is_running_is_not_freed() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    make_users(&mut service, 150);
    service.run(
        "create function public.ask_as_all() returns trigger language plpgsql as $$
         declare asker text := current_user; tokens bigint := 0; begin
             if new.room <> 'hall' then return null; end if;
             for n in 1 .. 150 loop
                 perform set_config('role', 'user' || n, true);
                 perform presence.upsert('side', member_id => 'user' || n);
                 perform presence.update('side', '{\"a\": 1}', member_id => 'user' || n);
             end loop;
             perform set_config('role', asker, true);
             return null;
         end $$;
         create trigger ask_as_all after insert or update on presence.member
             for each row execute function public.ask_as_all()",
    );
    for turn in 1..=3 {
        assert_eq!(
            service.number(&format!("select state from presence.upsert('hall', '{turn}', 'm')")),
            turn
        );
    }
    assert_eq!(service.number("select count(*) from presence.online where room = 'side'"), 150);
    cluster.assert_sound();
}

#[test]
fn many_large_members_take_no_more_working_memory_than_a_few() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    // The trigger measures while the call runs, because afterwards all of the memory is free.
    service.run(
        "create table public.used (members bigint, kilobytes bigint);
         create sequence public.members;
         create function public.look() returns trigger language plpgsql as $$
         declare members bigint := nextval('public.members'); begin
             if members % 50 = 0 then
                 insert into public.used
                 select members, sum(total_bytes)::bigint / 1024 from pg_backend_memory_contexts;
             end if;
             return null;
         end $$;
         create trigger look after insert or update on presence.member
             for each row execute function public.look()",
    );
    let upsert = |turn| {
        format!(
            "select presence.upsert_many(jsonb_agg(jsonb_build_object('room', 'hall', 'connection_id', n::text,
                 'state', {turn} || (select string_agg(md5(n::text || i), '') from generate_series(1, 600) i))))
             from generate_series(1, 300) n"
        )
    };
    for what in [1, 2] {
        service.run("truncate public.used; alter sequence public.members restart");
        assert_eq!(service.number(&upsert(what)), 300);
        let used = |session: &mut Session, members| {
            session.number(&format!("select kilobytes from public.used where members = {members}"))
        };
        let (few, many) = (used(&mut service, 50), used(&mut service, 300));
        assert!(many < few + 1_000, "{few} kB after 50 members of 19 kB, {many} kB after 300");
    }
    cluster.assert_sound();
}
