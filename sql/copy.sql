-- The copy: members in a logged table, which survives a crash and which standbys and other servers have as well. It is
-- filled only where presence.node_name is set, and only by the worker: the process that publishes also copies. The shape
-- is a protocol between servers of different versions, so the columns stay as they are; what a later version adds goes
-- into more. There is no constraint but the key: a row that a peer sends must not stop the stream.

create table presence.shared (
    node           text not null,
    room           text not null,
    member_id      text not null,
    connection_id  text not null,
    user_id        text,
    status         text,
    state          jsonb,
    metadata       jsonb,
    audience       text[],
    version        bigint,
    generation     bigint,
    joined_at      timestamptz,
    updated_at     timestamptz,
    last_seen_at   timestamptz,
    ttl            interval,
    session        boolean,
    reason         text,
    more           jsonb,
    -- By room first, because readers search by room.
    primary key (room, member_id, connection_id, node)
) using heap with (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 5000,
    vacuum_truncate = off, toast.vacuum_truncate = off,
    toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 1000
);
create index shared_user_id on presence.shared (user_id, room);

create table presence.node (
    node     text primary key,
    epoch    bigint,
    beat     bigint,
    beat_at  timestamptz,
    state    text,
    members  bigint,
    floor    bigint,
    library  text,
    more     jsonb
) using heap with (
    fillfactor = 10,
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = off
);

comment on table presence.shared is
    'The logged copy of the members, where presence.node_name is set: it outlives a crash, and standbys have it. Written by '
    'the worker, a moment after the event; not dumped. To know who is here read presence.online.';
comment on column presence.shared.node is 'the server where the member is: its presence.node_name';
comment on column presence.shared.room is 'the room';
comment on column presence.shared.member_id is 'who or what is present';
comment on column presence.shared.connection_id is 'which tab, device or connection; empty where nobody tells them apart';
comment on column presence.shared.user_id is 'who owns the member';
comment on column presence.shared.status is 'a short text; NULL is none';
comment on column presence.shared.state is 'the live state; of one that leaves, the last word';
comment on column presence.shared.metadata is 'slow-changing facts';
comment on column presence.shared.audience is 'who may see the member, besides its owner: a list of tokens';
comment on column presence.shared.version is
    'the version of the row that was copied; of a member elsewhere, one that this server has given';
comment on column presence.shared.generation is 'the version with which this stay began';
comment on column presence.shared.joined_at is 'when this stay began';
comment on column presence.shared.updated_at is 'when status, state, metadata, audience or owner changed last';
comment on column presence.shared.last_seen_at is 'when the member was last seen, as of its last change: renewals are not copied';
comment on column presence.shared.ttl is 'how long the lease lasts after each renewal; NULL for a session member without ttl';
comment on column presence.shared.session is 'whether the member is bound to a database session';
comment on column presence.shared.reason is
    'why it leaves: said by the last UPDATE of a row, in the transaction of its DELETE; else NULL';
comment on column presence.shared.more is
    'what else is needed to restore the member: leaves_at, expires_at, leave_reason, last_word, reverts; and whatever later '
    'versions add';

comment on table presence.node is
    'Servers that have a name (presence.node_name), and their beats: whoever has seen one has everything that was copied before.';
comment on column presence.node.node is 'the name';
comment on column presence.node.epoch is 'grows with each start of the server';
comment on column presence.node.beat is 'grows every presence.node_beat (milliseconds)';
comment on column presence.node.beat_at is 'when that was, by the clock of that server';
comment on column presence.node.state is
    'restoring (members are being restored after a crash), up, or down: it has stopped';
comment on column presence.node.members is 'how many members the copy has of it; NULL while that is looked at';
comment on column presence.node.floor is 'no version or seq at or above this one has been issued';
comment on column presence.node.library is 'the version of its library';
comment on column presence.node.more is 'whatever later versions add';

-- Readable like member. While member has policies other than the extension's, only the owner of a row and service roles
-- can read it. No policy lets anybody write, whatever is granted.
alter table presence.shared enable row level security;
alter table presence.node enable row level security;
create policy shared_read on presence.shared for select using (
    user_id operator(pg_catalog.=) (select presence.user_id())
    or (select presence.is_service())
    or ((select _presence._has_builtin_policies())
        and audience operator(pg_catalog.&&) (select presence.tokens()) and _presence._may(room, 'read'))
);
create policy node_read on presence.node for select using (true);

-- Unlogged like presence.member: when both are empty, after a crash or a promotion, the members have to be restored.
create unlogged table _presence._whole (node text primary key);
comment on table _presence._whole is
    'The name under which presence.member has whom presence.shared has; no row: it has been emptied by a crash.';
