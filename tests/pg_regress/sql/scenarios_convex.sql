-- Convex's presence component (CV). A room is a room, a user a user_id, a session a connection_id; lastDisconnected is
-- last_seen; tokens are the rights of the caller.
reset role;
create function test.flushed() returns bigint language plpgsql as $$
begin
    if not presence.wait_for_flush('10 s') then raise 'not flushed'; end if;
    return presence.seq();
end
$$;
set role regress_alice;

-- CV-01: a heartbeat, and who is online; then no more heartbeats, and who is offline, since when.
select (presence.upsert('doc', connection_id => 's1', ttl => '1 s', audience => '{users}')).room;
set role regress_bob;
select user_id, online from presence.last_seen where user_id = 'regress_alice';
select test.wait_until($$ exists (select from presence.last_seen where user_id = 'regress_alice' and not online) $$);
select online, last_seen_at between now() - interval '20 s' and now() as lately from presence.last_seen where user_id = 'regress_alice';
select count(*) from presence.list('doc');

-- CV-02: heartbeats keep it online beyond the first deadline.
set role regress_alice;
select expires_at as deadline from presence.upsert('doc', connection_id => 's1', ttl => '1 s', audience => '{users}') \gset
do $$
begin
    for turn in 1..7 loop
        if not presence.heartbeat('doc', connection_id => 's1') then raise 'lost'; end if;
        perform pg_sleep(0.2);
    end loop;
end
$$;
select clock_timestamp() > :'deadline' as past, online from presence.last_seen where user_id = 'regress_alice';

-- CV-03: disconnect: offline at once; what the worker does later does nothing. An unknown token does nothing.
select test.flushed() as before \gset
select presence.delete('doc', connection_id => 's1');
select online from presence.last_seen where user_id = 'regress_alice';
select pg_sleep(1.05) is not null as past_the_deadline;
select test.flushed() is not null as published \gset
select event, reason from test.log(:before);
select presence.delete('doc', connection_id => 'unknown');

-- CV-04: one of two tabs times out and the other sends heartbeats: online; when the last one disconnects: offline.
select test.flushed() as before \gset
select (presence.upsert('doc', connection_id => 'lost', ttl => '1 s')).connection_id;
select (presence.upsert('doc', connection_id => 'beats', ttl => '1 h')).connection_id;
select test.wait_until(format($$ exists (select from presence.event where seq > %s and reason = 'expired') $$, :before));
select user_id, members from presence.users('doc');
select online from presence.last_seen where user_id = 'regress_alice';
select presence.delete('doc', connection_id => 'beats');
select online from presence.last_seen where user_id = 'regress_alice';
select test.flushed() is not null as published \gset
select event, connection_id, reason, connections from test.log(:before) where event = 'leave';

-- CV-05: a heartbeat after a timeout returns false, so the client enters again, as a new stay.
select joined_at as joined from presence.upsert('doc', ttl => '1 s') \gset
select pg_sleep(1.05) is not null as past;
select presence.heartbeat('doc') as alive;
select joined_at > :'joined' as new_stay from presence.upsert('doc', ttl => '1 h');
select presence.heartbeat('doc') as alive, (select online from presence.last_seen where user_id = 'regress_alice');
select presence.delete_all();

-- CV-06: many expire together: all are offline, and each has left once.
set role regress_gateway;
select test.flushed() as before \gset
select presence.upsert_many((select jsonb_agg(jsonb_build_object('room', 'doc', 'user_id', 'u' || n, 'connection_id', 's' || n, 'ttl', '1 s')) from generate_series(1, 70) n));
select test.wait_until(format($$ (select count(*) >= 70 from presence.event where seq > %s and event = 'leave') $$, :before));
select test.flushed() is not null as published \gset
select event, reason, count(*), count(distinct member_id) from test.log(:before) group by 1, 2 order by 1;
select * from presence.occupancy('doc');

-- CV-07: a short lease that begins while the worker waits for a long one ends in time.
select (presence.upsert('doc', user_id => 'long', ttl => '1 h')).member_id;
select test.flushed() as before \gset
select expires_at as deadline from presence.upsert('doc', user_id => 'short', ttl => '1 s') \gset
select test.wait_until(format($$ exists (select from presence.event where seq > %s and event = 'leave') $$, :before));
select clock_timestamp() between :'deadline' and :'deadline'::timestamptz + interval '10 s' as in_time;
select user_id from presence.users('doc');
select presence.delete_all('long');

-- CV-08: a caller without the right sees nobody.
set role regress_alice;
select (presence.upsert('doc', '{"x": 1}')).room;
set role regress_bob;
select count(*) from presence.list('doc');
select count(*) from presence.users('doc');
select count(*) from presence.last_seen where user_id = 'regress_alice' and online;

-- CV-09: updated data is in the list.
set role regress_alice;
select state, metadata from presence.update('doc', '{"cursor": [1, 2]}', metadata => '{"name": "A"}');
select state, metadata from presence.users('doc');
select state from presence.list('doc');

-- CV-10: a removed user is gone, not only offline; the deadline has no effect later. A removed room is empty.
reset role;
select test.flushed() as before \gset
select (presence.upsert('doc', user_id => 'gone', ttl => '1 s')).member_id;
select presence.delete('doc', 'gone');
select presence.forget('gone') is not null as forgotten;
select test.flushed() is not null as published \gset
select presence.forget('gone') is not null as forgotten;
select pg_sleep(1.05) is not null as past_the_deadline;
select test.flushed() is not null as published \gset
select count(*) from presence.last_seen where user_id = 'gone';
select count(*) from presence.event where user_id = 'gone';
select presence.delete_room('doc');
select count(*) from presence.list('doc');

-- CV-11: the rooms of a user; the users of a room with the time when they were last seen, those online first.
select count(presence.upsert(r, user_id => 'u1', audience => '{users}')) from unnest(array['r1', 'r2', 'r3']) r;
select room from presence.online where user_id = 'u1' order by room;
select presence.delete('r2', 'u1');
select room from presence.online where user_id = 'u1' order by room;
select presence.delete_all('u1');
select count(presence.upsert('r1', user_id => u, audience => '{users}')) from unnest(array['a', 'b', 'c', 'd']) u;
select presence.delete('r1', 'a');
select presence.delete('r1', 'c');
select test.wait_until($$ (select count(*) = 2 from presence.last_seen where user_id in ('a', 'c') and not online) $$);
set role regress_bob;
select user_id, online from presence.last_seen where user_id = any(array['a', 'b', 'c', 'd']) order by online desc, case when online then user_id end, last_seen_at desc;
select user_id from presence.last_seen where user_id = any(array['a', 'b', 'c', 'd']) and online order by 1;

-- CV-12: there a session is of one room and user; here a connection may be in as many rooms as it likes, and two users may
-- both call theirs "1".
reset role;
select count(presence.upsert(r, user_id => u, connection_id => '1')) from unnest(array['x', 'y']) r, unnest(array['u1', 'u2']) u;
select presence.delete_all('u1', '1');
select room, user_id from presence.online where connection_id = '1' order by 1, 2;

select count(presence.delete_all(user_id)) from (select distinct user_id from presence.online) u;
select count(*) from presence.member;
drop function test.flushed();
