//! In-server tests (`#[pg_test]`): each runs in a transaction of its own that is rolled back.

// pgrx expects its tests in a schema, and thus in a module, of this name.
#[allow(clippy::module_inception)]
#[pgrx::pg_schema]
mod tests {
    use pgrx::prelude::*;
    use pgrx::{JsonB, Spi};
    use serde_json::{Map, Value, json};

    fn run(sql: &str) {
        Spi::run(sql).unwrap_or_else(|error| panic!("{error}: {sql}"));
    }

    fn text(sql: &str) -> Option<String> {
        Spi::get_one(sql).unwrap_or_else(|error| panic!("{error}: {sql}"))
    }

    fn yes(sql: &str) {
        assert_eq!(Spi::get_one::<bool>(sql), Ok(Some(true)), "{sql}");
    }

    fn no(sql: &str) {
        assert_eq!(Spi::get_one::<bool>(sql), Ok(Some(false)), "{sql}");
    }

    /// SQLSTATE and message of a statement that fails.
    fn error(sql: &str) -> String {
        run("create or replace function pg_temp.error(statement text) returns text language plpgsql as $$ \
             begin execute statement; return 'no error'; \
             exception when others then return sqlstate || ' ' || sqlerrm; end $$");
        Spi::get_one_with_args("select pg_temp.error($1)", &[sql.into()]).unwrap().unwrap()
    }

    fn claims(claims: &str) {
        Spi::run_with_args("select set_config('request.jwt.claims', $1, true)", &[claims.into()]).unwrap();
    }

    fn user_id() -> Option<String> {
        text("select presence.user_id()")
    }

    fn rooms() -> String {
        text("select coalesce(string_agg(room, ' ' order by room), '') from presence.list()").unwrap()
    }

