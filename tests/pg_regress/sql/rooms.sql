-- Rooms: settings, shared state, rights, and their effect on members.
reset role;
create function test.flushed() returns bigint language plpgsql as $$
begin
    if not presence.wait_for_flush('10 s') then raise 'not flushed'; end if;
    return presence.seq();
end
$$;
create function test.room(r presence.room) returns text language sql as $$
    select concat_ws(' | ', r.room, left(r.metadata::text, 80), 'audience ' || r.audience::text, 'count ' || r.count_audience::text, 'ttl ' || r.ttl, 'max ' || r.max_members,
                     'history ' || r.keep_history)
$$;

-- set_room makes the row, get_room reads it; a room does not need one.
select count(*) from presence.get_room('plan');
select test.room(presence.set_room('plan'));
select version as v1, created_at as created from presence.get_room('plan') \gset
-- NULL keeps, a value sets
select test.room(presence.set_room('plan', '{"title": "Plan", "mode": "war"}', audience => '{room,any,any}', count_audience => '{users}', ttl => '5 min', max_members => 3, keep_history => false));
select test.room(presence.set_room('plan', keep_history => true));
select test.room(presence.set_room('plan', max_members => 5));
select test.room(presence.set_room('plan', audience => '{}'));
select test.room(presence.set_room('plan', audience => '{users}'));
select version > :v1 as newer, created_at = :'created' as created, updated_at > created_at as updated from presence.get_room('plan');
-- metadata is replaced, patch is merged, with both the patch is merged into the new metadata
select metadata from presence.set_room('plan', '{"title": "Other"}');
select metadata from presence.set_room('plan', patch => '{"locked": true, "nested": {"a": 1, "b": null}}');
select metadata from presence.set_room('plan', patch => '{"title": null, "nested": {"a": null, "c": 2}}');
select metadata from presence.set_room('plan', '{"x": 1}', '{"y": 2}');
select metadata from presence.set_room('fresh', patch => '{"y": 2, "z": null}');
-- a column is set to NULL by UPDATE
update presence.room r set ttl = null, max_members = null, count_audience = null, audience = null where room = 'plan' returning test.room(r);
update presence.room set metadata = null where room = 'plan' returning metadata;
-- errors
select left(s, 80) as statement, e.* from unnest(array[
    $$ select presence.set_room(null) $$, $$ select presence.set_room('') $$, $$ select presence.set_room(repeat('x', 256)) $$,
    $$ select presence.set_room('plan', ttl => '0.5 s') $$, $$ select presence.set_room('plan', ttl => '31 days') $$,
    $$ select presence.set_room('plan', max_members => 0) $$, $$ select presence.set_room('plan', audience => '{everybody}') $$,
    $$ select presence.set_room('plan', count_audience => '{any,null}') $$, $$ select presence.set_room('plan', patch => '[1]') $$,
    $$ select presence.get_room(null) $$, $$ select presence.get_room('') $$, $$ select presence.delete_room(null) $$, $$ select presence.delete_room('') $$,
    $$ update presence.room set room = 'x' where room = 'plan' $$, $$ insert into presence.room (room) values ('plan') $$,
    $$ insert into presence.room (room) values ('') $$]) s, test.error(s) e;
select test.room(r) from presence.room r order by room;

-- Rights: service roles, and those whom the authorizer lets manage. Others see what the audience allows, by default members.
set role regress_alice;
select s, e.code, e.message from unnest(array[$$ select presence.set_room('plan', '{}') $$, $$ select presence.set_room('new') $$, $$ select presence.delete_room('plan') $$,
    $$ insert into presence.room (room) values ('new') $$]) s, test.error(s) e;
with w as (update presence.room set metadata = '{"mine": 1}' returning 1) select count(*) as updated from w;
with w as (delete from presence.room returning 1) select count(*) as deleted from w;
select count(*) from presence.get_room('plan');
select (presence.upsert('plan')).room;
select test.room(r) from presence.get_room('plan') r;
reset role;
select audience from presence.set_room('plan', '{"for": "bob"}', audience => '{user:regress_bob}');
set role regress_alice;
select count(*) from presence.get_room('plan');
set role regress_bob;
select test.room(r) from presence.get_room('plan') r;
reset role;
create function test.authorize(room text, action text) returns boolean language sql stable as $$
    select case action when 'manage' then current_user = 'regress_carol' and room = 'plan' else true end
