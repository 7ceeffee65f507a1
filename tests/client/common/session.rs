//! A user's connection, and the events it receives.

use super::{PATIENCE, millis};
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::ToSql;
use postgres::{Client, Config, NoTls, Row, SimpleQueryMessage};
use serde_json::Value;
use std::ops::Index;
use std::path::Path;
use std::time::{Duration, Instant};

pub struct Session {
    client: Client,
}

/// A notification.
#[derive(Clone, Debug)]
pub struct Event {
    pub sender: i64,
    pub channel: String,
    pub payload: String,
    pub fields: Value,
}

/// An error that the server returned.
#[derive(Debug)]
pub struct Failure {
    pub code: String,
    pub message: String,
    pub detail: String,
    pub hint: String,
}

impl Session {
    pub fn open(host: &Path, user: &str, database: &str) -> Session {
        Session::try_open(host, user, database)
            .unwrap_or_else(|error| panic!("connecting as {user}: {error}"))
    }

    pub fn try_open(host: &Path, user: &str, database: &str) -> Result<Session, postgres::Error> {
        let client = Config::new()
            .host_path(host)
            .user(user)
            .dbname(database)
            .options("-c statement_timeout=60s") // so that no test hangs
            .connect(NoTls)?;
        Ok(Session { client })
    }

    /// Runs one or several statements.
    pub fn run(&mut self, sql: &str) {
        self.client.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {}", explain(&error)));
    }

    /// Runs them and returns the error, if any.
    pub fn try_run(&mut self, sql: &str) -> Result<(), Failure> {
        self.client.batch_execute(sql).map_err(|error| failure(&error))
    }

    /// Runs statements that must fail.
    pub fn fails(&mut self, sql: &str) -> Failure {
        self.try_run(sql).expect_err(sql)
    }

    /// The rows of the last statement that returns any, as text; NULL becomes the empty string.
    pub fn rows(&mut self, sql: &str) -> Vec<Vec<String>> {
        self.try_rows(sql).unwrap_or_else(|failure| panic!("{sql}: {failure:?}"))
    }

    pub fn try_rows(&mut self, sql: &str) -> Result<Vec<Vec<String>>, Failure> {
        let messages = self.client.simple_query(sql).map_err(|error| failure(&error))?;
        let mut rows = Vec::new();
        for message in &messages {
            match message {
                SimpleQueryMessage::RowDescription(_) => rows.clear(),
                SimpleQueryMessage::Row(row) => {
                    let text = |column| row.get(column).unwrap_or_default().to_owned();
                    rows.push((0..row.len()).map(text).collect::<Vec<_>>());
                }
                _ => {}
            }
        }
        Ok(rows)
    }

    /// The rows of a statement that is prepared the way drivers do it; its arguments and columns are text.
    pub fn prepared(&mut self, sql: &str, arguments: &[&str]) -> Vec<Vec<String>> {
        let arguments: Vec<&(dyn ToSql + Sync)> =
            arguments.iter().map(|text| text as &(dyn ToSql + Sync)).collect();
        let rows =
            self.client.query(sql, &arguments).unwrap_or_else(|error| panic!("{sql}: {}", explain(&error)));
        let text = |row: &Row, at| row.get::<_, Option<String>>(at).unwrap_or_default();
        rows.iter().map(|row| (0..row.len()).map(|at| text(row, at)).collect()).collect()
    }

    /// The first column of the only row.
    pub fn value(&mut self, sql: &str) -> String {
        let rows = self.rows(sql);
        assert_eq!(rows.len(), 1, "{sql}");
        rows[0][0].clone()
    }

    pub fn number(&mut self, sql: &str) -> i64 {
        let value = self.value(sql);
        value.parse().unwrap_or_else(|_| panic!("{sql}: {value:?} is no number"))
    }

    pub fn is(&mut self, sql: &str) -> bool {
        self.value(sql) == "t"
    }

    pub fn pid(&mut self) -> i64 {
        self.number("select pg_backend_pid()")
    }

    pub fn listen(&mut self, room: &str) {
        self.run(&format!("select presence.listen('{room}')"));
    }

