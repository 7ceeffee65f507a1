//! examples/wrapper.sql: a user's own schema that calls presence_ext, for tools that hide objects of
//! extensions. It is generated from the catalog, so that it is complete: ACCEPT=1 rewrites it.

use crate::common::{Cluster, Session, node, shell};
use std::path::{Path, PathBuf};

/// Functions that need a dedicated connection or transaction, or are for operators.
const FUNCTIONS_LEFT_OUT: &str = "{act_as,listen,unlisten,channels,rotate_channels,grant_access,revoke_access,forget,\
                                   sweep,wait_for_flush,worker_pid,cluster,forget_node}";
/// The member table, which is written through functions; monitoring; and the copy.
const RELATIONS_LEFT_OUT: &str = "{member,health,shared,shared_online,node}";

const HEAD: &str = "\
-- Presence in a schema of your own, for PostGraphile and other tools that hide what belongs to an extension. Copy it, call the
-- schema as you like, take out what you do not need.
--
-- Everything runs as the caller (SECURITY INVOKER), with the rights that presence.grant_access gave: this schema adds
-- none. Left out is what needs a connection of one's own (listen) or is for whoever runs the server. What is called `after`
-- in a list is `after_key` here: lists of GraphQL have an `after` of their own.
--
-- After an upgrade of presence_ext: drop schema presence_api cascade, which takes what you have built upon it, and run the
-- file of the new version. Before DROP EXTENSION, drop it as well.

create schema presence_api;
comment on schema presence_api is 'Presence: who is here, in which room, in what state.';
grant usage on schema presence_api to public;
";

/// A function's arguments and their names in the wrapper: lists in GraphQL have their own `after`.
const ARGUMENTS: &str = "
    create function pg_temp.arguments(f oid) returns table (place bigint, name text, own text, type text, given text)
    language sql as $$
        select place, name, case when proretset and name = 'after' then 'after_key' else name end,
               format_type(type, null),
               lower(regexp_replace(pg_get_function_arg_default(p.oid, place::int), '::.*', ''))
        from pg_proc p, unnest(proargnames[:pronargs], proargtypes::oid[]) with ordinality a (name, type, place)
        where p.oid = f
    $$";

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/wrapper.sql")
}

/// The expected content of the file, generated from the installed extension.
fn wrapper(service: &mut Session) -> String {
    let mut out = HEAD.to_owned();
    service.run(ARGUMENTS);
    for row in service.rows(&format!(
        "select quote_ident(relname), quote_literal(obj_description(c.oid, 'pg_class')),
                (select string_agg(format(E'comment on column presence_api.%I.%I is %L;\\n', relname, attname,
                                          col_description(c.oid, attnum)), '' order by attnum)
                 from pg_attribute
                 where attrelid = c.oid and attnum > 0 and col_description(c.oid, attnum) is not null)
         from pg_class c
         where relnamespace = 'presence'::regnamespace and relkind in ('r', 'v', 'm', 'p', 'f')
           and relname <> all ('{RELATIONS_LEFT_OUT}') order by relname"
    )) {
        let [name, comment, columns] = &row[..] else { unreachable!() };
        out += &format!(
            "\ncreate view presence_api.{name} with (security_invoker = true) as\n    select r.* from presence.{name} r;\n\
             comment on view presence_api.{name} is\n    {comment};\n{columns}"
        );
    }
    out += "\ngrant select on all tables in schema presence_api to public;\n";
    for row in service.rows(&format!(
        "select quote_ident(proname), case provolatile when 'v' then 'volatile' else 'stable' end,
                oidvectortypes(proargtypes),
                quote_literal(case when proretset then replace(obj_description(p.oid, 'pg_proc'), ' after is ', ' after_key is ')
                              else obj_description(p.oid, 'pg_proc') end),
                replace(replace(pg_get_function_result(p.oid), 'presence.', 'presence_api.'), 'TABLE(', 'table ('),
                pg_get_function_result(p.oid) ~ '^(SETOF presence|TABLE|presence)',
                (select string_agg(format('    %I %s%s', own, type, ' default ' || given), E',\\n' order by place)
                 from pg_temp.arguments(p.oid)),
                (select string_agg(format('%I => %I.%I', name, proname, own), ', ' order by place) from pg_temp.arguments(p.oid))
         from pg_proc p
         where pronamespace = 'presence'::regnamespace and proname <> all ('{FUNCTIONS_LEFT_OUT}') order by proname"
    )) {
        let [name, volatility, types, comment, result, is_of_rows, arguments, values] = &row[..] else {
            unreachable!()
        };
        let (rows, of) = if is_of_rows == "t" { ("r.* from ", " r") } else { ("", "") };
        let arguments = if arguments.is_empty() { String::new() } else { format!("\n{arguments}\n") };
        out += &format!(
            "\ncreate function presence_api.{name}({arguments}) returns {result}\n    language sql {volatility}\n\
             begin atomic\n    select {rows}presence.{name}({values}){of};\nend;\n\
             comment on function presence_api.{name}({types}) is\n    {comment};\n"
        );
    }
    out.replace("timestamp with time zone", "timestamptz").replace("SETOF ", "setof ")
}

