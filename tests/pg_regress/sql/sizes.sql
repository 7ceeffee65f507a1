-- Sizes: the size of state and metadata is that of the JSON text that is sent to everybody.
\set VERBOSITY terse
set presence.max_state_size = '1kB';

-- The error reports octet_length(state::text) plus that of metadata.
create function pg_temp.said(state jsonb) returns integer language plpgsql as $$
declare detail text;
begin
    perform presence.upsert('sizes', state, metadata => to_jsonb(repeat('m', 1100)));
    return 0;
exception when program_limit_exceeded then
    get stacked diagnostics detail = pg_exception_detail;
    return substring(detail from 'takes (\d+) bytes')::integer;
end $$;
with samples (state) as (values
    ('{}'::jsonb), ('[]'), ('null'), ('true'), ('false'), ('""'), ('[[], {}, [{}]]'), ('[null, true, false, "x"]'),
    ('{"a": 1, "b": [1, 2, {"c": null}], "": {}}'), ('["\" \\ / \b \f \n \r \t \u0001 \u001f \u007f é 😀"]'),
    ('{"a\"\n": "\u0002"}'), (jsonb_build_object('k', repeat('x', 300), repeat('y', 300), array[1.5, -2])),
    ((select jsonb_agg(n) from generate_series(1, 100) n)), ((select jsonb_object_agg(n, n::text) from generate_series(1, 100) n))
), numbers (number) as (values
    ('0'::numeric), ('-0.0'), ('0.000'), ('1'), ('9'), ('10'), ('99'), ('100'), ('999'), ('1000'), ('9999'), ('10000'), ('-12345'),
    ('0.1'), ('0.0001'), ('0.00001'), ('-0.00000001234'), ('1.000000000000000000000'), ('12345678.87654321'), ('1e64'), ('1e63'),
    ('1e255'), ('1e256'), ('1e257'), ('-1e1000'), ('1e131071'), ('1e-63'), ('1e-64'), ('1e-1000'), ('1e-16383'), ('5e-5'),
    ('123456789012345678901234567890'), ('1e300' + 0.5)
)
select count(*), count(*) filter (where pg_temp.said(state) = octet_length(state::text) + 1102) as right
from (select state from samples
      union all select to_jsonb(number) from numbers
      union all select jsonb_build_array(number, 'x', number) from numbers
      union all select jsonb_build_object('n', number, 'deep', array[array[number]]) from numbers) all_of_them (state);

-- A number of three bytes can stand for many digits, also after the decimal point. In every way to write one.
create temp table bomb as select jsonb_agg('1e131071'::numeric) as big from generate_series(1, 100);
create temp table zeros as select jsonb_agg(('1.' || repeat('0', 2000))::numeric) as ones, '[1, 1, 1]'::jsonb as same
from generate_series(1, 3);
grant select on bomb, zeros to public;
select state from presence.upsert('sizes', '{"here": 1}');
create temp table attempts (way text);
insert into attempts values
    ($$select presence.upsert('sizes', (select big from bomb))$$),
    ($$select presence.upsert('new', (select big from bomb))$$),
    ($$select presence.upsert('sizes', metadata => (select big from bomb))$$),
    ($$select presence.upsert('sizes', (select ones from zeros))$$),
    ($$select presence.update('sizes', jsonb_build_object('n', (select big from bomb)))$$),
    ($$select presence.update('sizes', metadata => (select big from bomb))$$),
    ($$select presence.update('sizes', (select jsonb_object_agg(i, null) from generate_series(1, 1000) i))$$),
    ($$select presence.upsert_many(jsonb_build_array(jsonb_build_object('room', 'sizes', 'state', (select big from bomb))))$$),
    ($$select presence.upsert_many(jsonb_build_array(jsonb_build_object('room', 'sizes', 'metadata', (select big from bomb))))$$),
    ($$select presence.upsert_many(jsonb_build_array(jsonb_build_object('room', 'sizes', 'state', 1e131071)))$$),
    ($$select presence.upsert_many(jsonb_build_array(jsonb_build_object('room', 'sizes', 'patch', jsonb_build_object('n', (select big from bomb)))))$$),
    ($$select presence.delete('sizes', state => (select big from bomb))$$),
    ($$select presence.delete_many(jsonb_build_array(jsonb_build_object('room', 'sizes', 'state', (select big from bomb))))$$),
    ($$insert into presence.member (room, state) values ('new', (select big from bomb))$$),
    ($$update presence.member set metadata = (select big from bomb)$$),
    ($$select presence.set_room('sizes', (select big from bomb))$$),
    ($$select presence.set_room('sizes', patch => jsonb_build_object('n', (select big from bomb)))$$),
    ($$insert into presence.room (room, metadata) values ('sizes', (select ones from zeros))$$);
