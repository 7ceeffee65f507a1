//! Behind PgBouncer in transaction mode: clients share a server connection, but stay isolated from each
//! other.

use crate::common::{Cluster, Failure, Session, until};
use std::path::PathBuf;
use std::process::{Child, Command};

const ROLES: &str = "
    create role authenticator login noinherit;
    create role authenticated; create role staff; create role anon;
    grant authenticated, staff, anon to authenticator;
    select presence.grant_access(role) from unnest('{authenticator,authenticated,staff,anon}'::regrole[]) role;
    grant execute on function presence.act_as(text, text[]) to authenticator;
    create role pooled login; -- it has switched off what a pooler cannot give
    alter role pooled set presence.session_features = off;
    select presence.grant_access('pooled')";

/// One server connection for each login role, however many clients there are.
struct Pooler {
    process: Child,
    dir: PathBuf,
}

impl Pooler {
    fn start(cluster: &Cluster) -> Pooler {
        let dir = cluster.join("pool");
        std::fs::create_dir(&dir).expect("a directory");
        let (server, socket) = (cluster.display(), dir.display());
        let settings = format!(
            "[databases]\napp = host={server} port=5432 dbname=app pool_size=1\n[pgbouncer]\n\
             pool_mode = transaction\nlisten_addr =\nlisten_port = 5432\nunix_socket_dir = {socket}\n\
             auth_type = trust\nauth_file = {socket}/users\nignore_startup_parameters = options,extra_float_digits\n"
        );
        let file = dir.join("pgbouncer.ini");
        std::fs::write(&file, settings).expect("its settings");
        std::fs::write(dir.join("users"), "\"authenticator\" \"\"\n\"pooled\" \"\"\n").expect("its users");
        let log = std::fs::File::create(dir.join("log")).expect("its log");
        let mut command = Command::new("pgbouncer");
        // Debian installs it in a directory that is not in every user's PATH.
        command.env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin");
        if is_root() {
            assert!(
                Command::new("chown").args(["-R", "postgres:"]).arg(&dir).status().is_ok_and(|s| s.success())
            );
            command.args(["-u", "postgres"]);
        }
        let process = command
            .arg(&file)
            .stderr(log)
            .spawn()
            .expect("pgbouncer, which `scripts/deps pgbouncer` installs");
        let pooler = Pooler { process, dir };
        until("the pooler takes clients", || Session::try_open(&pooler.dir, "authenticator", "app").is_ok());
        pooler
    }

    fn client(&self, user: &str) -> Session {
        Session::open(&self.dir, user, "app")
    }
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().expect("id").stdout == b"0\n"
}

impl Drop for Pooler {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.dir.join("log")).unwrap_or_default());
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The ways in which a transaction sets its identity.
fn identity(way: usize, user: &str) -> String {
    match way {
        0 => format!(
            "set local role authenticated; select set_config('request.jwt.claims', '{{\"sub\": \"{user}\"}}', true);"
        ),
        1 => format!("set local request.jwt.claims = '{{\"sub\": \"{user}\"}}';"),
        _ => format!("select presence.act_as('{user}');"),
    }
}

#[test]
fn two_clients_on_one_server_connection_keep_apart_with_every_verb() {
    let cluster = Cluster::start();
    cluster.sql("app", ROLES);
    let pooler = Pooler::start(&cluster);
    let mut clients = [(pooler.client("authenticator"), "alice"), (pooler.client("authenticator"), "bob")];
    let mut service = cluster.service();
    let pids: Vec<i64> = clients.iter_mut().map(|(client, _)| client.pid()).collect();
    assert_eq!(pids[0], pids[1], "they share a server connection");

    for turn in 0..12 {
        for (client, user) in &mut clients {
            client.run(&format!("begin; {}", identity(turn % 3, user)));
            // Both as simple queries, planned anew, and as statements prepared by the driver.
            let mut rows = |sql: &str| {
                if turn % 2 == 0 { client.rows(sql) } else { client.prepared(sql, &[]) }
            };
            let me = [[user.to_string()]];
            assert_eq!(rows("select presence.user_id()"), me);
            assert_eq!(rows("select (presence.upsert('lobby', '{\"mine\": 1}')).user_id"), me);
            assert_eq!(rows("select (presence.upsert('desk', audience => '{}')).member_id"), me);
            assert_eq!(
                rows("select user_id from presence.list('desk')"),
                me,
                "a room with one's own row only"
            );
            assert_eq!(rows("select user_id from presence.online where room = 'desk'"), me);
            assert_eq!(rows("select user_id from presence.update('lobby', '{\"turn\": 1}')"), me);
            assert_eq!(rows("select member_id from presence.get('lobby')"), me);
            assert_eq!(rows("select presence.heartbeat('lobby')::text"), [["true"]]);
            let missing = "select room, member_id from presence.heartbeat_many('{lobby,nowhere}')";
            assert_eq!(rows(missing), [["nowhere", user]]);
            assert_eq!(rows("select members::text from presence.occupancy('desk')"), [["1"]]);
            assert_eq!(rows("select user_id from presence.users('desk')"), me);
            assert_eq!(rows("select members::text from presence.rooms('desk')"), [["1"]]);
            assert_eq!(rows("select k from jsonb_object_keys(presence.state('desk')) k"), me);
            let history = rows("select distinct member_id from presence.history('desk')");
            assert_eq!(history, me[..usize::from(turn > 0)], "{turn}");
            let others = "select count(*)::text from presence.changes(0) where room = 'desk' and member_id <> presence.user_id()";
            assert_eq!(rows(others), [["0"]]);
            assert_eq!(rows("select presence.upsert_many('[{\"room\": \"hall\"}]')::text"), [["1"]]);
            assert_eq!(rows("select user_id from presence.list('hall')"), me);
            assert_eq!(rows("select presence.delete_many('[{\"room\": \"hall\"}]')::text"), [["1"]]);
            assert_eq!(
                rows(
                    "select string_agg(token, ',') from unnest(presence.tokens()) token
                             where token like 'user:%'"
                ),
                [[format!("user:{user}")]]
            );
            if turn % 4 == 3 {
                assert_eq!(rows("select presence.delete('lobby')::text"), [["1"]]);
                assert_eq!(rows("select presence.delete_all()::text"), [["1"]]);
            }
            client.run("commit");
            service.flush();

            // Nothing of it remains for the next client.
            assert_eq!(client.value("select coalesce(presence.user_id(), 'nobody')"), "nobody");
            assert_eq!(client.fails("select presence.upsert('lobby')").code, "42501");
            assert_eq!(client.number("select count(*) from presence.list('desk')"), 0);
        }
    }
    cluster.assert_sound();
}

