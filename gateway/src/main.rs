//! presence-gateway: presence for browsers. `docs/gateway.md` says how to use it.
//!
//! Requests go through `http` → `socket` or `sse` → `channel`. Changes come from the database through
//! `listener` into `room`, and from there, through each viewer's `view`, to the socket. `identity` and
//! `rights` determine who may see what; `member` and `members` manage the members of this gateway.

mod channel;
mod config;
mod connect;
mod database;
mod doorbell;
mod http;
mod identity;
mod keyring;
mod limits;
mod listener;
mod loader;
mod mailbox;
mod member;
mod members;
mod memory;
mod metrics;
mod mode;
mod page;
mod protocol;
mod rights;
mod room;
mod row;
mod socket;
mod sse;
mod tls;
mod trouble;
mod view;
mod visitor;

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use rand::Rng;
use rand::distr::Alphanumeric;
use tokio::sync::{Notify, watch};

use crate::config::Config;
use crate::connect::Connector;
use crate::database::Database;
use crate::doorbell::Doorbell;
use crate::keyring::KeyRing;
use crate::limits::Seats;
use crate::listener::{Hearing, Listener};
use crate::members::Members;
use crate::rights::Asker;
use crate::room::Rooms;

/// Interval of rights checks with an authorizer, whose decisions can change without a notification.
const RECHECK: Duration = Duration::from_secs(10);
/// Without an authorizer, only role inheritance can change unnoticed, so every so many rounds suffice.
const RARELY: u32 = 6;

pub struct App {
    pub config: Config,
    pub keys: Arc<KeyRing>,
    pub database: Arc<Database>,
    pub rooms: Arc<Rooms>,
    pub asker: Arc<Asker>,
    pub members: Arc<Members>,
    pub listener: Arc<Listener>,
    pub seats: Arc<Seats>,
    pub draining: watch::Sender<bool>,
}

impl App {
    /// A random id for a socket without a token, as a UUID because policies expect one.
    pub fn made_up_id(&self) -> String {
        let bits: u128 = rand::random();
        let hex =
            format!("{:032x}", (bits & !(0xf000 << 64) & !(0xc000 << 48)) | (0x4000 << 64) | (0x8000 << 48));
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

fn main() -> ExitCode {
    let config = Config::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("PRESENCE_GATEWAY_LOG")
                .unwrap_or_else(|_| "info".into()),
        )
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("could not start: {error}")),
    };
    match runtime.block_on(run(config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => fail(&reason),
    }
}

fn fail(reason: &str) -> ExitCode {
    eprintln!("presence-gateway: {reason}");
    ExitCode::FAILURE
}

async fn run(config: Config) -> Result<(), String> {
    let config = config.check()?;
    let keys = Arc::new(KeyRing::new(&config)?);

    let connector = Connector::new(&config.database, config.service_role.clone())?;
    connector.check(&config.roles).await?;

    let metrics = metrics::install()?;
    let random = || rand::rng().sample_iter(Alphanumeric).take(8).map(char::from).collect();
    let name = config.name.clone().unwrap_or_else(random);
    let database = Arc::new(Database::new(connector, config.pool.into(), config.roles[0].as_str().into()));
    let rooms = Arc::new(Rooms::new(config.max_named));
    let members = Arc::new(Members::new(database.clone(), name.clone()));
    let recheck = Arc::new(Notify::new());
    let asker = Arc::new(Asker::new(database.clone(), rooms.clone(), recheck.clone()));
    let doorbell = Arc::new(Doorbell::new(database.clone(), asker.clone()));
    let listener = Arc::new(Listener {
        database: database.clone(),
        rooms: rooms.clone(),
        members: members.clone(),
        asker: asker.clone(),
        doorbell: doorbell.clone(),
        recheck: recheck.clone(),
        state: Mutex::new(Hearing::Nothing),
    });
    let adopted = members.adopt().await.map_err(|trouble| trouble.to_string())?;
    let _ = members.renew().await;

    let listening = tokio::net::TcpListener::bind(config.listen)
        .await
        .map_err(|e| format!("--listen {}: {e}", config.listen))?;
    let address = listening.local_addr().map_err(|e| e.to_string())?;
    tracing::info!(%address, name, adopted, "ready");

    tokio::spawn(keys.clone().keep_reading(config.clone()));
    tokio::spawn(listener.clone().run());
    tokio::spawn(listener.clone().keep_loading());
    tokio::spawn(doorbell.keep_answering());
    tokio::spawn(members.clone().keep_renewing());
    tokio::spawn(members.clone().keep_ending());
    tokio::spawn(keep_checking(listener.clone(), recheck));
    tokio::spawn(metrics.clone().keep_counting());
    tokio::spawn(memory::keep_giving_back());

    let seats = Seats::new(config.max_sockets, config.max_sockets_per_user);
    let app = Arc::new(App {
        config,
        keys,
        database,
        rooms,
        asker,
        members,
        listener,
        seats,
        draining: watch::Sender::new(false),
    });
    http::serve(app, listening, metrics).await
}

/// Queries all rights again: when they may have changed, and periodically.
async fn keep_checking(listener: Arc<Listener>, recheck: Arc<Notify>) {
    let (mut round, mut asked) = (0, false);
    loop {
        asked |= tokio::select! {
            () = recheck.notified() => true,
            () = tokio::time::sleep(RECHECK) => false,
        };
        round += 1;
        // This may request a recheck, which then follows at once.
        if let Err(trouble) = listener.look_at_mode().await {
            tracing::debug!(reason = %trouble, "could not look at the database's mode");
            continue;
        }
        let authorizer = listener
            .database
            .as_service("select coalesce(current_setting('presence.authorizer', true), '') <> ''", &[])
            .await
            .is_ok_and(|rows| rows.first().is_some_and(|row| row.try_get(0).unwrap_or(false)));
        if asked || authorizer || round % RARELY == 0 {
            listener.asker.ask_again(None).await;
        }
        asked = false;
    }
}
