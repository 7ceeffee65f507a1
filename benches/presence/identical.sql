\set room random(1, :rooms)
\set member random(1, 100)
select presence.upsert(:room, '{"x": 1}', :member);
