//! Faults: leases end, rows stay locked; sessions, the worker and the server are killed.

use crate::acts::allow_refusal;
use crate::common::{Session, until};
use crate::follower::Follower;
use crate::op::{End, Place};
use crate::rights::{Written, key};
use crate::speaker::LOGINS;
use crate::world::{Case, Check};
use std::time::Duration;

/// An open transaction in which a user holds a lock on one of their own rows.
pub struct Lock {
    pub place: Place,
    session: Session,
    /// The transaction's change: the number of the write, and its audience.
    change: Option<(usize, Vec<String>)>,
}

impl Case<'_> {
    pub fn outstay(&mut self, place: Place, change: bool) -> Check {
        let number = self.new_number();
        let name = self.name(&place);
        self.say(
            place.who,
            &format!("select presence.upsert({name}, status => 'w{number}', ttl => '10 min')"),
        )?;
        self.observe();
        // Followers get their channel names before the row is locked.
        self.follow()?;
        self.take_lock(place, change)?;
        self.pass(true)
    }

    pub fn take_lock(&mut self, place: Place, change: bool) -> Check {
        let (number, at) = (self.new_number(), self.is_at(&place));
        let sql = if change {
            format!("select presence.upsert({}, status => 'w{number}')", self.name(&place))
        } else {
            format!("select from presence.member where {at} for update")
        };
        let mut session = self.world.cluster.user(LOGINS[place.who]);
        session.run(&self.begin(place.who));
        if let Err(refused) = session.try_run(&sql) {
            return allow_refusal(Err(refused));
        }
        let change = change.then(|| {
            let tokens = session.value(&format!("select to_json(audience) from presence.member where {at}"));
            (number, serde_json::from_str::<Vec<String>>(&tokens).expect("a list"))
        });
        self.model.said_before.insert(number, self.model.next());
        self.lock = Some(Lock { place, session, change });
        Ok(())
    }

    pub fn unlock(&mut self, end: End) -> Check {
        let Some(mut lock) = self.lock.take() else { return Ok(()) };
        match end {
            End::Commit => lock.session.run("commit"),
            End::RollBack => lock.session.run("rollback"),
            End::Kill => {
                let pid = lock.session.pid();
                self.world.end_session(pid);
            }
        }
        self.observe();
        if let (Some((number, audience)), End::Commit) = (lock.change, end) {
            // If the lease had already ended, the write was never observed: it is published, and ends in the same step.
            let (step, owner) = (self.model.next() - 1, lock.place.who);
            let key = key(&lock.place);
            let said = self.model.said_before[&number];
            let was =
                Written { key, owner, audience, began: step, ended: Some(step), said, last_word: false };
            self.model.writes.entry(number).or_insert(was);
        }
        if self.model.now().stale.is_empty() { Ok(()) } else { self.sweep() }
    }

    /// Lets enough time pass for short leases to end, or just for the next rotation.
    pub fn pass(&mut self, long: bool) -> Check {
        self.thaw();
        self.world.cluster.clock().pass(Duration::from_secs(if long { 20 * 60 } else { 6 }));
        let before = self.model.now().present.clone();
        self.observe();
        // A user whose member expired in this round may hear of others that expired in it.
        self.model.moments.last_mut().expect("it").present.extend(before);
        self.sweep()
    }

    pub fn kill_writer(&mut self, who: usize) -> Check {
        let pid = self.world.writers[who].pid();
        self.world.end_session(pid);
        self.world.writers[who] = self.world.cluster.user(LOGINS[who]);
        self.sweep()
    }

    pub fn kill_listener(&mut self, at: usize) -> Check {
        let world = &mut *self.world;
        let spy = at.checked_sub(world.followers.len());
        let ear = match spy {
            Some(spy) => &mut world.spies[spy],
            None => &mut world.followers[at].ear,
        };
        let pid = ear.session.pid();
        // Notifications that have already arrived are lost with the session.
        world.end_session(pid);
        if let Some(spy) = spy {
            world.spies[spy].reconnect(&world.cluster);
            return Ok(());
        }
        world.followers[at].reconnect(&world.cluster);
        self.follower(at, |follower, scene| if follower.is_asleep { Ok(()) } else { follower.start(scene) })
    }

    pub fn kill_asking(&mut self, at: usize) -> Check {
        if let Some(pid) = self.world.followers[at].lose_asking() {
            self.world.end_session(pid);
        }
        Ok(())
    }

    /// Turns doorbells on or off. This takes effect with the first session that has the setting, so one is opened.
    pub fn ring_only(&mut self, on: bool) {
        self.world.watcher.run(if on {
            "alter database app set presence.notify_payload = 'doorbell'"
        } else {
            "alter database app reset presence.notify_payload"
        });
        self.world.rings_only = on;
        drop(self.world.cluster.service());
    }

    /// Switches back to full notifications.
    pub fn tell_in_full(&mut self) {
        if !std::mem::take(&mut self.world.rings_only) {
            return;
        }
        self.ring_only(false);
        let mut listener = self.world.cluster.service();
        until("notifications are in full", || {
            // The names may be about to change, so ask for them each time.
            listener.listen("elsewhere");
            self.world.poke();
            listener.hear().iter().any(|event| event.is_of_member())
        });
    }

    pub fn kill_worker(&mut self) -> Check {
        let watcher = &mut self.world.watcher;
        let worker = watcher.number("select presence.worker_pid()");
        watcher.run(&format!("select pg_terminate_backend({worker})"));
        self.frozen = None;
        until("another worker", || {
            let pid = "select coalesce(presence.worker_pid(), 0)";
            ![worker, 0].contains(&self.world.watcher.number(pid))
        });
        Ok(())
    }

    pub fn restart(&mut self, clean: bool) -> Check {
        self.thaw();
        self.lock = None;
        self.world.cluster.stop(if clean { "fast" } else { "immediate" });
        self.world.cluster.start_again();
        self.world.connect();
        self.world.cluster.until_worker("app");
        if !clean {
            // All members are gone, and all channel names have changed.
            self.model.rotations.push((self.model.next(), None));
        }
        self.sweep()?;
        self.each_follower(|follower| !follower.is_asleep, Follower::start)
    }
}
