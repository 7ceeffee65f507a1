\set id random(1, 100)
select count(*) from batch b, presence.heartbeat_many(b.rooms, b.members) where b.id = :id;
