//! Compares what everybody sees, hears and finds in the log with the model.

use crate::common::{Session, attempt};
use crate::model::{Event, Key, Row};
use crate::op::{CONNECTION_IDS, CONNECTIONS, SERVICE, USERS};
use crate::world::{Case, Check};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Members of which something has reverted but whose rows do not show it yet.
pub fn unwritten(watcher: &mut Session, rooms: &[String; 2]) -> BTreeSet<Key> {
    let sql = "select room, member_id, connection_id
               from presence.member m join presence.online o using (room, member_id, connection_id)
               where (m.status, m.state) is distinct from (o.status, o.state)";
    watcher.rows(sql).iter().filter_map(|row| key(rooms, row)).collect()
}

fn key(rooms: &[String; 2], row: &[String]) -> Option<Key> {
    let place = |list: &[&str], name: &str| list.iter().position(|known| *known == name);
    let room = rooms.iter().position(|room| *room == row[0])?;
    Some(Key(room, place(&USERS, &row[1])?, place(&CONNECTION_IDS, &row[2])?))
}

impl Case<'_> {
    /// What is shown equals the model: everybody sees what is committed, and this connection also its own changes.
    pub fn check_view(&mut self, at: usize) -> Check {
        let view = format!(
            "select room, member_id, connection_id, user_id, coalesce(status, ''), state, metadata, to_jsonb(audience),
                    extract(epoch from ttl) / 60, session_pid, (extract(epoch from last_seen_at) * 1000000)::bigint, version,
                    (extract(epoch from expires_at) * 1000000)::bigint
             from presence.online where room in ('{}', '{}')",
            self.rooms[0], self.rooms[1]
        );
        let rows = self.world.watcher.rows(&view);
        let shown = self.members(&rows)?;
        for (key, shown) in &shown {
            let newest = self.version.insert(*key, shown.version).unwrap_or(0);
            if newest > shown.version {
                return Err(format!("{key:?} went back from version {newest} to {}", shown.version));
            }
        }
        for (key, row) in &self.model.members {
            let Some(shown) = shown.get(key) else { continue };
            // Times are shown by a wall clock that is measured now and then, by processes that may be preempted.
            let seen = row.seen.from - 50_000..=row.seen.until + 50_000;
            if !self.model.unsure.contains(key) && !seen.contains(&shown.seen) {
                return Err(format!("{key:?} was last seen at {}, not at {:?}", shown.seen, row.seen));
            }
            let ends = row.ends().map(|ends| ends.from - 50_000..=ends.until + 50_000);
            let same = match (&ends, shown.ends) {
                (Some(ends), Some(shown)) => ends.contains(&shown),
                (ends, shown) => ends.is_none() && shown.is_none(),
            };
            if !self.model.unsure.contains(key) && !same {
                return Err(format!("{key:?} ends at {:?}, not at {:?}", shown.ends, row.ends()));
            }
        }
        self.compare_members("committed", shown, &self.model.members, |_| true)?;
        self.check_users()?;
        if self.model.is_in_transaction(at) && !self.model.has_failed(at) {
            let who = CONNECTIONS[at];
            let rows = self.world.connections[at].rows(&view);
            let shown = self.members(&rows)?;
            let own = |owner| who == SERVICE || owner == who;
            self.compare_members("in its transaction", shown, &self.model.rows(at), own)?;
        }
        Ok(())
    }

    /// Each user appears once, with the status that ranks highest. Of statuses that are not listed, any may be shown.
    fn check_users(&mut self) -> Check {
        if !self.model.unsure.is_empty() {
            return Ok(());
        }
        for (at, room) in self.rooms.iter().enumerate() {
            let sql = format!(
                "set presence.status_rank = 'offline, busy';
                 select user_id, members, coalesce(status, '') from presence.users('{room}')"
            );
            let mut expected: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for (_, row) in self.model.members.iter().filter(|(key, _)| key.0 == at) {
                expected.entry(USERS[row.owner]).or_default().push(row.status.unwrap_or_default());
            }
            let shown = self.world.watcher.rows(&sql);
            let is_right = |row: &Vec<String>| {
                let statuses = expected.get(row[0].as_str()).map_or(&[][..], Vec::as_slice);
                let status = row[2].as_str();
                row[1] == statuses.len().to_string()
                    && statuses.contains(&status)
                    && (status == "busy" || !statuses.contains(&"busy"))
            };
            if shown.len() != expected.len() || !shown.iter().all(is_right) {
                return Err(format!("the users of {room} are {shown:?}, not {expected:?}"));
            }
        }
        Ok(())
    }

    fn members(&self, rows: &[Vec<String>]) -> Result<BTreeMap<Key, Shown>, String> {
        let place =
            |list: &[&str], name: &str| list.iter().position(|known| *known == name).expect("a name of ours");
        let json = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        let rooms = [self.rooms[0].as_str(), self.rooms[1].as_str()];
        let member = |row: &Vec<String>| {
            let key = Key(place(&rooms, &row[0]), place(&USERS, &row[1]), place(&CONNECTION_IDS, &row[2]));
            let shown = Shown {
                owner: place(&USERS, &row[3]),
                status: row[4].clone(),
                state: json(&row[5]),
                metadata: json(&row[6]),
                audience: row[7].clone(),
                minutes: row[8].parse().map_or(0, |minutes: f64| minutes as i64),
                session: row[9].parse().unwrap_or(0),
                seen: row[10].parse().map_err(|_| format!("{row:?} was never seen"))?,
                version: row[11].parse().expect("a version"),
                ends: row[12].parse().ok(),
            };
            Ok((key, shown))
        };
        rows.iter().map(member).collect()
    }

    fn compare_members(
        &self,
        what: &str,
        mut shown: BTreeMap<Key, Shown>,
        expected: &BTreeMap<Key, Row>,
        of_interest: impl Fn(usize) -> bool,
    ) -> Check {
        shown.retain(|key, shown| !self.model.unsure.contains(key) && of_interest(shown.owner));
        for (key, row) in expected {
            if self.model.unsure.contains(key) || !of_interest(row.owner) {
                continue;
            }
            let Some(shown) = shown.remove(key) else {
                return Err(format!("{what}: {key:?} is missing: {row:?}"));
            };
            let same = shown.owner == row.owner
                && shown.status == row.status.unwrap_or_default()
                && shown.state == row.state
                && shown.metadata == row.metadata
                && (shown.audience.is_empty()
                    || shown.audience == json!(row.audience).to_string().replace(",", ", "))
                && shown.minutes == row.ttl.unwrap_or(0)
                && (shown.session != 0) == row.session.is_some();
            if !same {
                return Err(format!("{what}: {key:?} is {shown:?}, not {row:?}"));
            }
        }
        match shown.into_iter().next() {
            Some(ghost) => Err(format!("{what}: there is also {ghost:?}")),
            None => Ok(()),
        }
    }

    /// Everything committed is published, all members whose time came have left, and all listeners agree.
    pub fn settle(&mut self) -> Check {
        self.model.settled();
        let Case { world, model, rooms, .. } = self;
        let sql = format!(
            "select room, member_id, connection_id from presence.member where room in ('{}', '{}')",
            rooms[0], rooms[1]
        );
        let mut stored = BTreeSet::new();
        let swept = attempt(|| {
            world.watcher.run("select presence.sweep()");
            stored = world
                .watcher
                .rows(&sql)
                .into_iter()
                .filter_map(|row| key(rooms, &row))
                .filter(|key| model.is_swept(key))
                .collect();
            let all_are_left = stored.iter().eq(model.members.keys().filter(|key| model.is_swept(key)));
            all_are_left && unwritten(&mut world.watcher, rooms).is_subset(&model.unsure)
        });
        if !swept {
            return Err(format!("the table has {stored:?}, not {:?}", model.members.keys()));
        }
        world.watcher.flush();
        for follower in &mut world.followers {
            follower.follow();
            if model.unsure.is_empty() && model.stale.is_empty() {
                follower.check(rooms, &model.visible(follower.user, &follower.tokens))?;
            }
        }
        Ok(())
    }

    /// The log contains what happened to each member, in order, and nothing else.
    pub fn check_log(&mut self) -> Check {
        let sql = format!(
            "select seq, version, room, member_id, connection_id, event, coalesce(reason, ''), user_id,
                    coalesce(status, ''), state, metadata
             from presence.event
             where room in ('{}', '{}') and audience[1] is distinct from '-' order by seq",
            self.rooms[0], self.rooms[1]
        );
        let expected = std::mem::take(&mut self.model.events);
        let mut logged: BTreeMap<Key, Vec<Vec<String>>> = BTreeMap::new();
        let mut newest: BTreeMap<Key, i64> = BTreeMap::new();
        for row in self.world.watcher.rows(&sql) {
            let place =
                |list: &[&str], name: &str| list.iter().position(|known| *known == name).expect("ours");
            let rooms = [self.rooms[0].as_str(), self.rooms[1].as_str()];
            let key = Key(place(&rooms, &row[2]), place(&USERS, &row[3]), place(&CONNECTION_IDS, &row[4]));
            let (seq, version): (i64, i64) =
                (row[0].parse().expect("a seq"), row[1].parse().expect("a version"));
            if seq <= self.seq {
                return Err(format!("seq {seq} after {}", self.seq));
            }
            self.seq = seq;
            if newest.insert(key, version).is_some_and(|before| before >= version) {
                return Err(format!("{key:?}: version {version} is not newer than the one before"));
            }
            logged.entry(key).or_default().push(row);
        }
        for (key, events) in &expected {
            let logged = logged.remove(key).unwrap_or_default();
            if !tells(&logged, events, self.world.exact) {
                return Err(format!("{key:?}: logged is {logged:?}; what happened is {events:?}"));
            }
        }
        match logged.into_iter().next() {
            Some((key, logged)) => Err(format!("{key:?}: nothing happened, but logged is {logged:?}")),
            None => Ok(()),
        }
    }
}

