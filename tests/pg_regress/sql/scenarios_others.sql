-- Pusher, Soketi, Reverb (PU), Matrix (MX), Yjs (YJ), InsForge (IF), Liveblocks (LB), Discord (DS), PubNub (PN).
reset role;
create function test.flushed() returns bigint language plpgsql as $$
begin
    if not presence.wait_for_flush('10 s') then raise 'not flushed'; end if;
    return presence.seq();
end
$$;
-- In Pusher's terms: the first connection of a member adds it, the last one removes it.
create function test.pusher(since bigint) returns setof text language sql as $$
    select case when event = 'enter' and connections = 1 then 'member_added ' when event = 'leave' and connections = 0 then 'member_removed ' end || member_id
    from presence.event where seq > since and (event = 'enter' and connections = 1 or event = 'leave' and connections = 0) order by seq
$$;
set role regress_gateway;

-- PU-02: the same user on two connections is one member: added once, removed once, after the last; the list has it once.
select test.flushed() as before \gset
select (presence.upsert('presence-room', user_id => 'u1', connection_id => '1', metadata => '{"name": "U1"}')).connection_id;
select (presence.upsert('presence-room', user_id => 'u1', connection_id => '2', metadata => '{"name": "U1"}')).connection_id;
select user_id, members, metadata from presence.users('presence-room');
select * from presence.occupancy('presence-room');
select test.flushed() is not null as published \gset
select * from test.pusher(:before);
select presence.delete('presence-room', 'u1', '1');
select test.flushed() is not null as published \gset
select * from test.pusher(:before);
select presence.delete('presence-room', 'u1', '2');
select test.flushed() is not null as published \gset
select * from test.pusher(:before);
-- both enter at once, and both leave at once
select test.flushed() as before \gset
select count(presence.upsert('presence-room', user_id => 'u1', connection_id => c)) from unnest(array['1', '2']) c;
select presence.delete('presence-room', 'u1', null);
select test.flushed() is not null as published \gset
select * from test.pusher(:before);

-- PU-03: entering again, or leaving without being there, does not change the numbers.
select count(presence.upsert('presence-room', user_id => 'u1')) from generate_series(1, 2);
select presence.delete('presence-room', 'unknown');
select * from presence.occupancy('presence-room');
select presence.delete('presence-room', 'u1');

-- PU-05: the socket closes: the member is removed, and nothing of it remains in a table or slot.
select test.flushed() as before \gset
select (presence.upsert('presence-room', user_id => 'u1', session => true)).member_id;
select (presence.upsert('other-room', user_id => 'u1', session => true)).member_id;
\connect -
select test.wait_until('not exists (select from presence.member)');
select test.flushed() is not null as published \gset
select * from test.pusher(:before);
select event, room, reason from test.log(:before) where event = 'leave' order by room;
select test.wait_until('(select slots_used <= 2 from presence.health)') as tombstones_at_most;

-- PU-06: a client that starts again has nothing but the list. PU-10: channels by prefix, with users.
select count(presence.upsert(r, user_id => u)) from unnest(array['presence-a', 'presence-b', 'private-a']) r, unnest(array['u1', 'u2']) u;
select room, users from presence.rooms('presence-');
-- PU-09: an empty channel has no users.
select count(*) from presence.users('never');
select count(presence.delete_all(u)) from unnest(array['u1', 'u2']) u;

-- PU-07: a limit of members in a channel.
select max_members from presence.set_room('presence-room', max_members => 2);
select count(presence.upsert('presence-room', user_id => u)) from unnest(array['u1', 'u2']) u;
select e.code, e.message, e.detail from test.error($$ select presence.upsert('presence-room', user_id => 'u3') $$) e;
select presence.delete_room('presence-room');

-- MX-01: a user's own status is what was set; a user who enters a room gets the presence of its members.
set role regress_alice;
select status, metadata from presence.upsert('matrix', status => 'unavailable', metadata => '{"status_msg": "lunch"}');
select status, metadata from presence.get('matrix');
set role regress_bob;
select count(*) from presence.list('matrix');
select (presence.upsert('matrix', status => 'online')).status;
select member_id, status from presence.list('matrix');
-- MX-02: setting another user's is refused; a user with whom the caller shares no room is not visible.
select e.code from test.error($$ select presence.upsert('matrix', member_id => 'regress_alice', status => 'offline') $$) e;
set role regress_carol;
select count(*) from presence.get('matrix', 'regress_alice');

-- MX-04: the most recently active device counts.
set role regress_alice;
select presence.delete_all();
select (presence.upsert('matrix', connection_id => 'desk', status => 'unavailable')).status;
select (presence.upsert('matrix', connection_id => 'phone', status => 'online')).status;
select user_id, status from presence.users('matrix') where user_id = 'regress_alice';
select presence.heartbeat('matrix', connection_id => 'desk');
select user_id, status from presence.users('matrix') where user_id = 'regress_alice';

-- MX-06: activity makes no event, however often; a changed status makes one.
select test.flushed() as before \gset
select bool_and(presence.heartbeat('matrix', connection_id => 'desk')) from generate_series(1, 100);
select count(*) from (select presence.heartbeat_many('{matrix}', connection_ids => '{desk}') from generate_series(1, 100)) missing;
select (presence.upsert('matrix', connection_id => 'desk', status => 'unavailable')).status;
select test.flushed() = :before as nothing;
select (presence.upsert('matrix', connection_id => 'desk', status => 'online')).status;
select test.flushed() is not null as published \gset
select event, connection_id, status from test.log(:before);

-- YJ-02: an update when something differs, nothing on renewal. YJ-03: without renewal a leave with a reason.
select test.flushed() as before \gset
select (presence.upsert('doc', '{"cursor": 1}', ttl => '1 s')).state;
select (presence.upsert('doc', '{"cursor": 1}')).state;
select test.wait_until(format($$ exists (select from presence.event where seq > %s and event = 'leave') $$, :before));
select event, state, reason from test.log(:before);

-- IF-01: two sockets of one presence: one join, a leave at the last. IF-03: a socket that disconnects leaves all rooms.
reset role;
select test.flushed() as before \gset
select count(presence.upsert(r, user_id => 'p1', connection_id => c)) from unnest(array['r1', 'r2']) r, unnest(array['s1', 's2']) c;
select presence.delete_all('p1', 's1');
select test.flushed() is not null as published \gset
select room, string_agg(event || ' ' || connections, ', ' order by seq) from presence.event where seq > :before group by 1 order by 1;
select presence.delete_all('p1', 's2');
select test.flushed() is not null as published \gset
select room, event, connections from test.log(:before) where connections = 0 order by room;

-- LB-01: a server sets presence, with a ttl, for a user that is not a browser; LB: a full room (PU-07).
select member_id, user_id, status, ttl from presence.upsert('doc', user_id => 'agent', status => 'thinking', ttl => '1 min');
-- DS-01: one status for each platform, all of one user.
select count(presence.upsert('guild', user_id => 'd1', connection_id => c, status => s)) from (values ('desktop', 'online'), ('mobile', 'idle')) v (c, s);
select jsonb_object_agg(connection_id, status) as client_status from presence.get('guild', 'd1');
-- PN-01: numbers without names, for rooms that are too large to announce members.
select room from presence.set_room('guild', count_audience => '{users}');
set role regress_carol;
select * from presence.occupancy('guild');
select count(*) from presence.list('guild');
reset role;
select presence.delete_room('guild');

select count(presence.delete_all(user_id)) from (select distinct user_id from presence.online) u;
select count(*) from presence.member;
drop function test.flushed(), test.pusher(bigint);
