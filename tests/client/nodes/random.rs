//! Random calls on two and three servers, which lose contact for a while, stop and crash, compared with a
//! model: the members who entered anywhere and did not leave. `PRESENCE_PARTITIONS` sets the number of
//! rounds, `PRESENCE_SEED` selects them.

use super::{Node, two, until_heard, until_together};
use crate::common::{Dice, Mirror, Session, number, seed, until};
use std::collections::BTreeMap;

const USERS: [&str; 3] = ["alice", "bob", "carol"];
const ROOMS: [&str; 3] = ["r0", "r1", "r2"];

/// The state of each (room, member_id, connection_id, node).
type Model = BTreeMap<[String; 4], String>;

/// One call of a user on a server, and its effect on the model.
fn step(dice: &mut Dice, node: &Node, sessions: &mut [Session], model: &mut Model) {
    let at = dice.below(USERS.len());
    let (user, room) = (USERS[at], ROOMS[dice.below(ROOMS.len())]);
    // Connection ids are unique per server: the client rule that is followed here does not know nodes.
    let connection = format!("{}{}", node.name, dice.below(2));
    let key = [room, user, &connection, node.name].map(str::to_owned);
    let value = dice.below(1_000).to_string();
    let session = &mut sessions[at];
    match dice.below(10) {
        0..=4 => {
            session.run(&format!(
                "select presence.upsert('{room}', '{value}', connection_id => '{connection}', ttl => '1 h')"
            ));
            model.insert(key, value);
        }
        5 => {
            let audience = ["{any}", "{room}", "{users}", "{user:alice}"][dice.below(4)];
            session.run(&format!(
                "select presence.upsert('{room}', '{value}', connection_id => '{connection}', audience => '{audience}', ttl => '1 h')"
            ));
            model.insert(key, value);
        }
        6 => {
            let there = session.number(&format!(
                "select count(*) from presence.update('{room}', connection_id => '{connection}', status => '{value}')"
            ));
            assert_eq!(there == 1, model.contains_key(&key), "{key:?}");
        }
        7 => {
            // Both in one transaction.
            session.run(&format!(
                "select presence.delete('{room}', connection_id => '{connection}');
                 select presence.upsert('{room}', '{value}', connection_id => '{connection}', ttl => '1 h')"
            ));
            model.insert(key, value);
        }
        8 => {
            let left = session.number(&format!(
                "select presence.delete('{room}', connection_id => '{connection}', state => '\"bye\"')"
            ));
            assert_eq!(left == 1, model.remove(&key).is_some(), "{key:?}");
        }
        _ => {
            session.run("select presence.delete_all()");
            model.retain(|[_, member, _, at], _| member != user || at != node.name);
        }
    }
}

fn listed(session: &mut Session) -> Model {
    let rows = session
        .rows("select room, member_id, connection_id, node, state from presence.list(max_rows => 10000)");
    rows.into_iter()
        .map(|row| {
            let [room, member_id, connection_id, node, state] = row.try_into().expect("five columns");
            ([room, member_id, connection_id, node], state)
        })
        .collect()
}

/// What goes wrong in a round, apart from lost contact.
#[derive(Debug)]
enum Accident {
    Nothing,
    /// The worker is terminated.
    Worker,
    /// The WAL senders are terminated, so that nothing is sent for a moment.
    Senders,
    Stop,
    Crash,
}

/// Servers, with users and two listeners on each: one that sees everything, and one that sees only a part.
struct World {
    nodes: Vec<Node>,
    people: Vec<[Session; 3]>,
    listeners: Vec<[(Session, Mirror); 2]>,
}

impl World {
    fn of(nodes: Vec<Node>) -> World {
        let people = nodes.iter().map(people).collect();
        let listeners = nodes.iter().map(listeners).collect();
        World { nodes, people, listeners }
    }

    fn steps(&mut self, dice: &mut Dice, model: &mut Model) {
        for _ in 0..30 {
            let at = dice.below(self.nodes.len());
            step(dice, &self.nodes[at], &mut self.people[at], model);
        }
    }

