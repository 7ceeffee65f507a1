//! Verifies the documentation: its examples are run, and its lists are compared with the catalog.
//!
//! Every ```sql block of the pages played here is run, from top to bottom, with a server of its own for each page.
//!
//! - A block that begins with `-- as NAME` runs in the session NAME, whose user is the first word (`-- as bob, on her
//!   phone` is another session of bob); a block without it runs as the superuser.
//! - A ```text block right after a ```sql block is what psql prints for it. Times, versions, process ids and channel
//!   names differ from run to run and are not compared, nor is white space.
//! - The notifications that a ```text block shows must arrive, in any order, and there may be more.
//! - A block that begins with `wait_for_flush` is run again until it prints what it should, because some events reach
//!   the log in the background: the end of a session, for example.
//! - A block without ```text must run without an error.
//!
//! ACCEPT_DOCS=1 writes what was printed into the pages. Read the diff before you commit it.

#[path = "client/common/mod.rs"]
mod common;

use common::{Cluster, Session, node};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

#[test]
fn readme() {
    play("README.md");
}

#[test]
fn tour() {
    play("docs/tour.md");
}

#[test]
fn visibility() {
    play("docs/visibility.md");
}

#[test]
fn coming_from() {
    play("docs/coming-from.md");
}

#[test]
fn recipes() {
    play("docs/recipes.md");
}

#[test]
fn operations() {
    play("docs/operations.md");
}

#[test]
fn internals() {
    play("docs/internals.md");
}

