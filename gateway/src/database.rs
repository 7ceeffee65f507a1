//! Database connections: a pool for requests of users, where each transaction runs as one user, and one
//! connection for the gateway's own requests, as the service role. The listening connection is in `listener`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join4;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};

use crate::connect::Connector;
use crate::identity::Identity;
pub use crate::trouble::Trouble;

pub const PATIENCE: Duration = Duration::from_secs(10);

/// The requests that run as a user.
#[derive(Clone, Copy)]
pub enum Verb {
    Track,
    Untrack,
    Rights,
    List,
}

const VERBS: [&str; 4] = [
    "select u.version from presence.upsert(room => $1, state => $2::text::jsonb, member_id => $3, \
     connection_id => $4, ttl => $5::text::interval) u",
    "select presence.delete(room => $1, member_id => $2, connection_id => $3)",
    "select presence.user_id(), presence.tokens(), current_setting('presence.member_ids'), \
     array(select presence.may(r.room, 'read') from unnest($1::text[]) with ordinality r(room, n) order by r.n)",
    LIST,
];

/// Lists rooms completely, each member as JSON with the field names of an event.
pub const LIST: &str = "select o.room, json_build_object('member_id', o.member_id, 'connection_id', o.connection_id, \
     'user_id', o.user_id, 'version', o.version, 'status', o.status, 'state', o.state, 'metadata', o.metadata, \
     'joined_at', to_char(o.joined_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), 'node', o.node, \
     'audience', o.audience)::text from presence.online o where o.room = any($1::text[])";

struct Connection {
    client: Client,
    become_user: Statement,
    verbs: Vec<Statement>,
    /// Changed settings apply only to new sessions, so connections of an older generation are dropped.
    generation: u64,
}

pub struct Database {
    connector: Connector,
    idle: Mutex<Vec<Connection>>,
    permits: Semaphore,
    size: usize,
    generation: AtomicU64,
    /// While the database is away, requests fail at once until this time; then one of them tries to connect.
    away_until: Mutex<Option<Instant>>,
    service: tokio::sync::Mutex<Option<(Arc<Client>, u64)>>,
    first_role: Arc<str>,
    /// The settings of databases and roles, as last seen.
    settings: Mutex<Option<String>>,
}

impl Database {
    pub fn new(connector: Connector, size: usize, first_role: Arc<str>) -> Self {
        Self {
            connector,
            idle: Mutex::default(),
            permits: Semaphore::new(size),
            size,
            generation: AtomicU64::new(0),
            away_until: Mutex::default(),
            service: tokio::sync::Mutex::default(),
            first_role,
            settings: Mutex::default(),
        }
    }

    pub fn size(&self) -> usize {
        self.size
    }

