-- Gateways: one connection that acts for many users.
reset role;
create function test.flushed() returns bigint language plpgsql as $$
begin
    if not presence.wait_for_flush('10 s') then raise 'not flushed'; end if;
    return presence.seq();
end
$$;
set role regress_gateway;

-- upsert_many: elements have the names of upsert's arguments.
select test.flushed() as before \gset
select presence.upsert_many('[
    {"room": "r", "user_id": "u1"},
    {"room": "r", "user_id": "u2", "connection_id": "tab", "state": {"a": 1}, "status": "online", "metadata": {"name": "U2"}, "ttl": "5 min", "audience": ["any", "room"]},
    {"room": "r", "user_id": "u3", "member_id": "lamp", "state": [1, null, {"x": "\u00e9"}], "ttl": null, "audience": [], "session": false},
    {"room": "r", "user_id": "u4", "state": null, "status": null, "metadata": null, "connection_id": null, "session": null}]');
select member_id, connection_id, user_id, status, state, metadata, audience, ttl from presence.list('r');
select test.flushed() is not null as published \gset
select event, member_id, connection_id, user_id, state, connections from test.log(:before) order by member_id;
-- repeated: no event; partly repeated: events for what changed
select test.flushed() as before \gset
select last_seen_at as seen from presence.get('r', 'u2') \gset
select presence.upsert_many('[{"room": "r", "user_id": "u1"}, {"room": "r", "user_id": "u2", "connection_id": "tab", "state": {"a": 1}}]');
select test.flushed() = :before as nothing, (select last_seen_at > :'seen' from presence.get('r', 'u2')) as renewed;
select presence.upsert_many('[{"room": "r", "user_id": "u1", "state": {"b": 1}}, {"room": "r", "user_id": "u2", "connection_id": "tab", "state": {"a": 1}}]');
select test.flushed() is not null as published \gset
select event, member_id, state from test.log(:before);
select presence.upsert_many('[]') as none;

-- patch instead of state: merged into what is there, or into nothing.
select presence.upsert_many('[{"room": "r", "user_id": "u1", "patch": {"b": null, "c": {"d": 1}}}, {"room": "r", "user_id": "u5", "patch": {"e": 1, "f": null}},
    {"room": "r", "user_id": "u3", "member_id": "lamp", "patch": {"was": "a list"}}]');
select member_id, state from presence.list('r') where member_id in ('u1', 'u5', 'lamp');

-- Of a repeated key the last element wins as a whole; it counts once.
select presence.upsert_many('[{"room": "r", "user_id": "u6", "state": 1, "status": "first"}, {"room": "r", "user_id": "u7"}, {"room": "r", "user_id": "u6", "state": 2}]');
select state, status from presence.get('r', 'u6');
select presence.upsert_many('[{"room": "r", "user_id": "u6", "connection_id": ""}, {"room": "r", "user_id": "u6", "member_id": "u6", "state": 3}]');
select state from presence.get('r', 'u6');

-- All or nothing; the error says which element.
select test.flushed() as before \gset
select left(a, 100) as array, e.* from unnest(array[
    'null', '{}', '"x"', '[1]', '[{"room": "r"}, null]', '[{"room": "ok"}, {}]', '[{"room": null}]', '[{"room": ""}]', '[{"room": ["x"]}]', '[{"room": {"x": 1}}]',
    '[{"room": "ok"}, {"room": "r", "member": "u1"}]', '[{"room": "ok"}, {"room": "ok", "Room": "r"}]', '[{"room": "ok", "reason": "left"}]',
    '[{"room": "ok"}, {"room": "r", "ttl": "soon"}]', '[{"room": "ok"}, {"room": "r", "ttl": "0.1 s"}]', '[{"room": "r", "ttl": {"s": 1}}]',
    '[{"room": "ok"}, {"room": "r", "audience": "any"}]', '[{"room": "ok"}, {"room": "r", "audience": [1]}]', '[{"room": "ok"}, {"room": "r", "audience": ["nobody"]}]',
    '[{"room": "ok"}, {"room": "r", "session": "yes"}]', '[{"room": "ok"}, {"room": "r", "patch": [1]}]', '[{"room": "ok"}, {"room": "r", "patch": "x"}]',
    '[{"room": "ok"}, {"room": "r", "patch": {}, "state": {}}]', '[{"room": "ok"}, {"room": "r", "user_id": ""}]', '[{"room": "ok"}, {"room": "r", "connection_id": "\n"}]',
    '[{"room": "ok"}, {"room": "r", "status": true}]']) a, test.error(format('select presence.upsert_many(%L::jsonb)', a)) e;
