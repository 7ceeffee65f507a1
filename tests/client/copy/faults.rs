//! Whatever happens to the server under load: members in the copy are present afterwards.

use super::crash::until_restored;
use super::{named, until_copied};
use crate::common::{Over, SmallDisk, millis, number, shell, signal, until};
use std::sync::atomic::{AtomicBool, Ordering::*};

/// Crashes under load at any moment, including during the restore: members come back, no member is
/// duplicated, and sequence numbers continue. PRESENCE_CRASHES sets the number of crashes.
#[test]
fn crashes_under_load() {
    let cluster = named(&["presence.max_per_user=0", "presence.restart_grace=60s"]);
    let mut service = cluster.service();
    service.run("select count(presence.upsert('still', to_jsonb(n), user_id => 's' || n, ttl => '1 h')) from generate_series(1, 200) n");
    until_copied(&mut service);
    let (mut seq, mut version) = (0, 0);
    for round in 0..number("PRESENCE_CRASHES").unwrap_or(4) {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _over = Over::tell(&over);
            for writer in 0..3 {
                let (cluster, over) = (&cluster, &over);
                scope.spawn(move || {
                    let Some(mut session) = cluster.try_session("postgres", "app") else { return };
                    let mut n = 0;
                    while !over.load(Acquire) {
                        n += 1;
                        let verb = match n % 7 {
                            0 => format!("select presence.delete('busy', 'b{writer}_{}')", n % 50),
                            _ => format!("select presence.upsert('busy', to_jsonb({round} * 100000 + {n}), user_id => 'b{writer}_{}', ttl => '1 h')", n % 50),
                        };
                        if session.try_run(&verb).is_err() {
                            return;
                        }
                    }
                });
            }
            std::thread::sleep(millis(50 + 37 * round % 200));
            if round % 2 == 0 {
                cluster.stop("immediate");
            } else {
                let mut witness = cluster.service();
                signal("KILL", service.number("select pg_backend_pid()"));
                until("all are sent away", || witness.try_run("select 1").is_err());
            }
        });
        if round % 2 == 0 {
            cluster.start_again();
        }
        if round % 3 == 0 {
            // And crash once more, during the restore or close to it.
            until("it is there", || cluster.try_session("postgres", "app").is_some());
            std::thread::sleep(millis(7 * round % 60));
            cluster.stop("immediate");
            cluster.start_again();
        }
        until("it takes connections", || cluster.try_session("postgres", "app").is_some());
        service = until_restored(&cluster);
        let still = "select count(*), count(distinct state) from presence.list('still', 1000)";
        assert_eq!(service.rows(still), [["200", "200"]], "round {round}");
        let twice = "select count(*) from (select 1 from presence.member group by room, member_id, connection_id having count(*) > 1) d";
        assert_eq!(service.number(twice), 0);
        service.flush();
        let (newer_seq, newer) = (
            service.number("select presence.seq()"),
            service.number("select version from presence.upsert('mark', to_jsonb(random()), user_id => 'mark', ttl => '1 h')"),
        );
        assert!(newer_seq >= seq && newer > version, "round {round}: {newer_seq} {seq} {newer} {version}");
        (seq, version) = (newer_seq, newer);
        let newest = service.number("select max(version) from presence.member");
        assert!(newest <= version, "round {round}: nobody has a version that is still to come");
        until_copied(&mut service);
    }
    service.flush();
    // There is no leave that nobody asked for.
    assert_eq!(service.number("select count(*) from presence.event where event = 'leave' and reason <> 'left' and reason <> 'removed'"), 0);
}

/// PostgreSQL stops when it cannot write WAL. Once there is room again, all members come back.
#[test]
fn a_full_disk_under_the_wal() {
    let Some(disk) = SmallDisk::mount("80m") else {
        println!("not tested: no file system can be mounted here");
        return;
    };
    let cluster = named(&["min_wal_size=32MB", "max_wal_size=32MB", "presence.restart_grace=60s"]);
    cluster.stop("fast");
    shell(
        "mv \"$1/data/pg_wal\" \"$2\" && ln -s \"$2/pg_wal\" \"$1/data/pg_wal\"",
        &[cluster.as_ref(), &disk.dir],
    );
    cluster.start_again();
    cluster.until_worker("app");
    let mut service = cluster.service();
    service.run("select count(presence.upsert('lobby', to_jsonb(n), user_id => 'u' || n)) from generate_series(1, 50) n");
    until_copied(&mut service);
    let rows = "select member_id, state, version from presence.list('lobby') order by 1";
    let before = service.rows(rows);

    // Like the slot of a lost standby, it retains all WAL.
    service.run("select pg_create_physical_replication_slot('gone', true); create table noise (words text)");
    disk.fill();
    until("the server stops", || {
        service.try_run("insert into noise select md5(n::text) from generate_series(1, 100000) n").is_err()
    });
    assert!(cluster.log().contains("No space left on device"));
    cluster.stop("immediate");
    disk.free();
    cluster.start_again();
    let mut service = until_restored(&cluster);
    service.run("select pg_drop_replication_slot('gone')");
    assert_eq!(service.rows(rows), before);
    let missing = "select count(*) from presence.heartbeat_many(array_fill('lobby'::text, '{50}'), (select array_agg('u' || n) from generate_series(1, 50) n))";
    assert_eq!(service.number(missing), 0);
    service.run("select presence.upsert('lobby', '0', user_id => 'u1')");
    until_copied(&mut service);
    drop(cluster); // before its disk
}
