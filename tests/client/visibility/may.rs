//! The answers of `presence.may` match what the verb then does.

use super::matrix;
use super::people::{self, Reader};
use crate::common::Cluster;

/// Decides by the room's name: it contains the initials of allowed actions, limited to the user after the
/// colon, if any.
const AUTHORIZER: &str = "
    create schema app; grant usage on schema app to public;
    create function app.authorize(room text, action text) returns boolean language plpgsql stable as $$ begin
        if room = 'nobody knows' then return null; end if;
        if room = 'broken' then perform 1 / 0; end if;
        if room = 'closed' then raise exception using errcode = '42501', message = 'closed'; end if;
        return split_part(room, ':', 1) like '%' || left(action, 1) || '%'
            and coalesce(nullif(split_part(room, ':', 2), ''), presence.user_id()) is not distinct from presence.user_id();
    end $$;
    alter database app set presence.authorizer = 'app.authorize';";

const ROOMS: [&str; 11] =
    ["r", "j", "m", "rj", "jm", "rjm", "rjm:u2", "jm:olga", "nobody knows", "broken", "closed"];

/// `$r` is the room. The first column of the last row tells whether it worked.
const VERBS: [(&str, &str); 3] = [
    ("read", "select count(l) > 0 from presence.list($r) l where member_id = 'zed'"),
    (
        "join",
        "select presence.upsert($r, '1', user_id => case when presence.is_service() then 'anybody' end);
         select presence.upsert($r, '2', user_id => case when presence.is_service() then 'anybody' end);
         select true",
    ),
    (
        "manage",
        "select presence.set_room($r, '{\"n\": 1}'); select presence.set_room($r, '{\"n\": 2}'); select true",
    ),
];

/// Yes, no, or an error that is no refusal. An invalid name counts as a refusal.
fn outcome(reader: &mut Reader, sql: &str) -> Result<bool, String> {
    match reader.ask(sql) {
        Ok(rows) => Ok(rows.last().is_some_and(|row| row[0] == "t")),
        Err(failure) if ["42501", "22023"].contains(&failure.code.as_str()) => Ok(false),
        Err(failure) => Err(failure.code),
    }
}

/// Asks first, then tries. Returns how often the answer was yes.
fn compare(reader: &mut Reader, rooms: &[&str], what: &str, wrong: &mut Vec<String>) -> usize {
    let mut allowed = 0;
    for room in rooms {
        for (action, verb) in VERBS {
            let answer = outcome(reader, &format!("select presence.may('{room}', '{action}')"));
            let done = outcome(reader, &verb.replace("$r", &format!("'{room}'")));
            allowed += usize::from(answer == Ok(true));
            // A user without the right may get a plain no where the verb gets an error from the authorizer.
            let agrees = answer == done || (answer == Ok(false) && done.is_err());
            if !agrees {
                wrong.push(format!("{}, {what}: {action} in {room}: {answer:?}, but {done:?}", reader.name));
            }
        }
    }
    allowed
}

fn enter_zed(cluster: &Cluster) {
    for room in ROOMS {
        let sql = format!(
            "select presence.upsert('{room}', user_id => 'zed', audience => '{{any}}', ttl => '1 day')"
        );
        cluster.service().run(&sql);
    }
}

fn everybody(cluster: &Cluster) -> Vec<Reader> {
    let mut readers = matrix::readers(cluster);
    let long = "x".repeat(256);
    readers.extend([
        Reader::signed_in(cluster, "of a long name", &long),
        Reader::signed_in(cluster, "of a name with a tab", r"a\tb"),
        Reader::login(cluster, "acting as another", "authenticator")
            .saying("select presence.act_as('u2'); set local role authenticated;"),
        Reader::login(cluster, "acting as anybody", "authenticator")
            .saying("select presence.act_as('u2'); set local role anon;"),
        Reader::login(cluster, "a listed service", "lena"),
        Reader::login(cluster, "who only reads", "ruth"),
        Reader::login(cluster, "without any grant", "nobody"),
    ]);
    readers
}

