//! Whom a token identifies. The database decides what that means; this module only verifies that the token is
//! genuine: signed by one of our keys with that key's algorithm, not expired, and for a role that tokens may
//! name.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;

/// Maximum length of a token in bytes; its claims are sent to the database with each transaction.
const LONGEST: usize = 16 * 1024;

/// The user that a transaction runs as: a role and claims.
#[derive(PartialEq, Eq, Hash)]
pub struct Identity {
    pub role: Arc<str>,
    /// The value of `request.jwt.claims`: the exact text that was signed.
    pub claims: Box<str>,
    pub expires: Option<SystemTime>,
}

impl Identity {
    pub fn is_over(&self) -> bool {
        self.expires.is_some_and(|at| at <= SystemTime::now())
    }

    pub fn time_left(&self) -> Option<Duration> {
        self.expires.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default())
    }
}

/// Keeps the claims out of log lines.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("role", &self.role).finish_non_exhaustive()
    }
}

/// Why a token was refused, for the developer of the page: code and reason, in the wording of Supabase's
/// server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    Missing,
    Malformed(&'static str),
    Invalid(String),
    Signature,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Missing => write!(f, "Unauthorized: a JWT is needed"),
            Refusal::Malformed(why) => write!(f, "MalformedJWT: {why}"),
            Refusal::Invalid(why) => write!(f, "InvalidJWTToken: {why}"),
            Refusal::Signature => {
                write!(f, "JwtSignatureError: the signature is not by a key of this gateway")
            }
        }
    }
}

struct Key {
    kid: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

pub struct Keys {
    keys: Vec<Key>,
    /// Whether `kid` selects the key: not for a single secret, which has no name.
    by_name: bool,
    audience: Option<String>,
    roles: Vec<Arc<str>>,
    anonymous: bool,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Claims {
    exp: Option<f64>,
    role: Option<String>,
}

impl Keys {
    pub fn of_secret(secret: &str) -> Result<Self, String> {
        if secret.len() < 32 {
            return Err("the JWT secret is shorter than 32 bytes: anybody could guess it".into());
        }
        let key = DecodingKey::from_secret(secret.as_bytes());
        Ok(Self::new(vec![Key { kid: None, algorithm: Algorithm::HS256, key }], false))
    }

    pub fn of_set(text: &str) -> Result<Self, String> {
        let set: JwkSet = serde_json::from_str(text).map_err(|e| format!("no JSON Web Key Set: {e}"))?;
        let mut keys = Vec::new();
        for (number, jwk) in set.keys.iter().enumerate() {
            keys.push(Key::of(jwk).map_err(|why| format!("key {}: {why}", number + 1))?);
        }
        if keys.is_empty() {
            return Err("the JSON Web Key Set has no key".into());
        }
        for (n, key) in keys.iter().enumerate() {
            if key.kid.is_some() && keys[..n].iter().any(|other| other.kid == key.kid) {
                return Err(format!(
                    "two keys have the same kid, {}",
                    key.kid.as_deref().unwrap_or_default()
                ));
            }
        }
        Ok(Self::new(keys, true))
    }

    fn new(keys: Vec<Key>, by_name: bool) -> Self {
        Self { keys, by_name, audience: None, roles: vec!["authenticated".into()], anonymous: false }
    }

    pub fn requiring(mut self, audience: Option<String>, roles: &[String], anonymous: bool) -> Self {
        self.audience = audience;
        self.roles = roles.iter().map(|role| role.as_str().into()).collect();
        self.anonymous = anonymous;
        self
    }

    /// Whom a socket's token identifies. `made_up` is the user id of a socket that needs no token.
    pub fn identify(&self, token: Option<&str>, made_up: &str) -> Result<Identity, Refusal> {
        match token.filter(|token| is_jwt(token)) {
            Some(token) => self.verify(token),
            None if self.anonymous => Ok(Identity {
                role: self.roles[0].clone(),
                claims: serde_json::json!({ "sub": made_up, "role": &*self.roles[0], "is_anonymous": true })
                    .to_string()
                    .into(),
                expires: None,
            }),
            None => Err(Refusal::Missing),
        }
    }

    fn verify(&self, token: &str) -> Result<Identity, Refusal> {
        if token.len() > LONGEST {
            return Err(Refusal::Malformed("the token is longer than 16 kB"));
        }
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(_), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Refusal::Malformed("a JWT has three parts"));
        };
        let header: Header = decode(header).ok_or(Refusal::Malformed("the header is not as it should be"))?;
        if header.crit.is_some() {
            return Err(Refusal::Invalid("critical extensions (crit) are not supported".into()));
        }
        let key = self.key_for(&header)?;

