//! Delivery rights: a leaked channel name carries no events once its holder's right has ended, whatever the
//! transaction, the worker or the event buffer does. And nobody else misses events because of that.

use crate::common::{Cluster, Event, Session, signal, until};
use std::collections::HashSet;
use std::time::Duration;

/// The names that the session would listen to, except for the first one, which is for `resync` and never
/// changes.
fn channels(session: &mut Session, room: &str) -> Vec<String> {
    let names = session.rows(&format!("select presence.channels('{room}')"));
    names.into_iter().skip(1).map(|row| row[0].clone()).collect()
}

/// Listens to known names, as a driver does, however it obtained them.
fn listen_to(session: &mut Session, names: &[String]) {
    let listen: String = names.iter().map(|name| format!("listen {name};")).collect();
    session.run(&listen);
}

/// Events with the same seq count once.
fn of_members(events: &[Event]) -> Vec<String> {
    let mut seen = HashSet::new();
    let news = events.iter().filter(|event| event.is_of_member() && seen.insert(event.seq()));
    news.map(Event::line).collect()
}

/// Pending rotations are done once this change is published.
fn settle(service: &mut Session) {
    service.run("select presence.upsert('elsewhere', jsonb_build_object('n', gen_random_uuid()))");
    service.flush();
}

/// The events that the session receives for a change by alice in the hall now.
fn hears(listener: &mut Session, alice: &mut Session) -> Vec<String> {
    listener.hear();
    alice.run("select presence.update('hall', jsonb_build_object('secret', gen_random_uuid()))");
    of_members(&listener.hear())
}

/// More events than a transaction may have: none of them is published, and everybody must list again.
const TOO_MANY: &str = "do $$ begin
        for n in 1 .. 140 loop
            perform presence.upsert('junk', to_jsonb(n), audience => array(
                select 'team:' || repeat(chr(128512), 250) || k from generate_series(1, 64) k));
        end loop;
        perform presence.delete('junk');
    end $$;";

#[test]
fn an_entry_that_is_rolled_back_opens_no_channel() {
    let cluster = Cluster::start();
    let (mut alice, mut bob) = (cluster.user("alice"), cluster.user("bob"));
    alice.run("select presence.upsert('hall')");
    for (begin, end) in [
        ("begin", "rollback"),
        ("begin; savepoint s", "rollback to s; commit"),
        ("begin isolation level repeatable read; select 1 from presence.online", "rollback"),
        ("begin", "select presence.delete('hall'); commit"),
        ("begin; savepoint s", "select presence.delete('hall'); release s; commit"),
    ] {
        bob.run(&format!("{begin}; select presence.upsert('hall')"));
        let mut names = channels(&mut bob, "hall");
        names.extend(bob.rows("select presence.channels()").remove(0));
        bob.run(end);
        let mut ear = cluster.user("bob");
        listen_to(&mut ear, &names);
        assert!(hears(&mut ear, &mut alice).is_empty(), "{begin} ... {end}");
    }
    // A real entry gives access to the names at commit, and existing listeners are notified.
    bob.run("select presence.listen('hall')");
    bob.hear();
    bob.run("begin; select presence.upsert('hall'), presence.listen('hall'); commit");
    bob.hear_until("relisten", |event| event.kind() == "relisten");
    bob.run("select presence.listen('hall')");
    assert_eq!(hears(&mut bob, &mut alice), ["update alice"]);
}

/// A ban consists of a delete and a refused join.
#[test]
fn who_is_banned_has_kept_no_channel_from_before() {
    let cluster = Cluster::start();
    cluster.sql(
        "app",
        "create table public.banned (who text);
         grant select on public.banned to public;
         create function public.authorize(room text, action text) returns boolean language sql stable as $$
             select action <> 'manage' and not exists (select from public.banned where who = presence.user_id()) $$;
         alter database app set presence.authorizer = 'public.authorize'",
    );
    let (mut alice, mut bob, mut service) = (cluster.user("alice"), cluster.user("bob"), cluster.service());
    alice.run("select presence.upsert('hall')");
    bob.run("begin; select presence.upsert('hall')");
    let names = channels(&mut bob, "hall");
    bob.run("select presence.delete('hall'); commit");
    service.run("select presence.delete('hall', 'bob'); insert into public.banned values ('bob')");
    assert_eq!(bob.fails("select presence.channels('hall')").code, "42501");
    listen_to(&mut bob, &names);
    assert!(hears(&mut bob, &mut alice).is_empty());
}

