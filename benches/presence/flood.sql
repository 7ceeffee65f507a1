\set n random(1, 1000000)
select presence.upsert_many(jsonb_agg(jsonb_build_object('room', 'hall', 'connection_id', 'c' || :client_id::text || '.' || c,
    'audience', rooms_64(),
    'state', jsonb_build_object('n', :n::int, 'x', repeat('y', 60000)))))
from generate_series(1, 20) c;
