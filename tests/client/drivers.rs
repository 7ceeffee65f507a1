//! The programs of docs/drivers.md: whatever happens, each ends up showing what is listed.

use crate::common::{Cluster, attempt, node, shell, try_shell};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The page's code blocks in this language.
fn blocks(language: &str) -> Vec<String> {
    let page = std::fs::read_to_string(root().join("docs/drivers.md")).expect("the page");
    let text = |rest: &str| rest.split("\n```\n").next().expect("the end of a block").to_owned();
    page.split(&format!("```{language}\n")).skip(1).map(text).collect()
}

/// The complete programs among them: the file name from the first line, and the text.
fn programs(language: &str) -> Vec<(String, String)> {
    let program = |text: String| {
        let (name, _) = text.lines().next()?.trim_start_matches(['/', '#', ' ']).split_once(": ")?;
        Some((name.to_owned(), text.clone()))
    };
    blocks(language).into_iter().filter_map(program).collect()
}

/// A running program, connected as the user named after its file.
struct Running {
    user: String,
    child: Child,
    printed: Arc<Mutex<String>>,
}

impl Running {
    fn start(cluster: &Cluster, user: &str, program: &Path, arguments: &[&Path]) -> Running {
        cluster.sql("app", &format!("create role {user} login; select presence.grant_access('{user}')"));
        let mut child = Command::new(program)
            .args(arguments)
            .envs([("PGPORT", "5432"), ("PGDATABASE", "app"), ("PGUSER", user)])
            .env("PGHOST", &**cluster)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap_or_else(|error| panic!("{user}: {error}"));
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let printed = Arc::new(Mutex::new(String::new()));
        let last = printed.clone();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                *last.lock().expect("a line") = line;
            }
        });
        Running { user: user.to_owned(), child, printed }
    }

    /// The line that it printed last.
    fn shows(&self) -> String {
        in_order(&self.printed.lock().expect("a line"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn in_order(list: &str) -> String {
    let mut members: Vec<&str> = list.split(", ").collect();
    members.sort_unstable();
    members.join(", ")
}

/// The listed members in the format that the programs print, once there are `count` of them.
fn listed(cluster: &Cluster, count: usize) -> Option<String> {
    let mut service = cluster.try_session("postgres", "app")?;
    let rows =
        service.try_rows("select member_id || ' ' || (state->>'n') from presence.list('lobby')").ok()?;
    let members: Vec<String> = rows.into_iter().flatten().collect();
    (members.len() == count).then(|| in_order(&members.join(", ")))
}

fn all_show_what_is_listed(cluster: &Cluster, running: &[Running], others: usize, when: &str) {
    let agree = || {
        let listed = listed(cluster, running.len() + others);
        listed.is_some_and(|listed| running.iter().all(|program| program.shows() == listed))
    };
    let shown = |program: &Running| format!("{}: {}", program.user, program.shows());
    assert!(
        attempt(agree),
        "{when}: listed {:?}, but\n{}",
        listed(cluster, running.len() + others),
        running.iter().map(shown).collect::<Vec<_>>().join("\n")
    );
}

fn everything_happens_to(cluster: &Cluster, running: &[Running]) {
    let bob = |sql: &str| cluster.user("bob").run(sql);
    let programs: Vec<&str> = running.iter().map(|program| program.user.as_str()).collect();
    let programs = programs.join(",");

    all_show_what_is_listed(cluster, running, 0, "all are there");
    bob("select presence.upsert('lobby', '{\"n\": 2}')");
    all_show_what_is_listed(cluster, running, 1, "somebody came");
    bob("select presence.update('lobby', '{\"n\": 3}')");
    all_show_what_is_listed(cluster, running, 1, "somebody changed");
    cluster.sql("app", "select presence.rotate_channels()");
    bob("select presence.update('lobby', '{\"n\": 4}')");
    all_show_what_is_listed(cluster, running, 1, "channels have new names");
    cluster.sql(
        "app",
        &format!(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = any ('{{{programs}}}')"
        ),
    );
    bob("select presence.update('lobby', '{\"n\": 5}')");
    all_show_what_is_listed(cluster, running, 1, "their connections were killed");
    cluster.restart();
    bob("select presence.update('lobby', '{\"n\": 6}')");
    all_show_what_is_listed(cluster, running, 1, "the server was restarted");
    cluster.stop("immediate");
    cluster.start_again();
    bob("select presence.upsert('lobby', '{\"n\": 7}')");
    all_show_what_is_listed(cluster, running, 1, "the server crashed");
    bob("select presence.delete('lobby')");
    all_show_what_is_listed(cluster, running, 0, "somebody left");
    cluster.assert_sound();
}

fn cluster() -> Cluster {
    Cluster::with(&["presence.beacon=1s"])
}

fn user_of(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

#[test]
fn javascript_and_python_show_what_is_listed() {
    let cluster = cluster();
    let mut running = Vec::new();
    shell("scripts/node-modules", &[]);
    for (name, text) in programs("js") {
        let file = root().join("tests/node/node_modules").join(format!(".presence-{name}"));
        std::fs::write(&file, text).expect("a program");
        running.push(Running::start(&cluster, user_of(&name), Path::new("node"), &[&file]));
    }
    let (done, venv) = try_shell("scripts/python-modules", &[]);
    assert!(done, "{venv}");
    let venv = PathBuf::from(venv.lines().last().unwrap_or_default());
    for (name, text) in programs("python") {
        let file = venv.join(&name);
        std::fs::write(&file, text).expect("a program");
        running.push(Running::start(&cluster, user_of(&name), &venv.join("bin/python"), &[&file]));
    }
    assert_eq!(running.len(), 5);
    everything_happens_to(&cluster, &running);
}

/// The programs take minutes to compile: `make test-all`.
#[test]
#[ignore]
fn rust_shows_what_is_listed() {
    let crate_of = Path::new(env!("CARGO_TARGET_TMPDIR")).join("drivers");
    std::fs::create_dir_all(crate_of.join("src/bin")).expect("a folder");
    for file in ["Cargo.toml", "Cargo.lock"] {
        std::fs::copy(root().join("tests/rust").join(file), crate_of.join(file)).expect("a file");
    }
    let programs = programs("rust");
    for (name, text) in &programs {
        std::fs::write(crate_of.join("src/bin").join(name), text).expect("a program");
    }
    shell("cargo build --locked --manifest-path \"$1\"/Cargo.toml --target-dir \"$1\"/target", &[&crate_of]);
    let cluster = cluster();
    let running: Vec<Running> = programs
        .iter()
        .map(|(name, _)| {
            let user = user_of(name);
            Running::start(&cluster, user, &crate_of.join("target/debug").join(user), &[])
        })
        .collect();
    assert_eq!(running.len(), 2);
    everything_happens_to(&cluster, &running);
}

#[test]
fn types_are_as_the_page_says() {
    let cluster = Cluster::start();
    node("types.mjs", &cluster);
    shell("\"$(scripts/python-modules)\"/bin/python tests/python/types_of_drivers.py \"$1\"", &[&cluster]);
}

/// Checks what the page says about tools that read the catalog, where they are available. It takes minutes,
/// so it is part of `make test-all`.
#[test]
#[ignore]
fn tools_read_the_catalog() {
    let cluster = Cluster::start();
    let work = cluster.join("tools");
    std::fs::create_dir(&work).expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(work.join(name), text).expect("a file");
    write("commands", &blocks("sh").join("\n"));
    write("drizzle.config.ts", &blocks("ts").concat());
    let models = blocks("python").into_iter().find(|text| text.starts_with("# models.py")).expect("models");
    write("models.py", &models);
    shell("tests/tools/run \"$1\" \"$2\"", &[&cluster, &work]);
    cluster.assert_sound();
}
