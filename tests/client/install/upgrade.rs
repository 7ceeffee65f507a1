//! An upgraded database equals a new one, and a library newer than the SQL schema supports it.
//!
//! `tests/upgrade/presence_ext--VERSION.sql` are the install scripts of released versions; `scripts/install
//! testing` installs them next to the current one.

use crate::common::{Cluster, Mirror, Over, Session, lines, until, use_everything};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};

const CURRENT: &str = env!("CARGO_PKG_VERSION");

/// The released versions that must be upgradable.
fn releases() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/upgrade");
    let mut versions: Vec<String> = std::fs::read_dir(folder)
        .expect("tests/upgrade")
        .filter_map(|file| {
            let name = file.ok()?.file_name().into_string().ok()?;
            Some(name.strip_prefix("presence_ext--")?.strip_suffix(".sql")?.to_owned())
        })
        .collect();
    versions.sort();
    assert_eq!(versions.first().map(String::as_str), Some("0.1.0"), "the first release");
    versions
}

/// A server with a database whose extension has that version, with the users and a worker.
fn old(version: &str) -> Cluster {
    let cluster = Cluster::bare(&[]);
    cluster.sql("postgres", "create database app");
    cluster.sql("app", &format!("create extension presence_ext version '{version}'"));
    cluster.sql("app", "select presence.grant_access('alice'), presence.grant_access('bob')");
    cluster.until_worker("app");
    cluster
}

type Catalog = BTreeMap<(String, String), String>;

fn catalog(session: &mut Session) -> Catalog {
    let rows = session.rows(include_str!("../../upgrade/catalog.sql"));
    rows.into_iter()
        .map(|row| {
            let [object, property, value] = <[String; 3]>::try_from(row).expect("three columns");
            ((object, property), value)
        })
        .collect()
}

/// What the upgrade script lacks, object by object.
fn differences(fresh: &Catalog, upgraded: &Catalog) -> Vec<String> {
    let mut found = Vec::new();
    for ((object, property), value) in fresh {
        match upgraded.get(&(object.clone(), property.clone())) {
            None => found.push(format!("{object}: {property}: missing after the upgrade, fresh is\n{value}")),
            Some(other) if other != value => {
                found.push(format!("{object}: {property} differs\n  fresh:    {value}\n  upgraded: {other}"))
            }
            Some(_) => {}
        }
    }
    for (object, property) in upgraded.keys().filter(|key| !fresh.contains_key(*key)) {
        found.push(format!("{object}: {property}: only after the upgrade"));
    }
    found
}

#[test]
fn an_upgraded_schema_equals_a_fresh_one() {
    let cluster = Cluster::bare(&[]);
    cluster.sql("postgres", "create extension presence_ext");
    let fresh = catalog(&mut cluster.session("postgres", "postgres"));
    assert!(fresh.len() > 500, "{} properties is too few to be all", fresh.len());
    for version in releases() {
        let name = format!("from_{}", version.replace('.', "_"));
        cluster.sql("postgres", &format!("create database {name}"));
        let mut session = cluster.session("postgres", &name);
        session.run(&format!("create extension presence_ext version '{version}'"));
        session.run("alter extension presence_ext update");
        assert_eq!(
            session.value("select extversion from pg_extension where extname = 'presence_ext'"),
            CURRENT
        );
        let differences = differences(&fresh, &catalog(&mut session));
        assert!(
            differences.is_empty(),
            "sql/presence_ext--{version}--{CURRENT}.sql (see scripts/upgrade-script) lacks something:\n\n{}\n",
            differences.join("\n\n")
        );
    }
    cluster.assert_sound();
}

