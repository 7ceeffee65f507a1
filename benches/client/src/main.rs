//! Listeners for the benchmark: `presence-bench-client CONNECTION IDLE [HEAR [EVENT [HEARERS]]]`
//!
//! Opens connections to CONNECTION (a libpq connection string). 100 of them (or as many as the environment variable IDLE
//! says) each run the SQL of IDLE (`$i` is their number; `''` means none). HEARERS of them (one, if not given) run the
//! SQL of HEAR, and again whenever they are told to listen again. Prints `ready`, and holds the connections until its
//! standard input ends. Then prints how many notifications that contain EVENT (all, if not given) the latter have heard,
//! and how long after its `at` each arrived: the 50th and 99th percentile and the longest, in milliseconds; and how many
//! `resync` and `changes` they have heard.
use postgres::{Client, NoTls, fallible_iterator::FallibleIterator};
use std::io::Read;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

static DONE: AtomicBool = AtomicBool::new(false);
const DAY: f64 = 86_400.0;

#[derive(Default)]
struct Heard {
    late: Vec<f64>,
    resyncs: usize,
    changes: usize,
}

/// Seconds since midnight of an `"at":"2026-01-01T12:34:56.123456Z"`.
fn at(payload: &str) -> Option<f64> {
    let start = payload.find("\"at\"")?;
    let time = payload[start..].split('T').nth(1)?.split('Z').next()?;
    time.split(':').try_fold(0.0, |sum, part| Some(sum * 60.0 + part.parse::<f64>().ok()?))
}

/// Returns after a pause, or (with true) when it has to listen again.
fn hear_some(client: &mut Client, event: &str, heard: &mut Heard) -> Result<bool, postgres::Error> {
    let mut notifications = client.notifications();
    let mut waiting = notifications.timeout_iter(Duration::from_millis(200));
    while let Some(notification) = waiting.next()? {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let payload = notification.payload();
        let is = |kind: &str| payload.starts_with(&format!("{{\"event\":\"{kind}\""));
        heard.resyncs += usize::from(is("resync"));
        heard.changes += usize::from(is("changes"));
        if let (true, Some(at)) = (payload.contains(event), at(payload)) {
            heard.late.push((now % DAY - at).rem_euclid(DAY) * 1_000.0);
        }
        if is("resync") || is("relisten") {
            return Ok(true);
        }
    }
    Ok(false)
}

fn hear(connection: &str, sql: &str, event: &str, ready: &Barrier) -> Result<Heard, postgres::Error> {
    let mut client = Client::connect(connection, NoTls)?;
    client.batch_execute(sql)?;
    ready.wait();
    let mut heard = Heard::default();
    while !DONE.load(Relaxed) {
        if hear_some(&mut client, event, &mut heard)? {
            client.batch_execute(sql)?;
        }
    }
    Ok(heard)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let argument = |number| std::env::args().nth(number).unwrap_or_default();
    let (connection, idle, sql, event) = (argument(1), argument(2), argument(3), argument(4));
    let mut held = Vec::new();
    let idlers = std::env::var("IDLE").ok().and_then(|many| many.parse().ok()).unwrap_or(100);
    for number in 1..=if idle.is_empty() { 0 } else { idlers } {
        let mut client = Client::connect(&connection, NoTls)?;
        client.batch_execute(&idle.replace("$i", &number.to_string()))?;
        held.push(client);
    }
    let hearers = if sql.is_empty() { 0 } else { argument(5).parse().unwrap_or(1) };
    let ready = Barrier::new(hearers + 1);
    let heard = std::thread::scope(|scope| -> Result<Vec<Heard>, Box<dyn std::error::Error>> {
        let (connection, event, ready) = (&connection, &event, &ready);
        let listeners: Vec<_> = (1..=hearers)
            .map(|number| sql.replace("$i", &number.to_string()))
            // A listener that fails says so and ends the program, so that the others do not wait.
            .map(|sql| {
                scope.spawn(move || {
                    hear(connection, &sql, event, ready).inspect_err(|error| {
                        eprintln!("{sql}: {error}");
                        std::process::exit(1);
                    })
                })
            })
            .collect();
        ready.wait();
        println!("ready");
        std::io::stdin().read_to_end(&mut Vec::new())?;
        DONE.store(true, Relaxed);
        let heard = listeners
            .into_iter()
            .map(|listener| listener.join().map_err(|_| "a listener died")?.map_err(Into::into));
        heard.collect()
    })?;
    if hearers > 0 {
        let sum = |count: fn(&Heard) -> usize| heard.iter().map(count).sum::<usize>();
        let (resyncs, changes) = (sum(|heard| heard.resyncs), sum(|heard| heard.changes));
        let mut late: Vec<f64> = heard.into_iter().flat_map(|heard| heard.late).collect();
        late.sort_by(f64::total_cmp);
        let part = |share: f64| {
            late.get((late.len() as f64 * share) as usize).or(late.last()).copied().unwrap_or(-1.0)
        };
        println!("{} {:.3} {:.3} {:.3} {resyncs} {changes}", late.len(), part(0.5), part(0.99), part(1.0));
    }
    Ok(())
}