#[test]
fn a_leave_that_is_lost_takes_the_names_with_it() {
    let cluster = Cluster::start();
    let (mut alice, mut bob, mut ear) = (cluster.user("alice"), cluster.user("bob"), cluster.user("bob"));
    alice.run("select presence.upsert('hall')");
    bob.run("select presence.upsert('hall')");
    for listener in [&mut ear, &mut alice] {
        listener.run("select presence.listen('hall')");
    }
    assert_eq!(hears(&mut ear, &mut cluster.user("alice")), ["update alice"]);
    bob.run(&format!("begin; select presence.delete('hall'); {TOO_MANY} commit"));
    assert!(hears(&mut ear, &mut cluster.user("alice")).is_empty());
    // Those who still have the right are notified, and miss nothing.
    let heard = alice.hear();
    for kind in ["resync", "relisten"] {
        assert!(heard.iter().any(|event| event.kind() == kind), "{heard:#?}");
    }
    alice.run("select presence.listen('hall')");
    assert_eq!(hears(&mut alice, &mut cluster.user("alice")), ["update alice"]);
    cluster.assert_sound();
}

#[test]
fn a_wish_to_rotate_is_never_lost() {
    let cluster = Cluster::start();
    let (mut service, mut bob) = (cluster.service(), cluster.user("bob"));
    let mut stay = |service: &mut Session, sql: &str| {
        let before = channels(&mut bob, "hall");
        service.run(sql);
        service.flush();
        channels(&mut bob, "hall").iter().filter(|name| before.contains(name)).count()
    };
    for room in ["'hall'", ""] {
        let rotate = format!("select presence.rotate_channels({room});");
        let told = stay(&mut service, &rotate);
        assert!(told < 2, "{room}: {told}");
        assert_eq!(stay(&mut service, &format!("begin; {rotate} {TOO_MANY} commit")), told, "{room}");
    }
    // Nor if the whole buffer is full.
    let frozen = cluster.freeze_worker();
    let fill = TOO_MANY.replace("140", "100").replace("perform presence.delete('junk')", "null");
    for user in ["alice", "bob", "carol"] {
        // A separate member each time, so that the changes are not merged.
        cluster.user(user).run(&fill.replace("'junk', ", "'junk' || n, "));
    }
    let before = channels(&mut bob, "hall");
    service.run("select presence.rotate_channels('hall')");
    assert!(service.is("select events_dropped > 0 from presence.health"));
    drop(frozen);
    service.flush();
    assert!(channels(&mut bob, "hall").iter().filter(|name| before.contains(name)).count() < 2);
}