select e.* from test.error($$ select presence.upsert_many(null) $$) e;
select e.code, e.message, e.detail from test.error(format($$ select presence.upsert_many('[{"room": "ok"}, {"room": "r", "status": "%s"}]') $$, repeat('s', 256))) e;
select e.code, e.message from test.error($$ select presence.upsert_many(jsonb_build_array('{"room": "ok"}'::jsonb, jsonb_build_object('room', 'r', 'state', repeat('x', 70000)))) $$) e;
select test.flushed() = :before as nothing, (select count(*) from presence.list('ok')) as ok;

-- A user uses it for itself, as upsert.
set role regress_alice;
select presence.upsert_many('[{"room": "a"}, {"room": "b", "connection_id": "2", "state": 1}]');
select room, member_id, connection_id, user_id, state from presence.list() where user_id = 'regress_alice';
select e.code, e.message from unnest(array['[{"room": "c"}, {"room": "c", "user_id": "regress_bob"}]', '[{"room": "c"}, {"room": "c", "member_id": "regress_bob"}]']) a,
    test.error(format('select presence.upsert_many(%L::jsonb)', a)) e;
select e.code, e.message from unnest(array['[{"room": "a"}, {"room": "r", "member_id": "u1"}]', '[{"room": "a"}, {"room": "a", "reason": "removed"}]']) a,
    test.error(format('select presence.delete_many(%L::jsonb)', a)) e;
select room from presence.list() where user_id = 'regress_alice';
reset role;
create function test.authorize(room text, action text) returns boolean language sql stable as $$ select room <> 'closed' $$;
set presence.authorizer = 'test.authorize';
set role regress_alice;
select e.code, e.message from test.error($$ select presence.upsert_many('[{"room": "open"}, {"room": "closed"}]') $$) e;
select count(*) from presence.get('open');
reset role;
reset presence.authorizer;
drop function test.authorize(text, text);
set role regress_alice;
select presence.delete_many('[{"room": "a"}, {"room": "b", "connection_id": "2"}, {"room": "never"}]');

-- update_many: elements have the names of update's arguments; only present members are changed.
set role regress_gateway;
select presence.upsert_many('[{"room": "w", "user_id": "u1", "state": {"a": 1, "b": 2}, "status": "online"}, {"room": "w", "user_id": "u2", "connection_id": "tab"}, {"room": "w", "user_id": "u3", "state": 3}]');
select test.flushed() as before \gset
select presence.update_many('[
    {"room": "w", "member_id": "u1", "patch": {"a": null, "c": [1]}, "status": "", "metadata": {"name": "U1"}, "audience": ["any"], "ttl": "5 min"},
    {"room": "w", "member_id": "u2", "connection_id": "tab", "patch": null, "status": "away"},
    {"room": "w", "member_id": "u2", "patch": {"ghost": true}}, {"room": "nowhere", "member_id": "u1", "status": "x"},
    {"room": "w", "member_id": "u3", "connection_id": null}]');
