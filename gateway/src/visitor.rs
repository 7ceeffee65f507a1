//! Visitors without an account (`--anonymous`). A socket without a token is a new user each time; a page that
//! wants its visitors to stay the same users, across reloads and in all tabs, requests a token and stores it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jsonwebtoken::{EncodingKey, Header};
use serde::{Deserialize, Serialize};

use crate::App;

/// Lifetime of a token. Requesting another one in time prolongs it for the same visitor.
const STAY: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    role: String,
    is_anonymous: bool,
    exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<String>,
}

/// POST: issues a token for a new visitor, or for the same one if the request carries a visitor's token.
pub async fn welcome(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let Some(secret) = app.config.jwt_secret.as_ref().filter(|_| app.config.anonymous) else {
        return (StatusCode::NOT_FOUND, "tokens are given with --anonymous and --jwt-secret").into_response();
    };
    let before = crate::http::bearer(&headers)
        .and_then(|token| app.keys.identify(Some(&token), "").ok())
        .and_then(|identity| serde_json::from_str::<Claims>(&identity.claims).ok())
        .filter(|claims| claims.is_anonymous && !claims.sub.is_empty());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let claims = Claims {
        sub: before.map_or_else(|| app.made_up_id(), |claims| claims.sub),
        role: app.config.roles[0].clone(),
        is_anonymous: true,
        exp: (now + STAY).as_secs(),
        aud: app.config.audience.clone(),
    };
    let key = EncodingKey::from_secret(secret.as_bytes());
    match jsonwebtoken::encode(&Header::default(), &claims, &key) {
        Ok(token) => {
            let answer =
                serde_json::json!({ "access_token": token, "user_id": claims.sub, "expires_at": claims.exp });
            ([(header::CACHE_CONTROL, "no-store")], Json(answer)).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
