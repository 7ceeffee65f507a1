-- Appwrite Presences (AW). All presences of a project are one room, the user is the member, permissions are the
-- audience. 404 is no row; 401 and 409 are 42501.
reset role;
create function test.flushed() returns bigint language plpgsql as $$
begin
    if not presence.wait_for_flush('10 s') then raise 'not flushed'; end if;
    return presence.seq();
end
$$;
set role regress_alice;

-- AW-01: upsert, and get gives the same.
select member_id as id, user_id, status, metadata from presence.upsert('presences', status => 'online', metadata => '{"page": "/dashboard"}');
select member_id as id, user_id, status, metadata from presence.get('presences');

-- AW-02: nesting is kept as it is, empty objects and lists too.
select (presence.upsert('presences', metadata => '{"a": {"b": {}, "c": [], "d": {"e": {"f": {}}}}, "n": null, "t": [{}, [], [[]], "", 0, 1.50, false]}')).metadata;
select metadata from presence.get('presences');

-- AW-03: the user has one row, however often they upsert; its stay continues, and it takes the new status.
select joined_at as joined from presence.get('presences') \gset
select status, metadata ? 'n' as metadata_stays, joined_at = :'joined' as same from presence.upsert('presences', status => 'away');
select count(*) as total, min(status) as status from presence.online where user_id = 'regress_alice';

-- AW-04: B cannot take A's row, neither by its id nor in any other way.
set role regress_bob;
select e.* from test.error($$ select presence.upsert('presences', member_id => 'regress_alice', status => 'mine') $$) e \gx
reset role;
set presence.member_ids = 'any';
set role regress_bob;
select e.* from test.error($$ select presence.upsert('presences', member_id => 'regress_alice', status => 'mine') $$) e \gx
reset role;
reset presence.member_ids;
select status, user_id, metadata ? 'n' as metadata_stays from presence.get('presences', 'regress_alice');

-- AW-05: a client cannot say for whom it writes.
set role regress_bob;
select e.* from test.error($$ select presence.upsert('presences', user_id => 'regress_alice') $$) e \gx
-- not even for itself: the session determines that
select e.code from test.error($$ select presence.upsert('presences', user_id => 'regress_bob') $$) e;
-- AW-06: a server can; without a user it writes for itself, like any role.
set role regress_gateway;
select member_id, user_id from presence.upsert('presences', status => 'busy', user_id => 'u1');
select member_id, user_id from presence.upsert('presences', status => 'busy');
select presence.delete_all('u1'), presence.delete_all();

-- AW-07: status has at most 255 characters, and may be left out or cleared; metadata has at most 64 kB with the state.
set role regress_alice;
select length((presence.upsert('presences', status => repeat('ä', 255))).status);
select e.code, e.message, e.detail from test.error($$ select presence.upsert('presences', status => repeat('ä', 256)) $$) e;
select e.code from test.error($$ select presence.upsert('presences', metadata => to_jsonb(repeat('x', 65536))) $$) e;
select status is null as cleared from presence.upsert('presences', status => '');

-- AW-08: without a ttl the default applies; a given one must be at least 1 s and at most 30 days.
select expires_at - last_seen_at as lease from presence.get('presences');
select expires_at - last_seen_at as lease, ttl from presence.upsert('presences', ttl => '15 min');
select expires_at - last_seen_at as lease from presence.upsert('presences', ttl => '30 days');
select t, e.code, e.message from unnest(array['0.9 s', '-1 h', '30 days 1 s']) t, test.error(format('select presence.upsert(%L, ttl => %L)', 'presences', t)) e;
select presence.delete_all();

-- AW-11: an upsert that finds the row expired does not revive it: the old one leaves, a new one enters.
select test.flushed() as before \gset
select (presence.upsert('presences', status => 'old', metadata => '{"old": 1}', ttl => '1 s')).status;
reset role;
begin;
select count(*) from (select 1 from presence.member where room = 'presences' for update) m;
select pg_sleep(1.05) is not null as past;
set local role regress_alice;
select status, metadata, joined_at > now() + interval '1 s' as new_stay from presence.upsert('presences', status => 'new');
commit;
set role regress_alice;
select test.flushed() is not null as published \gset
select event, status, reason from test.log(:before);

