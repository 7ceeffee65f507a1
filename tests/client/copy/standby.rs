//! A physical standby shows members to the same users as the primary does, and takes over from the primary.

use super::named;
use crate::common::{Cluster, Frozen, Mirror, Over, Session, Standby, millis, shell, until};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::time::Instant;

const ROOMS: [&str; 4] = ["lobby", "side", "quiet", "secret"];

/// All that a user is shown, by every function that shows members.
fn shown(session: &mut Session) -> Vec<Vec<Vec<String>>> {
    let all = "room, member_id, connection_id, user_id, status, state, metadata, audience, version, joined_at, updated_at, ttl, node";
    let mut queries = vec![
        format!("select {all} from presence.list()"),
        "select unnest from unnest(presence.tokens()) order by 1".into(),
        "select * from presence.occupancy()".into(),
        "select * from presence.rooms()".into(),
    ];
    for room in ROOMS {
        queries.extend([
            format!("select {all} from presence.list('{room}', 2)"),
            format!("select {all} from presence.list('{room}', after => '{{alice,\"\"}}')"),
            format!("select {all} from presence.get('{room}')"),
            format!("select {all} from presence.get('{room}', 'bob')"),
            format!(
                "select user_id, members, status, state, metadata, joined_at from presence.users('{room}')"
            ),
            format!("select * from presence.occupancy('{room}')"),
            format!("select presence.state('{room}')"),
        ]);
    }
    queries.iter().map(|query| session.rows(query)).collect()
}

