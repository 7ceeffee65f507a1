-- presence.forget: erase a user from members, log and last_seen.
reset role;
create function test.flushed() returns bigint language plpgsql as $$
begin
    if not presence.wait_for_flush('10 s') then raise 'not flushed'; end if;
    return presence.seq();
end
$$;
create function test.traces() returns table (members bigint, events bigint, seen bigint) language sql as $$
    select (select count(*) from presence.member where user_id = 'ghost'), (select count(*) from presence.event where user_id = 'ghost'),
           (select count(*) from presence.last_seen where user_id = 'ghost')
$$;

-- Wait until the worker has written what it knew of last seen: who comes after it is written after it.
create function test.written() returns text language sql as $$
    select test.wait_until($q$ exists (select from _presence._last_seen where user_id = 'marker' and last_seen_at >= (select joined_at from presence.get('fg', 'marker'))) $q$)
$$;

-- Only for service roles.
set role regress_alice;
select e.code, e.message from unnest(array['ghost', 'regress_alice']) u, test.error(format('select presence.forget(%L)', u)) e;
reset role;
select e.code, e.message, e.detail from unnest(array[null, '', e'\n']) u, test.error(format('select presence.forget(%L)', u)) e;
select presence.forget('never was here');

-- A user who left long ago.
select count(presence.upsert('fg', user_id => u, connection_id => c, audience => '{any}')) from unnest(array['ghost', 'other']) u, unnest(array['', '2']) c;
select presence.delete_all('ghost');
select test.flushed() is not null as published \gset
select (presence.upsert('fg', user_id => 'marker')).user_id;
select test.written();
select presence.delete_all('marker');
select * from test.traces();
-- two enters, two leaves and a last seen
select presence.forget('ghost');
select * from test.traces();
select (presence.upsert('fg', user_id => 'marker')).user_id;
select test.written();
select presence.delete_all('marker');
select * from test.traces();
-- other users are not affected
select count(*) from presence.member where user_id = 'other';
select count(*) > 0 as logged from presence.event where user_id = 'other';
-- rolled back, nothing is forgotten
begin;
select presence.forget('other') > 2 as erased;
select count(*) from presence.member where user_id = 'other';
rollback;
select count(*) from presence.member where user_id = 'other';
select count(*) > 0 as logged from presence.event where user_id = 'other';
select presence.heartbeat('fg', 'other');

-- A user who is present leaves, and afterwards there is no trace, not even of what the worker was about to write.
select test.flushed() as before \gset
select (presence.upsert('fg', '{"private": 1}', user_id => 'ghost', audience => '{any}')).user_id;
select test.flushed() is not null as published \gset
select presence.forget('ghost') > 1 as erased;
select count(*) from presence.get('fg', 'ghost');
select test.flushed() is not null as published \gset
select presence.forget('ghost') is not null as erased_again;
select (presence.upsert('fg', user_id => 'marker')).user_id;
select test.written();
select presence.delete_all('marker');
select * from test.traces();
-- a reader of the log from before is told that something is missing: the leave, for example
set role regress_alice;
select event, member_id from presence.changes(:before);
reset role;
select presence.delete_all('other');
select presence.forget('other') > 0 as erased;
select test.flushed() is not null as published \gset
select presence.forget('other') is not null as erased_again;

select count(*) from presence.member;
drop function test.flushed(), test.traces(), test.written();
