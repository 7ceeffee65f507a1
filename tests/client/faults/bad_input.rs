//! Whatever callers write, they get an answer or a clear error, and nobody else is affected.

use super::hostile::{Surface, value};
use crate::common::{Cluster, Dice, Session, memory, peak, until};
use std::collections::{BTreeMap, BTreeSet};

const TRY: &str = "
    create function public.try(statement text) returns text language plpgsql as $$
    begin
        execute statement;
        return '00000';
    exception when others then
        return sqlstate || ' ' || regexp_replace(sqlerrm, '[^ -~]', '?', 'g');
    end $$;
    select presence.grant_access('anon', false), presence.grant_access('authenticator');";

const ROLES: &str = "
    create role anon nologin;
    create role authenticator login noinherit;
    grant anon, alice to authenticator;";

/// The limit for the worker's growth in MB, from presence.worker_memory.
const MOST_MEMORY: i64 = 64;

/// The number of calls in one round trip, and in one transaction.
const BATCH: usize = 25;

/// The default seed gives the same run every time; PRESENCE_SEED=… selects another.
fn seed() -> u64 {
    std::env::var("PRESENCE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(42)
}

/// A session that makes bad calls, and counts the results.
struct Fuzzer {
    who: &'static str,
    session: Session,
    pid: i64,
    prelude: &'static [&'static str],
    codes: BTreeMap<String, usize>,
    answered: BTreeSet<String>,
}

impl Fuzzer {
    fn new(cluster: &Cluster, who: &'static str, database: &str, prelude: &'static [&'static str]) -> Fuzzer {
        let mut session = cluster.session(who, database);
        let pid = session.pid();
        Fuzzer { who, session, pid, prelude, codes: BTreeMap::new(), answered: BTreeSet::new() }
    }

    /// One transaction full of calls.
    fn batch(&mut self, surface: &Surface, dice: &mut Dice) {
        let mut names = Vec::new();
        let mut statements = vec![self.prelude[dice.below(self.prelude.len())].to_owned()];
        if self.who == "postgres" && dice.percent(30) {
            statements.push(setting(dice));
        }
        names.resize(statements.len(), "a setting");
        while statements.len() < BATCH {
            let (name, statement) = self.statement(surface, dice);
            names.push(name);
            statements.push(statement);
        }
        if dice.percent(10) {
            return self.one_by_one(&statements);
        }
        let calls: Vec<String> =
            statements.iter().map(|statement| format!("public.try($try${statement}$try$)")).collect();
        let sql = format!("select {}", calls.join(",\n"));
        let answers = self.session.try_rows(&sql);
        let Ok(answers) = answers else {
            // Commit must not fail, and the connection must survive.
            panic!("as {}: {:?} after\n{sql}", self.who, answers.expect_err("an error"));
        };
        for ((answer, name), statement) in answers[0].iter().zip(names).zip(&statements) {
            let code = &answer[..5];
            assert!(!code.starts_with("XX"), "{} as {}: {answer}", statement, self.who);
            *self.codes.entry(code.to_owned()).or_default() += 1;
            if code == "00000" {
                self.answered.insert(name.to_owned());
            }
        }
    }

    /// Runs each statement in its own transaction, without an exception handler.
    fn one_by_one(&mut self, statements: &[String]) {
        for statement in statements {
            let code =
                self.session.try_run(statement).map_or_else(|failure| failure.code, |()| "00000".into());
            assert!(!code.starts_with("XX") && code != "08006", "{statement} as {}: {code}", self.who);
            *self.codes.entry(code).or_default() += 1;
        }
        self.session.run("reset all");
    }

    fn statement<'a>(&self, surface: &'a Surface, dice: &mut Dice) -> (&'a str, String) {
        if dice.percent(70) {
            let function = &surface.functions[dice.below(surface.functions.len())];
            return (&function.name, function.call(dice));
        }
        // Damage that a superuser does to the tables of the log and the sink is not tested.
        let relation = match dice.below(3) {
            0 => surface.relation("presence.room"),
            1 if self.who != "postgres" => &surface.relations[dice.below(surface.relations.len())],
            _ => surface.relation("presence.member"),
        };
        (&relation.name, relation.change(dice))
    }

    fn calls(&self) -> usize {
        self.codes.values().sum()
    }
}

