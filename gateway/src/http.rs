//! The HTTP routes. Upgrades are refused only because of origins, versions and limits: a browser cannot see
//! the reason, and retries forever. All other errors are reported in the answer to a join.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, State, WebSocketUpgrade};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::Listener;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::App;
use crate::listener::Hearing;
use crate::metrics::Metrics;
use crate::protocol::Version;
use crate::{page, socket, sse, visitor};

/// How long the head of a request may take, for the first and each later request on a connection.
const PATIENCE: Duration = Duration::from_secs(10);

type Parameters = Query<HashMap<String, String>>;

pub async fn serve(app: Arc<App>, listening: TcpListener, metrics: Metrics) -> Result<(), String> {
    let metrics_app = app.clone();
    let mut routes = Router::new()
        .route("/realtime/v1/websocket", get(websocket))
        .route("/socket/websocket", get(websocket))
        .route("/websocket", get(websocket))
        .route("/rooms/{room}/events", get(room_events))
        .route("/events", get(events))
        .route("/metrics", get(move || async move { metrics.render(&metrics_app) }))
        .route("/healthz", get(health))
        .route("/anonymous", post(visitor))
        .with_state(app.clone());
    if let Some(folder) = &app.config.page {
        routes = routes.fallback_service(page::files(folder));
    }

    let mut stop = signal(SignalKind::terminate()).map_err(|e| e.to_string())?;
    let stopping = async move {
        tokio::select! {
            _ = stop.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    tokio::select! {
        () = accept(listening, routes) => {}
        () = stopping => {}
    }
    // New connections are refused from now on; the sockets are closed one after the other.
    tracing::info!(sockets = app.seats.taken(), "closing");
    app.draining.send_replace(true);
    let until = tokio::time::Instant::now() + app.config.drain + Duration::from_secs(1);
    while app.seats.taken() > 0 && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    app.members.leave_soon().await;
    Ok(())
}

/// Accepts connections. Unlike `axum::serve`, it closes those that send no request.
async fn accept(mut listening: TcpListener, routes: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    let service = TowerToHyperService::new(routes);
    loop {
        let (stream, _) = Listener::accept(&mut listening).await;
        let connection = http.serve_connection(TokioIo::new(stream), service.clone()).with_upgrades();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::trace!(%error, "a connection ended");
            }
        });
    }
}

async fn websocket(
    State(app): State<Arc<App>>,
    Query(parameters): Parameters,
    headers: HeaderMap,
    upgrade: WebSocketUpgrade,
) -> Response {
    let Some(version) = Version::of(parameters.get("vsn").map(String::as_str)) else {
        return (StatusCode::BAD_REQUEST, "vsn is 1.0.0 or 2.0.0").into_response();
    };
    if !is_origin_allowed(&app, &headers) {
        return refused_origin();
    }
    let Some(seat) = app.seats.take() else {
        return (StatusCode::TOO_MANY_REQUESTS, "too many connections").into_response();
    };
    let token = token(&parameters, &headers);
    let most = app.config.max_frame;
    upgrade
        .protocols(["phoenix"])
        .read_buffer_size(4096)
        .write_buffer_size(4096)
        .max_write_buffer_size(usize::MAX)
        .max_frame_size(most)
        .max_message_size(most)
        .on_upgrade(move |socket| socket::serve(app, socket, version, token, seat))
}

async fn room_events(
    State(app): State<Arc<App>>,
    Path(room): Path<String>,
    Query(parameters): Parameters,
    headers: HeaderMap,
) -> Response {
    stream(app, &room, &parameters, &headers)
}

/// For rooms whose names do not fit into a path: browsers resolve `..`.
async fn events(State(app): State<Arc<App>>, Query(parameters): Parameters, headers: HeaderMap) -> Response {
    match parameters.get("room") {
        Some(room) => stream(app, room, &parameters, &headers),
        None => (StatusCode::BAD_REQUEST, "which room? /events?room=NAME").into_response(),
    }
}

fn stream(app: Arc<App>, room: &str, parameters: &HashMap<String, String>, headers: &HeaderMap) -> Response {
    if !is_origin_allowed(&app, headers) {
        return refused_origin();
    }
    let allowed = if app.config.origins.is_empty() { None } else { headers.get(header::ORIGIN).cloned() };
    let mut response = sse::serve(app, room, token(parameters, headers));
    let origin = allowed.unwrap_or(header::HeaderValue::from_static("*"));
    response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    response
}

/// Pages of origins that are not allowed get no tokens, whoever visits them.
async fn visitor(state: State<Arc<App>>, headers: HeaderMap) -> Response {
    if !is_origin_allowed(&state, &headers) {
        return refused_origin();
    }
    visitor::welcome(state, headers).await
}

async fn health(State(app): State<Arc<App>>) -> Response {
    let hearing = *app.listener.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    match hearing {
        _ if *app.draining.borrow() => (StatusCode::SERVICE_UNAVAILABLE, "closing\n").into_response(),
        Hearing::All => "ok\n".into_response(),
        Hearing::Nothing => {
            (StatusCode::SERVICE_UNAVAILABLE, "not listening to the database\n").into_response()
        }
    }
}

/// Requests without an Origin are allowed: only browsers send one, and they always do where it matters.
fn is_origin_allowed(app: &App, headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let allowed = &app.config.origins;
    let origin = origin.to_str().unwrap_or_default().to_ascii_lowercase();
    allowed.is_empty() || allowed.contains(&origin)
}

fn refused_origin() -> Response {
    (StatusCode::FORBIDDEN, "this origin may not connect").into_response()
}

pub fn bearer(headers: &HeaderMap) -> Option<String> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}

/// The token from the Authorization header, from the list of subprotocols as phoenix sends it, or from the
/// query.
fn token(parameters: &HashMap<String, String>, headers: &HeaderMap) -> Option<String> {
    let subprotocol = || {
        let encoded = headers
            .get(header::SEC_WEBSOCKET_PROTOCOL)?
            .to_str()
            .ok()?
            .split(',')
            .find_map(|protocol| protocol.trim().strip_prefix("base64url.bearer.phx."))?;
        let bytes = URL_SAFE_NO_PAD.decode(encoded).or_else(|_| STANDARD_NO_PAD.decode(encoded)).ok()?;
        String::from_utf8(bytes).ok()
    };
    let query = || ["access_token", "token", "apikey"].iter().find_map(|name| parameters.get(*name)).cloned();
    bearer(headers).or_else(subprotocol).or_else(query).filter(|token| !token.is_empty())
}