/// Whether these lines match what happened. Unless `exact`, the last of several updates in a row may stand for all.
fn tells(logged: &[Vec<String>], events: &[Event], exact: bool) -> bool {
    let json = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    let is = |event: &Event, row: &[String]| {
        event.kind == row[5]
            && (event.reasons.contains(&row[6].as_str()) || (event.reasons.is_empty() && row[6].is_empty()))
            && USERS[event.owner] == row[7]
            && (event.status.unwrap_or_default() == row[8] && event.state == json(&row[9])
                || event.or.as_ref().is_some_and(|or| {
                    row[6] == "disconnected"
                        && or.status.unwrap_or_default() == row[8]
                        && or.state == json(&row[9])
                }))
            && event.metadata == json(&row[10])
    };
    // How many of the events the lines so far may account for.
    let mut told = BTreeSet::from([0]);
    for row in logged {
        let mut next = BTreeSet::new();
        for from in told {
            for to in from..events.len() {
                if is(&events[to], row) {
                    next.insert(to + 1);
                }
                if exact
                    || events[to].kind != "update"
                    || events.get(to + 1).is_none_or(|event| event.kind != "update")
                {
                    break;
                }
            }
        }
        told = next;
    }
    told.contains(&events.len())
}

/// A member as the view shows it.
#[derive(Debug)]
struct Shown {
    owner: usize,
    status: String,
    state: Value,
    metadata: Value,
    audience: String,
    minutes: i64,
    session: i64,
    seen: i64,
    version: i64,
    ends: Option<i64>,
}