/// Rights revoked in the catalog end delivery to open sessions; no other change renames a channel.
#[test]
fn rights_that_end_in_the_catalog() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    let mut alice = cluster.user("alice");
    alice.run("select presence.upsert('hall', audience => '{any, role:staff}')");
    for (prepare, end) in [
        ("select presence.grant_access('dan')", "select presence.revoke_access('dan')"),
        ("select presence.grant_access('dan')", "revoke select on presence.member from dan"),
        ("select presence.grant_access('dan')", "revoke usage on schema presence from dan"),
        ("grant bob to dan", "revoke bob from dan"),
        ("grant bob to dan", "alter role dan noinherit"),
        ("grant bob to dan", "revoke select on presence.member from bob"),
        ("alter role dan bypassrls; select presence.grant_access('dan')", "alter role dan nobypassrls"),
        ("alter role dan superuser", "alter role dan nosuperuser"),
        ("select presence.grant_access('dan')", "select presence.revoke_access('dan'); drop role dan"),
        ("select presence.grant_access('dan')", "alter role dan rename to danny"),
    ] {
        service.run(&format!("create role dan login; {prepare}"));
        settle(&mut service);
        let mut dan = cluster.user("dan");
        dan.run("select presence.listen('hall'), presence.listen()");
        alice.run("select presence.update('hall', jsonb_build_object('n', gen_random_uuid()))");
        service.flush();
        assert!(!of_members(&dan.heard()).is_empty(), "{prepare}");
        // It does not matter whether the worker is idle or busy at that moment.
        let frozen = cluster.freeze_worker();
        service.run(end);
        alice.run("select presence.update('hall', jsonb_build_object('n', gen_random_uuid()))");
        drop(frozen);
        service.flush();
        if end.contains("rename") {
            // The same role as another user: it keeps its rights, and is told to listen again.
            dan.hear_until("relisten", |event| event.kind() == "relisten");
        } else {
            assert!(of_members(&dan.heard()).is_empty(), "{end}");
            alice.run("select presence.update('hall', jsonb_build_object('n', gen_random_uuid()))");
            service.flush();
            assert!(of_members(&dan.heard()).is_empty(), "{end}, later");
        }
        drop(dan);
        service.run(
            "alter role bob inherit; grant usage on schema presence to bob; grant select on presence.member to bob;
             do $$ begin
                 if exists (select from pg_roles where rolname = 'danny') then
                     alter role danny rename to dan;
                 end if;
                 if exists (select from pg_roles where rolname = 'dan') then
                     drop owned by dan; drop role dan;
                 end if;
             end $$",
        );
    }
    // Changes that revoke nothing.
    let mut bob = cluster.user("bob");
    settle(&mut service);
    let before = channels(&mut bob, "hall");
    for change in [
        "create role dan; grant bob to dan; select presence.grant_access('dan')",
        "create table public.t (i int); grant select on public.t to bob; revoke select on public.t from bob; drop table public.t",
        "create schema s; drop schema s",
        "alter role dan password 'x'",
        "vacuum presence.member",
        "analyze presence.member",
        "create function public.f() returns int language sql as 'select 1'; drop function public.f()",
    ] {
        change.split("; ").for_each(|statement| service.run(statement));
        settle(&mut service);
        assert_eq!(channels(&mut bob, "hall"), before, "{change}");
    }
    // Nor does it matter if another worker saw the previous state. (Killing it with a signal that cannot be
    // handled would restart the whole server.)
    service.run("alter role dan superuser");
    settle(&mut service);
    let before = channels(&mut bob, "hall");
    for (change, takes) in
        [("create role erin; grant bob to erin", false), ("alter role dan nosuperuser", true)]
    {
        let worker = service.number("select presence.worker_pid()");
        let frozen = cluster.freeze_worker();
        service.run(change);
        signal("TERM", worker);
        drop(frozen);
        until("another worker", || {
            ![worker, 0].contains(&service.number("select coalesce(presence.worker_pid(), 0)"))
        });
        settle(&mut service);
        let after = channels(&mut bob, "hall");
        assert!(after.iter().all(|name| before.contains(name) != takes), "{change}");
    }
}

/// Settings grant rights, too: delivery ends when they are taken back, by ALTER DATABASE as well as by a
/// reload.
#[test]
fn rights_that_end_by_a_setting() {
    let cluster = Cluster::start();
    let (mut service, mut alice) = (cluster.service(), cluster.user("alice"));
    alice.run("select presence.upsert('hall', audience => '{}', ttl => '1 hour')");
    // An added service role revokes nothing, so nothing is renamed; a changed path to the teams does rename,
    // which shows when the worker has read the settings.
    for (set, reset) in [
        (
            "begin; alter database app set presence.service_roles = 'bob';
             alter database app set presence.teams_claim = 'one'; commit",
            "alter database app reset presence.service_roles",
        ),
        (
            "begin; alter database app set presence.service_roles = 'bob';
             alter database app set presence.teams_claim = 'two'; commit",
            "alter database app set presence.service_roles = 'x'",
        ),
        (
            "alter database app reset presence.teams_claim; alter database app reset presence.service_roles;
             alter system set presence.service_roles = 'bob'; alter system set presence.teams_claim = 'three'",
            "alter system reset presence.service_roles",
        ),
    ] {
        let reload = |service: &mut Session, change: &str| {
            change.split(';').for_each(|statement| service.run(statement));
            service.run("select pg_reload_conf()");
        };
        let before = channels(&mut alice, "hall");
        reload(&mut service, set);
        until("the worker goes by it", || {
            settle(&mut service);
            channels(&mut alice, "hall") != before
        });
        let mut ear = cluster.user("bob");
        until("bob is a service", || ear.is("select presence.is_service()"));
        until("bob hears", || {
            cluster.until_worker("app");
            ear.run("select presence.listen('hall'), presence.listen()");
            !hears(&mut ear, &mut alice).is_empty()
        });
        reload(&mut service, reset);
        // Whatever role this session believes to have.
        until(reset, || hears(&mut ear, &mut alice).is_empty());
        for _ in 0..3 {
            assert!(hears(&mut ear, &mut alice).is_empty(), "{reset}");
        }
        let mut late = cluster.user("bob");
        until("bob is a user", || !late.is("select presence.is_service()"));
        late.run("select presence.listen('hall'), presence.listen()");
        assert!(hears(&mut late, &mut alice).is_empty(), "{reset}");
        // An unrelated setting renames nothing.
        settle(&mut service);
        let before = channels(&mut alice, "hall");
        reload(&mut service, "alter database app set presence.default_ttl = 91");
        settle(&mut service);
        assert_eq!(channels(&mut alice, "hall"), before, "{reset}");
    }
}