/// The client of docs/clients.md ends up with what `list` returns.
#[test]
fn the_example_follows_the_rule() {
    node("client.mjs", &Cluster::start());
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

// --- Pages

/// A ```sql block, and the ```text block after it.
struct Block {
    line: usize,
    sql: Vec<String>,
    /// The lines of the page between the fences: the first, one past the last, and their text.
    expected: Option<(usize, usize, String)>,
}

impl Block {
    /// Whether it can be run again, until work in the background is done.
    fn only_reads(&self) -> bool {
        let mut lines = self.sql.iter().filter(|line| !line.starts_with("--"));
        lines.next().is_some_and(|line| line.starts_with("select presence.wait_for_flush"))
            && self.expected.as_ref().is_some_and(|(_, _, text)| heard(text) == 0)
    }
}

fn blocks(page: &str) -> Vec<Block> {
    let lines: Vec<&str> = page.lines().collect();
    let mut blocks: Vec<Block> = Vec::new();
    let (mut at, mut may_expect) = (0, false);
    while at < lines.len() {
        let Some(kind) = lines[at].strip_prefix("```") else {
            may_expect &= lines[at].trim().is_empty();
            at += 1;
            continue;
        };
        let length = lines[at + 1..].iter().position(|line| *line == "```").expect("an open ``` block");
        let (from, to) = (at + 1, at + 1 + length);
        match kind {
            "sql" => blocks.push(Block {
                line: from,
                sql: lines[from..to].iter().map(|line| line.to_string()).collect(),
                expected: None,
            }),
            "text" if may_expect => {
                blocks.last_mut().expect("a sql block").expected =
                    Some((from, to, lines[from..to].join("\n")));
            }
            _ => {}
        }
        may_expect = kind == "sql";
        at = to + 1;
    }
    blocks
}

/// Runs a page.
fn play(path: &str) {
    let page = read(path);
    let cluster = Cluster::bare(&[]);
    cluster.sql("postgres", "drop role alice; drop role bob; drop role carol");
    cluster.sql("postgres", "create database app");
    let mut sessions: BTreeMap<String, Psql> = BTreeMap::new();
    let mut lines: Vec<String> = page.lines().map(str::to_owned).collect();
    let mut wrong = Vec::new();
    for block in &blocks(&page) {
        let name =
            block.sql.first().and_then(|line| line.strip_prefix("-- as ")).unwrap_or("postgres").trim();
        let user = name.split([' ', ',', ':']).next().unwrap_or(name);
        let session = sessions.entry(name.to_owned()).or_insert_with(|| Psql::start(&cluster, user));
        let expected = block.expected.as_ref().map(|(_, _, text)| text.as_str());
        let mut printed = session.run(&block.sql.join("\n"));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !expected.is_none_or(|text| agree(text, &printed)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
            if block.only_reads() {
                printed = session.run(&block.sql.join("\n"));
            } else if expected.is_some_and(|text| !hears(text, &printed)) {
                // psql shows notifications only after a statement.
                printed += &session.run("select where false \\g /dev/null");
            } else {
                break;
            }
        }
        match expected {
            Some(expected) if agree(expected, &printed) => {}
            Some(expected) => {
                wrong.push(format!(
                    "{path}:{}: expected\n{expected}\nbut psql printed\n{printed}",
                    block.line
                ));
            }
            None if ["ERROR:", "WARNING:", "FATAL:"].iter().any(|bad| printed.contains(bad)) => {
                wrong.push(format!("{path}:{}: psql printed\n{printed}", block.line));
            }
            None => {}
        }
        if let Some((from, to, text)) = &block.expected
            && !agree(text, &printed)
        {
            // Mark the old lines as dropped, so that later blocks stay where they are; they are removed at the end.
            lines[*from..*to].iter_mut().for_each(|line| *line = DROPPED.into());
            lines[*from - 1] = format!("{}\n{}", lines[*from - 1], for_a_page(&printed, heard(text) > 0));
        }
    }
    if std::env::var_os("ACCEPT_DOCS").is_some() {
        lines.retain(|line| line != DROPPED);
        std::fs::write(root().join(path), lines.join("\n") + "\n").expect("the page");
    }
    cluster.assert_sound();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

const DROPPED: &str = "\u{0}";

/// What psql printed, with notifications broken into lines that fit a page.
fn for_a_page(printed: &str, with_notifications: bool) -> String {
    let mut out = String::new();
    for line in printed.trim_end().lines() {
        if line.starts_with(HEARD) && !with_notifications {
            continue;
        }
        if !line.starts_with(HEARD) {
            out.push_str(line.trim_end());
            out.push('\n');
            continue;
        }
        let mut width = 0;
        for part in line.split_inclusive(',') {
            if width + part.len() > 110 && width > 0 {
                out.push_str("\n    ");
                width = 4;
            }
            out.push_str(part);
            width += part.len();
        }
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out
}

const HEARD: &str = "Asynchronous notification";

fn heard(text: &str) -> usize {
    text.matches(HEARD).count()
}

/// Whether psql printed what the page says.
fn agree(expected: &str, printed: &str) -> bool {
    parts(expected).0 == parts(printed).0 && hears(expected, printed)
}

/// Whether psql printed all notifications that the page shows. There may be more, of other users or from just before.
fn hears(expected: &str, printed: &str) -> bool {
    let mut heard = parts(printed).1;
    parts(expected).1.iter().all(|one| {
        let found = heard.iter().position(|other| other == one);
        found.inspect(|place| drop(heard.swap_remove(*place))).is_some()
    })
}

/// What a statement printed, and the notifications in between; both masked.
fn parts(text: &str) -> (String, Vec<String>) {
    const END_OF_ONE: &str = "receivedfromserverprocesswith#.";
    let mut rest = masked(text);
    let (mut printed, mut notifications) = (String::new(), Vec::new());
    let begin = masked(HEARD);
    while let Some(from) = rest.find(&begin) {
        let length = rest[from..].find(END_OF_ONE).map_or(rest.len() - from, |end| end + END_OF_ONE.len());
        printed.push_str(&rest[..from]);
        notifications.push(rest[from..from + length].to_owned());
        rest = rest[from + length..].to_owned();
    }
    (printed + &rest, notifications)
}

/// The text that is compared: without white space and rulers, and without what differs from run to run.
fn masked(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines().filter(|line| !line.trim().is_empty() && !is_ruler(line)) {
        mask_line(line, &mut out);
    }
    out.retain(|character| !character.is_whitespace());
    out
}

fn is_ruler(line: &str) -> bool {
    line.chars().all(|character| "-+ ".contains(character))
}

fn mask_line(line: &str, out: &mut String) {
    let line = if line.starts_with("-[ RECORD") { line.trim_end_matches(['-', '+']) } else { line };
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let length = masked_length(rest);
        if length > 0 {
            out.push('#');
            rest = &rest[length..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
}

/// How many bytes at the start of the text are a time, a version or seq, a channel name or a process id.
fn masked_length(text: &str) -> usize {
    let span = |from: usize, allowed: &str| {
        from + text[from..].find(|character| !allowed.contains(character)).unwrap_or(text.len() - from)
    };
    let digits = span(0, "0123456789");
    if digits >= 14 {
        return digits;
    }
    if digits == 4 && text[4..].starts_with('-') && text.len() >= 10 && text.is_char_boundary(10) {
        // 2026-11-22 05:51:19.176589+00, 2026-11-22T05:51:19.176589Z
        let time = if text[10..].starts_with([' ', 'T']) { 11 } else { 10 };
        let zone = span(time, "0123456789:.");
        let end =
            if text[zone..].starts_with(['Z', '+', '-']) { span(zone + 1, "0123456789:") } else { zone };
        return end;
    }
    if let Some(name) = text.strip_prefix("presence_") {
        let hex = name.find(|character: char| !character.is_ascii_hexdigit()).unwrap_or(name.len());
        let dots = if name[hex..].starts_with('…') { '…'.len_utf8() } else { 0 };
        return if hex >= 8 { "presence_".len() + hex + dots } else { 0 };
    }
    match text.strip_prefix("PID ") {
        Some(pid) => {
            "PID ".len() + pid.find(|character: char| !character.is_ascii_digit()).unwrap_or(pid.len())
        }
        None => 0,
    }
}

#[test]
fn masks() {
    let same = |a: &str, b: &str| assert_eq!(masked(a), masked(b));
    same("at 2026-11-22 05:51:19.176589+00 | x", "at 2027-01-01 00:00:00+00|x");
    same("\"2026-11-22T05:51:19.176589Z\"", "\"2026-11-22T05:51:20Z\"");
    same("presence_0123456789abcdef0123", "presence_aaaaaaaa…");
    same("a | b\n---+---\n 1 | 1795326676935648", "a|b\n1|1795326676935649");
    assert_ne!(masked("presence_ext"), masked("presence_abc"));
    assert_ne!(masked("1"), masked("2"));
}

/// A psql process that runs SQL and whose output is read.
struct Psql {
    child: Child,
    printed: Receiver<String>,
}

impl Psql {
    fn start(cluster: &Path, user: &str) -> Psql {
        let script = root().join("scripts/cluster");
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$@\" 2>&1", "sh"])
            .arg(script)
            .arg("psql")
            .arg(cluster)
            .args(["-X", "-q", "-U", user, "-d", "app", "-P", "footer=off", "-v", "SHOW_CONTEXT=never"])
            .env("PGTZ", "UTC")
            .env("PGOPTIONS", "-c client_min_messages=warning")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("psql");
        let (sender, printed) = channel();
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Psql { child, printed }
    }

    /// Runs the SQL. Returns what psql printed.
    fn run(&mut self, sql: &str) -> String {
        let input = self.child.stdin.as_mut().expect("a pipe");
        writeln!(input, "{sql}\n\\echo {END}").expect("a psql that listens");
        let mut printed = String::new();
        loop {
            let line = self.printed.recv_timeout(Duration::from_secs(60)).expect("an answer of psql");
            if line == END {
                return printed;
            }
            // psql gives the line at which it read a statement, which is not a line of the page.
            let line = line.split_once("psql:<stdin>:").map_or(line.as_str(), |(_, said)| {
                said.split_once(": ").map_or(said, |(_, message)| message)
            });
            printed += line;
            printed.push('\n');
        }
    }
}

const END: &str = "~ end of block ~";

impl Drop for Psql {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

// --- The reference

fn reference() -> String {
    read("docs/reference.md")
}

/// The part of the page below a heading, up to the next of the same level or above.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let from = page.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading {heading}"));
    let body = &page[from + heading.len() + 2..];
    let level = heading.split(' ').next().unwrap_or_default().len();
    let ends = (1..=level).filter_map(|level| body.find(&format!("\n{} ", "#".repeat(level))));
    ends.min().map_or(body, |end| &body[..end])
}

/// The cells of the tables in a text, without backticks and without the header and the ruler.
fn cells(text: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if lines.peek().is_some_and(|next| next.starts_with("|--")) {
            lines.next(); // and this line was the header
        } else if let Some(row) = line.strip_prefix("| ") {
            let row = row.trim_end().trim_end_matches('|').replace("\\|", "\u{1}");
            let cell = |cell: &str| cell.trim().replace('`', "").replace('\u{1}', "|");
            rows.push(row.split(" |").map(cell).collect());
        }
    }
    rows
}

/// The headings of this level that are in backticks, without these.
fn headings<'a>(text: &'a str, level: &str) -> Vec<&'a str> {
    let code = |line: &'a str| line.strip_prefix(level)?.strip_prefix(" `")?.strip_suffix('`');
    text.lines().filter_map(code).collect()
}

fn assert_same(what: &str, documented: BTreeSet<String>, real: BTreeSet<String>) {
    let missing: Vec<_> = real.difference(&documented).collect();
    let stale: Vec<_> = documented.difference(&real).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "docs/reference.md, {what}:\nmissing there: {missing:#?}\nonly there: {stale:#?}"
    );
}

fn column(session: &mut Session, sql: &str) -> BTreeSet<String> {
    session.rows(sql).into_iter().map(|row| row.join(" | ")).collect()
}

#[test]
fn reference_lists_what_there_is() {
    let page = reference();
    let cluster = Cluster::start();
    let mut session = cluster.service();

    let functions = column(
        &mut session,
        "select format('presence.%s(%s) → %s', p.proname,
                       regexp_replace(replace(regexp_replace(replace(
                           pg_get_function_arguments(p.oid), ' DEFAULT ', ' = '), '::[a-z ]+(\\[\\])?', '', 'g'),
                           'timestamp with time zone', 'timestamptz'), '''100''', '100', 'g'),
                       replace(pg_get_function_result(p.oid), 'timestamp with time zone', 'timestamptz'))
         from pg_proc p where p.pronamespace = 'presence'::regnamespace",
    );
    let documented = headings(section(&page, "## Functions"), "####");
    assert_same("functions", documented.into_iter().map(str::to_owned).collect(), functions);

    let relations = section(&page, "## Tables and views");
    let names: BTreeSet<String> = headings(relations, "###").into_iter().map(str::to_owned).collect();
    let real = column(
        &mut session,
        "select 'presence.' || relname from pg_class
         where relnamespace = 'presence'::regnamespace and relkind in ('r', 'v')",
    );
    assert_same("tables and views", names.clone(), real);
    for name in names {
        let documented = cells(section(relations, &format!("### `{name}`")));
        let columns = session.rows(&format!(
            "select attname, replace(format_type(atttypid, atttypmod), 'timestamp with time zone', 'timestamptz')
             from pg_attribute where attrelid = '{name}'::regclass and attnum > 0 and not attisdropped
             order by attnum"
        ));
        let documented: Vec<Vec<String>> =
            documented.into_iter().map(|row| row.into_iter().take(2).collect()).collect();
        assert_eq!(documented, columns, "docs/reference.md, columns of {name}");
    }

    let settings = column(
        &mut session,
        "select name, boot_val, coalesce(unit, ''), context, coalesce(min_val || ' to ' || max_val, array_to_string(enumvals, ', '), '')
         from pg_settings where name like 'presence.%' and name not like 'presence.stall%'",
    );
    let documented = cells(section(&page, "## Settings"));
    let documented = documented.into_iter().map(|row| row[..5].join(" | ")).collect();
    assert_same("settings", documented, settings);
}

/// (SQLSTATE, message) of every error that src/error.rs and the SQL can raise.
fn errors() -> BTreeSet<String> {
    let source = read("src/error.rs");
    let body = |name: &str| -> String {
        let from = source.find(&format!("fn {name}(&self)")).unwrap_or_else(|| panic!("no fn {name}"));
        let body = &source[from..];
        body[..body.find("\n    }\n").expect("an end")].to_owned()
    };
    // The arms of a match: the errors before `=>`, and what follows it.
    let arms = |text: &str| -> Vec<(Vec<String>, String)> {
        let mut arms = Vec::new();
        let mut parts = text.split("=>").peekable();
        let mut pattern = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            // The next pattern begins after the value.
            let next = part.find("Error::").unwrap_or(part.len());
            let names = pattern.match_indices("Error::").map(|(at, _)| {
                let name = &pattern[at + "Error::".len()..];
                name[..name.find(|c: char| !c.is_alphanumeric()).unwrap_or(name.len())].to_owned()
            });
            arms.push((names.collect(), part[..next].to_owned()));
            pattern = part[next..].to_owned();
        }
        arms
    };
    let code_of: BTreeMap<String, String> = arms(&body("code"))
        .into_iter()
        .flat_map(|(names, value)| {
            let from = value.find("ERRCODE_").expect("a code");
            let code = &value[from..];
            let code = &code[..code.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len())];
            names.into_iter().map(move |name| (name, sqlstate(code).to_owned())).collect::<Vec<_>>()
        })
        .collect();
    let mut errors: BTreeSet<String> = arms(&body("message"))
        .into_iter()
        .flat_map(|(names, value)| {
            let message = value.split('"').nth(1).expect("a message").to_owned();
            let line = |name: &String| format!("{} | {message}", code_of[name]);
            names.iter().map(line).collect::<Vec<_>>()
        })
        .collect();
    for file in std::fs::read_dir(root().join("sql")).expect("sql/") {
        let sql = std::fs::read_to_string(file.expect("a file").path()).expect("SQL");
        for raised in sql.split("raise exception using ").skip(1) {
            let quoted = |key: &str| raised.split_once(key).and_then(|(_, rest)| rest.split('\'').nth(1));
            let (code, message) = (quoted("errcode = "), quoted("message = "));
            errors.insert(format!("{} | {}", code.expect("a code"), message.expect("a message")));
        }
    }
    errors
}

fn sqlstate(code: &str) -> &'static str {
    match code {
        "ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE" => "55000",
        "ERRCODE_CONFIGURATION_LIMIT_EXCEEDED" => "53400",
        "ERRCODE_INVALID_PARAMETER_VALUE" => "22023",
        "ERRCODE_PROGRAM_LIMIT_EXCEEDED" => "54000",
        "ERRCODE_INSUFFICIENT_PRIVILEGE" => "42501",
        "ERRCODE_FEATURE_NOT_SUPPORTED" => "0A000",
        "ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED" => "39P01",
        "ERRCODE_READ_ONLY_SQL_TRANSACTION" => "25006",
        "ERRCODE_T_R_SERIALIZATION_FAILURE" => "40001",
        "ERRCODE_INTERNAL_ERROR" => "XX000",
        other => panic!("{other}: say here which SQLSTATE that is"),
    }
}

/// `presence.upsert('room', ttl => ...)` in the text of a page: the function and the names of its arguments.
fn calls(page: &str) -> Vec<(String, Vec<String>)> {
    let mut calls = Vec::new();
    for (at, _) in page.match_indices("presence.") {
        let rest = &page[at + "presence.".len()..];
        let name = &rest[..rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())];
        let Some(arguments) = rest[name.len()..].strip_prefix('(') else { continue };
        if page[..at].ends_with(|before: char| before.is_alphanumeric() || before == '.') {
            continue; // another system's channel.presence.enter()
        }
        let mut depth = 1;
        let end = arguments.find(|character| {
            depth += i32::from(character == '(') - i32::from(character == ')');
            depth == 0 || character == '`'
        });
        let arguments = &arguments[..end.unwrap_or(0)];
        let word =
            |before: &str| before.trim_end().rsplit([' ', ',', '\n']).next().unwrap_or_default().to_owned();
        let names = arguments.match_indices("=>").map(|(at, _)| word(&arguments[..at]));
        calls.push((name.to_owned(), names.filter(|name| !name.is_empty()).collect()));
    }
    calls
}

