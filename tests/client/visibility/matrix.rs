//! Every kind of reader, every kind of audience, every way to learn of a member: who sees what, checked
//! against a table.

use super::people::{self, Reader};
use crate::common::{Cluster, Session, until};
use std::collections::BTreeSet;

/// The columns of the table below.
const AUDIENCES: [&str; 13] = [
    "{}",
    "{any}",
    "{users}",
    "{room}",
    "{user:u3}",
    "{team:red}",
    "{role:staff}",
    "{room:other}",
    "{team:red,role:staff}",
    "{users,role:anon}",
    "{role:authenticated}",
    "{user:dan}",
    "{room,user:u3,any}",
];

/// Who sees what, by the rules of docs/visibility.md: x is visible. The member is olga's; u4 is in its room,
/// otto in the room `other`, u2 in the team red; rita inherits the role staff, nora does not.
const TABLE: &str = "
                      {} any users room u3 red staff other red+staff users+anon authenticated dan room+u3+any
    anonymous          .  x   .     .    .  .   .     .     .         x          .             .   x
    anon-login         .  x   .     .    .  .   .     .     .         x          .             .   x
    anon-with-teams    .  x   .     .    .  .   .     .     .         x          .             .   x
    signed-in          .  x   x     .    .  .   .     .     .         x          x             .   x
    in-the-team        .  x   x     .    .  x   .     .     x         x          x             .   x
    named              .  x   x     .    x  .   .     .     .         x          x             .   x
    in-the-room        .  x   x     x    .  .   .     .     .         x          x             .   x
    in-another-room    .  x   x     .    .  .   .     x     .         x          .             .   x
    owner              x  x   x     x    x  x   x     x     x         x          x             x   x
    another-role       .  x   x     .    .  .   .     .     .         x          .             x   x
    inheriting         .  x   x     .    .  .   x     .     x         x          .             .   x
    not-inheriting     .  x   x     .    .  .   .     .     .         x          .             .   x
    service-login      x  x   x     x    x  x   x     x     x         x          x             x   x
    service-web        x  x   x     x    x  x   x     x     x         x          x             x   x
    superuser          x  x   x     x    x  x   x     x     x         x          x             x   x
    superuser-as-team  .  x   x     .    .  x   .     .     x         x          x             .   x
    forged             .  x   x     .    .  .   .     .     .         x          .             x   x
    forged-old         .  x   x     .    .  .   .     .     .         x          .             x   x
    no-claims          .  x   .     .    .  .   .     .     .         .          x             .   x
    empty-claims       .  x   .     .    .  .   .     .     .         .          x             .   x
    left-over-claims   .  x   .     .    .  .   .     .     .         .          x             .   x
    teams-without-sub  .  x   .     .    .  .   .     .     .         .          x             .   x
    not-even-json      .  x   .     .    .  .   .     .     .         .          x             .   x";

/// For members of other users, olga is like any other signed-in role.
const OWNER_AS_STRANGER: &str =
    "  .  x   x     .    .  .   .     .     .         x          .             .   x";

