-- The set-up with which presence_ext is measured. One ordinary role, app, owns the members: hence presence.member_ids =
-- 'any' and no limit per user (benches/run sets both). reader is an ordinary role that is present in the rooms it lists.
create extension presence_ext;
select presence.grant_access(role) from unnest('{app,reader,web_a,web_b}'::regrole[]) role;

-- A transaction's events are capped at the buffer's size, so members enter in batches.
create procedure fill(of_room text, prefix text, many int, lease interval, first int default 0)
    language plpgsql as $$
begin
    for lowest in first .. many - 1 by 5000 loop
        insert into presence.member (room, member_id, user_id, state, ttl)
        select coalesce(of_room, (1 + m / 100)::text), prefix || (case when of_room is null then 1 + m % 100 else m end),
               case when of_room is null then 'app' else 'u' || m end, '{"x": 1}', lease
        from generate_series(lowest, least(lowest + 5000, many) - 1) m;
        commit;
        perform presence.wait_for_flush('10 s');
        commit;
    end loop;
end
$$;
