\set room random(1, :rooms)
\set member random(1, 100)
select presence.heartbeat(:room, :member);