/// Rooms share cells of names: a listener whose names change because of an unrelated room is notified.
#[test]
fn rotation_of_other_rooms_deafens_nobody() {
    let cluster = Cluster::start();
    let (mut alice, mut bob, mut carol, mut service) =
        (cluster.user("alice"), cluster.user("bob"), cluster.user("carol"), cluster.service());
    alice.run("select presence.upsert('hall', ttl => '1 hour')");
    bob.run("select presence.upsert('hall', ttl => '1 hour')");
    bob.run("select presence.listen('hall')");
    bob.hear();
    let before = channels(&mut bob, "hall");
    // By leaving.
    for turn in 0..30 {
        carol.run(&format!(
            "select presence.upsert_many(jsonb_agg(jsonb_build_object('room', format('other %s %s', {turn}, n))))
             from generate_series(1, 900) n"
        ));
        carol.run(&format!(
            "select presence.channels(format('other %s %s', {turn}, n)) from generate_series(1, 900) n;
             select presence.delete_all()"
        ));
        service.flush();
        if channels(&mut bob, "hall") != before {
            break;
        }
    }
    assert_ne!(channels(&mut bob, "hall"), before, "27,000 rooms in 4,096 places");
    bob.hear_until("relisten", |event| event.kind() == "relisten");
    bob.run("select presence.listen('hall')");
    assert_eq!(hears(&mut bob, &mut alice), ["update alice"]);
    // On request.
    let before = channels(&mut bob, "hall");
    bob.hear();
    for turn in 0..30 {
        service.run(&format!(
            "select presence.rotate_channels(format('asked %s %s', {turn}, n)) from generate_series(1, 900) n"
        ));
        service.flush();
        if channels(&mut bob, "hall") != before {
            break;
        }
    }
    assert_ne!(channels(&mut bob, "hall"), before, "27,000 rooms in 4,096 places");
    bob.hear_until("relisten", |event| event.kind() == "relisten");
}

/// ALTER DATABASE ... SET: a restriction applies to events no later than to the first session that has it.
#[test]
fn settings_that_narrow_hold_at_once() {
    let cluster = Cluster::start();
    cluster.sql(
        "app",
        "create function public.authorize(room text, action text) returns boolean language sql as $$
             select action <> 'manage' and room <> 'hall' $$",
    );
    let (mut service, mut bob) = (cluster.service(), cluster.user("bob"));
    let mut alice = cluster.user("alice");
    alice.run("select presence.upsert('hall', audience => '{any}')");
    for setting in ["presence.authorizer = 'public.authorize'", "presence.notify_payload = 'doorbell'"] {
        let name = setting.split(' ').next().expect("a name");
        bob.run("select presence.listen()");
        assert_eq!(hears(&mut bob, &mut alice), ["update alice"], "{setting}: not yet");
        for round in 1..=3 {
            let frozen = cluster.freeze_worker();
            service.run(&format!("alter database app set {setting}"));
            let mut late = cluster.user("carol");
            late.run("select presence.listen()");
            alice.run("select presence.update('hall', jsonb_build_object('n', gen_random_uuid()))");
            drop(frozen);
            service.flush();
            let heard = [late.heard(), bob.heard()].concat();
            assert!(of_members(&heard).is_empty(), "{setting}, {round}: {heard:#?}");
            assert!(heard.iter().any(|event| event.kind() == "changes"), "{setting}, {round}: {heard:#?}");
            service.run(&format!("alter database app reset {name}"));
            until("as before", || {
                cluster.until_worker("app");
                bob.run("select presence.listen()");
                !hears(&mut bob, &mut alice).is_empty()
            });
        }
    }
}

