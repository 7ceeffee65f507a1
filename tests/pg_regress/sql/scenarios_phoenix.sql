-- Phoenix.Tracker and Phoenix.Presence (PH). A topic is a room, a key a member_id, a pid a connection_id, a meta a state.
reset role;
create function test.flushed() returns bigint language plpgsql as $$
begin
    if not presence.wait_for_flush('10 s') then raise 'not flushed'; end if;
    return presence.seq();
end
$$;
set presence.member_ids = 'any';
set role regress_alice;

-- PH-01: track: a ref, and list shows the key.
select version > 0 as ref from presence.upsert('topic', '{"name": "me"}', member_id => 'me', connection_id => 'pid1');
select member_id, state from presence.list('topic');

-- PH-02: track again is an error there (already_tracked) and an update here; INSERT is track that fails. Another key or
-- another topic is another member.
select test.flushed() as before \gset
select state from presence.upsert('topic', '{"name": "again"}', member_id => 'me', connection_id => 'pid1');
select e.code from test.error($$ insert into presence.member (room, member_id, connection_id) values ('topic', 'me', 'pid1') $$) e;
select (presence.upsert('topic', member_id => 'other', connection_id => 'pid1')).member_id;
select (presence.upsert('topic2', member_id => 'me', connection_id => 'pid1')).room;
select test.flushed() is not null as published \gset
select event, room, member_id, state from test.log(:before);

-- PH-03: two pids under one key: one key, two metas.
select (presence.upsert('topic', '{"n": 2}', member_id => 'me', connection_id => 'pid2')).state;
select key, jsonb_array_length(value) as metas from jsonb_each(presence.state('topic')) order by key;

-- PH-04: update of what was never tracked: nopresence, which here is no row. It does not create a ghost.
select test.flushed() as before \gset
select count(*) from presence.update('topic', '{"x": 1}', member_id => 'nobody');
select count(*) from presence.update('nowhere', '{"x": 1}');
select test.flushed() = :before as nothing;
select count(*) from presence.get('topic', 'nobody');

-- PH-05: update: old and new in one event, with the same stay; a new meta, or a function of the old one.
select version as ref, joined_at as joined from presence.get('topic', 'me', 'pid1') \gset
select test.flushed() as before \gset
select version > :ref as new_ref, joined_at = :'joined' as same_stay, state from presence.update('topic', '{"typing": true}', 'me', 'pid1');
select test.flushed() is not null as published \gset
update presence.member set state = state || jsonb_build_object('count', coalesce((state ->> 'count')::integer, 0) + 1)
where room = 'topic' and member_id = 'me' and connection_id = 'pid1' returning state;
select test.flushed() is not null as published \gset
select event, member_id, connection_id, state, connections from test.log(:before);
-- a function that changes nothing makes no event
select test.flushed() as before \gset
select state from presence.update('topic', '{"typing": true}', 'me', 'pid1');
select test.flushed() = :before as nothing;

-- PH-06: untrack of nothing is accepted; untrack of a pid leaves all topics.
select presence.delete('topic', 'nobody', 'pid1') as nobody;
select test.flushed() = :before as nothing;
select presence.delete_all(connection_id => 'pid1');
select test.flushed() is not null as published \gset
select event, room, member_id, connection_id, connections, reason from test.log(:before) order by room, member_id;
select member_id, connection_id from presence.list();
select presence.delete_all();

-- PH-07: the tracked process exits: a leave with the original meta, once.
select test.flushed() as before \gset
select (presence.upsert('topic', '{"name": "tracked"}', session => true)).state;
\connect -
select test.wait_until($$ not exists (select from presence.member where room = 'topic') $$);
select presence.sweep() as nothing_more;
select test.flushed() is not null as published \gset
select event, member_id, state, reason from test.log(:before);

-- PH-08: nobody there: no rows, no error. Keys are text, also numbers.
set presence.member_ids = 'any';
set role regress_alice;
select count(*) from presence.list('unknown');
select count(*) from presence.get('unknown', 'key');
select count(presence.upsert('topic', member_id => '1')), count(presence.upsert('topic', member_id => 1::text, connection_id => 'x'));
select count(*) from presence.get('topic', 'unknown');
select member_id, pg_typeof(member_id) as type from presence.list('topic');
select presence.delete_all();

-- PH-09: fetch: one query returns all keys with other data about them.
reset role;
create table test.profile (user_id text primary key, name text);
insert into test.profile select 'u' || n, 'Name ' || n from generate_series(1, 200) n;
select presence.upsert_many((select jsonb_agg(jsonb_build_object('room', 'topic', 'user_id', 'u' || n)) from generate_series(1, 100) n));
select count(*), count(p.name) as enriched from presence.online o join test.profile p using (user_id) where o.room = 'topic';
drop table test.profile;
select sum(presence.delete_all('u' || n)) from generate_series(1, 100) n;

-- PH-10: handle_metas: the diff and the full presences after it. connections says whether the key is new (1 on enter),
-- has one more or less, or is gone (0 on leave); a topic is gone with its last key.
set role regress_alice;
create function pg_temp.diff(before bigint) returns table (diff text, key_is text, keys text, topics bigint) language sql as $$
    select e.event || ' ' || e.member_id || '/' || e.connection_id,
           case when e.event = 'enter' and e.connections = 1 then 'new' when e.event = 'leave' and e.connections = 0 then 'gone' else e.connections || ' metas' end,
           (select string_agg(l.member_id || '/' || l.connection_id, ' ' order by l.member_id, l.connection_id) from presence.list('t') l),
           (select count(*) from presence.rooms('t'))
    from test.log(before) e
$$;
select test.flushed() as before \gset
select count(presence.upsert('t', member_id => 'k1', connection_id => 'a')) \gset
select test.flushed() is not null as published \gset
select * from pg_temp.diff(:before);
select test.flushed() as before \gset
select count(presence.upsert('t', member_id => 'k2', connection_id => 'a')) \gset
select test.flushed() is not null as published \gset
select * from pg_temp.diff(:before);
select test.flushed() as before \gset
select count(presence.upsert('t', member_id => 'k1', connection_id => 'b')) \gset
select test.flushed() is not null as published \gset
select * from pg_temp.diff(:before);
select test.flushed() as before \gset
select presence.delete('t', 'k1', 'a') \gset
select test.flushed() is not null as published \gset
select * from pg_temp.diff(:before);
select test.flushed() as before \gset
select presence.delete('t', 'k1', 'b') \gset
select test.flushed() is not null as published \gset
select * from pg_temp.diff(:before);
select test.flushed() as before \gset
select presence.delete('t', 'k2', 'a') \gset
select test.flushed() is not null as published \gset
select * from pg_temp.diff(:before);

reset role;
select count(*) from presence.member;
reset presence.member_ids;
drop function test.flushed();
