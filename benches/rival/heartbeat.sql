\set room random(1, :rooms)
\set member random(1, 100)
update presence set last_seen_at = now(), expires_at = now() + interval '1 hour'
where room = :room and member_id = :member and connection_id = '';
