//! What tools that read the catalog (Prisma, Drizzle, Django, Kysely, psql's completion) see: only the public
//! interface.

use crate::common::{Cluster, Session};

fn column(session: &mut Session, sql: &str) -> Vec<String> {
    session.rows(sql).into_iter().map(|row| row.join(" ")).collect()
}

#[test]
fn who_reads_the_catalog_sees_what_is_meant_for_people() {
    let cluster = Cluster::start();
    let mut alice = cluster.user("alice");

    // The complete contents of the schema: tables and views, and functions, but no triggers, casts or
    // operators.
    let relations = "select relname, relkind from pg_class
                     where relnamespace = 'presence'::regnamespace and relkind <> 'i' order by 1";
    let expected = [
        "event r",
        "health v",
        "last_seen v",
        "member r",
        "node r",
        "online v",
        "room r",
        "shared r",
        "shared_online v",
    ];
    assert_eq!(column(&mut alice, relations), expected);
    let functions = "select proname from pg_proc
                     where pronamespace = 'presence'::regnamespace
                       and (proname like '\\_%' or prokind <> 'f' or prorettype = 'trigger'::regtype
                            or 'internal'::regtype = any (proargtypes))";
    assert_eq!(column(&mut alice, functions), [""; 0]);
    let overloaded = "select proname from pg_proc where pronamespace = 'presence'::regnamespace
                      group by proname having count(*) > 1";
    assert_eq!(column(&mut alice, overloaded), [""; 0]);
    let others = "select distinct classid::regclass from pg_depend
                  where refclassid = 'pg_namespace'::regclass and refobjid = 'presence'::regnamespace
                    and classid not in ('pg_class'::regclass, 'pg_proc'::regclass, 'pg_extension'::regclass)";
    assert_eq!(column(&mut alice, others), [""; 0]);

    // Generators know all column types, and every table has a key.
    let strange = "select attrelid::regclass, attname, format_type(atttypid, null)
                   from pg_attribute a join pg_class c on c.oid = attrelid
                   where relnamespace = 'presence'::regnamespace and relkind <> 'i' and attnum > 0 and not attisdropped
                     and atttypid::regtype::text not in
                         ('text', 'text[]', 'bigint', 'integer', 'boolean', 'jsonb', 'interval', 'uuid',
                          'timestamp with time zone')
                     and not (relname = 'health' and atttypid::regtype::text in ('double precision', 'numeric'))";
    assert_eq!(column(&mut alice, strange), [""; 0]);
    let without_key = "select relname from pg_class c
                       where relnamespace = 'presence'::regnamespace and relkind = 'r' and relname <> 'event'
                         and not exists (select from pg_index where indrelid = c.oid and indisprimary)";
    assert_eq!(column(&mut alice, without_key), [""; 0]);

    // Internal objects are in a schema without USAGE, although the planner needs grants on objects in it.
    assert!(alice.is("select not has_schema_privilege('_presence', 'usage')"));
    for inside in [
        "select * from _presence._last_seen",
        "select * from _presence.secret",
        "select _presence._room('r')",
    ] {
        assert_eq!(alice.fails(inside).code, "42501", "{inside}");
    }
}
