\set n :n + 1
select presence.delete_many(b.leave) from bulk b where b.id = 1 + :n % 200;
