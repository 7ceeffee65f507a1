//! Executes each step, on the server and for the listeners.

use crate::common::Failure;
use crate::follower::{Follower, Pace};
use crate::op::{CONNECTION_IDS, MATE, Op, Place, RITA, Removal, Right, USERS, Way};
use crate::rights::{Key, Written, audience, key};
use crate::speaker::{prelude, role_of, room_or_null, transact};
use crate::world::{Case, Check};

/// More events than the buffer holds: none of the transaction's events is published, and every client must list again.
const TOO_MANY: &str = "do $$ begin
        for n in 1 .. 3 loop
            perform presence.upsert('junk', jsonb_build_object('x', repeat('y', 40000), 'n', n), audience => '{}');
        end loop;
        perform presence.delete('junk');
    end $$;";

fn lost(is_lost: bool) -> &'static str {
    if is_lost { TOO_MANY } else { "" }
}

/// Accepts success or a refusal (42501): no right to read or write, another user's member, or a ban.
pub fn allow_refusal(answer: Result<(), Failure>) -> Check {
    match answer {
        Err(failure) if failure.code != "42501" => Err(format!("{failure:?}")),
        _ => Ok(()),
    }
}

impl Case<'_> {
    pub fn act(&mut self, op: &Op) -> Check {
        match *op {
            Op::Write(place, writing) => self.write(place, writing),
            Op::Update(place, tokens) if !self.is_locked(&place) => {
                let number = self.new_number();
                let body = format!(
                    "select presence.update({}, status => 'w{number}', audience => {})",
                    self.name(&place),
                    self.tokens(&place, tokens)
                );
                self.say(place.who, &body)
            }
            Op::Leave { place, all, is_lost, by_sql } if self.lock.is_none() => {
                let Place { who, room, connection } = place;
                let (user, room) = (USERS[who], &self.model.rooms[room]);
                let id = CONNECTION_IDS[connection];
                let body = match (by_sql, all) {
                    (true, true) => {
                        format!("delete from presence.member where room = '{room}' and member_id = '{user}'")
                    }
                    (true, false) => format!("delete from presence.member where {}", self.is_at(&place)),
                    (false, true) => format!("select presence.delete('{room}', connection_id => null)"),
                    (false, false) => format!("select presence.delete('{room}', connection_id => '{id}')"),
                };
                self.say(who, &format!("{body}; {}", lost(is_lost)))
            }
            Op::SignOut { who, is_lost } if self.lock.is_none() => {
                self.say(who, &format!("select presence.delete_all(); {}", lost(is_lost)))
            }
            Op::Remove(place, removal) if self.lock.is_none() => {
                let (user, room) = (USERS[place.who], &self.model.rooms[place.room]);
                self.world.watcher.run(&match removal {
                    Removal::Member => format!("select presence.delete('{room}', '{user}', null)"),
                    Removal::Room => format!("select presence.delete_room('{room}')"),
                    Removal::User => format!("select presence.forget('{user}')"),
                });
                Ok(())
            }
            Op::Give { place, to } if self.lock.is_none() => {
                let (number, user, to) = (self.new_number(), USERS[place.who], USERS[to]);
                self.world.watcher.run(&format!(
                    "select presence.upsert({}, member_id => '{user}', user_id => '{to}', status => 'w{number}')",
                    self.name(&place)
                ));
                Ok(())
            }
            Op::Lock { place, change } if self.lock.is_none() => self.take_lock(place, change),
            Op::Unlock(end) => self.unlock(end),
            Op::Outstay { place, change } if self.lock.is_none() => self.outstay(place, change),
            Op::Chat { room } => {
                self.chat(room);
                Ok(())
            }
            Op::Pass { long } => self.pass(long),
            Op::Revoke(who, right) => {
                let role = role_of(who);
                self.world.watcher.run(&match right {
                    Right::All => format!("select presence.revoke_access('{role}')"),
                    Right::Members => format!("revoke select on presence.member from {role}"),
                    Right::Schema => format!("revoke usage on schema presence from {role}"),
                });
                self.access[who] = false;
                Ok(())
            }
            Op::Grant(who) => {
                self.world.watcher.run(&format!("select presence.grant_access('{}')", role_of(who)));
                self.access[who] = true;
                self.observe();
                self.each_follower(
                    |follower| follower.kind.user == who && follower.is_refused && !follower.is_asleep,
                    Follower::start,
                )
            }
            Op::Role { on, inherit } => {
                self.world.watcher.run(match (inherit, on) {
                    (true, true) => "alter role rita inherit",
                    (true, false) => "alter role rita noinherit",
                    (false, true) => "grant red to rita",
                    (false, false) => "revoke red from rita",
                });
                let before = self.red;
                self.red = self.world.watcher.is("select pg_has_role('rita', 'red', 'usage')");
                self.observe();
                let gains = self.red && !before;
                self.each_follower(
                    |follower| follower.kind.user == RITA && gains && !follower.is_asleep,
                    Follower::start,
                )
            }
            Op::Team { on } => {
                let changes = std::mem::replace(&mut self.team, on) != on;
                self.each_follower(
                    |follower| follower.kind.user == MATE && changes && !follower.is_asleep,
                    Follower::start_anew,
                )
            }
            Op::Rotate { room, is_lost } => {
                let named = room_or_null(&self.model.rooms, room);
                self.world.watcher.run(&format!(
                    "begin; select presence.rotate_channels({named}); {} commit",
                    lost(is_lost)
                ));
                self.model.rotations.push((self.model.next(), room));
                Ok(())
            }
            Op::SetRoom { room, audience: tokens } => {
                let number = self.new_number();
                let tokens = audience(tokens, room, &self.model.rooms);
                let name = &self.model.rooms[room];
                self.world.watcher.run(&format!(
                    "select presence.set_room('{name}', '{{\"w\": \"w{number}\"}}', audience => {})",
                    list(&tokens)
                ));
                let key = (room, String::new(), String::new());
                self.note_setting(number, key, tokens);
                Ok(())
            }
            Op::Ban { place, on } if self.world.by_room_only && self.lock.is_none() => {
                let (user, room) = (USERS[place.who], &self.model.rooms[place.room]);
                self.world.watcher.run(&if on {
                    format!(
                        "begin; select presence.delete('{room}', '{user}', null);
                         insert into public.banned values ('{user}', '{room}'); commit"
                    )
                } else {
                    format!("delete from public.banned where who = '{user}' and room = '{room}'")
                });
                Ok(())
            }
            Op::Hear { spy, who, room, way, after } => self.spy(spy, who, room, way, after),
            Op::Learn { who } => self.learn(who),
            Op::Sleep(who) => self
                .each_follower(|follower| who.is_none_or(|who| follower.kind.user == who), Follower::sleep),
            Op::Wake(who) => self
                .each_follower(|follower| follower.kind.user == who && follower.is_asleep, Follower::start),
            Op::Silence { spy, after } => {
                let step = self.model.next();
                self.world.spies[spy].end(after, step);
                Ok(())
            }
            Op::KillWriter(who) => self.kill_writer(who),
            Op::KillListener(at) => self.kill_listener(at),
            Op::KillAsking(at) => self.kill_asking(at),
            Op::KillWorker => self.kill_worker(),
            Op::Turn { at, turns } => self.turn(at, turns),
            Op::Doorbell { on } => {
                self.ring_only(on);
                Ok(())
            }
            Op::Crowd { who, on } => self.crowd(who, on),
            Op::Freeze => {
                if self.frozen.is_none() {
                    self.frozen = Some(self.world.cluster.freeze_worker());
                }
                Ok(())
            }
            Op::Thaw => {
                self.thaw();
                Ok(())
            }
            Op::Restart { clean } => self.restart(clean),
            Op::Settle => self.settle(),
            // Skipped: the step would wait for the row lock, or no authorizer could enforce a ban.
            Op::Update(..)
            | Op::Leave { .. }
            | Op::SignOut { .. }
            | Op::Remove(..)
            | Op::Give { .. }
            | Op::Lock { .. }
            | Op::Outstay { .. }
            | Op::Ban { .. } => Ok(()),
        }
    }

    /// A slow follower takes this many of its pending turns.
    fn turn(&mut self, at: usize, turns: usize) -> Check {
        self.follower(at, |follower, scene| {
            if follower.kind.pace == Pace::Slow {
                for _ in 0..turns {
                    follower.turn(scene)?;
                }
            }
            Ok(())
        })
    }

    /// Enters (or leaves) more rooms than a listener to all rooms has channels for.
    fn crowd(&mut self, who: usize, on: bool) -> Check {
        let room = &self.model.rooms[0];
        self.say(
            who,
            &if on {
                format!("select count(presence.upsert('{room}crowd' || n, ttl => '30 days')) from generate_series(1, 101) n")
            } else {
                format!("delete from presence.member where starts_with(room, '{room}crowd')
                         and user_id = presence.user_id()")
            },
        )
    }

    pub fn name(&self, place: &Place) -> String {
        format!("'{}', connection_id => '{}'", self.model.rooms[place.room], CONNECTION_IDS[place.connection])
    }

    pub fn is_at(&self, place: &Place) -> String {
        let (room, user) = (&self.model.rooms[place.room], USERS[place.who]);
        let connection = CONNECTION_IDS[place.connection];
        format!("room = '{room}' and member_id = '{user}' and connection_id = '{connection}'")
    }

    pub fn tokens(&self, place: &Place, tokens: Option<usize>) -> String {
        tokens.map_or("null".into(), |index| list(&audience(index, place.room, &self.model.rooms)))
    }

    pub fn begin(&self, who: usize) -> String {
        format!("begin; {}", prelude(who, self.team))
    }

    /// Runs the statement in its own transaction.
    pub fn say(&mut self, who: usize, sql: &str) -> Check {
        let begin = self.begin(who);
        let writer = &mut self.world.writers[who];
        allow_refusal(transact(writer, &begin, Way::Commit, |session| session.try_run(sql)))
    }

    fn note_setting(&mut self, number: usize, key: Key, audience: Vec<String>) {
        let (began, owner) = (self.model.next(), usize::MAX);
        let setting = Written { key, owner, audience, began, ended: None, said: began, last_word: false };
        self.model.settings.insert(number, setting);
    }

    /// Updates the members as a service role, so no user needs the right to.
    pub fn chat(&mut self, room: usize) {
        let locked = self.lock.as_ref().map(|lock| key(&lock.place));
        let keys: Vec<Key> = self.model.now().rows.keys().filter(|key| key.0 == room).cloned().collect();
        for (_, member, connection) in keys.iter().filter(|key| Some(*key) != locked.as_ref()) {
            let number = self.new_number();
            self.world.watcher.run(&format!(
                "select presence.update('{}', member_id => '{member}', connection_id => '{connection}',
                                        status => 'w{number}')",
                self.model.rooms[room]
            ));
        }
    }
}

fn list(tokens: &[String]) -> String {
    let quoted: Vec<String> = tokens.iter().map(|token| format!("'{token}'")).collect();
    format!("array[{}]::text[]", quoted.join(", "))
}
