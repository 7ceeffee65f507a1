//! Files of one folder, for a page that is served from the address it connects to (`--page`). For trying out and for
//! small installations; where there is a web server, that is the better place.

use std::path::{Path, PathBuf};

use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// The page and what belongs to it; nothing of elsewhere, neither in what it shows nor where it connects to.
const POLICY: &str = "default-src 'self'; img-src 'self' data:; frame-ancestors 'self'; base-uri 'none'";

const HEADERS: [(HeaderName, &str); 3] = [
    (header::CACHE_CONTROL, "no-cache"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CONTENT_SECURITY_POLICY, POLICY),
];

pub async fn file(folder: PathBuf, name: String) -> Response {
    let name = if name.is_empty() { "index.html" } else { &name };
    let Some(kind) = kind(name) else { return StatusCode::NOT_FOUND.into_response() };
    let path = folder.join(name);
    match tokio::task::spawn_blocking(move || std::fs::read(path)).await {
        Ok(Ok(content)) => (HEADERS, [(header::CONTENT_TYPE, kind)], content).into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// What a file is, by its name. Other names are not served: none leads out of the folder, or to a hidden file.
fn kind(name: &str) -> Option<&'static str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.starts_with('.') || !name.chars().all(allowed) {
        return None;
    }
    match Path::new(name).extension()?.to_str()? {
        "html" => Some("text/html; charset=utf-8"),
        "css" => Some("text/css; charset=utf-8"),
        "js" | "mjs" => Some("text/javascript; charset=utf-8"),
        "json" => Some("application/json"),
        "svg" => Some("image/svg+xml"),
        "png" => Some("image/png"),
        "ico" => Some("image/x-icon"),
        "woff2" => Some("font/woff2"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_folder() {
        assert_eq!(kind("live.js"), Some("text/javascript; charset=utf-8"));
        for name in
            ["..", "../a.js", "a/b.js", "/etc/a.js", "..\\a.js", ".env.js", "a.rs", "a", "a\0.js", "C:a.js"]
        {
            assert_eq!(kind(name), None, "{name}");
        }
    }
}
