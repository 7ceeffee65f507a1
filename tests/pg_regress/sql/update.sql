-- presence.update: JSON merge patch on state (RFC 7396).

-- The examples of the RFC's appendix A. A patch that is not an object is refused: a state is patched, not replaced.
create table test.example (number integer, original jsonb, patch jsonb, result jsonb, got jsonb);
grant select, update on test.example to regress_alice;
insert into test.example values
    (1, '{"a":"b"}', '{"a":"c"}', '{"a":"c"}', null),
    (2, '{"a":"b"}', '{"b":"c"}', '{"a":"b","b":"c"}', null),
    (3, '{"a":"b"}', '{"a":null}', '{}', null),
    (4, '{"a":"b","b":"c"}', '{"a":null}', '{"b":"c"}', null),
    (5, '{"a":["b"]}', '{"a":"c"}', '{"a":"c"}', null),
    (6, '{"a":"c"}', '{"a":["b"]}', '{"a":["b"]}', null),
    (7, '{"a":{"b":"c"}}', '{"a":{"b":"d","c":null}}', '{"a":{"b":"d"}}', null),
    (8, '{"a":[{"b":"c"}]}', '{"a":[1]}', '{"a":[1]}', null),
    (9, '["a","b"]', '["c","d"]', null, null),
    (10, '{"a":"b"}', '["c"]', null, null),
    (11, '{"a":"foo"}', 'null', null, null),
    (12, '{"a":"foo"}', '"bar"', null, null),
    (13, '{"e":null}', '{"a":1}', '{"e":null,"a":1}', null),
    (14, '[1,2]', '{"a":"b","c":null}', '{"a":"b"}', null),
    (15, '{}', '{"a":{"bb":{"ccc":null}}}', '{"a":{"bb":{}}}', null),
    -- and more
    (20, '"text"', '{}', '{}', null),
    (21, '{"a":1}', '{}', '{"a":1}', null),
    (22, '{"a":{"b":1}}', '{"a":{}}', '{"a":{"b":1}}', null),
    (23, '{"a":[{"b":1}]}', '{"c":{"d":[null,{"e":null}]}}', '{"a":[{"b":1}],"c":{"d":[null,{"e":null}]}}', null),
    (24, '{"a":1,"b":{"c":2,"d":{"e":3}}}', '{"b":{"d":{"e":null,"f":4},"g":5}}', '{"a":1,"b":{"c":2,"d":{"f":4},"g":5}}', null),
    (25, '{"a":1.0}', '{"a":1.00}', '{"a":1.00}', null),
    (26, '{}', '{"":{"\u00e9":"\ud83d\ude00"}}', '{"":{"\u00e9":"\ud83d\ude00"}}', null);

set role regress_alice;
do $$
declare
    e record;
begin
    for e in select * from test.example loop
        perform presence.upsert('patch', e.original);
        begin
            update test.example set got = (select u.state from presence.update('patch', e.patch) u) where number = e.number;
        exception when invalid_parameter_value then
            null;
        end;
    end loop;
end
$$;
select count(*) as examples, count(*) filter (where got is not distinct from result) as right from test.example;
select * from test.example where got is distinct from result or got::text is distinct from result::text;

-- A late update does not create a ghost.
select count(*) from presence.update('nowhere', '{"a": 1}');
select count(*) from presence.online where room = 'nowhere';

-- What is not given is kept; status and metadata are replaced, not patched.
select version, joined_at as joined, expires_at as expires
from presence.upsert('lobby', '{"x": 1, "tool": "pen"}', status => 'online', metadata => '{"name": "Alice", "age": 1}') \gset
select status, state, metadata, version > :version as newer, joined_at = :'joined' as same_stay,
       expires_at > :'expires' as renewed
from presence.update('lobby', '{"x": 2, "tool": null}');
select status, state, metadata from presence.update('lobby', status => 'busy');
select status is null as cleared, state, metadata from presence.update('lobby', status => '', metadata => '{"age": null}');
select audience from presence.update('lobby', audience => '{any}');