/// The restart with the new library comes first, ALTER EXTENSION UPDATE possibly much later.
#[test]
fn a_newer_library_serves_the_schema_of_every_release() {
    for version in releases() {
        let cluster = old(&version);
        let (mut service, mut alice, mut bob) =
            (cluster.service(), cluster.user("alice"), cluster.user("bob"));
        // The library has each C function of the old script: the validator checks that.
        service.run(
            "select fmgr_c_validator(p.oid) from pg_proc p join pg_language l on l.oid = p.prolang
             where p.pronamespace = 'presence'::regnamespace and l.lanname = 'c'",
        );
        if version != CURRENT {
            assert!(service.is("select library_version <> extension_version from presence.health"));
            let warning = format!("this database has version {version}, the library is version {CURRENT}");
            until("the log says what to do", || cluster.log().contains(&warning));
        }
        use_everything(&mut service, &mut alice, &mut bob);
        cluster.restart();
        cluster.until_worker("app");
        let (mut service, mut alice, mut bob) =
            (cluster.service(), cluster.user("alice"), cluster.user("bob"));
        assert!(alice.is("select presence.heartbeat('lobby')"), "a restart keeps it");
        use_everything(&mut service, &mut alice, &mut bob);
        service.run("alter extension presence_ext update");
        service.run("select presence.grant_access('alice'), presence.grant_access('bob')");
        use_everything(&mut service, &mut alice, &mut bob);
        cluster.assert_sound();
    }
}

#[test]
fn an_upgrade_keeps_members_rooms_rights_and_listeners() {
    for version in releases() {
        let cluster = old(&version);
        let (mut service, mut alice, mut bob) =
            (cluster.service(), cluster.user("alice"), cluster.user("bob"));
        service.run("select presence.set_room('lobby', '{\"topic\": \"t\"}')");
        service.run(
            "create view public.here as select * from presence.online;
             create view public.whole as select o from presence.online o;
             create view public.listed as select * from presence.list('lobby');
             create view public.log as select * from presence.event;
             create materialized view public.kept as select * from presence.changes(0);
             create table public.stored (o presence.online, e presence.event);
             create view public.may as select presence._may('lobby', 'read') as may;
             create function public.renewed() returns jsonb
                 begin atomic; select u.state from presence.update('lobby') u; end;
             create function public.gone() returns integer
                 begin atomic; select presence.delete('nowhere', state => '1'); end;
             create function public.entered() returns jsonb
                 begin atomic; select (presence.upsert('lobby')).state; end;
             create function public.plain() returns setof presence.online language sql
                 as 'select * from presence.online';
             create function public.speak() returns text begin atomic;
                 select presence.act_as('zoe'); select presence.user_id(); end;
             create function public.forget() returns void begin atomic; select presence.forget('nobody'); end;
             create function public.let_in(who regrole) returns void begin atomic; select presence.grant_access(who); end",
        );
        for session in [&mut alice, &mut bob] {
            session.run("select presence.upsert('lobby', '1')");
            session.run("select presence.listen('lobby')"); // an uncommitted enter grants no access
            session.hear();
        }
        service.flush();
        let everything = "select array(select (to_jsonb(m) - '{leaves_at,last_word,leave_reason,reverts}'::text[])::text from presence.member m order by 1),
                                 array(select r::text from presence.room r),
                                 array(select (to_jsonb(e) - 'node')::text from presence.event e order by seq),
                                 (select encode(key, 'hex') from SCHEMA.secret)";
        let before = service.rows(&everything.replace("SCHEMA", "presence"));
        service.run("alter extension presence_ext update");
        assert_eq!(service.rows(&everything.replace("SCHEMA", "_presence")), before);
        for of_their_own in ["public.here", "public.whole", "public.listed", "public.plain()"] {
            assert_eq!(service.number(&format!("select count(*) from {of_their_own}")), 2, "{of_their_own}");
        }
        assert!(
            service.is("select count(*) >= 2 from public.log") && service.is("select may from public.may")
        );
        // Users who were granted access before the upgrade can also read members that revert.
        alice.run("select presence.update('lobby', status => 'typing', revert_after => '0.2 s')");
        until("it has reverted", || bob.is("select status is null from presence.get('lobby', 'alice')"));
        bob.hear_until("and is told", |event| event["status"].is_null());
        assert!(
            alice.is("select (public.renewed(), public.entered(), public.gone()) is not null"),
            "by what it was made with"
        );
        assert_eq!(alice.number("select presence.delete('nowhere', after => '1 s')"), 0, "granted before");
        assert!(
            alice.is("select count(*) = 1 from presence.update('lobby', ttl => '2 min')")
                && alice.number("select count(*) from presence.list('lobby')") == 2,
            "granted before"
        );
        let granted = "select count(*) from pg_init_privs where initprivs::text like '%alice%'";
        assert_eq!(service.number(granted), 0, "else a dump would leave it out");
        // Functions that returned void now return a value, to authorized callers and in stored calls.
        assert_eq!(service.value("select public.speak()"), "zoe");
        service.run("select public.forget(); select public.let_in('bob')");
        assert!(
            service.is("select presence.act_as('zoe')")
                && service.number("select presence.forget('zoe')") == 0
        );
        assert_eq!(
            bob.fails("select presence.act_as('zoe')").detail,
            "The login role (session_user) is neither a superuser nor in presence.trusted_login_roles."
        );
        service.run("refresh materialized view public.kept");
        service.run("insert into public.stored select o, e from presence.online o, presence.event e");
        let nodes = "select count(*), count((o).node), count((e).node) from public.stored";
        assert!(service.rows(nodes)[0][0] != "0" && service.rows(nodes)[0][1..] == ["0", "0"]);
        assert!(alice.is("select presence.heartbeat('lobby')"));
        alice.run("select presence.upsert('lobby', '2')");
        assert_eq!(lines(&bob.hear()), ["update alice"], "on the channels it listened to before");
        cluster.assert_sound();
    }
}

