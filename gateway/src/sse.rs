//! Server-sent events: a room for clients that only look. Each stream begins with `state`, followed by
//! `enter`, `update` and `leave`; streams are not resumed, because `state` contains everything.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use rand::Rng;
use tokio::sync::watch;

use crate::App;
use crate::channel::JOINING;
use crate::database::Trouble;
use crate::limits::Seat;
use crate::mailbox::{Changes, Mailbox};
use crate::protocol;
use crate::rights::Rights;
use crate::room::Viewer;
use crate::row::Row;
use crate::view::{Diff, View};

struct Stream {
    app: Arc<App>,
    view: View,
    mailbox: Arc<Mailbox>,
    began: Instant,
    begun: bool,
    waiting: Vec<Event>,
    seats: Vec<Seat>,
    draining: watch::Receiver<bool>,
    ended: bool,
}

/// EventSource sees neither status nor body, and gives up on any status but 200: a refusal here is final, and
/// its reason appears only in the browser's developer tools.
pub fn serve(app: Arc<App>, room: &str, token: Option<String>) -> Response {
    if let Err(reason) = protocol::check_room(room) {
        return (StatusCode::BAD_REQUEST, reason).into_response();
    }
    let identity = match app.keys.identify(token.as_deref(), &app.made_up_id()) {
        Ok(identity) => Arc::new(identity),
        Err(refusal) => return (StatusCode::UNAUTHORIZED, refusal.to_string()).into_response(),
    };
    let Some(seat) = app.seats.take() else {
        return (StatusCode::TOO_MANY_REQUESTS, "too many connections").into_response();
    };
    let mailbox = Arc::<Mailbox>::default();
    let viewer = Viewer { identity: identity.clone(), mailbox: mailbox.clone(), user_id: None };
    let view = View::open(&app.rooms, room.into(), viewer);
    let (asker, asking) = (app.asker.clone(), [(view.room.clone(), view.id, mailbox.clone())]);
    tokio::spawn(async move { asker.ask(&identity, &asking).await });

    let draining = app.draining.subscribe();
    let stream = Stream {
        app,
        view,
        mailbox,
        began: Instant::now(),
        begun: false,
        waiting: Vec::new(),
        seats: vec![seat],
        draining,
        ended: false,
    };
    let events = stream::unfold(stream, |mut stream| async move {
        let event = stream.next().await?;
        Some((Ok::<_, Infallible>(event), stream))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(25))).into_response()
}

impl Stream {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.waiting.pop() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            let joining = if self.begun { Duration::from_secs(3600) } else { JOINING };
            let over = self.view.identity.time_left().unwrap_or(joining).min(joining);
            tokio::select! {
                () = self.mailbox.arrived() => {
                    if let Some(changes) = self.mailbox.take().remove(&self.view.id) {
                        self.look(&changes);
                    }
                }
                () = tokio::time::sleep(over) => {
                    if self.view.identity.is_over() {
                        self.end("InvalidJWTToken: Token has expired");
                    } else if !self.begun && self.began.elapsed() >= JOINING {
                        self.end(&Trouble::late().reason());
                    }
                }
                _ = self.draining.changed() => {
                    let spread = rand::rng().random_range(0.0..=1.0);
                    tokio::time::sleep(self.app.config.drain.mul_f64(spread)).await;
                    return None;
                }
            }
        }
    }

    /// Ends the stream. The browser reconnects by itself, to the same address, so the reason is sent first.
    fn end(&mut self, reason: &str) {
        self.waiting = vec![Event::default().event("end").data(protocol::error(reason))];
        self.ended = true;
    }

    fn look(&mut self, changes: &Changes) {
        if let Some(answer) = &changes.rights
            && self.view.is_news(answer)
        {
            match &answer.rights {
                Ok(rights) => self.view.take_rights(rights.clone()),
                Err(trouble) if !self.begun => return self.end(&trouble.reason()),
                Err(trouble) if !trouble.is_verdict() => {}
                Err(_) => {
                    if let Some(rights) = self.view.rights.clone() {
                        self.view.take_rights(Arc::new(Rights::none(&rights)));
                    }
                }
            }
        }
        if self.begun {
            let Diff { joins, leaves } = self.view.diff(changes);
            let before: HashSet<_> = leaves.iter().map(|row| row.key.clone()).collect();
            let after: HashSet<_> = joins.iter().map(|row| row.key.clone()).collect();
            let event = |name: &str, row: &Row| Event::default().event(name).data(row.json());
            let gone = leaves.iter().filter(|row| !after.contains(&row.key)).map(|row| event("leave", row));
            let here = joins
                .iter()
                .map(|row| event(if before.contains(&row.key) { "update" } else { "enter" }, row));
            self.waiting = gone.chain(here).collect();
        } else if self.view.is_ready() {
            self.begin();
        }
    }

    fn begin(&mut self) {
        let Some(rights) = self.view.rights.clone() else { return };
        if !rights.read {
            return self.end("Unauthorized: you may not read this room");
        }
        if let Some(user_id) = &rights.user_id {
            match self.app.seats.take_for(user_id) {
                Some(seat) => self.seats.push(seat),
                None => return self.end("ConnectionRateLimitReached: too many connections of this user"),
            }
        }
        self.begun = true;
        let rows: Vec<_> = self.view.begin().iter().map(|row| row.json()).collect();
        let retry = Duration::from_millis(rand::rng().random_range(1000..5000));
        let state = format!("[{}]", rows.join(","));
        self.waiting = vec![Event::default().event("state").retry(retry).data(state)];
    }
}
