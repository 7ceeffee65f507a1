\set x random(1, 1000000)
select presence.upsert('entered-' || n % 1000, jsonb_build_object('x', :x::int), n::text) from nextval('entered') n;