    pub fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Settings have changed: subsequent requests get new sessions.
    pub fn renew_sessions(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns whether the settings have changed; if so, subsequent requests get new sessions.
    pub fn see_settings(&self, now: String) -> bool {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = settings.as_ref().is_some_and(|before| *before != now);
        *settings = Some(now);
        if changed {
            self.renew_sessions();
        }
        changed
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Runs one verb as one user: a transaction in one round trip. After an error, its COMMIT rolls it back.
    pub async fn as_user(
        &self,
        who: &Identity,
        verb: Verb,
        arguments: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Trouble> {
        let began = Instant::now();
        let _permit = match timeout(PATIENCE, self.permits.acquire()).await {
            Ok(Ok(permit)) => permit,
            _ => return Err(Trouble::late()),
        };
        let mut result = Err(Trouble::late());
        // An idle connection may have broken unnoticed, so a failure there is tried once more. A failure on a
        // new connection is not.
        for _ in 0..2 {
            let (connection, fresh) = match self.take_idle() {
                Some(connection) => (connection, false),
                None => (self.connect().await?, true),
            };
            result = self.run(&connection, who, verb, arguments).await;
            if !connection.client.is_closed() && !matches!(result, Err(Trouble::Away(_))) {
                self.lock_idle().push(connection);
                break;
            }
            if fresh {
                break;
            }
            // Drop the idle connections that have broken with it.
            self.lock_idle().retain(|other| !other.client.is_closed());
        }
        metrics::histogram!("presence_gateway_database_seconds").record(began.elapsed().as_secs_f64());
        result
    }

    async fn run(
        &self,
        connection: &Connection,
        who: &Identity,
        verb: Verb,
        arguments: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Trouble> {
        let client = &connection.client;
        let (role, claims) = (&*who.role, &*who.claims);
        let user: [&(dyn ToSql + Sync); 2] = [&role, &claims];
        let all = join4(
            client.batch_execute("begin"),
            client.execute(&connection.become_user, &user),
            client.query(&connection.verbs[verb as usize], arguments),
            client.batch_execute("commit"),
        );
        match timeout(PATIENCE, all).await {
            Ok((began, became, rows, ended)) => {
                began?;
                became?;
                let rows = rows?;
                ended?;
                Ok(rows)
            }
            Err(_) => Err(Trouble::late()),
        }
    }

    fn lock_idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.lock_idle();
        let generation = self.generation();
        idle.retain(|connection| !connection.client.is_closed() && connection.generation == generation);
        idle.pop()
    }

    async fn connect(&self) -> Result<Connection, Trouble> {
        {
            let mut away = self.away_until.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if away.is_some_and(|until| now < until) {
                return Err(Trouble::late());
            }
            if away.is_some() {
                *away = Some(now + Duration::from_millis(500)); // this request tries
            }
        }
        let made = timeout(PATIENCE, self.make()).await.unwrap_or(Err(Trouble::late()));
        let mut away = self.away_until.lock().unwrap_or_else(PoisonError::into_inner);
        *away = match &made {
            Err(Trouble::Away(_)) => Some(Instant::now() + Duration::from_millis(500)),
            _ => None,
        };
        made
    }

    async fn make(&self) -> Result<Connection, Trouble> {
        let generation = self.generation();
        let client = self.connector.connect().await?;
        // The parameter types are given, so nothing is looked up in the catalog.
        use tokio_postgres::types::Type;
        let become_user = client
            .prepare_typed(
                "select set_config('role', $1, true), set_config('request.jwt.claims', $2, true)",
                &[Type::TEXT, Type::TEXT],
            )
            .await?;
        // Only a role with the right to use presence can prepare the statements; they then work for all
        // roles.
        client.batch_execute("begin").await?;
        client.execute(&become_user, &[&&*self.first_role, &"{}"]).await?;
        let mut verbs = Vec::new();
        for verb in VERBS {
            verbs.push(client.prepare(verb).await?);
        }
        client.batch_execute("commit").await?;
        Ok(Connection { client, become_user, verbs, generation })
    }

    /// Runs one of the gateway's own requests.
    pub async fn as_service(
        &self,
        query: &str,
        arguments: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Trouble> {
        let client = self.service().await?;
        match timeout(PATIENCE, client.query(query, arguments)).await {
            Ok(rows) => Ok(rows?),
            Err(_) => {
                *self.service.lock().await = None;
                Err(Trouble::late())
            }
        }
    }

    /// The connection for the gateway's own requests. Concurrent requests share it and are pipelined.
    pub async fn service(&self) -> Result<Arc<Client>, Trouble> {
        let mut service = self.service.lock().await;
        let generation = self.generation();
        if let Some((client, of)) = &*service
            && !client.is_closed()
            && *of == generation
        {
            return Ok(client.clone());
        }
        let client =
            timeout(PATIENCE, self.connector.connect_as_service()).await.unwrap_or(Err(Trouble::late()))?;
        let client = Arc::new(client);
        *service = Some((client.clone(), generation));
        Ok(client)
    }
}
