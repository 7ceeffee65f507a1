//! pg_upgrade keeps rooms, grants, last seen, settings and members.
//!
//! PRESENCE_UPGRADE_TO is the pg_config of a newer server that has the extension too (scripts/test-upgrade).
//! Without it, the test upgrades to the same version, which exercises the extension in the same way.

use crate::common::{Cluster, GRANTS, lines, shell, until};
use std::path::Path;

/// Uses all features that leave a trace in a database.
const BEFORE: &str = "
    alter database app set presence.default_ttl = '40 s';
    alter role bob set presence.session_features = off;
    select presence.revoke_access('carol'), presence.grant_access('carol', write => false);
    select presence.set_room('full', '{\"topic\": \"Grüße\"}', audience => '{team:red}', count_audience => '{any}',
                             ttl => '2 min', max_members => 7, keep_history => false);
    select presence.set_room('plain');
    create view here as select room, member_id from presence.online;
    create policy app_reads on presence.room for select to carol using (true);";

const ROOMS: &str = "select * from presence.room order by room";
const LAST_SEEN: &str = "select user_id, last_seen_at from _presence._last_seen order by user_id";
const SETTINGS: &str = "
    select coalesce(datname, ''), coalesce(rolname, ''), setconfig
    from pg_db_role_setting left join pg_database d on d.oid = setdatabase left join pg_roles r on r.oid = setrole
    order by 1, 2";
const MEMBERS: &str = "
    select room, member_id, state, version, joined_at from presence.online where connection_id = ''
    order by room, member_id";
const NUMBERS: &str = "
    select presence.seq(), (select max(version) from presence.member), (select max(seq) from presence.event),
           (select max(version) from presence.room)";

#[test]
fn pg_upgrade_keeps_what_is_there() {
    let to = std::env::var_os("PRESENCE_UPGRADE_TO");
    let to = to.as_deref().map(Path::new);
    let old = Cluster::start();
    // After a crash the numbers are ahead of the clock, which a new server would start from.
    old.stop("immediate");
    old.start_again();
    old.until_worker("app");
    old.sql("app", BEFORE);
    let (mut alice, mut bob) = (old.user("alice"), old.user("bob"));
    alice.run("select presence.upsert('plain', '{\"n\": 1}', ttl => '1 h')");
    alice.run("select presence.upsert('plain', connection_id => 'tab', session => true)");
    bob.run("select presence.upsert('plain', '{\"n\": 2}')");
    let mut service = old.service();
    service.flush();
    // Written asynchronously, within two seconds.
    let noted = "select count(*) = 2 from _presence._last_seen";
    until("both were noted", || service.is(noted));
    // last_seen of present members can change at any time: compare only what is stable.
    let questions = [ROOMS, SETTINGS, GRANTS];
    let before = questions.map(|question| service.rows(question));
    let members = service.rows(MEMBERS);
    let seen = service.rows(LAST_SEEN);
    let numbers: Vec<i64> =
        service.rows(NUMBERS)[0].iter().map(|number| number.parse().unwrap_or(0)).collect();
    drop((bob, service));
    old.stop("fast");
    drop(alice); // her session lasts as long as the server

    let new = Cluster::empty(to, &[]);
    new.stop("fast");
    shell(
        "cd \"$2\"; new=$(\"${3:-$PG_CONFIG}\" --bindir)
         as_server \"$new/pg_upgrade\" -U postgres -b \"$bin\" -B \"$new\" -d \"$1/data\" -D \"$2/data\" -s \"$2\" \\
             || { grep -h -A4 'error:' \"$2\"/data/pg_upgrade_output.d/*/log/pg_upgrade_dump_*.log; exit 1; }",
        &[&old, &new, to.unwrap_or(Path::new(""))],
    );
    // pg_upgrade's own server starts are not for users: no worker published, and no member was removed.
    new.start_again();
    let mut service = new.service();
    assert_eq!(questions.map(|question| service.rows(question)), before);
    assert!(service.is("select count(*) = 1 from pg_policy where polname = 'app_reads'"));
    // No user's last_seen is earlier than before.
    let now = service.rows(LAST_SEEN);
    assert_eq!((now.len(), seen.len()), (2, 2));
    for (before, after) in seen.iter().zip(now) {
        assert!(after[0] == before[0] && after[1] >= before[1], "{before:?} {after:?}");
    }

    // The members are kept too, with a grace period as after a restart. Members of the ended session leave.
    assert_eq!(service.rows(MEMBERS), members);
    new.until_worker("app");
    service.run("select presence.listen()");
    let mut alice = new.user("alice");
    assert!(alice.is("select presence.heartbeat('plain')"));
    assert!(!alice.is("select presence.heartbeat('plain', connection_id => 'tab')"));
    until("the session's member has left", || service.number("select count(*) from presence.member") == 2);

    // Numbers continue upwards, events have their data, settings and rights apply.
    for (before, after) in numbers.iter().zip(service.rows(NUMBERS)[0].clone()) {
        assert!(after.parse::<i64>().expect("a number") >= *before);
    }
    service.hear();
    let version = alice.number("select version from presence.upsert('plain', '{\"n\": 3}')");
    assert!(version > numbers[1]);
    assert!(service.number("select version from presence.set_room('plain', max_members => 9)") > numbers[3]);
    let heard = service.hear();
    assert_eq!(lines(&heard), ["update alice"]);
    assert_eq!(heard[0]["state"]["n"], 3);
    assert!(heard[0]["seq"].as_i64().expect("a seq") > numbers[0].max(numbers[2]));
    alice.run("select presence.upsert('plain', connection_id => 'new')");
    assert_eq!(alice.value("select ttl from presence.get('plain', connection_id => 'new')"), "00:00:40");
    assert_eq!(new.user("carol").fails("select presence.upsert('plain')").code, "42501");
    assert_eq!(new.user("bob").fails("select presence.listen('plain')").code, "0A000");
    assert!(service.is("select library_version = extension_version from presence.health"));
    new.assert_sound();
}