    fn happen(&mut self, accident: &Accident, at: usize) {
        let node = &self.nodes[at];
        match accident {
            Accident::Nothing => {}
            Accident::Worker => {
                let mut service = node.service();
                service.run("select pg_terminate_backend(presence.worker_pid())");
                node.until_worker("app");
            }
            Accident::Senders => node.service().run(
                "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'walsender'",
            ),
            Accident::Stop => {
                node.stop("fast");
                node.start_again();
                node.until_worker("app");
                self.come_back(at);
            }
            Accident::Crash => {
                // Unflushed changes could be lost in a crash, so flush them first.
                let mut service = node.service();
                service.flush();
                let end = service.value("select pg_current_wal_insert_lsn()");
                until("it is on the disk", || {
                    service.is(&format!("select pg_current_wal_flush_lsn() >= '{end}'"))
                });
                node.stop("immediate");
                node.start_again();
                node.until_worker("app");
                let mut service = node.service();
                until("everybody is back", || service.number("select count(*) from _presence._whole") == 1);
                self.come_back(at);
            }
        }
    }

    /// Replaces the connections, which are lost.
    fn come_back(&mut self, at: usize) {
        self.people[at] = people(&self.nodes[at]);
        self.listeners[at] = listeners(&self.nodes[at]);
    }

    /// Asserts that all servers show, and all listeners have received, what the model says.
    fn agree(&mut self, what: &str, model: &Model) {
        let nodes: Vec<&Node> = self.nodes.iter().collect();
        for node in &nodes {
            until_heard(node, nodes.len() as i64 - 1);
        }
        until_together(&nodes);
        for (node, listeners) in nodes.iter().zip(&mut self.listeners) {
            let mut service = node.service();
            until(&format!("{what}: {} ends with what was done", node.name), || {
                listed(&mut service) == *model
            });
            for (session, mirror) in listeners {
                until(&format!("{what}: a listener of {}", node.name), || {
                    mirror.follow(session);
                    let held = mirror.members().len() as i64;
                    session.number("select count(*) from presence.list(max_rows => 10000)") == held
                });
                mirror.assert_true(session);
            }
        }
    }
}

fn people(node: &Node) -> [Session; 3] {
    USERS.map(|user| node.user(user))
}

fn listeners(node: &Node) -> [(Session, Mirror); 2] {
    ["postgres", "carol"].map(|user| {
        let mut session = node.user(user);
        session.run("select presence.listen()");
        let mirror = Mirror::of(&mut session);
        (session, mirror)
    })
}

fn play(nodes: Vec<Node>, rounds: u64) {
    let seed = seed();
    let mut dice = Dice::new(seed);
    let mut model = Model::new();
    let mut world = World::of(nodes);
    let count = world.nodes.len();
    for round in 0..number("PRESENCE_PARTITIONS").unwrap_or(rounds) {
        // Which servers do not hear which others; either long enough to be hidden, or not.
        let pairs = (0..count).flat_map(|here| (0..count).map(move |there| (here, there)));
        let cuts: Vec<(usize, usize)> =
            pairs.filter(|(here, there)| here != there && dice.percent(40)).collect();
        for (here, there) in &cuts {
            world.nodes[*here].hear(&world.nodes[*there], false);
        }
        world.steps(&mut dice, &mut model);
        if dice.percent(50) {
            for (here, there) in &cuts {
                let mut service = world.nodes[*here].service();
                let name = world.nodes[*there].name;
                let hidden = format!("select not _presence._is_elsewhere('{name}')");
                until("the other is hidden", || service.is(&hidden));
            }
        }
        let accident = match dice.below(6) {
            0 => Accident::Worker,
            1 => Accident::Senders,
            2 => Accident::Stop,
            3 => Accident::Crash,
            _ => Accident::Nothing,
        };
        let at = dice.below(count);
        world.happen(&accident, at);
        world.steps(&mut dice, &mut model);
        for (here, there) in &cuts {
            world.nodes[*here].hear(&world.nodes[*there], true);
        }
        world.agree(&format!("seed {seed}, round {round}, {accident:?} of {at}, {cuts:?}"), &model);
    }
    world.nodes.iter().for_each(Node::assert_sound);
}

#[test]
fn both_end_with_what_was_done_on_either() {
    let (a, b) = two();
    play(vec![a, b], 4);
}

#[test]
fn three_end_with_what_was_done_on_any() {
    let nodes = ["a", "b", "c"].map(Node::start);
    for here in &nodes {
        nodes.iter().filter(|there| there.name != here.name).for_each(|there| here.follow(there));
    }
    for node in &nodes {
        until_heard(node, 2);
    }
    play(Vec::from(nodes), 3);
}
