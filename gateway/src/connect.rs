//! Connects to the database, and checks its configuration before the first client is admitted.

use std::error::Error as _;
use std::time::Duration;

use rand::Rng;
use rand::distr::Alphanumeric;
use tokio::sync::mpsc;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{AsyncMessage, Client, Config, NoTls, Notification};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::database::Trouble;
use crate::identity::Identity;
use crate::tls;

pub struct Connector {
    config: Config,
    tls: Option<MakeRustlsConnect>,
    service_role: Option<String>,
}

impl Connector {
    pub fn new(url: &str, service_role: Option<String>) -> Result<Self, String> {
        // libpq's name for what `require` does here.
        let url = url.replace("sslmode=verify-full", "sslmode=require");
        let wrong = |e: tokio_postgres::Error| match e.source() {
            Some(why) => format!("--database: {e}: {why}"),
            None => format!("--database: {e}"),
        };
        let mut config: Config = url.parse().map_err(wrong)?;
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(Duration::from_secs(5));
        }
        config.keepalives_idle(Duration::from_secs(30));
        if config.get_application_name().is_none() {
            config.application_name("presence-gateway");
        }
        let is_local = config.get_hosts().iter().all(|host| match host {
            Host::Tcp(_) => false,
            #[cfg(unix)]
            Host::Unix(_) => true,
        });
        let tls = match config.get_ssl_mode() {
            _ if is_local => None,
            SslMode::Disable => None,
            mode => Some(tls::connect(mode == SslMode::Require)?),
        };
        Ok(Self { config, tls, service_role })
    }

    pub async fn connect(&self) -> Result<Client, Trouble> {
        self.open(None).await
    }

    pub async fn connect_as_service(&self) -> Result<Client, Trouble> {
        let client = self.open(None).await?;
        self.become_service(&client).await?;
        Ok(client)
    }

    /// Connects with a queue for notifications. When the queue is full, notifications are lost, and its
    /// reader is told so.
    pub async fn connect_to_listen(&self, heard: mpsc::Sender<Heard>) -> Result<Client, Trouble> {
        let client = self.open(Some(heard)).await?;
        self.become_service(&client).await?;
        Ok(client)
    }

    async fn become_service(&self, client: &Client) -> Result<(), Trouble> {
        if let Some(role) = &self.service_role {
            client.execute("select set_config('role', $1, false)", &[&role]).await?;
        }
        Ok(())
    }

    async fn open(&self, heard: Option<mpsc::Sender<Heard>>) -> Result<Client, Trouble> {
        let client = match &self.tls {
            None => {
                let (client, connection) = self.config.connect(NoTls).await?;
                tokio::spawn(drive(connection, heard));
                client
            }
            Some(tls) => {
                let (client, connection) = self.config.connect(tls.clone()).await?;
                tokio::spawn(drive(connection, heard));
                client
            }
        };
        // Overrides what the database or role sets for other clients: notices, or timeouts that end a
        // session.
        client
            .batch_execute(
                "set client_min_messages = warning; set statement_timeout = '8s'; \
                 set idle_in_transaction_session_timeout = 0; set default_transaction_read_only = off; \
                 set default_transaction_isolation = 'read committed'; set timezone = 'UTC'",
            )
            .await?;
        Ok(client)
    }

    /// Checks the login's privileges; the error is a sentence.
    pub async fn check(&self, roles: &[String]) -> Result<(), String> {
        let failed = |e: Trouble| e.to_string();
        let client = self.connect().await.map_err(failed)?;
        let installed = client
            .query_opt("select extversion from pg_catalog.pg_extension where extname = 'presence_ext'", &[])
            .await
            .map_err(|e| failed(e.into()))?;
        if installed.is_none() {
            return Err("this database has no extension presence_ext: CREATE EXTENSION presence_ext".into());
        }

        // If the login is not trusted, its claims are ignored, and all users would be the same person.
        for role in roles {
            let id: String = rand::rng().sample_iter(Alphanumeric).take(24).map(char::from).collect();
            let who = Identity {
                role: role.as_str().into(),
                claims: serde_json::json!({ "sub": id, "role": role }).to_string().into(),
                expires: None,
            };
            let answer = self.ask_who(&client, &who).await.map_err(|e| format!("--role {role}: {e}"))?;
            let Some((user_id, is_service)) = answer else { return Err(failed(Trouble::unexpected())) };
            if is_service {
                return Err(format!(
                    "--role {role} is a service role: tokens that name it would act for everybody"
                ));
            }
            if user_id.as_deref() != Some(&*id) {
                return Err(
                    "the database does not believe the claims of this login: everybody would be one person. Add the \
                     login to presence.trusted_login_roles"
                        .into(),
                );
            }
        }

        let client = self.connect_as_service().await.map_err(|e| format!("--service-role: {e}"))?;
        let is_service =
            client.query_one("select presence.is_service()", &[]).await.map_err(|e| failed(e.into()))?;
        if !is_service.get::<_, bool>(0) {
            return Err(
                "--service-role is not a service role (a superuser, a role with BYPASSRLS, or one of \
                        presence.service_roles)"
                    .into(),
            );
        }
        Ok(())
    }

    async fn ask_who(
        &self,
        client: &Client,
        who: &Identity,
    ) -> Result<Option<(Option<String>, bool)>, Trouble> {
        client.batch_execute("begin").await?;
        let became = client
            .execute(
                "select set_config('role', $1, true), set_config('request.jwt.claims', $2, true)",
                &[&&*who.role, &&*who.claims],
            )
            .await;
        let answer = match became {
            Ok(_) => client.query_opt("select presence.user_id(), presence.is_service()", &[]).await,
            Err(e) => Err(e),
        };
        client.batch_execute("rollback").await?;
        Ok(match answer? {
            Some(row) => Some((row.try_get(0)?, row.try_get(1)?)),
            None => None,
        })
    }
}

pub enum Heard {
    Notification(Notification),
    /// Some notifications did not fit into the queue.
    Lost,
}

async fn drive<S, T>(mut connection: tokio_postgres::Connection<S, T>, heard: Option<mpsc::Sender<Heard>>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut lost = false;
    while let Some(message) = std::future::poll_fn(|context| connection.poll_message(context)).await {
        match message {
            Ok(AsyncMessage::Notification(notification)) => {
                let Some(heard) = &heard else { continue };
                if lost {
                    lost = heard.try_send(Heard::Lost).is_err();
                }
                lost |= heard.try_send(Heard::Notification(notification)).is_err();
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "a connection to the database ended");
                return;
            }
        }
    }
}