        let mut validation = Validation::new(key.algorithm);
        validation.leeway = 0;
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp"]);
        match &self.audience {
            Some(audience) => {
                validation.set_audience(&[audience]);
                validation.set_required_spec_claims(&["exp", "aud"]);
            }
            None => validation.validate_aud = false,
        }
        use jsonwebtoken::errors::ErrorKind;
        jsonwebtoken::decode::<serde::de::IgnoredAny>(token, &key.key, &validation).map_err(|e| {
            match e.kind() {
                ErrorKind::InvalidSignature => Refusal::Signature,
                ErrorKind::ExpiredSignature => Refusal::Invalid("Token has expired".into()),
                ErrorKind::ImmatureSignature => Refusal::Invalid("Token is not valid yet (nbf)".into()),
                ErrorKind::InvalidAudience => Refusal::Invalid("aud is not the one of this gateway".into()),
                ErrorKind::MissingRequiredClaim(claim) => {
                    Refusal::Invalid(format!("Field `{claim}` is required in JWT"))
                }
                _ => Refusal::Malformed("the token is not as it should be"),
            }
        })?;

        let claims: Claims =
            decode(payload).ok_or(Refusal::Malformed("the claims are not as they should be"))?;
        let expires = claims
            .exp
            .and_then(|exp| Duration::try_from_secs_f64(exp).ok())
            .and_then(|exp| UNIX_EPOCH.checked_add(exp))
            .ok_or_else(|| Refusal::Invalid("Field `exp` is required in JWT".into()))?;
        if expires <= SystemTime::now() {
            return Err(Refusal::Invalid("Token has expired".into()));
        }
        let role = match &claims.role {
            None => self.roles[0].clone(),
            Some(named) => self.roles.iter().find(|role| &***role == named).cloned().ok_or_else(|| {
                Refusal::Invalid(format!("role {named:?} is not one that a token may name here"))
            })?,
        };
        let claims = URL_SAFE_NO_PAD
            .decode(payload)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or(Refusal::Malformed("the claims are not as they should be"))?;
        Ok(Identity { role, claims: claims.into(), expires: Some(expires) })
    }

    /// The key determines the algorithm; the header's `alg` must only match it.
    fn key_for(&self, header: &Header) -> Result<&Key, Refusal> {
        let algorithm = match header.alg.as_str() {
            "HS256" => Algorithm::HS256,
            "RS256" => Algorithm::RS256,
            "ES256" => Algorithm::ES256,
            other => {
                return Err(Refusal::Invalid(format!(
                    "alg {other:?} is not accepted: HS256, RS256, ES256 are"
                )));
            }
        };
        let mut fitting = self.keys.iter().filter(|key| key.algorithm == algorithm);
        if !self.by_name {
            return fitting.next().ok_or(Refusal::Signature);
        }
        match &header.kid {
            Some(kid) => fitting
                .find(|key| key.kid.as_ref() == Some(kid))
                .ok_or_else(|| Refusal::Invalid(format!("no {} key has the kid {kid:?}", header.alg))),
            None => match (fitting.next(), fitting.next()) {
                (Some(key), None) => Ok(key),
                (None, _) => Err(Refusal::Signature),
                (Some(_), Some(_)) => Err(Refusal::Invalid(format!(
                    "there are several {} keys, and the token has no kid",
                    header.alg
                ))),
            },
        }
    }
}

impl Key {
    fn of(jwk: &Jwk) -> Result<Self, String> {
        use jsonwebtoken::jwk::{EllipticCurve, KeyAlgorithm};
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::OctetKey(_) => Algorithm::HS256,
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => Algorithm::ES256,
            _ => return Err("keys are for HS256, RS256 or ES256".into()),
        };
        match (jwk.common.key_algorithm, algorithm) {
            (None, _)
            | (Some(KeyAlgorithm::HS256), Algorithm::HS256)
            | (Some(KeyAlgorithm::RS256), Algorithm::RS256)
            | (Some(KeyAlgorithm::ES256), Algorithm::ES256) => {}
            (Some(other), _) => return Err(format!("alg {other} is not accepted, or does not fit the key")),
        }
        let key = DecodingKey::from_jwk(jwk).map_err(|e| e.to_string())?;
        Ok(Self { kid: jwk.common.key_id.clone(), algorithm, key })
    }
}

/// Whether it looks like a JWT: an API key such as sb_publishable_… does not.
fn is_jwt(token: &str) -> bool {
    token.matches('.').count() == 2
}

fn decode<T: for<'a> Deserialize<'a>>(part: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