/// The worker dies between a leave and the rotation that the leave requires.
#[test]
fn another_worker_knows_what_is_to_rotate() {
    let cluster = Cluster::start();
    let (mut alice, mut bob, mut carol) = (cluster.user("alice"), cluster.user("bob"), cluster.user("carol"));
    alice.run("select presence.upsert('hall')");
    let mut ears = Vec::new();
    for session in [&mut bob, &mut carol] {
        // The first rotation happens at once, the second one has to wait.
        session.run("select presence.upsert('hall')");
        ears.push(channels(session, "hall"));
        session.run("select presence.delete('hall')");
        session.flush();
    }
    let mut ear = cluster.user("carol");
    listen_to(&mut ear, &ears[1]);
    assert!(hears(&mut ear, &mut alice).is_empty());
    let worker = alice.number("select presence.worker_pid()");
    signal("TERM", worker);
    until("another worker", || {
        ![worker, 0].contains(&alice.number("select coalesce(presence.worker_pid(), 0)"))
    });
    for _ in 0..20 {
        assert!(hears(&mut ear, &mut alice).is_empty());
    }
}

/// The end of a lease ends delivery to its member, even while the row still exists.
#[test]
fn a_member_that_cannot_be_removed_hears_no_more() {
    let cluster = Cluster::start();
    let (mut service, mut alice) = (cluster.service(), cluster.user("alice"));
    cluster.sql(
        "app",
        "create function public.keep() returns trigger language plpgsql as $$
             begin
                 if old.user_id = 'carol' then raise 'carol stays'; end if;
                 return old;
             end $$;
         create trigger keep before delete on presence.member for each row execute function public.keep()",
    );
    alice.run("select presence.upsert('hall')");
    for user in ["bob", "carol"] {
        let (mut member, mut holder, mut ear) = (cluster.user(user), cluster.user(user), cluster.user(user));
        member.run("select presence.upsert('hall', ttl => '2 s')");
        ear.run("select presence.listen('hall'), presence.listen()");
        if user == "bob" {
            holder.run("begin; select from presence.member where user_id = 'bob' for update");
        }
        assert_eq!(hears(&mut ear, &mut alice), ["update alice"], "{user}");
        let before = channels(&mut alice, "hall");
        until("the lease is over", || {
            service.is(&format!("select count(*) = 0 from presence.online where user_id = '{user}'"))
        });
        let mut sweep = || {
            let last = "select last_sweep_at from presence.health";
            let before = service.value(last);
            until("the worker has looked", || service.value(last) != before);
        };
        // The first sweep may have begun before.
        sweep();
        sweep();
        for _ in 0..3 {
            assert!(hears(&mut ear, &mut alice).is_empty(), "{user}");
        }
        let row = format!("select count(*) = 1 from presence.member where user_id = '{user}'");
        assert!(cluster.service().is(&row));
        // The names change once, not with each sweep.
        until("the names have changed", || channels(&mut alice, "hall") != before);
        let names = channels(&mut alice, "hall");
        (0..3).for_each(|_| sweep());
        settle(&mut cluster.service());
        assert_eq!(channels(&mut alice, "hall"), names, "{user}");
        // A user who returns is notified, and receives events again.
        if user == "bob" {
            holder.run("commit");
            member.run("select presence.upsert('hall', ttl => '1 hour')");
            ear.hear_until("relisten", |event| event.kind() == "relisten");
            until("bob hears again", || {
                ear.run("select presence.listen('hall')");
                !hears(&mut ear, &mut alice).is_empty()
            });
        }
    }
}