select left(way, 60) as way, test.error(way) from attempts;

-- For jsonb [1.00, 1.00] equals [1, 1], but for those who receive it, it does not.
select metadata from presence.set_room('sizes', (select same from zeros));
select (select ones from zeros) = '[1, 1, 1]'::jsonb as equal, test.error($$update presence.room set metadata = (select ones from zeros)$$);
select metadata from presence.set_room('sizes', '[1.00, 1, 1]');
select presence.wait_for_flush('10 s');
select event, metadata from presence.event where room = 'sizes' and event = 'room' order by seq;

-- What was stored under a higher limit may stay: only changes are checked.
set presence.max_state_size = '8kB';
select octet_length(state::text) from presence.upsert('sizes', to_jsonb(repeat('x', 4000)));
set presence.max_state_size = '1kB';
select status from presence.upsert('sizes', status => 'busy');
select status from presence.update('sizes', status => 'away');
select status from presence.upsert('sizes', to_jsonb(repeat('x', 4000)), status => 'back');
select test.error($$select presence.update('sizes', metadata => '1')$$);
select octet_length(state::text) from presence.upsert('sizes', to_jsonb(repeat('x', 400)));
reset presence.max_state_size;

-- Names: 255 characters each, and together what an index can hold.
create function pg_temp.name(seed integer, length integer) returns text language sql as
    $$ select string_agg(chr(65536 + abs(hashint4(seed * 1000 + i) % 60000)), '') from generate_series(1, length) i $$;
create temp table long as select pg_temp.name(1, 255) as a, pg_temp.name(3, 255) as b, pg_temp.name(5, 3) as c;
grant select on long to public;
truncate attempts;
insert into attempts values
    ($$select presence.upsert(a, member_id => b, connection_id => c, user_id => a) from long$$),
    ($$select presence.upsert_many(jsonb_build_array(jsonb_build_object('room', a, 'member_id', b, 'connection_id', c, 'user_id', a))) from long$$),
    ($$insert into presence.member (room, member_id, connection_id, user_id) select a, b, c, a from long$$),
    ($$select presence.update(a, member_id => b, connection_id => c) from long$$),
    ($$select presence.heartbeat(a, b, c) from long$$),
    ($$select * from presence.heartbeat_many((select array[a] from long), (select array[b] from long), (select array[c] from long))$$),
    ($$select presence.delete(a, b, c) from long$$),
    ($$select presence.delete_many(jsonb_build_array(jsonb_build_object('room', a, 'member_id', b, 'connection_id', c))) from long$$);
select left(way, 60) as way, test.error(way) from attempts;
-- Four bytes less is accepted by all indexes, by the log and by listeners.
select octet_length(room) + octet_length(member_id) + octet_length(connection_id) as bytes
from presence.upsert((select a from long), member_id => (select b from long), connection_id => (select left(c, 2) from long),
                     user_id => (select a from long), status => (select a from long), audience => (select array['user:' || b, 'room:' || a] from long));
select presence.wait_for_flush('10 s');
select count(*) from long, presence.history(a) h where h.member_id = b;
select count(*) from long, presence.list(a) l where l.status = a;
select presence.delete(a, b, null) from long;
select presence.delete_room('sizes');
delete from presence.member;
