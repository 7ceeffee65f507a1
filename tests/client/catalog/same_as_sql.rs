//! A verb does what plain SQL would do at that moment, whichever path it takes internally: anything that
//! others add to the table takes effect, even if it was added a moment ago.

use crate::common::{Cluster, Session, until};

/// Alice's verb waits for the lock held by `ddl`, which then commits.
fn wait_for(cluster: &Cluster, alice: &mut Session, ddl: &str, verb: &str) {
    let mut admin = cluster.service();
    alice.run("select presence.upsert('hall', '{\"n\": 1}', status => 'here')");
    alice.run("select presence.upsert('hall', '{\"n\": 2}')");
    admin.run(&format!("begin; {ddl}"));
    let pid = alice.pid();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| alice.try_run(verb));
        let mut watcher = cluster.service();
        until("the verb waits", || {
            watcher.is(&format!("select exists (select from pg_locks where not granted and pid = {pid})"))
        });
        admin.run("commit");
        let _ = waiting.join().expect("the thread");
    });
}

const VERBS: [&str; 4] = [
    "select presence.upsert('hall', '{\"n\": 3}')",
    "select presence.upsert_many('[{\"room\": \"hall\", \"state\": {\"n\": 3}}]')",
    "select presence.update('hall', '{\"n\": 3}')",
    "select presence.delete('hall')",
];

#[test]
fn a_policy_that_a_verb_waited_for_is_obeyed_from_then_on() {
    let cluster = Cluster::start();
    for verb in VERBS {
        let mut alice = cluster.user("alice");
        wait_for(
            &cluster,
            &mut alice,
            "create policy frozen on presence.member as restrictive for update using (false)",
            verb,
        );
        alice.run("select presence.delete('hall')");
        cluster.sql(
            "app",
            "set role postgres; select presence.upsert('hall', '{\"n\": 5}', user_id => 'alice')",
        );
        let refused = alice.fails("select presence.upsert('hall', '{\"n\": 6}')");
        assert_eq!(
            (refused.code.as_str(), refused.message.as_str()),
            ("42501", "the change of the member was refused")
        );
        assert!(
            alice.rows("select * from presence.update('hall', '{\"n\": 6}')").is_empty(),
            "as UPDATE: no row"
        );
        assert_eq!(alice.value("select state from presence.get('hall')"), "{\"n\": 5}", "after {verb}");
        cluster.sql("app", "drop policy frozen on presence.member; delete from presence.member");
    }
    cluster.assert_sound();
}

#[test]
fn a_trigger_that_a_verb_waited_for_fires_from_then_on() {
    let cluster = Cluster::start();
    cluster.sql(
        "app",
        "create table audit (state jsonb); grant insert on audit to public;
         create function audit() returns trigger language plpgsql as
            $$ begin insert into public.audit values (new.state); return null; end $$",
    );
    for verb in &VERBS[..3] {
        let mut alice = cluster.user("alice");
        wait_for(
            &cluster,
            &mut alice,
            "create trigger audit after update on presence.member for each row execute function audit()",
            verb,
        );
        alice.run(
            "select presence.upsert('hall', '{\"n\": 4}'); select presence.update('hall', '{\"n\": 5}')",
        );
        let seen = "select array_agg(state -> 'n' order by state) from audit";
        assert_eq!(cluster.service().value(seen), "{3,4,5}", "{verb}");
        cluster
            .sql("app", "drop trigger audit on presence.member; delete from presence.member; truncate audit");
    }
}

#[test]
fn after_such_a_wait_the_log_shows_no_more_than_the_list() {
    let cluster = Cluster::start();
    let (mut alice, mut bob) = (cluster.user("alice"), cluster.user("bob"));
    alice.run("select presence.upsert('lobby', '{\"secret\": 1}', audience => '{users}')");
    alice.flush();
    wait_for(
        &cluster,
        &mut bob,
        "create policy own on presence.member as restrictive for select using (user_id = (select presence.user_id()))",
        VERBS[0],
    );
    for reader in
        ["history('lobby')", "changes(0, 'lobby') where event not in ('position', 'resync')", "list('lobby')"]
    {
        assert!(bob.rows(&format!("select * from presence.{reader}")).is_empty(), "{reader}");
    }
    assert_eq!(bob.rows("select * from presence.occupancy('lobby')")[0], ["0", "0"]);
    assert!(bob.rows("select * from presence.last_seen where user_id = 'alice'").is_empty());
}

