-- get, occupancy, state and the view online: who is here, for those who may see it.
reset role;
set presence.member_ids = 'any';
set role regress_alice;
select (presence.upsert('lobby', '{"x": 1}', audience => '{any}')).room as entered;
select (presence.upsert('lobby', '[1]', connection_id => '2', audience => '{any}', metadata => '{"name": "A"}')).room as entered;
select (presence.upsert('lobby', member_id => 'lamp', audience => '{user:regress_bob}')).room as entered;
select (presence.upsert('private', audience => '{}')).room as entered;
select (presence.upsert('office')).room as entered;
set role regress_bob;
select (presence.upsert('office')).room as entered;
select (presence.upsert('lobby', '"here"', status => 'away', audience => '{role:regress_carol}')).room as entered;

-- users: the status is that of the most recently active member, or the highest of presence.status_rank.
reset role;
create function test.devices(variadic statuses text[]) returns setof text language plpgsql as $$ begin
    perform presence.delete_all('dev');
    for n in 1 .. cardinality(statuses) loop
        perform presence.upsert('desk', to_jsonb(n), connection_id => n::text, status => statuses[n], user_id => 'dev', audience => '{any}');
        perform pg_sleep(0.001);
    end loop;
    return query select concat_ws(' ', u.user_id, u.members, coalesce(u.status, 'none'), u.state) from presence.users('desk') u;
end $$;
select test.devices('online', 'away');
select test.devices('online', null);
set presence.status_rank = 'online, busy,away';
select test.devices('away', 'online', 'away');
select test.devices('busy', 'away');
select test.devices('busy', 'dreaming');
-- a user without a listed status shows the newest one, as without the setting
select test.devices('dreaming', 'asleep');
select test.devices('dreaming', null);
select test.devices('Online', '');
select test.devices('away', null);
reset presence.status_rank;
select test.devices('away', null);
-- a caller who may not see a member does not see its status
set presence.status_rank = 'busy,away';
select (presence.upsert('desk', connection_id => 'hidden', status => 'busy', user_id => 'dev', audience => '{}')).room as entered;
select u.members, u.status from presence.users('desk') u;
set role regress_alice;
select u.members, u.status from presence.users('desk') u;
-- everybody may set it, but invalid lists are refused
set presence.status_rank = 'a,a';
set presence.status_rank = 'a,,b';
set presence.status_rank = ' , ';
set presence.status_rank = 'a,';
select (test.error(format('set presence.status_rank = %L', repeat('x', 256)))).detail;
select (test.error(format('set presence.status_rank = %L', (select string_agg(n::text, ',') from generate_series(1, 65) n)))).detail;
set presence.status_rank = '';
show presence.status_rank;
reset role;
reset presence.status_rank;
select presence.delete_all('dev');
drop function test.devices(text[]);

-- get: the caller, or another member; all connections, or one.
set role regress_alice;
select member_id, connection_id, user_id, state from presence.get('lobby');
select connection_id, metadata from presence.get('lobby', connection_id => '2');
select count(*) from presence.get('lobby', 'regress_bob');
select count(*) from presence.get('nowhere');
set role regress_bob;
select member_id, connection_id, state, audience is null as hidden, session_pid is null as unknown from presence.get('lobby', 'regress_alice');
select member_id, connection_id from presence.get('lobby', 'lamp', '');
select count(*) from presence.get('private', 'regress_alice');

-- Each user sees what is shared with them: with everybody, a user, a role, or the members of the room.
reset role;
create function test.who() returns table (room text, members text) language sql stable as $$
    select o.room, string_agg(o.member_id || coalesce('/' || nullif(o.connection_id, ''), ''), ' ' order by o.member_id, o.connection_id)
    from presence.online o group by o.room order by o.room
$$;
set role regress_alice;
select * from test.who();
set role regress_bob;
select * from test.who();
set role regress_carol;
select * from test.who();
set role regress_gateway;
select * from test.who();
-- the same applies to raw rows
set role regress_carol;
select room, member_id from presence.member order by 1, 2, connection_id;

-- A user who is in the room sees its members, and no longer after leaving.
begin;
select (presence.upsert('office')).room as entered;
select * from test.who() where room = 'office';
rollback;
select count(*) from test.who() where room = 'office';
select (presence.upsert('office')).room as entered;
select * from test.who() where room = 'office';
select presence.delete('office');
select count(*) from test.who() where room = 'office';

-- occupancy counts what the caller sees.
set role regress_alice;
select * from presence.occupancy('lobby');
select * from presence.occupancy();
set role regress_carol;
select * from presence.occupancy('lobby');
select * from presence.occupancy('office');
set role regress_gateway;
select * from presence.occupancy('lobby');
select members, users from presence.occupancy();
select * from presence.occupancy('nowhere');

-- state is what presenceState() returns.
select jsonb_pretty(regexp_replace(presence.state('lobby')::text, '"presence_ref": "\d+"', '"presence_ref": "N"', 'g')::jsonb);
select presence.state('lobby') #>> '{lamp,0,presence_ref}' = (select version::text from presence.get('lobby', 'lamp')) as ref_is_version;
select presence.state('nowhere');
set role regress_carol;
select jsonb_object_keys(presence.state('lobby'));

-- A join with a table of the application uses the index.
reset role;
create table test.profile (user_id text primary key, name text);
insert into test.profile values ('regress_alice', 'Alice'), ('regress_carol', 'Carol');
grant select on test.profile to public;
set role regress_carol;
select p.name, o.room, o.connection_id from test.profile p join presence.online o using (user_id) order by 1, 2, 3;
reset role;
drop table test.profile;
drop function test.who();

select count(*) from unnest(array['regress_alice', 'regress_bob']) u, presence.delete_all(u);
reset presence.member_ids;
