//! Protocols 1 to 4 of the design: what may happen between the parts of a commit, with a backend stalled at
//! that point.

use crate::common::{Cluster, Event, Mirror, Session, Stall, lines, millis, until};
use std::thread::JoinHandle;

/// Another session of alice changes a row that the first session has committed but not yet published.
#[test]
fn changes_are_heard_in_the_order_of_their_versions() {
    let cluster = Cluster::start();
    let (mut b, mut service) = (cluster.user("alice"), cluster.service());
    service.run("select presence.listen()");
    b.run("select presence.upsert('lobby', '0')");
    service.hear();

    // Update, then update.
    let gap = Gap::enter(&cluster, "select presence.upsert('lobby', '1')");
    until("it is visible", || b.value("select state from presence.get('lobby')") == "1");
    let second = in_thread(cluster.user("alice"), "select presence.upsert('lobby', '2')");
    // Readers use the row while the slot is behind.
    assert!(b.is("select presence.heartbeat('lobby')"));
    assert_eq!(service.number("select count(*) from presence.list('lobby')"), 1);
    gap.leave();
    join(second);
    let heard = service.hear();
    assert!(heard.is_sorted_by_key(|event| event.number("version")));
    assert_eq!(heard.last().expect("an update")["state"], 2);
    assert_eq!(b.value("select state from presence.get('lobby')"), "2");

    // Update, then leave; leave, then enter; enter, then leave: the newest wins.
    for (first, then, present) in [
        ("select presence.upsert('lobby', '3')", "select presence.delete('lobby')", false),
        ("select presence.upsert('lobby', '4')", "select presence.delete('lobby')", false),
        ("select presence.upsert('lobby', '5')", "select presence.upsert('lobby', '6')", true),
        ("select presence.delete('lobby')", "select presence.upsert('lobby', '7')", true),
        ("select presence.delete('lobby')", "select presence.delete('lobby')", false),
    ] {
        let mut mirror = Mirror::of(&mut service);
        let gap = Gap::enter(&cluster, first);
        let second = in_thread(cluster.user("alice"), then);
        std::thread::sleep(millis(100)); // the second one gets as far as it can
        gap.leave();
        join(second);
        let heard = service.hear();
        let versions: Vec<i64> =
            heard.iter().filter(|e| e.is_of_member()).map(|e| e.number("version")).collect();
        assert!(versions.is_sorted_by(|a, b| a < b), "{first}; {then}: {:?}", lines(&heard));
        heard.iter().for_each(|event| mirror.apply(&mut service, event));
        mirror.assert_true(&mut service);
        assert_eq!(b.is("select presence.heartbeat('lobby')"), present, "{first}; {then}");
        assert_eq!(b.number("select count(*) from presence.get('lobby')"), present as i64, "{first}; {then}");
        until("no slot leaks", || service.number("select slots_used from presence.health") == present as i64);
    }
    cluster.assert_sound();
}

#[test]
fn a_commit_in_the_gap_holds_the_events_back_but_not_their_truth() {
    let cluster = Cluster::start();
    let (mut alice, mut bob, mut service) = (cluster.user("alice"), cluster.user("bob"), cluster.service());
    service.run("select presence.listen()");

    // An enter that is committed but not yet published: visible, alive, and counted in later events.
    let gap = Gap::enter(&cluster, "select presence.upsert('lobby', '1')");
    until("it is visible", || alice.number("select count(*) from presence.get('lobby')") == 1);
    bob.run("select presence.upsert('lobby')");
    assert!(
        !service.is("select presence.wait_for_flush('300 ms')"),
        "what is committed is not published yet"
    );
    gap.leave();
    let heard = service.hear();
    assert_eq!(lines(&heard), ["enter alice", "enter bob"]);
    assert!(
        heard.iter().filter(|event| event.is_of_member()).is_sorted_by_key(|event| event.number("version"))
    );

    // Expiry while a renewal is between commit and publication: the renewal takes effect once it is through.
    alice.run("select presence.upsert('lobby', ttl => '1 s')");
    let gap = Gap::enter(&cluster, "select presence.upsert('lobby', '2', ttl => '100 s')");
    std::thread::sleep(millis(1_500)); // the old lease ends
    assert_eq!(alice.number("select count(*) from presence.get('lobby')"), 1);
    gap.leave();
    let heard = service.hear();
    assert!(lines(&heard).iter().all(|line| line == "update alice"), "{:?}", lines(&heard));
    assert!(alice.is("select presence.heartbeat('lobby')"));

    // Nothing waits for an uncommitted transaction.
    let stall = cluster.stall();
    let before = in_thread(
        cluster.user("alice"),
        &format!("{} select presence.upsert('lobby', '3')", stall.at("pre_commit")),
    );
    until_stalled(&mut service, "alice");
    bob.run("select presence.upsert('lobby', '1')");
    assert_eq!(lines(&service.hear()), ["update bob"]);
    assert_eq!(alice.value("select state from presence.get('lobby')"), "2");
    // The member can be renewed, and can expire, while the transaction is open: the commit decides.
    assert!(alice.is("select presence.heartbeat('lobby')"));
    drop(stall);
    join(before);
    assert_eq!(lines(&service.hear()), ["update alice"]);

    // A backend that is terminated in the gap has still committed. (SIGTERM is held off in there.)
    let gap = Gap::enter(&cluster, "select presence.upsert('lobby', '4')");
    service.run("select pg_terminate_backend(pid) from pg_stat_activity where query like '%stall_at%' and pid <> pg_backend_pid()");
    gap.leave_without_answer();
    assert_eq!(service.hear().last().expect("an update")["state"], 4);
    cluster.assert_sound();
}