    #[pg_test]
    fn a_superuser_is_itself_until_claims_say_otherwise() {
        yes("select presence.user_id() = current_user");
        claims(r#"{"sub": "u1"}"#);
        assert_eq!(user_id().as_deref(), Some("u1"));
        claims(r#"{"sub": 42}"#);
        assert_eq!(user_id().as_deref(), Some("42"));
        for nobody in [r#"{"role": "x"}"#, r#"{"sub": ""}"#, r#"{"sub": null}"#, "[]", "no JSON"] {
            claims(nobody);
            assert_eq!(user_id(), None, "{nobody}");
        }
        claims("");
        yes("select presence.user_id() = current_user");
        run("select set_config('request.jwt.claim.sub', 'old', true)");
        yes("select presence.user_id() = current_user");
    }

    #[pg_test]
    fn a_trusted_login_is_nobody_without_claims() {
        run("select set_config('presence.trusted_login_roles', 'somebody, ' || session_user, true)");
        assert_eq!(user_id(), None);
        run("select set_config('request.jwt.claim.sub', 'old', true)");
        assert_eq!(user_id().as_deref(), Some("old"));
        claims(r#"{"sub": "new"}"#);
        assert_eq!(user_id().as_deref(), Some("new"));
        // Its sessions are shared.
        assert!(error("select presence.upsert('r', session => true)").starts_with("0A000"));
        assert!(error("select presence.listen('r')").starts_with("0A000"));
        run("create role shared");
        run("select presence.grant_access('shared')");
        run("set local role shared");
        assert_eq!(user_id().as_deref(), Some("new"));
        no("select presence.is_service()");
    }

    #[pg_test]
    fn a_role_that_stands_for_nobody_is_nobody() {
        run("create role visitor");
        run("select presence.grant_access('visitor')");
        run("set local presence.anonymous_roles = 'anon, visitor'");
        run("set local role visitor");
        assert_eq!(user_id(), None);
        assert_eq!(
            text("select array_to_string(presence.tokens(), ',')").as_deref(),
            Some("any,role:visitor")
        );
        assert!(error("select presence.upsert('r')").starts_with("42501 the caller has no identity"));
        yes("select count(*) = 0 from presence.list()");
        run("reset role");
        run("set local presence.anonymous_roles = ''");
        run("set local role visitor");
        assert_eq!(user_id().as_deref(), Some("visitor"));
    }

    #[pg_test]
    fn service_is_the_current_role_not_the_login() {
        yes("select presence.is_service()");
        run("create role plain");
        run("create role bypass bypassrls");
        run("create role inherits in role bypass");
        run("select presence.grant_access(r) from unnest('{plain,bypass,inherits}'::regrole[]) r");
        let is_service = |role: &str| {
            run(&format!("set local role {role}"));
            let service = Spi::get_one::<bool>("select presence.is_service()").unwrap().unwrap();
            run("reset role");
            service
        };
        assert_eq!(["plain", "bypass", "inherits"].map(is_service), [false, true, false]);
        run("set local presence.service_roles = 'plain'");
        assert!(is_service("plain"));
    }

    #[pg_test]
    fn act_as_speaks_for_a_user_with_teams() {
        run("create role app");
        run("select presence.grant_access('app')");
        run("grant execute on function presence.act_as(text, text[]) to app");
        run("set local role app");
        run("select presence.act_as('dora', '{red,blue}')");
        assert_eq!(user_id().as_deref(), Some("dora"));
        yes("select presence.tokens() @> '{any,users,user:dora,team:red,team:blue,role:app}'");
        run("select presence.upsert('r', audience => '{team:blue}')");
        yes("select user_id = 'dora' and member_id = 'dora' from presence.online");
        yes("select presence.tokens() @> '{room:r}'");
        run("select presence.act_as('emil', '{blue}')");
        assert_eq!(rooms(), "r");
        no("select presence.heartbeat('r', 'dora')");
        run("select presence.act_as('emil')");
        assert_eq!(rooms(), "");
        run("reset role");
        run("set local presence.teams_claim = 'groups'");
        claims(r#"{"sub": "dora", "groups": ["a", 7, {"no": "team"}], "app_metadata": {"teams": ["b"]}}"#);
        yes("select presence.tokens() @> '{team:a,team:7}' and not presence.tokens() && '{team:b}'");
    }

    #[pg_test]
    fn a_heartbeat_knows_what_its_transaction_did() {
        no("select presence.heartbeat('r')");
        run("select presence.upsert('r')");
        yes("select presence.heartbeat('r')");
        run("select presence.upsert('r', '{\"a\": 1}')");
        yes("select presence.heartbeat('r')");
        run("select presence.delete('r')");
        no("select presence.heartbeat('r')");
        run("insert into presence.member (room) values ('r')");
        yes("select presence.heartbeat('r')");
        run("delete from presence.member");
        no("select presence.heartbeat('r')");
        yes("select array_agg(room) = '{r}' from presence.heartbeat_many('{r}')");
    }

    /// Every way to end a subtransaction, at two levels: which rooms are left when the inner or the outer one fails.
    #[pg_test]
    fn savepoints_cut_back_what_is_pending() {
        for inner_fails in [false, true] {
            for outer_fails in [false, true] {
                run("select presence.delete_all()");
                run("select presence.upsert('base', '0')");
                run(&format!(
                    "do $$ begin
                         perform presence.upsert('outer');
                         perform presence.upsert('base', '1');
                         begin
                             perform presence.upsert('inner');
                             perform presence.upsert('base', '2');
                             perform presence.delete('outer');
                             if {inner_fails} then raise 'inner'; end if;
                         exception when raise_exception then
                             if sqlerrm <> 'inner' then raise; end if;
                         end;
                         if {outer_fails} then raise 'outer'; end if;
                     exception when raise_exception then
                         if sqlerrm <> 'outer' then raise; end if;
                     end $$"
                ));
                let (expected, state) = match (inner_fails, outer_fails) {
                    (false, false) => ("base inner", 2),
                    (true, false) => ("base outer", 1),
                    (_, true) => ("base", 0),
                };
                assert_eq!(rooms(), expected, "inner fails: {inner_fails}, outer fails: {outer_fails}");
                yes(&format!("select state = '{state}' from presence.get('base')"));
                for room in ["base", "inner", "outer"] {
                    let there = expected.split(' ').any(|one| one == room);
                    yes(&format!("select presence.heartbeat('{room}') = {there}"));
                }
            }
        }
    }

    #[pg_test]
    fn many_savepoints_in_a_row_are_as_good_as_one() {
        run("do $$ begin
                 for n in 1..200 loop
                     begin
                         perform presence.upsert('room ' || n % 7, to_jsonb(n));
                         if n % 3 = 0 then raise 'no'; end if;
                     exception when raise_exception then null;
                     end;
                 end loop;
             end $$");
        // The last n of each room that is not a multiple of 3.
        yes("select array_agg(state::integer order by room) = (
                 select array_agg(n order by room) from (
                     select n % 7 as room, max(n) as n from generate_series(1, 200) n where n % 3 <> 0 group by 1) x)
             from presence.list()");
    }

    #[pg_test]
    fn an_identical_upsert_of_ones_own_pending_change_is_identical() {
        run(
            "create temp table seen as select version from presence.upsert('r', '{\"a\": 1}', status => 'on')",
        );
        yes(
            "select version = (select version from seen) from presence.upsert('r', '{\"a\":1}', status => 'on')",
        );
        yes("select version > (select version from seen) from presence.upsert('r', '{\"a\": 2}')");
        yes("select version > (select version from seen) from presence.upsert('r', '{\"a\": 1}')");
    }

    /// RFC 7396, section 2, literally.
    fn merge_patch(target: Value, patch: &Value) -> Value {
        let Value::Object(patch) = patch else { return patch.clone() };
        let mut target = match target {
            Value::Object(target) => target,
            _ => Map::new(),
        };
        for (name, value) in patch {
            if value.is_null() {
                target.remove(name);
            } else {
                let held = target.get(name).cloned().unwrap_or(Value::Null);
                target.insert(name.clone(), merge_patch(held, value));
            }
        }
        Value::Object(target)
    }

    /// The next JSON value of a fixed sequence. There are few names, so that target and patch overlap. (The library that
    /// the server loads is built without the dependencies of tests, and so without proptest.)
    fn some_json(random: &mut u64, depth: u32) -> Value {
        let mut below = |limit: u64| {
            *random ^= *random << 13;
            *random ^= *random >> 7;
            *random ^= *random << 17;
            *random % limit
        };
        match below(if depth == 0 { 5 } else { 10 }) {
            0 | 1 => Value::Null,
            2 => Value::from(below(2) == 0),
            3 => Value::from(below(1_000)),
            4 => Value::from(["", "a", "\u{e9}\"\\", "\u{1F600}"][below(4) as usize]),
            5 => (0..below(3)).map(|_| some_json(random, depth - 1)).collect(),
            _ => some_object(random, depth),
        }
    }

    fn some_object(random: &mut u64, depth: u32) -> Value {
        let names = ["a", "b", "c", "", "\u{e9}", "long name"];
        let mut object = Map::new();
        for name in names {
            let value = some_json(random, depth - 1);
            if *random >> 32 & 1 == 0 {
                object.insert(name.into(), value);
            }
        }
        Value::Object(object)
    }

    #[pg_test]
    fn merge_patch_is_that_of_the_rfc() {
        let mut random = 7396;
        for _ in 0..500 {
            let (target, patch) = (some_json(&mut random, 3), some_object(&mut random, 3));
            let got: JsonB = Spi::get_one_with_args(
                "select _presence._merge_patch($1, $2)",
                &[JsonB(target.clone()).into(), JsonB(patch.clone()).into()],
            )
            .unwrap()
            .unwrap();
            assert_eq!(got.0, merge_patch(target.clone(), &patch), "{patch} on {target}");
        }
    }

    #[pg_test]
    fn merge_patch_of_toasted_values() {
        let long = "x".repeat(20_000);
        run("select presence.upsert('r', jsonb_build_object('a', repeat('x', 20000), 'b', 1))");
        let patched: JsonB =
            Spi::get_one("select state from presence.update('r', '{\"b\": null, \"c\": {\"d\": null}}')")
                .unwrap()
                .unwrap();
        assert_eq!(patched.0, json!({"a": long, "c": {}}));
    }

    #[pg_test(error = "invalid room")]
    fn an_empty_room_is_none() {
        run("select presence.upsert('')");
    }

    #[pg_test(error = "patch must be a JSON object")]
    fn a_patch_is_an_object() {
        run("select presence.update('r', '[]')");
    }

    #[pg_test(error = "cannot truncate the members")]
    fn nobody_truncates() {
        run("truncate presence.member");
    }

    #[pg_test]
    fn an_error_leaves_the_session_as_it_was() {
        run("select presence.upsert('r')");
        for bad in [
            "select presence.upsert('r', ttl => '0.5 s')",
            "select presence.upsert('r', audience => '{x}')",
            "insert into presence.member (room) values ('ok'), ('')",
            "update presence.member set room = 'x'",
            "truncate presence.member",
        ] {
            assert_ne!(error(bad), "no error", "{bad}");
            assert_eq!(rooms(), "r", "{bad}");
            yes("select presence.heartbeat('r')");
        }
    }

    #[pg_test]
    fn versions_and_times_are_for_javascript_and_people() {
        run("select presence.upsert('r', ttl => '1 h')");
        yes("select version between 1 and 9007199254740991 from presence.online");
        yes("select abs(extract(epoch from expires_at - clock_timestamp()) - 3600) < 5 from presence.online");
        yes("select abs(extract(epoch from joined_at - clock_timestamp())) < 5 from presence.online");
        yes("select presence.seq() <= 9007199254740991");
        let boot = crate::clock::boot();
        assert!((crate::clock::wall_of(boot) - crate::clock::wall()).abs() < 1_000_000);
    }

    #[pg_test]
    fn channel_names_are_fixed_secret_and_short() {
        run("create role listener");
        run("select presence.grant_access('listener')");
        run("set local role listener");
        run("create temp table names as
             select 'a' as room, presence.channels('a') as name
             union all select 'b', presence.channels('b') union all select 'all', presence.channels()");
        yes(
            "select bool_and(name ~ '^presence_[0-9a-f]+$' and length(name) < 63) from names where name <> 'presence'",
        );
        yes(
            "select count(*) = 0 from (select presence.channels('a') except select name from names where room = 'a') x",
        );
        // The channels of the database and of the user are the same for all rooms; the others differ by room.
        yes("select count(*) = 2 from (select name from names group by 1 having count(*) > 1) x");
        run("reset role");
        yes("select count(*) < (select count(*) from names where room = 'a') from presence.channels('a')");
    }

    #[pg_test]
    fn an_array_that_starts_elsewhere_is_a_key_too() {
        run("insert into presence.member (room, member_id) values ('r', 'a'), ('r', 'b'), ('r', 'c')");
        assert_eq!(
            text("select string_agg(member_id, '') from presence.list('r', after => '[0:1]={a,\"\"}')")
                .as_deref(),
            Some("bc")
        );
    }
}
