\set room random(1, :rooms)
\set member random(1, 100)
\set x random(1, 1000000)
select upsert(:room, jsonb_build_object('x', :x::int, 'tool', 'pen'), :member);
\sleep 25 ms
