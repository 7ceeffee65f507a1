-- Centrifugo: presence and presence_stats (CF), and the map broker on PostgreSQL (CM). A channel is a room, a user the
-- user_id and member_id, a client the connection_id; a stream with offsets is the log with seq.
reset role;
create function test.flushed() returns bigint language plpgsql as $$
begin
    if not presence.wait_for_flush('10 s') then raise 'not flushed'; end if;
    return presence.seq();
end
$$;
set role regress_gateway;

-- CF-01: the same client twice is one client; the second time renews it.
select last_seen_at as seen from presence.upsert('channel', user_id => 'u1', connection_id => 'c1') \gset
select last_seen_at > :'seen' as renewed from presence.upsert('channel', user_id => 'u1', connection_id => 'c1');
select * from presence.occupancy('channel');
-- CF-02: two clients of one user: 2 clients, 1 user.
select (presence.upsert('channel', user_id => 'u1', connection_id => 'c2')).connection_id;
select * from presence.occupancy('channel');
select user_id, members from presence.users('channel');
-- CF-03: remove; unknown clients and channels are no error.
select presence.delete('channel', 'u1', 'c1') as one, presence.delete('channel', 'u1', 'unknown') as unknown, presence.delete('unknown', 'u1', 'c1') as unknown;
select * from presence.occupancy('channel');
select presence.delete('channel', 'u1', 'c2');
select * from presence.occupancy('channel');
-- CF-04: an unknown channel: 0 and 0, and nobody.
select * from presence.occupancy('unknown');
select count(*) from presence.list('unknown');
select presence.state('unknown');
-- CF-05: only clients that are not renewed go, and the numbers follow, also those of each user.
select count(presence.upsert('channel', user_id => u, connection_id => c, ttl => '1 s')) from unnest(array['u1', 'u2']) u, unnest(array['kept', 'lost']) c;
do $$
declare
    missing record;
begin
    for turn in 1..14 loop
        for missing in select * from presence.heartbeat_many('{channel,channel}', '{u1,u2}', '{kept,kept}') loop
            raise 'lost %', missing;
        end loop;
        perform pg_sleep(0.1);
    end loop;
end
$$;
select user_id, members from presence.users('channel');
select * from presence.occupancy('channel');
select member_id, connection_id from presence.heartbeat_many('{channel,channel,channel}', '{u1,u1,u2}', '{kept,lost,lost}');
select presence.delete('channel', u, null) from unnest(array['u1', 'u2']) u;

-- CF-06: anonymous clients are one user there; here a member has an owner, so a gateway gives its guests one name.
select count(presence.upsert('channel', user_id => 'guest', connection_id => n::text)) from generate_series(1, 3) n;
select * from presence.occupancy('channel');
select presence.delete_all('guest');

-- CF-08: joins and leaves are pushed to those who may see them; CF-09: a node that is gone renews nothing.
select test.flushed() as before \gset
select count(presence.upsert('node', user_id => 'u' || n, connection_id => 'node1', ttl => '1 s')) from generate_series(1, 3) n;
select test.wait_until(format($$ (select count(*) = 3 from presence.event where seq > %s and event = 'leave') $$, :before));
select event, reason, count(*) from test.log(:before) group by 1, 2 order by 1;

-- CM-01: publish: the state and the stream have it, with positions that grow by one.
select test.flushed() as before \gset
select (presence.upsert('map', '{"n": 1}', member_id => 'key1')).state;
select test.flushed() is not null as published \gset
select (presence.upsert('map', '{"n": 2}', member_id => 'key1')).state;
select test.flushed() is not null as published \gset
select (presence.upsert('map', '{"n": 1}', member_id => 'key2')).state;
select test.flushed() is not null as published \gset
select seq - :before as position, event, member_id, state from presence.changes(:before, 'map');
select member_id, state from presence.list('map');

-- CM-02: only if new is INSERT, only if there is update.
insert into presence.member (room, member_id, state) values ('map', 'key1', '"no"'), ('map', 'key3', '"yes"') on conflict do nothing returning member_id, state;
select state from presence.update('map', member_id => 'key1', status => 'kept');
select count(*) from presence.update('map', '{"x": 1}', member_id => 'missing');

