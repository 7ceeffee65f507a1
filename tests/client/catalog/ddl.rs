//! What administrators do to a database that has the extension, and to the extension's own tables:
//! publications, settings, columns, indexes, triggers.

use crate::common::{Cluster, Session, lines, until, use_everything};

/// A server with an empty database `app`, for tests in which CREATE EXTENSION meets an existing environment.
fn without_extension() -> Cluster {
    let cluster = Cluster::bare(&[]);
    cluster.sql("postgres", "create database app");
    cluster
}

fn create_extension(cluster: &Cluster, session: &mut Session) {
    session.run("create extension presence_ext");
    session.run("select presence.grant_access('alice'), presence.grant_access('bob')");
    cluster.until_worker("app");
}

fn people(cluster: &Cluster) -> (Session, Session, Session) {
    (cluster.service(), cluster.user("alice"), cluster.user("bob"))
}

const WITHOUT_IDENTITY: &str = "
    select c.oid::regclass from pg_class c
    where c.relnamespace in (select oid from pg_namespace where nspname in ('presence', '_presence'))
      and c.relkind = 'r' and c.relpersistence = 'p' and c.relreplident <> 'f'
      and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)";

/// A published table needs a replica identity; otherwise PostgreSQL rejects UPDATE and DELETE on it.
#[test]
fn a_publication_of_all_tables_is_in_nobodys_way() {
    let cluster = without_extension();
    let mut owner = cluster.service();
    owner.run("create publication everything for all tables");
    create_extension(&cluster, &mut owner);
    assert_eq!(owner.rows(WITHOUT_IDENTITY), [[""; 0]; 0]);

    let (mut service, mut alice, mut bob) = people(&cluster);
    use_everything(&mut service, &mut alice, &mut bob);
    // Write to each logged table once more, with UPDATE and DELETE of existing rows.
    service.run("select presence.set_room('side', '{\"n\": 1}'); select presence.set_room('side', patch => '{\"n\": 2}')");
    service.run("update presence.room set ttl = '1 min'; select presence.delete_room('side')");
    service.run(
        "create function public.hear(events presence.event[]) returns void language sql begin atomic select; end;
         alter database app set presence.sink = 'public.hear'",
    );
    until("the sink has begun", || service.is("select count(*) = 1 from _presence._sink"));
    alice.run("select presence.upsert('lobby', '\"again\"')");
    service.flush();
    until("the sink goes on", || service.is("select sink_lag = 0 from presence.health"));
    until("users are written down", || service.is("select exists (select from _presence._last_seen)"));
    service.run("select presence.forget('alice'); select presence.forget('bob')");
    service.run("delete from _presence._sink; delete from _presence._last_seen");
    assert_eq!(service.value("select last_error from presence.health"), "");
    // DROP EXTENSION and a running sink may lock tables in opposite order.
    until("it is dropped", || match service.try_run("drop extension presence_ext cascade") {
        Ok(()) => true,
        Err(failure) => {
            assert_eq!(failure.code, "40P01", "{failure:?}");
            false
        }
    });
    cluster.assert_sound();
}

#[test]
fn an_update_goes_through_where_all_tables_are_published() {
    for version in ["0.1.0", "0.2.0"] {
        let cluster = without_extension();
        let mut owner = cluster.service();
        owner.run(&format!("create extension presence_ext version '{version}'"));
        owner.run("create publication everything for all tables");
        owner.run("alter extension presence_ext update");
        assert_eq!(owner.rows(WITHOUT_IDENTITY), [[""; 0]; 0]);
    }
}

/// Each reader and doorbell depends on detecting that the policies are the built-in ones.
#[test]
fn created_with_quote_all_identifiers() {
    let cluster = without_extension();
    let mut owner = cluster.service();
    owner.run("set quote_all_identifiers = on");
    create_extension(&cluster, &mut owner);
    let (mut service, mut alice, mut bob) = people(&cluster);
    use_everything(&mut service, &mut alice, &mut bob);
    use_everything(&mut owner, &mut alice, &mut bob);
}