/// A user with an expired member that cannot be removed yet is present only by the other, living one:
/// entering with another member is notified, and leaving ends delivery.
#[test]
fn a_member_that_is_over_makes_nobody_present() {
    let cluster = Cluster::with_clock(&["presence.default_ttl=10h", "presence.sweep_interval=100ms"]);
    let (mut service, mut alice, mut bob) = (cluster.service(), cluster.user("alice"), cluster.user("bob"));
    alice.run("select presence.upsert('hall')");
    bob.run("select presence.upsert('hall', connection_id => 'phone', ttl => '10 min')");
    let (mut ear, mut holder) = (cluster.user("bob"), cluster.user("bob"));
    let listen = "select presence.listen('hall'), presence.listen()";
    ear.run(listen);
    holder.run("begin; select from presence.member where user_id = 'bob' for update");
    cluster.clock().pass(Duration::from_secs(20 * 60));
    until("bob hears no more", || {
        settle(&mut service);
        hears(&mut ear, &mut alice).is_empty()
    });
    // Pending rotations are done, and their notifications have been repeated for the last time.
    let mut rest = |ear: &mut Session| {
        for _ in 0..2 {
            cluster.clock().pass(Duration::from_secs(6));
            settle(&mut service);
        }
        ear.run(listen);
        ear.hear();
    };
    let is_told = |ear: &mut Session| ear.hear().iter().any(|event| event.kind() == "relisten");
    rest(&mut ear);
    bob.run("select presence.upsert('hall')");
    assert!(is_told(&mut ear));
    ear.run(listen);
    assert_eq!(hears(&mut ear, &mut alice), ["update alice"]);
    bob.run("select presence.delete('hall')");
    assert!(is_told(&mut ear));
    assert!(hears(&mut ear, &mut alice).is_empty());
    // The same for a user who becomes the owner of another's member, and then loses it again.
    let give = |owner: &str| {
        cluster
            .service()
            .run(&format!("select presence.upsert('hall', member_id => 'carol', user_id => '{owner}')"));
    };
    give("carol");
    rest(&mut ear);
    give("bob");
    assert!(is_told(&mut ear));
    ear.run(listen);
    assert_eq!(hears(&mut ear, &mut alice), ["update alice"]);
    give("carol");
    assert!(is_told(&mut ear));
    assert!(hears(&mut ear, &mut alice).is_empty());
}

/// A user who loses sight because of their own expired member is notified, even if it cannot be removed yet,
/// and whatever they listen to.
#[test]
fn who_is_over_is_told() {
    let cluster = Cluster::with_clock(&["presence.default_ttl=10h", "presence.sweep_interval=100ms"]);
    let (mut service, mut bob) = (cluster.service(), cluster.user("bob"));
    cluster.user("alice").run("select presence.upsert('hall', audience => '{room:side}')");
    bob.run("select presence.upsert('side', ttl => '10 min')");
    let (mut ear, mut holder) = (cluster.user("bob"), cluster.user("bob"));
    ear.listen("hall");
    assert!(ear.is("select count(*) = 1 from presence.list('hall')"));
    holder.run("begin; select from presence.member where user_id = 'bob' for update");
    ear.hear();
    cluster.clock().pass(Duration::from_secs(20 * 60));
    assert!(ear.is("select count(*) = 0 from presence.list('hall')"));
    settle(&mut service);
    let heard = ear.hear_until("relisten", |event| event.kind() == "relisten");
    assert_eq!(heard.last().expect("it")["room"], "side");
}

/// Unlistening to a room keeps the channels that other rooms in the same cell need.
#[test]
fn unlisten_leaves_nothing_of_the_room() {
    let cluster = Cluster::start();
    let mut bob = cluster.user("bob");
    bob.run("select presence.listen('hall'), presence.listen('side')");
    let both = bob.number("select count(*) from pg_listening_channels()");
    bob.run("select presence.unlisten('side')");
    let one = bob.number("select count(*) from pg_listening_channels()");
    assert_eq!(bob.rows("select presence.channels('hall') except select pg_listening_channels()").len(), 0);
    bob.run("select presence.unlisten('hall')");
    let none = bob.number("select count(*) from pg_listening_channels()");
    assert!(both > one && one > none && none == 2, "{both} {one} {none}");
}