select member_id, connection_id, user_id, status, state, metadata, audience, ttl from presence.list('w');
select test.flushed() is not null as published \gset
select event, member_id, connection_id, status, state from test.log(:before) order by member_id, event desc;
select count(*) from presence.list('nowhere');
-- repeated: no event; a ttl alone: no event either
select test.flushed() as before \gset
select presence.update_many('[{"room": "w", "member_id": "u1", "patch": {"c": [1]}}, {"room": "w", "member_id": "u2", "connection_id": "tab", "ttl": "0"}, {"room": "w", "member_id": "u3", "ttl": "1 h"}]');
select member_id, ttl from presence.list('w');
select test.flushed() = :before as nothing;
-- Of a repeated key the last element wins as a whole.
select presence.update_many('[{"room": "w", "member_id": "u3", "patch": {"x": 1}, "status": "first"}, {"room": "w", "member_id": "u3", "connection_id": "", "patch": {"y": 2}}]');
select member_id, status, state from presence.get('w', 'u3');
select presence.update_many('[]') as none;
-- All or nothing; the error says which element.
select left(a, 100) as array, e.code, e.message, e.detail from unnest(array[
    'null', '{}', '[{"room": "w", "member_id": "u3", "status": "lost"}, {"room": "w", "state": 1}]', '[{"room": "w", "user_id": "u1"}]', '[{"room": "w", "session": true}]',
    '[{"room": "w", "member_id": "u3", "status": "lost"}, {"member_id": "u1"}]', '[{"room": "w"}, {"room": "w", "ttl": "0.1 s"}]', '[{"room": "w"}, {"room": "w", "ttl": "-1 s"}]',
    '[{"room": "w", "member_id": "u3", "status": "lost"}, {"room": "w", "patch": 1}]', '[{"room": "w", "audience": ["nobody"]}]', '[{"room": "w", "member_id": ""}]']) a,
    test.error(format('select presence.update_many(%L::jsonb)', a)) e;
select e.code, e.message from test.error($$ select presence.update_many(null) $$) e;
select e.code, e.message from test.error(format($$ select presence.update_many('[{"room": "w", "member_id": "u3", "status": "lost"}, {"room": "w", "member_id": "u1", "status": "%s"}]') $$, repeat('s', 256))) e;
select member_id, status from presence.get('w', 'u3');
-- A user uses it for itself, as update.
set role regress_alice;
select (presence.upsert('w')).member_id;
select presence.update_many('[{"room": "w", "patch": {"by": "alice"}}, {"room": "v", "status": "x"}]');
select state from presence.get('w');
select e.code, e.message from test.error($$ select presence.update_many('[{"room": "w", "status": "lost"}, {"room": "w", "member_id": "u1", "status": "stolen"}]') $$) e;
select status from presence.get('w');
select presence.delete('w');
reset role;
set presence.authorizer = 'test.authorize';
create function test.authorize(room text, action text) returns boolean language sql stable as $$ select room <> 'closed' or action <> 'join' $$;
select presence.upsert_many('[{"room": "open", "user_id": "regress_alice"}, {"room": "closed", "user_id": "regress_alice"}]');
set role regress_alice;
select e.code, e.message from test.error($$ select presence.update_many('[{"room": "open", "status": "x"}, {"room": "closed", "status": "x"}]') $$) e;
select status from presence.get('open');
reset role;
reset presence.authorizer;
drop function test.authorize(text, text);
select presence.delete_all('regress_alice'), presence.delete_room('w');

-- delete_many: elements have the names of delete's arguments; absent members are not an error; NULL means all connections.
set role regress_gateway;
select presence.upsert_many('[{"room": "d", "user_id": "u1", "connection_id": "1"}, {"room": "d", "user_id": "u1", "connection_id": "2"}, {"room": "d", "user_id": "u1"}, {"room": "d", "user_id": "u2"}, {"room": "d", "user_id": "u3"}]');
select test.flushed() as before \gset
select presence.delete_many('[{"room": "d", "member_id": "u1", "connection_id": "1", "state": "bye"}, {"room": "d", "member_id": "u2", "reason": "disconnected"}, {"room": "d", "member_id": "nobody"}]');
select test.flushed() is not null as published \gset
select member_id, connection_id, state, reason, connections from test.log(:before) order by 1;
select left(a, 100) as array, e.code, e.message, e.detail from unnest(array['{}', '[{"room": "d", "user_id": "u1"}]', '[{"room": "d", "member_id": "u3"}, {"room": "d", "ttl": "1 s"}]', '[{"room": "d", "member_id": "u3"}, {}]',
    '[{"room": "d", "member_id": "u3"}, {"room": "d", "reason": "expired"}]', '[{"room": "d", "member_id": "u3"}, {"room": "d", "reason": 1}]']) a, test.error(format('select presence.delete_many(%L::jsonb)', a)) e;