/// A setting that a superuser might get wrong, local to the transaction.
fn setting(dice: &mut Dice) -> String {
    let name = dice.pick(&[
        "request.jwt.claims",
        "request.jwt.claims",
        "request.jwt.claim.sub",
        "presence.default_audience",
        "presence.authorizer",
        "presence.service_roles",
        "presence.anonymous_roles",
        "presence.trusted_login_roles",
        "presence.teams_claim",
        "presence.sink",
        "presence.member_ids",
        "presence.max_state_size",
        "presence.default_ttl",
        "search_path",
    ]);
    let kind = dice.pick(&["text", "jsonb"]);
    format!("select set_config('{name}', ({})::text, true)", value(dice, "", kind))
}

/// The invariants that must hold afterwards, including the state of the database's worker.
fn assert_unharmed(service: &mut Session, fuzzers: &mut [Fuzzer], worker: i64) {
    for fuzzer in fuzzers {
        assert_eq!(fuzzer.session.pid(), fuzzer.pid, "the backend of {}", fuzzer.who);
    }
    service.flush();
    assert_eq!(service.number("select presence.worker_pid()"), worker);
    assert_eq!(
        service.rows("select worker_state, events_dropped, resyncs, last_error from presence.health")[0],
        ["running", "0", "0", ""]
    );
}

/// Published payloads are readable by clients of any encoding.
fn hear_only_ascii(listener: &mut Session) -> usize {
    let heard = listener.hear(); // parsed as JSON there
    for event in &heard {
        assert!(event.payload.is_ascii(), "{}", event.payload);
        assert!(event.payload.len() <= 7_999);
    }
    heard.len()
}

/// All fuzzers make bad calls in this database, and it must be unharmed. Returns the number of calls per
/// SQLSTATE.
fn torment(cluster: &Cluster, database: &str, calls: usize) -> BTreeMap<String, usize> {
    let mut service = cluster.session("postgres", database);
    service.run(TRY);
    let surface = Surface::of(&mut service);
    let worker = cluster.until_worker(database);
    let mut listener = cluster.session("postgres", database);
    if database != "euc_jp" {
        listener.run("set client_encoding = 'LATIN1'"); // there is no conversion from EUC_JP
    }
    let mut fuzzers = [
        Fuzzer::new(
            cluster,
            "postgres",
            database,
            &["select 1", "set local session_replication_role = replica"],
        ),
        Fuzzer::new(cluster, "alice", database, &["select 1"]),
        Fuzzer::new(
            cluster,
            "authenticator",
            database,
            &[
                "select 1",
                "set local role anon",
                "set local role alice",
                "select set_config('request.jwt.claims', '{\"sub\": \"alice\"}', true)",
                "select set_config('request.jwt.claims', '{\"sub\": {}, \"role\": 1}', true)",
                "select set_config('request.jwt.claims', '{', true)",
                "select presence.act_as('carol', '{red}')",
            ],
        ),
    ];
    let mut dice = Dice::new(seed());
    let (mut heard, before) = (0, memory(worker, "RssAnon:"));
    let most = peak(worker, || {
        while fuzzers.iter().map(Fuzzer::calls).sum::<usize>() < calls {
            listener.run("select presence.listen()"); // channels may have been rotated
            let turn = dice.below(fuzzers.len());
            fuzzers[turn].batch(&surface, &mut dice);
            heard += hear_only_ascii(&mut listener);
            if dice.percent(5) {
                // Access may have been revoked.
                service.run("select presence.grant_access('alice')");
            }
        }
    });
    assert!(most - before < MOST_MEMORY, "the worker has grown by {} MB", most - before);
    assert_unharmed(&mut service, &mut fuzzers, worker);
    cluster.assert_sound();

    // Many calls must fail, but not all.
    let mut codes: BTreeMap<String, usize> = BTreeMap::new();
    for (code, count) in fuzzers.iter().flat_map(|fuzzer| &fuzzer.codes) {
        *codes.entry(code.clone()).or_default() += count;
    }
    println!("{database}: {codes:?}, {heard} events");
    assert!(codes["00000"] > calls / 4 && codes["00000"] < calls * 3 / 4, "{codes:?}");
    assert!(heard > calls / 300, "{heard} events");
    if calls >= 10_000 {
        let never = |function: &&str| !fuzzers.iter().any(|fuzzer| fuzzer.answered.contains(*function));
        let silent: Vec<&str> =
            surface.functions.iter().map(|target| target.name.as_str()).filter(never).collect();
        assert_eq!(silent, [""; 0], "these never succeeded");
    }
    codes
}