#[test]
fn a_standby_shows_everybody_what_the_primary_shows() {
    let cluster = named(&[]);
    let mut service = cluster.service();
    service.run(
        "create function public.authorize(room text, action text) returns boolean language sql
             as $$ select room <> 'secret' or action <> 'read' or current_user = 'carol' $$;
         alter database app set presence.authorizer = 'public.authorize';
         create role team_member; grant team_member to carol;
         create role authenticator login; create role authenticated; grant authenticated to authenticator;
         select presence.grant_access('authenticated');
         select presence.set_room('quiet', count_audience => '{user:carol}')",
    );
    let audiences =
        ["{any}", "{users}", "{room}", "{}", "{user:bob}", "{role:team_member}", "{team:red}", "{room:side}"];
    for user in ["alice", "bob", "carol"] {
        let mut session = cluster.user(user);
        for (at, audience) in audiences.into_iter().enumerate() {
            for room in ROOMS.into_iter().filter(|room| *room != "side" || user != "carol") {
                session.run(&format!(
                    "select presence.upsert('{room}', '{{\"n\": {at}}}', connection_id => 'c{at}', status => '{audience}', audience => '{audience}')"
                ));
            }
        }
    }
    service.flush();
    let standby = Standby::of(&cluster);
    let mut looked = standby.service();
    until("the beat is heard", || looked.number("select count(*) from presence.list()") > 0);
    standby.until_caught_up(&mut service);

    let claims = "set role authenticated; set request.jwt.claims = '{\"sub\": \"dora\", \"app_metadata\": {\"teams\": [\"red\"]}}'";
    let people = ["postgres", "alice", "bob", "carol", "authenticator"];
    let mut numbers = BTreeSet::new();
    for person in people {
        let (mut there, mut here) = (cluster.user(person), standby.user(person));
        if person == "authenticator" {
            there.run(claims);
            here.run(claims);
        }
        let (there, here) = (shown(&mut there), shown(&mut here));
        assert_eq!(here, there, "{person}");
        numbers.insert(here[0].len());
    }
    // The users do not all see the same.
    assert_eq!(numbers.len(), people.len(), "{numbers:?}");

    // The view, and users' own functions and prepared plans.
    let mut alice = standby.user("alice");
    let mut there = cluster.user("alice");
    let view = "select room, member_id, connection_id, state, audience, version, expires_at, session_pid, node from presence.%
                order by 1, 2, 3";
    let columns = |name: &str| view.replace('%', name).replace("expires_at", "null::text");
    assert_eq!(alice.rows(&columns("shared_online")), there.rows(&columns("online")));
    service.run("create function public.mine(room text) returns setof presence.online language sql stable
                 begin atomic select l.* from presence.list(mine.room) l where l.user_id = presence.user_id(); end");
    standby.until_caught_up(&mut service);
    assert_eq!(alice.number("select count(*) from public.mine('lobby')"), 8);
    assert_eq!(
        alice.prepared("select count(*)::text from presence.list($1)", &["lobby"])[0],
        there.prepared("select count(*)::text from presence.list($1)", &["lobby"])[0]
    );
    // Without the right to call a function, its replacement on a standby cannot be called either.
    service.run("revoke execute on function presence.list(text, integer, text[]) from alice");
    standby.until_caught_up(&mut service);
    assert_eq!(alice.fails("select * from presence.list('lobby')").code, "42501");
    cluster.assert_sound();
}

#[test]
fn verbs_and_listeners_are_sent_to_the_primary() {
    let cluster = named(&[]);
    let standby = Standby::of(&cluster);
    let mut alice = standby.user("alice");
    for call in [
        "upsert('lobby')",
        "update('lobby', '{}')",
        "heartbeat('lobby')",
        "heartbeat_many('{lobby}')",
        "delete('lobby')",
        "delete_all()",
        "upsert_many('[]')",
        "delete_many('[]')",
        "delete_room('lobby')",
        "listen()",
        "channels()",
        "rotate_channels()",
        "wait_for_flush('1 s')",
        "history('lobby')",
        "changes(0)",
        "seq()",
    ] {
        let failure = alice.fails(&format!("select * from presence.{call}"));
        assert_eq!(failure.code, "25006", "{call}: {failure:?}");
        assert!(failure.hint.contains("primary"), "{call}: {failure:?}");
    }
    cluster.assert_sound();
}

/// Showing nobody is better than showing members who may be gone.
#[test]
fn a_standby_that_hears_nothing_shows_nobody() {
    let cluster = named(&["presence.node_timeout=1500ms"]);
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    alice.run("select presence.upsert('lobby', audience => '{any}')");
    service.flush();
    let standby = Standby::of(&cluster);
    let mut bob = standby.user("bob");
    let (list, health) = (
        "select member_id from presence.list('lobby')",
        "select worker_state, node, beat_age < '1500 ms' from presence.health",
    );
    until("alice is shown", || bob.rows(list) == [["alice"]]);
    let mut looked = standby.service();
    assert_eq!(looked.rows(health), [["standby", "a", "t"]]);
    {
        let _frozen = Frozen::new(service.number("select presence.worker_pid()"));
        until("nobody is shown", || bob.rows(list).is_empty());
        assert!(bob.rows("select * from presence.shared_online").is_empty());
        assert_eq!(bob.value("select presence.state('lobby')"), "{}");
        assert_eq!(looked.rows(health), [["standby", "a", "f"]]);
    }
    until("alice is shown again", || bob.rows(list) == [["alice"]]);
    alice.run("select presence.delete('lobby')");
    until("alice has left", || bob.rows(list).is_empty());
    cluster.assert_sound();
}

/// A query on the standby that is older than what the primary cleans up holds up the replay for as long as it
/// is allowed to, so the standby receives no beat. Afterwards the query is cancelled, and everything works
/// again.
#[test]
fn a_long_query_there_holds_up_the_replay_and_nothing_else() {
    let cluster = named(&["presence.node_timeout=1500ms", "max_standby_streaming_delay=-1"]);
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    alice.run("select presence.upsert('lobby', '0', audience => '{any}')");
    service.flush();
    let standby = Standby::of(&cluster);
    let (mut bob, mut holder) = (standby.user("bob"), standby.service());
    let list = "select state from presence.list('lobby')";
    let mut n = 0;
    let mut next = |session: &mut Session| {
        n += 1;
        alice.run(&format!("select presence.upsert('lobby', '{n}')"));
        service.flush();
        service.run("vacuum presence.shared, presence.node");
        // Once the delay is used up, the replay cancels whatever query is in its way, this one as well.
        let rows = session.try_rows(list).unwrap_or_else(|failure| {
            assert_eq!(failure.code, "40001");
            Vec::new()
        });
        (rows, n)
    };
    until("alice is shown", || bob.rows(list) == [["0"]]);
    holder.run("begin isolation level repeatable read; select * from presence.shared, presence.node");
    until("nobody is shown", || next(&mut bob).0.is_empty());
    assert!(holder.is("select count(*) = 1 from presence.shared"));
    holder.run("commit");
    until("alice is shown as she is", || {
        let (rows, n) = next(&mut bob);
        !rows.is_empty() && rows[0][0].parse::<i64>().expect("a number") > n - 5
    });
    // With a limited delay, the query cannot hold up the replay.
    let mut there = standby.service();
    there.run("alter system set max_standby_streaming_delay = '500ms'");
    there.run("select pg_reload_conf()");
    holder.run("begin isolation level repeatable read; select * from presence.shared, presence.node");
    until("it is cancelled", || {
        next(&mut bob);
        holder.try_run("select count(*) from presence.shared").is_err()
    });
    until("alice is shown as she is", || {
        let (rows, n) = next(&mut bob);
        !rows.is_empty() && rows[0][0].parse::<i64>().expect("a number") > n - 5
    });
    until("all is well", || there.value("select failing_since from presence.health").is_empty());
    cluster.assert_sound();
}

#[test]
fn without_a_name_a_standby_has_rooms_and_no_members() {
    let cluster = Cluster::start();
    cluster.user("alice").run("select presence.upsert('kept')");
    cluster.service().run("select presence.set_room('kept')");
    let standby = Standby::of(&cluster);
    let mut session = standby.service();
    assert!(session.is("select pg_is_in_recovery()"));
    assert_eq!(session.value("select room from presence.room"), "kept");
    assert!(session.rows("select * from presence.list('kept')").is_empty());
    assert_eq!(session.rows("select node, beat_age, members from presence.health"), [["", "", ""]]);
    for call in ["heartbeat('kept')", "upsert('kept')"] {
        assert_eq!(session.fails(&format!("select presence.{call}")).code, "25006");
    }
    session.run("prepare look as select room from presence.list('kept')");
    assert!(session.rows("execute look").is_empty());
    standby.promote();
    assert!(standby.service().rows("select * from presence.list('kept')").is_empty());
    session.run("select presence.upsert('kept')");
    session.flush();
    // A plan made before the promotion is no longer used.
    assert_eq!(session.rows("execute look"), [["kept"]]);
}

/// A client that writes and, when it loses the primary, continues on the standby once writes are accepted
/// there.
fn writes(cluster: &Cluster, standby: &Standby, writer: usize, over: &AtomicBool, written: &AtomicU64) {
    let (mut session, mut newest, mut n) = (cluster.service(), 0, 0);
    while !over.load(Acquire) {
        n += 1;
        let user = format!("b{writer}_{}", n % 40);
        let upsert = format!(
            "select version from presence.upsert('busy', to_jsonb({n}), user_id => '{user}', ttl => '1 h')"
        );
        match session.try_rows(&upsert) {
            Ok(rows) => {
                let version: i64 = rows[0][0].parse().expect("a version");
                assert!(version > newest, "{user}: {version} after {newest}");
                newest = version;
                written.fetch_add(1, AcqRel);
            }
            Err(_) => {
                session = standby.service();
                let mut renewed = Vec::new();
                until("it is the primary", || {
                    let renew = "select count(*), count(*) filter (where presence.heartbeat('busy', 'b%_' || n)) from generate_series(0, 39) n";
                    session
                        .try_rows(&renew.replace('%', &writer.to_string()))
                        .inspect_err(|failure| assert_eq!(failure.code, "25006", "{failure:?}"))
                        .is_ok_and(|rows| {
                            renewed = rows;
                            true
                        })
                });
                assert_eq!(renewed, [["40", "40"]], "heartbeats are true");
            }
        }
    }
}

/// Clients write until the primary dies and the standby is promoted. They continue there, and nobody has seen
/// a member leave.
#[test]
fn a_standby_is_promoted_under_load() {
    let cluster = named(&["presence.max_per_user=0", "presence.restart_grace=60s"]);
    let mut service = cluster.service();
    service.run("select count(presence.upsert('still', to_jsonb(n), user_id => 's' || n, ttl => '1 h')) from generate_series(1, 500) n");
    service.flush();
    let standby = Standby::of(&cluster);
    // A session that stays connected, with prepared plans.
    let mut stays = standby.service();
    stays.run("prepare look as select member_id, version from presence.list('still') order by 1");
    stays.run("prepare numbers as select members from presence.occupancy('still')");
    until("the standby shows them", || stays.rows("execute look").len() == 500);
    assert_eq!(stays.number("execute numbers"), 500);
    let mut watches = cluster.service();
    watches.run("select presence.listen()");
    let mut mirror = Mirror::of(&mut watches);

    let (over, written) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _over = Over::tell(&over);
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let (cluster, standby, over, written) = (&cluster, &standby, &over, &written);
                scope.spawn(move || writes(cluster, standby, writer, over, written))
            })
            .collect();
        until("all have entered", || {
            mirror.follow(&mut watches);
            mirror.members().len() == 620
        });
        until("the standby has them", || {
            stays.number("select members from presence.occupancy('busy')") == 120
        });
        cluster.stop("immediate");
        let before = stays.rows("execute look");
        assert_eq!(before.len(), 500);

        standby.promote();
        let mut service = standby.service();
        // The first call waits until all members are restored.
        assert!(service.is("select presence.heartbeat('still', 's1')"));
        assert_eq!(service.rows("select member_id, version from presence.list('still') order by 1"), before);
        assert_eq!(stays.rows("execute look"), before);
        let missing = "select count(*) from presence.heartbeat_many(array_fill('still'::text, '{500}'), (select array_agg('s' || n) from generate_series(1, 500) n))";
        assert_eq!(service.number(missing), 0);
        // A watcher reconnects to the new primary, and sees the same members as before.
        let held: BTreeSet<_> = mirror.members().keys().cloned().collect();
        watches = standby.service();
        watches.run("select presence.listen()");
        mirror.list(&mut watches);
        assert_eq!(mirror.members().keys().cloned().collect::<BTreeSet<_>>(), held);
        let by_then = written.load(Acquire);
        until("clients go on here", || {
            let failed = writers.iter().any(|writer| writer.is_finished());
            failed || written.load(Acquire) > by_then + 200
        });
    });
    let mut service = standby.service();
    service.flush();
    mirror.follow(&mut watches);
    mirror.assert_true(&mut watches);
    assert_eq!(
        service.rows("select distinct event from presence.event where event <> 'resync'"),
        [["update"]]
    );
    service.run("select presence.delete('still', 's1')");
    service.flush();
    assert_eq!(stays.rows("execute look").len(), 499);
    assert_eq!(stays.number("execute numbers"), 499);
    super::until_copied(&mut service);
    // The former standby writes its own beats, with a later epoch.
    assert_eq!(service.rows("select node, state from presence.node"), [["a", "up"]]);
}

