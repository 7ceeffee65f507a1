//! Several servers, which exchange their members by PostgreSQL's logical replication.

mod by_hand;
mod failover;
mod faults;
mod live;
mod operating;
mod random;
mod seen;

use crate::common::{Cluster, Session, until};
use std::ops::Deref;

/// A server for use with peers, with its own name and database.
pub struct Node {
    pub name: &'static str,
    cluster: Cluster,
}

impl Deref for Node {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Node {
    /// Starts a node. Peers are unreachable after two seconds of silence.
    pub fn start(name: &'static str) -> Node {
        let named = format!("presence.node_name={name}");
        let cluster = Cluster::with(&[
            &named,
            "presence.node_beat=200ms",
            "presence.node_timeout=2s",
            "wal_level=logical",
            "wal_retrieve_retry_interval=200ms",
        ]);
        let node = Node { name, cluster };
        // The peers' role has the minimum rights.
        node.service().run(&format!(
            "create publication presence_{name} for table presence.shared where (node = '{name}'),
                 presence.node where (node = '{name}') with (publish = 'insert, update, delete');
             create role presence_peer login replication bypassrls;
             grant usage on schema presence to presence_peer;
             grant select on presence.shared, presence.node to presence_peer"
        ));
        node
    }

    /// Subscribes to the members of the other node.
    pub fn follow(&self, peer: &Node) {
        let (name, host) = (peer.name, peer.cluster.display());
        self.service().run(&format!(
            "create subscription presence_from_{name} connection 'host={host} dbname=app user=presence_peer'
                 publication presence_{name} with (streaming = on, slot_name = 'presence_from_{name}_{}')",
            self.name
        ));
    }

    /// Interrupts or resumes replication from the peer.
    pub fn hear(&self, peer: &Node, does: bool) {
        let verb = if does { "enable" } else { "disable" };
        self.service().run(&format!("alter subscription presence_from_{} {verb}", peer.name));
    }

    /// Asserts that nothing stopped the replication stream or was replicated in the wrong direction.
    pub fn assert_sound(&self) {
        self.cluster.assert_sound();
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            // An error that stops the apply worker is followed by its context.
            let follows = |word: &str| lines[at..].iter().take(4).any(|line| line.contains(word));
            let stops = line.contains("] ERROR:  ") && follows("processing remote data");
            assert!(!stops && !line.contains("duplicate key"), "the log of {} says: {line}", self.name);
        }
    }
}

/// Two nodes that follow each other.
pub fn two() -> (Node, Node) {
    let (a, b) = (Node::start("a"), Node::start("b"));
    b.follow(&a);
    a.follow(&b);
    until_heard(&a, 1);
    until_heard(&b, 1);
    (a, b)
}

/// Waits until the node has heard from this many peers and includes them in `online`.
pub fn until_heard(node: &Node, peers: i64) {
    let mut service = node.service();
    until("peers are heard", || {
        service.number("select count(*) from presence.node where _presence._is_elsewhere(node)") == peers
            && service.is("select pg_get_viewdef('presence.online'::regclass) = pg_get_viewdef('_presence._everywhere'::regclass)")
    });
    service.flush();
}

/// Waits until the nodes' peers have everything that each node has written so far.
pub fn until_together(nodes: &[&Node]) {
    for node in nodes {
        node.service().flush();
        let mut here = node.service();
        let end = here.value("select pg_current_wal_insert_lsn()");
        let all_have_it = format!(
            "select coalesce(bool_and(confirmed_flush_lsn >= '{end}'), true) from pg_replication_slots
             where slot_name like 'presence_from_{}%' and active",
            node.name
        );
        until("the peers have everything", || here.is(&all_have_it));
    }
    nodes.iter().for_each(|node| node.service().flush());
}

/// What a session is shown of members, by every query; equal on all servers except for versions and columns
/// that are not copied.
pub fn shown(session: &mut Session, rooms: &[&str]) -> Vec<Vec<Vec<String>>> {
    let all = "room, member_id, connection_id, user_id, status, state, metadata, audience, joined_at, updated_at, ttl, node";
    let mut queries = vec![
        format!("select {all} from presence.list() order by 1, 2, 3, node"),
        format!("select {all} from presence.online order by 1, 2, 3, node"),
        "select unnest from unnest(presence.tokens()) order by 1".into(),
        "select * from presence.occupancy()".into(),
        "select * from presence.rooms()".into(),
    ];
    for room in rooms {
        queries.extend([
            format!("select {all} from presence.list('{room}') order by 2, 3, node"),
            format!("select {all} from presence.list('{room}', 2) order by 2, 3, node"),
            format!(
                "select {all} from presence.list('{room}', after => '{{alice,\"\"}}') order by 2, 3, node"
            ),
            format!("select {all} from presence.get('{room}') order by 3, node"),
            format!("select {all} from presence.get('{room}', 'bob') order by 3, node"),
            format!("select user_id, members, joined_at from presence.users('{room}')"),
            format!("select * from presence.occupancy('{room}')"),
        ]);
    }
    queries.iter().map(|query| session.rows(query)).collect()
}
