//! How an ordinary role's queries run under the policies: by index, with the identity determined once per
//! statement.

use crate::common::{Cluster, Session};
use serde_json::Value;

const ROOMS: i64 = 200;
const MEMBERS: i64 = 50;

fn prepare() -> (Cluster, Session) {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    // Members of many rooms, of which alice sees one in ten.
    service.run(&format!(
        "select presence.upsert_many(jsonb_agg(jsonb_build_object(
             'room', 'room' || r, 'user_id', 'u' || m, 'ttl', '1 day',
             'audience', case when m % 10 = 0 then '[\"any\"]'::jsonb else '[]' end)))
         from generate_series(1, {ROOMS}) r, generate_series(1, {MEMBERS}) m;
         create table public.profile (user_id text primary key, name text);
         insert into profile select 'u' || m, 'name ' || m from generate_series(1, {MEMBERS}) m;
         create table public.seat (room text, member_id text, seat integer, primary key (room, member_id));
         insert into seat select 'room' || r, 'u' || r % {MEMBERS}, r from generate_series(1, {ROOMS}) r;
         grant select on profile, seat to alice;"
    ));
    service.flush();
    service.run("analyze presence.member; analyze profile; analyze seat; analyze presence.event");
    let mut alice = cluster.user("alice");
    alice.run("select presence.upsert('room7')");
    alice.run("set plan_cache_mode = force_custom_plan");
    (cluster, alice)
}

/// All nodes of a plan.
fn nodes(plan: &Value) -> Vec<&Value> {
    let below = plan["Plans"].as_array().into_iter().flatten().flat_map(nodes);
    std::iter::once(plan).chain(below).collect()
}

struct Plan(Value, String);

impl Plan {
    fn of(session: &mut Session, sql: &str) -> Plan {
        let text = session.value(&format!("explain (analyze, verbose, timing off, format json) {sql}"));
        let plan: Value = serde_json::from_str(&text).expect("JSON");
        Plan(plan[0]["Plan"].clone(), sql.to_owned())
    }

    /// Asserts that `member` is read only by index, and few rows of it.
    fn assert_by_index(&self, most: i64) {
        let mut found = 0;
        for node in nodes(&self.0).iter().filter(|node| node["Relation Name"] == "member") {
            if node["Actual Loops"] == 0 {
                continue; // a branch for other arguments
            }
            let kind = node["Node Type"].as_str().unwrap_or_default();
            assert!(
                ["Index Scan", "Bitmap Heap Scan", "Index Only Scan"].contains(&kind),
                "{}: {}",
                self.1,
                self.0
            );
            let number = |name: &str| node[name].as_f64().unwrap_or(0.0);
            let rows = number("Actual Rows")
                + number("Rows Removed by Filter")
                + number("Rows Removed by Index Recheck");
            assert!(rows * number("Actual Loops") <= most as f64, "{}: {rows} rows: {}", self.1, self.0);
            found += 1;
        }
        assert!(found > 0, "{}: {}", self.1, self.0);
    }

    /// Asserts that the identity and tokens are determined in an InitPlan, which runs at most once.
    fn assert_asks_once(&self) {
        let mut asked = 0;
        for node in nodes(&self.0) {
            let is_init = node["Parent Relationship"] == "InitPlan";
            asked += (is_init && node.to_string().contains("presence.tokens()")) as i32;
            if is_init {
                assert!(node["Actual Loops"].as_i64().unwrap_or(0) <= 1, "{}: {}", self.1, self.0);
            } else {
                let shallow = ["Filter", "Index Cond", "Join Filter", "Recheck Cond"]
                    .map(|part| node[part].to_string())
                    .concat();
                for function in ["presence.tokens()", "presence.user_id()", "presence.is_service()"] {
                    assert!(!shallow.contains(function), "{}: {shallow}", self.1);
                }
            }
        }
        assert!(asked > 0, "{}: {}", self.1, self.0);
    }
}

#[test]
fn rooms_and_members_are_read_by_index() {
    let (cluster, mut alice) = prepare();
    for sql in [
        "select * from presence.online where room = 'room7'",
        "select * from presence.online where room = 'room7' and member_id = 'u10'",
        "select * from presence.get('room7', 'u10')",
        "select * from presence.users('room7')",
        "select * from presence.member where room = 'room7'",
    ] {
        let plan = Plan::of(&mut alice, sql);
        assert!(plan.0["Node Type"] != "Function Scan", "{sql} is not inlined: {}", plan.0);
        plan.assert_by_index(MEMBERS + 1);
        plan.assert_asks_once();
    }
    drop(cluster);
}