#[test]
fn the_wrapper_has_all_that_there_is() {
    let cluster = Cluster::start();
    let wrapper = wrapper(&mut cluster.service());
    if std::env::var_os("ACCEPT").is_some() {
        std::fs::write(path(), &wrapper).expect("examples/wrapper.sql");
    }
    let written = std::fs::read_to_string(path()).expect("examples/wrapper.sql");
    assert!(written == wrapper, "examples/wrapper.sql is not what there is. ACCEPT=1 writes it:\n{wrapper}");

    // The wrapper adds no rights, and returns the same to those who have them.
    cluster.sql("app", &wrapper);
    cluster.sql("app", "create role guest login");
    let mut guest = cluster.user("guest");
    for question in
        ["presence_api.list('lobby')", "presence_api.online", "presence_api.event", "presence_api.room"]
    {
        assert_eq!(guest.fails(&format!("select * from {question}")).code, "42501", "{question}");
    }
    let (mut alice, mut bob) = (cluster.user("alice"), cluster.user("bob"));
    assert_eq!(
        alice.value("select member_id from presence_api.upsert('lobby', state => '{\"x\": 1}')"),
        "alice"
    );
    alice.run("select presence_api.upsert('own', audience => '{}')");
    assert!(bob.is("select presence_api.heartbeat('lobby') is false"));
    assert_eq!(bob.rows("select * from presence_api.list('lobby')"), [[""; 0]; 0]);
    bob.run("select presence_api.upsert('lobby')");
    bob.flush();
    for wrapped in [
        "list()",
        "online",
        "users('lobby')",
        "rooms()",
        "event",
        "history('lobby')",
        "last_seen",
        "occupancy()",
    ] {
        for user in [&mut alice, &mut bob] {
            let rows = user.rows(&format!("select * from presence.{wrapped}"));
            assert!(!rows.is_empty());
            assert_eq!(user.rows(&format!("select * from presence_api.{wrapped}")), rows, "{wrapped}");
        }
    }
    assert_eq!(bob.rows("select * from presence_api.get('own', 'alice')"), [[""; 0]; 0]);
}

/// PostGraphile sees the schema's contents, and runs requests as the user in the claims.
#[test]
fn postgraphile_serves_the_wrapper() {
    let cluster = Cluster::start();
    cluster.sql(
        "app",
        "create role authenticator login noinherit; create role authenticated; grant authenticated to authenticator;
         select presence.grant_access('authenticated')",
    );
    shell("scripts/cluster psql \"$1\" -d app -q -v ON_ERROR_STOP=1 -f examples/wrapper.sql", &[&cluster]);
    node("postgraphile.mjs", &cluster);
}