/// A planned switchover, and back. The cleanly stopped server has saved leases on disk, of members that it no
/// longer has when it returns as a standby.
#[test]
fn a_switchover_and_back() {
    let cluster = named(&["presence.restart_grace=2s", "wal_keep_size=256MB"]);
    let mut service = cluster.service();
    let standby = Standby::of(&cluster);
    service.run("select presence.upsert('lobby', '1', user_id => 'stays', ttl => '5 s')");
    service.run("select presence.upsert('lobby', '1', user_id => 'goes', ttl => '1 h')");
    service.flush();
    standby.until_caught_up(&mut service);
    cluster.stop("fast");
    standby.promote();
    let mut second = standby.service();
    assert!(second.is("select presence.heartbeat('lobby', 'stays')"));
    second.run("select presence.delete('lobby', 'goes')");
    second.flush();

    shell(
        "touch \"$1/data/standby.signal\"; if [ \"$(id -u)\" = 0 ]; then chown postgres: \"$1/data/standby.signal\"; fi
         echo \"primary_conninfo = 'host=$2 user=postgres'\" >>\"$1/data/postgresql.conf\"",
        &[&cluster, standby.as_ref()],
    );
    cluster.start_again();
    let mut first = cluster.service();
    let list = "select member_id from presence.list('lobby')";
    until("the first follows the second", || first.rows(list) == [["stays"]]);
    assert_eq!(first.value("select members from presence.health"), "");
    assert_eq!(first.value("select slots_used from presence.health"), "0");
    // Longer than the saved leases.
    let end = Instant::now() + millis(6_000);
    until("they would be over", || {
        assert!(second.is("select presence.heartbeat('lobby', 'stays')"));
        Instant::now() > end
    });
    standby.stop("fast");
    shell("cd \"$1\"; as_server \"$bin/pg_ctl\" -D \"$1/data\" -s -w promote", &[&cluster]);
    assert!(first.is("select presence.heartbeat('lobby', 'stays')"));
    assert_eq!(first.rows(list), [["stays"]]);
    std::thread::sleep(millis(3_000));
    first.flush();
    assert_eq!(first.rows(list), [["stays"]]);
    assert!(first.rows("select event, reason from presence.event where event = 'leave'").is_empty());
    super::until_copied(&mut first);
    cluster.assert_sound();
}

/// What the primary drops is dropped on the standby, too.
#[test]
fn a_worker_that_looks_holds_up_no_replay() {
    let cluster = named(&[]);
    cluster.sql("postgres", "create database second");
    cluster.sql("second", "create extension presence_ext");
    let standby = Standby::of(&cluster);
    let workers = "select count(*) from pg_stat_activity where backend_type = 'presence_ext standby'";
    let mut looked = standby.service();
    until("there is one in each database", || looked.number(workers) == 2);
    cluster.sql("postgres", "drop database second");
    let mut service = cluster.service();
    standby.until_caught_up(&mut service);
    service.run("drop extension presence_ext");
    standby.until_caught_up(&mut service);
    until("nobody looks", || looked.number(workers) == 0);
    service.run("create extension presence_ext");
    service.run("select presence.upsert('lobby')");
    until("somebody looks again", || {
        looked.try_rows("select member_id from presence.list('lobby')").is_ok_and(|rows| rows.len() == 1)
    });
    cluster.assert_sound();
}
