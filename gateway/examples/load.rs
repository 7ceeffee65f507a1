//! Many clients in one process, for `make bench-gateway` and `make soak`: fast enough not to be what is measured. It does
//! what standard input says, and answers each line with a line of JSON:
//!
//! ```text
//! open SOCKETS PER_ROOM    connect, join, track; until each is shown all of its room
//! rate A_SECOND SECONDS    tracks, evenly spread, of random clients; from track to each diff that tells it. A diff that did
//!                          not come was lost, or passes for conflated: see `count`
//! cut SOCKETS              break so many connections; clients come back, as real ones do
//! right SECONDS            until each client is shown exactly the last state of all in its room
//! close                    end all
//! ```
//!
//! The address of the gateway is the first argument, the JWT secret is `PRESENCE_GATEWAY_JWT_SECRET`.

use std::collections::{HashMap, HashSet};
use std::io::BufRead;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant, SystemTime};

use futures_util::{SinkExt, StreamExt};
use rand::Rng;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio_tungstenite::tungstenite::Message;

type Error = Box<dyn std::error::Error + Send + Sync>;

static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
/// Tracks before this moment do not count.
static SINCE: AtomicU64 = AtomicU64::new(u64::MAX);
static DELAYS: Mutex<Vec<u32>> = Mutex::new(Vec::new());
/// Connecting at the same time.
static DOOR: Semaphore = Semaphore::const_new(200);

fn now() -> u64 {
    BEGAN.elapsed().as_micros() as u64
}

#[derive(Deserialize)]
struct Meta {
    phx_ref: String,
    at: u64,
}

#[derive(Deserialize)]
struct Metas {
    metas: Vec<Meta>,
}

type Picture = HashMap<String, Metas>;

#[derive(Deserialize)]
struct Diff {
    joins: Picture,
    leaves: Picture,
}

enum Say {
    Track,
    Break,
}

struct Client {
    name: String,
    topic: String,
    token: String,
    /// What it tracked last.
    at: AtomicU64,
    /// While the rate is measured: what it tracked, and what it was told of whom.
    said: Mutex<Vec<u64>>,
    told: Mutex<HashSet<(String, u64)>>,
    shown: Mutex<HashMap<String, HashMap<String, u64>>>,
    joined: AtomicBool,
    over: AtomicBool,
    say: mpsc::UnboundedSender<Say>,
}