/// In a scan of its own, or in SQL if there is a custom policy: the counts are the same.
#[test]
fn occupancy_is_counted_by_index() {
    let (cluster, mut alice) = prepare();
    let counted = "select * from presence.occupancy('room7')";
    let by_scan = alice.rows(counted);
    cluster.sql("app", "create policy nobody_more on presence.member for select using (false)");
    let plan = Plan::of(&mut alice, counted);
    plan.assert_by_index(MEMBERS + 1);
    plan.assert_asks_once();
    assert_eq!(alice.rows(counted), by_scan);
    assert_ne!(by_scan[0][0], "0");
}

#[test]
fn joins_with_ones_own_tables_are_by_index() {
    let (cluster, mut alice) = prepare();
    for (sql, rows, most) in [
        (
            "select p.name, o.room from profile p join presence.online o using (user_id) where p.user_id = 'u10'",
            ROOMS,
            ROOMS,
        ),
        (
            "select p.name, o.status from profile p join presence.online o on o.user_id = p.user_id and o.room = 'room9'
             where p.name like 'name 1%'",
            1,
            MEMBERS,
        ),
        (
            "select s.seat, o.status from seat s join presence.online o on o.room = s.room and o.member_id = s.member_id
             where s.room in ('room10', 'room20', 'room21')",
            2,
            3,
        ),
        (
            "select s.seat, (select o.status from presence.online o where o.room = s.room and o.member_id = s.member_id)
             from seat s where s.room = 'room10'",
            1,
            1,
        ),
    ] {
        let plan = Plan::of(&mut alice, sql);
        plan.assert_by_index(most);
        plan.assert_asks_once();
        assert_eq!(alice.rows(sql).len() as i64, rows, "{sql}");
    }
    drop(cluster);
}

/// Counted by the server, whatever the plans look like.
#[test]
fn a_statement_asks_for_tokens_once() {
    let (cluster, _) = prepare();
    cluster.sql("app", "alter database app set track_functions = 'all'");
    let mut alice = cluster.user("alice");
    let calls = "select coalesce(sum(calls), 0)::bigint from pg_stat_xact_user_functions
                 where schemaname = 'presence' and funcname = 'tokens'";
    for (sql, most) in [
        ("select count(*) from presence.online", 1),
        ("select count(*) from presence.online where room = 'room7'", 1),
        ("select count(*) from presence.member where room = 'room7'", 1),
        ("select count(*) from presence.list('room7')", 1),
        ("select count(*) from presence.list()", 1),
        ("select count(*) from presence.get('room7', 'u10')", 1),
        ("select count(*) from presence.users('room7')", 1),
        ("select count(*) from presence.rooms()", 1),
        ("select presence.state('room7')", 1),
        ("select count(*) from presence.history('room7')", 1),
        ("select count(*) from presence.event where room = 'room7'", 1),
        ("select count(*) from presence.changes(0, 'room7')", 1),
        ("update presence.member set status = 'x' where room = 'room7' and member_id = 'alice'", 1),
    ] {
        alice.run("begin");
        let before = alice.number(calls);
        alice.run(sql);
        let called = alice.number(calls) - before;
        alice.run("rollback");
        assert!(called <= most, "{sql}: tokens() was called {called} times");
    }
}

/// A session's cached role memberships can also be looked up if the plan of the caller's statement is
/// parallel.
#[test]
fn a_parallel_plan_may_be_the_first_to_ask_who_one_is() {
    let (cluster, mut alice) = prepare();
    let parallel =
        "set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0";
    let query =
        "select array_to_string(presence.tokens(), ',') || count(*) from profile where name is not null";
    alice.run(parallel);
    let plan = Plan::of(&mut alice, query);
    assert!(nodes(&plan.0).iter().any(|node| node["Node Type"] == "Gather"), "{}", plan.0);
    // A change of roles invalidates everybody's cache.
    cluster.sql("app", "create role crew; grant crew to alice");
    assert!(alice.value(query).contains("role:crew"));
    let mut fresh = cluster.user("alice");
    fresh.run(parallel);
    assert!(fresh.value(query).contains("role:crew"));
    cluster.assert_sound();
}
