//! Channel names across restarts of the server: a clean restart keeps them, for those who still have the
//! right; a crash creates new ones, and notifies listeners to the old ones.

use crate::common::{Cluster, Event, Session, millis, signal, until};
use std::collections::BTreeSet;

/// The names that the session would listen to; the first one is public.
fn channels(session: &mut Session, room: &str) -> Vec<String> {
    let names = session.rows(&format!("select presence.channels('{room}')"));
    names.into_iter().map(|row| row[0].clone()).collect()
}

/// Listens like a library that reconnects by itself.
fn listen_to(session: &mut Session, names: &[String]) {
    let listen: String = names.iter().map(|name| format!("listen {name};")).collect();
    session.run(&listen);
}

/// The number of events that the session receives in full for a change by alice in the hall now.
fn hears(listener: &mut Session, alice: &mut Session) -> usize {
    hears_of("hall", listener, alice)
}

fn hears_of(room: &str, listener: &mut Session, alice: &mut Session) -> usize {
    alice.flush();
    listener.heard();
    alice.run(&format!("select presence.update('{room}', jsonb_build_object('n', gen_random_uuid()))"));
    alice.flush();
    // Events with the same seq count once.
    let heard = listener.heard();
    heard.iter().filter(|event| event.is_of_member()).map(Event::seq).collect::<BTreeSet<_>>().len()
}

fn beacon(events: &[Event], kind: &str) -> String {
    let found = events.iter().rfind(|event| event.kind() == kind && event.channel == "presence");
    found.expect("a beacon").text("boot").to_owned()
}

/// The boot id in the next beacon on the fixed channel.
fn boot(listener: &mut Session) -> String {
    beacon(&listener.hear_until("alive", |event| event.kind() == "alive"), "alive")
}

/// Stops the server in this way and starts it again. A crash is that of a backend.
fn restart(cluster: &Cluster, how: &str) {
    if how == "crash" {
        let mut session = cluster.service();
        let worker = session.number("select presence.worker_pid()");
        signal("KILL", worker);
        until("the server is up again", || {
            cluster.try_session("postgres", "app").is_some_and(|mut session| {
                session.try_rows("select presence.worker_pid() from presence.health").is_ok_and(|rows| {
                    rows.first().is_some_and(|row| !row[0].is_empty() && row[0] != worker.to_string())
                })
            })
        });
    } else {
        cluster.stop(how);
        cluster.start_again();
    }
    cluster.until_worker("app");
}

#[test]
fn names_outlive_a_clean_restart_and_no_crash() {
    let cluster = Cluster::with(&["presence.beacon=1s"]);
    let (mut alice, mut bob) = (cluster.user("alice"), cluster.user("bob"));
    for room in ["hall", "side"] {
        alice.run(&format!("select presence.upsert('{room}', ttl => '1 h')"));
        bob.run(&format!("select presence.upsert('{room}', ttl => '1 h')"));
    }
    // Names that were rotated before are kept, too.
    let mut service = cluster.service();
    for room in ["'hall'", ""] {
        service.run(&format!("select presence.rotate_channels({room})"));
        service.flush();
    }
    bob.listen("hall");
    let mut known = boot(&mut bob);
    assert_eq!(known.len(), 16);
    let mut names = channels(&mut bob, "hall");
    assert_eq!(names[0], "presence");
    assert!(names.len() <= 16);
    for (how, keeps) in
        [("fast", true), ("immediate", false), ("smart", true), ("crash", false), ("fast", true)]
    {
        drop((alice, bob, service));
        restart(&cluster, how);
        (alice, bob, service) = (cluster.user("alice"), cluster.user("bob"), cluster.service());
        listen_to(&mut bob, &names);
        if keeps {
            let heard = bob.hear_until("alive", |event| event.kind() == "alive");
            assert_eq!(beacon(&heard, "alive"), known, "{how}");
            assert!(heard.iter().all(|event| event.kind() != "relisten"), "{how}: {heard:#?}");
            assert_eq!(channels(&mut bob, "hall"), names, "{how}");
            assert!(alice.is("select presence.heartbeat('hall')"), "{how}");
            assert_eq!(hears(&mut bob, &mut alice), 1, "{how}");
            assert!(alice.is("select presence.worker_pid() is not null"));
        } else {
            let heard = bob.hear_until("relisten", |event| event.kind() == "relisten");
            let worker = service.number("select presence.worker_pid()");
            assert_eq!(heard.last().expect("it").sender, worker);
            let now = beacon(&heard, "relisten");
            assert_ne!(now, known, "{how}");
            let after = channels(&mut bob, "hall");
            assert!(after[1..].iter().all(|name| !names.contains(name)), "{how}");
            for room in ["hall", "side"] {
                alice.run(&format!("select presence.upsert('{room}', ttl => '1 h')"));
                bob.run(&format!("select presence.upsert('{room}', ttl => '1 h')"));
            }
            assert_eq!(hears(&mut bob, &mut alice), 0, "{how}: old names");
            // A client that reconnects later is notified as well.
            let mut late = cluster.user("bob");
            listen_to(&mut late, &names);
            late.hear_until("relisten", |event| event.kind() == "relisten");
            bob.listen("hall");
            assert_eq!(hears(&mut bob, &mut alice), 1, "{how}");
            names = channels(&mut bob, "hall");
            known = boot(&mut bob);
            assert_eq!(known, now, "{how}");
        }
    }
}

