-- What events and functions show of a member. It is the row type of the functions, so new columns go at the end.
create view presence.online with (security_invoker = true) as
select m.room,
       m.member_id,
       m.connection_id,
       m.user_id,
       case when m.reverts is null then m.status
            else _presence._current_status(m.status, m.reverts, m.key_hash, m.version) end as status,
       case when m.reverts is null then m.state
            else _presence._current_state(m.state, m.reverts, m.key_hash, m.version) end as state,
       m.metadata,
       case when m.user_id operator(pg_catalog.=) (select presence.user_id()) or (select presence.is_service())
            then m.audience end as audience,
       m.version,
       m.joined_at,
       m.updated_at,
       _presence._last_seen_at(m.key_hash, m.version, m.generation, m.deadline, m.session, m.ttl, m.last_seen_at)
           as last_seen_at,
       _presence._expires_at(m.key_hash, m.version, m.generation, m.deadline, m.session) as expires_at,
       m.ttl,
       case when m.user_id operator(pg_catalog.=) (select presence.user_id()) or (select presence.is_service())
            then m.session_pid end as session_pid,
       _presence._node_name() as node
from presence.member m
where _presence._is_alive(m.key_hash, m.version, m.generation, m.deadline, m.session);
comment on view presence.online is
    'Every member that is here and that the caller may see. A member is here until its lease ends, to the '
    'microsecond. audience and session_pid are NULL except for the owner and service roles; node where the server has no '
    'name (presence.node_name).';

-- The worker redefines online as this when the first beat of another server arrives, to add its members. Until then no
-- query plans for them. The two halves select plain columns, so that each is searched by its indexes.
create view _presence._everywhere with (security_invoker = true) as
select m.room,
       m.member_id,
       m.connection_id,
       m.user_id,
       case when m.reverts is null then m.status
            else _presence._current_status(m.status, m.reverts, m.key_hash, m.version) end as status,
       case when m.reverts is null then m.state
            else _presence._current_state(m.state, m.reverts, m.key_hash, m.version) end as state,
       m.metadata,
       case when m.user_id operator(pg_catalog.=) (select presence.user_id()) or (select presence.is_service())
            then m.audience end as audience,
       case when m.node is null then m.version else _presence._version_here(m.node, m.version) end as version,
       m.joined_at,
       m.updated_at,
       case when m.node is null
            then _presence._last_seen_at(m.key_hash, m.version, m.generation, m.deadline, m.session, m.ttl, m.last_seen_at)
            else m.last_seen_at end as last_seen_at,
       case when m.node is null
            then _presence._expires_at(m.key_hash, m.version, m.generation, m.deadline, m.session) end as expires_at,
       m.ttl,
       case when m.user_id operator(pg_catalog.=) (select presence.user_id()) or (select presence.is_service())
            then m.session_pid end as session_pid,
       coalesce(m.node, _presence._node_name()) as node
from (select h.room, h.member_id, h.connection_id, h.user_id, h.status, h.state, h.metadata, h.audience, h.version,
             h.joined_at, h.updated_at, h.last_seen_at, h.ttl, h.generation, h.deadline, h.session, h.session_pid, h.key_hash,
             h.reverts, null::text as node
      from presence.member h
      union all
      select s.room, s.member_id, s.connection_id, s.user_id, s.status, s.state, s.metadata, s.audience, s.version,
             s.joined_at, s.updated_at, s.last_seen_at, s.ttl, null::bigint, null::bigint, null::bigint, null::integer,
             null::uuid, null::jsonb, s.node
      from presence.shared s) m
where case when m.node is null then _presence._is_alive(m.key_hash, m.version, m.generation, m.deadline, m.session)
           else _presence._is_elsewhere(m.node) end;
comment on view _presence._everywhere is 'What presence.online is where there are other servers.';