$$;
set presence.authorizer = 'test.authorize';
set role regress_carol;
select test.room(presence.set_room('plan', patch => '{"by": "carol"}'));
update presence.room r set metadata = metadata || '{"sql": true}' where room = 'plan' returning test.room(r);
select e.code, e.message from unnest(array[$$ select presence.set_room('fresh') $$, $$ select presence.set_room('new') $$, $$ insert into presence.room (room) values ('new') $$, $$ select presence.delete_room('fresh') $$]) s, test.error(s) e;
select room from presence.room;
-- a manager can remove members, also one that it cannot see
select count(*) from presence.get('plan', 'regress_alice');
select test.flushed() as before \gset
select presence.delete_room('plan');
select test.flushed() is not null as published \gset
reset role;
select event, room, member_id, reason, connections from test.log(:before) where event = 'leave';
select room from presence.room order by 1;
reset presence.authorizer;
drop function test.authorize(text, text);
select presence.delete_room('fresh'), presence.delete_room('never');

-- A room event: when metadata changes, in whatever way, to the room's audience; and for no other change.
select test.flushed() as before \gset
select (presence.set_room('news', '{"n": 1}', audience => '{user:regress_bob}')).room;
select test.flushed() is not null as published \gset
select (presence.set_room('news', '{"n": 1}')).metadata, (presence.set_room('news', max_members => 9)).max_members, (presence.set_room('news', patch => '{"n": 1}')).metadata;
update presence.room set ttl = '1 min', metadata = '{"n": 1}' where room = 'news';
select test.flushed() = :before + 1 as one;
update presence.room set metadata = '{"n": 2}' where room = 'news';
select test.flushed() is not null as published \gset
select event, room, member_id, user_id, status, state, metadata, connections, reason, version is not null as has_version, at is not null as has_time, audience
from presence.event where seq > :before order by seq;
set role regress_bob;
select event, room, metadata from presence.changes(:before) where event <> 'position';
set role regress_alice;
select event, room, metadata from presence.changes(:before) where event <> 'position';
reset role;
-- the event is not older than the row that it describes, nor newer than the next, so that the newest wins
select e.version >= r.version as not_older from presence.event e, presence.room r where e.seq > :before and e.room = 'news' and r.room = 'news' and e.metadata = r.metadata;
-- rolled back: no event; several changes in a transaction: the last one
select test.flushed() as before \gset
begin;
select (presence.set_room('news', '{"n": 3}')).metadata;
rollback;
select test.flushed() = :before as nothing;
begin;
savepoint a;
select (presence.set_room('news', '{"n": 4}')).metadata;
rollback to a;
select (presence.set_room('news', '{"n": 5}')).metadata;
select (presence.set_room('news', '{"n": 6}')).metadata;
commit;
select test.flushed() is not null as published \gset
select (array_agg(metadata order by seq desc))[1] as last, bool_and(metadata in ('{"n": 5}', '{"n": 6}')) as no_other from presence.event where seq > :before;
select presence.delete_room('news');

-- Defaults: ttl and audience of members that enter without giving them; present members keep theirs.
set role regress_alice;
select (presence.upsert('def', connection_id => 'before')).ttl;
reset role;
select (presence.set_room('def', ttl => '10 min', audience => '{users}')).ttl;
set role regress_alice;
select connection_id, expires_at - last_seen_at as lease, audience from presence.get('def');
select (presence.upsert('def', connection_id => 'after')).connection_id, (presence.upsert('def', connection_id => 'own', ttl => '1 h', audience => '{}')).connection_id;
select connection_id, expires_at - last_seen_at as lease, audience from presence.get('def');
insert into presence.member (room, connection_id) values ('def', 'dml') returning expires_at - last_seen_at as lease, audience;
-- a heartbeat renews for the room's ttl
select presence.heartbeat('def', connection_id => 'after');
select expires_at - last_seen_at as lease from presence.get('def', connection_id => 'after');
set role regress_bob;
select connection_id from presence.get('def', 'regress_alice');
reset role;
update presence.member set audience = null, ttl = null where room = 'def' and connection_id = 'before' returning audience, ttl;
select presence.delete_room('def');

-- max_members: one too many is refused; present members renew, change, leave, and are renewed by others; then there is room.
select (presence.set_room('full', max_members => 2, audience => '{any}')).max_members;
select (presence.upsert('full', '1', user_id => 'u1')).room, (presence.upsert('full', '2', user_id => 'u2')).room;
select test.flushed() as before \gset
select e.* from test.error($$ select presence.upsert('full', user_id => 'u3') $$) e \gx
select e.code, e.message from unnest(array[$$ insert into presence.member (room, member_id, user_id) values ('full', 'u3', 'u3') $$,
    $$ select presence.upsert('full', user_id => 'u1', connection_id => 'second') $$,
    $$ select presence.upsert_many('[{"room": "full", "user_id": "u3"}]') $$,
    $$ select presence.upsert_many('[{"room": "full", "user_id": "u1", "state": "changed"}, {"room": "full", "user_id": "u3"}]') $$]) s, test.error(s) e;
