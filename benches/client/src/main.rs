//! Listeners for the benchmark: `presence-bench-client CONNECTION IDLE [HEAR [EVENT]]`
//!
//! Opens connections (a libpq connection string), 100 of which run the SQL of IDLE each (`$i` is their number), and
//! one the SQL of HEAR (`''` is none). Says `ready` and holds them until its standard input ends. Then prints how
//! many notifications with EVENT in them (all, if not given) the one has heard, and how long after their `at` each
//! came: the 50th and 99th percentile and the longest, in milliseconds.
use postgres::{Client, NoTls, fallible_iterator::FallibleIterator};
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

static DONE: AtomicBool = AtomicBool::new(false);
const DAY: f64 = 86_400.0;

/// Seconds since midnight of an `"at":"2026-01-01T12:34:56.123456Z"`.
fn at(payload: &str) -> Option<f64> {
    let start = payload.find("\"at\"")?;
    let time = payload[start..].split('T').nth(1)?.split('Z').next()?;
    time.split(':').try_fold(0.0, |sum, part| Some(sum * 60.0 + part.parse::<f64>().ok()?))
}

fn hear(connection: &str, sql: &str, event: &str) -> Result<Vec<f64>, postgres::Error> {
    let mut client = Client::connect(connection, NoTls)?;
    client.batch_execute(sql)?;
    println!("ready");
    let mut late = Vec::new();
    while !DONE.load(Relaxed) {
        let mut notifications = client.notifications();
        let mut waiting = notifications.timeout_iter(Duration::from_millis(200));
        while let Some(notification) = waiting.next()? {
            let now =
                SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            let payload = notification.payload();
            if let (true, Some(at)) = (payload.contains(event), at(payload)) {
                late.push((now % DAY - at).rem_euclid(DAY) * 1_000.0);
            }
        }
    }
    Ok(late)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let argument = |number| std::env::args().nth(number).unwrap_or_default();
    let (connection, idle, sql, event) = (argument(1), argument(2), argument(3), argument(4));
    let mut held = Vec::new();
    for number in 1..=if idle.is_empty() { 0 } else { 100 } {
        let mut client = Client::connect(&connection, NoTls)?;
        client.batch_execute(&idle.replace("$i", &number.to_string()))?;
        held.push(client);
    }
    let listener = (!sql.is_empty()).then(|| std::thread::spawn(move || hear(&connection, &sql, &event)));
    if listener.is_none() {
        println!("ready");
    }
    std::io::stdin().read_to_end(&mut Vec::new())?;
    DONE.store(true, Relaxed);
    if let Some(listener) = listener {
        let mut late = listener.join().map_err(|_| "the listener died")??;
        late.sort_by(f64::total_cmp);
        let part = |share: f64| {
            late.get((late.len() as f64 * share) as usize).or(late.last()).copied().unwrap_or(-1.0)
        };
        println!("{} {:.3} {:.3} {:.3}", late.len(), part(0.5), part(0.99), part(1.0));
    }
    Ok(())
}
