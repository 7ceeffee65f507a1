select nextval('ages') as n \gset
select count(presence.upsert('left-' || :n || '-' || i, '{"x": 1}', connection_id => 'c' || :client_id))
from generate_series(1, 10) i;
select count(*) from generate_series(1, 100) i, lateral presence.listen('left-' || :n || '-' || i);
select count(*) from generate_series(1, 10) i,
    lateral presence.update('left-' || :n || '-' || i, '{"x": 2}', connection_id => 'c' || :client_id);
select presence.delete_all(connection_id => 'c' || :client_id);