/// The table had user-defined columns before the upgrade.
#[test]
fn an_upgrade_puts_its_columns_behind_those_of_others() {
    for version in releases() {
        let cluster = old(&version);
        let (mut service, mut alice) = (cluster.service(), cluster.user("alice"));
        service.run(
            "alter table presence.member add column mine text default 'kept', add column gone jsonb, add column later text",
        );
        service.run("alter table presence.member drop column gone");
        alice.run("select presence.upsert('lobby', '1')");
        let early =
            r#"select presence.delete_many('[{"room": "lobby", "member_id": "alice", "after": "1 s"}]')"#;
        let refused = service.fails(early);
        assert_eq!(refused.code, "XX000");
        assert!(refused.hint.contains("ALTER EXTENSION presence_ext UPDATE"), "{refused:?}");
        service.run("alter extension presence_ext update; select presence.listen()");
        assert_eq!(service.number(early), 1);
        let fixed = "select leaves_at = expires_at and mine = 'kept' and later is null from presence.member";
        assert!(service.is(fixed));
        alice.run(
            "update presence.member set later = 'mine'; select presence.update('lobby', '{}', status => 'x')",
        );
        assert!(
            service.is(
                "select leaves_at = expires_at and mine = 'kept' and later = 'mine' from presence.member"
            )
        );
        alice.run("select presence.upsert('lobby')");
        assert!(
            service.is("select leaves_at is null and mine = 'kept' and later = 'mine' from presence.member")
        );
        alice.run("select presence.delete('lobby', state => '\"bye\"', after => '300 ms')");
        let heard = service.hear_until("the leave", |event| event.kind() == "leave");
        let leave = heard.last().expect("it");
        assert_eq!((leave.line(), &leave["state"]), ("leave alice left".into(), &"bye".into()));
        // Once those columns are dropped, the table is as originally created, except for the column
        // positions.
        service.run("alter table presence.member drop column mine, drop column later");
        alice.run("select presence.upsert('lobby'), presence.delete('lobby', after => '1 h')");
        assert!(alice.is("select leaves_at > now() from presence.member"));
        cluster.assert_sound();
    }
}

/// A stored call of an internal lease function that is no longer accessible would keep working.
#[test]
fn an_upgrade_leaves_no_way_to_ask_about_a_lease() {
    for version in releases() {
        let cluster = old(&version);
        let (mut service, mut bob) = (cluster.service(), cluster.user("bob"));
        service.run("create schema of_bob authorization bob");
        bob.run(
            "create function of_bob.asks(key uuid) returns boolean
                 begin atomic; select presence._is_alive(key, 1, 1, 1, 1); end",
        );
        let refused = service.fails("alter extension presence_ext update");
        assert_eq!(refused.code, "2BP01");
        assert!(refused.detail.contains("function of_bob.asks(uuid)"), "{refused:?}");
        service.run("drop function of_bob.asks; alter extension presence_ext update");
        assert_eq!(bob.fails("select presence._is_alive(null, 1, 1, 1, 1)").code, "42883");
        assert_eq!(bob.fails("select _presence._is_alive(null, 1, 1, 1, 1)").code, "42501");
        cluster.assert_sound();
    }
}