/// Channels without listeners cost no notification, whoever listened before and however that ended.
#[test]
fn only_names_that_somebody_holds_are_notified() {
    let cluster = Cluster::start();
    let (mut service, mut alice) = (cluster.service(), cluster.user("alice"));
    alice.run("select presence.upsert('hall', audience => '{any}')");
    settle(&mut service);
    let mut sent = || {
        let of = |service: &mut Session| service.number("select notifications_sent from presence.health");
        let before = of(&mut service);
        alice.run("select presence.update('hall', jsonb_build_object('n', gen_random_uuid()))");
        service.flush();
        of(&mut service) - before
    };
    assert_eq!(sent(), 0);
    let mut bob = cluster.user("bob");
    let names = bob.rows("select presence.channels('hall') union select presence.channels()");
    let listen: String = names.iter().map(|name| format!("listen {};", name[0])).collect();
    assert_eq!(sent(), 0, "to have the names is not to listen");
    // Each of these starts to listen, or does not; and then stops.
    for (begin, holds, end) in [
        ("select presence.listen('hall')", true, "select presence.unlisten('hall')"),
        ("select presence.listen('hall')", true, "unlisten *"),
        ("select presence.listen('hall')", true, "discard all"),
        ("listen!", true, "unlisten *"),
        ("listen!", true, "begin; unlisten *; commit"),
        ("listen!", true, "begin; savepoint s; unlisten *; release s; commit"),
        ("begin; listen!; commit", true, "discard all"),
        ("begin; savepoint s; listen!; release s; commit", true, "unlisten *"),
        ("do $$ begin listen! end $$", true, "unlisten *"),
        ("listen!| begin; unlisten *; rollback", true, "unlisten *"),
        ("listen!| begin; savepoint s; unlisten *; rollback to s; commit", true, "unlisten *"),
        ("begin; unlisten *; listen!; commit", true, "unlisten *"),
        ("listen!; listen!; select presence.listen('hall')", true, "unlisten *"),
        ("begin; listen!; unlisten *; commit", false, ""),
        ("begin; listen!; rollback", false, ""),
        ("begin; savepoint s; listen!; rollback to s; commit", false, ""),
        ("begin; select presence.listen('hall'); rollback", false, ""),
        ("begin; select presence.listen('hall'); select 1/0", false, "rollback"),
        ("listen nothing_of_ours; listen presence_0", false, "unlisten *"),
    ] {
        let listen = if begin.contains("do $$") {
            listen.replace("listen ", "execute 'listen ").replace(';', "';")
        } else {
            listen.clone()
        };
        let begin = begin.replace("listen!;", &listen).replace("listen!", &listen);
        // Statements that a client sends together are one transaction.
        begin.split('|').for_each(|together| {
            let _ = bob.try_run(together);
        });
        assert_eq!(sent() > 0, holds, "{begin}");
        let held = bob.try_rows("select pg_listening_channels()").is_ok_and(|names| names.len() > 5);
        assert_eq!(held, holds, "{begin}");
        bob.run(end);
        assert_eq!(sent(), 0, "{begin}, {end}");
    }
    // A session that ends, by itself or by force, also within a transaction.
    for end in ["", "select pg_terminate_backend(pg_backend_pid())", "begin; unlisten *; listen x"] {
        let mut bob = cluster.user("bob");
        bob.run(&listen);
        assert!(sent() > 0);
        let _ = bob.try_run(end);
        drop(bob);
        until("nobody holds them", || sent() == 0);
    }
    // Two listeners to the same names are counted separately.
    let (mut bob, mut carol) = (cluster.user("bob"), cluster.user("carol"));
    bob.listen("hall");
    carol.listen("hall");
    bob.run("unlisten *");
    assert_eq!(sent(), 1);
    assert_eq!(of_members(&carol.hear()).len(), 1);
}

/// A user who was given the names of a room counts until these names change.
#[test]
fn leaves_of_those_who_were_told_nothing_rotate_nothing() {
    let cluster = Cluster::start();
    let (mut service, mut alice, mut bob) = (cluster.service(), cluster.user("alice"), cluster.user("bob"));
    alice.run("select presence.upsert('hall')");
    bob.run("select presence.upsert('hall')");
    channels(&mut bob, "hall");
    let before = channels(&mut alice, "hall");
    bob.run("select presence.delete('hall')");
    settle(&mut service);
    let after = channels(&mut alice, "hall");
    assert_ne!(after, before);
    // Bob enters and leaves again, and was not given any of the current names.
    bob.run("select presence.upsert('hall')");
    bob.run("select presence.delete('hall')");
    settle(&mut service);
    alice.run("select presence.update('hall', '{\"n\": 1}')");
    settle(&mut service);
    assert_eq!(channels(&mut alice, "hall"), after);
}