-- AW-20: PATCH with the status alone, or the metadata alone, keeps the rest; an unknown row is not found.
select (presence.upsert('presences', status => 'online', metadata => '{"a": {"b": 1}}', ttl => '1 h', audience => '{users}')).status;
select status, metadata, ttl, audience from presence.update('presences', status => 'away');
select status, metadata, ttl, audience from presence.update('presences', metadata => '{"c": {"d": {}}}');
select count(*) from presence.update('unknown', status => 'away');
-- AW-21: an empty PATCH changes nothing, and an expired row is not there.
select version as before_version from presence.get('presences') \gset
select status, metadata, version = :before_version as same from presence.update('presences');
select (presence.upsert('short', ttl => '1 s')).room;
select test.wait_until($$ not presence.heartbeat('never') and not exists (select from presence.get('short')) $$);
select count(*) from presence.update('short', status => 'late');

-- AW-22: only those with the right can read a row; PATCH and DELETE are for the owner, service roles, and (DELETE) managers.
-- A row that the caller may not read is answered like one that does not exist.
select (presence.upsert('presences', status => 'shared', audience => '{user:regress_bob}')).status;
set role regress_bob;
select status from presence.get('presences', 'regress_alice');
select e.code, e.message from test.error($$ select presence.update('presences', member_id => 'regress_alice', status => 'x') $$) e;
select e.code, e.message from test.error($$ select presence.delete('presences', 'regress_alice') $$) e;
set role regress_carol;
select count(*) from presence.get('presences', 'regress_alice');
select member, e.code, e.message, e.detail from unnest(array['regress_alice', 'nobody']) member,
    test.error(format('select presence.update(%L, member_id => %L, status => %L)', 'presences', member, 'x')) e;
-- nor does a refusal reveal whether a member that the caller may not see is there
select s, count(distinct (e.code, e.message)) as answers from unnest(array['update', 'delete', 'heartbeat']) s, unnest(array['regress_alice', 'nobody']) member,
    test.error(format('select presence.%s(%L, member_id => %L)', s, 'presences', member)) e group by 1 order by 1;
select presence.heartbeat('presences', 'regress_alice') as hidden, presence.heartbeat('presences', 'nobody') as absent;
reset role;
create function test.authorize(room text, action text) returns boolean language sql stable as $$
    select action <> 'manage' or current_user = 'regress_bob'
$$;
set presence.authorizer = 'test.authorize';
set role regress_carol;
select e.code from test.error($$ select presence.delete('presences', 'regress_alice') $$) e;
set role regress_bob;
select presence.delete('presences', 'regress_alice') as by_manager;
reset role;
reset presence.authorizer;
drop function test.authorize(text, text);

-- AW-23: a server gives the row to another user: the first one no longer sees it, the second does, and may write it.
set role regress_gateway;
select user_id from presence.upsert('presences', member_id => 'desk', status => 'on', user_id => 'regress_alice', audience => '{}');
set role regress_alice;
select user_id from presence.get('presences', 'desk');
set role regress_gateway;
select user_id, status from presence.upsert('presences', member_id => 'desk', user_id => 'regress_bob');
reset role;
set presence.member_ids = 'any';
set role regress_alice;
select count(*) from presence.get('presences', 'desk');
select e.code from test.error($$ select presence.update('presences', member_id => 'desk', status => 'mine') $$) e;
set role regress_bob;
select status, user_id from presence.get('presences', 'desk');
select status from presence.update('presences', member_id => 'desk', status => 'off');
-- AW-24: deleted is gone.
select presence.delete('presences', 'desk');
select count(*) from presence.get('presences', 'desk');
reset role;
reset presence.member_ids;

-- AW-25: an expired row is gone for readers at once, and soon from the table.
set role regress_alice;
select expires_at as deadline from presence.upsert('presences', ttl => '1 s') \gset
select test.wait_until(format('clock_timestamp() >= %L', :'deadline'));
select count(*) from presence.get('presences');
select test.wait_until($$ not exists (select from presence.member where room = 'presences') $$);