/// Users during the upgrade get no error, and nothing is lost.
#[test]
fn an_upgrade_goes_through_with_traffic_on() {
    for version in releases().iter().filter(|version| *version != CURRENT) {
        let cluster = old(version);
        let (done, turns) = (AtomicBool::new(false), AtomicU64::new(0));
        let mut service = cluster.service();
        service.run("select presence.listen()");
        let mut mirror = Mirror::of(&mut service);
        std::thread::scope(|scope| {
            for user in ["alice", "bob"] {
                let (cluster, done, turns) = (&cluster, &done, &turns);
                scope.spawn(move || {
                    let mut session = cluster.user(user);
                    while !done.load(Relaxed) {
                        let turn = turns.fetch_add(1, Relaxed);
                        session.run(&format!("select presence.upsert('lobby', '{turn}')"));
                        assert!(session.is("select presence.heartbeat('lobby')"));
                        let count = "select count(*) from presence.list('lobby')";
                        let here = match session.try_rows(count) {
                            // PostgreSQL was planning the statement when the update committed
                            // (docs/operations.md).
                            Err(failure) if failure.code == "42P13" => session.number(count),
                            here => here.expect(count)[0][0].parse().unwrap(),
                        };
                        assert!(here > 0);
                        session.run(
                            "select presence.delete('lobby'), presence.occupancy(), presence.changes(0)",
                        );
                    }
                });
            }
            let _over = Over::tell(&done);
            let mut owner = cluster.service();
            for _ in 0..3 {
                let before = turns.load(Relaxed);
                until("there is traffic", || turns.load(Relaxed) > before + 50);
                // Once more with uncommitted work: the update waits for it, like any DDL.
                let mut open = cluster.user("alice");
                open.run("begin; select presence.upsert('side', '1')");
                let pid = owner.pid();
                scope.spawn(move || {
                    let waits =
                        format!("select exists (select from pg_locks where not granted and pid = {pid})");
                    until("the update waits", || open.is(&waits));
                    open.run("select presence.update('side', '{}'), presence.changes(0); commit");
                    open.run("select presence.delete('side')");
                });
                owner.run("begin; alter extension presence_ext update; rollback");
            }
            owner.run("alter extension presence_ext update");
            let after = turns.load(Relaxed);
            until("there is traffic after it", || turns.load(Relaxed) > after + 50);
        });
        mirror.follow(&mut service);
        mirror.assert_true(&mut service);
        assert_eq!(service.value("select extension_version from presence.health"), CURRENT);
        cluster.assert_sound();
    }
}

/// The server has a name before the schema has a copy: members are copied from the upgrade on.
#[test]
fn a_server_with_a_name_copies_after_the_upgrade() {
    for version in releases() {
        let cluster = Cluster::bare(&["presence.node_name=a", "presence.node_beat=200ms"]);
        cluster.sql("postgres", "create database app");
        cluster.sql("app", &format!("create extension presence_ext version '{version}'"));
        let mut session = cluster.session("postgres", "app");
        let enter =
            "select presence.upsert('lobby', user_id => 'u' || n, ttl => '1 h') from generate_series(1, 3) n";
        session.run(enter);
        session.flush();
        // Without a copy a crash still removes all members, and nothing waits for a restore.
        cluster.stop("immediate");
        cluster.start_again();
        cluster.until_worker("app");
        let mut session = cluster.session("postgres", "app");
        let online = "select count(*) from presence.online";
        assert_eq!(session.number(online), 0, "{version}");
        session.run(enter);
        session.flush();
        session.run("alter extension presence_ext update");
        until("they are copied", || session.number("select count(*) from presence.shared") == 3);
        until("it beats", || session.rows("select state, members from presence.node") == [["up", "3"]]);
        cluster.stop("immediate");
        cluster.start_again();
        cluster.until_worker("app");
        let mut session = cluster.session("postgres", "app");
        assert!(session.is("select presence.heartbeat('lobby', 'u1')"), "{version}");
        assert_eq!(session.number(online), 3, "{version}");
        assert!(!cluster.log().contains("failed"), "{version}: the copy was asked for in vain");
        cluster.assert_sound();
    }
}
