//! Valid tokens, and the ways in which a token can be invalid.

use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{EncodingKey, crypto};

use super::*;

// Keys that only these tests use.
const RSA: &str = "MIIEpAIBAAKCAQEAkV1w2oW+oD/Ef0ZK/Rru6QrnQl/8aiIPmj7J7YwSI5atNrgWWKByYkexUwmdWtOzaiFMMHuzMZdCFXdP\
     QCrLX0RrFyVJP3T8TlmDZrhE+vHBIiJGkScwsVaSaK2PZG5Zz4rjQ+O0c2ivyghKM4VT4eT+ak4cAg03H8ThEkf/BQtfvAq3\
     WHSOKU+j36SJhG/faWMQemrHD/AwPdpZjrWGQt41a4axCJhSWl0XG1CoHEVsgGmvn66eD+VWJ7jQ7jNMFw8aWyIxeY6SCTkO\
     fK8iSzrX5AbVhMsszEysULJdU7qoebN8PU5n9mE0cr9XX2c3zSPQ8X5JeprvgKwbttgIOwIDAQABAoIBAC3M/CbN5w8EqHvV\
     gQEYgFgK6GyAY75o9vOJfwQKkxiFfBP2kovgGcoffp6ENAEPHMN+tEu+XeptFxQ+YEj+cs+Udg134QlOacSh7YXq30kV7N09\
     YXCQoYXumfjDXp+tKTz8LLkSQKPwQxrr27058AEHrqV98NMwqMKovKWO66oBvrhVq8+wvYk01ZO7dpyUH5ugdoYzIj+7q6K0\
     avb5QxJb3qH9tdBWh0P8841mm+LNAdW1vhsvjXPLphdOjQ+Ct+plyZblD+FtEVDgWMdVWTCobJWbOWCrvcT+flOgPuGMXzfh\
     q/cbn5iud1QxQ+J8QaObr+erE30rxuSFw9WnQxECgYEAykQ+83yHXImY1txMgXkI2WBpwzPkqA27kAK+8cMsukxttM0rZr5M\
     MNlFu0b0kjDseRPIloZ7x5BhJz+a70jggKS4IEpcBbLAShrK1rWAtIMtd7x2t8Ksjq/JlAlQcK9OwSXORMhKAuoMzAI/6DP0\
     0obPm4hdXrRPnMocotYoiskCgYEAt/tuCWStvVi4Y/KuTX7zxbTd818gC5udmuIBEH9/GeY2K96iZ+IHTcUgiehLD15GgfOl\
     Oo+J76k+6ARpps455RVpClj+uDyFxSLqBonS1y/DhQAHcbqqx87f3OFHyKRU4k2yqSWNlDFcYSqOFl49C/nOazMpYfzdlx6x\
     Y0nBOOMCgYEAka0fbbxVvXc4hh86VtG2ZuFCqx2X5NWnLexcW8GHWFItfVd7l88dDt2dlGlhQl1MI1P1Vzxar/uzjVIJI6fo\
     UZ7RIiiMKGp6haTQTF2C6f/EYoVxN55VK5s94onmzpHkdcXlzrI2Y+zv9Ir2PiYVgP8pTUqkfM3+vNzwTPNTVckCgYA9j7L1\
     D6wW5F3mi6iJI8aby/ZMXfMSD0MANUlX5OF5oA9WRIuhKP96pVBK9OBQxyHej9EktCzadY4oAnn7p5u1rKFWJgstSIsWOKWI\
     BIv5FvFcSnMzOdu1OeKsPPFRELOaeZcjg/5IrO+VT7D1iRjyLedE9XyOXhcjXtDKQT6XMwKBgQCJhKhmpoUAOBf0cEgYAIgU\
     QKacsNkBio9zExOlPG+8vaxbgvscrkDXpHdqaVULjsK9exWH/zLrZKgN1M1Au2UdGJgGmgas6dFgfs0FuX94PiS/QfMqvp1s\
     Fx8Slnvvsr8SNvodiJ3+h+7Fo/rAyetOGtE+ShWbiQ/YnuGcNTqN9w==";
const RSA_N: &str = "kV1w2oW-oD_Ef0ZK_Rru6QrnQl_8aiIPmj7J7YwSI5atNrgWWKByYkexUwmdWtOzaiFMMHuzMZdCFXdPQCrLX0RrFyVJP3T8\
     TlmDZrhE-vHBIiJGkScwsVaSaK2PZG5Zz4rjQ-O0c2ivyghKM4VT4eT-ak4cAg03H8ThEkf_BQtfvAq3WHSOKU-j36SJhG_f\
     aWMQemrHD_AwPdpZjrWGQt41a4axCJhSWl0XG1CoHEVsgGmvn66eD-VWJ7jQ7jNMFw8aWyIxeY6SCTkOfK8iSzrX5AbVhMss\
     zEysULJdU7qoebN8PU5n9mE0cr9XX2c3zSPQ8X5JeprvgKwbttgIOw";
