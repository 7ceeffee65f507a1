\set room random(1, :rooms)
select * from presence.list(:room);