select test.flushed() = :before as nothing;
select presence.upsert_many('[{"room": "full", "user_id": "u1"}, {"room": "full", "user_id": "u2", "state": "new"}]');
select member_id, state from presence.list('full');
select count(*) as missing from presence.heartbeat_many('{full,full}', '{u1,u2}');
select state from presence.upsert('full', '"also new"', user_id => 'u1');
select count(*) from presence.update('full', '{"x": 1}', 'u2');
-- in one transaction: out and in again, out and another in
begin;
select presence.delete('full', 'u1');
select (presence.upsert('full', user_id => 'u1')).member_id;
commit;
begin;
select presence.delete('full', 'u1');
select (presence.upsert('full', user_id => 'u3')).member_id;
select e.message from test.error($$ select presence.upsert('full', user_id => 'u1') $$) e;
commit;
select member_id from presence.list('full');
-- a smaller limit removes nobody, and present members can still change
select (presence.set_room('full', max_members => 1)).max_members;
select state from presence.upsert('full', '"stays"', user_id => 'u3');
select presence.delete('full', 'u2');
select e.message from test.error($$ select presence.upsert('full', user_id => 'u2') $$) e;
select presence.delete('full', 'u3');
select (presence.upsert('full', user_id => 'u2', ttl => '1 s')).member_id;
-- an expired member takes no place, whether it is swept or not
begin;
select member_id from presence.member where room = 'full' for update;
select pg_sleep(1.05) is not null as past;
select (presence.upsert('full', user_id => 'u4')).member_id;
commit;
-- rolled back: no place is taken
begin;
select presence.delete('full', 'u4');
select (presence.upsert('full', user_id => 'u5')).member_id;
rollback;
select member_id from presence.list('full');
-- the limit applies also to those who may not read the room's settings
select (presence.set_room('full', audience => '{}')).audience;
set role regress_alice;
select e.code, e.message from test.error($$ select presence.upsert('full') $$) e;
select count(*) from presence.get_room('full');
reset role;
select presence.delete_room('full');

-- count_audience: the full numbers, no names.
select (presence.set_room('stage', count_audience => '{any}')).count_audience;
select count(presence.upsert('stage', user_id => u, connection_id => c, audience => '{}')) from unnest(array['u1', 'u2', 'u3']) u, unnest(array['', '2']) c;
set role regress_bob;
select * from presence.occupancy('stage');
select count(*) from presence.list('stage');
select * from presence.occupancy();
select * from presence.rooms('stage');
reset role;
update presence.room set count_audience = '{user:regress_carol}' where room = 'stage';
set role regress_bob;
select * from presence.occupancy('stage');
set role regress_carol;
select * from presence.occupancy('stage');
reset role;
update presence.room set count_audience = '{room}' where room = 'stage' returning count_audience;
set role regress_bob;
select * from presence.occupancy('stage');
select (presence.upsert('stage')).room;
select * from presence.occupancy('stage');
reset role;
-- the authorizer decides here, too
create function test.authorize(room text, action text) returns boolean language sql stable as $$ select action <> 'read' $$;
set presence.authorizer = 'test.authorize';
set role regress_bob;
select * from presence.occupancy('stage');
reset role;
reset presence.authorizer;
drop function test.authorize(text, text);
select presence.delete_room('stage');
select * from presence.occupancy('stage');

-- delete_room: all members are removed, the settings are gone, and the room can be made again. It is one transaction.
select (presence.set_room('gone', ttl => '10 min')).room;
select count(presence.upsert('gone', user_id => u)) from unnest(array['u1', 'u2']) u;
select test.flushed() as before \gset
begin;
select presence.delete_room('gone');
rollback;
select * from presence.occupancy('gone');
select presence.delete_room('gone'), presence.delete_room('gone');
select test.flushed() is not null as published \gset
select event, member_id, reason, connections from test.log(:before) where event = 'leave' and room = 'gone' order by 2;
select count(*) from presence.get_room('gone');
select (presence.upsert('gone', user_id => 'u1')).ttl as default_again;
select presence.delete_room('gone') as without_settings;

-- A dump contains the rooms, and nothing else of the extension.
select extconfig::regclass[] from pg_extension where extname = 'presence_ext';
select relpersistence from pg_class where oid = 'presence.room'::regclass;
select count(*) from presence.room;
select test.wait_until('not exists (select from presence.member)');
drop function test.flushed(), test.room(presence.room);

-- Metadata has the same limit as a member's state.
\set SHOW_CONTEXT never
set presence.max_state_size = '1kB';
select presence.set_room('large', to_jsonb(repeat('x', 2000)));
select (presence.set_room('large', '{"a": 1}')).metadata;
select presence.set_room('large', patch => jsonb_build_object('b', repeat('x', 2000)));
update presence.room set metadata = to_jsonb(repeat('x', 2000)) where room = 'large';
reset presence.max_state_size;
select presence.delete_room('large');

-- An invalid default audience is refused where it is set.
set presence.default_audience = 'room, everybody';
set presence.default_audience = 'room:';
set presence.default_audience = ' users ,team:red';
show presence.default_audience;
reset presence.default_audience;
