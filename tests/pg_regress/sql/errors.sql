-- Every error says what is wrong, why, and what to do; and bad input changes nothing.
create table test.bad (number serial, role text default 'regress_alice', statement text);
insert into test.bad (statement) values
    -- names
    ($$ presence.upsert(null) $$), ($$ presence.upsert('') $$), ($$ presence.upsert(repeat('x', 256)) $$),
    ($$ presence.upsert(repeat(e'\u00e9', 256)) $$), ($$ presence.upsert(e'a\nb') $$), ($$ presence.upsert(e'a\u007f') $$),
    ($$ presence.upsert(e'a\u0085') $$),
    ($$ presence.upsert('r', member_id => '') $$), ($$ presence.upsert('r', member_id => repeat('x', 256)) $$),
    ($$ presence.upsert('r', member_id => e'\t') $$), ($$ presence.upsert('r', member_id => 'somebody') $$),
    ($$ presence.upsert('r', connection_id => repeat('x', 256)) $$), ($$ presence.upsert('r', connection_id => e'\r') $$),
    ($$ presence.upsert('r', status => repeat('x', 256)) $$),
    ($$ presence.upsert('r', user_id => 'somebody') $$), ($$ presence.upsert('r', user_id => 'regress_alice') $$),
    -- ttl
    ($$ presence.upsert('r', ttl => '1 us') $$), ($$ presence.upsert('r', ttl => '999 ms') $$), ($$ presence.upsert('r', ttl => '-1 s') $$),
    ($$ presence.upsert('r', ttl => '30 days 1 us') $$), ($$ presence.upsert('r', ttl => '178000000 years') $$),
    -- audience
    ($$ presence.upsert('r', audience => '{everyone}') $$), ($$ presence.upsert('r', audience => '{user:}') $$),
    ($$ presence.upsert('r', audience => '{""}') $$), ($$ presence.upsert('r', audience => '{any,null}') $$),
    ($$ presence.upsert('r', audience => '{{any,users},{room,any}}') $$), ($$ presence.upsert('r', audience => '{-}') $$),
    ($$ presence.upsert('r', audience => array['user:' || e'\n']) $$), ($$ presence.upsert('r', audience => array['team:' || repeat('x', 256)]) $$),
    ($$ presence.upsert('r', audience => (select array_agg('user:' || n) from generate_series(1, 65) n)) $$),
    -- size
    ($$ presence.upsert('r', to_jsonb(repeat('x', 65536))) $$),
    ($$ presence.upsert('r', to_jsonb(repeat('x', 40000)), metadata => to_jsonb(repeat('x', 40000))) $$),
    -- update, heartbeat, delete
    ($$ presence.update(null) $$), ($$ presence.update('', '{}') $$), ($$ presence.update('r', '[]') $$), ($$ presence.update('r', 'null') $$),
    ($$ presence.update('r', '"x"') $$), ($$ presence.update('r', '1') $$), ($$ presence.update('r', member_id => 'somebody') $$),
    ($$ presence.update('nowhere', '[]') $$), ($$ presence.update('here', audience => '{x}') $$),
    ($$ presence.update('here', jsonb_build_object('a', repeat('x', 65536))) $$), ($$ presence.update('here', status => repeat('x', 256)) $$),
    ($$ presence.heartbeat(null) $$), ($$ presence.heartbeat('') $$), ($$ presence.heartbeat('r', '') $$), ($$ presence.heartbeat('r', connection_id => e'\n') $$),
    ($$ presence.heartbeat_many(null) $$), ($$ presence.heartbeat_many('{a,null}') $$), ($$ presence.heartbeat_many('{a,""}') $$),
    ($$ presence.heartbeat_many('{a,b}', '{regress_alice}') $$), ($$ presence.heartbeat_many('{a,b}', connection_ids => '{x,y,z}') $$),
    ($$ presence.heartbeat_many('{a}', '{null}') $$), ($$ presence.heartbeat_many('{a}', connection_ids => '{null}') $$),
    ($$ presence.heartbeat_many('{{a,b},{c,d}}') $$),
    ($$ presence.delete(null) $$), ($$ presence.delete('') $$), ($$ presence.delete('r', '') $$), ($$ presence.delete('r', connection_id => e'\n') $$),
    ($$ presence.delete('r', reason => 'expired') $$), ($$ presence.delete('r', reason => 'hidden') $$), ($$ presence.delete('r', reason => '') $$),
    ($$ presence.delete('r', reason => 'removed') $$), ($$ presence.delete('r', reason => 'disconnected') $$),
    ($$ presence.delete('here', state => to_jsonb(repeat('x', 65536))) $$),
    ($$ presence.delete_all('') $$), ($$ presence.delete_all('somebody') $$), ($$ presence.delete_all(connection_id => e'\n') $$),
    -- reading and operating
    ($$ presence.list('') $$), ($$ presence.list('r', 0) $$), ($$ presence.list('r', 10001) $$), ($$ presence.list('r', after => '{x}') $$),
    ($$ presence.get(null) $$), ($$ presence.get('') $$), ($$ presence.occupancy('') $$), ($$ presence.occupancy(repeat('x', 256)) $$),
    ($$ presence.state(null) $$), ($$ presence.state('') $$),
    ($$ presence.list('r', after => '[0:1]={a,b}') $$),
    ($$ presence.listen('') $$), ($$ presence.channels(e'\n') $$), ($$ presence.unlisten('') $$),
    ($$ presence.changes(null) $$), ($$ presence.changes(0, max_rows => 0) $$), ($$ presence.changes(0, max_rows => 1001) $$),
    ($$ presence.changes(0, '') $$),
    ($$ presence.wait_for_flush(null) $$), ($$ presence.wait_for_flush('-1 s') $$), ($$ presence.wait_for_flush('2 days') $$),
    ($$ presence.sweep() $$), ($$ presence.act_as('somebody') $$), ($$ presence.grant_access('regress_bob') $$);