/// The table changes twice: once while the session is in a transaction that has it locked, and once
/// afterwards.
#[test]
fn no_change_of_the_table_is_missed_behind_another() {
    let cluster = Cluster::start();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    alice.run("select presence.upsert('hall', '1', status => 'here')");
    alice.run("begin; select presence.upsert('hall', '2')");
    service.run("analyze presence.member");
    alice.run("select presence.upsert('hall', '3'); commit");
    service.run("create policy frozen on presence.member as restrictive for update using (false)");
    assert_eq!(alice.fails("select presence.upsert('hall', '4')").code, "42501");
    service.run("drop policy frozen on presence.member");
    alice.run("select presence.upsert('hall', '4')");
    // In the same transaction, as a user who may do both.
    service.run("begin; select presence.upsert('hall', '5', user_id => 'alice')");
    service.run("alter table presence.member alter status set not null");
    let refused = service.fails("select presence.upsert('hall', '6', user_id => 'alice', status => '')");
    assert_eq!(refused.code, "23502");
    service.run("rollback");
    service.run("select presence.upsert('hall', '6', user_id => 'alice')");
}

#[test]
fn a_read_only_transaction_reads_and_renews() {
    let cluster = Cluster::start();
    let mut alice = cluster.user("alice");
    alice.run("select presence.upsert('hall', '1')");
    for (default, begin) in [("off", "begin read only"), ("on", "begin")] {
        alice.run(&format!("set default_transaction_read_only = {default}"));
        for verb in [
            "upsert('hall', '2')",
            "upsert('side')",
            "update('hall', '{\"a\": 1}')",
            "upsert_many('[{\"room\": \"hall\", \"state\": 2}]')",
            "delete('hall')",
            "delete('hall', connection_id => null)",
            "delete_all()",
            "delete_many('[{\"room\": \"hall\"}]')",
        ] {
            alice.run(begin);
            assert_eq!(alice.fails(&format!("select presence.{verb}")).code, "25006", "{begin}: {verb}");
            alice.run("rollback");
        }
        alice.run(begin);
        alice.run("select presence.upsert('hall', '1')"); // an unchanged state writes nothing
        assert!(alice.is("select presence.heartbeat('hall')"));
        alice.run("commit");
    }
    assert_eq!(alice.value("select state from presence.get('hall')"), "1");
}

#[test]
fn constraints_children_and_settings_are_not_passed_by() {
    let cluster = Cluster::start();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    alice.run("select presence.upsert('hall', '1', status => 'here')");
    let fast = "select fast_writes from presence.health";
    let before = service.number(fast);
    alice.run("select presence.upsert('hall', '2')");
    let counts = service.number(fast) > before;
    let how = service.value("show presence.fast_path");
    assert_eq!(counts, how == "on");

    service.run("alter table presence.member alter status set not null");
    assert_eq!(alice.fails("select presence.upsert('hall', status => '')").code, "23502");
    assert_eq!(alice.fails("select presence.update('hall', status => '')").code, "23502");
    assert_eq!(alice.fails("select presence.upsert('side')").code, "23502");
    service.run("alter table presence.member alter status drop not null");

    service.run("alter table presence.member add constraint small check (state <> '9')");
    assert_eq!(alice.fails("select presence.upsert('hall', '9')").code, "23514");
    service.run("alter table presence.member drop constraint small");

    service.run("create table public.kid () inherits (presence.member)");
    let before = service.number(fast);
    alice.run("select presence.upsert('hall', '3')");
    assert_eq!(service.number(fast), before, "an UPDATE would look at the child");
    service.run("drop table public.kid");

    alice.run("set row_security = off");
    for verb in
        ["upsert('hall', '4')", "upsert('side')", "update('hall', '{}')", "occupancy('hall')", "list('hall')"]
    {
        assert_eq!(alice.fails(&format!("select presence.{verb}")).code, "42501", "{verb}");
    }
    alice.run("reset row_security");
    alice.run("select presence.upsert('hall', '4', status => '')");
}

