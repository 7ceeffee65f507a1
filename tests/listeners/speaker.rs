//! How each user speaks to the database: with a login of their own, or over one that many share, with claims.

use crate::common::{Failure, Session};
use crate::op::{MATE, USERS, Way};

/// The login of each user, a service role as the last.
pub const LOGINS: [&str; USERS.len() + 1] = ["alice", "bob", "carol", "rita", "authenticator", "postgres"];

/// The role that decides whether the user may read.
pub fn role_of(user: usize) -> &'static str {
    if user == MATE { "authenticated" } else { LOGINS[user] }
}

/// What a shared login says before anything else in a transaction.
pub fn claims(user: usize, team: bool) -> String {
    let teams = if team { r#", "app_metadata": {"teams": ["blue"]}"# } else { "" };
    format!(
        "set local role authenticated; set local request.jwt.claims = '{{\"sub\": \"{}\"{teams}}}';",
        USERS[user]
    )
}

pub fn prelude(user: usize, team: bool) -> String {
    if user == MATE { claims(user, team) } else { String::new() }
}

pub fn room_or_null(rooms: &[String; 2], room: Option<usize>) -> String {
    room.map_or("null".into(), |room| format!("'{}'", rooms[room]))
}

/// Run it in a transaction that ends like this. What cannot be is rolled back, and is the failure.
pub fn transact(
    session: &mut Session,
    begin: &str,
    way: Way,
    mut body: impl FnMut(&mut Session) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let savepoint = if matches!(way, Way::Release | Way::RollBackTo) { "savepoint s;" } else { "" };
    session.run(&format!("{begin} {savepoint}"));
    if let Err(failure) = body(session) {
        session.run("rollback");
        return Err(failure);
    }
    session.try_run(match way {
        Way::Commit | Way::TakeBack => "commit",
        Way::Release => "release s; commit",
        Way::RollBack => "rollback",
        Way::RollBackTo => "rollback to s; commit",
    })
}

/// The names that whoever speaks here may listen to; by `presence.listen` it does.
pub fn names(session: &mut Session, function: &str, room: &str) -> Result<Vec<String>, Failure> {
    let rows = session.try_rows(&format!("select presence.{function}({room})"))?;
    Ok(rows.into_iter().map(|mut row| row.remove(0)).collect())
}

/// As a driver listens to names that it has.
pub fn listen_to(names: &[String]) -> String {
    names.iter().map(|name| format!("listen {name};")).collect()
}
