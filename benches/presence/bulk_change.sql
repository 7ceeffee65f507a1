\set n :n + 1
select presence.upsert_many(b.change) from bulk b where b.id = 1 + :n % 200;