create function presence.upsert(
    room          text,
    state         jsonb    default null,
    member_id     text     default null,
    connection_id text     default '',
    status        text     default null,
    metadata      jsonb    default null,
    ttl           interval default null,
    audience      text[]   default null,
    session       boolean  default null,
    user_id       text     default null,
    revert_after  interval default null
) returns presence.online
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_upsert';
comment on function presence.upsert(text, jsonb, text, text, text, jsonb, interval, text[], boolean, text, interval) is
    'Enter a room, or change what is there. NULL keeps the current value (on enter: {}, no status, {}, the default ttl '
    'and audience); an empty status clears it; audience {} is visible to the owner only; ttl 0 is the default, '
    'otherwise 1 second to 30 days. If nothing changes, it only renews the lease: no event, no write. session => true: '
    'leaves when this database session ends. revert_after: after this time, at most 100 years, what this call changed '
    'in status and state is undone, unless a later call sets it again. Errors: 22023 invalid names, ttl, audience or '
    'revert_after; 54000 state too large, or too many members; 42501 no identity, a member_id that is not yours, '
    'another user''s member, not authorized to join; 0A000 no session members here; 25006 a read-only transaction or a '
    'standby. For a JSON merge patch see presence.update.';

create function _presence._merge_patch(target jsonb, patch jsonb) returns jsonb
    language c immutable parallel safe as 'MODULE_PATHNAME', 'presence_merge_patch';
comment on function _presence._merge_patch(jsonb, jsonb) is 'JSON merge patch, RFC 7396.';

create function presence.update(
    room          text,
    patch         jsonb    default null,
    member_id     text     default null,
    connection_id text     default '',
    status        text     default null,
    metadata      jsonb    default null,
    audience      text[]   default null,
    ttl           interval default null,
    revert_after  interval default null
) returns setof presence.online
    language c volatile parallel unsafe rows 1 as 'MODULE_PATHNAME', 'presence_update';
comment on function presence.update(text, jsonb, text, text, text, jsonb, text[], interval, interval) is
    'Change a member that is here by a JSON merge patch (RFC 7396) on state, and renew its lease. Returns no row if it '
    'is not here: a late update does not bring back a member that has left. revert_after and errors as in '
    'presence.upsert; 22023 also for a patch that is not an object.';

create function presence.heartbeat(room text, member_id text default null, connection_id text default '')
    returns boolean
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_heartbeat';
comment on function presence.heartbeat(text, text, text) is
    'Renew the lease: touches no table, writes no WAL, works in a read-only transaction, and is not undone by a '
    'rollback. Returns false if you have no such member: call presence.upsert then. Errors: 22023 invalid names; 42501 '
    'no identity; 25006 a standby, or a read-only transaction and a lease without a slot.';

create function presence.heartbeat_many(
    rooms          text[],
    member_ids     text[] default null,
    connection_ids text[] default null
) returns table (room text, member_id text, connection_id text)
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_heartbeat_many';
comment on function presence.heartbeat_many(text[], text[], text[]) is
    'Renew many leases. Returns those that do not exist. NULL member_ids stands for the caller, NULL connection_ids '
    'for the empty connection_id. Errors: 22023 invalid names, or arrays of different lengths; otherwise as '
    'presence.heartbeat.';

create function presence.delete(
    room          text,
    member_id     text     default null,
    connection_id text     default '',
    state         jsonb    default null,
    reason        text     default null,
    after         interval default null
) returns integer
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_delete';
comment on function presence.delete(text, text, text, jsonb, text, interval) is
    'Leave. state is a last word, shown by the leave event. A NULL connection_id means all connections of the member. '
    'With after they leave when that time is over, unless an upsert comes first (heartbeat and update do not cancel '
    'it) or their lease ends first; the last call counts. Returns how many leave; 0 if nobody is there. Service roles '
    'may give a reason: left, disconnected or removed. Errors: 22023 invalid names, reason or after; 42501 no '
    'identity, or another user''s member; 25006 a read-only transaction or a standby.';

create function presence.delete_all(user_id text default null, connection_id text default null) returns integer
    language c volatile parallel unsafe as 'MODULE_PATHNAME', 'presence_delete_all';
comment on function presence.delete_all(text, text) is
    'Leave every room, as on sign-out; with connection_id, only that connection. A user_id other than the caller''s '
    'requires a service role. Returns how many members left. Errors: 22023 invalid names; 42501 no identity, or '
    'another user; 25006 a read-only transaction or a standby.';