-- CM-04: versions are given by the server, one for each change, and never go back, also across a removal; the newest counts,
-- so an older event changes nothing at a client (AB-03).
select version as v1 from presence.get('map', 'key1') \gset
select version > :v1 as newer from presence.upsert('map', '{"n": 3}', member_id => 'key1');
select version as v2 from presence.get('map', 'key1') \gset
select presence.delete('map', 'key1');
select version > :v2 as not_reset from presence.upsert('map', '{"n": 1}', member_id => 'key1');
-- a row whose version is no longer the newest is not overwritten by a conditional update
select count(*) from (select 1 from presence.member where room = 'map' and member_id = 'key1' and version = :v2) m;
with w as (update presence.member set state = '"stale"' where room = 'map' and member_id = 'key1' and version = :v2 returning 1) select count(*) as written from w;

-- CM-07: a removal is one event; a missing or expired row makes none.
select test.flushed() as before \gset
select presence.delete('map', 'key2'), presence.delete('map', 'key2'), presence.delete('map', 'missing');
select test.flushed() is not null as published \gset
select event, member_id, reason from test.log(:before);
select test.flushed() as before \gset
select (presence.upsert('map', member_id => 'brief', ttl => '1 s')).member_id;
select pg_sleep(1.05) is not null as past;
select presence.delete('map', 'brief') as expired;
select test.wait_until(format($$ exists (select from presence.event where seq > %s and event = 'leave') $$, :before));
select test.flushed() is not null as published \gset
select event, member_id, reason from test.log(:before);

-- CM-08: the ttl passes: gone, and the removal is published. A publication that changes nothing is no event, and renews.
select test.flushed() as before \gset
select (presence.upsert('map', '{"same": 1}', member_id => 'same', ttl => '1 s')).member_id;
do $$
begin
    for turn in 1..7 loop
        perform presence.upsert('map', '{"same": 1}', member_id => 'same');
        commit;
        perform pg_sleep(0.2);
    end loop;
end
$$;
select count(*) as still from presence.get('map', 'same');
select test.wait_until(format($$ exists (select from presence.event where seq > %s and event = 'leave') $$, :before));
select count(*) as still from presence.member where room = 'map' and member_id = 'same';
select event, state, reason from test.log(:before);

-- CM-09: pages without repeats; one key.
select presence.upsert_many((select jsonb_agg(jsonb_build_object('room', 'pages', 'user_id', 'k' || n)) from generate_series(1, 25) n));
create function pg_temp.pages(size integer) returns text language plpgsql as $$
declare
    seen text[] := '{}';
    page text[];
    place text[];
    turns integer := 0;
begin
    loop
        select array_agg(member_id), array[max(member_id), ''] into page, place from presence.list('pages', size, place);
        exit when page is null;
        seen := seen || page;
        turns := turns + 1;
    end loop;
    return format('%s pages, %s keys, %s different', turns, cardinality(seen), (select count(distinct k) from unnest(seen) k));
end
$$;
select size, pg_temp.pages(size) from unnest(array[1, 10, 25, 1000]) size;
select member_id from presence.get('pages', 'k7');

-- CM-11: clear a channel: state gone, other channels untouched.
reset role;
select presence.delete_room('pages');
select count(*) from presence.list('pages');
select room, members from presence.rooms();

-- CM-13: the number of clients; and a client's data comes with state and stream.
set role regress_gateway;
select test.flushed() as before \gset
select (presence.upsert('map', '{"chan": "info"}', user_id => 'u9', connection_id => 'c9', status => 's', metadata => '{"conn": "info"}')).member_id;
select test.flushed() is not null as published \gset
select * from presence.occupancy('map');
select user_id, connection_id, state, metadata, status from presence.get('map', 'u9');
select user_id, connection_id, state, metadata, status from presence.changes(:before, 'map') where event = 'enter';

-- CM-15: a client that is bound to its connection leaves with it; one that belongs to a user only when its ttl ends.
select test.flushed() as before \gset
select (presence.upsert('both', user_id => 'u1', connection_id => 'client', session => true)).connection_id;
select (presence.upsert('both', user_id => 'u1', connection_id => 'user', ttl => '1 h')).connection_id;
\connect -
select test.wait_until($$ not exists (select from presence.member where connection_id = 'client') $$);
select test.flushed() is not null as published \gset
select event, connection_id, reason, connections from test.log(:before) where event = 'leave';
select connection_id from presence.list('both');

select count(presence.delete_all(user_id)) from (select distinct user_id from presence.online) u;
select count(*) from presence.member;
drop function test.flushed();