alter table _presence._whole enable row level security;

-- After a crash no listener has been told anything, so it may be empty.
create unlogged table _presence._unreachable (
    node           text,
    room           text,
    member_id      text,
    connection_id  text,
    primary key (node, room, member_id, connection_id)
);
comment on table _presence._unreachable is
    'Members of other servers that listeners were told have left, because their server is not heard.';
alter table _presence._unreachable enable row level security;

create function _presence._is_heard(node text) returns boolean
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_is_heard';
comment on function _presence._is_heard(text) is
    'Whether this server has seen a beat of that one within presence.node_timeout.';

-- For what other servers send. The triggers fire only where that is applied.
create function _presence._shared_before() returns trigger
    language c volatile as 'MODULE_PATHNAME', 'presence_shared_before';
comment on function _presence._shared_before() is
    'Leaves out what a peer may not say, and gives the rest versions of this server.';
create function _presence._shared_after() returns trigger
    language c volatile as 'MODULE_PATHNAME', 'presence_shared_after';
comment on function _presence._shared_after() is 'Makes events of what a peer has sent.';
create function _presence._node_before() returns trigger
    language c volatile as 'MODULE_PATHNAME', 'presence_node_before';
comment on function _presence._node_before() is 'Leaves out beats of this server''s own name.';
create function _presence._node_after() returns trigger
    language c volatile as 'MODULE_PATHNAME', 'presence_node_after';
comment on function _presence._node_after() is 'Notes that a peer is alive, by the clock of this server.';

create trigger presence_before before insert or update or delete on presence.shared
    for each row execute function _presence._shared_before();
create trigger presence_after after insert or update or delete on presence.shared
    for each row execute function _presence._shared_after();
create trigger presence_before before insert or update on presence.node
    for each row execute function _presence._node_before();
create trigger presence_after after insert or update on presence.node
    for each row execute function _presence._node_after();
alter table presence.shared enable replica trigger presence_before;
alter table presence.shared enable replica trigger presence_after;
alter table presence.node enable replica trigger presence_before;
alter table presence.node enable replica trigger presence_after;

create function _presence._is_elsewhere(node text) returns boolean
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_is_elsewhere';
comment on function _presence._is_elsewhere(text) is
    'Whether that is another server, of which this one has seen a beat within presence.node_timeout.';
create function _presence._version_here(node text, version bigint) returns bigint
    language c stable parallel restricted as 'MODULE_PATHNAME', 'presence_version_here';
comment on function _presence._version_here(text, bigint) is
    'The version with which a member of that server is shown here: newer than what was told of it before its server came back.';
-- The same columns as presence.online.
create view presence.shared_online with (security_invoker = true) as
select s.room, s.member_id, s.connection_id, s.user_id, s.status, s.state, s.metadata,
       case when s.user_id operator(pg_catalog.=) (select presence.user_id()) or (select presence.is_service())
            then s.audience end as audience,
       _presence._version_here(s.node, s.version) as version, s.joined_at, s.updated_at, s.last_seen_at,
       null::timestamptz as expires_at, s.ttl, null::integer as session_pid, s.node
from presence.shared s
where _presence._is_heard(s.node);
comment on view presence.shared_online is
    'Who is here according to the logged copy; works on a standby, too. Like presence.online, but without what is not '
    'copied yet, with last_seen_at as of the last change, and expires_at NULL. Nobody is shown of a server that has '
    'not been heard for presence.node_timeout.';
comment on column presence.shared_online.room is 'the room';
comment on column presence.shared_online.member_id is 'who or what is present';
comment on column presence.shared_online.connection_id is
    'which tab, device or connection; empty where nobody tells them apart';
comment on column presence.shared_online.user_id is 'who owns the member';
comment on column presence.shared_online.status is 'a short text; NULL is none';
comment on column presence.shared_online.state is 'the live state';
comment on column presence.shared_online.metadata is 'slow-changing facts';
comment on column presence.shared_online.audience is 'who may see the member; NULL except for the owner and service roles';
comment on column presence.shared_online.version is 'grows with every visible change: the newest wins';
comment on column presence.shared_online.joined_at is 'when this stay began';
comment on column presence.shared_online.updated_at is 'when status, state, metadata, audience or owner changed last';
comment on column presence.shared_online.last_seen_at is 'when the member was last seen, as of its last change';
comment on column presence.shared_online.expires_at is 'NULL: leases are not copied';
comment on column presence.shared_online.ttl is 'how long the lease lasts after each renewal';
comment on column presence.shared_online.session_pid is 'NULL';
comment on column presence.shared_online.node is 'the server where the member is';