#[test]
fn pages_call_what_there_is() {
    let cluster = Cluster::start();
    let rows = cluster.service().rows(
        "select proname, coalesce(array_to_string(proargnames, ','), '') from pg_proc
         where pronamespace = 'presence'::regnamespace",
    );
    let known: BTreeMap<&str, Vec<&str>> =
        rows.iter().map(|row| (row[0].as_str(), row[1].split(',').collect())).collect();
    for page in pages() {
        for (name, arguments) in calls(&read(&page)) {
            let known = known.get(name.as_str()).unwrap_or_else(|| panic!("{page}: no presence.{name}()"));
            for argument in arguments {
                assert!(known.contains(&argument.as_str()), "{page}: presence.{name}() has no {argument}");
            }
        }
    }
}

#[test]
fn reference_lists_every_error() {
    let page = reference();
    let documented = cells(section(&page, "## Errors"));
    let documented = documented.into_iter().map(|row| row[..2].join(" | ")).collect();
    assert_same("errors", documented, errors());
}

#[test]
fn reference_lists_every_field_of_a_payload() {
    let page = reference();
    let source = read("src/event/payload.rs");
    let fields = |name: &str| -> BTreeSet<String> {
        let from = source.find(&format!("pub struct {name}")).expect("a struct");
        let body = &source[from..];
        let body = &body[..body.find("\n}").expect("an end")];
        body.lines()
            .filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(": "))
            .map(|(f, _)| f.into())
            .collect()
    };
    let first = |heading| cells(section(&page, heading)).into_iter().map(|row| row[0].clone()).collect();
    assert_same("payload", first("### Payload of a member's event"), fields("Event<"));
    assert_same("payload of room", first("### Payload of a room's event"), fields("RoomEvent<"));
    assert_same("payload of an occupancy", first("### Payload of an occupancy"), fields("Occupancy<"));
    assert_same("payload of signals", first("### Payload of a signal"), fields("Signal<"));
    let kinds = [
        "enter",
        "update",
        "leave",
        "room",
        "resync",
        "relisten",
        "occupancy",
        "changes",
        "alive",
        "position",
    ];
    assert_same("events", first("### Which there are"), kinds.into_iter().map(str::to_owned).collect());
}