#[test]
fn twenty_thousand_bad_calls_get_a_clear_answer_each() {
    let cluster = Cluster::start();
    cluster.sql("app", ROLES);
    let codes = torment(&cluster, "app", 20_000);
    for code in ["22023", "42501", "54000", "22P02"] {
        assert!(codes.get(code).is_some_and(|count| *count > 10), "{code} in {codes:?}");
    }
}

/// SQL_ASCII accepts bytes that are not UTF-8 in names and states, LATIN1 accepts accented characters.
#[test]
fn bad_calls_in_databases_of_other_encodings_get_a_clear_answer_too() {
    let cluster = Cluster::start();
    cluster.sql("app", ROLES);
    for encoding in ["LATIN1", "SQL_ASCII", "EUC_JP"] {
        let database = encoding.to_lowercase();
        cluster.sql(
            "postgres",
            &format!("create database {database} encoding '{encoding}' locale 'C' template template0"),
        );
        cluster.sql(&database, "create extension presence_ext; select presence.grant_access('alice')");
        torment(&cluster, &database, 3_000);
    }
}

#[test]
fn names_settings_and_errors_are_understood_in_the_encoding_of_the_database() {
    let cluster = Cluster::bare(&[]);
    cluster.sql("postgres", "create database latin1 encoding 'LATIN1' locale 'C' template template0");
    cluster.sql("latin1", "create extension presence_ext");
    let mut service = cluster.session("postgres", "latin1");
    let mut listener = cluster.session("postgres", "latin1");
    listener.run("set client_encoding = 'LATIN1'; select presence.listen()");

    service.run("set presence.default_audience = 'team:\u{e9}t\u{e9}'");
    service.run("begin; select presence.act_as('andr\u{e9}'); select presence.upsert('caf\u{e9}', '\"\u{e0} table\"'); commit");
    let heard = listener.hear_until("an enter", |event| event.kind() == "enter");
    let event = heard.last().expect("it");
    assert!(event.payload.is_ascii(), "{}", event.payload);
    let fields = ["room", "user_id", "state"].map(|field| event.text(field));
    assert_eq!(fields, ["caf\u{e9}", "andr\u{e9}", "\u{e0} table"]);
    assert_eq!(event["audience"], serde_json::json!(["team:\u{e9}t\u{e9}"]));
    assert_eq!(service.value("select audience from presence.online"), "{team:\u{e9}t\u{e9}}");

    // A character that the database's encoding lacks.
    let failure = service.fails(
        "begin; set local request.jwt.claims = '{\"sub\": \"\\ud83d\\ude00\"}'; select presence.upsert('x')",
    );
    assert_eq!(failure.code, "22P05", "{failure:?}");
    service.run("rollback");

    // An error message of the sink in another language.
    let worker = cluster.until_worker("latin1");
    service.run("alter database latin1 set presence.default_audience = 'team:\u{e0}'");
    service.run(
        "create function public.sink(presence.event[]) returns void language plpgsql as $$
                 begin raise exception 'pas aujourd''hui, d\u{e9}sol\u{e9}'; end $$",
    );
    service.run("alter database latin1 set presence.sink = 'public.sink'");
    until("health says so", || {
        service.run("select presence.upsert('x', to_jsonb(clock_timestamp()))");
        service.value("select coalesce(last_error, '') from presence.health").contains("pas aujourd'hui")
    });
    assert!(service.is(
        "select failing_since <= last_error_at and last_error_at <= clock_timestamp() from presence.health"
    ));

    assert_eq!(service.number("select presence.worker_pid()"), worker, "it took the new settings");

    // Without any conversion: invalid UTF-8 becomes U+FFFD.
    cluster.sql("postgres", "create database ascii encoding 'SQL_ASCII' locale 'C' template template0");
    cluster.sql("ascii", "create extension presence_ext");
    let mut service = cluster.session("postgres", "ascii");
    service.run("select presence.listen()");
    service.run("select 1 from presence.upsert('caf\u{e9}', to_jsonb(E'\\xff'::text), status => E'\\xe9')");
    let heard = service.hear_until("an enter", |event| event.kind() == "enter");
    let event = heard.last().expect("it");
    let fields = ["room", "state", "status"].map(|field| event.text(field));
    assert_eq!(fields, ["caf\u{e9}", "\u{fffd}", "\u{fffd}"]);
    cluster.assert_sound();
}