-- AW-30: the list has the caller's own rows, can be filtered, and has nothing that the caller may not read.
select (presence.upsert('presences', status => 'online', audience => '{}')).status;
select member_id, status from presence.list('presences');
select count(*) from presence.online where user_id = 'regress_alice';
set role regress_bob;
select count(*) from presence.list('presences');
select * from presence.occupancy('presences');

-- AW-31: filter, order, limit and total are SQL.
set role regress_gateway;
select presence.upsert_many((select jsonb_agg(jsonb_build_object('room', 'presences', 'user_id', 'u' || n, 'audience', '["users"]'::jsonb,
    'status', case n % 3 when 0 then 'away' else 'online' end, 'metadata', jsonb_build_object('n', n), 'ttl', n || ' min')) from generate_series(1, 12) n));
set role regress_bob;
select status, count(*) from presence.online where room = 'presences' group by 1 order by 1;
select user_id from presence.online where room = 'presences' and status = 'away' and user_id = any(array['u3', 'u6', 'u7']) order by user_id;
select user_id from presence.online where room = 'presences' and expires_at > now() + interval '10 min' order by expires_at desc limit 2;
select user_id from presence.online where room = 'presences' order by (metadata ->> 'n')::integer desc offset 2 limit 2;
select * from presence.occupancy('presences');
-- AW-32: a cursor is a key, which need not exist; anything else is refused.
select member_id from presence.list('presences', 2, array['u3', '']);
select e.code, e.message, e.detail from test.error($$ select presence.list('presences', 2, array['u3']) $$) e;
-- AW-33: there is no cache to purge: the next statement sees the change.
set role regress_gateway;
select status from presence.upsert('presences', status => 'busy', user_id => 'u1');
set role regress_bob;
select status from presence.get('presences', 'u1');
set role regress_gateway;
select presence.delete_many((select jsonb_agg(jsonb_build_object('room', 'presences', 'member_id', 'u' || n)) from generate_series(1, 12) n));
set role regress_alice;
select presence.delete_all();

-- AW-40: one event each for upsert, update and delete, with the whole document.
select test.flushed() as before \gset
select (presence.upsert('presences', '{"s": 1}', status => 'online', metadata => '{"m": 1}', audience => '{users}')).status;
select test.flushed() is not null as published \gset
select status from presence.update('presences', status => 'away');
select test.flushed() is not null as published \gset
select presence.delete('presences');
select test.flushed() is not null as published \gset
select event, room, member_id, connection_id, user_id, status, state, metadata, connections, reason, joined_at is not null and at is not null as times
from presence.event where seq > :before order by seq;

-- AW-41: the sender's result, what readers get, and the event are the same.
select test.flushed() as before \gset
select to_jsonb(u) - 'audience' - 'session_pid' - 'last_seen_at' - 'expires_at' as sent from presence.upsert('presences', '{"s": 1}', status => 'online', audience => '{users}') u \gset
select test.flushed() is not null as published \gset
set role regress_bob;
select to_jsonb(g) - 'audience' - 'session_pid' - 'last_seen_at' - 'expires_at' = :'sent' as same_in_get from presence.get('presences', 'regress_alice') g;
select count(*), bool_and((to_jsonb(e) - 'audience') @> (:'sent'::jsonb - 'ttl' - 'updated_at')) as same_in_event from presence.event e where seq > :before;

-- AW-42: the same user twice: one row, the second status and metadata.
set role regress_alice;
select count(presence.upsert('presences', status => s, metadata => jsonb_build_object('s', s))) from unnest(array['one', 'two']) s;
select status, metadata from presence.get('presences');

-- AW-43: bad input is an error and makes no event. A status may be left out, though.
select test.flushed() as before \gset
select e.code, e.message, e.detail from unnest(array['{everyone}', '{user:}', '{team}']) a, test.error(format('select presence.upsert(%L, audience => %L)', 'presences', a)) e;
select test.flushed() = :before as nothing;
select status, audience from presence.get('presences');
select presence.delete_all();