const EC: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgQr3x8bnYoBcONqPhPPv64LApzoxn0lcgUtMfvdw8LoihRANC\
     AATQNUF1LkE0XRlAxn1HeECJ39k6TLzm3r5uqsVHviyarIn8spek0TEIJDmFoE4rCHErt6kmpPECbqO4zuNX0frT";
const EC_X: &str = "0DVBdS5BNF0ZQMZ9R3hAid_ZOky85t6-bqrFR74smqw";
const EC_Y: &str = "ifyyl6TRMQgkOYWgTisIcSu3qSak8QJuo7jO41fR-tM";
const SECRET: &str = "a secret of these tests that is long enough";

enum Signer {
    Secret(&'static [u8]),
    Rsa,
    Ec,
}

/// A token with exactly this header and these claims.
fn token(signer: Signer, header: &str, claims: &str) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let der = |text: &str| STANDARD.decode(text).unwrap();
    let (key, algorithm) = match signer {
        Signer::Secret(secret) => (EncodingKey::from_secret(secret), Algorithm::HS256),
        Signer::Rsa => (EncodingKey::from_rsa_der(&der(RSA)), Algorithm::RS256),
        Signer::Ec => (EncodingKey::from_ec_der(&der(EC)), Algorithm::ES256),
    };
    let signature = crypto::sign(message.as_bytes(), &key, algorithm).unwrap();
    format!("{message}.{signature}")
}

fn by_secret(header: &str, claims: &str) -> String {
    token(Signer::Secret(SECRET.as_bytes()), header, claims)
}

fn in_an_hour() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 3600
}

fn claims(more: &str) -> String {
    format!(r#"{{"sub":"alice","exp":{}{more}}}"#, in_an_hour())
}

fn keys() -> Keys {
    Keys::of_secret(SECRET).unwrap().requiring(None, &["authenticated".into(), "anon".into()], false)
}

fn key_set() -> Keys {
    let octets = URL_SAFE_NO_PAD.encode(SECRET);
    let set = format!(
        r#"{{"keys":[
            {{"kty":"RSA","kid":"r","alg":"RS256","n":"{RSA_N}","e":"AQAB"}},
            {{"kty":"EC","kid":"e","crv":"P-256","x":"{EC_X}","y":"{EC_Y}"}},
            {{"kty":"oct","kid":"h1","alg":"HS256","k":"{octets}"}},
            {{"kty":"oct","kid":"h2","alg":"HS256","k":"{octets}"}}]}}"#
    );
    Keys::of_set(&set).unwrap()
}

fn is_invalid(keys: &Keys, token: &str) -> bool {
    matches!(keys.identify(Some(token), "x"), Err(Refusal::Invalid(_)))
}

const HS256: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