-- The lease is renewed even when nothing changes; then there is no new version.
select version, expires_at as expires from presence.get('lobby') \gset
select pg_sleep(0.01) is not null as later;
select version = :version as same_version, expires_at > :'expires' as renewed from presence.update('lobby');
select version = :version as same_version from presence.update('lobby', '{"x": 2}');

-- Another ttl changes the lease, without an event; '0' means the default: the room's, or presence.default_ttl.
reset role;
select (presence.set_room('timed', ttl => '7 min')).ttl;
select presence.wait_for_flush('10 s') as flushed, presence.seq() as before \gset
set role regress_alice;
select ttl from presence.upsert('timed');
reset role;
select presence.wait_for_flush('10 s') as flushed, presence.seq() as entered \gset
set role regress_alice;
select ttl, expires_at - last_seen_at as lease, updated_at = joined_at as not_updated from presence.update('timed', ttl => '10 min');
select ttl, expires_at - last_seen_at as lease from presence.get('timed');
select ttl from presence.update('timed', status => null);
select ttl, expires_at - last_seen_at as lease, version as at_default from presence.update('timed', ttl => '0') \gset
select :'ttl' as ttl, :'lease' as lease, version = :at_default as only_renewed from presence.update('timed', ttl => '0');
select ttl, version = :at_default as only_renewed from presence.upsert('timed', ttl => '0');
select ttl from presence.upsert('timed', ttl => '1 h');
select ttl from presence.upsert('timed', ttl => '0');
select ttl from presence.upsert('timed', connection_id => 'new', ttl => '0');
update presence.member set ttl = '1 h' where room = 'timed' returning ttl;
update presence.member set ttl = '0' where room = 'timed' and connection_id = 'new' returning ttl;
update presence.member set ttl = null where room = 'timed' and connection_id = '' returning ttl;
select ttl from presence.update('lobby', ttl => '2 min') union all select ttl from presence.update('lobby', ttl => '0 s');
select count(*) from presence.update('nowhere', ttl => '1 min');
-- A session member gets a lease in addition, and then none again.
select ttl, expires_at from presence.upsert('timed', connection_id => 'bound', session => true);
select ttl, expires_at - last_seen_at as lease, session_pid = pg_backend_pid() as bound from presence.update('timed', connection_id => 'bound', ttl => '1 min');
select ttl, expires_at, session_pid = pg_backend_pid() as bound from presence.update('timed', connection_id => 'bound', ttl => '0');
select version as at_default from presence.get('timed', connection_id => 'bound') \gset
select ttl, expires_at, version = :at_default as only_renewed from presence.upsert('timed', connection_id => 'bound', session => true, ttl => '0');
select ttl, session_pid is null as unbound from presence.upsert('timed', connection_id => 'bound', session => false);
select e.code, e.message, e.detail from unnest(array['-1 s', '0.5 s', '31 days', '1 month 1 s']) ttl, test.error(format('select presence.update(%L, ttl => %L)', 'timed', ttl)) e;
select presence.delete('timed', connection_id => null);
reset role;
select presence.wait_for_flush('10 s') as flushed \gset
select event, connection_id, count(*) from presence.event where room = 'timed' and seq > :entered and event <> 'enter' group by 1, 2 order by 1, 2;
select presence.delete_room('timed');
set role regress_alice;

-- One connection, not the others.
select (presence.upsert('lobby', '{"tab": 2}', connection_id => '2')).room as entered;
select connection_id, state from presence.update('lobby', '{"y": 1}', connection_id => '2');
select connection_id, state from presence.get('lobby');

-- Another user's member is not here for the caller, who has only its own name.
set role regress_bob;
select * from test.error($$ select presence.update('lobby', '{"y": 1}', member_id => 'regress_alice') $$) \gx
select count(*) from presence.update('lobby', '{"y": 1}');
reset role;
set role regress_gateway;
select member_id, user_id, state from presence.update('lobby', '{"seen": true}', member_id => 'regress_alice');
reset role;

-- As deep as the stack allows, and no deeper.
set role regress_alice;
select state #> array_fill('a'::text, array[200]) as depth_200
from presence.update('lobby', (repeat('{"a":', 200) || '1' || repeat('}', 200))::jsonb);
reset role;

select presence.delete_all(u) from unnest(array['regress_alice', 'regress_bob']) u;
drop table test.example;
