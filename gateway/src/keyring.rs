//! The currently valid keys. A key file may be replaced while the gateway runs: it is read again every few
//! seconds, and at once on SIGHUP. If the file becomes invalid or disappears, the previous keys stay valid.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::config::Config;
use crate::identity::{Identity, Keys, Refusal};

/// How often the file is checked for changes.
const PAUSE: Duration = Duration::from_secs(5);

pub struct KeyRing {
    keys: RwLock<Arc<Keys>>,
    stale: AtomicBool,
}

impl KeyRing {
    pub fn new(config: &Config) -> Result<Self, String> {
        let keys = match (&config.jwt_secret, &config.jwks) {
            (Some(secret), None) => Keys::of_secret(secret).map_err(|e| format!("--jwt-secret: {e}"))?,
            (None, Some(file)) => read(file).and_then(|text| parse(file, &text))?,
            _ => return Err("give either --jwt-secret or --jwks".into()),
        };
        Ok(Self { keys: RwLock::new(Arc::new(restrict(keys, config))), stale: AtomicBool::new(false) })
    }

    /// Whom a socket's token identifies, according to the currently valid keys.
    pub fn identify(&self, token: Option<&str>, made_up: &str) -> Result<Identity, Refusal> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        keys.identify(token, made_up)
    }

    /// Whether previous keys are in use because the file is invalid or missing.
    pub fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }

    /// Reads the file again and again, if the keys come from one.
    pub async fn keep_reading(self: Arc<Self>, config: Config) {
        // Set up even without a file, so that SIGHUP does not end the process.
        let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
        let Some(file) = config.jwks.clone() else { return };
        let mut known = None;
        loop {
            let path = file.clone();
            let text = tokio::task::spawn_blocking(move || read(&path))
                .await
                .unwrap_or_else(|_| Err("could not be read".into()));
            if known.as_ref() != Some(&text) {
                self.replace(
                    text.as_deref().map_err(Clone::clone).and_then(|text| parse(&file, text)),
                    &config,
                );
                known = Some(text);
            }
            tokio::select! {
                _ = hangup.recv() => {}
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    fn replace(&self, keys: Result<Keys, String>, config: &Config) {
        self.stale.store(keys.is_err(), Ordering::Relaxed);
        match keys {
            Ok(keys) => {
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(restrict(keys, config));
                tracing::info!("the keys of --jwks were read");
            }
            Err(reason) => tracing::error!(reason, "the keys stay as they were"),
        }
    }
}

fn read(file: &Path) -> Result<String, String> {
    std::fs::read_to_string(file).map_err(|e| format!("--jwks {}: {e}", file.display()))
}

fn parse(file: &Path, text: &str) -> Result<Keys, String> {
    Keys::of_set(text).map_err(|e| format!("--jwks {}: {e}", file.display()))
}

fn restrict(keys: Keys, config: &Config) -> Keys {
    keys.requiring(config.audience.clone(), &config.roles, config.anonymous)
}