#[test]
fn reader_with_quote_all_identifiers() {
    let cluster = Cluster::start();
    // Set it for the worker and the sink, too.
    cluster.sql("app", "alter database app set quote_all_identifiers = on");
    cluster.sql("app", "select pg_terminate_backend(presence.worker_pid())");
    cluster.until_worker("app");
    let (mut service, mut alice, mut bob) = people(&cluster);
    assert_eq!(alice.value("show quote_all_identifiers"), "on");
    use_everything(&mut service, &mut alice, &mut bob);
    for session in [&mut service, &mut alice, &mut bob] {
        session.run("set quote_all_identifiers = off");
    }
    use_everything(&mut service, &mut alice, &mut bob);
    // A sink whose name must be quoted.
    service.run(
        "create schema \"Our App\"; create table \"Our App\".heard (n bigint);
         create function \"Our App\".hear(events presence.event[]) returns void language sql
             begin atomic insert into \"Our App\".heard select e.seq from unnest(events) e; end;
         alter database app set presence.sink = '\"Our App\".hear'",
    );
    until("the sink has begun", || service.is("select count(*) = 1 from _presence._sink"));
    alice.run("select presence.upsert('lobby', '\"once more\"')");
    until("the sink has it", || service.is("select count(*) > 0 from \"Our App\".heard"));
}

/// Adds and then drops a user-defined column, in sessions that already knew the table and in new ones.
fn try_columns(table: &str, columns: &[&str]) {
    let cluster = Cluster::start();
    let (mut service, mut alice, mut bob) = people(&cluster);
    service.run(
        "create table public.heard (seq bigint, event text, room text);
         create function public.hear(events presence.event[]) returns void language sql begin atomic
             insert into public.heard select e.seq, e.event, e.room from unnest(events) e; end;
         alter database app set presence.sink = 'public.hear'",
    );
    until("the sink has begun", || service.is("select count(*) = 1 from _presence._sink"));
    use_everything(&mut service, &mut alice, &mut bob);
    for column in columns {
        let name = column.split(' ').next().expect("a name");
        for ddl in [format!("add column {column}"), format!("drop column {name}")] {
            if let Err(refused) = service.try_run(&format!("alter table {table} {ddl}")) {
                // Since 15.20 PostgreSQL itself refuses some of these, because functions return these rows.
                assert_eq!(refused.code, "0A000", "{refused:?}");
                assert_ne!(table, "presence.member");
                break;
            }
            use_everything(&mut service, &mut alice, &mut bob);
            let (mut service, mut alice, mut bob) = people(&cluster);
            use_everything(&mut service, &mut alice, &mut bob);
            check_lines(&mut service, &mut alice);
        }
    }
    // A position that the log never had starts with a resync, which is built by column name.
    service.run("alter table presence.event add column mine text");
    service.run("update _presence._sink set position = -1");
    until("the sink begins anew", || {
        service.is("select exists (select from public.heard where event = 'resync')")
    });
    cluster.assert_sound();
}

/// Rows of the log and of rooms have the right value in each column.
fn check_lines(service: &mut Session, alice: &mut Session) {
    alice.run("select presence.upsert('lines', '{\"n\": 1}', status => 'online', audience => '{any}')");
    service.flush();
    let line = "select event, room, member_id, user_id, status, state, reason, audience from";
    let expected = ["enter", "lines", "alice", "alice", "online", "{\"n\": 1}", "", "{any}"];
    assert_eq!(alice.rows(&format!("{line} presence.history('lines', max_rows => 1)"))[0], expected);
    let changes = alice.rows(&format!("{line} presence.changes(presence.seq() - 1)"));
    assert_eq!(changes[0], expected);
    assert_eq!(changes[1][..2], ["position", ""]);
    assert_eq!(alice.value("select event from presence.changes(-1) limit 1"), "resync");
    assert_eq!(alice.value("select (presence.history('lines', max_rows => 1)).room"), "lines");
    service.run("select presence.set_room('lines', '{\"t\": 1}', audience => '{any}', max_members => 7)");
    let settings =
        "select room, metadata, audience, max_members, keep_history from presence.get_room('lines')";
    assert_eq!(alice.rows(settings)[0], ["lines", "{\"t\": 1}", "{any}", "7", "t"]);
    service.run("select presence.delete_room('lines')");
    service.flush();
    until("the sink has it, too", || {
        service.is("select exists (select from public.heard where room = 'lines' and event = 'leave')")
    });
    service.run("delete from public.heard");
}