insert into test.bad (role, statement) values
    ('regress_gateway', $$ presence.upsert('r', user_id => '') $$), ('regress_gateway', $$ presence.upsert('r', user_id => e'\n') $$),
    ('regress_gateway', $$ presence.act_as('somebody') $$),
    ('regress_nobody', $$ presence.upsert('r') $$), ('none', $$ presence.act_as(null) $$), ('none', $$ presence.act_as('') $$),
    ('none', $$ presence.act_as('u', '{null}') $$);
grant select on test.bad to public;
set role regress_alice;
select (presence.upsert('here', '{"a": 1}', audience => '{any}')).room;
reset role;
select presence.wait_for_flush('10 s');
select presence.seq() as before \gset
set presence.member_ids = 'own';
begin;
create temp table answer (number integer, role text, statement text, code text, message text, detail text, hint text);
grant all on answer to public;
do $$
declare
    b record;
begin
    for b in select * from test.bad order by number loop
        perform set_config('role', b.role, true);
        insert into answer select b.number, b.role, b.statement, e.* from test.error('select count(*) from' || b.statement) e;
        perform set_config('role', 'none', true);
    end loop;
end
$$;
\pset format unaligned
\pset tuples_only on
select concat_ws(e'\n    ', case when role <> 'regress_alice' then role || ': ' else '' end || trim(statement),
                 coalesce(code || ': ', '') || message, 'DETAIL: ' || nullif(detail, ''), 'HINT: ' || nullif(hint, ''))
from answer order by number;
\pset format aligned
\pset tuples_only off
commit;

-- Nothing has happened.
select room, member_id, connection_id, state from presence.member;
select presence.wait_for_flush('10 s');
select presence.seq() = :before as silent;

-- A caller without an identity can read, but not be present.
create role regress_anon;
select presence.grant_access('regress_anon');
set presence.anonymous_roles = 'regress_anon';
set role regress_anon;
select presence.user_id() is null as nobody;
select member_id from presence.list('here');
select * from test.error($$ select presence.upsert('here') $$) \gx
select * from test.error($$ insert into presence.member (room) values ('here') $$) \gx
select * from test.error($$ select presence.heartbeat('here') $$) \gx
select e.message from unnest(array[$$ select presence.update('here') $$, $$ select presence.delete('here') $$, $$ select presence.delete_all() $$,
    $$ select presence.heartbeat('here', 'regress_alice') $$, $$ select * from presence.heartbeat_many('{here}') $$]) s, test.error(s) e;
reset role;
reset presence.anonymous_roles;
select presence.revoke_access('regress_anon');
drop role regress_anon;

-- Shared sessions have no session members and do not listen.
set presence.session_features = off;
set role regress_alice;
select * from test.error($$ select presence.upsert('here', session => true) $$) \gx
select * from test.error($$ select presence.listen('here') $$) \gx
select count(*) > 0 as has_names from presence.channels('here');
reset role;
reset presence.session_features;

-- A transaction that changed presence cannot be prepared; one that only read can.
set role regress_alice;
begin;
select (presence.upsert('prepared')).room;
\set SHOW_CONTEXT never
prepare transaction 'presence';
\echo :LAST_ERROR_SQLSTATE
select count(*) from presence.get('prepared');
begin;
select presence.delete('here');
rollback;

-- More members than a user may have; existing members are renewed, and other users are not affected.
reset role;
set presence.max_per_user = 3;
set role regress_alice;
select count(presence.upsert('many ' || n)) from generate_series(1, 2) n;
select * from test.error($$ select presence.upsert('many 3') $$) \gx
select e.message from test.error($$ insert into presence.member (room) values ('many 3') $$) e;
select (presence.upsert('many 1', '{"a": 1}')).state;
set role regress_bob;
select (presence.upsert('many 1')).room;
set role regress_gateway;
select count(presence.upsert('many ' || n, user_id => 'regress_alice')) from generate_series(3, 6) n;
reset role;
select presence.delete_all('regress_alice'), presence.delete_all('regress_bob');
reset presence.max_per_user;

-- The settings have limits, their prefix is reserved, and those that concern security are for superusers. (PostgreSQL 17
-- and newer write the unit of a limit.)
select e.code, regexp_replace(e.message, '\((\d+) s \.\. (\d+) s\)', '(\1 .. \2)') as message from unnest(array['set presence.max_per_user = -1', $$ set presence.default_ttl = '0 s' $$, 'set presence.typo = 1',
    'set presence.max_members = 5', $$ set presence.member_ids = 'all' $$]) s, test.error(s) e;
set role regress_alice;
select s, e.code from unnest(array['service_roles', 'trusted_login_roles', 'anonymous_roles', 'member_ids', 'default_audience', 'authorizer', 'sink',
    'teams_claim', 'max_per_user', 'max_state_size', 'notify_payload', 'session_features']) s, test.error(format('set presence.%I = default', s)) e;
reset role;
drop table test.bad;
