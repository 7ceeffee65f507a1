//! What the claims of a JWT say about a user. Only the requested keys are parsed, and values other than text are kept exactly
//! as written: a number keeps all its digits.

use serde_json::value::RawValue;
use std::collections::HashMap;

pub struct Claims {
    /// None if the bytes are not valid text.
    pub json: Option<String>,
}

/// What a claim says about the user.
pub enum Name {
    /// The claim is missing or null.
    Missing,
    /// It is an empty text, or one that PostgreSQL cannot hold, or the claims are not JSON.
    Nobody,
    Named(String),
}

impl Claims {
    pub fn sub(&self) -> Name {
        match self.whole() {
            Some(claims) => member(claims, "sub").map_or(Name::Missing, name),
            None if self.json.as_deref() == Some("") => Name::Missing,
            None => Name::Nobody,
        }
    }

    /// The names in the list at this path, whose steps are separated by dots.
    pub fn names(&self, path: &str) -> Vec<String> {
        let steps = path.split('.').filter(|step| !step.is_empty());
        let list = steps.fold(self.whole(), |at, step| at.and_then(|at| member(at, step)));
        let list: Vec<&RawValue> =
            list.and_then(|list| serde_json::from_str(list.get()).ok()).unwrap_or_default();
        list.into_iter()
            .filter_map(|one| match name(one) {
                Name::Named(name) => Some(name),
                Name::Missing | Name::Nobody => None,
            })
            .collect()
    }

    fn whole(&self) -> Option<&RawValue> {
        self.json.as_deref().and_then(|json| serde_json::from_str(json).ok())
    }
}

/// The last one of a repeated key, as in jsonb.
fn member<'a>(object: &'a RawValue, key: &str) -> Option<&'a RawValue> {
    let members: HashMap<String, &RawValue> = serde_json::from_str(object.get()).ok()?;
    members.get(key).copied()
}

fn name(value: &RawValue) -> Name {
    let json = value.get();
    match json.as_bytes().first() {
        Some(b'n') => Name::Missing,
        Some(b'"') => match serde_json::from_str::<String>(json) {
            Ok(text) if !text.is_empty() && !text.contains('\0') => Name::Named(text),
            _ => Name::Nobody,
        },
        _ => Name::Named(json.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Claims {
        Claims { json: Some(json.into()) }
    }

    fn sub(json: &str) -> Option<String> {
        match of(json).sub() {
            Name::Missing => None,
            Name::Nobody => Some("nobody".into()),
            Name::Named(name) => Some(name),
        }
    }

    #[test]
    fn a_sub_that_is_no_text_is_its_json() {
        for json in ["1", "1.0", "1e2", "-0", "36893488147419103233", "true", "[1, 2]", r#"{"a": 1.50}"#] {
            assert_eq!(sub(&format!(r#"{{"aud": "x", "sub": {json} }}"#)).as_deref(), Some(json));
        }
        assert_eq!(sub(r#"{"sub": "caf\u0065 \"x\""}"#).as_deref(), Some("cafe \"x\""));
    }

    #[test]
    fn some_subs_are_nobody() {
        for json in [r#""""#, r#""bob\u0000""#, r#""\u0000""#, r#""\ud800""#] {
            assert_eq!(sub(&format!(r#"{{"sub": {json}}}"#)).as_deref(), Some("nobody"), "{json}");
        }
        for claims in [r#"{"sub": "bob""#, r#"{"sub": 01}"#, "bob", "{}{}"] {
            assert_eq!(sub(claims).as_deref(), Some("nobody"), "{claims}");
        }
        for claims in ["", "{}", r#"{"sub": null}"#, "[]", "1"] {
            assert_eq!(sub(claims), None, "{claims}");
        }
    }

    #[test]
    fn the_last_of_a_repeated_key_counts_and_other_claims_do_not_matter() {
        assert_eq!(sub(r#"{"sub": "a", "sub": "b"}"#).as_deref(), Some("b"));
        assert_eq!(sub(r#"{"x": "\ud800", "y": 1e999999, "sub": "a"}"#).as_deref(), Some("a"));
    }

    #[test]
    fn teams_are_found_at_their_path() {
        let claims = of(r#"{"app": {"teams": ["red", 18446744073709551617, null, "x\u0000", 1.0, ""]}}"#);
        assert_eq!(claims.names("app.teams"), ["red", "18446744073709551617", "1.0"]);
        assert!(
            claims.names("app").is_empty() && claims.names("").is_empty() && claims.names("a.b").is_empty()
        );
        assert_eq!(of(r#"["red"]"#).names(""), ["red"]);
    }
}
