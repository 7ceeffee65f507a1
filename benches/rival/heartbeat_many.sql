\set id random(1, 100)
update presence p set last_seen_at = now(), expires_at = now() + interval '1 hour'
from batch b, unnest(b.rooms, b.members) as u (room, member_id)
where b.id = :id and p.room = u.room and p.member_id = u.member_id and p.connection_id = '';
