\set amount random(1, 1000000)
\set room random(1, :rooms)
\set member random(1, 100)
begin;
insert into orders (customer, amount) values ('somebody', :amount);
insert into twin as t (room, member_id, user_id, state, audience)
values (:room, :member, 'app', jsonb_build_object('x', :amount::int), array['room:' || :room])
on conflict (room, member_id, connection_id) do update
set state = excluded.state, version = t.version + 1, updated_at = now(), last_seen_at = now(),
    expires_at = now() + interval '1 hour', deadline = t.deadline + 1
returning *;
insert into twin_event (seq, version, event, room, member_id, connection_id, user_id, state, at, joined_at, audience)
values (nextval('twin_seq'), 1, 'update', :room, :member, '', 'app', jsonb_build_object('x', :amount::int), now(), now(),
        array['room:' || :room]);
commit;