#[test]
fn plans_that_are_kept_show_each_caller_their_own() {
    let cluster = Cluster::start();
    cluster.sql("app", ROLES);
    let pooler = Pooler::start(&cluster);
    cluster.sql("app", "select presence.upsert('lobby', member_id => kind, user_id => 'x', audience => array[token])
        from (values ('team', 'team:red'), ('staff', 'role:staff'), ('all', 'any'), ('carol', 'user:carol'), ('room', 'room:desk'))
             v (kind, token)");
    let (mut first, mut second) = (pooler.client("authenticator"), pooler.client("authenticator"));
    // Prepared once, on the shared server connection.
    first.run(
        "prepare seen as select string_agg(member_id, ' ' order by member_id) from presence.list('lobby')",
    );
    let cases = [
        ("set local role staff", "all staff"),
        ("set local role anon", "all"),
        ("select presence.act_as('alice', '{red}')", "all team"),
        ("select presence.act_as('alice')", "all"),
        ("select presence.act_as('carol', '{red}'); set local role staff", "all carol staff team"),
        ("select presence.act_as('carol'); set local role authenticated", "all carol"),
        (
            "select presence.act_as('bob'); set local role authenticated; select presence.upsert('desk')",
            "all room",
        ),
        ("select presence.act_as('dave', '{blue,red}'); set local role authenticated", "all team"),
    ];
    for turn in 0..8 {
        for (at, (who, sees)) in cases.iter().enumerate() {
            let client = if (turn + at) % 2 == 0 { &mut first } else { &mut second };
            client.run(&format!("begin; {who}"));
            assert_eq!(client.value("execute seen"), *sees, "{who}");
            let read =
                "select string_agg(member_id, ' ' order by member_id) from presence.online where room = $1";
            assert_eq!(client.prepared(read, &["lobby"]), [[*sees]], "{who}");
            // Half of the transactions roll back.
            client.run(if turn % 2 == 0 { "rollback" } else { "commit" });
        }
        // Bob's stay in the room ends with his rolled-back transaction, or here.
        first.run("begin; select presence.act_as('bob'); select presence.delete_all(); commit");
    }
    cluster.assert_sound();
}

/// The call is refused with this reason.
fn assert_refused(failure: &Failure, why: &str) {
    assert_eq!(failure.code, "0A000", "{failure:?}");
    assert!(failure.detail.contains(why), "{failure:?}");
    assert!(failure.hint.contains("presence.channels"), "{failure:?}");
}

#[test]
fn what_needs_a_session_of_ones_own_is_refused_with_the_reason() {
    let cluster = Cluster::start();
    cluster.sql("app", ROLES);
    let pooler = Pooler::start(&cluster);
    let mut trusted = pooler.client("authenticator");
    let mut pooled = pooler.client("pooled");
    for call in [
        "select presence.listen('lobby')",
        "select presence.listen()",
        "select presence.upsert('lobby', session => true)",
    ] {
        trusted.run("begin; select presence.act_as('alice')");
        assert_refused(&trusted.fails(call), "presence.trusted_login_roles");
        trusted.run("rollback");
        assert_refused(&pooled.fails(call), "presence.session_features is off");
    }
    assert_eq!(cluster.service().number("select count(*) from presence.member"), 0);

    // The alternative: get the channel names through the pool, and LISTEN on a dedicated connection.
    pooled.run("select presence.upsert('lobby')");
    let channels = pooled.rows("select c from presence.channels('lobby') c");
    let mut own = cluster.user("pooled");
    for channel in &channels {
        own.run(&format!("listen \"{}\"", channel[0]));
    }
    pooled.run("select presence.update('lobby', '{\"x\": 1}')");
    own.hear_until("the update", |event| event.kind() == "update");
    // The setting applies to the role, so that a direct connection of the role cannot call `listen` either.
    assert_refused(&own.fails("select presence.listen()"), "presence.session_features is off");
    cluster.assert_sound();
}