    /// Waits until everything committed so far is published.
    pub fn flush(&mut self) {
        assert!(self.is("select presence.wait_for_flush('20 s')"), "the worker does not publish");
    }

    /// Everything that was published before the call and has not been returned yet.
    pub fn hear(&mut self) -> Vec<Event> {
        self.flush();
        self.heard()
    }

    /// The notifications that have arrived. The round trip of a query delivers all that were sent before it.
    pub fn heard(&mut self) -> Vec<Event> {
        self.run("");
        let mut notifications = self.client.notifications();
        let mut iterator = notifications.iter();
        let mut events = Vec::new();
        while let Some(notification) = iterator.next().expect("a live connection") {
            events.push(Event::new(&notification));
        }
        events
    }

    /// Waits for a matching event; it is the last of those returned.
    pub fn hear_until(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> Vec<Event> {
        let deadline = Instant::now() + PATIENCE;
        let mut events = Vec::new();
        while let Some(event) = self.next_event(deadline.saturating_duration_since(Instant::now())) {
            let found = wanted(&event);
            events.push(event);
            if found {
                return events;
            }
        }
        panic!("not heard: {what}; but {events:#?}");
    }

    pub fn next_event(&mut self, timeout: Duration) -> Option<Event> {
        let mut notifications = self.client.notifications();
        let mut iterator = notifications.timeout_iter(timeout.max(millis(1)));
        iterator.next().expect("a live connection").map(|notification| Event::new(&notification))
    }
}

impl Event {
    fn new(notification: &postgres::Notification) -> Event {
        let payload = notification.payload().to_owned();
        let fields = serde_json::from_str(&payload).unwrap_or_else(|error| {
            // A number outside the range of a double is valid JSON, but cannot be a Value.
            let checked = serde_json::from_str::<&serde_json::value::RawValue>(&payload);
            assert!(checked.is_ok(), "{payload}: {error}");
            Value::Null
        });
        Event {
            sender: notification.process_id().into(),
            channel: notification.channel().to_owned(),
            payload,
            fields,
        }
    }

    pub fn kind(&self) -> &str {
        self.text("event")
    }

    pub fn text(&self, field: &str) -> &str {
        self.fields[field].as_str().unwrap_or_default()
    }

    pub fn number(&self, field: &str) -> i64 {
        self.fields[field].as_i64().unwrap_or_else(|| panic!("no number {field}: {}", self.payload))
    }

    pub fn seq(&self) -> i64 {
        self.number("seq")
    }

    /// Whether it concerns a member rather than the connection itself.
    pub fn is_of_member(&self) -> bool {
        matches!(self.kind(), "enter" | "update" | "leave")
    }

    /// `enter alice`, `update alice/phone`, `leave bob expired`
    pub fn line(&self) -> String {
        let mut line = format!("{} {}", self.kind(), self.text("member_id"));
        if !self.text("connection_id").is_empty() {
            line += &format!("/{}", self.text("connection_id"));
        }
        if !self.text("reason").is_empty() {
            line += &format!(" {}", self.text("reason"));
        }
        line
    }
}

impl Index<&str> for Event {
    type Output = Value;

    fn index(&self, field: &str) -> &Value {
        &self.fields[field]
    }
}

/// The member events, one line each.
pub fn lines(events: &[Event]) -> Vec<String> {
    events.iter().filter(|event| event.is_of_member()).map(Event::line).collect()
}

fn failure(error: &postgres::Error) -> Failure {
    let Some(error) = error.as_db_error() else {
        // The connection is gone.
        let (code, message) = ("08006".to_owned(), error.to_string());
        return Failure { code, message, detail: String::new(), hint: String::new() };
    };
    Failure {
        code: error.code().code().to_owned(),
        message: error.message().to_owned(),
        detail: error.detail().unwrap_or_default().to_owned(),
        hint: error.hint().unwrap_or_default().to_owned(),
    }
}

fn explain(error: &postgres::Error) -> String {
    format!("{:?}", failure(error))
}
