//! `list` bypasses the planner and the policies: it shows what a SELECT shows, and reads little else.

use crate::common::{Cluster, Session};

/// Others' members, all invisible to alice: in rooms before and after those that she sees, and in one of
/// these.
const STRANGERS: i64 = 9_000;
const ROOMS: i64 = 10;

fn crowd() -> Cluster {
    let cluster = Cluster::with(&["presence.max_per_user=0"]);
    let mut service = cluster.service();
    service.run("create role crew; grant crew to alice");
    for first in (0..STRANGERS).step_by(1_500) {
        service.run(&format!(
            "select presence.upsert_many(jsonb_agg(jsonb_build_object(
                 'room', (array['a', 'hall', 'z'])[1 + n % 3] || case when n % 3 = 1 then '' else n::text end,
                 'user_id', 's' || n, 'ttl', '1 day', 'audience', '[\"user:nobody\"]'::jsonb)))
             from generate_series({first}, {first} + 1499) n"
        ));
        service.flush();
    }
    service.run(&format!(
        "select presence.upsert('small' || r, user_id => 'alice', audience => '{{}}', state => '1')
         from generate_series(1, {ROOMS}) r;
         select presence.upsert('small' || r, user_id => 'f' || f, connection_id => f % 2 || '',
                                audience => (array['{{}}', '{{any}}', '{{user:alice,user:x}}', '{{role:crew}}',
                                                   '{{room:small' || 1 + r % {ROOMS} || '}}'])[1 + f % 5]::text[])
         from generate_series(1, {ROOMS}) r, generate_series(1, 10) f;
         select presence.upsert('hall', user_id => 'f' || f, audience => '{{role:crew}}', status => 'there')
         from generate_series(1, 5) f;
         select presence.upsert('hall', user_id => 'f2', status => 'typing', revert_after => '1 ms')"
    ));
    service.flush();
    service.run("analyze presence.member");
    cluster
}

/// All pages, as whole rows in order.
fn listed(session: &mut Session, room: Option<&str>, size: i64) -> Vec<String> {
    let (mut rows, mut after) = (Vec::new(), "null".to_owned());
    let given = room.map_or("null".into(), |room| format!("'{room}'"));
    let place = if room.is_some() { "" } else { "l.room, " };
    loop {
        let page = session.rows(&format!(
            "select to_jsonb(l), array[{place}l.member_id, l.connection_id] from presence.list({given}, {size}, {after}) l"
        ));
        let Some(last) = page.last() else { return rows };
        after = format!("'{}'::text[]", last[1]);
        assert!(page.len() as i64 <= size);
        rows.extend(page.into_iter().map(|row| row[0].clone()));
    }
}

fn selected(session: &mut Session, room: Option<&str>) -> Vec<String> {
    let condition = room.map_or("true".into(), |room| format!("o.room = '{room}'"));
    let rows = session.rows(&format!(
        "select to_jsonb(o) from presence.online o where {condition} order by o.room, o.member_id, o.connection_id"
    ));
    rows.into_iter().map(|row| row[0].clone()).collect()
}

fn assert_same(session: &mut Session, what: &str) {
    for room in [None, Some("hall"), Some("small3"), Some("nowhere")] {
        let selected = selected(session, room);
        for size in [7, 1_000, 10_000] {
            assert_eq!(listed(session, room, size), selected, "{what}: {room:?} by {size}");
        }
    }
}

