\set id random(1, 200)
\set x random(1, 1000000)
select presence.upsert_many(replace(b.members, '12345', :x::text)::jsonb) from feed b where b.id = :id;
