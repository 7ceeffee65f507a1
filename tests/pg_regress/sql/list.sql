-- presence.list: pages in the order of the key.
reset role;
set presence.member_ids = 'any';
set role regress_alice;
select count(presence.upsert(room, member_id => member, connection_id => connection))
from unnest(array['a', 'b', 'c']) room, unnest(array['m1', 'm2', 'm3']) member, unnest(array['', 'x']) connection;

-- Within a room.
select room, member_id, connection_id from presence.list('b');
select member_id, connection_id from presence.list('b', 2);
select member_id, connection_id from presence.list('b', 2, array['m1', 'x']);
select member_id, connection_id from presence.list('b', 2, array['m2', 'x']);
select member_id, connection_id from presence.list('b', 2, array['m3', 'x']);
-- the key in after need not exist, and '' is a connection like others
select member_id, connection_id from presence.list('b', 100, array['m2', 'm']);
select member_id, connection_id from presence.list('b', 1, array['m1', '']);
select member_id, connection_id from presence.list('b', 1, array['', '']);
select count(*) from presence.list('nowhere');
select count(*) from presence.list('nowhere', 10, array['m1', '']);

-- All rooms.
select room, member_id, connection_id from presence.list(max_rows => 7);
select room, member_id, connection_id from presence.list(null, 3, array['a', 'm3', '']);
select count(*) from presence.list(max_rows => 100, after => array['c', 'm3', 'x']);

-- Page by page returns each member once, whatever the page size.
create function pg_temp.pages(room text, size integer) returns table (pages bigint, members bigint, ordered boolean)
language plpgsql as $$
declare
    place text[];
    page text[];
    keys text[] := '{}';
    turns bigint := 0;
begin
    loop
        select array_agg(concat_ws('/', l.room, l.member_id, l.connection_id) order by n), (array_agg(
            case when pages.room is null then array[l.room, l.member_id, l.connection_id]
                 else array[l.member_id, l.connection_id] end::text order by n desc))[1]::text[]
        into page, place from presence.list(pages.room, pages.size, place) with ordinality l (room, member_id, connection_id,
            user_id, status, state, metadata, audience, version, joined_at, updated_at, last_seen_at, expires_at, ttl, session_pid, node, n);
        exit when page is null;
        turns := turns + 1;
        keys := keys || page;
    end loop;
    return query select turns, count(*), array_agg(k order by n) = array_agg(k order by k collate "C") from (select distinct on (k) k, n from unnest(keys) with ordinality u (k, n)) d;
end
$$;
select size, (pg_temp.pages('b', size)).* from generate_series(1, 7) size;
select size, (pg_temp.pages(null, size)).* from unnest(array[1, 2, 5, 18, 19, 1000]) size;

-- Without max_rows the whole room, or a page of a thousand of all rooms.
reset role;
select count(presence.upsert('crowd', member_id => 'm' || n, user_id => 'u' || n, audience => '{any}')) from generate_series(1, 1100) n;
set role regress_alice;
select count(*) from presence.list('crowd');
select count(*) from presence.list('crowd', null, array['m1099', '']);
select count(*) from presence.list('crowd', 10000);
select count(*) from presence.list('crowd', 1050);
select count(*) from presence.list();
select count(*) from presence.list(max_rows => 10000) where room = 'crowd';
reset role;
select count(presence.delete_all('u' || n)) from generate_series(1, 1100) n;

-- Errors are raised whether anybody is there or not.
select a.room, a.max_rows, a.after, e.* from (values
    ('b', 0, null), ('b', 10001, null), ('b', -1, null), (null, 0, null), (null, 10001, null), (null, -1, null),
    ('', 10, null), (repeat('x', 256), 10, null), (E'b\t', 10, null),
    ('b', 10, array['m1']), ('b', 10, array['b', 'm1', '']), ('b', 10, '{}'), ('b', 10, array['m1', null]),
    ('nowhere', 10, array['m1']), ('nowhere', 0, null), ('nowhere', 10, array['m1', null]),
    (null, 10, array['m1', '']), (null, 10, array['b', null, '']), ('b', 10, '{{m1,x}}')
) a (room, max_rows, after), test.error(format('select count(*) from presence.list(%L, %L, %L::text[])', a.room, a.max_rows, a.after)) e;

set role regress_alice;
select presence.delete_all();
reset role;
reset presence.member_ids;
