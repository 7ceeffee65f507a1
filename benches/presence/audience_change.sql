\set x random(1, 1000000)
select presence.upsert('audience-' || :tokens, jsonb_build_object('x', :x::int), 'm', audience => :audience);
