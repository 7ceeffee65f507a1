//! How names reach a session that should not keep them for long: pooled, borrowed, overheard, learnt long ago.

use crate::op::{After, MATE, RITA, USERS, Way};
use crate::rights::Grant;
use crate::speaker::{LOGINS, claims, listen_to, names, prelude, role_of, room_or_null, transact};
use crate::world::{BECOMES, Case, Check, MALLORY, TAKES_ROLES};

impl Case<'_> {
    pub fn grant(&self, user: usize, role: usize, room: Option<usize>, is_fresh: bool) -> Grant {
        Grant { user, role, room, team: self.team && user == MATE, since: self.model.next(), is_fresh }
    }

    pub fn spy(&mut self, spy: usize, who: usize, room: Option<usize>, way: Way, after: After) -> Check {
        // A LISTEN that commits while names change is told of it, but not at once.
        if self.frozen.is_none() {
            self.world.watcher.flush();
        }
        let step = self.model.next();
        let named = room_or_null(&self.model.rooms, room);
        // This spy takes only the roles of users with their own login.
        let who = if spy == TAKES_ROLES { who.min(RITA) } else { who };
        let role = if spy > TAKES_ROLES { MATE } else { who };
        let grant = self.grant(who, role, room, true);
        let (team, own) = (self.team, format!("begin; {}", prelude(who, self.team)));
        let world = &mut *self.world;
        let ear = &mut world.spies[spy];
        let session = &mut ear.session;
        let mut given = Vec::new();
        let answer = match spy {
            MALLORY => {
                let writer = &mut world.writers[who];
                transact(writer, &own, Way::RollBack, |writer| {
                    given = names(writer, "channels", &named)?;
                    Ok(())
                })
                .and_then(|()| {
                    transact(session, "begin;", way, |session| session.try_run(&listen_to(&given)))
                })
            }
            BECOMES | TAKES_ROLES => {
                session.run("reset session authorization; reset role; reset request.jwt.claims");
                session.run(&match (spy, who) {
                    (BECOMES, MATE) => claims(who, team).replace("local ", ""),
                    (BECOMES, _) => format!("set session authorization {}", LOGINS[who]),
                    _ => format!("set role {}", role_of(who)),
                });
                transact(session, "begin;", way, |session| {
                    given = names(session, "listen", &named)?;
                    Ok(())
                })
            }
            _ => {
                let begin = format!("begin; {}", claims(who, team && who == MATE));
                transact(session, &begin, way, |session| {
                    given = names(session, "channels", &named)?;
                    session.try_run(&listen_to(&given))
                })
            }
        };
        let may = self.access[role];
        match answer {
            Ok(()) if !may => return Err(format!("{} was given names", USERS[who])),
            Err(failure) if may || failure.code != "42501" => return Err(format!("{failure:?}")),
            _ => {}
        }
        if matches!(spy, BECOMES | TAKES_ROLES) {
            ear.listens_as(who);
        }
        if !given.is_empty() && matches!(way, Way::Commit | Way::Release) {
            ear.has(&given, &grant);
        }
        self.learnt.push((given, grant.clone()));
        let ear = &mut self.world.spies[spy];
        if after == After::Unlisten && may && matches!(spy, BECOMES | TAKES_ROLES) {
            ear.session.run(&format!("select presence.unlisten({named})"));
            ear.loses(&grant, step);
        }
        ear.end(after, step);
        Ok(())
    }

    /// Mallory listens to all names that this user was ever given.
    pub fn learn(&mut self, who: usize) -> Check {
        let ear = &mut self.world.spies[MALLORY];
        for (names, grant) in self.learnt.iter().filter(|(_, grant)| grant.user == who) {
            ear.session.run(&listen_to(names));
            ear.has(names, &Grant { is_fresh: false, ..grant.clone() });
        }
        Ok(())
    }
}