/// Whatever rooms and roles a user has, a room costs a bounded number of channels; the rest is covered by
/// doorbells.
#[test]
fn a_room_costs_few_channels() {
    let cluster = Cluster::start();
    let (mut service, mut alice, mut bob) = (cluster.service(), cluster.user("alice"), cluster.user("bob"));
    cluster.sql(
        "app",
        "do $$ begin
             for n in 1 .. 12 loop execute format('create role staff%s; grant staff%s to bob', n, n); end loop;
         end $$",
    );
    bob.run(
        "select presence.upsert_many(jsonb_agg(jsonb_build_object('room', 'room ' || n))) from generate_series(1, 300) n",
    );
    bob.run("select presence.upsert('hall')");
    alice.run("select presence.upsert('hall'); select presence.upsert('room 7')");
    service.flush();
    bob.listen("hall");
    let few = bob.number("select count(*) from pg_listening_channels()");
    assert!(few <= 16, "{few}");
    bob.listen("room 7");
    let twice = bob.number("select count(*) from pg_listening_channels()");
    assert!(twice <= 32, "{twice}");
    bob.run("select presence.unlisten('hall')");
    let left = bob.number("select count(*) from pg_listening_channels()");
    assert!(left <= few, "{few} {twice} {left}");
    bob.listen("hall");

    let mut carol = cluster.user("carol");
    carol.listen("hall");
    let mut told = |audience: &str| {
        carol.hear();
        bob.hear();
        alice.run(&format!(
            "select presence.update('hall', jsonb_build_object('n', gen_random_uuid()), audience => '{audience}')"
        ));
        // A changed audience causes several events.
        let last = |listener: &mut Session| {
            let heard = listener.hear();
            let whole = heard.iter().any(|event| matches!(event.kind(), "enter" | "update"));
            (whole, heard.iter().any(|event| event.kind() == "changes"))
        };
        (last(&mut bob), last(&mut carol))
    };
    // Events for everybody, for the room or for the user arrive in full, even if a doorbell rings as well.
    for audience in ["{any}", "{users}", "{room}", "{user:bob}", "{room,room:room 7}", "{role:bob,room}"] {
        assert!(told(audience).0.0, "{audience}");
    }
    // For members of another room: a doorbell for those who are in any room.
    assert_eq!(told("{\"room:room 7\"}"), ((false, true), (false, false)));
    assert!(told("{any}").1.0);
    let seq = "select count(*) from presence.changes(0, 'hall') where event in ('enter', 'update')";
    assert!(cluster.user("bob").number(seq) > 0);
    // Of twelve roles and the user's own, some have a channel, and each one has a doorbell.
    let (mut whole, mut rung) = (0, 0);
    for n in 1..=12 {
        let ((in_full, bell), (_, others_bell)) = told(&format!("{{role:staff{n}}}"));
        assert!(in_full || bell, "staff{n}");
        assert!(!others_bell, "carol has few roles");
        whole += i32::from(in_full);
        rung += i32::from(bell);
    }
    assert!((6..=7).contains(&whole) && rung == 12, "{whole} {rung}");
}

/// A channel without listeners is not notified because of listeners to other channels.
#[test]
fn listeners_elsewhere_are_not_woken() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    service
        .run("select count(presence.upsert('room ' || i, user_id => 'zed')) from generate_series(1, 200) i");
    let mut elsewhere: Vec<_> = (0..60).map(|_| cluster.user("alice")).collect();
    for (number, session) in elsewhere.iter_mut().enumerate() {
        session.run(&format!("select presence.listen('elsewhere {number}')"));
    }
    service.flush();
    let sent = "select notifications_sent from presence.health";
    let before = service.number(sent);
    service.run(
        "select count(presence.upsert('room ' || i, '1', user_id => 'zed')) from generate_series(1, 200) i",
    );
    service.flush();
    // By coincidence one name may look like another.
    let notified = service.number(sent) - before;
    assert!(notified <= 1, "{notified} of 200 events");
}

/// In a small room the names change shortly after each leave, however soon the next leave follows.
#[test]
fn a_room_of_few_soon_has_new_names_again() {
    let cluster = Cluster::start();
    let (mut service, mut alice, mut bob) = (cluster.service(), cluster.user("alice"), cluster.user("bob"));
    alice.run("select presence.upsert('hall', ttl => '1 hour')");
    let began = std::time::Instant::now();
    for round in 0..4 {
        bob.run("select presence.upsert('hall')");
        service.flush();
        bob.run("select presence.listen('hall')");
        let before = channels(&mut alice, "hall");
        bob.run("select presence.delete('hall')");
        until("the names are new", || channels(&mut alice, "hall") != before);
        assert!(began.elapsed().as_secs() < 5 * (round + 1), "round {round} waited for a pause of seconds");
    }
    cluster.assert_sound();
}
