\set n :n + 1
select presence.update_many(b.patch) from bulk b where b.id = 1 + :n % 200;
