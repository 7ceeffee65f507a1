\set room random(1, 20)
\set c random(1, 50)
\set x random(1, 1000000)
select presence.upsert('busy-' || :room, jsonb_build_object('x', :x::int), connection_id => :c::text);
