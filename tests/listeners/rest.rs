//! Once everything is published, every listener is up to date; and at rest every event is delivered in full.

use crate::follower::Follower;
use crate::op::{End, ROOMS, USERS};
use crate::rights::SERVICE;
use crate::world::{Case, Check};
use std::time::Duration;

impl Case<'_> {
    /// Publishes everything, and lets all followers act on it. Returns whether any was told to look or to listen again.
    pub fn follow(&mut self) -> Result<bool, String> {
        let mut was_called = false;
        self.thaw();
        for _ in 0..10 {
            self.world.watcher.flush();
            self.hear()?;
            if !self.world.followers.iter().any(Follower::has_news) {
                return Ok(was_called);
            }
            was_called |= self.world.followers.iter().any(Follower::is_called);
            self.each_follower(|_| true, Follower::follow)?;
        }
        Err("there is no end to what listeners have to do".into())
    }

    pub fn settle(&mut self) -> Check {
        self.observe();
        self.follow()?;
        if self.check().is_err() {
            // Names that changed during a LISTEN are announced again within a second.
            self.world.cluster.clock().pass(Duration::from_secs(1));
            self.world.poke();
            self.follow()?;
            self.check()?;
        }
        for ear in self.ears() {
            ear.forget();
        }
        self.settled = self.model.next() - 1;
        Ok(())
    }

    fn ears(&mut self) -> impl Iterator<Item = &mut crate::ear::Ear> {
        let world = &mut *self.world;
        world.spies.iter_mut().chain(world.followers.iter_mut().map(|follower| &mut follower.ear))
    }

    fn check(&mut self) -> Check {
        let (settled, is_exact) = (self.settled, self.world.is_exact);
        let world = &*self.world;
        for ear in world.spies.iter().chain(world.followers.iter().map(|follower| &follower.ear)) {
            ear.check(&self.model, settled, is_exact)?;
        }
        self.each_follower(|_| true, |follower, scene| follower.check(scene))
    }

    /// Rotations happen at most every five seconds, and are announced again five seconds later.
    fn pass_a_while(&mut self) -> Result<bool, String> {
        self.world.cluster.clock().pass(Duration::from_secs(6));
        self.sweep()?;
        self.observe();
        self.follow()
    }

    /// Ends a case. Nothing is left to rotate, so every listener that may see a member gets its events in full.
    pub fn come_to_rest(&mut self) -> Check {
        self.thaw();
        self.act(&crate::op::Op::Unlock(End::Commit))?;
        self.tell_in_full();
        self.observe();
        self.settle()?;
        let mut turns = 0;
        while self.pass_a_while()? {
            turns += 1;
            if turns > 6 {
                return Err("channels do not come to rest".into());
            }
        }
        self.settle()?;
        (0..ROOMS).for_each(|room| self.chat(room));
        self.observe();
        self.world.watcher.flush();
        self.hear()?;
        self.all_were_told()?;
        self.settle()
    }

    fn all_were_told(&mut self) -> Check {
        let (model, team) = (&self.model, self.team);
        for follower in self.world.followers.iter().filter(|follower| !follower.is_idle()) {
            let (user, room) = (follower.kind.user, follower.kind.room);
            if model.by_room_only && room.is_none() && user != SERVICE {
                continue;
            }
            let grant = follower.grant(team, 0);
            for (key, number) in &model.now().rows {
                // A member shared with the members of another room has no channel for them in this one.
                let mut written = model.writes[number].clone();
                written.audience.retain(|token| {
                    room.is_none()
                        || !token.starts_with("room:")
                        || *token == format!("room:{}", model.rooms[key.0])
                });
                let shall_hear = room.is_none_or(|room| room == key.0)
                    && model.now().shows(&grant, &written, &model.rooms);
                if shall_hear && !follower.ear.told.contains(&(*number, false)) {
                    let user = USERS.get(user).unwrap_or(&"a service");
                    return Err(format!("at rest {user}, room {room:?}, is not told in full of {written:?}"));
                }
            }
        }
        Ok(())
    }
}