select member_id, connection_id from presence.list('d');
select presence.delete_many('[{"room": "d", "member_id": "u1", "connection_id": null}]');
select member_id, connection_id from presence.list('d');
-- all connections and one of them: two keys, both are deleted
select presence.upsert_many('[{"room": "d", "user_id": "u1", "connection_id": "1"}, {"room": "d", "user_id": "u1"}]');
select presence.delete_many('[{"room": "d", "member_id": "u1", "connection_id": null}, {"room": "d", "member_id": "u1"}]');
select member_id, connection_id from presence.list('d');
select presence.delete_many('[]') as none;

-- delete_all of a connection: everything that it had, in all rooms.
select presence.upsert_many('[{"room": "a", "user_id": "u1", "connection_id": "c1"}, {"room": "b", "user_id": "u1", "connection_id": "c1"}, {"room": "b", "user_id": "u1", "connection_id": "c2"}, {"room": "b", "user_id": "u2", "connection_id": "c1"}]');
select test.flushed() as before \gset
select presence.delete_all('u1', 'c1');
select test.flushed() is not null as published \gset
select room, member_id, connection_id, reason, connections from test.log(:before) order by 1;
select room, member_id, connection_id from presence.list() where room in ('a', 'b');

-- heartbeat_many: returns those that are not there, each as it was asked for.
select * from presence.heartbeat_many('{b,b,b,nowhere}', '{u1,u2,u2,u1}', '{c2,c1,other,c2}');
select * from presence.heartbeat_many('{b,b,b}', '{u9,u1,u9}', '{x,c2,x}');
select * from presence.heartbeat_many('{}');
select count(*) from presence.heartbeat_many('{b}', '{u1}', '{c2}');
-- NULL stands for the caller, and for ''
select * from presence.heartbeat_many('{b,a}');
set role regress_alice;
select (presence.upsert('a')).room;
select * from presence.heartbeat_many('{a,b}');
-- another user's member is not there for the caller
select * from presence.heartbeat_many('{b,b}', '{u1,u2}', '{c2,c1}');
begin read only;
select * from presence.heartbeat_many('{a,none}');
commit;
select presence.delete_all();

-- Ten thousand members in one call: entered, renewed, changed, deleted; one event each.
set role regress_gateway;
select count(presence.delete_all(user_id)) > 0 as left from (select distinct user_id from presence.online) u;
select test.flushed() as before \gset
select presence.upsert_many((select jsonb_agg(jsonb_build_object('room', 'big', 'user_id', 'u' || n, 'connection_id', 'gw', 'state', n)) from generate_series(1, 10000) n));
select * from presence.occupancy('big');
select count(*) as missing from presence.heartbeat_many(array_fill('big'::text, array[10000]), (select array_agg('u' || n) from generate_series(1, 10000) n), array_fill('gw'::text, array[10000]));
select test.flushed() is not null as published \gset
select event, count(*), count(distinct member_id), sum(state::integer) from test.log(:before) group by 1;
select test.flushed() as before \gset
select presence.upsert_many((select jsonb_agg(jsonb_build_object('room', 'big', 'user_id', 'u' || n, 'connection_id', 'gw', 'state', case when n <= 10 then n + 1 else n end) order by n desc) from generate_series(1, 10000) n));
select test.flushed() is not null as published \gset
select event, count(*), min(state::integer), max(state::integer) from test.log(:before) group by 1;
select test.flushed() as before \gset
select presence.delete_many((select jsonb_agg(jsonb_build_object('room', 'big', 'member_id', 'u' || n, 'connection_id', 'gw', 'reason', 'disconnected')) from generate_series(1, 10000) n));
select test.flushed() is not null as published \gset
select event, reason, count(*), count(distinct member_id), max(connections) from test.log(:before) group by 1, 2;
select * from presence.occupancy();
reset role;
select count(*) from presence.member;
drop function test.flushed();
