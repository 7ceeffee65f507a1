//! Audiences: the fewest tokens that reach one, and which audience covers another.

use super::channel::own_token;

/// The smallest set of tokens that reaches an audience.
pub fn fewest(audience: &[Vec<u8>]) -> Vec<Vec<u8>> {
    if audience.iter().any(|token| token == b"any") {
        return vec![b"any".to_vec()];
    }
    let is_needed = |token: &&Vec<u8>| *token == b"users" || !covers_with_users(audience, token);
    audience.iter().filter(is_needed).cloned().collect()
}

/// The smallest set of tokens that reaches an audience and the owner.
pub fn reach(audience: &[Vec<u8>], owner: &[u8]) -> Vec<Vec<u8>> {
    let mut reached = fewest(audience);
    let owner = own_token(owner);
    if !covered(&owner, audience) {
        reached.push(owner);
    }
    reached
}

/// Everybody with a user, team or room token is signed in.
fn covers_with_users(audience: &[Vec<u8>], token: &[u8]) -> bool {
    audience.iter().any(|other| other == b"users") && !token.starts_with(b"role:") && token != b"any"
}

/// Whether everybody with this token sees what the audience sees.
pub fn covered(token: &[u8], audience: &[Vec<u8>]) -> bool {
    audience.iter().any(|other| other == b"any" || other == token) || covers_with_users(audience, token)
}

/// Prefix of a token in the log line of an update: its holders get an `enter` of their own instead.
const GAINED: u8 = b'+';

/// The log's form of a changed audience: for whom the line is, and who else sees the member from then on.
pub fn with_gained(kept: Vec<Vec<u8>>, gained: &[Vec<u8>]) -> Vec<Vec<u8>> {
    kept.into_iter().chain(gained.iter().map(|token| [&[GAINED], &token[..]].concat())).collect()
}

/// Everybody who sees the member, from an audience in the form of `with_gained`; None if it has no prefixes.
pub fn whole(logged: &[&[u8]]) -> Option<Vec<Vec<u8>>> {
    logged.last().filter(|last| last.first() == Some(&GAINED))?;
    let plain = |token: &&[u8]| token.strip_prefix(&[GAINED]).unwrap_or(token).to_vec();
    let mut tokens: Vec<_> = logged.iter().map(plain).collect();
    tokens.sort();
    Some(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(tokens: &[&str]) -> Vec<Vec<u8>> {
        tokens.iter().map(|token| token.as_bytes().to_vec()).collect()
    }

    #[test]
    fn any_reaches_everybody_alone() {
        assert_eq!(reach(&list(&["any", "user:b", "users"]), b"a"), list(&["any"]));
    }

    #[test]
    fn users_leave_only_roles_to_reach() {
        assert_eq!(reach(&list(&["role:guest", "team:x", "users"]), b"a"), list(&["role:guest", "users"]));
    }

    #[test]
    fn the_owner_is_always_reached() {
        assert_eq!(reach(&[], b"a"), list(&["user:a"]));
        assert_eq!(reach(&list(&["room:lobby", "user:b"]), b"a"), list(&["room:lobby", "user:b", "user:a"]));
    }

    #[test]
    fn the_log_tells_the_whole_audience_of_a_change() {
        let logged = with_gained(list(&["team:x"]), &list(&["role:b", "users"]));
        assert_eq!(logged, list(&["team:x", "+role:b", "+users"]));
        let logged: Vec<&[u8]> = logged.iter().map(Vec::as_slice).collect();
        assert_eq!(whole(&logged), Some(list(&["role:b", "team:x", "users"])));
        assert_eq!(whole(&[b"team:x"]), None);
        assert_eq!(whole(&[]), None);
    }

    #[test]
    fn covering() {
        assert!(covered(b"team:x", &list(&["users"])));
        assert!(!covered(b"role:x", &list(&["users"])));
        assert!(!covered(b"any", &list(&["users"])));
        assert!(covered(b"role:x", &list(&["any"])));
        assert!(covered(b"team:x", &list(&["team:x"])));
        assert!(!covered(b"team:x", &list(&["team:y"])));
    }
}
