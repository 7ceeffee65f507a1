//! A private server, managed by `scripts/cluster`.

use super::{Clock, Session, attempt};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

const USERS: &str = "
    create role alice login;
    create role bob login;
    create role carol login;";

const GRANTS: &str = "
    select presence.grant_access('alice'), presence.grant_access('bob'), presence.grant_access('carol')";

/// Stops and deletes the server on drop.
pub struct Cluster {
    dir: PathBuf,
    clock: Option<Clock>,
    /// Set to run a different PostgreSQL than the one under test.
    pg_config: Option<PathBuf>,
}

impl Cluster {
    /// Starts a server with the database `app`, the extension installed in it, its worker running, and the
    /// users alice, bob and carol.
    pub fn start() -> Cluster {
        Cluster::with(&[])
    }

    /// Like `start`, with server settings: `name=value`.
    pub fn with(options: &[&str]) -> Cluster {
        Cluster::bare(options).prepared()
    }

    /// Like `with`, with clocks that the test controls.
    pub fn with_clock(options: &[&str]) -> Cluster {
        Cluster::made(None, options, Some(Clock::new())).with_users().prepared()
    }

    fn prepared(self) -> Cluster {
        self.sql("postgres", "create database app");
        self.sql("app", "create extension presence_ext");
        self.sql("app", GRANTS);
        self.until_worker("app");
        self
    }

    pub fn clock(&self) -> &Clock {
        self.clock.as_ref().expect("a cluster made by with_clock")
    }

    /// Only the server and the users, without a database or the extension.
    pub fn bare(options: &[&str]) -> Cluster {
        Cluster::made(None, options, None).with_users()
    }

    fn with_users(self) -> Cluster {
        self.sql("postgres", USERS);
        self
    }

    /// A running server, as initdb creates it.
    pub fn empty(pg_config: Option<&Path>, options: &[&str]) -> Cluster {
        Cluster::made(pg_config, options, None)
    }