/// Columns that others add after ours stay intact: no verb loses their values, and dropping them restores the
/// original behaviour.
#[test]
fn columns_of_others_are_kept() {
    let cluster = Cluster::start();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    alice.run("select presence.upsert('hall', '1')");
    service.run(
        "alter table presence.member add column note text default 'new', add column size int
                     generated always as (length(state::text)) stored",
    );
    service.run("update presence.member set note = 'mine'");
    alice.run("select presence.upsert('hall', '22'); select presence.update('hall', status => 'x')");
    alice.run("update presence.member set state = '333'");
    alice.run("select presence.upsert('side', '4444')");
    let kept =
        "select string_agg(concat_ws(' ', room, state, note, size), ', ' order by room) from presence.member";
    assert_eq!(service.value(kept), "hall 333 mine 3, side 4444 new 4");
    assert!(alice.is("select presence.heartbeat('hall')"));
    assert_eq!(alice.number("select count(*) from presence.list()"), 2);
    service.run("alter table presence.member drop column note, drop column size");
    let before = service.number("select fast_writes from presence.health");
    alice.run(
        "select presence.upsert('hall', '5'); select presence.upsert('loft'); select presence.delete('side')",
    );
    assert_eq!(alice.value("select state from presence.get('hall')"), "5");
    if service.is("select current_setting('presence.fast_path')::boolean") {
        assert_eq!(service.number("select fast_writes from presence.health"), before + 3, "as it was made");
    }
    cluster.assert_sound();
}

/// A verb acts on the current row, not on its statement's snapshot, and no change is lost.
#[test]
fn nothing_is_decided_on_an_old_row() {
    let cluster = Cluster::start();
    let mut alice = cluster.user("alice");
    alice.run("select presence.upsert('hall', '1')");
    alice.run("select presence.upsert('hall', to_jsonb(n)) from unnest('{2,1}'::int[]) n");
    assert_eq!(alice.value("select state from presence.get('hall')"), "1", "back to what it was");
    alice.run("select presence.upsert('hall', '{}')");
    std::thread::scope(|scope| {
        for client in 0..6 {
            let mut session = cluster.user("alice");
            scope.spawn(move || {
                for n in 0..50 {
                    let patch = format!("{{\"k{client}_{n}\": 1}}");
                    let changed = session.rows(&format!("select * from presence.update('hall', '{patch}')"));
                    assert_eq!(changed.len(), 1);
                }
            });
        }
    });
    assert_eq!(alice.number("select count(*) from presence.get('hall') m, jsonb_object_keys(m.state)"), 300);

    let mut other = cluster.user("alice");
    for level in ["repeatable read", "serializable"] {
        alice.run(&format!("begin isolation level {level}; select count(*) from presence.list('hall')"));
        other.run(&format!("select presence.upsert('hall', '\"{level}\"')"));
        assert_eq!(alice.fails("select presence.upsert('hall', '\"late\"')").code, "40001");
        alice.run("rollback");
    }
}

/// Somebody else's triggers may write members, too; these writes are independent of the verb that fired the
/// trigger.
#[test]
fn what_a_trigger_writes_is_its_own() {
    let cluster = Cluster::start();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    service.run(
        "create function follow() returns trigger language plpgsql as $$ begin
             if tg_op = 'INSERT' and new.room = 'site' then
                 insert into presence.member (room, member_id, state, ttl)
                 values ('doc', new.member_id, '{\"page\": 3}', '1 day');
             elsif tg_op = 'DELETE' and old.room = 'site' then
                 delete from presence.member where room = 'doc' and user_id = old.user_id;
             end if;
             return null;
         end $$;
         create trigger follow after insert or delete on presence.member for each row execute function follow()",
    );
    let leave = "select array_agg(concat_ws(' ', room, reason, state) order by seq) from presence.event
                 where event = 'leave' and seq > ";
    alice.run("select presence.upsert('site', '{\"on\": 1}', session => true)");
    assert_eq!(
        service.rows("select room, session_pid is not null, ttl from presence.member order by room"),
        [["doc", "f", "1 day"], ["site", "t", ""]]
    );
    let seq = service.number("select presence.seq()");
    alice.run("select presence.delete('site', state => '{\"bye\": 1}')");
    service.flush();
    assert_eq!(
        service.value(&format!("{leave} {seq}")),
        "{\"doc left {\\\"page\\\": 3}\",\"site left {\\\"bye\\\": 1}\"}"
    );

    // The sweeper expires one member, and the trigger removes the other, whose lease has not ended.
    let seq = service.number("select presence.seq()");
    alice.run("select presence.upsert('site', ttl => '1 s')");
    until("both are gone", || service.is("select count(*) = 0 from presence.member"));
    service.flush();
    let left = service.value(&format!("{leave} {seq}"));
    assert!(left.contains("doc removed") && left.contains("site expired"), "{left}");
}