impl Client {
    async fn live(self: Arc<Self>, url: String, mut say: mpsc::UnboundedReceiver<Say>) {
        loop {
            let _ = self.stay(&url, &mut say).await;
            self.joined.store(false, Relaxed);
            if self.over.load(Relaxed) {
                return;
            }
            let pause = rand::rng().random_range(200..1000);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    async fn stay(&self, url: &str, say: &mut mpsc::UnboundedReceiver<Say>) -> Result<(), Error> {
        let door = DOOR.acquire().await?;
        let (mut socket, _) = tokio_tungstenite::connect_async(url).await?;
        let join = json!(["1", "1", self.topic, "phx_join", { "access_token": self.token }]).to_string();
        socket.send(Message::Text(join.into())).await?;
        let mut door = Some(door); // until it is joined
        let mut heartbeat = tokio::time::interval(Duration::from_secs(25));
        heartbeat.tick().await;
        loop {
            tokio::select! {
                frame = socket.next() => {
                    let Some(frame) = frame else { return Ok(()) };
                    let Message::Text(text) = frame? else { continue };
                    let (_, reference, _, event, payload): (Value, Value, &str, &str, &serde_json::value::RawValue) =
                        serde_json::from_str(&text)?;
                    match event {
                        "phx_reply" if reference == "1" => {
                            if !payload.get().contains(r#""status":"ok""#) {
                                return Err(payload.get().into());
                            }
                            drop(door.take());
                            self.joined.store(true, Relaxed);
                            socket.send(self.track(false)).await?;
                        }
                        // The database was away: say it again.
                        "phx_reply" if reference == "2" && !payload.get().contains(r#""status":"ok""#) => {
                            tokio::time::sleep(Duration::from_millis(200)).await;
                            socket.send(self.track(false)).await?;
                        }
                        "presence_state" => {
                            self.shown.lock().unwrap().clear();
                            self.take(serde_json::from_str(payload.get())?);
                        }
                        "presence_diff" => {
                            let diff: Diff = serde_json::from_str(payload.get())?;
                            self.drop_out(&diff.leaves);
                            self.measure(&diff.joins);
                            self.take(diff.joins);
                        }
                        "phx_error" | "phx_close" => return Ok(()),
                        _ => {}
                    }
                }
                said = say.recv() => match said {
                    Some(Say::Track) => socket.send(self.track(true)).await?,
                    Some(Say::Break) | None => return Ok(()),
                },
                _ = heartbeat.tick() => {
                    socket.send(Message::Text(r#"[null,"h","phoenix","heartbeat",{}]"#.into())).await?;
                }
            }
        }
    }

    fn track(&self, anew: bool) -> Message {
        let mut at = self.at.load(Relaxed);
        if anew || at == 0 {
            at = now().max(at + 1); // no two of a client are the same
            self.at.store(at, Relaxed);
            if at >= SINCE.load(Relaxed) {
                self.said.lock().unwrap().push(at);
            }
        }
        let payload = json!({ "type": "presence", "event": "track", "payload": { "at": at } });
        Message::Text(json!(["1", "2", self.topic, "presence", payload]).to_string().into())
    }

    fn take(&self, picture: Picture) {
        let mut shown = self.shown.lock().unwrap();
        for (key, Metas { metas }) in picture {
            shown.entry(key).or_default().extend(metas.into_iter().map(|meta| (meta.phx_ref, meta.at)));
        }
    }

    fn drop_out(&self, picture: &Picture) {
        let mut shown = self.shown.lock().unwrap();
        for (key, Metas { metas }) in picture {
            if let Some(held) = shown.get_mut(key) {
                for meta in metas {
                    held.remove(&meta.phx_ref);
                }
                if held.is_empty() {
                    shown.remove(key);
                }
            }
        }
    }

    fn measure(&self, joins: &Picture) {
        let (since, now) = (SINCE.load(Relaxed), now());
        for (key, Metas { metas }) in joins {
            for meta in metas.iter().filter(|meta| meta.at >= since) {
                DELAYS.lock().unwrap().push(now.saturating_sub(meta.at) as u32);
                self.told.lock().unwrap().insert((key.clone(), meta.at));
            }
        }
    }

    /// Whether it is shown all of its room, each once, with what it tracked last.
    fn is_right(&self, room: &[Arc<Client>]) -> bool {
        let shown = self.shown.lock().unwrap();
        self.joined.load(Relaxed)
            && shown.len() == room.len()
            && room.iter().all(|other| {
                shown.get(&other.name).is_some_and(|metas| {
                    metas.len() == 1 && metas.values().all(|at| *at == other.at.load(Relaxed))
                })
            })
    }
}

struct Load {
    url: String,
    secret: String,
    clients: Vec<Arc<Client>>,
    per_room: usize,
    /// Names of later clients are others.
    batch: usize,
}

impl Load {
    fn open(&mut self, sockets: usize, per_room: usize) {
        self.per_room = per_room;
        self.batch += 1;
        let key = jsonwebtoken::EncodingKey::from_secret(self.secret.as_bytes());
        let exp =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() + 86_400;
        for n in 0..sockets {
            let name = format!("{}-{n}", self.batch);
            let claims = json!({ "sub": name, "role": "authenticated", "exp": exp });
            let token = jsonwebtoken::encode(&Default::default(), &claims, &key).expect("a secret signs");
            let (say, said) = mpsc::unbounded_channel();
            let client = Arc::new(Client {
                name,
                topic: format!("room {} {}", self.batch, n / per_room),
                token,
                at: AtomicU64::new(0),
                said: Mutex::default(),
                told: Mutex::default(),
                shown: Mutex::default(),
                joined: AtomicBool::new(false),
                over: AtomicBool::new(false),
                say,
            });
            self.clients.push(client.clone());
            tokio::spawn(client.live(self.url.clone(), said));
        }
    }

    /// Returns how many are not, when the time is over.
    async fn right(&self, patience: Duration) -> usize {
        let end = Instant::now() + patience;
        loop {
            let wrong: usize = self
                .clients
                .chunks(self.per_room.max(1))
                .map(|room| room.iter().filter(|client| !client.is_right(room)).count())
                .sum();
            if wrong == 0 || Instant::now() > end {
                return wrong;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn rate(&self, a_second: u64, seconds: u64) -> Value {
        DELAYS.lock().unwrap().clear();
        for client in &self.clients {
            client.said.lock().unwrap().clear();
            client.told.lock().unwrap().clear();
        }
        let began = Instant::now();
        SINCE.store(now(), Relaxed);
        let mut sent = 0;
        while began.elapsed() < Duration::from_secs(seconds) {
            let due = (began.elapsed().as_secs_f64() * a_second as f64) as u64;
            while sent < due {
                let client = &self.clients[rand::rng().random_range(0..self.clients.len())];
                let _ = client.say.send(Say::Track);
                sent += 1;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // What is still on its way counts, too.
        let said = || self.clients.iter().map(|client| client.said.lock().unwrap().len() as u64).sum::<u64>();
        while said() < sent && began.elapsed() < Duration::from_secs(seconds + 60) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.right(Duration::from_secs(60)).await;
        SINCE.store(u64::MAX, Relaxed);
        let mut delays = std::mem::take(&mut *DELAYS.lock().unwrap());
        delays.sort_unstable();
        let at = |share: f64| {
            let n = (delays.len() as f64 * share) as usize;
            delays.get(n.min(delays.len().saturating_sub(1))).map(|us| f64::from(*us) / 1000.0)
        };
        let (told, conflated, lost) = self.count(delays.last().copied().unwrap_or_default().into());
        json!({ "sent": sent, "told": told, "conflated": conflated, "lost": lost, "p50": at(0.5), "p99": at(0.99), "max": at(1.0) })
    }

    /// Who was told of each track that was measured, and who was not. Of the last track of each client that is exact: whoever
    /// was not told has lost it. Earlier ones may be left out, on purpose, where the client has overtaken them by its next
    /// while they were on their way, and nothing is on its way for longer than the slowest diff took. So one that is missing
    /// passes for conflated when the next came within that time, and else it was lost. Had it been lost all the same within
    /// that time, the next would have hidden that: from here the two look alike.
    fn count(&self, slowest: u64) -> (usize, usize, usize) {
        let (mut told, mut conflated, mut lost) = (0, 0, 0);
        for room in self.clients.chunks(self.per_room.max(1)) {
            for client in room {
                let said = client.said.lock().unwrap();
                for (n, at) in said.iter().enumerate() {
                    let track = (client.name.clone(), *at);
                    let knows =
                        room.iter().filter(|other| other.told.lock().unwrap().contains(&track)).count();
                    let overtaken = said.get(n + 1).is_some_and(|next| next - at <= slowest);
                    let missing = if overtaken { &mut conflated } else { &mut lost };
                    *missing += room.len() - knows;
                    told += knows;
                }
            }
        }
        (told, conflated, lost)
    }

    fn cut(&self, sockets: usize) {
        for _ in 0..sockets {
            let client = &self.clients[rand::rng().random_range(0..self.clients.len())];
            let _ = client.say.send(Say::Break);
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    LazyLock::force(&BEGAN);
    let url = std::env::args().nth(1).ok_or("which gateway? ws://127.0.0.1:4000")?;
    let mut load = Load {
        url: format!("{url}/socket/websocket?vsn=2.0.0"),
        secret: std::env::var("PRESENCE_GATEWAY_JWT_SECRET")?,
        clients: Vec::new(),
        per_room: 1,
        batch: 0,
    };
    let (lines, mut line) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    while let Some(line) = line.recv().await {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number =
            |n: usize| words.get(n).and_then(|word| word.parse::<usize>().ok()).ok_or("a number is missing");
        let began = Instant::now();
        let mut answer = match words.first().copied() {
            Some("open") => {
                load.open(number(1)?, number(2)?);
                json!({ "wrong": load.right(Duration::from_secs(120)).await })
            }
            Some("rate") => load.rate(number(1)? as u64, number(2)? as u64).await,
            Some("cut") => {
                load.cut(number(1)?);
                json!({})
            }
            Some("right") => json!({ "wrong": load.right(Duration::from_secs(number(1)? as u64)).await }),
            Some("close") => {
                for client in std::mem::take(&mut load.clients) {
                    client.over.store(true, Relaxed);
                    let _ = client.say.send(Say::Break);
                }
                json!({})
            }
            _ => return Err(format!("not known: {line}").into()),
        };
        answer["seconds"] = json!((began.elapsed().as_secs_f64() * 100.0).round() / 100.0);
        println!("{answer}");
    }
    Ok(())
}
