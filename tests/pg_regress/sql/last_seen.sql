-- presence.last_seen: who is online, and when the others were last seen, for those who may see it.
reset role;
create function test.flushed() returns bigint language plpgsql as $$
begin
    if not presence.wait_for_flush('10 s') then raise 'not flushed'; end if;
    return presence.seq();
end
$$;
create view test.seen as select user_id, online, last_seen_at between now() - interval '30 s' and clock_timestamp() as lately from presence.last_seen where user_id like 'seen%';
grant select on test.seen to public;
alter view test.seen set (security_invoker = true);
select test.wait_until($$ not exists (select from presence.member) $$);

-- Online, from the moment of entering, and offline, from the moment of leaving.
select count(presence.upsert('ls', user_id => u, audience => a)) from (values ('seen_any', '{any}'::text[]), ('seen_users', '{users}'), ('seen_bob', '{user:regress_bob}'), ('seen_room', '{room}'), ('seen_own', '{}')) v (u, a);
select * from test.seen order by 1;
-- a user with several members has one row, with the last sign of life of all of them
select last_seen_at as first from presence.upsert('ls', user_id => 'seen_any', connection_id => '2', audience => '{any}') \gset
select count(*), bool_and(last_seen_at >= :'first') as last from presence.last_seen where user_id = 'seen_any';
select count(*) as missing from presence.heartbeat_many('{ls}', '{seen_any}');
select last_seen_at > :'first' as renewed from presence.last_seen where user_id = 'seen_any';
-- a user with one of two connections left is online
select presence.delete('ls', 'seen_any', '2');
select * from test.seen where user_id = 'seen_any';
-- gone
select clock_timestamp() as leaving \gset
select sum(presence.delete_all(u)) from unnest(array['seen_any', 'seen_users', 'seen_bob', 'seen_room', 'seen_own']) u;
select count(*) from presence.last_seen where user_id like 'seen%' and online;
select test.wait_until(format($$ (select count(*) = 5 from presence.last_seen where user_id like 'seen%%' and not online and last_seen_at >= %L::timestamptz - interval '10 s') $$, :'leaving'));
select * from test.seen order by 1;

-- Visible to those who could see the last row.
set role regress_alice;
select * from test.seen order by 1;
set role regress_bob;
select * from test.seen order by 1;
select (presence.upsert('ls')).room;
select * from test.seen order by 1;
select presence.delete('ls');
set role regress_gateway;
select count(*) from test.seen;
-- the caller's own
set role regress_alice;
select online, last_seen_at <= now() as past from presence.last_seen where user_id = 'regress_alice';
select (presence.upsert('mine', audience => '{}')).room;
select online from presence.last_seen where user_id = 'regress_alice';
set role regress_bob;
select count(*) from presence.last_seen where user_id = 'regress_alice' and online;
set role regress_alice;
select presence.delete('mine');

-- A user who hid before leaving is hidden afterwards.
reset role;
select (presence.upsert('ls', user_id => 'seen_shy', audience => '{any}')).user_id;
select test.wait_until($$ exists (select from _presence._last_seen where user_id = 'seen_shy') $$);
select (presence.upsert('ls', user_id => 'seen_shy', audience => '{}')).user_id;
select test.flushed() is not null as published \gset
set role regress_bob;
select test.wait_until($$ not exists (select from presence.last_seen where user_id = 'seen_shy') $$) as hidden_while_here;
reset role;
select presence.delete_all('seen_shy');
select test.wait_until($$ exists (select from _presence._last_seen where user_id = 'seen_shy' and audience = '{}') $$);
set role regress_bob;
select count(*) from presence.last_seen where user_id = 'seen_shy';
reset role;
select * from test.seen where user_id = 'seen_shy';

-- An expiry: last seen at the last renewal, not when it was swept.
select last_seen_at as renewed, expires_at as deadline from presence.upsert('ls', user_id => 'seen_lost', ttl => '1 s', audience => '{any}') \gset
select test.wait_until($$ exists (select from presence.last_seen where user_id = 'seen_lost' and not online and last_seen_at is not null) $$);
select test.flushed() is not null as published \gset
select test.wait_until(format($$ clock_timestamp() > %L::timestamptz + interval '3 s' $$, :'deadline'));
select online, last_seen_at >= :'renewed' as since_renewal, last_seen_at < :'deadline' as before_the_end from presence.last_seen where user_id = 'seen_lost';

-- The table is logged, so it survives a crash, and only the worker writes it.
select relpersistence from pg_class where oid = '_presence._last_seen'::regclass;
set role regress_alice;
select e.code from unnest(array['insert into _presence._last_seen (user_id, last_seen_at, room, audience) values (''x'', now(), ''r'', ''{}'')', 'update _presence._last_seen set last_seen_at = now()',
    'delete from _presence._last_seen', 'truncate _presence._last_seen', 'select * from _presence._last_seen']) s, test.error(s) e;
-- where access to its raw rows is granted, they show no more than the view does
reset role;
grant usage on schema _presence to regress_alice;
set role regress_alice;
select user_id from _presence._last_seen where user_id like 'seen%' order by 1;
reset role;
revoke usage on schema _presence from regress_alice;
set role regress_alice;
-- only where the authorizer allows it
reset role;
create function test.authorize(room text, action text) returns boolean language sql stable as $$ select room <> 'ls' $$;
set presence.authorizer = 'test.authorize';
set role regress_bob;
select count(*) from test.seen;
reset role;
reset presence.authorizer;
select bool_and(presence.forget(u) > 1) as erased from unnest(array['seen_any', 'seen_users', 'seen_bob', 'seen_room', 'seen_own', 'seen_shy', 'seen_lost']) u;
select count(*) from presence.member;
drop function test.flushed(), test.authorize(text, text);
drop view test.seen;