/// Protocol 2: two sessions insert the same key; the second waits for the first and must get a newer version.
#[test]
fn versions_grow_under_concurrent_inserts() {
    let cluster = Cluster::start();
    let mut service = cluster.service();
    service.run("select presence.listen()");
    for round in 0..20 {
        let (mut first, mut watcher) = (cluster.user("alice"), cluster.user("alice"));
        // The second takes its version while the first holds the key; then the first writes newer ones.
        first.run("begin; select presence.upsert('lobby', '1')");
        let second = in_thread(cluster.user("alice"), "select presence.upsert('lobby', '2')");
        until_waiting(&mut service);
        first.run("select presence.upsert('lobby', '3')");
        match round % 3 {
            0 => first.run("commit"),
            1 => first.run("select presence.delete('lobby'); commit"),
            _ => first.run("rollback"),
        }
        join(second);
        let heard: Vec<Event> = service.hear().into_iter().filter(Event::is_of_member).collect();
        let last = heard.last().expect("an event");
        assert_eq!(last["state"], 2, "round {round}: {:?}", lines(&heard));
        assert!(heard.is_sorted_by_key(|event| event.number("version")), "round {round}");
        assert_eq!(watcher.number("select version from presence.get('lobby')"), last.number("version"));
        assert!(watcher.is("select presence.heartbeat('lobby')"));
        // And the leave is newer than both.
        watcher.run("select presence.delete('lobby')");
        assert_eq!(lines(&service.hear()), ["leave alice left"]);
    }
    until("no slot leaks", || service.number("select slots_used from presence.health") == 0);
    cluster.assert_sound();
}

/// Protocol 3: a member that a write is renewing does not expire before that write has ended.
#[test]
fn renewal_and_expiry_agree() {
    let cluster = Cluster::start();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    service.run("select presence.listen()");

    // The write was in time; it commits late, or not at all.
    for (end, heard, present) in
        [("commit", &["update alice"][..], true), ("rollback", &["leave alice expired"], false)]
    {
        alice.run("select presence.delete('lobby')");
        alice.run("select presence.upsert('lobby', '1', ttl => '1 s')");
        service.hear();
        alice.run("begin; select presence.upsert('lobby', '2', ttl => '60 s')");
        std::thread::sleep(millis(1_500));
        assert_eq!(lines(&service.heard()), [""; 0], "the row is locked");
        alice.run(end);
        let events = match present {
            true => service.hear(),
            false => service.hear_until("an event", Event::is_of_member),
        };
        assert_eq!(lines(&events), heard, "{end}");
        assert_eq!(alice.is("select presence.heartbeat('lobby')"), present);
    }

    // An identical upsert renews at commit; if the lease ended before that, the member leaves, exactly once.
    alice.run("select presence.upsert('lobby', '1', ttl => '1 s')");
    service.hear();
    alice.run("begin; select presence.upsert('lobby', '1')");
    let heard = service.hear_until("its end", |event| event.kind() == "leave");
    assert_eq!(lines(&heard), ["leave alice expired"]);
    alice.run("commit");
    assert_eq!(alice.number("select count(*) from presence.get('lobby')"), 0);
    assert!(!alice.is("select presence.heartbeat('lobby')"));
    assert_eq!(lines(&service.hear()), [""; 0]);

    // Deleted by one session, changed by another: whichever locks the row first wins.
    alice.run("select presence.upsert('lobby', '1')");
    service.hear();
    let mut first = cluster.user("alice");
    first.run("begin; select presence.delete('lobby')");
    let second = in_thread(cluster.user("alice"), "select presence.update('lobby', '{\"late\": true}')");
    until_waiting(&mut service);
    first.run("commit");
    join(second);
    assert_eq!(lines(&service.hear()), ["leave alice left"], "a late update makes no ghost");
    until("no slot leaks", || service.number("select slots_used from presence.health") == 0);
    cluster.assert_sound();
}