/// Rights that end before the stop, or while the server is down.
#[test]
fn rights_that_end_with_the_server_do_not_come_back() {
    let cluster = Cluster::with(&["presence.service_roles=carol"]);
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    alice.run("select presence.upsert('hall', ttl => '1 h', audience => '{any}')");
    service.run("create role dan login; grant bob to dan");
    cluster.sql(
        "app",
        "create function public.authorize(room text, action text) returns boolean language sql as $$
             select action <> 'manage' and (room <> 'hall' or presence.user_id() = 'alice') $$",
    );
    type Names = Vec<(&'static str, Vec<String>)>;
    let handed_out = |cluster: &Cluster| -> Names {
        ["bob", "carol", "dan"].map(|user| (user, channels(&mut cluster.user(user), "hall"))).into()
    };
    // The user concerned receives nothing after the restart on names from before.
    for (what, user, revives) in [
        ("revoke select on presence.member from bob", "dan", "grant select on presence.member to bob"),
        ("revoke usage on schema presence from bob", "bob", "grant usage on schema presence to bob"),
        ("revoke bob from dan", "dan", "grant bob to dan"),
        ("presence.service_roles=", "carol", "presence.service_roles=carol"),
        ("presence.anonymous_roles=bob", "bob", "presence.anonymous_roles=anon"),
        // This one comes last, because undoing it restarts the worker.
        (
            "alter database app set presence.authorizer = 'public.authorize'",
            "bob",
            "alter database app reset presence.authorizer",
        ),
    ] {
        service.run("select presence.upsert('elsewhere', jsonb_build_object('n', gen_random_uuid()))");
        service.flush();
        cluster.until_worker("app");
        let names = handed_out(&cluster);
        let is_setting = what.starts_with("presence.");
        let old = &names.iter().find(|(of, _)| *of == user).expect("names").1;
        let mut ear = cluster.user(user);
        listen_to(&mut ear, old);
        assert_eq!(hears(&mut ear, &mut alice), 1, "{what}: not yet");
        // The worker has no chance to see the change before the stop.
        let frozen = cluster.freeze_worker();
        if !is_setting {
            service.run(what);
        }
        drop((alice, service, ear));
        let aborts = || cluster.log().matches("aborting any active transactions").count();
        let before = aborts();
        std::thread::scope(|scope| {
            scope.spawn(|| cluster.stop("fast"));
            until("the server stops", || aborts() > before);
            drop(frozen);
        });
        cluster.start_again_with(if is_setting { std::slice::from_ref(&what) } else { &[] });
        cluster.until_worker("app");
        (alice, service) = (cluster.user("alice"), cluster.service());
        let mut ear = cluster.user(user);
        listen_to(&mut ear, old);
        for _ in 0..3 {
            assert_eq!(hears(&mut ear, &mut alice), 0, "{what}");
        }
        if is_setting {
            drop((alice, service));
            cluster.restart_with(&[revives]);
            cluster.until_worker("app");
            (alice, service) = (cluster.user("alice"), cluster.service());
        } else {
            service.run(revives);
        }
    }
}

/// For a user whose member ended with the server, no old name is valid after the restart.
#[test]
fn members_that_end_with_the_server_take_their_names_along() {
    let cluster = Cluster::with(&["presence.restart_grace=0"]);
    for (room, how) in [("hall", "session => true"), ("side", "ttl => '1 s'")] {
        let (mut alice, mut bob) = (cluster.user("alice"), cluster.user("bob"));
        alice.run(&format!("select presence.upsert('{room}', ttl => '1 h')"));
        bob.run(&format!("select presence.upsert('{room}', {how})"));
        let names = channels(&mut bob, room);
        let names_of_alice = channels(&mut alice, room);
        // The server ends the members, while bob's session is open.
        cluster.stop("fast");
        std::thread::sleep(millis(1_100));
        cluster.start_again();
        cluster.until_worker("app");
        let mut service = cluster.service();
        until("bob has left", || {
            service.is("select count(*) = 0 from presence.member where user_id = 'bob'")
        });
        service.flush();
        let (mut ear, mut stays) = (cluster.user("bob"), cluster.user("alice"));
        listen_to(&mut ear, &names);
        listen_to(&mut stays, &names_of_alice);
        let mut alice = cluster.user("alice");
        assert_eq!(hears_of(room, &mut ear, &mut alice), 0, "{how}");
        // Listeners with the right are notified, on an old name.
        stays.hear_until("relisten", |event| event.kind() == "relisten");
        stays.listen(room);
        assert_eq!(hears_of(room, &mut stays, &mut alice), 1, "{how}");
    }
}

/// A stop without a saved file, or with that of another stop: names are new, and listeners to old ones are
/// notified.
#[test]
fn names_that_were_not_kept_are_new() {
    let cluster = Cluster::start();
    let saved = cluster.join("data/pg_stat/presence_ext.saved");
    let (mut old, mut bytes) = (Vec::new(), Vec::new());
    for what in ["missing", "damaged", "of another stop", "the library was away"] {
        let mut bob = cluster.user("bob");
        bob.run("select presence.upsert('hall', ttl => '1 h')");
        let mut service = cluster.service();
        service.run("select presence.upsert('elsewhere', jsonb_build_object('n', gen_random_uuid()))");
        service.flush();
        let names = channels(&mut bob, "hall");
        old.extend(names[1..].iter().cloned());
        drop((bob, service));
        cluster.stop("fast");
        match what {
            "missing" => {
                bytes = std::fs::read(&saved).expect("a file");
                std::fs::remove_file(&saved).expect("removed");
            }
            "damaged" => std::fs::write(&saved, &bytes[..bytes.len() - 1]).expect("written"),
            "of another stop" => std::fs::write(&saved, &bytes).expect("written"),
            _ => {
                cluster.start_again_with(&["shared_preload_libraries="]);
                cluster.stop("fast");
            }
        }
        cluster.start_again_with(&["shared_preload_libraries=presence_ext"]);
        cluster.until_worker("app");
        let mut bob = cluster.user("bob");
        listen_to(&mut bob, &names);
        let heard = bob.hear_until("relisten", |event| event.kind() == "relisten");
        beacon(&heard, "relisten");
        assert!(channels(&mut bob, "hall")[1..].iter().all(|name| !old.contains(name)), "{what}");
    }
}

/// With fewer databases than before, the names of the surplus ones are lost.
#[test]
fn a_database_without_a_place_gets_new_names() {
    let cluster = Cluster::start();
    cluster.sql("postgres", "create database other");
    cluster.sql("other", "create extension presence_ext; select presence.grant_access('bob')");
    cluster.until_worker("other");
    let both =
        |cluster: &Cluster| ["app", "other"].map(|name| channels(&mut cluster.session("bob", name), "hall"));
    cluster.sql("other", "select presence.upsert('hall'), presence.wait_for_flush('20 s')");
    cluster.sql("app", "select presence.upsert('hall'), presence.wait_for_flush('20 s')");
    let before = both(&cluster);
    cluster.restart_with(&["presence.max_databases=1"]);
    cluster.until_worker("app");
    assert_eq!(cluster.session("bob", "other").fails("select presence.channels('hall')").code, "53400");
    cluster.restart_with(&["presence.max_databases=2"]);
    cluster.until_worker("other");
    let after = both(&cluster);
    assert_eq!(after[0], before[0]);
    assert!(after[1][1..].iter().all(|name| !before[1].contains(name)));
    let mut bob = cluster.session("bob", "other");
    listen_to(&mut bob, &before[1]);
    bob.hear_until("relisten", |event| event.kind() == "relisten");
}

/// After a crash a client may reconnect before a worker has seen its database, which happens while that is a
/// template.
#[test]
fn who_is_back_before_the_worker_is_told() {
    let cluster = Cluster::start();
    let mut bob = cluster.user("bob");
    bob.run("select presence.upsert('hall')");
    let names = channels(&mut bob, "hall");
    drop(bob);
    cluster.sql("postgres", "alter database app is_template true; checkpoint");
    cluster.stop("immediate");
    cluster.start_again();
    let mut bob = cluster.user("bob");
    listen_to(&mut bob, &names);
    cluster.sql("postgres", "alter database app is_template false");
    bob.hear_until("relisten", |event| event.kind() == "relisten" && event.channel == "presence");
}

/// A client that was away while a room got new names listens to the old ones, and is notified on one of them.
#[test]
fn who_listens_to_names_that_were_good_is_told() {
    let cluster = Cluster::start();
    let (mut alice, mut bob) = (cluster.user("alice"), cluster.user("bob"));
    alice.run("select presence.upsert('hall', ttl => '1 h')");
    bob.run("select presence.upsert('hall', ttl => '1 h')");
    let mut service = cluster.service();
    for how in ["rotate", "leave", "restart"] {
        bob.listen("hall");
        let names = channels(&mut bob, "hall");
        drop(bob);
        if how == "leave" {
            let mut carol = cluster.user("carol");
            carol.run("select presence.upsert('hall')");
            channels(&mut carol, "hall");
            carol.run("select presence.delete('hall')");
        } else {
            service.run("select presence.rotate_channels('hall')");
        }
        service.flush();
        // The worker's scheduled repetitions end with it.
        if how == "restart" {
            drop((alice, service));
            restart(&cluster, "fast");
            (alice, service) = (cluster.user("alice"), cluster.service());
        } else {
            let worker = service.number("select presence.worker_pid()");
            signal("TERM", worker);
            until("another worker", || {
                ![worker, 0].contains(&service.number("select coalesce(presence.worker_pid(), 0)"))
            });
        }
        bob = cluster.user("bob");
        listen_to(&mut bob, &names);
        let heard = bob.hear_until("relisten", |event| event.kind() == "relisten");
        let told = heard.last().expect("it");
        assert!(told.channel != "presence" && names.contains(&told.channel), "{how}");
        bob.listen("hall");
        assert_eq!(hears(&mut bob, &mut alice), 1, "{how}");
        // Only once, and only for outdated names.
        let mut other = cluster.user("bob");
        let good = channels(&mut other, "hall");
        listen_to(&mut other, &good);
        assert!(other.next_event(millis(1_300)).is_none(), "{how}");
    }
}

/// A copy of a database and a recreated extension have their own names.
#[test]
fn other_databases_and_extensions_have_other_names() {
    let cluster = Cluster::with(&["presence.beacon=0"]);
    let mut bob = cluster.user("bob");
    bob.run("select presence.upsert('hall', ttl => '1 h')");
    let names = channels(&mut bob, "hall");
    drop(bob);
    cluster.sql("postgres", "create database copy template app");
    cluster.until_worker("copy");
    cluster.until_worker("app");
    let (mut bob, mut copied) = (cluster.user("bob"), cluster.session("bob", "copy"));
    assert_eq!(channels(&mut bob, "hall"), names);
    assert!(channels(&mut copied, "hall")[1..].iter().all(|name| !names.contains(name)));
    bob.listen("hall");
    cluster.sql("app", "drop extension presence_ext");
    cluster.sql("app", "create extension presence_ext; select presence.grant_access('bob')");
    cluster.until_worker("app");
    bob.hear_until("relisten", |event| event.kind() == "relisten" && event.channel == "presence");
    assert!(channels(&mut bob, "hall")[1..].iter().all(|name| !names.contains(name)));
}

/// Silence means a dead connection; and clients that do not listen are not notified.
#[test]
fn the_beacon_is_lit_for_listeners() {
    let cluster = Cluster::with(&["presence.beacon=1s"]);
    let mut bob = cluster.user("bob");
    // By its name, which needs no right.
    bob.run("listen presence");
    for _ in 0..3 {
        let event = bob.next_event(millis(3_000)).expect("a beacon");
        assert_eq!((event.kind(), event.channel.as_str()), ("alive", "presence"));
        assert_eq!(event.seq(), bob.number("select presence.seq()"));
        assert!(event.payload.is_ascii());
    }
    bob.run("unlisten presence");
    bob.heard();
    assert!(bob.next_event(millis(1_500)).is_none());
    // Announcements to everybody are sent there even if the beacon is off.
    cluster.sql("postgres", "alter database app set presence.beacon = 0");
    bob.run("listen presence");
    let mut service = cluster.service();
    service.run("select presence.rotate_channels()");
    let heard = bob.hear_until("relisten", |event| event.kind() == "relisten");
    let told = beacon(&heard, "relisten");
    cluster.sql("postgres", "alter database app set presence.beacon = '1s'");
    assert_eq!(boot(&mut bob), told);
}