fn pages() -> Vec<String> {
    let mut pages = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "RELEASE.md"].map(str::to_owned).to_vec();
    for file in std::fs::read_dir(root().join("docs")).expect("docs/") {
        let name = file.expect("a file").file_name().to_string_lossy().into_owned();
        pages.extend(name.ends_with(".md").then(|| format!("docs/{name}")));
    }
    pages
}

/// The anchor of a heading, as a link names it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    text.chars().filter(|character| character.is_alphanumeric() || "-_".contains(*character)).collect()
}

#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let text = read(&page);
        let here = root().join(&page);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let there = here.parent().expect("a folder").join(file);
            let target = if file.is_empty() { Ok(text.clone()) } else { std::fs::read_to_string(there) };
            let target = target.unwrap_or_else(|error| panic!("{page}: {link}: {error}"));
            let mut headings = target.lines().filter(|line| line.starts_with('#'));
            assert!(heading.is_empty() || headings.any(|line| anchor(line) == heading), "{page}: {link}");
        }
    }
}

/// docs/internals.md names only source files that exist.
#[test]
fn internals_name_files_that_exist() {
    for name in read("docs/internals.md").split('`').skip(1).step_by(2) {
        let is_path =
            ["src/", "sql/", "tests/", "scripts/", "gateway/"].iter().any(|folder| name.starts_with(folder));
        assert!(!is_path || name.contains('*') || root().join(name).exists(), "docs/internals.md: {name}");
    }
}