/// Protocol 3: nobody sees the member meanwhile. Listeners from that time are notified of its return,
/// although only the ttl changed; and its owner, who was in no room at that time, is told to listen again.
#[test]
fn a_member_that_comes_back_with_a_late_commit_is_heard() {
    let cluster = Cluster::with_clock(&[]);
    let (mut alice, mut bob) = (cluster.user("alice"), cluster.user("bob"));
    alice.run("select presence.upsert('lobby', ttl => '60 s', audience => '{any}')");
    alice.flush();
    alice.run("begin; select presence.upsert('lobby', ttl => '120 s')");
    cluster.clock().pass(millis(70_000));
    let mut listener = cluster.user("alice");
    for session in [&mut bob, &mut listener] {
        session.run("select presence.listen()");
        assert_eq!(session.number("select count(*) from presence.list('lobby')"), 0);
    }
    alice.run("commit");
    assert_eq!(lines(&bob.hear()), ["update alice"]);
    listener.hear_until("relisten", |event| event.kind() == "relisten");
    assert_eq!(bob.number("select count(*) from presence.list('lobby')"), 1);
    cluster.assert_sound();
}

/// Bob starts listening (he listens, commits, lists) while alice changes her audience: at whatever step her
/// commit becomes visible, and at whatever step it is published, he ends up with what `list` shows him.
#[test]
fn an_audience_that_changes_while_somebody_begins_to_listen() {
    let cluster = Cluster::start();
    let (mut alice, mut service) = (cluster.user("alice"), cluster.service());
    for (old, new, visible) in
        [("{any}", "{}", 0), ("{}", "{any}", 1), ("{any}", "{user:bob}", 1), ("{users}", "{team:x}", 0)]
    {
        // (the steps after which it is visible, and published)
        for (committed, published) in
            [(0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3)]
        {
            alice.run(&format!("select presence.upsert('lobby', '0', audience => '{old}')"));
            service.flush();
            let mut bob = cluster.user("bob");
            let (mut mirror, mut gap) = (Mirror::default(), None);
            for step in 0..=3 {
                match step {
                    0 => bob.run("begin"),
                    1 => bob.listen("lobby"),
                    2 => bob.run("commit"),
                    _ => mirror.list(&mut bob),
                }
                if step == committed {
                    let change = format!("select presence.upsert('lobby', '1', audience => '{new}')");
                    gap = Some(Gap::enter(&cluster, &change));
                }
                if step == published {
                    gap.take().expect("what is committed").leave();
                    service.flush();
                }
            }
            bob.flush();
            mirror.follow(&mut bob);
            mirror.assert_true(&mut bob);
            assert_eq!(mirror.members().len(), visible, "{old} to {new}, at {committed} and {published}");
        }
    }
    cluster.assert_sound();
}

/// A statement of alice that is committed and visible, but stalled before the end of its commit.
struct Gap {
    stall: Stall,
    statement: JoinHandle<Result<(), crate::common::Failure>>,
}

impl Gap {
    fn enter(cluster: &Cluster, sql: &str) -> Gap {
        let stall = cluster.stall();
        let statement = in_thread(cluster.user("alice"), &format!("{} {sql}", stall.at("commit_gap")));
        until_stalled(&mut cluster.service(), "alice");
        Gap { stall, statement }
    }

    fn leave(self) {
        drop(self.stall);
        join(self.statement);
    }

    fn leave_without_answer(self) {
        drop(self.stall);
        let _ = self.statement.join().expect("no panic");
    }
}

fn in_thread(mut session: Session, sql: &str) -> JoinHandle<Result<(), crate::common::Failure>> {
    let sql = sql.to_owned();
    std::thread::spawn(move || session.try_run(&sql))
}

fn join(statement: JoinHandle<Result<(), crate::common::Failure>>) {
    statement.join().expect("no panic").expect("no error");
}

/// Waits until a backend of the user is at its stall point.
fn until_stalled(service: &mut Session, user: &str) {
    let stalled = format!(
        "select count(*) > 0 from pg_stat_activity
         where usename = '{user}' and state = 'active' and query like '%stall_at%' and wait_event is null
           and clock_timestamp() - query_start > interval '150 ms'"
    );
    until("it stalls", || service.is(&stalled));
}

/// Waits until a session waits for another's transaction.
fn until_waiting(service: &mut Session) {
    until("somebody waits", || service.is("select count(*) > 0 from pg_locks where not granted"));
}
