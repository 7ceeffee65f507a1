-- presence.update: JSON merge patch on state (RFC 7396).

-- The examples of the RFC's appendix A. Where the patch is no object it is refused: a state is patched, not replaced.
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

-- A late update makes no ghost.
select count(*) from presence.update('nowhere', '{"a": 1}');
select count(*) from presence.online where room = 'nowhere';

-- What is not given stays; status and metadata are replaced, not patched.
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

-- One connection, not the others.
select (presence.upsert('lobby', '{"tab": 2}', connection_id => '2')).room as entered;
select connection_id, state from presence.update('lobby', '{"y": 1}', connection_id => '2');
select connection_id, state from presence.get('lobby');

-- Another's member is not here for me; my own name is all I have.
set role regress_bob;
select * from test.error($$ select presence.update('lobby', '{"y": 1}', member_id => 'regress_alice') $$) \gx
select count(*) from presence.update('lobby', '{"y": 1}');
reset role;
set role regress_gateway;
select member_id, user_id, state from presence.update('lobby', '{"seen": true}', member_id => 'regress_alice');
reset role;

-- Deep enough for the stack, and no further.
set role regress_alice;
select state #> array_fill('a'::text, array[200]) as depth_200
from presence.update('lobby', (repeat('{"a":', 200) || '1' || repeat('}', 200))::jsonb);
reset role;

select presence.delete_all(u) from unnest(array['regress_alice', 'regress_bob']) u;
drop table test.example;