#[test]
fn a_good_token_is_its_claims_to_the_letter() {
    let claims = claims(r#","n":1.50e3,"role":"anon","aud":["authenticated"]"#);
    let identity = keys().identify(Some(&by_secret(HS256, &claims)), "x").unwrap();
    assert_eq!((&*identity.claims, &*identity.role), (claims.as_str(), "anon"));
    assert!(!identity.is_over() && identity.time_left() > Some(Duration::from_secs(3590)));
    assert!(!format!("{identity:?}").contains("alice"));
}

#[test]
fn every_kind_of_key_works_and_only_by_its_name() {
    let keys = key_set();
    for (signer, alg, kid) in [(Signer::Rsa, "RS256", "r"), (Signer::Ec, "ES256", "e")] {
        let good = token(signer, &format!(r#"{{"alg":"{alg}","kid":"{kid}"}}"#), &claims(""));
        assert!(keys.identify(Some(&good), "x").is_ok(), "{alg}");
    }
    for (header, good) in [
        (r#"{"alg":"HS256","kid":"h2"}"#, true),
        (r#"{"alg":"HS256","kid":"h3"}"#, false),
        (r#"{"alg":"HS256","kid":"r"}"#, false),
        (r#"{"alg":"HS256"}"#, false), // two keys fit
    ] {
        assert_eq!(!is_invalid(&keys, &by_secret(header, &claims(""))), good, "{header}");
    }
    let unnamed = token(Signer::Rsa, r#"{"alg":"RS256"}"#, &claims(""));
    assert!(keys.identify(Some(&unnamed), "x").is_ok());
    let of_another = token(Signer::Rsa, r#"{"alg":"RS256","kid":"e"}"#, &claims(""));
    assert!(is_invalid(&keys, &of_another));
}

#[test]
fn the_key_fixes_the_algorithm() {
    // The public key used as an HMAC secret: the classic algorithm confusion attack.
    let modulus: &'static [u8] = RSA_N.as_bytes();
    let confused = token(Signer::Secret(modulus), r#"{"alg":"HS256","kid":"r"}"#, &claims(""));
    assert!(is_invalid(&key_set(), &confused));
    let renamed = token(Signer::Secret(SECRET.as_bytes()), r#"{"alg":"RS256","kid":"r"}"#, &claims(""));
    assert_eq!(key_set().identify(Some(&renamed), "x"), Err(Refusal::Signature));
    for alg in ["none", "None", "HS384", "PS256", "EdDSA", ""] {
        assert!(is_invalid(&keys(), &by_secret(&format!(r#"{{"alg":"{alg}"}}"#), &claims(""))), "{alg}");
    }
    let unsigned =
        format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), URL_SAFE_NO_PAD.encode(claims("")));
    assert!(is_invalid(&keys(), &unsigned));
}

#[test]
fn forged_and_cut_tokens_are_refused() {
    let foreign = token(Signer::Secret(b"another secret, of somebody who forges"), HS256, &claims(""));
    assert_eq!(keys().identify(Some(&foreign), "x"), Err(Refusal::Signature));
    let good = by_secret(HS256, &claims(""));
    let parts: Vec<_> = good.split('.').collect();
    let other = URL_SAFE_NO_PAD.encode(claims(r#","role":"anon""#));
    assert_eq!(
        keys().identify(Some(&format!("{}.{other}.{}", parts[0], parts[2])), "x"),
        Err(Refusal::Signature)
    );
    for cut in [&good[..good.len() - 4], "..", "a.b.c"] {
        assert!(keys().identify(Some(cut), "x").is_err(), "{cut}");
    }
    assert!(matches!(
        keys().identify(Some(&format!("{good}{}", "A".repeat(LONGEST))), "x"),
        Err(Refusal::Malformed(_))
    ));
}

#[test]
fn time_and_roles_and_extensions_count() {
    let now = in_an_hour() - 3600;
    for bad in [
        r#"{"sub":"alice"}"#.to_owned(),
        format!(r#"{{"sub":"alice","exp":{}}}"#, now - 1),
        format!(r#"{{"sub":"alice","exp":{now}}}"#),
        r#"{"sub":"alice","exp":"soon"}"#.to_owned(),
        r#"{"sub":"alice","exp":1e300}"#.to_owned(),
        r#"{"sub":"alice","exp":-1}"#.to_owned(),
        claims(&format!(r#","nbf":{}"#, now + 60)),
        claims(r#","role":"service_role""#),
        claims(r#","role":"""#),
        claims(r#","role":7"#),
        "[]".to_owned(),
        "{".to_owned(),
    ] {
        assert!(keys().identify(Some(&by_secret(HS256, &bad)), "x").is_err(), "{bad}");
    }
    assert!(is_invalid(&keys(), &by_secret(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, &claims(""))));
    assert!(is_invalid(&keys(), &by_secret(r#"{"alg":"HS256","crit":[]}"#, &claims(""))));
    let strict =
        Keys::of_secret(SECRET).unwrap().requiring(Some("app".into()), &["authenticated".into()], false);
    assert!(strict.identify(Some(&by_secret(HS256, &claims(r#","aud":"app""#))), "x").is_ok());
    assert!(is_invalid(&strict, &by_secret(HS256, &claims(r#","aud":"other""#))));
    assert!(is_invalid(&strict, &by_secret(HS256, &claims(""))));
}

#[test]
fn only_who_has_no_token_is_anonymous() {
    assert_eq!(keys().identify(None, "x"), Err(Refusal::Missing));
    assert_eq!(keys().identify(Some("sb_publishable_1"), "x"), Err(Refusal::Missing));
    let open = Keys::of_secret(SECRET).unwrap().requiring(None, &["authenticated".into()], true);
    for token in [None, Some("sb_publishable_1"), Some("")] {
        let identity = open.identify(token, "made-up").unwrap();
        assert!(identity.claims.contains(r#""sub":"made-up""#) && identity.expires.is_none());
    }
    let foreign = token(Signer::Secret(b"another secret, of somebody who forges"), HS256, &claims(""));
    assert_eq!(open.identify(Some(&foreign), "x"), Err(Refusal::Signature));
}

#[test]
fn bad_keys_are_refused_at_start() {
    assert!(Keys::of_secret("short").is_err());
    for set in [
        "{}",
        r#"{"keys":[]}"#,
        r#"{"keys":[{"kty":"oct","alg":"HS512","k":"YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFh"}]}"#,
        r#"{"keys":[{"kty":"EC","crv":"P-384","x":"AA","y":"AA"}]}"#,
        r#"{"keys":[{"kty":"oct","kid":"a","k":"YWFh"},{"kty":"oct","kid":"a","k":"YWFi"}]}"#,
    ] {
        assert!(Keys::of_set(set).is_err(), "{set}");
    }
}