    fn made(pg_config: Option<&Path>, options: &[&str], clock: Option<Clock>) -> Cluster {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("presence.{}.{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let dir = std::env::temp_dir().join(name);
        let cluster = Cluster { dir, clock, pg_config: pg_config.map(Path::to_path_buf) };
        let fast_path = way().map(|way| format!("presence.fast_path={way}"));
        // The periodic beacon would add events that tests do not expect.
        let options =
            ["presence.beacon=0"].into_iter().chain(fast_path.as_deref()).chain(options.iter().copied());
        cluster.script("start", &options.flat_map(|option| ["-o", option]).collect::<Vec<_>>());
        cluster
    }

    /// Checks that verbs took the configured path: bypassing the executor, or through it.
    pub fn assert_way(&self) {
        let mut service = self.service();
        let is_on = service.is("select current_setting('presence.fast_path')::boolean");
        assert_eq!(service.is("select fast_writes > 0 from presence.health"), is_on);
    }

    pub fn restart(&self) {
        self.restart_with(&[]);
    }

    pub fn restart_with(&self, options: &[&str]) {
        self.script("restart", &options.iter().flat_map(|option| ["-o", option]).collect::<Vec<_>>());
    }

    /// smart, fast or immediate
    pub fn stop(&self, mode: &str) {
        self.script("stop", &[mode]);
    }

    pub fn start_again(&self) {
        self.start_again_with(&[]);
    }

    pub fn start_again_with(&self, options: &[&str]) {
        self.script("start", &options.iter().flat_map(|option| ["-o", option]).collect::<Vec<_>>());
    }

    fn script(&self, command: &str, arguments: &[&str]) {
        let output = self.command(command).args(arguments).output().expect("scripts/cluster");
        assert!(output.status.success(), "cluster {command}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn command(&self, command: &str) -> Command {
        let mut script = Command::new(root().join("scripts/cluster"));
        script.arg(command).arg(&self.dir).envs(self.clock.iter().flat_map(Clock::environment));
        if let Some(pg_config) = &self.pg_config {
            script.env("PG_CONFIG", pg_config);
        }
        script
    }

    /// A session of this user in the database `app`.
    pub fn user(&self, user: &str) -> Session {
        self.session(user, "app")
    }

    /// A superuser session in `app`, which sees everything.
    pub fn service(&self) -> Session {
        self.user("postgres")
    }

    pub fn session(&self, user: &str, database: &str) -> Session {
        Session::open(&self.dir, user, database)
    }

    /// None while the server does not accept connections.
    pub fn try_session(&self, user: &str, database: &str) -> Option<Session> {
        Session::try_open(&self.dir, user, database).ok()
    }

    /// Runs a script as the superuser, on its own connection.
    pub fn sql(&self, database: &str, sql: &str) {
        self.session("postgres", database).run(sql);
    }

    /// Waits until the database has its worker, and returns the worker's pid.
    pub fn until_worker(&self, database: &str) -> i64 {
        let mut session = self.session("postgres", database);
        // A worker that is about to exit may still be reported as running.
        let (mut health, mut pid) = (String::new(), None);
        let runs = attempt(|| {
            let row = session.rows("select to_jsonb(h), h.worker_pid, h.worker_state from presence.health h");
            health = row[0][0].clone();
            pid = row[0][1].parse().ok().filter(|_| row[0][2] == "running");
            pid.is_some()
        });
        assert!(runs, "no worker runs: {health}");
        pid.unwrap_or_default()
    }

    /// Suspends the worker of `app` for the lifetime of the guard.
    pub fn freeze_worker(&self) -> Frozen {
        Frozen::new(self.service().number("select presence.worker_pid()"))
    }

    /// Creates a file that the server's user can see; sessions stall while it exists.
    pub fn stall(&self) -> Stall {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let file = self.dir.join(format!("stall{}", COUNT.fetch_add(1, Relaxed)));
        std::fs::write(&file, "").expect("a file in the cluster's directory");
        Stall { file }
    }

    /// The contents of the server's log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.dir.join("log")).unwrap_or_default()).into_owned()
    }

    /// Asserts that nothing crashed, including crashes that the server survived.
    pub fn assert_sound(&self) {
        let log = self.log();
        for line in log.lines() {
            let bad = ["PANIC", "TRAP:", "was terminated by signal", "panicked", "could not publish"];
            assert!(!bad.iter().any(|word| line.contains(word)), "the server's log says: {line}");
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the end of the server's log:\n{}", lines[lines.len().saturating_sub(80)..].join("\n"));
        }
        let _ = self.command("remove").output();
    }
}

/// With PRESENCE_FAST_PATH=off everything goes through SQL.
fn way() -> Option<String> {
    std::env::var("PRESENCE_FAST_PATH").ok()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a bash script with the functions of scripts/common.sh; `$bin` is the directory of PostgreSQL's
/// programs. Returns whether it succeeded, and its output.
pub fn try_shell(script: &str, arguments: &[&Path]) -> (bool, String) {
    let script = format!("source scripts/common.sh; bin=$(\"$PG_CONFIG\" --bindir); {script}");
    let run = Command::new("bash").args(["-c", &script, "bash"]).args(arguments).current_dir(root()).output();
    let output = run.expect("bash");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// Like `try_shell`, but panics if the script fails.
pub fn shell(script: &str, arguments: &[&Path]) {
    let (done, said) = try_shell(script, arguments);
    assert!(done, "{said}");
}

/// Runs a program of tests/node against this server, and asserts that nothing crashed.
pub fn node(program: &str, cluster: &Cluster) {
    shell(&format!("scripts/node-modules; node tests/node/{program} \"$1\""), &[cluster]);
    cluster.assert_sound();
}

pub fn signal(name: &str, pid: i64) {
    let status = Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().expect("kill");
    assert!(status.success(), "kill -{name} {pid}");
}

/// A process that is stopped until this guard is dropped.
pub struct Frozen {
    pid: i64,
}

impl Frozen {
    pub fn new(pid: i64) -> Frozen {
        signal("STOP", pid);
        Frozen { pid }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-CONT", &self.pid.to_string()]).status();
    }
}

/// A guard: sessions that stall on this file continue when it is dropped.
pub struct Stall {
    file: PathBuf,
}

impl Stall {
    /// The session settings that make a session stall at this point.
    pub fn at(&self, point: &str) -> String {
        format!("set presence.stall_at = '{point}'; set presence.stall_while = '{}';", self.file.display())
    }

    /// The same as server options, for processes without a client session.
    pub fn options(&self, point: &str) -> [String; 2] {
        [format!("presence.stall_at={point}"), format!("presence.stall_while={}", self.file.display())]
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

impl Deref for Cluster {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.dir
    }
}