-- AW-44: a caller without an identity cannot be present, and makes no event.
reset role;
create role regress_anon;
select presence.grant_access('regress_anon');
set presence.anonymous_roles = 'regress_anon';
select test.flushed() as before \gset
set role regress_anon;
select e.code, e.message from test.error($$ select presence.upsert('presences', status => 'online') $$) e;
select test.flushed() = :before as nothing;
reset role;

-- AW-45: those who may read get the events, others get none: users, a user, anybody.
set role regress_alice;
select test.flushed() as before \gset
select (presence.upsert('presences', connection_id => 'users', audience => '{users}')).connection_id;
select (presence.upsert('presences', connection_id => 'bob', audience => '{user:regress_bob}')).connection_id;
select (presence.upsert('presences', connection_id => 'any', audience => '{any}')).connection_id;
select (presence.upsert('presences', connection_id => 'mine', audience => '{}')).connection_id;
select (presence.upsert('presences', connection_id => 'role', audience => '{role:regress_carol}')).connection_id;
select test.flushed() is not null as published \gset
select string_agg(connection_id, ' ' order by connection_id) as alice from presence.event where seq > :before;
set role regress_bob;
select string_agg(connection_id, ' ' order by connection_id) as bob from presence.event where seq > :before;
select string_agg(connection_id, ' ' order by connection_id) as bob from presence.get('presences', 'regress_alice');
set role regress_carol;
select string_agg(connection_id, ' ' order by connection_id) as carol from presence.event where seq > :before;
set role regress_anon;
select string_agg(connection_id, ' ' order by connection_id) as anon from presence.event where seq > :before;
reset role;
-- a team, by a claim
select presence.delete_all('regress_alice');
select test.flushed() as before \gset
begin;
select presence.act_as('dave', '{red}');
select (presence.upsert('presences', user_id => 'dave', audience => '{team:red}')).member_id;
commit;
select test.flushed() is not null as published \gset
begin;
set local role regress_carol;
select count(*) as of_no_team from presence.changes(:before) where event <> 'position';
reset role;
select presence.act_as('erin', '{red,blue}');
set local role regress_carol;
select presence.user_id(), presence.tokens() @> '{team:red}' as red, count(*) as events from presence.changes(:before) where event <> 'position';
rollback;
select presence.delete_all('dave');
select presence.revoke_access('regress_anon');
reset presence.anonymous_roles;
drop role regress_anon;

-- AW-46: the socket closes: a leave with the last document.
set role regress_alice;
select test.flushed() as before \gset
select (presence.upsert('presences', '{"s": 1}', status => 'online', metadata => '{"m": 1}', session => true)).status;
\connect -
set role regress_alice;
select test.wait_until($$ not exists (select from presence.member where room = 'presences') $$);
select test.flushed() is not null as published \gset
select event, status, state, metadata, reason from presence.event where seq > :before order by seq;

-- AW-47: deleted, and then the socket closes: one leave.
select test.flushed() as before \gset
select (presence.upsert('presences', status => 'online', session => true)).status;
select presence.delete('presences');
\connect -
set role regress_alice;
-- a leave made by the end of the first session would be published before that of this marker
select (presence.upsert('marker', session => true)).room;
\connect -
select test.wait_until($$ not exists (select from presence.member where room = 'marker') $$);
set role regress_alice;
select test.flushed() is not null as published \gset
select event, room, count(*) from test.log(:before) group by 1, 2 order by 2 desc, 1;

-- AW-48: those who may no longer see it are told so.
select (presence.upsert('presences', status => 'online', audience => '{users}')).status;
select test.flushed() as before \gset
select (presence.upsert('presences', audience => '{user:regress_carol}')).status;
select test.flushed() is not null as published \gset
set role regress_bob;
select event, status, reason from test.log(:before);
set role regress_carol;
select event, status, reason from test.log(:before);
set role regress_alice;
select presence.delete_all();

-- AW-49: an expiry is an event like any leave.
select test.flushed() as before \gset
select (presence.upsert('presences', status => 'online', ttl => '1 s')).status;
select test.wait_until(format($$ exists (select from presence.event where seq > %s and event = 'leave') $$, :before));
select event, status, reason from test.log(:before);

reset role;
select count(*) from presence.member;
drop function test.flushed();