pub fn readers(cluster: &Cluster) -> Vec<Reader> {
    let login = |name, role| Reader::login(cluster, name, role);
    let web = |name, role, claims| Reader::web(cluster, name, role, claims);
    let red = r#""app_metadata":{"teams":["blue","red"]}"#;
    let mut left_over = login("left-over-claims", "authenticator").claiming(r#"{"sub":"olga"}"#);
    left_over.value("select 1");
    assert_eq!(left_over.session().value("select current_setting('request.jwt.claims')"), "");
    let left_over = left_over.only("set local role authenticated;");
    vec![
        web("anonymous", "anon", r#"{"role":"anon"}"#),
        login("anon-login", "anon"),
        login("anon-with-teams", "anon").claiming(&format!(r#"{{"sub":"olga",{red}}}"#)),
        web("signed-in", "authenticated", r#"{"sub":"u1"}"#),
        web("in-the-team", "authenticated", &format!(r#"{{"sub":"u2",{red}}}"#)),
        web("named", "authenticated", r#"{"sub":"u3"}"#),
        web("in-the-room", "authenticated", r#"{"sub":"u4"}"#),
        login("in-another-room", "otto"),
        login("owner", "olga"),
        login("another-role", "dan"),
        login("inheriting", "rita"),
        login("not-inheriting", "nora"),
        login("service-login", "gateway"),
        web("service-web", "service_role", r#"{"role":"service_role"}"#),
        login("superuser", "postgres"),
        login("superuser-as-team", "postgres")
            .saying("set local role authenticated;")
            .claiming(&format!(r#"{{"sub":"u2",{red}}}"#)),
        login("forged", "dan").claiming(&format!(r#"{{"sub":"olga",{red}}}"#)),
        login("forged-old", "dan").saying("set local request.jwt.claim.sub = 'olga';"),
        login("no-claims", "authenticator").saying("set local role authenticated;"),
        web("empty-claims", "authenticated", ""),
        left_over,
        web("teams-without-sub", "authenticated", &format!("{{{red}}}")),
        web("not-even-json", "authenticated", "{olga"),
    ]
}

fn cells(line: &str) -> Vec<i64> {
    let cells: Vec<i64> = line.split_whitespace().map(|cell| (cell == "x") as i64).collect();
    assert_eq!(cells.len(), AUDIENCES.len(), "{line}");
    cells
}

fn expected(reader: &str) -> Vec<i64> {
    let line = TABLE.lines().map(str::trim).find_map(|line| line.strip_prefix(&format!("{reader} ")));
    cells(line.unwrap_or_else(|| panic!("{reader} is not in the table")))
}

fn is_service(reader: &str) -> bool {
    ["service-login", "service-web", "superuser"].contains(&reader)
}

/// What a query about a room counts.
enum Counts {
    /// The member in question.
    It,
    /// That member and the owner's other member in the room, with audience {}.
    Owners,
    /// All members that the reader sees.
    Members,
    /// All users that the reader sees.
    Users,
    /// Members whose audience is shown to the reader.
    Audiences,
    /// Nothing, unless the member is the reader's own or the reader is a service.
    Mine,
}

impl Counts {
    fn expected(&self, reader: &str, cell: i64) -> i64 {
        let (service, owner) = (is_service(reader), reader == "owner");
        let hidden = (service || owner) as i64;
        let room_mate = (service || reader == "in-the-room") as i64;
        match self {
            Counts::It => cell,
            Counts::Owners => cell + hidden,
            Counts::Members => cell + hidden + room_mate,
            Counts::Users => (cell + hidden).min(1) + room_mate,
            Counts::Audiences => 2 * hidden + room_mate,
            Counts::Mine => hidden,
        }
    }
}

/// Every query that returns information about members of a room. `$r` is the room.
const WAYS: [(&str, Counts, &str); 33] = [
    (
        "online",
        Counts::It,
        "select count(*) from presence.online where room = $r and user_id = 'olga' and connection_id = ''",
    ),
    ("online, all", Counts::Members, "select count(*) from presence.online where room = $r"),
    (
        "online, audience",
        Counts::Audiences,
        "select count(*) from presence.online where room = $r and audience is not null",
    ),
    (
        "exists",
        Counts::It,
        "select exists (select from presence.online where room = $r and connection_id = '' and user_id = 'olga')::int",
    ),
    (
        "not exists",
        Counts::It,
        "select count(*) where not not exists (select from presence.member where room = $r and connection_id = '' and user_id = 'olga')",
    ),
    (
        "outer join",
        Counts::It,
        "select count(o.room) from (values ('olga')) u (id) left join presence.online o on o.user_id = u.id and o.room = $r and o.connection_id = ''",
    ),
    (
        "list",
        Counts::It,
        "select count(*) from presence.list($r) where member_id = 'olga' and connection_id = ''",
    ),
    (
        "list after",
        Counts::Owners,
        "select count(*) from presence.list($r, after => '{olf,z}') where user_id = 'olga'",
    ),
    (
        "list of all rooms",
        Counts::Members,
        "select count(*) from presence.list(max_rows => 1000) where room = $r",
    ),
    ("get", Counts::It, "select count(*) from presence.get($r, 'olga', '')"),
    ("get, all connections", Counts::Owners, "select count(*) from presence.get($r, 'olga')"),
    ("users", Counts::Users, "select count(*) from presence.users($r)"),
    (
        "users.members",
        Counts::Owners,
        "select coalesce(max(members) filter (where user_id = 'olga'), 0) from presence.users($r)",
    ),
    ("occupancy", Counts::Members, "select members from presence.occupancy($r)"),
    ("occupancy.users", Counts::Users, "select users from presence.occupancy($r)"),
    ("rooms", Counts::Members, "select coalesce(max(members), 0) from presence.rooms($r)"),
    ("rooms.users", Counts::Users, "select coalesce(max(users), 0) from presence.rooms($r)"),
    ("state", Counts::Owners, "select coalesce(jsonb_array_length(presence.state($r) -> 'olga'), 0)"),
    (
        "history",
        Counts::Owners,
        "select count(distinct connection_id) from presence.history($r, max_rows => 1000) where user_id = 'olga'",
    ),
    (
        "history of a member",
        Counts::Owners,
        "select count(distinct connection_id) from presence.history($r, direction => 'forwards', member_id => 'olga')",
    ),
    (
        "changes",
        Counts::Owners,
        "select count(distinct connection_id) from presence.changes(0, $r) where user_id = 'olga'",
    ),
    (
        "changes everywhere",
        Counts::Members,
        "select count(distinct (user_id, connection_id)) from presence.changes(0) where room = $r",
    ),
    ("table member", Counts::Members, "select count(*) from presence.member where room = $r"),
    (
        "table member by user",
        Counts::Owners,
        "select count(*) from presence.member where user_id = 'olga' and room = $r",
    ),
    (
        "table member by hash",
        Counts::Owners,
        "select count(*) from presence.member m where m.key_hash in (select key_hash from presence.member where room = $r and member_id = 'olga')",
    ),
    (
        "table event",
        Counts::Members,
        "select count(distinct (user_id, connection_id)) from presence.event where room = $r",
    ),
    (
        "a leaky function on online",
        Counts::Members,
        "select set_config('leak.seen', '', true); select count(*) from presence.online where leak(room, user_id); select leaked($r)",
    ),
    (
        "a leaky function on member",
        Counts::Members,
        "select set_config('leak.seen', '', true); select count(*) from presence.member where leak(room, user_id); select leaked($r)",
    ),
    (
        "a leaky function on event",
        Counts::Users,
        "select set_config('leak.seen', '', true); select count(*) from presence.event where leak(room, user_id); select leaked_users($r)",
    ),
    (
        "a leaky operator",
        Counts::Members,
        "select set_config('leak.seen', '', true); select count(*) from presence.online where room ~~~ user_id; select leaked($r)",
    ),
    (
        "update returning",
        Counts::Mine,
        "with w as (update presence.member set status = 'x' where room = $r and user_id = 'olga' and connection_id = '' returning *) select count(*) from w",
    ),
    (
        "delete returning",
        Counts::Mine,
        "with w as (delete from presence.member where room = $r and user_id = 'olga' and connection_id = '' returning *) select count(*) from w",
    ),
    (
        "for share",
        Counts::Mine,
        "with w as (select * from presence.member where room = $r and user_id = 'olga' and connection_id = '' for key share) select count(*) from w",
    ),
];

/// A function that reveals its arguments and is cheaper than any check; and functions to read what it has
/// seen.
const LEAK: &str = "
    create function leak(room text, who text) returns boolean language plpgsql cost 0.0001 as $$
    begin
        perform set_config('leak.seen', concat(current_setting('leak.seen', true), room, '/', who, ','), true);
        return true;
    end $$;
    create operator ~~~ (leftarg = text, rightarg = text, function = leak);
    create function leaked(room text) returns bigint language sql as $$
        select count(*) from string_to_table(current_setting('leak.seen'), ',') seen
        where starts_with(seen, leaked.room || '/') $$;
    create function leaked_users(room text) returns bigint language sql as $$
        select count(distinct seen) from string_to_table(current_setting('leak.seen'), ',') seen
        where starts_with(seen, leaked_users.room || '/') $$;";

/// Calls with somebody else's key, and with a key that nobody has: a reader who does not see the member gets
/// the same answer. `$r` is the room.
const PROBES: [(&str, &str); 17] = [
    ("upsert", "select presence.upsert($r, member_id => 'olga')"),
    ("upsert, session", "select presence.upsert($r, member_id => 'olga', session => true)"),
    ("upsert, user_id", "select presence.upsert($r, user_id => 'olga')"),
    (
        "upsert_many",
        r#"select presence.upsert_many(jsonb_build_array(jsonb_build_object('room', $r, 'member_id', 'olga')))"#,
    ),
    ("update", "select presence.update($r, '{}', 'olga')"),
    ("heartbeat", "select presence.heartbeat($r, 'olga')"),
    ("heartbeat_many", "select count(*) from presence.heartbeat_many(array[$r], '{olga}')"),
    ("delete", "select presence.delete($r, 'olga')"),
    ("delete all connections", "select presence.delete($r, 'olga', null)"),
    (
        "delete_many",
        r#"select presence.delete_many(jsonb_build_array(jsonb_build_object('room', $r, 'member_id', 'olga')))"#,
    ),
    ("delete_all", "select presence.delete_all('olga')"),
    ("insert", "insert into presence.member (room, member_id) values ($r, 'olga') returning 1"),
    (
        "insert for her",
        "insert into presence.member (room, member_id, user_id) values ($r, 'olga', 'olga') returning 1",
    ),
    (
        "on conflict do nothing",
        "insert into presence.member (room, member_id) values ($r, 'olga') on conflict do nothing returning 1",
    ),
    (
        "on conflict do update",
        "insert into presence.member (room, member_id) values ($r, 'olga') on conflict (room, member_id, connection_id) do update set status = 'x' returning 1",
    ),
    (
        "update the table",
        "update presence.member set status = 'x' where room = $r and member_id = 'olga' and connection_id = '' returning 1",
    ),
    (
        "delete from the table",
        "delete from presence.member where room = $r and member_id = 'olga' and connection_id = '' returning 1",
    ),
];

fn room(at: usize) -> String {
    format!("room{at:02}")
}

/// Collects errors, and reports all of them at the end.
#[derive(Default)]
struct Findings {
    wrong: Vec<String>,
    checked: usize,
}

impl Findings {
    fn check(&mut self, reader: &str, audience: &str, way: &str, expected: i64, found: i64) {
        self.checked += 1;
        if expected != found {
            let what = if found > expected { "LEAK" } else { "FALSE REFUSAL" };
            self.wrong.push(format!(
                "{what}: reader {reader}, audience {audience}, way {way}: {found}, not {expected}"
            ));
        }
    }

    fn same(&mut self, reader: &str, audience: &str, way: &str, expected: &str, found: &str) {
        self.checked += 1;
        if expected != found {
            self.wrong.push(format!(
                "LEAK: reader {reader}, audience {audience}, way {way}: {found}, not {expected}"
            ));
        }
    }

    fn tell(self) {
        println!("{} cells", self.checked);
        let count = self.wrong.len();
        assert!(count == 0, "{count} of {} cells are wrong:\n{}", self.checked, self.wrong.join("\n"));
    }
}

/// In each room: a member of olga's with that audience, one with audience {}, and u4 with audience {}.
fn enter_all(cluster: &Cluster) -> Session {
    let mut olga = cluster.user("olga");
    let mut mate = Reader::signed_in(cluster, "in-the-room", "u4");
    for (at, audience) in AUDIENCES.iter().enumerate() {
        let room = room(at);
        mate.act(&format!("select presence.upsert('{room}', audience => '{{}}', ttl => '1 day')"));
        olga.run(&format!(
            "select presence.upsert('{room}', '{{\"n\": 1}}', audience => '{audience}', ttl => '1 day'),
                    presence.upsert('{room}', connection_id => 'hidden', audience => '{{}}', ttl => '1 day')"
        ));
    }
    cluster.user("otto").run("select presence.upsert('other', audience => '{}', ttl => '1 day')");
    olga.flush();
    olga
}

#[test]
fn what_queries_tell() {
    let cluster = people::start();
    cluster.sql("app", LEAK);
    enter_all(&cluster);
    let mut findings = Findings::default();
    for mut reader in readers(&cluster) {
        let cells = expected(reader.name);
        for (at, audience) in AUDIENCES.iter().enumerate() {
            for (way, counts, sql) in &WAYS {
                let sql = sql.replace("$r", &format!("'{}'", room(at)));
                let found = match reader.ask(&sql) {
                    Ok(rows) => rows.last().map_or(-1, |row| row[0].parse().expect("a number")),
                    Err(failure) => panic!("{}, {audience}, {way}: {failure:?}", reader.name),
                };
                findings.check(reader.name, audience, way, counts.expected(reader.name, cells[at]), found);
            }
        }
        let all: i64 = (0..AUDIENCES.len()).map(|at| Counts::Members.expected(reader.name, cells[at])).sum();
        let other = (is_service(reader.name) || reader.name == "in-another-room") as i64;
        let found = reader.value("select members from presence.occupancy()").parse().expect("a number");
        findings.check(reader.name, "all", "occupancy of all rooms", all + other, found);
    }
    findings.tell();
}

#[test]
fn what_somebody_elses_key_tells() {
    let cluster = people::start();
    enter_all(&cluster);
    let mut findings = Findings::default();
    // With presence.member_ids = 'own' they reveal nothing: an invisible member is like an absent one.
    for mut reader in readers(&cluster) {
        if is_service(reader.name) || reader.name == "owner" {
            continue;
        }
        let cells = expected(reader.name);
        for (way, sql) in &PROBES {
            let absent = reader.answer(&sql.replace("$r", "'absent'"));
            for (at, audience) in AUDIENCES.iter().enumerate().filter(|(at, _)| cells[*at] == 0) {
                let found = reader.answer(&sql.replace("$r", &format!("'{}'", room(at))));
                findings.same(reader.name, audience, &format!("{way} (own)"), &absent, &found);
            }
        }
    }
    // With 'any' they reveal that the key is taken: equally for visible and for invisible members.
    cluster.sql("app", "alter database app set presence.member_ids = 'any'");
    for mut reader in readers(&cluster) {
        if is_service(reader.name) || reader.name == "owner" {
            continue;
        }
        let cells = expected(reader.name);
        let Some(seen) = cells.iter().position(|cell| *cell == 1) else { continue };
        for (way, sql) in &PROBES {
            let seen = reader.answer(&sql.replace("$r", &format!("'{}'", room(seen))));
            for (at, audience) in AUDIENCES.iter().enumerate() {
                let found = reader.answer(&sql.replace("$r", &format!("'{}'", room(at))));
                findings.same(reader.name, audience, &format!("{way} (any)"), &seen, &found);
            }
        }
    }
    findings.tell();
}

#[test]
fn what_listeners_hear() {
    let cluster = people::start();
    let mut service = cluster.service();
    let mut olga = enter_all(&cluster);
    let rooms: Vec<String> = (0..AUDIENCES.len()).map(room).collect();
    let names: Vec<&str> = rooms.iter().map(String::as_str).collect();
    let mut listeners = Vec::new();
    for (scope, rooms) in [("of each room", names.as_slice()), ("of all rooms", &["null"])] {
        for mut reader in readers(&cluster) {
            reader.listen(rooms);
            listeners.push((scope, reader));
        }
    }
    service.flush();
    let mut findings = Findings::default();
    let mut hear = |service: &mut Session, step: &str, kind: &str| {
        for (scope, reader) in &mut listeners {
            let heard = reader.heard(service);
            let cells = expected(reader.name);
            let sender = service.number("select presence.worker_pid()");
            for (at, audience) in AUDIENCES.iter().enumerate() {
                let events: Vec<_> = heard
                    .iter()
                    .filter(|event| event.is_of_member() && event.text("room") == room(at))
                    .collect();
                let way = |what: &str| format!("{what} {step} {scope}");
                let of = |connection: &str| {
                    let of: BTreeSet<i64> = events
                        .iter()
                        .filter(|event| event.kind() == kind && event.text("connection_id") == connection)
                        .map(|event| event.seq())
                        .collect();
                    of.len() as i64
                };
                // A listener to one room gets a doorbell for members shared with another room, and reads the
                // log.
                let rings = *scope == "of each room" && *audience == "{room:other}";
                let by_bell = rings && reader.name == "in-another-room";
                findings.check(reader.name, audience, &way("event"), cells[at] * i64::from(!by_bell), of(""));
                let hidden = (is_service(reader.name) || reader.name == "owner") as i64;
                findings.check(reader.name, audience, &way("event of the hidden"), hidden, of("hidden"));
                // In the first room both members have the audience {}.
                for event in events.iter().filter(|_| at > 0) {
                    let connections = if kind == "leave" { 0 } else { 1 };
                    findings.check(
                        reader.name,
                        audience,
                        &way("connections"),
                        connections,
                        event.number("connections"),
                    );
                    let told = event.fields.get("audience").is_some() as i64;
                    let service = is_service(reader.name) as i64;
                    findings.check(reader.name, audience, &way("audience"), service, told);
                    assert_eq!(event.sender, sender);
                }
            }
            let rung = heard.iter().filter(|event| event.kind() == "changes").count() as i64;
            let hears_bell = *scope == "of each room"
                && ["owner", "in-the-room", "in-another-room"].contains(&reader.name);
            findings.check(
                reader.name,
                "{room:other}",
                &format!("doorbell {step} {scope}"),
                hears_bell.into(),
                rung,
            );
            let calls = heard
                .iter()
                .filter(|event| !event.is_of_member() && (event.kind() != "changes" || !hears_bell));
            for event in calls.clone() {
                // Without member data: `relisten`, to the owner whose last connection of a room came or went,
                // and to those present in a room whose channel rotated because she left.
                assert!(
                    event.kind() == "relisten" && ["owner", "in-the-room"].contains(&reader.name),
                    "{} {scope} hears {}",
                    reader.name,
                    event.payload
                );
            }
            if calls.count() > 0 {
                reader.listen(if *scope == "of all rooms" { &["null"] } else { &names });
            }
        }
    };
    // Both members of each room.
    let everywhere = |sql: &str| -> String {
        let both =
            |room: &String| ["", "hidden"].map(|id| sql.replace("$r", room).replace("$c", id)).join(";");
        rooms.iter().map(both).collect::<Vec<_>>().join(";")
    };
    olga.run(&everywhere("select presence.update('$r', '{\"n\": 2}', connection_id => '$c')"));
    hear(&mut service, "update", "update");
    olga.run(&everywhere("select presence.delete('$r', connection_id => '$c')"));
    hear(&mut service, "leave", "leave");
    for (at, audience) in AUDIENCES.iter().enumerate() {
        let room = room(at);
        olga.run(&format!(
            "select presence.upsert('{room}', audience => '{audience}'),
                    presence.upsert('{room}', connection_id => 'hidden', audience => '{{}}')"
        ));
    }
    hear(&mut service, "enter", "enter");
    findings.tell();
}

#[test]
fn when_users_were_last_seen() {
    let cluster = people::start();
    let mut service = cluster.service();
    let mut mate = Reader::signed_in(&cluster, "in-the-room", "u4");
    let user = |at: usize| format!("seen{at:02}");
    for (at, audience) in AUDIENCES.iter().enumerate() {
        let user = user(at);
        mate.act(&format!("select presence.upsert('{user}', audience => '{{}}', ttl => '1 day')"));
        service
            .run(&format!("select presence.upsert('{user}', user_id => '{user}', audience => '{audience}')"));
    }
    cluster.user("otto").run("select presence.upsert('other', audience => '{}', ttl => '1 day')");
    let mut findings = Findings::default();
    let mut look = |way: &str| {
        for mut reader in readers(&cluster) {
            let is_owner = reader.name == "owner";
            let cells = if is_owner { cells(OWNER_AS_STRANGER) } else { expected(reader.name) };
            for (at, audience) in AUDIENCES.iter().enumerate() {
                let sql = format!("select count(*) from presence.last_seen where user_id = '{}'", user(at));
                let found = reader.value(&sql).parse().expect("a number");
                findings.check(reader.name, audience, way, cells[at], found);
            }
        }
    };
    look("last_seen while online");
    for at in 0..AUDIENCES.len() {
        service.run(&format!("select presence.delete_all('{}')", user(at)));
    }
    service.flush();
    until("last_seen is written", || {
        service.number("select count(*) from _presence._last_seen where user_id like 'seen%'")
            == AUDIENCES.len() as i64
    });
    look("last_seen after the leave");
    findings.tell();
}
