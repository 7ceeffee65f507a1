//! How each user connects to the database: with their own login, or with claims over a shared one.

use crate::common::{Failure, Session};
use crate::op::{MATE, USERS, Way};

/// The login of each user, and last that of a service role.
pub const LOGINS: [&str; USERS.len() + 1] = ["alice", "bob", "carol", "rita", "authenticator", "postgres"];

/// The role that decides whether the user may read.
pub fn role_of(user: usize) -> &'static str {
    if user == MATE { "authenticated" } else { LOGINS[user] }
}

/// What a session of a shared login runs first in a transaction.
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

/// Runs the body in a transaction that ends this way. If the body fails, rolls back and returns the failure.
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

/// The names that the session's user may listen to; with `presence.listen` the session also listens to them.
pub fn names(session: &mut Session, function: &str, room: &str) -> Result<Vec<String>, Failure> {
    let rows = session.try_rows(&format!("select presence.{function}({room})"))?;
    Ok(rows.into_iter().map(|mut row| row.remove(0)).collect())
}

/// LISTEN as a driver sends it for names that it has.
pub fn listen_to(names: &[String]) -> String {
    names.iter().map(|name| format!("listen {name};")).collect()
}
