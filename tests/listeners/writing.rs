//! Members enter and change, in transactions that end in various ways and may ask for channel names before they end.

use crate::acts::allow_refusal;
use crate::op::{CONNECTION_IDS, MATE, Place, Way, Writing};
use crate::rights::{Written, audience, key};
use crate::speaker::{listen_to, names, transact};
use crate::world::{Case, Check, MALLORY};

impl Case<'_> {
    pub fn write(&mut self, place: Place, writing: Writing) -> Check {
        if self.is_locked(&place) {
            return Ok(());
        }
        let (who, number) = (place.who, self.new_number());
        let sql = self.writing(&place, &writing, number);
        let room = &self.model.rooms[place.room];
        let look = if writing.repeatable { "select from presence.online;" } else { "" };
        let leave = match writing.way {
            Way::TakeBack => {
                format!(
                    "select presence.delete('{room}', connection_id => '{}')",
                    CONNECTION_IDS[place.connection]
                )
            }
            _ => String::new(),
        };
        let rooms = [format!("'{room}'"), "null".to_owned()];
        let begin = if writing.repeatable {
            self.begin(who).replace("begin;", "begin isolation level repeatable read;")
        } else {
            self.begin(who)
        };
        let mut peeked = Vec::new();
        let said = transact(&mut self.world.writers[who], &begin, writing.way, |session| {
            session.try_run(&format!("{look} {sql}"))?;
            if writing.peeks {
                for room in &rooms {
                    peeked.push(names(session, "channels", room)?);
                }
            }
            session.try_run(&leave)
        });
        let done = said.is_ok();
        allow_refusal(said)?;
        for (names, room) in peeked.into_iter().zip([Some(place.room), None]) {
            let grant = self.grant(who, who, room, false);
            self.world.spies[MALLORY].session.run(&listen_to(&names));
            self.world.spies[MALLORY].has(&names, &grant);
            self.learnt.push((names, grant));
        }
        if done && writing.way == Way::TakeBack {
            self.note_last_word(number, &place, writing.audience);
        }
        Ok(())
    }

    fn writing(&self, place: &Place, writing: &Writing, number: usize) -> String {
        let audience = self.tokens(place, writing.audience);
        let ttl = if writing.is_short { "10 min" } else { "10 h" };
        let state = if writing.is_big { "jsonb_build_object('x', repeat('x', 9000))" } else { "'{}'::jsonb" };
        if !writing.by_sql {
            // Users of a shared login are not bound to a session.
            let session = if writing.session && place.who != MATE { "true" } else { "null" };
            return format!(
                "select presence.upsert({}, state => {state}, status => 'w{number}', audience => {audience},
                                        ttl => '{ttl}', session => {session});",
                self.name(place)
            );
        }
        if self.model.now().rows.contains_key(&key(place)) {
            let audience = writing.audience.map_or(String::new(), |_| format!(", audience = {audience}"));
            return format!(
                "update presence.member set status = 'w{number}', state = {state}{audience} where {};",
                self.is_at(place)
            );
        }
        format!(
            "insert into presence.member (room, connection_id, status, state, audience, ttl)
             values ('{}', '{}', 'w{number}', {state}, {audience}, '{ttl}');",
            self.model.rooms[place.room], CONNECTION_IDS[place.connection]
        )
    }

    /// The write existed only within its own transaction: others see it at most in a leave.
    fn note_last_word(&mut self, number: usize, place: &Place, tokens: Option<usize>) {
        let key = key(place);
        let before = self.model.now().rows.get(&key).and_then(|before| self.model.writes.get(before));
        let mut both = before.map(|written| written.audience.clone()).unwrap_or_default();
        both.extend(tokens.map(|index| audience(index, place.room, &self.model.rooms)).unwrap_or_default());
        let step = self.model.next();
        let owner = before.map_or(place.who, |written| written.owner);
        let word = Written {
            key,
            owner,
            audience: both,
            began: step,
            ended: Some(step),
            said: step,
            last_word: true,
        };
        self.model.writes.insert(number, word);
    }
}
