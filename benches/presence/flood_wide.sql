-- The names of 64 rooms, for 900 members, in one statement.
select presence.upsert_many(jsonb_agg(jsonb_build_object('room', 'hall', 'connection_id', 'wide' || c,
    'audience', rooms_64(),
    'state', jsonb_build_object('x', repeat('y', 5500)))))
from generate_series(1, 900) c;