const COLUMNS: [&str; 3] =
    ["note text", "number bigint not null default 7", "upper text generated always as (upper(room)) stored"];

#[test]
fn columns_of_others_in_member() {
    try_columns("presence.member", &COLUMNS);
}

#[test]
fn columns_of_others_in_the_log() {
    try_columns("presence.event", &COLUMNS);
    try_columns("_presence._event_1", &COLUMNS[..1]);
}

#[test]
fn columns_of_others_in_room() {
    try_columns("presence.room", &COLUMNS);
}

/// A column type that does more than the original is honoured as in any INSERT: the log writer does not
/// bypass it.
#[test]
fn changed_columns_of_the_log_are_obeyed() {
    let cluster = Cluster::start();
    let (mut service, mut alice) = (cluster.service(), cluster.user("alice"));
    let ddl = "alter table presence.event alter column joined_at type timestamptz(0), alter column connections type bigint";
    if let Err(refused) = service.try_run(ddl) {
        // Since 15.20 PostgreSQL refuses it by itself: functions return these rows.
        assert_eq!(refused.code, "0A000");
        return;
    }
    alice.run("select presence.upsert('lobby', '{\"n\": 1}')");
    service.flush();
    let line =
        "select event, connections, state, date_trunc('second', joined_at) = joined_at from presence.event";
    assert_eq!(service.rows(line)[0], ["enter", "1", "{\"n\": 1}", "t"]);
    cluster.assert_sound();
}

/// The index is found by what it indexes, not by name; without one the table is scanned.
#[test]
fn an_index_by_any_name_or_none() {
    let cluster = Cluster::start();
    let (mut service, mut alice, mut bob) = people(&cluster);
    use_everything(&mut service, &mut alice, &mut bob);
    for ddl in [
        "alter index presence.member_key_hash rename to other_name",
        "alter table presence.member rename constraint member_pkey to other_key",
        "drop index presence.other_name",
        "create index concurrently \"Mine\" on presence.member (key_hash)",
        "create index concurrently theirs on presence.member (key_hash) where room <> 'lobby'",
        "drop index concurrently presence.\"Mine\"",
        "drop index presence.theirs; create index on presence.member (room collate \"C\")",
        "set allow_in_place_tablespaces = on",
        "create tablespace elsewhere location ''",
        "create index again on presence.member (key_hash) tablespace elsewhere",
        "reindex index concurrently presence.again",
        "alter index presence.again set tablespace pg_default",
        "reindex table presence.member",
        "alter index _presence._event_0_seq rename to renamed_0; alter index _presence._event_1_room rename to renamed_1",
        "drop index _presence.renamed_0, _presence.renamed_1",
    ] {
        service.run(ddl);
        use_everything(&mut service, &mut alice, &mut bob);
    }
    cluster.assert_sound();
}