#[test]
fn a_list_shows_what_a_select_shows() {
    let cluster = crowd();
    let mut service = cluster.service();
    let (mut alice, mut bob) = (cluster.user("alice"), cluster.user("bob"));
    assert_eq!(alice.number("select count(*) from presence.list('hall')"), 5);
    assert_eq!(alice.number("select count(*) from presence.list()"), ROOMS * 9 + 5);
    assert_same(&mut alice, "alice");
    assert_same(&mut bob, "bob");
    let all = selected(&mut service, None);
    assert_eq!(listed(&mut service, None, 10_000), all, "the service");

    // With uncommitted changes of the user's own, and in an old snapshot.
    alice.run(
        "begin; select presence.upsert('hall', '{\"x\": 1}'), presence.upsert('b'); select presence.delete('small3')",
    );
    assert_same(&mut alice, "not committed");
    alice.run("savepoint s; select presence.upsert('small3'); rollback to s");
    assert_same(&mut alice, "rolled back");
    alice.run("commit");
    alice.run("begin isolation level repeatable read");
    assert_same(&mut alice, "old");
    service.run("select presence.delete('hall', 'f1'); select presence.upsert('hall', user_id => 'f9', audience => '{any}')");
    assert_same(&mut alice, "older");
    alice.run("commit");
    assert_same(&mut alice, "new");

    // With an authorizer; and without the index, or with a recreated one.
    service.run(
        "create function public.but_hall(room text, action text) returns boolean language sql stable
             as $$ select room not in ('hall', 'small4') $$;
         alter database app set presence.authorizer = 'public.but_hall'",
    );
    let mut alice = cluster.user("alice");
    assert_same(&mut alice, "authorizer");
    service.run("alter database app reset presence.authorizer");
    for index in
        ["drop index presence.member_audience", "create index on presence.member using gin (audience)"]
    {
        service.run(index);
        assert_same(&mut alice, index);
    }
    cluster.assert_sound();
}

/// The number of rows of `member` that a statement reads, by index or not.
fn read(session: &mut Session, sql: &str) -> (usize, i64) {
    let rows = "select coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) from pg_stat_xact_user_tables
                where relid = 'presence.member'::regclass";
    session.run("begin");
    session.run("select count(*) from presence.tokens()");
    let before = session.number(rows);
    let found = session.rows(sql).len();
    let after = session.number(rows);
    session.run("commit");
    (found, after - before)
}

#[test]
fn whoever_sees_few_of_many_reads_few() {
    let cluster = crowd();
    let mut alice = cluster.user("alice");
    if alice.is("select not current_setting('presence.fast_path')::boolean") {
        return;
    }
    for (sql, found) in [
        ("select * from presence.list()", ROOMS * 9 + 5),
        ("select * from presence.list('hall')", 5),
        ("select * from presence.list('hall', 1000)", 5),
        ("select * from presence.list(after => '{hall,f3,\"\"}')", ROOMS * 9 + 2),
    ] {
        let (rows, read) = read(&mut alice, sql);
        assert_eq!(rows as i64, found, "{sql}");
        assert!(read < 3_000, "{sql} read {read}");
    }
    // A page reads not much more than what it shows.
    let mut service = cluster.service();
    for (sql, found) in [
        ("select * from presence.list('hall', 100)", 100),
        ("select * from presence.list('hall', 100, '{s4,\"\"}')", 100),
        ("select * from presence.list(max_rows => 50, after => '{hall,s4,\"\"}')", 50),
    ] {
        let (rows, read) = read(&mut service, sql);
        assert_eq!(rows, found, "{sql}");
        assert!(read <= found as i64 + 32, "{sql} read {read}");
    }
}

#[test]
fn who_may_not_select_may_not_list() {
    let cluster = Cluster::start();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    alice.run("select presence.upsert('hall')");
    for (revoke, grant) in [
        ("revoke select on presence.online from alice", "grant select on presence.online to alice"),
        ("revoke select on presence.member from alice", "grant select on presence.member to alice"),
        (
            "revoke execute on function presence.tokens() from alice",
            "grant execute on function presence.tokens() to alice",
        ),
        (
            "revoke execute on function presence.list from alice",
            "grant execute on function presence.list to alice",
        ),
    ] {
        assert_eq!(alice.number("select count(*) from presence.list('hall')"), 1);
        service.run(revoke);
        assert_eq!(alice.fails("select * from presence.list('hall')").code, "42501", "{revoke}");
        service.run(grant);
    }
    service.run("create policy none on presence.member as restrictive for select using (false)");
    assert_eq!(alice.number("select count(*) from presence.list('hall')"), 0);
    service.run("drop policy none on presence.member");
    assert_eq!(alice.number("select count(*) from presence.list('hall')"), 1);
}