#[test]
fn it_is_what_the_verb_does_for_everybody() {
    let cluster = people::start_with(&["presence.service_roles=lena"]);
    people::grant_act_as(&cluster, "authenticator");
    cluster.sql(
        "app",
        "grant usage on schema presence to authenticator;
         create role lena login; create role ruth login; create role nobody login;
         select presence.grant_access('lena'), presence.grant_access('ruth', write => false)",
    );
    enter_zed(&cluster);
    let mut wrong = Vec::new();
    for authorizer in ["", AUTHORIZER] {
        cluster.sql("app", authorizer);
        for mut reader in everybody(&cluster) {
            let what = if authorizer.is_empty() { "without an authorizer" } else { "with one" };
            let allowed = compare(&mut reader, &ROOMS, what, &mut wrong);
            assert_eq!(allowed > 0, reader.name != "without any grant", "{}, {what}", reader.name);
            // READ ONLY does not affect the answer, and asking needs no other right.
            let (asked, read_only) = ("select presence.may('rjm', 'join')", "set transaction read only; ");
            let answer = reader.answer(asked);
            assert_eq!(reader.answer(&format!("{read_only}{asked}")), answer, "{}", reader.name);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    cluster.assert_sound();
}

/// Parts of `grant_access` that can be missing. An upsert reads what it writes, and list reads through a
/// view.
const REVOCATIONS: [&str; 19] = [
    "revoke usage on schema presence from ned",
    "revoke execute on function presence.list from ned",
    "revoke execute on function presence.upsert from ned",
    "revoke execute on function presence.set_room from ned",
    "revoke select on presence.online from ned",
    "revoke select on presence.online from ned; grant select (room, member_id) on presence.online to ned",
    "revoke select on presence.member from ned",
    "revoke select on presence.member from ned;
     do $$ begin execute (select format('grant select (%s) on presence.member to ned', string_agg(attname, ', '))
         from pg_attribute where attrelid = 'presence.member'::regclass and attnum > 0 and attname <> 'note'
         and not attisdropped); end $$",
    "revoke insert on presence.member from ned",
    "revoke update on presence.member from ned",
    "revoke delete on presence.member from ned",
    "revoke update on presence.member from ned; grant update (user_id, status, state, metadata, audience, ttl) on presence.member to ned",
    "revoke update on presence.member from ned; grant update (state) on presence.member to ned",
    "revoke insert on presence.member from ned;
     grant insert (room, member_id, connection_id, user_id, status, state, metadata, audience, ttl) on presence.member to ned",
    "revoke select on presence.room from ned",
    "revoke insert on presence.room from ned",
    "revoke update on presence.room from ned",
    "revoke update on presence.room from ned;
     grant update (metadata, audience, count_audience, ttl, max_members, keep_history) on presence.room to ned",
    "revoke select on presence.room from ned; grant select (room, metadata) on presence.room to ned",
];

#[test]
fn it_is_what_the_verb_does_whatever_is_granted() {
    let cluster = people::start();
    cluster.sql("app", &format!("create role ned login; {AUTHORIZER}"));
    // User-defined columns, also dropped ones, must not matter.
    cluster.sql(
        "app",
        "alter table presence.member add column gone text, add column note text; alter table presence.member drop column gone",
    );
    enter_zed(&cluster);
    let mut service = cluster.service();
    let mut wrong = Vec::new();
    let mut answers = std::collections::BTreeSet::new();
    for authorizer in ["app.authorize", ""] {
        service.run(&format!("alter database app set presence.authorizer = '{authorizer}'"));
        let mut ned = Reader::login(&cluster, "ned", "ned");
        for (at, one) in REVOCATIONS.iter().enumerate() {
            for other in &REVOCATIONS[at..] {
                service.run(&format!(
                    "select presence.revoke_access('ned'); select presence.grant_access('ned'); {one}; {other}"
                ));
                answers.insert(compare(&mut ned, &["rjm"], &format!("{one}; {other}"), &mut wrong));
            }
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(answers.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3], "all of it was met");
    cluster.assert_sound();
}

/// Functions that verbs, the view and the policies call, each revoked on its own.
#[test]
fn it_is_what_the_verb_does_without_a_function_that_it_calls() {
    let cluster = people::start();
    cluster.sql("app", &format!("create role ned login; create role bea login bypassrls; {AUTHORIZER}"));
    cluster.sql("app", "select presence.grant_access('ned'), presence.grant_access('bea')");
    enter_zed(&cluster);
    let mut service = cluster.service();
    let granted = "select p.oid::regprocedure::text from pg_proc p, aclexplode(p.proacl) a
                   where a.grantee = 'ned'::regrole and p.oid <> 'presence.may'::regproc order by 1";
    let functions = service.rows(granted);
    assert!(functions.len() > 40, "{} functions", functions.len());
    let (mut wrong, mut refused) = (Vec::new(), 0);
    for name in ["ned", "bea"] {
        let mut reader = Reader::login(&cluster, name, name);
        for function in functions.iter().map(|row| &row[0]) {
            if name == "bea" && function == "presence.is_service()" {
                continue; // VERBS calls it, too
            }
            service.run(&format!("revoke execute on function {function} from {name}"));
            let allowed = compare(&mut reader, &["rjm"], &format!("without {function}"), &mut wrong);
            refused += usize::from(allowed < 3);
            service.run(&format!("grant execute on function {function} to {name}"));
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(refused > 10, "{refused} made a difference");
    cluster.assert_sound();
}

#[test]
fn it_answers_alike_in_parallel_plans() {
    let cluster = people::start();
    cluster.sql(
        "app",
        &format!(
            "{AUTHORIZER}
             create table app.big as select i, (array['r', 'j', 'rj'])[i % 3 + 1] as room from generate_series(1, 30000) i;
             analyze app.big; grant select on app.big to public;
             create function app.inside(room text) returns boolean language plpgsql stable parallel safe
                 as 'begin return presence.may(room, ''read''); end'"
        ),
    );
    let mut reader = Reader::signed_in(&cluster, "in a parallel plan", "u1");
    let parallel = "set local parallel_setup_cost = 0; set local parallel_tuple_cost = 0; set local min_parallel_table_scan_size = 0; ";
    for sql in [
        // In the leader, on rows that workers found; and in the workers, through a function that is declared
        // parallel safe.
        "select count(*) filter (where presence.may(room, 'read')) from app.big where i > 0",
        "select count(*) from app.big where app.inside(room)",
    ] {
        let plan = reader.ask(&format!("{parallel} explain (costs off) {sql}")).expect("a plan");
        assert!(plan.iter().any(|line| line[0].contains("Gather")), "{plan:?}");
        assert_eq!(reader.value(sql), "20000", "{sql}");
        let rows = reader.ask(&format!("{parallel} {sql}")).expect("an answer");
        assert_eq!(rows, [["20000"]], "{sql}");
    }
    cluster.assert_sound();
}

#[test]
fn it_takes_a_room_and_one_of_three_actions() {
    let cluster = Cluster::start();
    let mut alice = cluster.user("alice");
    for (arguments, message) in [
        ("null, 'read'", "room must not be null"),
        ("'lobby', null", "action must not be null"),
        ("'', 'read'", "invalid room"),
        ("'lobby', 'write'", "invalid action"),
        ("'lobby', 'READ'", "invalid action"),
        ("'lobby', ''", "invalid action"),
    ] {
        let failure = alice.fails(&format!("select presence.may({arguments})"));
        assert_eq!((failure.code.as_str(), failure.message.as_str()), ("22023", message), "{arguments}");
    }
}
