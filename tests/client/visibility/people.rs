//! Readers of all kinds, connected in their usual ways.

#![allow(dead_code)] // no single test uses all of it

use crate::common::{Cluster, Event, Failure, Session};

/// The roles of Supabase and PostgREST, and some of an ordinary database.
const ROLES: &str = "
    create role authenticator login noinherit;
    create role anon login;
    create role authenticated;
    create role service_role bypassrls;
    grant anon, authenticated, service_role to authenticator;
    create role staff;
    create role olga login;
    create role dan login;
    create role otto login;
    create role rita login inherit in role staff;
    create role nora login noinherit in role staff;
    create role gateway login bypassrls;";

pub const GRANTED: [&str; 8] =
    ["anon", "authenticated", "service_role", "olga", "dan", "otto", "rita", "nora"];

/// A server with these roles; the standard users alice, bob and carol may use presence, too.
pub fn start() -> Cluster {
    start_with(&[])
}

pub fn start_with(options: &[&str]) -> Cluster {
    let cluster = Cluster::with(options);
    let grants = GRANTED.map(|role| format!("presence.grant_access('{role}')")).join(", ");
    cluster.sql("app", &format!("{ROLES} select {grants}, presence.grant_access('gateway')"));
    cluster
}

/// Grants these roles `act_as`, which `grant_access` does not include.
pub fn grant_act_as(cluster: &Cluster, roles: &str) {
    cluster.sql("app", &format!("grant execute on function presence.act_as(text, text[]) to {roles}"));
}

/// A reader on a connection: a login role, and the statements that start each of its transactions.
pub struct Reader {
    pub name: &'static str,
    session: Session,
    prelude: String,
}

impl Reader {
    pub fn login(cluster: &Cluster, name: &'static str, role: &str) -> Reader {
        Reader { name, session: cluster.user(role), prelude: String::new() }
    }

    /// Like PostgREST: one login for all users, with the role and the claims set in each transaction.
    pub fn web(cluster: &Cluster, name: &'static str, role: &str, claims: &str) -> Reader {
        Reader::login(cluster, name, "authenticator")
            .saying(&format!("set local role {role};"))
            .claiming(claims)
    }

    /// A signed-in web user.
    pub fn signed_in(cluster: &Cluster, name: &'static str, sub: &str) -> Reader {
        Reader::web(cluster, name, "authenticated", &format!(r#"{{"sub":"{sub}"}}"#))
    }

    pub fn claiming(self, claims: &str) -> Reader {
        self.saying(&format!("set local request.jwt.claims = '{claims}';"))
    }

    pub fn saying(mut self, sql: &str) -> Reader {
        self.prelude += sql;
        self
    }

    /// Replaces the statements that start each transaction.
    pub fn only(mut self, sql: &str) -> Reader {
        self.prelude = sql.to_owned();
        self
    }

    /// Runs the statement in a transaction that is always rolled back.
    pub fn ask(&mut self, sql: &str) -> Result<Vec<Vec<String>>, Failure> {
        self.within(sql, "rollback")
    }

    /// The first column of the only row, from a transaction that is rolled back.
    pub fn value(&mut self, sql: &str) -> String {
        let rows = self.ask(sql).unwrap_or_else(|failure| panic!("{}: {sql}: {failure:?}", self.name));
        assert_eq!(rows.len(), 1, "{}: {sql}", self.name);
        rows[0][0].clone()
    }

    /// Runs the statement in a transaction that is committed.
    pub fn act(&mut self, sql: &str) -> Vec<Vec<String>> {
        let name = self.name;
        self.within(sql, "commit").unwrap_or_else(|failure| panic!("{name}: {sql}: {failure:?}"))
    }

    fn within(&mut self, sql: &str, end: &str) -> Result<Vec<Vec<String>>, Failure> {
        self.session.run(&format!("begin; {}", self.prelude));
        let result = self.session.try_rows(sql);
        self.session.run(if result.is_ok() { end } else { "rollback" });
        result
    }

    /// The database's answer as text: rows, or the SQLSTATE and all parts of the message.
    pub fn answer(&mut self, sql: &str) -> String {
        match self.ask(sql) {
            Ok(rows) => format!("{rows:?}"),
            Err(Failure { code, message, detail, hint }) => format!("{code} {message} | {detail} | {hint}"),
        }
    }

    /// Listens to the channels that presence returns for these rooms (`null`: all), as a driver does.
    pub fn listen(&mut self, rooms: &[&str]) {
        for room in rooms {
            let room = if *room == "null" { "null".into() } else { format!("'{room}'") };
            let channels = self.act(&format!("select presence.channels({room})"));
            let listen: String = channels.iter().map(|row| format!("listen {};", row[0])).collect();
            self.session.run(&listen);
        }
    }

    /// Everything published before the call and not returned yet; `service` waits until it is published.
    pub fn heard(&mut self, service: &mut Session) -> Vec<Event> {
        service.flush();
        self.session.all_heard()
    }

    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }
}

/// Events are published a moment before they are delivered: a notification of the session's own, sent
/// afterwards, arrives after everything that the worker's commit has put into the queue.
pub trait Hear {
    fn all_heard(&mut self) -> Vec<Event>;

    /// Everything committed before the call and not returned yet.
    fn hear_all(&mut self) -> Vec<Event>;
}

impl Hear for Session {
    fn all_heard(&mut self) -> Vec<Event> {
        self.run("listen presence_test_barrier");
        self.run("notify presence_test_barrier, '{\"event\": \"barrier\"}'");
        let mut events = self.heard();
        events.retain(|event| event.kind() != "barrier");
        events
    }

    fn hear_all(&mut self) -> Vec<Event> {
        self.flush();
        self.all_heard()
    }
}
