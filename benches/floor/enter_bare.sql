\set x random(1, 1000000)
insert into bare (room, member_id, user_id, state, audience, key_hash)
select 'entered-' || n % 1000, n, 'app', jsonb_build_object('x', :x::int), array['room:' || 'entered-' || n % 1000], md5(n::text)::uuid
from nextval('entered') n;