/// Rows that a partial index lacks are not looked up in it, and an invalid index is not used at all.
#[test]
fn an_index_that_lacks_rows_is_not_used() {
    let cluster = Cluster::start();
    let (mut service, mut alice) = (cluster.service(), cluster.user("alice"));
    alice.run("select presence.upsert('lobby', '1')");
    service.run(
        "drop index presence.member_key_hash;
         create index on presence.member (key_hash) where room <> 'lobby';
         create index on presence.member (key_hash) include (room) where false;
         create index on presence.member ((key_hash::text));
         create index on presence.member using hash (key_hash);
         create index invalid on presence.member (key_hash);
         update pg_index set indisvalid = false where indexrelid = 'presence.invalid'::regclass",
    );
    assert_eq!(alice.value("select state from presence.upsert('lobby', '2')"), "2");
    assert_eq!(alice.rows("select members, users from presence.occupancy('lobby')")[0], ["1", "1"]);
    service.run("alter table presence.member drop constraint member_pkey");
    assert_eq!(alice.rows("select members, users from presence.occupancy('lobby')")[0], ["1", "1"]);
    cluster.assert_sound();
}

/// The extension's trigger functions read rows of its own tables, and refuse to run for other triggers.
#[test]
fn a_trigger_function_of_ours_is_for_our_triggers_alone() {
    let cluster = Cluster::start();
    let mut owner = cluster.service();
    let columns = (1..=19).map(|n| format!("c{n} bigint default {n}")).collect::<Vec<_>>().join(", ");
    owner.run(&format!(
        "create table public.numbers ({columns}); create view public.seen as select * from presence.member"
    ));
    owner.run("create table public.twin (like presence.member including all); create view public.rooms as select * from presence.room");
    owner.run("select presence.upsert('lobby'); select presence.set_room('lobby')");
    for function in ["_member_before", "_member_after", "_room_before", "_room_after"] {
        let (table, other) =
            if function.starts_with("_member") { ("member", "room") } else { ("room", "member") };
        for (when, level, relation) in [
            ("before insert or update or delete", "row", "public.numbers"),
            ("after insert or update or delete", "row", "public.numbers"),
            ("before insert", "statement", "public.numbers"),
            ("after truncate", "statement", "public.numbers"),
            ("before insert", "row", "public.twin"),
            ("instead of insert or update or delete", "row", "public.seen"),
            ("instead of insert or update or delete", "row", "public.rooms"),
            (if function.ends_with("before") { "after update" } else { "before update" }, "row", table),
            ("after update", "statement", table),
            ("before update", "row", other),
        ] {
            let relation =
                if relation.contains('.') { relation.to_owned() } else { format!("presence.{relation}") };
            owner.run(&format!(
                "begin; create trigger wrong {when} on {relation} for each {level} execute function _presence.{function}()"
            ));
            let statement = match relation.as_str() {
                "public.numbers" if when.contains("truncate") => "truncate public.numbers".to_owned(),
                "public.numbers" => "insert into public.numbers default values".to_owned(),
                "public.twin" => "insert into public.twin select * from presence.member".to_owned(),
                "public.seen" => "insert into public.seen select * from presence.member".to_owned(),
                "public.rooms" => "delete from public.rooms".to_owned(),
                "presence.room" => "update presence.room set max_members = 3".to_owned(),
                _ => "update presence.member set status = 'other'".to_owned(),
            };
            let failure = owner.fails(&statement);
            assert_eq!(failure.code, "39P01", "{function} {when} on {relation}: {failure:?}");
            assert!(!failure.detail.is_empty() && !failure.hint.is_empty(), "{failure:?}");
            owner.run("rollback");
        }
        let failure = owner.fails(&format!("select _presence.{function}()"));
        assert!(["39P01", "0A000"].contains(&failure.code.as_str()), "{failure:?}");
    }
    // The extension's own triggers still work.
    assert_eq!(owner.value("select status from presence.upsert('lobby', status => 'busy')"), "busy");
    assert_eq!(owner.number("select max_members from presence.set_room('lobby', max_members => 4)"), 4);
    owner.run("select presence.delete('lobby')");
    owner.run("select presence.listen(); select presence.upsert('lobby')");
    assert_eq!(lines(&owner.hear()).last().map(String::as_str), Some("enter postgres"));
    cluster.assert_sound();
}