/// A SECURITY DEFINER trigger function writes as its owner.
#[test]
fn a_security_definer_trigger_writes_as_its_owner() {
    let cluster = Cluster::start();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    service.run(
        "create function shadow() returns trigger language plpgsql security definer as $$ begin
             if new.room = 'site' then insert into presence.member (room) values ('shadow'); end if;
             return null;
         end $$;
         alter function shadow() owner to bob;
         create trigger shadow after insert on presence.member for each row execute function shadow()",
    );
    alice.run("select presence.upsert('site')");
    assert_eq!(
        service.rows("select room, user_id, member_id from presence.member order by room"),
        [["shadow", "bob", "bob"], ["site", "alice", "alice"]]
    );
}

/// The extension's trigger functions work on one table only.
#[test]
fn our_triggers_refuse_other_tables() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    service.run("create table public.wide (a1 int, a2 int, a3 int, a4 int, a5 int, a6 int, a7 int, a8 int, a9 int, b1 int,
                     b2 int, b3 int, b4 int, b5 int, b6 int, b7 int, b8 int, b9 int, c1 int);
                 create table public.twin (like presence.member)");
    for (table, when) in [("wide", "before insert"), ("wide", "after insert"), ("twin", "before insert")] {
        let function = if when.starts_with("before") { "before" } else { "after" };
        service.run(&format!(
            "create trigger t {when} on public.{table} for each row execute function _presence._member_{function}()"
        ));
        let refused = service.fails(&format!("insert into public.{table} default values"));
        assert_eq!(refused.code, "39P01", "{table} {when}: {}", refused.message);
        service.run(&format!("drop trigger t on public.{table}"));
    }
    let refused = service.fails("insert into _presence.member_twin (room) values ('x')");
    assert_eq!(refused.code, "39P01");
    cluster.assert_sound();
}

/// The user sees few of many members: the index on audience is searched with a few tokens at a time.
#[test]
fn who_sees_few_of_many_is_listed_the_same() {
    let cluster = Cluster::with(&["presence.max_per_user=0", "presence.member_ids=any"]);
    let mut service = cluster.service();
    // Strangers come first in key order; alice is in 100 rooms; bob's members are shared with several of her
    // rooms, carol's with one.
    service.run(
        "select count(presence.upsert('a' || n % 50, user_id => 's' || n, ttl => '1 h')) from generate_series(1, 6000) n;
         select count(presence.upsert('m' || n, user_id => 'alice', ttl => '1 h')) from generate_series(1, 100) n;
         select count(presence.upsert('n' || n, user_id => 'bob', ttl => '1 h',
                audience => array['room:m' || n, 'room:m' || 101 - n, 'user:alice'])) from generate_series(1, 100) n;
         select count(presence.upsert('o' || n, user_id => 'carol', ttl => '1 h', audience => array['room:m' || n]))
         from generate_series(1, 100) n",
    );
    let all = "select room, member_id, user_id, audience from presence.list(max_rows => 10000)";
    let page = "select room, member_id from presence.list(null, 70, '{n2,bob,\"\"}')";
    for query in [all, page] {
        let fast = cluster.user("alice").rows(query);
        service.run("alter role alice set presence.fast_path = off");
        assert_eq!(fast, cluster.user("alice").rows(query), "{query}");
        service.run("alter role alice reset presence.fast_path");
        assert_eq!(fast.len(), if query == all { 300 } else { 70 });
    }
}
